"""What a transfer regime makes void in a command, and what it asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cvtrain.config import rules
from cvtrain.config.groups import pick
from cvtrain.config.overrides import Typed, by_key
from cvtrain.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

FITTED = ("svm", "logistic_regression", "knn")
"""Heads that are fitted once on all features, without epochs."""

_OF_HEADS = {"hidden": ("mlp",), "C": ("svm", "logistic_regression"), "k": ("knn",)}
"""Key of ``transfer`` -> the heads that read it."""

_EPOCHS = (
    *("trainer.max_epochs", "trainer.max_minutes", "trainer.accumulate_grad_batches"),
    *("trainer.gradient_clip_val", "trainer.check_val_every_n_epoch"),
    *("trainer.limit_train_batches", "trainer.overfit_batches"),
    *("callbacks.ema", "callbacks.early_stopping", "optimizer", "scheduler"),
)
"""What nothing reads where there are no epochs."""


class Settler:
    """Nulls what a regime makes void, and refuses it where it was typed.

    Args:
        config: composed; it is changed.
        typed: what the user typed.

    Attributes:
        void: the keys that were nulled.
    """

    def __init__(self, config: DictConfig, typed: Sequence[Typed]) -> None:
        self.config, self.typed = config, typed
        self.given = by_key(typed)
        self.void: set[str] = set()

    def get(self, key: str) -> Any:
        """The value at a dotted key, interpolations in it resolved; None where there is none."""
        from omegaconf import OmegaConf

        return OmegaConf.select(self.config, key)

    def drop(self, key: str, why: str) -> None:
        """Null a key or a group.

        Raises:
            UsageError: a value for it, or for a key below it, was typed.
        """
        from omegaconf import OmegaConf

        for t in self.typed:
            if (t.key == key or t.key.startswith(f"{key}.")) and t.value not in (None, "none"):
                raise UsageError(f"{t.text} would not be read: {why}")
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(self.config, parent) if parent else self.config
        if OmegaConf.is_dict(node) and leaf in node:
            OmegaConf.update(self.config, key, None, merge=False)
            self.void.add(key)


def settle(config: DictConfig, typed: Sequence[Typed]) -> set[str]:
    """Apply the rules of the chosen regime to a composed command; the keys that it made void.

    Raises:
        UsageError: a model without a backbone, or typed values that the regime does not read.
    """
    settler = Settler(config, typed)
    name = settler.get("transfer.name")
    if name is None:
        return set()
    if config.get("backbone") is None:
        raise UsageError(
            f"transfer={name} would not be read: model={settler.get('model.name')} takes no "
            "backbone"
        )
    if name == "scratch":
        _from_scratch(settler)
    elif name == "feature_extraction":
        _on_features(settler)
    elif name == "fine_tune":
        _freeze_epochs(settler)
    elif name == "partial":
        _partial(settler)
    return settler.void


def _from_scratch(settler: Settler) -> None:
    for key, off in (("pretrained", False), ("weights", None)):
        t = settler.given.get(f"backbone.{key}")
        if t is not None and t.value not in (None, False):
            raise UsageError(f"transfer=scratch starts from random weights: omit {t.text}")
        if key in settler.config.backbone:
            settler.config.backbone[key] = off


def _on_features(settler: Settler) -> None:
    model = settler.get("model.name")
    heads = settler.get("model.heads")
    if not heads:
        why = f"with model={model} the backbone is fixed, and the rest trains as ever"
        for key in ("head", "views", "cache", "hidden", "C", "k"):
            settler.drop(f"transfer.{key}", why)
        return
    head, cache = settler.get("transfer.head"), settler.get("transfer.cache")
    _check_head(settler, head, list(heads))
    for key, readers in _OF_HEADS.items():
        if head not in readers:
            settler.drop(f"transfer.{key}", f"it is of transfer.head={' | '.join(readers)}")
    if head in FITTED:
        for key in _EPOCHS:
            settler.drop(key, f"transfer.head={head} is fitted once, without epochs")
    views = settler.get("transfer.views")
    augment = settler.get("augment.name")
    if views is not None and augment in (None, "none"):
        raise UsageError(
            f"transfer.views={views}: without augmentation all views of an image are the same; "
            "choose one (augment=light), or omit views"
        )
    if views is not None:
        _unmixed(settler)
    if not cache:
        return
    if views is None:
        settler.drop(
            "augment",
            "features are computed once, of plain images; transfer.views=8 keeps 8 augmented "
            "views of each, transfer.cache=false augments again in every epoch",
        )
    if settler.get("data.cache") == "ram":
        raise UsageError("data.cache=ram would not be read: images are decoded once, for features")


def _unmixed(settler: Settler) -> None:
    """Views are fixed: no batch of them is mixed."""
    for key in ("mixup", "cutmix"):
        t = settler.given.get(f"augment.{key}")
        if t is not None and t.value:
            raise UsageError(
                f"{t.text} would not be read: transfer.views are fixed, and are not mixed"
            )
        if settler.get(f"augment.{key}"):
            settler.config.augment[key] = 0.0


def _check_head(settler: Settler, head: Any, heads: list[str]) -> None:
    message = rules.wrong("transfer.head", head)
    if message or head is None:
        raise UsageError(message or f"transfer.head=null: choose {' | '.join(heads)}")
    model, task = settler.get("model.name"), settler.get("task.name")
    if head not in heads:
        raise UsageError(
            f"transfer.head={head} does not go with model={model}, which takes {' | '.join(heads)}"
        )
    if head not in FITTED:
        return
    if task != "classification":
        raise UsageError(
            f"transfer.head={head} is fitted to one class per image; for task={task} there is "
            "transfer.head=linear | mlp"
        )
    if not settler.get("transfer.cache"):
        raise UsageError(
            f"transfer.head={head} is fitted on features that are computed once: leave "
            "transfer.cache=true"
        )
    if settler.get("data.sampler") == "balanced":
        raise UsageError(
            f"data.sampler=balanced would not be read: transfer.head={head} is fitted once to all "
            "images"
        )
    if settler.get("trainer.devices") != 1 or settler.get("trainer.num_nodes") != 1:
        raise UsageError(f"transfer.head={head} is fitted by one process: trainer.devices=1")


def _freeze_epochs(settler: Settler) -> None:
    freeze, epochs = settler.get("transfer.freeze_epochs"), settler.get("trainer.max_epochs")
    if isinstance(freeze, int) and isinstance(epochs, int) and freeze >= epochs:
        raise UsageError(
            f"transfer.freeze_epochs={freeze} leaves the backbone none of "
            f"trainer.max_epochs={epochs}; transfer=feature_extraction fixes it throughout"
        )


def _partial(settler: Settler) -> None:
    every, epochs = settler.get("transfer.unfreeze_every"), settler.get("trainer.max_epochs")
    if every is None:
        if settler.get("transfer.stages") is None:
            raise UsageError(
                "transfer=partial needs transfer.stages=N or transfer.unfreeze_every=E"
            )
        return
    settler.drop("transfer.stages", "transfer.unfreeze_every says when each stage begins to train")
    if isinstance(every, int) and isinstance(epochs, int) and every >= epochs:
        raise UsageError(
            f"transfer.unfreeze_every={every} leaves the backbone none of "
            f"trainer.max_epochs={epochs}; transfer=feature_extraction fixes it throughout"
        )


def check_weights(flat: dict[str, Any]) -> None:
    """Refuse two starts at once, and a regime that starts from trained weights without any.

    Raises:
        UsageError: ``pretrained`` and ``weights`` of a backbone, or of a model, are both given, or
            those of a model and of its backbone; or none, where the regime needs one.
    """
    for group in ("backbone", "model"):
        node = flat.get(group) or {}
        if node.get("pretrained") is True and node.get("weights") is not None:
            raise UsageError(
                f"{group}.pretrained=true and {group}.weights=FILE exclude each other: give one"
            )
    whole, part = _start(flat, "model"), _start(flat, "backbone")
    if whole and part:
        raise UsageError(f"{whole} brings the backbone's weights too: omit {part}")
    name = pick(flat, "transfer.name")
    if name in (None, "scratch"):
        return
    if whole or part:
        return
    fetch = "backbone.pretrained=true or " if "pretrained" in (flat.get("backbone") or {}) else ""
    raise UsageError(
        f"transfer={name} starts from trained weights: add {fetch}backbone.weights=FILE_OR_RUN"
    )


def _start(flat: dict[str, Any], group: str) -> str:
    """The key by which a backbone, or a whole model, starts from trained weights; empty: none."""
    node = flat.get(group) or {}
    if node.get("weights") is not None:
        return f"{group}.weights={node['weights']}"
    return f"{group}.pretrained={rules.spell(node['pretrained'])}" if node.get("pretrained") else ""
