"""``cvtrain show``: a figure of training samples, the originals beside what is trained on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvtrain.config.command import OF_TRAINING, Command, CommandLine
from cvtrain.config.groups import ConfDirs
from cvtrain.text import output_file, say

if TYPE_CHECKING:
    import numpy as np

    from cvtrain.config.overrides import Typed
    from cvtrain.data.collate import Sample
    from cvtrain.data.datamodule import DataModule
    from cvtrain.data.dataset import VisionDataset
    from cvtrain.data.table import Table
    from cvtrain.proposals.selective_search import Boxes
    from cvtrain.structures import Batch

COMMAND = Command(
    "show",
    "draw augmented training samples with their boxes or masks: data= [augment=]",
    run="cvtrain.commands.show:show",
    configure="cvtrain.commands.show:show_config",
    reads=(
        *("seed", "run_dir", "data.", "augment.", "proposals.", "task.", "model"),
        "experiment",
    ),
    unread=OF_TRAINING,
    order=6,
)

ROWS = 5
"""Images shown; each with its original and augmented variants of it."""
VARIANTS = 5
"""Variants of an image where one augmentation alone is shown."""
EPOCHS = 16
"""Epochs among which the variants are chosen, so that they differ in what was done."""
PROPOSALS = 10
"""Boxes of ``proposals=`` drawn on an image, the first of the ranking."""
DRAWS = 50
"""Batches among which those are chosen that show mixup and cutmix best."""
CELL = 448
"""Longer side of a picture in the grid, pixels: larger images are shrunk before they are drawn."""


def show_config(command: CommandLine, conf: ConfDirs) -> dict[str, Any]:
    """The configuration of ``show``; without a typed task, one that the data set serves.

    Raises:
        CvtrainError: anything that is wrong with the command; the data set cannot be read.
    """
    from cvtrain.config.compose import compose_command, finish, hydra_session

    with hydra_session(conf):
        composed = compose_command(command, conf)
        config = finish(composed)
        task = _task_of_data(config, composed.typed)
        if task is not None:
            command = replace(command, overrides=[*command.overrides, f"task={task}"])
            composed = compose_command(command, conf)
            config = finish(composed)
    return {**config, "overrides": composed.texts}


def _task_of_data(config: Mapping[str, Any], typed: Sequence[Typed]) -> str | None:
    """The task to show a data set for, where none was typed and it does not serve the default one.

    Raises:
        CvtrainError: the data set cannot be read.
    """
    from cvtrain.config.overrides import by_key
    from cvtrain.data.gate.run import NEEDS
    from cvtrain.instantiate import instantiate

    if {"task", "model", "experiment"} & by_key(typed).keys():
        return None
    kinds = instantiate(config["data"]["reader"], where="data.reader", trust=config["trust"]).kinds
    if kinds & set(NEEDS[config["task"]["name"]]):
        return None
    serves = ("detection", "semantic_segmentation", "classification", "multilabel_classification")
    return next((task for task in serves if kinds & set(NEEDS[task])), None)


def show(cfg: Mapping[str, Any]) -> int:
    """Draws originals beside augmented variants, with boxes, masks and names, to a PNG.

    A row is an image, a column a variant; what was done to it stands below. Composed families have
    columns each, and then together; mixup and cutmix come last.

    Args:
        cfg: the resolved config; reads ``task.name``, ``data``, ``augment``, ``proposals`` (None:
            none are drawn), ``seed``, ``trust``,
            ``trainer.max_epochs`` and ``run_dir`` (None: ``runs/show/<timestamp>``).

    Returns:
        The exit code; the path of the picture is printed.

    Raises:
        DataError: the data set has errors, or no training split.
        UsageError: a value that cannot be used.
    """
    import numpy as np

    from cvtrain.augment.config import settled
    from cvtrain.data.datamodule import build_datamodule
    from cvtrain.report import draw
    from cvtrain.storage import mark_run_folder, refuse_data_folder

    folder = Path(cfg.get("run_dir") or Path("runs") / "show" / time.strftime("%Y-%m-%d_%H-%M-%S"))
    refuse_data_folder("run_dir", folder, cfg["data"].get("root"))
    task, seed = cfg["task"]["name"], cfg["seed"]
    trust = cfg.get("trust") or ()
    module, report = build_datamodule(cfg, task, seed=seed, trust=trust, splits=["train"])
    for line in report.summary_lines():
        say(line)
    node = settled(cfg.get("augment"))
    if module.proposals is not None:
        module.proposals = _Asked(module.proposals, module.table("train"), module.channels)
    originals = module.dataset("train")
    order = np.random.default_rng([seed, 0, 0, 1]).permutation(len(originals))
    rows = [int(r) for r in order[:ROWS]]
    columns, heads = [_originals(originals, rows, module.classes.names)], ["original"]
    for head, part, count in _blocks(node):
        dataset = _dataset(cfg, module, part, trust)
        columns += _variants(dataset, rows, count, module.classes.names)
        heads += [head] * count
    for kind in ("mixup", "cutmix"):
        if node[kind]:
            columns += _mixed(module, node, kind, rows, seed)
            heads += [kind] * 2
    cells = [column[k] for k in range(len(rows)) for column in columns]
    sheet = draw.grid(
        [picture for picture, _ in cells],
        len(columns),
        [caption for _, caption in cells],
        heads=heads,
        title=_title(cfg, node, task),
    )
    mark_run_folder(folder)
    name = output_file(f"{cfg['data']['name']}_{node['name']}", ".png")
    say(str(draw.save(folder / name, sheet)))
    return 0


Column = list[tuple["np.ndarray", str]]


def _title(cfg: Mapping[str, Any], node: Mapping[str, Any], task: str) -> str:
    title = f"augment={node['name']} on {cfg['data']['name']}, {task.replace('_', ' ')}"
    source = cfg.get("proposals")
    return (
        f"{title}; thin and white: the first {PROPOSALS} of {source['name']}" if source else title
    )


class _Asked:
    """Proposals made when an image is asked for: few are shown, a whole split takes long."""

    def __init__(self, source: Any, table: Table, channels: int) -> None:
        self.source, self.table, self.channels = source, table, channels
        self.row_of = {table.files[i]: i for i in range(len(table))}
        self.known: dict[str, Boxes] = {}

    def boxes(self, file: str) -> Boxes:
        """Of an image of the table, best first.

        Raises:
            DataError: a file of proposals does not have the image.
            UsageError, RunError: see ``cvtrain.proposals.source``.
        """
        import numpy as np

        if file not in self.known:
            alone = self.table.take(np.array([self.row_of[file]]))
            self.source.prepare({"train": alone}, channels=self.channels, workers=0, progress=False)
            self.known[file] = self.source.boxes(file)
        return self.known[file]


def _blocks(node: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], int]]:
    """(head, node, columns) of each part of a composition and then of all of it together."""
    from cvtrain.augment.config import MIXING, families

    names = families(node)
    name = str(node["name"])
    mixing = [k for k in ("mosaic", "copy_paste") if node[k] and k not in name.split("+")]
    whole = _heading(node, name, mixing)
    parts = [""] * bool(node["transforms"]) + names
    if len(parts) < 2:
        few = bool(node["mixup"] or node["cutmix"])
        return [(whole, dict(node), 3 if few else VARIANTS)]
    common = {k: v for k, v in node.items() if k not in names and k not in (*MIXING, "transforms")}
    blocks = []
    for part in parts:
        own = {part: node[part]} if part else {"transforms": node["transforms"]}
        head = _heading(node, part or str(node["name"]).split("+")[0], [])
        blocks.append((head, {**common, **own}, 2 if len(parts) == 2 else 1))
    return [*blocks, (_heading({}, "together", whole.split(" + ")[1:]), dict(node), 2)]


def _heading(node: Mapping[str, Any], name: str, more: Sequence[str]) -> str:
    family = node.get(name)  # of augment=copy_paste it is that key's number
    strength = family.get("strength") if isinstance(family, Mapping) else None
    head = name if strength is None else f"{name}, strength {strength:g}"
    return " + ".join([head, *more])


def _dataset(
    cfg: Mapping[str, Any], module: DataModule, node: Mapping[str, Any], trust: Sequence[str]
) -> VisionDataset:
    """The training samples with another augmentation than the module's own."""
    from cvtrain.data.datamodule import compile_augment
    from cvtrain.data.dataset import VisionDataset

    size: dict[str, Any] = {"height": module.height, "width": module.width, "resize": module.resize}
    epochs = (cfg.get("trainer") or {}).get("max_epochs")
    dataset = VisionDataset(
        module.table("train"),
        module.task,
        **size,
        channels=module.channels,
        augmentation=compile_augment(
            node,
            module.task,
            **size,
            trust=trust,
            epochs=epochs,
            class_names=module.classes.names,
        ),
        seed=module.seed,
        proposals=module.proposals,
    )
    dataset.cache = module.dataset("train").cache
    return dataset


def _originals(dataset: VisionDataset, rows: Sequence[int], names: Sequence[str]) -> Column:
    column = []
    for row in rows:
        sample = dataset[row]
        assert sample.truth is not None
        message = _classes(sample.truth, names)
        file = Path(sample.info.file_name).name
        caption = f"{message} ({file})" if message else file
        source = dataset.proposals
        found = None if source is None else source.boxes(dataset.table.files[row]).boxes
        column.append((_picture(dataset.image(row), sample.truth, names, found), caption))
    return column


def _variants(
    dataset: VisionDataset, rows: Sequence[int], count: int, names: Sequence[str]
) -> list[Column]:
    """``count`` variants of each image, from epochs that differ in what was done."""
    shown: Counter[str] = Counter()
    columns: list[Column] = [[] for _ in range(count)]
    for row in rows:
        drawn = [dataset.augmented(epoch, row) for epoch in range(EPOCHS)]
        message = [", ".join(words) or "unchanged" for _, words in drawn]
        left = list(range(EPOCHS))
        chosen: list[int] = []
        for _ in range(count):
            best = _least_shown(left, message, [message[e] for e in chosen], shown)
            shown[message[best]] += 1
            left.remove(best)
            chosen.append(best)
        for column, epoch in zip(columns, sorted(chosen), strict=True):
            sample: Sample = drawn[epoch][0]
            picture = _picture(sample.image, sample.target, names, sample.proposals)
            column.append((picture, f"epoch {epoch + 1}: {message[epoch]}"))
    return columns


def _least_shown(
    left: Sequence[int], said: Sequence[str], in_row: Sequence[str], shown: Mapping[str, int]
) -> int:
    """The first epoch of what the row, then the figure, has fewest of; unchanged ones last."""
    return min(
        left,
        key=lambda e: (said[e] == "unchanged", in_row.count(said[e]), shown.get(said[e], 0), e),
    )


def _mixed(
    module: DataModule, node: Mapping[str, Any], kind: str, rows: Sequence[int], seed: int
) -> list[Column]:
    """Two columns of the shown images mixed with one another, as a batch of them would be.

    Of ``DRAWS`` batches those two are shown that come nearest to one half of each image.
    """
    from cvtrain.augment.mix import build_mix
    from cvtrain.data.collate import collate

    names, other = module.classes.names, "cutmix" if kind == "mixup" else "mixup"
    always = {**node, kind: 1.0, other: 0.0, "close_epoch": None}
    mix = build_mix(always, len(names), epochs=None, seed=seed)
    assert mix is not None
    dataset, columns = module.dataset("train", train=True), []
    samples = collate([dataset[0, row] for row in rows])
    batches = (mix(samples, 0, index) for index in range(DRAWS))
    for batch in sorted(batches, key=_share)[:2]:
        images = batch.images.permute(0, 2, 3, 1).numpy()  # (B, C, H, W) -> (B, H, W, C)
        columns.append(
            [
                (_picture(image, target, names), _classes(target, names))
                for image, target in zip(images, batch.targets, strict=True)
            ]
        )
    return columns


def _share(batch: Batch) -> float:
    """The largest share of a class, averaged over a batch."""
    shares = [float(t.probs.max()) for t in batch.targets if t.probs is not None]
    return sum(shares) / max(1, len(shares))


def _picture(image: Any, target: Any, names: Any, proposals: Any = None) -> Any:
    from cvtrain.report import draw

    return draw.draw(
        image,
        boxes=target.boxes,
        labels=target.labels,
        names=names,
        masks=target.masks if target.rles is None else target.rles,
        mask=target.mask,
        ignore=target.ignore,
        max_side=CELL,
        thin=None if proposals is None else proposals[:PROPOSALS],
    )


def _classes(target: Any, names: Sequence[str]) -> str:
    """The classes of a whole image: ``cat``, ``cat, dog``, ``0.7 cat + 0.3 dog``."""
    if target.probs is None:
        return "" if target.label is None else names[int(target.label)]
    shares = {names[k]: float(p) for k, p in enumerate(target.probs) if p > 0}
    if all(p == 1 for p in shares.values()):
        return ", ".join(shares) or "nothing"
    return " + ".join(f"{p:.2f} {name}" for name, p in shares.items())
