"""The words that models, backbones and losses take are judged when a command is composed."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable
from typing import Any

from cvtrain.config import rules
from cvtrain.models.segmentation.smp import ARCHS
from cvtrain.shipped import shipped_targets

Cli = Callable[..., Any]


def test_every_argument_of_few_words_is_judged() -> None:
    """A class of ours that takes a Literal refuses other words before any data are read."""
    found: dict[str, set[Any]] = {"arch": set(ARCHS)}
    for slot in ("model", "part"):
        for target in shipped_targets()[slot]:
            module, _, name = target.rpartition(".")
            for argument, hint in typing.get_type_hints(
                getattr(importlib.import_module(module), name).__init__
            ).items():
                for kind in (hint, *typing.get_args(hint)):
                    if typing.get_origin(kind) is typing.Literal:
                        found.setdefault(argument, set()).update(typing.get_args(kind))
    assert found == {k: set(v) for k, v in rules.WORDS.items() if k != "attention"}


def test_a_class_of_the_users_takes_its_own_words(cli: Cli, here: Any) -> None:
    (here / "conf" / "model").mkdir(parents=True)
    (here / "conf" / "model" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {name: mine, tasks: [detection], _target_: mine.M, size: xl}\n"
    )
    (here / "mine.py").touch()
    assert cli("--config-dir=conf model=mine trust=[mine]").config["model"]["size"] == "xl"
