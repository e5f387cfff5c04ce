"""Starting a backbone from a file.

A file may be a state dict (``.pt``, ``.pth``, also one wrapped as ``{"state_dict": ...}`` or
``{"model": ...}``), a ``.safetensors`` file, or a cvtrain checkpoint (or its run folder), whose
backbone is taken. Files are data: they are read with ``weights_only=True``, and one that carries
anything else is refused.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cvtrain.errors import CheckpointError, UsageError

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "state_dict_ema")
"""Names under which training programs store the state dict."""

PREFIXES = ("", "module.", "model.", "backbone.", "model.backbone.", "encoder.")
"""What a key may begin with in the file where the backbone has nothing."""

OWN_PREFIXES = ("", "body.")
"""What a key may begin with in the backbone where the file has nothing (timm's own files)."""


@dataclass(frozen=True)
class Loaded:
    """What ``load_weights`` took.

    Attributes:
        taken: names of the backbone's tensors that were filled.
        missing: those that were not and keep their start.
        unused: names in the file that fit nowhere.
        summary: one line that says so.
    """

    taken: list[str]
    missing: list[str]
    unused: list[str]
    summary: str


def load_weights(backbone: nn.Module, path: str | Path) -> Loaded:
    """Fill a backbone from a file and say what matched.

    A partial match is logged as a warning with counts and first names. The first convolution's
    filters are adapted where the file has another number of image channels.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is truncated, carries more than tensors and plain data, or holds
            nothing that fits.
    """
    state = read_state(path)
    matched, unused = _best_match(backbone, state)
    own = backbone.state_dict()
    names = {name for name, _ in backbone.named_parameters()}
    if not names & matched.keys():
        raise CheckpointError(
            f"{path} matches nothing of this backbone: the file holds {_first(state)}, "
            f"the backbone {_first(own)}; is it of another architecture?"
        )
    backbone.load_state_dict(matched, strict=False)
    missing = [k for k in own if k not in matched]
    summary = f"backbone.weights={path}: took {len(matched)} of the backbone's {len(own)} tensors"
    if missing:
        summary += f"; {len(missing)} keep their random start ({_first(missing)})"
    if unused:
        summary += f"; {len(unused)} in the file have no use here ({_first(unused)})"
    log.log(logging.WARNING if missing else logging.INFO, summary)
    return Loaded(list(matched), missing, unused, summary)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name; of a cvtrain checkpoint, its backbone's alone.

    Raises:
        UsageError: there is no such file.
        CheckpointError: it cannot be read safely, or holds no tensors.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UsageError(f"backbone.weights={path}: there is no such file")
    content = _read(path)
    if isinstance(content, Mapping) and "cvtrain" in content:
        prefix = "model.backbone."
        whole = _tensors(content.get("state_dict"))
        state = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
        if not state:
            raise CheckpointError(f"{path} is a cvtrain checkpoint of a model without a backbone")
        return state
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    state = _tensors(content)
    if not state:
        raise CheckpointError(f"{path} holds no tensors: a state dict of a backbone is needed")
    return {k.replace("_orig_mod.", ""): v for k, v in state.items()}


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no state dict, or carries more than tensors and plain data; "
            "it was not loaded, as that could run code. Save it as .safetensors"
        ) from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file ({error})") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no weights file ({reason[:120]})") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _best_match(
    backbone: nn.Module, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The renaming under which most tensors of the file fit: (what fits, names that do not)."""
    own = backbone.state_dict()
    best: dict[str, Tensor] = {}
    best_source: set[str] = set()
    for prefix in PREFIXES:
        for own_prefix in OWN_PREFIXES:
            matched, source = {}, set()
            for key, value in state.items():
                name = own_prefix + key.removeprefix(prefix)
                if key.startswith(prefix) and name in own:
                    fitted = _fit(value, own[name])
                    if fitted is not None:
                        matched[name] = fitted
                        source.add(key)
            if len(matched) > len(best):
                best, best_source = matched, source
    return best, [k for k in state if k not in best_source]


def _fit(value: Tensor, own: Tensor) -> Tensor | None:
    """``value`` in the shape of ``own``, or None where that cannot be."""
    if value.shape == own.shape:
        return value
    is_first_conv = value.ndim == own.ndim == 4 and value.shape[1] == 3 != own.shape[1]
    if is_first_conv and value.shape[0] == own.shape[0] and value.shape[2:] == own.shape[2:]:
        return adapt_channels(value, own.shape[1])
    return None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Filters for RGB -> filters for another number of channels.

    One channel: the sum over R, G, B, the answer to a gray image as if it were RGB. More: R, G, B
    repeated in turn and scaled by ``3 / channels``, so that outputs keep their size.

    Args:
        weight: ``(out, 3, kH, kW)``.
        channels: of the images.

    Returns:
        ``(out, channels, kH, kW)``.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = -(-channels // 3)
    return weight.repeat(1, turns, 1, 1)[:, :channels] * (3 / channels)


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
