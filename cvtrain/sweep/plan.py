"""A study's runs: what its ``study`` node and the typed words expand to, checked before any starts.

A study is an experiment whose yaml has a ``study`` node (experiment=transfer_study).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cvtrain.config import suggest
from cvtrain.config.command import CommandLine
from cvtrain.config.compose import absolute, compose_command, finish, plain
from cvtrain.config.groups import ConfDirs, is_hidden, is_timm, joined, pick
from cvtrain.config.overrides import Typed, parse
from cvtrain.config.readable_keys import PATHS
from cvtrain.errors import UsageError

OWNED = {
    "seed": "study.seeds=[0, 1, 2]",
    "transfer": "study.regimes=[scratch, fine_tune]",
    "backbone": "study.backbones=[resnet18]",
    "backbone.name": "study.backbones=[resnet18]",
    "backbone.weights": "study.weights=FILE_OR_RUN",
    "backbone.pretrained": "study.weights=null",
    "data.train_per_class": "study.train_per_class=[20, 50]",
}
"""Keys that a study sets for each run -> where it takes them from."""

SCRATCH = "scratch"
"""The regime that starts from no weights."""

NAME = "{backbone}"
"""Stands for the backbone's name in ``study.weights``."""


@dataclass(frozen=True)
class StudyJob:
    """One run of a study.

    Attributes:
        regime, backbone, train_per_class, seed: what it varies.
        overrides: its whole command, without run_dir.
    """

    regime: str
    backbone: str
    train_per_class: int | None
    seed: int
    overrides: tuple[str, ...]

    @property
    def images(self) -> str:
        """Training images per class, as a label."""
        return "all" if self.train_per_class is None else str(self.train_per_class)

    @property
    def name(self) -> str:
        """Its folder in the study's."""
        backbone = self.backbone.replace("/", "_")
        return f"{backbone}-{self.regime}-{self.images}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        study: its node, resolved.
        words: what was typed, sweep_dir and trust left out, paths absolute.
        config: what the words compose to for no regime in particular.
        jobs: seeds outermost, so that a study that was stopped has whole rows.
    """

    study: dict[str, Any]
    words: list[str]
    config: dict[str, Any]
    jobs: list[StudyJob]


def study_of(name: Any, conf: ConfDirs) -> bool:
    """Whether an experiment's yaml, or one it extends, has a ``study`` node."""
    return isinstance(name, str) and "study" in conf.node("experiment", name)


def words_of(typed: Sequence[Typed]) -> list[str]:
    """The typed words for a run that may start anywhere: paths absolute, the study's own left out.

    Raises:
        UsageError: a key that the study sets for each run.
    """
    words = []
    for t in typed:
        if t.key in OWNED:
            raise UsageError(f"{t.text}: a study sets {t.key} for each run; write {OWNED[t.key]}")
        if t.key.startswith("transfer."):
            raise UsageError(
                f"{t.text} is for one regime: \"study.overrides.fine_tune=['{t.text}']\""
            )
        if t.key in ("sweep_dir", "trust"):
            continue
        if t.key in PATHS and isinstance(t.value, str) and "${" not in t.value:
            words.append(f"{t.key}={absolute(t.value)}")
        else:
            words.append(t.text)
    return words


def make_plan(
    command: CommandLine,
    words: list[str],
    trust: Sequence[str],
    conf: ConfDirs,
    *,
    check: bool = True,
) -> Plan:
    """Expand a study and compose every kind of run once. Inside a ``hydra_session``.

    Args:
        command: of the study; its flags go for the runs too.
        words: see ``words_of``.
        trust: the ``trust=`` words typed.
        conf: the configuration folders.
        check: compose the runs, too.

    Raises:
        UsageError: anything wrong with the study or with any of its runs.
    """
    composed = compose_command(replace(command, overrides=[*words, *trust]), conf)
    config = finish(composed)
    study = plain(composed.config.study, resolve=True)
    _check_study(study, conf)
    kept = [t for t in parse(words) if t.key.split(".")[0] != "study"]
    rate = pick(config, "optimizer.lr")
    jobs = [
        StudyJob(
            regime,
            backbone,
            number,
            seed,
            tuple(_overrides(study, kept, rate, regime, backbone, number, seed)),
        )
        for seed in study["seeds"]
        for number in study["train_per_class"]
        for backbone in study["backbones"]
        for regime in study["regimes"]
    ]
    if check:
        for job in [j for j in jobs if j.seed == study["seeds"][0]]:
            _check_job(job, command, trust, conf)
    return Plan(study, words, config, jobs)


def _overrides(
    study: Mapping[str, Any],
    kept: Sequence[Typed],
    rate: Any,
    regime: str,
    backbone: str,
    number: int | None,
    seed: int,
) -> list[str]:
    """The words of one run: the regime's own, those typed, and what the study varies."""
    typed = {t.key: t.text for t in kept}
    own = {parse([text])[0].key: text for text in study["overrides"].get(regime) or []}
    own = {key: text for key, text in own.items() if key not in typed}
    words = {**typed, **own}
    factor = study["lr_factor"].get(regime, 1.0)
    if (
        factor != 1
        and isinstance(rate, (int, float))
        and not {"optimizer", "optimizer.lr"} & set(own)
    ):
        words["optimizer.lr"] = f"optimizer.lr={rate * factor:g}"
    varied = [f"transfer={regime}", f"backbone={backbone}"]
    if regime != SCRATCH and study["weights"] is None:
        varied.append("backbone.pretrained=true")
    elif regime != SCRATCH:
        varied.append(f"backbone.weights={weights_of(study, backbone)}")
    if number is not None:
        varied.append(f"data.train_per_class={number}")
    return [*words.values(), "~study", *varied, f"seed={seed}"]


def weights_of(study: Mapping[str, Any], backbone: str) -> str:
    """The file or run folder that a backbone starts from."""
    return absolute(str(study["weights"]).replace(NAME, backbone))


def _check_study(study: Mapping[str, Any], conf: ConfDirs) -> None:
    """Refuse names that no group has, overrides that cannot be read, weights that are not there."""
    for group, key in (("transfer", "regimes"), ("backbone", "backbones")):
        for name in study[key]:
            known = conf.path(group, name) is not None and not is_hidden(name)
            if not known and not (group == "backbone" and is_timm(name)):
                raise UsageError(f"study.{key}: {suggest.unknown_option(group, name, conf)}")
    for regime, texts in study["overrides"].items():
        for t in parse(texts or []):
            if t.key in OWNED:
                raise UsageError(
                    f"study.overrides.{regime}: a study sets {t.key} for each run; "
                    f"write {OWNED[t.key]}"
                )
    if all(regime == SCRATCH for regime in study["regimes"]):
        return
    for name in study["backbones"]:
        if study["weights"] is not None:
            _check_weights(study, name)
        elif "pretrained" not in conf.node("backbone", name) and conf.path("backbone", name):
            raise UsageError(
                f"study.weights=null: backbone={name} has no pretrained weights to fetch; say "
                f"where some lie: study.weights=runs/pretrain/{NAME}"
            )


def _check_weights(study: Mapping[str, Any], backbone: str) -> None:
    path = Path(weights_of(study, backbone))
    which = f"study.weights={study['weights']}" + (
        f" ({backbone})" if NAME in study["weights"] else ""
    )
    if not path.exists():
        shown = str(study["weights"]).replace(NAME, backbone)
        raise UsageError(suggest.missing_path("study.weights", shown, path))
    if path.is_dir() and not (path / "checkpoints" / "best.ckpt").is_file():
        raise UsageError(f"{which}: {path} holds no checkpoints/best.ckpt")
    if NAME not in study["weights"] and len(study["backbones"]) > 1:
        others = joined(study["backbones"])
        raise UsageError(
            f"{which} is one file for {others}; write the backbone's place in it as {NAME}, or "
            f"study.backbones=[{backbone}]"
        )


def _check_job(job: StudyJob, command: CommandLine, trust: Sequence[str], conf: ConfDirs) -> None:
    single = replace(command, overrides=[*job.overrides, *trust])
    try:
        finish(compose_command(single, conf))
    except UsageError as error:
        text = str(error)
        hint = ""
        if "not be read" in text or "not read" in text:
            other = "fine_tune" if job.regime != "fine_tune" else SCRATCH
            hint = f"; what only one regime reads: study.overrides.{other}=['KEY=VALUE']"
        raise UsageError(f"in the run {job.name}: {text}{hint}") from error
