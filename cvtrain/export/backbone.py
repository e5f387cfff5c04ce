"""A trained backbone as a safetensors file that timm, or another run, starts from.

A backbone that is one of timm's is written in timm's names, and whole: a detector drops the layers
behind the last map, so those are filled in as timm starts them, and listed. The header of the file
says what it is (``safetensors.safe_open(...).metadata()``): ``architecture``, ``family`` (the
class here), ``cvtrain`` (the version), ``in_channels``, ``mean`` and ``std`` of the normalization
(images in 0..1), ``source``, ``untrained`` (names that were filled in).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from cvtrain.callbacks.console import LOG
from cvtrain.engine.checkpoint import LoadedRun, load_model
from cvtrain.engine.session import session
from cvtrain.errors import RunError, UsageError
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.timm_backbone import TimmBackbone
from cvtrain.storage import replacing
from cvtrain.text import relative
from cvtrain.version import __version__

BODY = "body."
"""What stands before timm's own names in a TimmBackbone."""

_INPUT_ONLY = ("dynamic_img_size", "strict_img_size")
"""Keywords that widen what images a model takes and leave its weights as they are."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        tensors: how many it holds.
        untrained: names of those that the run did not train: they are as timm starts them.
        call: the Python that loads it; None where timm has no such network.
    """

    path: Path
    tensors: int
    untrained: list[str]
    call: str | None


def export(config: dict[str, Any]) -> int:
    """Write ``config["what"]`` of ``config["ckpt"]`` to ``config["out"]``; the exit code.

    Raises:
        CvtrainError: one line for the user.
    """
    with session(config):
        loaded = load_model(config["ckpt"], trust=config.get("trust") or ())
        done = export_backbone(loaded, config["out"])
        _say(loaded, done)
    return 0


def export_backbone(loaded: LoadedRun, out: str | Path) -> Exported:
    """Write a model's backbone, the averaged weights where EMA was on.

    Args:
        loaded: a trained model.
        out: the file, which must not be there.

    Raises:
        UsageError: the model has no backbone, or the file is there.
        RunError: it cannot be written.
    """
    out = Path(out)
    backbone = getattr(loaded.model, "backbone", None)
    name = loaded.config["model"].get("name", type(loaded.model).__name__)
    if not isinstance(backbone, Backbone):
        raise UsageError(f"{relative(loaded.path)}: model={name} has no backbone to export")
    state: dict[str, Tensor] = dict(backbone.state_dict())
    untrained: list[str] = []
    call = None
    if isinstance(backbone, TimmBackbone) and all(key.startswith(BODY) for key in state):
        state = {key.removeprefix(BODY): value for key, value in state.items()}
        arguments = _arguments(backbone)
        start = _start(arguments)
        untrained = [key for key in start if key not in state]
        state = {key: state.get(key, value) for key, value in start.items()}
        call = _call(arguments, out)
    if out.exists():
        raise UsageError(f"out={out} is there already; give out= another name, or remove it")
    metadata = _metadata(loaded, backbone, name, untrained)
    # Copies, as tensors that share memory are refused; bytes, as its own writer hides OSErrors.
    content = save({k: v.detach().clone().contiguous() for k, v in state.items()}, metadata)
    try:
        with replacing(out) as partial:
            partial.write_bytes(content)
    except RunError as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise RunError(f"cannot write {out}: {reason}; give another out=FILE") from error
    return Exported(out, len(state), untrained, call)


def _arguments(backbone: TimmBackbone) -> dict[str, Any]:
    """What ``timm.create_model`` is called with for the same weights, its name first."""
    found: dict[str, Any] = {"model_name": backbone.name, "num_classes": 0}
    if backbone.in_channels != 3:
        found["in_chans"] = backbone.in_channels
    return found | {k: v for k, v in backbone.keywords.items() if k not in _INPUT_ONLY}


def _start(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Timm's own start of the network, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(timm.create_model(**arguments).state_dict())


def _call(arguments: Mapping[str, Any], out: Path) -> str:
    rest = {**arguments, "checkpoint_path": str(out)}
    keywords = ", ".join(f"{k}={v!r}" for k, v in rest.items() if k != "model_name")
    return f"timm.create_model({arguments['model_name']!r}, {keywords})"


def _metadata(
    loaded: LoadedRun, backbone: Backbone, model: str, untrained: list[str]
) -> dict[str, str]:
    normalize = backbone.normalizer()
    return {
        "format": "pt",
        "architecture": backbone.architecture,
        "family": type(backbone).__name__,
        "cvtrain": __version__,
        "in_channels": str(backbone.in_channels),
        "mean": _numbers(normalize.mean),
        "std": _numbers(normalize.std),
        "source": f"model={model}, {len(loaded.classes)} classes, epoch {loaded.epoch + 1}",
        "untrained": json.dumps(untrained),
    }


def _numbers(values: Tensor) -> str:
    return json.dumps([round(v, 6) for v in values.flatten().tolist()])


def _say(loaded: LoadedRun, done: Exported) -> None:
    backbone: Backbone = loaded.model.backbone  # type: ignore[assignment]
    node = loaded.config["model"].get("backbone") or loaded.config.get("backbone") or {}
    name = node.get("name", backbone.architecture)
    averaged = (loaded.config.get("callbacks") or {}).get("ema") is not None
    LOG.info(
        f"{relative(done.path)}: {name}, {done.tensors} tensors, "
        f"{done.path.stat().st_size / 1e6:.1f} MB, from {relative(loaded.path)} "
        f"(epoch {loaded.epoch + 1}{', averaged weights' if averaged else ''})"
    )
    if done.untrained:
        LOG.warning(
            f"the run did not use {len(done.untrained)} of these tensors; they are as timm starts "
            f"them: {', '.join(done.untrained[:3])}{', ...' if len(done.untrained) > 3 else ''}"
        )
    normalize = backbone.normalizer()
    mean, std = (
        " ".join(dict.fromkeys(f"{v:.4g}" for v in values.flatten().tolist()))
        for values in (normalize.mean, normalize.std)
    )
    channels = f"{backbone.in_channels} channel{'s' if backbone.in_channels > 1 else ''}"
    LOG.info(f"images: {channels} in 0..1, normalized by mean {mean}, std {std}")
    if done.call:
        LOG.info(f"in Python: {done.call}")
    LOG.info(f"in another run: backbone={name} backbone.weights={relative(done.path)}")
