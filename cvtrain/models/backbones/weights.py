"""Starting a backbone from a file: what of it fits, what is said about it, what is refused.

Names are matched under the prefixes that training programs put before them, and in the names that
other projects use (``Backbone.translations``). A file of another network is refused: a start from a
fifth of a network is no start. One of the same network may lack layers (the first 20 of YOLO's 24);
they keep their random start, and a warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from cvtrain.errors import CheckpointError
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.backbones.translate import COUNTERS
from cvtrain.models.backbones.weights_file import WeightsFile, read_weights, refuse_not_finite

log = logging.getLogger(__name__)

PREFIXES = ("", "module.", "model.", "backbone.", "model.backbone.", "encoder.")
"""What a key may begin with in the file where the backbone has nothing; what stands before the
first layer's name is tried as well."""

OWN_PREFIXES = ("", "body.")
"""What a key may begin with in the backbone where the file has nothing (timm's own files)."""


@dataclass(frozen=True)
class Loaded:
    """What ``load_weights`` took.

    Attributes:
        taken: names of the backbone's tensors that were filled.
        missing: those that were not and keep their start.
        unused: names in the file that fit nowhere, the classifier's among them.
        summary: one line that says so.
        mismatched: of the missing, those that the file has in another shape.
    """

    taken: list[str]
    missing: list[str]
    unused: list[str]
    summary: str
    mismatched: list[str] = field(default_factory=list)


@dataclass
class _Match:
    """One way to read a file.

    Attributes:
        taken: tensors by the backbone's names.
        shapes: (shape in the file, shape here) of those that do not fit.
        unused: names in the file that the backbone has not.
        extra: of those, the ones under the prefix that was read, without it, with their tensors.
        adapted: (channels in the file, channels here) where first filters were adapted.
        how: a few words on a translation of names.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)
    adapted: tuple[int, int] | None = None
    how: str = ""


def load_weights(backbone: Backbone, path: str | Path) -> Loaded:
    """Fill a backbone from a file and say what matched.

    A partial match is logged as a warning with counts and first names. The first filters are
    adapted where the file has another number of image channels.

    Raises:
        UsageError: there is no such file.
        CheckpointError: the file is truncated, carries more than tensors and plain data, holds
            nothing that fits, is of another architecture, or a tensor taken is not finite.
    """
    file = read_weights(path)
    own = backbone.state_dict()
    parameters = {name for name, _ in backbone.named_parameters()}
    match = _best_match(backbone, file)
    _refuse_another(backbone, file, match, parameters)
    refuse_not_finite(file, match.taken)
    backbone.load_state_dict(match.taken, strict=False)
    missing = [k for k in own if k not in match.taken]
    classifier = {k: v for k, v in match.extra.items() if _is_classifier(k, backbone)}
    unused = [k for k in match.unused if not k.endswith(tuple(classifier))]
    partial = bool(match.shapes) or any(not k.endswith(COUNTERS) for k in [*missing, *unused])
    summary = _summary(path, file, len(own), match, missing, unused, classifier)
    log.log(logging.WARNING if partial else logging.INFO, summary)
    return Loaded(list(match.taken), missing, match.unused, summary, list(match.shapes))


def _best_match(backbone: Backbone, file: WeightsFile) -> _Match:
    """The reading of the file under which most of the backbone's parameters fit."""
    own = backbone.state_dict()
    first = backbone.input_layers()
    state = {k: v for k, v in file.state.items() if k not in file.untrained}
    readings = [("", state, prefix) for prefix in _prefixes(own, state)]
    best = _best(readings, own, first)
    if len(best.taken) < len(own):
        for prefix in _prefixes(own, state):
            bare = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if bare:
                found = backbone.translations(bare)
                readings += [(how, renamed, "") for how, renamed in found]
        best = _best(readings, own, first)
    return best


def _prefixes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """What the file may put before its names: the usual, and what precedes the first layer's."""
    found = dict.fromkeys(PREFIXES)
    for own_prefix in OWN_PREFIXES:
        name = next((k for k in own if k.startswith(own_prefix)), "").removeprefix(own_prefix)
        ends = (k.removesuffix(name) for k in state if name and k.endswith("." + name))
        found |= dict.fromkeys(ends)
    return list(found)


def _best(
    readings: Iterable[tuple[str, dict[str, Tensor], str]],
    own: Mapping[str, Tensor],
    first: list[str],
) -> _Match:
    best = _Match()
    for how, state, prefix in readings:
        for own_prefix in OWN_PREFIXES:
            match = _Match(how=how)
            for key, value in state.items():
                bare = key.removeprefix(prefix)
                name = own_prefix + bare
                if not key.startswith(prefix) or name not in own:
                    match.unused.append(key)
                    if key.startswith(prefix):
                        match.extra[bare] = value
                    continue
                fitted = _fit(value, own[name], adapt=name in first)
                if fitted is None:
                    match.shapes[name] = (tuple(value.shape), tuple(own[name].shape))
                    continue
                if fitted is not value:
                    match.adapted = (value.shape[1], own[name].shape[1])
                match.taken[name] = fitted
            if len(match.taken) > len(best.taken):
                best = match
    return best


def _fit(value: Tensor, own: Tensor, adapt: bool) -> Tensor | None:
    """``value`` in the shape of ``own``, or None where that cannot be."""
    if value.shape == own.shape:
        return value
    same = value.ndim == own.ndim == 4 and value.shape[0] == own.shape[0]
    if adapt and same and value.shape[2:] == own.shape[2:]:
        return adapt_channels(value, own.shape[1])
    return None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Filters for images of one number of channels -> filters for another.

    To one channel: the sum over the channels, the answer to a gray image as if it were RGB. To
    others: the filters repeated in turn (or the first of them) and scaled by the channels there
    over the channels here, so that outputs keep their size.

    Args:
        weight: ``(out, channels there, kH, kW)``.
        channels: of the images.

    Returns:
        ``(out, channels, kH, kW)``.
    """
    there = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = -(-channels // there)
    return weight.repeat(1, turns, 1, 1)[:, :channels] * (there / channels)


def adapted_text(there: int, here: int) -> str:
    """What ``adapt_channels`` did, for people."""
    how = "summed" if here == 1 else f"repeated and scaled by {there}/{here}"
    if 1 < here < there:
        how = f"cut to the first {here} and scaled by {there}/{here}"
    return f"first filters, for images of {_channels(there)}, {how} for {_channels(here)}"


def say_adapted(what: str, there: int, here: int) -> None:
    """Log that first filters were adapted, where they were."""
    if there != here:
        log.info("%s: %s", what, adapted_text(there, here))


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _refuse_another(
    backbone: Backbone, file: WeightsFile, match: _Match, parameters: set[str]
) -> None:
    """Raise CheckpointError where the file holds the weights of another network."""
    fits = parameters & match.taken.keys()
    shapes = {k: v for k, v in match.shapes.items() if k in parameters}
    more = _deeper(backbone, match)
    less = _shallower(match, parameters)
    here = backbone.architecture
    enough = 2 * len(fits) >= len(parameters)
    if enough and not shapes and not more and not less:
        return
    note = file.architecture
    same = file.family == type(backbone).__name__ and (
        file.family != "TimmBackbone" or note == here
    )
    if fits and same and (not shapes or (note == here and len(shapes) <= len(fits))):
        return
    if note is not None and note != here:
        raise CheckpointError(
            f"{file.path} holds the weights of {note}, the backbone is {here}: write "
            f"backbone={note}, or take weights of {here}"
        )
    if not fits:
        raise CheckpointError(
            f"{file.path} matches nothing of this backbone ({here}): the file holds "
            f"{_first(file.state)}, the backbone {_first(backbone.state_dict())}; is it of another "
            "architecture?"
        )
    reasons = []
    if not enough:
        reasons.append(f"it has {len(fits)} of the backbone's {len(parameters)} weights")
    if shapes:
        name, (there, mine) = next(iter(shapes.items()))
        count = f"{len(shapes)} of {len(parameters)} weights have another shape"
        reasons.append(f"{count} ({name}: {list(there)} there, {list(mine)} here)")
    if more:
        reasons.append(f"it has {len(more)} tensors more ({_first(more)})")
    if less:
        reasons.append(f"it lacks {len(less)} ({_first(less)})")
    raise CheckpointError(
        f"{file.path} is of another architecture than this backbone ({here}): {'; '.join(reasons)}"
    )


def _deeper(backbone: Backbone, match: _Match) -> list[str]:
    """Names in the file that belong to parts this backbone has, but has not in it."""
    parts = {_part(name) for name in match.taken}
    return [
        name
        for name in match.extra
        if _part(name) in parts
        and not name.endswith(COUNTERS)
        and not _is_classifier(name, backbone)
    ]


def _shallower(match: _Match, parameters: set[str]) -> list[str]:
    """Parameters that are missing in parts of the backbone that the file fills otherwise."""
    parts = {_part(name) for name in match.taken}
    missing = parameters - match.taken.keys() - match.shapes.keys()
    return sorted(name for name in missing if _part(name) in parts)


def _part(name: str) -> str:
    """The first component of a name: ``body.layer1.0.conv1.weight`` -> ``layer1``."""
    return name.removeprefix(OWN_PREFIXES[1]).partition(".")[0]


def _is_classifier(name: str, backbone: Backbone) -> bool:
    return name.startswith(tuple(backbone.classifiers))


def _summary(
    path: str | Path,
    file: WeightsFile,
    count: int,
    match: _Match,
    missing: list[str],
    unused: list[str],
    classifier: dict[str, Tensor],
) -> str:
    source = f" ({file.source})" if file.source else ""
    parts = [
        f"backbone.weights={path}{source}: took {len(match.taken)} of the backbone's {count} "
        "tensors"
    ]
    absent = [k for k in missing if k not in match.shapes and not k.endswith(COUNTERS)]
    if absent:
        parts.append(f"{len(absent)} keep their random start ({_first(absent)})")
    if match.shapes:
        name, (there, here) = next(iter(match.shapes.items()))
        parts.append(
            f"{len(match.shapes)} of another shape keep their start ({name}: {list(there)} there, "
            f"{list(here)} here)"
        )
    if unused:
        parts.append(f"{len(unused)} in the file have no use here ({_first(unused)})")
    if classifier:
        weight = next((v for v in classifier.values() if v.ndim > 1), None)
        layer = f"layer of {len(weight)} classes" if weight is not None else "layer"
        parts.append(f"its classifier {layer} was left ({_first(classifier)})")
    if file.left:
        parts.append(f"{file.left} were left")
    if match.adapted:
        parts.append(adapted_text(*match.adapted))
    if match.how:
        parts.append(match.how)
    return "; ".join(parts)


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
