"""What each key takes: a table of ranges and choices, and the type of the default for the rest."""

from __future__ import annotations

import difflib
import importlib.machinery
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvtrain.augment.config import FAMILIES, MIXING, is_close_epoch
from cvtrain.errors import UsageError
from cvtrain.shipped import targets

HEADS = ("linear", "mlp", "svm", "logistic_regression", "knn")
"""What ``transfer=feature_extraction`` can put on a classifier's features."""

MODES = ("single", "fast", "quality")
"""Of selective search."""

COLORS = ("RGB", "I", "Lab", "rgI", "HSV", "rgb", "C", "H")
"""Spaces of selective search."""

PRECISIONS = (
    "auto",
    "bf16-mixed",
    "16-mixed",
    "32-true",
)


@dataclass(frozen=True)
class Rule:
    """A range or a set of choices: what it is called, and whether a value is in it."""

    wants: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _int(low: int) -> Rule:
    return Rule(f"an integer from {low}", lambda v: _is_int(v) and v >= low)


def _number(low: float, *, above: bool = False) -> Rule:
    if above:
        return Rule(f"a number above {low:g}", lambda v: _is_number(v) and v > low)
    return Rule(f"a number from {low:g}", lambda v: _is_number(v) and v >= low)


def _between(low: float, high: float) -> Rule:
    return Rule(f"a number from {low:g} to {high:g}", lambda v: _is_number(v) and low <= v <= high)


def _choice(*names: str) -> Rule:
    return Rule(" | ".join(names), lambda v: v in names, names)


def _or_null(rule: Rule) -> Rule:
    wants = f"{rule.wants}, or null"
    return Rule(wants, lambda v: v is None or rule.accepts(v), rule.choices)


def _is_size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(_is_int(v) and v > 0 for v in value)
    return _is_int(value) and value > 0


def _is_limit(value: Any) -> bool:
    return value is None or (_is_int(value) and value > 0) or (_is_number(value) and 0 < value <= 1)


def _is_precision(value: Any) -> bool:
    return value in PRECISIONS


def _is_class_weights(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_number(v) and v >= 0 for v in value) and any(v > 0 for v in value)
    return value in ("auto", "effective")


def _is_weak_and_strong(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"weak", "strong"}


_SIZE = Rule("pixels: an integer above 0, or [H, W]", _is_size)
_LIMIT = Rule("an integer above 0 (batches), a part of 1 (0.1), or null", _is_limit)
_TEXTS = Rule(
    "a list of names: [mypkg]",
    lambda v: isinstance(v, (list, tuple)) and all(isinstance(x, str) for x in v),
)

_CLASSES = Rule(
    "class names, each once: [cat, dog]",
    lambda v: _is_list(v, lambda x: isinstance(x, str) or _is_int(x)),
)

_NAMES = Rule(
    "names, each once: [resnet18, resnet50]",
    lambda v: _is_list(v, lambda x: isinstance(x, str) and x != ""),
)


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether it is a list, not empty, of such entries, none of them twice."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(accepts(x) for x in value) and len({str(x) for x in value}) == len(value)


_COLORS = Rule(
    f"color spaces, each once, of {', '.join(COLORS)}: [HSV, Lab]",
    lambda v: _is_list(v, lambda x: x in COLORS),
)
_SUMS = Rule(
    "sums of C, T, S and F (color, texture, size, fill), each once: [CTSF, TSF]",
    lambda v: _is_list(v, _is_sum),
)
_THRESHOLDS = Rule(
    "numbers above 0, each once: [50, 100]",
    lambda v: _is_list(v, lambda x: _is_number(x) and x > 0),
)


def span(value: Any) -> tuple[int, int] | None:
    """``5`` -> (5, 5), ``1..15`` -> (1, 15); None: neither a number from 1 nor two in order."""
    first, dots, last = str(value).partition("..")
    if not (first.isdecimal() and (last.isdecimal() if dots else not last)):
        return None
    low, high = int(first), int(last or first)
    return (low, high) if 1 <= low <= high else None


def _is_anchors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        pairs = [v for v in value if isinstance(v, (list, tuple)) and len(v) == 2]
        return 0 < len(pairs) == len(value) and all(
            _is_number(x) and x > 0 for pair in pairs for x in pair
        )
    return _is_int(value) and value > 0


def _is_sum(value: Any) -> bool:
    """Letters of CTSF, each once."""
    return isinstance(value, str) and 0 < len(value) == len(set(value) & set("CTSF"))


SIZES = ("nano", "tiny", "s", "m", "l")
"""Of YOLOX and CSPDarknet."""

WORDS: dict[str, tuple[str | int, ...]] = {
    "aggregate": ("max", "mean"),
    "arch": (
        *("fpn", "unet", "unetplusplus", "linknet", "manet", "pspnet", "pan"),
        *("deeplabv3", "deeplabv3plus", "upernet", "segformer"),
    ),
    "attention": ("scse",),
    "distances": ("exp", "relu"),
    "inference": ("windows", "whole"),
    "kind": ("iou", "giou", "diou", "ciou"),
    "neck": ("c4", "fpn"),
    "nms": ("hard", "agnostic", "linear", "gaussian", "weighted"),
    "norm": ("lrn", "batch", "none"),
    "roi": ("align", "pool"),
    "size": SIZES,
    "stride": (8, 16, 32),
    "svm_features": ("pooled", "map"),
    "top": ("fc", "backbone"),
    "version": ("fast", "accurate"),
}
"""Arguments of cvtrain's own models, backbones and losses that take one of a few words."""

RULES: dict[str, Rule] = {
    "seed": _int(0),
    "resume_data": _or_null(_choice("changed")),
    "split": _choice("train", "val", "test"),
    "k": Rule("a number of anchors from 1, or several: 1..15", lambda v: bool(span(v))),
    "what": Rule(
        "backbone, the one thing that export writes",
        lambda v: v in (None, "backbone"),
        ("backbone",),
    ),
    "score_threshold": _between(0, 1),
    "trust": _TEXTS,
    "latency_runs": _int(1),
    "data.batch_size": _int(1),
    "data.image_size": _SIZE,
    "data.scene_size": _SIZE,
    "data.resize": _choice("letterbox", "stretch"),
    "data.channels": _int(1),
    "data.num_workers": _or_null(_int(0)),
    "data.cache": _choice("none", "ram"),
    "data.sampler": _choice("shuffle", "balanced"),
    "data.on_bad": _choice("error", "fix", "drop"),
    "data.object": _or_null(_choice("largest", "only")),
    "data.val_fraction": Rule(
        "a fraction above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1
    ),
    "data.split_seed": _int(0),
    "data.classes": _or_null(_CLASSES),
    "data.train_per_class": _or_null(_int(1)),
    "data.reader.label_separator": Rule(
        "text, or null where a cell is one label", lambda v: v is None or isinstance(v, str)
    ),
    "data.num_train": _int(1),
    "data.num_val": _int(1),
    "data.num_test": _int(1),
    "data.min_objects": _int(0),
    "data.max_objects": _or_null(_int(1)),
    "model.anchors": Rule(
        "[width, height] of each in shares of the image, [[0.1, 0.2], [0.4, 0.3]], or how many to "
        "make from the training set, an integer from 1",
        _is_anchors,
    ),
    "proposals.mode": _choice(*MODES),
    "proposals.colors": _or_null(_COLORS),
    "proposals.similarities": _or_null(_SUMS),
    "proposals.thresholds": _or_null(_THRESHOLDS),
    "proposals.sigma": _number(0),
    "proposals.min_size": _or_null(_int(1)),
    "proposals.min_side": _number(0),
    "proposals.max_side": _or_null(_int(16)),
    "proposals.max_boxes": _int(1),
    "proposals.seed": _int(0),
    "task.mode": _choice("max", "min"),
    "task.inference.mode": _or_null(_choice("fit", "tiles", "whole")),
    "task.inference.tile_size": _SIZE,
    "task.inference.overlap": _or_null(_between(0, 0.9)),
    "task.inference.scales": Rule(
        "sizes from 0.1 to 8, each once: [0.75, 1, 1.25]",
        lambda v: _is_list(v, lambda x: _is_number(x) and 0.1 <= x <= 8),
    ),
    "task.inference.batch_size": _int(1),
    "trainer.max_epochs": _int(1),
    "trainer.max_minutes": _or_null(_number(0, above=True)),
    "trainer.accelerator": _choice("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": Rule(
        "a number of processes, or -1 for all GPUs (CUDA_VISIBLE_DEVICES picks which)",
        lambda v: _is_int(v) and (v > 0 or v == -1),
    ),
    "trainer.num_nodes": _int(1),
    "trainer.precision": Rule(" | ".join(PRECISIONS), _is_precision, PRECISIONS),
    "trainer.accumulate_grad_batches": _int(1),
    "trainer.gradient_clip_val": _or_null(_number(0, above=True)),
    "trainer.check_val_every_n_epoch": _int(1),
    "trainer.limit_train_batches": _LIMIT,
    "trainer.limit_val_batches": _LIMIT,
    "trainer.overfit_batches": Rule(
        "an integer from 0, or a part of 1", lambda v: _is_number(v) and v >= 0
    ),
    "trainer.profiler": _or_null(_choice("simple", "advanced", "pytorch")),
    "optimizer.lr": _number(0, above=True),
    "optimizer.weight_decay": _number(0),
    "optimizer.momentum": _between(0, 1),
    "scheduler.warmup_epochs": _number(0),
    "scheduler.warmup_start": _between(0, 1),
    "scheduler.final": _between(0, 1),
    "scheduler.gamma": _between(0, 1),
    "callbacks.ema.decay": _between(0, 1),
    "callbacks.early_stopping.patience": _or_null(_int(1)),
    "callbacks.early_stopping.min_delta": _number(0),
    "callbacks.pictures.count": _int(1),
    "callbacks.pictures.every_n_epochs": _or_null(_int(1)),
    "study.regimes": _NAMES,
    "study.backbones": _NAMES,
    "study.seeds": Rule(
        "integers from 0, each once: [0, 1, 2]", lambda v: _is_list(v, _int(0).accepts)
    ),
    "study.train_per_class": Rule(
        "numbers of images, each once, null for all: [20, 50, null]",
        lambda v: _is_list(v, _or_null(_int(1)).accepts),
    ),
    "study.weights": _or_null(Rule("a path", lambda v: isinstance(v, str))),
    "model.eval_layers": _or_null(_int(1)),
    "model.merge": _choice("greedy", "nms"),
    "transfer.head": _or_null(_choice(*HEADS)),
    "transfer.views": _or_null(_int(1)),
    "transfer.hidden": _or_null(_int(1)),
    "transfer.C": _or_null(_number(0, above=True)),
    "transfer.k": _or_null(_int(1)),
    "transfer.layer_decay": Rule(
        "a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1
    ),
    "transfer.backbone_rate": Rule(
        "a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1
    ),
    "transfer.freeze_epochs": _int(0),
    "transfer.stages": _or_null(_int(1)),
    "transfer.unfreeze_every": _or_null(_int(1)),
    "loss.label_smoothing": Rule(
        "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "loss.gamma": _number(0),
    "loss.class_weights": _or_null(
        Rule(
            "auto, effective, or a list of numbers from 0, one per class, at least one above 0",
            _is_class_weights,
            ("auto", "effective"),
        )
    ),
    **{f"augment.{name}.strength": _between(0, 1) for name in FAMILIES},
    **{f"augment.{name}": _between(0, 1) for name in MIXING},
    "augment.mixup_alpha": _or_null(_number(0, above=True)),
    "augment.cutmix_alpha": _or_null(_number(0, above=True)),
    "augment.close_epoch": Rule(
        "a number of epochs, a part of the run below 1 (0.9), or null", is_close_epoch
    ),
    "augment.min_visibility": _between(0, 1),
    "augment.min_area": _number(0),
}
"""Keys whose values are checked whoever set them: the user, an experiment, a data set's yaml."""

_MOST, _MOST_SEED = 2**31 - 1, 2**63 - 1
"""Of counts and sizes, which libraries keep in 32 bits; of seeds."""

_OPEN = ("model", "backbone", "loss", "augment", "callbacks", "logger")
"""Groups whose entries are arguments of classes, which know themselves whether null will do."""


def wrong(key: str, value: Any, default: Any = None, *, typed: str | None = None) -> str | None:
    """What is wrong with ``key=value``, or None.

    Args:
        key: dotted.
        value: as parsed, plain Python.
        default: what the key would hold had the user not typed it; None says nothing of its type.
        typed: the value in the user's spelling.
    """
    shown = typed if typed is not None else spell(value)
    most = _MOST_SEED if key.endswith(("seed", "seeds")) else _MOST
    if any(_is_int(v) and abs(v) > most for v in _entries(value)):
        return f"{key}={shown}: it takes no number above {most}"
    rule = RULES.get(key)
    if rule is not None:
        if rule.accepts(value):
            return _not_installed(value) if key == "trust" else None
        return f"{key}={shown}: it takes {rule.wants}{_nearest(key, value, rule)}"
    wants = _type_wanted(key, value, default)
    return f"{key}={shown}: it takes {wants} (the default is {spell(default)})" if wants else None


def _not_installed(trust: Sequence[str]) -> str | None:
    """What is wrong with ``trust=`` where a package is neither installed nor lies here."""
    for name in trust:
        package = name.partition(".")[0]
        try:
            found = importlib.util.find_spec(package) or importlib.machinery.PathFinder.find_spec(
                package, [str(Path.cwd())]
            )
        except ValueError:  # no name at all
            found = None
        if found is None:
            return f"trust={name}: no module named {package!r}; install it or set PYTHONPATH"
    return None


def _entries(value: Any) -> list[Any]:
    """The value itself, or those of a list, lists in it included."""
    if not isinstance(value, (list, tuple)):
        return [value]
    return [entry for v in value for entry in _entries(v)]


def _type_wanted(key: str, value: Any, default: Any) -> str | None:
    """The name of the default's type if the value is of another."""
    if default is None or (value is None and key.split(".")[0] in _OPEN):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if _is_int(default):
        return None if _is_int(value) else "an integer"
    if isinstance(default, float):
        return None if _is_number(value) else "a number"
    if isinstance(default, str):
        return None if isinstance(value, str) else "text"
    if isinstance(default, Sequence):
        if not isinstance(value, (list, tuple)):
            return "a list"
        kinds = {_kind(v) for v in default}
        same = len(kinds) != 1 or all(_kind(v) in kinds for v in value)
        return None if same else f"a list of {kinds.pop()}s"
    if _is_weak_and_strong(default):
        known = _is_number(value) or _is_weak_and_strong(value)
        return None if known else "a number, or one at each end of the strength"
    if isinstance(default, Mapping):
        return None if isinstance(value, Mapping) else "a group of keys, not one value"
    return None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true/false value"
    if _is_number(value):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _nearest(key: str, value: Any, rule: Rule) -> str:
    if not rule.choices or not isinstance(value, (str, int)):
        return ""
    close = difflib.get_close_matches(str(value).lower(), rule.choices, n=1, cutoff=0.4)
    return f"; did you mean {key}={close[0]}?" if close else ""


def check_words(flat: Mapping[str, Any]) -> None:
    """Raise UsageError where an argument of a class of cvtrain's is none of its WORDS."""
    nodes = [n for group in ("model", "backbone", "loss") for n in targets(flat.get(group), group)]
    for path, target in sorted(nodes, key=lambda node: node[0].count(".")):  # typed keys first
        node: Any = flat
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping) or not str(target).startswith("cvtrain."):
            continue
        for name, words in WORDS.items():
            value = node.get(name)
            if isinstance(value, (str, int)) and value not in words:
                rule = _choice(*map(str, words))
                near = _nearest(f"{path}.{name}", value, rule)
                raise UsageError(f"{path}.{name}={spell(value)}: it takes {rule.wants}{near}")


def check_batch(flat: Mapping[str, Any]) -> None:
    """Raise UsageError where a training step has fewer images than the model can learn from
    (``model.min_batch_size``).
    """
    model, size = flat.get("model") or {}, (flat.get("data") or {}).get("batch_size")
    least = model.get("min_batch_size") or 1
    if size is not None and size < least:
        raise UsageError(
            f"data.batch_size={size}: model={model.get('name')} normalizes over the images of a "
            f"step (of each process): give data.batch_size={least} or more"
        )


def spell(value: Any) -> str:
    """A plain value as one types it: ``true``, ``null``, ``[1, 2]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(spell(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {spell(v)}" for k, v in value.items()) + "}"
    return str(value)
