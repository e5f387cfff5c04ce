"""Reading a weights file: its tensors, and what it says of the network they belong to.

A file may be a state dict (``.pt``, ``.pth``, also one wrapped as ``{"state_dict": ...}`` or
``{"model": ...}``), a ``.safetensors`` file, or a cvtrain checkpoint (or its run folder), whose
backbone is taken. Files are data: they are read with ``weights_only=True``, and one that carries
anything else is refused.
"""

from __future__ import annotations

import json
import os.path
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cvtrain.errors import CheckpointError
from cvtrain.models.backbones.weights_path import find_weights

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "state_dict_ema")
"""Names under which training programs store the state dict."""

MODEL_PREFIX = "model."
BACKBONE_PREFIX = "model.backbone."
"""What a cvtrain checkpoint puts before the names of the model's, and the backbone's, tensors."""


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds.

    Attributes:
        path: the file that was read (of a run folder, its best checkpoint).
        state: the tensors by name; of a cvtrain checkpoint, its backbone's alone.
        architecture: the network's name where the file tells, e.g. ``resnet18``; timm's without a
            tag.
        family: the name of its class here, where the file tells, e.g. ``TimmBackbone``.
        source: a few words on the run it comes from; empty where it is not of cvtrain.
        left: what a cvtrain checkpoint holds beside its backbone, in a few words.
        untrained: names of tensors that an export filled in with their start.
    """

    path: Path
    state: dict[str, Tensor]
    architecture: str | None = None
    family: str | None = None
    source: str = ""
    left: str = ""
    untrained: frozenset[str] = field(default_factory=frozenset)


def read_weights(
    path: str | Path, key: str = "backbone.weights", *, whole: bool = False
) -> WeightsFile:
    """The tensors of a file and what it tells of them.

    Args:
        path: of the file, or of a run.
        key: what messages say of the path.
        whole: of a checkpoint of a model without a backbone, take all of the model.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read safely, or holds no tensors.
    """
    file = find_weights(Path(os.path.expanduser(path)), key)  # noqa: PTH111 (~nobody)
    content, metadata = _read(file)
    if isinstance(content, Mapping) and "cvtrain" in content:
        return _checkpoint(file, content, whole)
    architecture = metadata.get("architecture")
    if isinstance(content, Mapping) and isinstance(content.get("arch"), str):
        architecture = content["arch"]
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    state = {k.replace("_orig_mod.", ""): v for k, v in _tensors(content).items()}
    if not state:
        raise CheckpointError(f"{file} holds no tensors: a state dict of a backbone is needed")
    return WeightsFile(
        file,
        state,
        _bare(architecture),
        metadata.get("family"),
        metadata.get("source", ""),
        untrained=frozenset(_names(metadata.get("untrained"))),
    )


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name; of a cvtrain checkpoint, its backbone's alone.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read safely, or holds no tensors.
    """
    return read_weights(path).state


def refuse_not_finite(file: WeightsFile, taken: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a tensor that is taken from ``file`` holds NaN or infinity.

    Args:
        file: where they come from.
        taken: by the names here; said is the name in the file, where it is the same tensor.
    """
    for name, value in taken.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            own = (theirs for theirs, tensor in file.state.items() if tensor is value)
            raise CheckpointError(f"{file.path}: {next(own, name)} is not finite")


def _checkpoint(file: Path, content: Mapping[str, Any], whole: bool) -> WeightsFile:
    tensors = _tensors(content.get("state_dict"))
    prefix = BACKBONE_PREFIX
    if whole and not any(k.startswith(prefix) for k in tensors):
        prefix = MODEL_PREFIX
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not state:
        raise CheckpointError(f"{file} is a cvtrain checkpoint of a model without a backbone")
    header = content["cvtrain"] if isinstance(content["cvtrain"], Mapping) else {}
    config = header.get("config")
    model = _node(config, "model")
    node = _node(model, "backbone") or _node(config, "backbone")
    target, name = node.get("_target_"), node.get("name")
    classes = _node(header, "classes").get("names")
    message = f"{model.get('name', 'model')}'s own layers"
    if isinstance(classes, list):
        message += f" for {len(classes)} classes"
    epoch = content.get("epoch")
    return WeightsFile(
        file,
        state,
        _bare(name),
        str(target).rpartition(".")[2] if target else None,
        f"model={model['name']}" + (f", epoch {epoch + 1}" if isinstance(epoch, int) else "")
        if "name" in model
        else "",
        message,
    )


def _node(tree: Any, key: str) -> Mapping[str, Any]:
    value = tree.get(key) if isinstance(tree, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _bare(architecture: object) -> str | None:
    """``resnet18.a1_in1k`` -> ``resnet18``."""
    return architecture.partition(".")[0] if isinstance(architecture, str) else None


def _names(text: str | None) -> list[str]:
    try:
        names = json.loads(text or "[]")
    except ValueError:
        return []
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """(content, metadata of a safetensors file)."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, dict(file.metadata() or {})
        # Mapped, what is not used is not read: of a checkpoint, the optimizer's state is most.
        mmap = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            # Said of a pickle of protocol 4 before it is refused, which the line below says.
            warnings.filterwarnings("ignore", r"Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap), {}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error})") from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no weights file ({reason[:120]})") from error
    except Exception as error:  # bytes taken for a pickle's end in any: IndexError, KeyError, ...
        raise CheckpointError(
            f"{path} is no state dict, or carries more than tensors and plain data; "
            "it was not loaded, as that could run code. Save it as .safetensors"
        ) from error


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
