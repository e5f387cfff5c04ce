"""What is particular to the group ``augment``: it takes a list, and names what was composed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cvtrain.augment.config import MIXING, closing_epoch, is_close_epoch, refuse_task, title
from cvtrain.config.groups import ConfDirs
from cvtrain.config.overrides import Typed
from cvtrain.errors import UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_NEEDS = {"mixup_alpha": ("mixup",), "cutmix_alpha": ("cutmix",), "close_epoch": MIXING}
"""Keys that only say how something is done, and the keys that say that it is."""


def check_list(typed: Typed, conf: ConfDirs) -> None:
    """Refuse ``augment=[...]`` with a name twice, or with two lists of which one would win.

    Raises:
        UsageError: either of the two, or a list of none.
    """
    names = [str(name) for name in typed.value if name is not None]
    if len(names) < len(typed.value) or not names:
        raise UsageError(f"{typed.text}: name an augmentation; augment=none is no augmentation")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{typed.text}: {name} is named twice")
    lists = [name for name in names if conf.node("augment", name).get("transforms")]
    if len(lists) > 1:
        families = [
            n for n in conf.options("augment") if "transforms" not in conf.node("augment", n)
        ]
        raise UsageError(
            f"{typed.text}: {' and '.join(lists)} both set augment.transforms, so that only one "
            f"would be run; put one of them with families ({', '.join(families)})"
        )


def name(config: DictConfig) -> None:
    """Set ``augment.name`` to what is composed: ``light+weather``."""
    from omegaconf import OmegaConf, open_dict

    node = config.get("augment")
    if OmegaConf.is_dict(node):
        plain = OmegaConf.to_container(node)
        assert isinstance(plain, dict)
        with open_dict(config):
            node["name"] = title({str(k): v for k, v in plain.items()})


def check(config: DictConfig, typed: Sequence[Typed]) -> None:
    """Refuse what the task cannot take and typed keys that nothing reads or reaches; null void
    defaults.

    Raises:
        UsageError: either of the two.
    """
    from omegaconf import OmegaConf

    node = config.get("augment")
    if not OmegaConf.is_dict(node):
        return
    what = (*MIXING, "object_crops")
    refuse_task({key: node.get(key) for key in what}, str(config.task.name))
    for key, needs in _NEEDS.items():
        if key not in node or any(node.get(need) for need in needs):
            continue
        for t in typed:
            if t.key == f"augment.{key}" and t.value is not None:
                off = f"{needs[0]} is 0" if len(needs) == 1 else f"{', '.join(needs)} are 0"
                raise UsageError(f"{t.text} would not be read: augment.{off}")
        node[key] = None
    _refuse_late_close(config, typed)
    _refuse_no_epoch(config, typed)


def _refuse_no_epoch(config: DictConfig, typed: Sequence[Typed]) -> None:
    """Refuse typed mixing that ends before the first epoch.

    ``augment.close_epoch=0`` alone is how all that a yaml mixes is turned off.
    """
    close, epochs = config.augment.get("close_epoch"), config.trainer.get("max_epochs")
    if close is None or not is_close_epoch(close) or epochs is None or closing_epoch(close, epochs):
        return
    for t in typed:
        if t.value and t.key in {f"augment.{key}" for key in MIXING}:
            raise UsageError(
                f"{t.text} would not be read: augment.close_epoch={close} of {epochs} epochs ends "
                "it before the first; give more, or null: all epochs"
            )


_ENDS = ("augment.close_epoch", "augment.object_crops.first_stage_epochs")


def _refuse_late_close(config: DictConfig, typed: Sequence[Typed]) -> None:
    """Refuse a typed number of epochs, after which something ends, that the run does not reach.

    One of a yaml stays, so that a run cut short for a trial needs no second key.
    """
    epochs = config.trainer.get("max_epochs")
    for t in typed:
        late = isinstance(t.value, int) and isinstance(epochs, int) and t.value >= epochs
        if t.key in _ENDS and late:
            raise UsageError(
                f"{t.text} is not reached: trainer.max_epochs={epochs}; give a number below it, a "
                "part of the run (0.9), or null: all epochs"
            )
