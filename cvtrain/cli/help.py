"""``cvtrain --help`` and ``cvtrain help TOPIC``: verbs, groups, keys, guides. No torch here."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from cvtrain.config.command import command, commands, names
from cvtrain.config.groups import GROUPS, ConfDirs, timm_names
from cvtrain.config.readable_keys import root_keys
from cvtrain.config.suggest import nearest
from cvtrain.errors import UsageError

WIDTH = 100
"""Columns the help fits into."""

_GROUPS = {
    "task": "what is predicted; picks a default model, which brings loss and augmentation",
    "model": "the system; without task=, its first task",
    "backbone": "the feature extractor; any timm name works too ({timm} of them)",
    "transfer": "from trained weights: what is fixed, what learns how fast",
    "loss": "what training makes small",
    "augment": "random changes of training images; families compose: augment=[geometric,weather]",
    "data": "where images come from; shapes is embedded, auto looks at data.root",
    "proposals": "boxes for models that are given them",
    "optimizer": "timm, torch: any of theirs by optimizer.name=",
    "scheduler": "the learning rate over a run",
    "trainer": "epochs, devices, precision",
    "callbacks": "EMA, early stopping, pictures, progress bar",
    "logger": "one or several: logger=[csv,wandb]",
    "experiment": "a recipe: a difference to the defaults",
    "debug": "short runs that look for mistakes",
}

_KEYS = {
    "data.root=DIR": "folder of the data set; it is never written to",
    "data.batch_size=N": "images per step; also data.image_size=N or [H,W], data.num_workers=N,",
    "": "data.on_bad=error|fix|drop, data.val_fraction=0.2, data.cache=ram, data.channels=N",
    "trainer.max_epochs=N": "also trainer.accelerator, .devices, .precision, .max_minutes",
    "optimizer.lr=X": "learning rate; also optimizer.weight_decay, scheduler.warmup_epochs",
    "backbone.weights=FILE": "weights to start from; backbone.pretrained=true fetches timm's",
    "run_dir=DIR": "where the run writes; default runs/TASK/MODEL/TIMESTAMP",
    "resume=RUN_DIR": "continue a run, in its folder; keys beside it change it from here on",
    "seed=N": "every random draw of a run follows from it",
    "trust=[PACKAGE]": "let configurations and checkpoints name classes of your own package",
}

_FLAGS = {
    "-m, --multirun": "one run for each combination of values, in sweep_dir=DIR",
    "--cfg job [--resolve]": "print the composed configuration and stop",
    "--config-dir DIR": "a folder of your own with model/mynet.yaml, data/mine.yaml, ...",
    "--debug": "show the traceback of an error",
    "--version, -h, --help": "",
    "-sc install=bash|zsh|fish": 'completion: eval "$(cvtrain -sc install=bash)"',
}

EXAMPLES = {
    "cvtrain task=detection model=yolo": "the demo: YOLO on drawn shapes",
    "cvtrain check data=auto data.root=photos": "is my data all right?",
    "cvtrain show data=coco data.root=photos augment=detection": "what the network will see",
    "cvtrain model=yolo data=coco data.root=photos": "train a detector on it",
    "cvtrain data=folder data.root=photos backbone=resnet50": "train a classifier",
    "cvtrain resume=runs/a": "resume after Ctrl-C",
    "cvtrain eval ckpt=runs/a split=test": "score the best checkpoint",
    "cvtrain predict ckpt=runs/a source='new/*.jpg'": "use it",
    "cvtrain -m model=yolo optimizer.lr=1e-3,1e-2 sweep_dir=lr": "two runs, one table",
    "cvtrain model=yolo trainer.devices=2 logger=wandb --cfg job": "look before you leap",
}
"""Ten commands; each composes (given its folders), and a test says so."""


def text(conf: ConfDirs) -> str:
    """The help, at most WIDTH columns wide."""
    parts = [
        "cvtrain: train computer vision systems on your own images\n",
        "cvtrain [VERB] key=value ...\n",
        _table("Verbs", {c.name: c.about for c in commands()}, 10),
        _groups(conf),
        _table("Keys (cvtrain --cfg job shows all; Hydra's override grammar)", _KEYS, 24),
        _table("Flags", _FLAGS, 27),
        _examples(),
        f"Guides: cvtrain help {' | '.join(guides(conf))}, or a verb\n",
        "Exit codes: 0 done, 1 the data or the run failed, 2 the command was wrong, 130 Ctrl-C, "
        "143 SIGTERM.",
    ]
    return "\n".join(parts)


def guides(conf: ConfDirs) -> dict[str, Path]:
    """Topic -> its page: the README of a group's folder, of conf itself, and of the code."""
    pages = {group: conf.own / group / "README.md" for group in GROUPS}
    pages |= {
        "conf": conf.own / "README.md",
        "add": Path(__file__).resolve().parents[1] / "README.md",
    }
    return {topic: path for topic, path in pages.items() if path.is_file()}


def about(topic: str, conf: ConfDirs) -> str:
    """A guide, or what a verb reads.

    Raises:
        UsageError: there is no such topic.
    """
    pages = guides(conf)
    if topic in pages:
        page = pages[topic].read_text(encoding="utf-8")
        return re.sub(r"<!--.*?-->\n|</?details>.*\n", "", page).rstrip("\n")
    if topic not in names():
        close = nearest(topic, [*pages, *names()])
        hint = f"did you mean {close}?" if close else f"there are {', '.join(pages)} and each verb"
        raise UsageError(f"help {topic}: there is no such topic; {hint}")
    verb = command(topic)
    lines = [f"cvtrain {verb.name}: {verb.about}"]
    outside = [key for key in root_keys() if verb.does_read(key)]
    inside = [group for group in GROUPS if verb.reads_below(group)]
    if outside:
        lines += ["", *_row("keys", " ".join(f"{key}=" for key in outside), 8)]
    if inside:
        lines += ["", *_row("groups", " ".join(inside), 8)]
        lines += ["", "cvtrain --cfg job shows a group's keys, cvtrain list GROUP its options"]
    return "\n".join(lines)


def _table(title: str, rows: dict[str, str], indent: int) -> str:
    lines = [f"{title}:"]
    for name, about in rows.items():
        lines += _row(name, about, indent)
    return "\n".join(lines) + "\n"


def _row(name: str, about: str, indent: int) -> list[str]:
    first = f"  {name}".ljust(indent + 2)
    return textwrap.wrap(
        about,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _groups(conf: ConfDirs) -> str:
    lines = ["Groups and their options (GROUP=OPTION; cvtrain list GROUP says what each is):"]
    for group in GROUPS:
        about = _GROUPS[group].format(timm=len(timm_names()))
        lines += _row(group, " ".join([*conf.options(group), f"({about})"]), 11)
    return "\n".join(lines) + "\n"


def _examples() -> str:
    wide = max(len(words) for words in EXAMPLES) + 2
    lines = ["Examples:"]
    for words, comment in EXAMPLES.items():
        lines.append(f"  {words}".ljust(wide + 2) + f"# {comment}")
    return "\n".join(lines) + "\n"
