"""cvtrain: a config-driven training framework for computer vision, run from the shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cvtrain.version import __version__

if TYPE_CHECKING:
    from cvtrain.engine.checkpoint import LoadedRun

__all__ = ["__version__", "load_model"]


def load_model(path: str, *, trust: Sequence[str] = ()) -> LoadedRun:
    """A trained model from a checkpoint file or a run folder, ready to predict.

    Args:
        path: a ``.ckpt`` file, or a run folder (its best checkpoint is taken).
        trust: packages of yours, or single classes, that the checkpoint may name, too.

    Returns:
        The model (eval mode, averaged weights where EMA was on), the class table and the run's
        config.

    Raises:
        CheckpointError: truncated, not of cvtrain, or holding anything but tensors and plain data.
    """
    from cvtrain.engine.checkpoint import load_model as load

    return load(path, trust=trust)
