"""Checkpoints: written beside and renamed, read with ``weights_only=True``, turned into models."""

from __future__ import annotations

import copy
import io
import pickle
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning_fabric.plugins import CheckpointIO

from cvtrain.config.moved import up_to_date
from cvtrain.data.table import Classes
from cvtrain.engine.build import build_model
from cvtrain.errors import CheckpointError, UsageError
from cvtrain.models.base import Model
from cvtrain.outside import check_stored
from cvtrain.storage import replacing
from cvtrain.text import relative

MODEL_PREFIX = "model."
"""What a checkpoint's ``state_dict`` puts before the names of the model's own weights."""


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, taken from a checkpoint.

    Attributes:
        model: in eval mode, on the CPU, with the averaged weights where EMA was on.
        classes: names and category ids, the model's label being the position.
        config: the run's resolved config, plain dicts.
        path: the file it came from.
        epoch: of the checkpoint, from 0.
        metrics: validation loss and metrics of that epoch.
    """

    model: Model
    classes: Classes
    config: dict[str, Any]
    path: Path
    epoch: int
    metrics: dict[str, float]


def checkpoint_path(path: str | Path) -> Path:
    """The file that ``ckpt=`` means: itself, or a run folder's best.ckpt (else last.ckpt).

    Raises:
        CheckpointError: neither is there.
    """
    given = Path(path)
    if given.is_file():
        return given.absolute()
    for name in ("best.ckpt", "last.ckpt"):
        for folder in (given / "checkpoints", given):
            if (folder / name).is_file():
                return (folder / name).absolute()
    if given.is_dir():
        raise CheckpointError(f"ckpt={given}: the folder holds no checkpoints/best.ckpt")
    raise CheckpointError(f"ckpt={given}: no such file or folder")


def load_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """A cvtrain checkpoint as a dict, on the CPU, its configuration brought up to date. Runs no
    code that the file carries.

    Args:
        path: the file.
        mmap: read only what is used (of a checkpoint, the optimizer's state is most).

    Raises:
        CheckpointError: missing, truncated, of another program, or with a pickle payload.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path}: {_what_else(path)}")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it carries Python objects that could run code; "
            "only tensors and plain values are loaded"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({_first_line(error)})"
        ) from error
    header = checkpoint.get("cvtrain") if isinstance(checkpoint, dict) else None
    wanted = {"config": dict, "classes": dict, "version": str}
    if not isinstance(header, dict) or not all(
        isinstance(header.get(key), kind) for key, kind in wanted.items()
    ):
        raise CheckpointError(f"{path}: not a cvtrain checkpoint (its config is missing)")
    check_stored(header["config"], path)
    header["config"] = up_to_date(header["config"])
    _check_classes(header["classes"], path)
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a cvtrain checkpoint (its weights are missing)")
    return checkpoint


def _check_classes(classes: dict[str, Any], path: Path) -> None:
    names, ids = classes.get("names"), classes.get("ids")
    if not (
        isinstance(names, (list, tuple))
        and isinstance(ids, (list, tuple))
        and len(names) == len(ids)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(i, int) for i in ids)
    ):
        raise CheckpointError(f"{path}: not a cvtrain checkpoint (its classes are no names)")


def _whole_one(file: Path) -> str:
    """The remedy for a checkpoint that cannot be read: another one beside it that can."""
    for name in ("best.ckpt", "last.ckpt"):
        other = file.with_name(name)
        if other == file or not other.is_file():
            continue
        try:
            epoch = int(load_checkpoint(other, mmap=True).get("epoch", 0))
        except CheckpointError:
            continue
        message = f"{name} beside it is whole, of epoch {epoch + 1}"
        return f"; {message}: ckpt={shlex.quote(relative(other))}"
    return ""


def load_model(
    path: str | Path, trust: Sequence[str] = (), changes: Mapping[str, Any] | None = None
) -> LoadedRun:
    """A trained model from a checkpoint or a run folder, ready for ``model.predict(images)``.

    Args:
        path: a checkpoint file or a run folder.
        trust: packages of your own that the config may name in ``_target_``.
        changes: keys of the model (``rpn.proposals``: of a part of it) that change how it
            predicts, with their values.

    Returns:
        The model in eval mode on the CPU, with its classes and config. ``predict`` takes
        ``(B, C, H, W)`` images in the file's dtype, resized to ``config["data"]["image_size"]``.

    Raises:
        CheckpointError: a file that is damaged, unsafe, or does not fit its own config.
        UsageError: the config names a class outside the allow-list; a change of a key that it does
            not have.
    """
    file = checkpoint_path(path)
    try:
        checkpoint = load_checkpoint(file, mmap=True)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_whole_one(file)}") from error
    header = checkpoint["cvtrain"]
    config = header["config"]
    if changes:
        config = copy.deepcopy(config)
        for key, value in changes.items():
            *parts, last = key.split(".")
            node: Any = config["model"]
            for part in parts:
                node = node.get(part) if isinstance(node, dict) else None
            if not isinstance(node, dict) or last not in node:
                name = config["model"].get("name")
                raise UsageError(f"model.{key}: {file.name} is model={name}, which has no such key")
            node[last] = value
    classes = Classes(tuple(header["classes"]["names"]), tuple(header["classes"]["ids"]))
    try:
        model = build_model(without_downloads(config), len(classes), trust=trust)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: its config builds no model ({error})") from error
    weights = {
        name.removeprefix(MODEL_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(MODEL_PREFIX)
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: its weights do not fit its config ({_first_line(error)})"
        ) from error
    epoch = int(checkpoint.get("epoch", 0))
    return LoadedRun(model.eval(), classes, config, file, epoch, dict(header.get("metrics", {})))


def without_downloads(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with no weights to start from: a checkpoint brings all of its own."""
    config = copy.deepcopy(config)
    _without_weights(config["model"])
    return config


def _without_weights(node: Any) -> None:
    """Of a model and its parts; ``weights`` that are a loss's numbers stay."""
    if isinstance(node, dict):
        if node.get("pretrained"):
            node["pretrained"] = False
        if isinstance(node.get("weights"), str):
            node["weights"] = None
    for part in node.values() if isinstance(node, dict) else node:
        if isinstance(part, (dict, list)):
            _without_weights(part)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside and renames, so that the previous file stays whole; reads tensors only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with replacing(Path(path)) as partial, partial.open("wb") as raw:
            file = _RememberingFile(raw)
            try:
                torch.save(checkpoint, cast("IO[bytes]", file))
            except RuntimeError:  # torch's writer hides the operating system's reason
                if file.error is not None:
                    raise file.error from None
                raise
            raw.flush()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class _RememberingFile(io.RawIOBase):
    """A binary file that keeps the OSError of a failed write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _what_else(path: Path) -> str:
    """What a file is that is no zip archive, as checkpoints are."""
    with path.open("rb") as file:
        begins = file.read(2)
    if begins == b"PK":
        return "truncated: its end is missing"
    return "the file is empty" if not begins else "not a checkpoint that cvtrain wrote"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":;") if lines else type(error).__name__
