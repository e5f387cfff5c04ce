"""Loaders: batches, ranks, and values that cannot be used."""

from __future__ import annotations

import pickle
import re
import shutil
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from cvtrain.data.collate import LoaderBatch, Sample, collate
from cvtrain.data.datamodule import DataModule, build_datamodule, default_workers
from cvtrain.data.formats.packing import Packer
from cvtrain.data.table import Classes, Strings
from cvtrain.errors import DataError, UsageError
from cvtrain.structures import Batch, ImageInfo, Target


def module(tables, **options):
    settings = {"batch_size": 4, "image_size": 32, "num_workers": 0, **options}
    return DataModule(tables, "detection", None, **settings)


def sample(height=4, width=6, dtype=np.uint8, boxes=1, value=7):
    return Sample(
        image=np.full((height, width, 3), value, dtype),
        target=Target(
            boxes=torch.ones(boxes, 4),
            labels=torch.arange(boxes),
            mask=torch.ones(height, width, dtype=torch.int64),
            masks=torch.ones(boxes, height, width, dtype=torch.bool),
            label=torch.tensor(value),
        ),
        info=ImageInfo(0, "a", "a", height, width),
        truth=Target(
            boxes=torch.zeros(boxes, 4),
            rles=[{"size": [height, width], "counts": f"{n}"} for n in range(boxes)],
        ),
    )


def test_batches_are_channels_last_and_cross_processes_whole():
    batch = collate([sample(boxes=n) for n in (2, 0, 3)])
    assert isinstance(batch, Batch)
    assert len(batch) == 3
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    back = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert type(back) is LoaderBatch
    assert torch.equal(back.images, batch.images)
    assert back.images.stride() == batch.images.stride()
    assert back.infos == batch.infos
    for a, b in zip(batch.targets + batch.truths, back.targets + back.truths, strict=True):
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert (value is None) == (other is None)
            if name == "rles":
                assert value == other
                continue
            assert value is None or (torch.equal(value, other) and value.dtype == other.dtype)


def test_originals_cross_processes_with_one_copy_of_their_truth():
    one = sample()
    batch = collate([replace(one, truth=one.target)])
    assert batch.truths[0] is batch.targets[0]
    back = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert back.truths[0] is back.targets[0]
    assert torch.equal(back.truths[0].mask, one.target.mask)


def test_large_masks_cross_processes_too():
    batch = collate([sample(200, 300, boxes=4) for _ in range(2)])
    back = pickle.loads(bytes(ForkingPickler.dumps(batch)))
    assert torch.equal(back.targets[1].masks, batch.targets[1].masks)
    back.targets[0].boxes[0, 0] = 5.0  # memory of its own, to be written to
    assert back.targets[0].boxes[0, 0] == 5.0


def test_images_of_several_sizes_are_padded_right_and_below():
    batch = collate([sample(4, 6), sample(8, 5)])
    assert batch.images.shape == (2, 3, 8, 6)
    assert (batch.images[0, :, :4] == 7).all()
    assert (batch.images[0, :, 4:] == 114).all()
    assert (batch.targets[0].mask[4:] == 255).all()
    assert not batch.targets[0].masks[:, 4:].any()
    assert batch.targets[1].mask.shape == (8, 6)
    assert batch.targets[1].masks.shape == (1, 8, 6)
    assert batch.targets[0].boxes.tolist() == [[1, 1, 1, 1]]


def test_images_of_several_depths_meet_in_the_deepest():
    batch = collate([sample(value=255), sample(value=1000, dtype=np.uint16)])
    assert batch.images.dtype == torch.uint16
    assert int(batch.images[0, 0, 0, 0]) == 65535
    assert int(batch.images[1, 0, 0, 0]) == 1000


@pytest.mark.parametrize(
    ("count", "size", "batches"),
    [(13, 4, [4, 4, 4]), (14, 4, [4, 4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_only_a_last_batch_of_one_image_is_left_out_in_training(shapes, count, size, batches):
    tables = shapes(num_train=count)
    loader = module(tables, batch_size=size).train_dataloader()
    assert [len(b) for b in loader] == batches
    assert len(loader) == len(batches)
    plain = module(tables, batch_size=size).loader("train")
    assert sum(len(b) for b in plain) == count


class Attached:
    """What a trainer tells the module."""

    def __init__(self, rank, world):
        self.global_rank, self.world_size, self.num_devices = rank, world, world
        self.current_epoch = 0
        self.strategy = type("S", (), {"root_device": torch.device("cpu")})()


def test_validation_across_ranks_repeats_nothing(shapes):
    tables = shapes(num_val=21)
    seen = []
    for rank in range(2):
        data = module(tables)
        data.trainer = Attached(rank, 2)
        seen += [i.index for b in data.val_dataloader() for i in b.infos]
        assert len(data.train_dataloader()) == len(range(0, 14, 8))  # 13 rows, padded to 14
    assert sorted(seen) == list(range(21))


class Records(pl.LightningModule):
    """Notes what a trainer feeds it."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append((self.current_epoch, batch.images.clone(), [i.index for i in batch.infos]))
        return self.layer(torch.zeros(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(tables, tmp_path, epochs, ckpt=None):
    data = DataModule(
        tables,
        "detection",
        {"transforms": [{"_target_": "cvtrain.augment.Affine", "scale": [0.5, 1.5]}]},
        batch_size=5,
        image_size=32,
        num_workers=1,
    )
    model = Records()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, train_dataloaders=None, datamodule=data, ckpt_path=ckpt)
    trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
    return model.seen


def test_lightning_names_the_epoch_also_after_a_resume(shapes, tmp_path):
    tables = {"train": shapes(num_train=10)["train"]}
    whole = fit(tables, tmp_path, 3)
    fit(tables, tmp_path, 1)
    rest = fit(tables, tmp_path, 3, ckpt=tmp_path / "1.ckpt")
    assert [e for e, *_ in whole] == [0, 0, 1, 1, 2, 2]
    assert [e for e, *_ in rest] == [1, 1, 2, 2]
    for (_, a, rows), (_, b, others) in zip(whole[2:], rest, strict=True):
        assert rows == others
        assert torch.equal(a, b)
    assert whole[0][2] != whole[2][2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"batch_size": "8"}, "data.batch_size=8"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"resize": "squash"}, "data.resize=squash"),
        ({"cache": "disk"}, "data.cache=disk"),
        ({"image_size": [3, 4, 5]}, "data.image_size=[3, 4, 5]"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"image_size": "big"}, "data.image_size=big"),
    ],
)
def test_values_that_cannot_be_used(shapes, options, named):
    with pytest.raises(UsageError) as caught:
        module(shapes(), **options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_split_is_named(shapes):
    with pytest.raises(DataError, match="no test split; there are: train, val"):
        module(shapes()).test_dataloader()
    with pytest.raises(UsageError, match="task=painting is not known"):
        DataModule(shapes(), "painting")


def test_workers_by_default_are_shared_among_ranks(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert [default_workers(r) for r in (1, 2, 4, 50)] == [8, 6, 3, 1]


def config(**data):
    node = {
        "name": "shapes",
        "reader": {"_target_": "cvtrain.data.shapes.ShapesReader", "num_train": 6, "num_val": 3,
                   "num_test": 0, "scene_size": 32},
        "on_bad": "error", "val_fraction": 0.2, "channels": 3, "batch_size": 2, "image_size": 32,
        "resize": "stretch", "num_workers": 0, "cache": "none",
    }  # fmt: skip
    return {"data": {**node, **data}, "augment": {"name": "none", "transforms": []}}


def test_from_config_to_batches():
    data, report = build_datamodule(config(), "detection", seed=3, progress=False)
    assert report.used == 9
    assert data.seed == 3
    assert [len(b) for b in data.train_dataloader()] == [2, 2, 2]
    only, _ = build_datamodule(config(), "detection", splits=["val"], progress=False)
    assert list(only.tables) == ["val"]


def test_the_background_is_a_class_of_masks_made_from_segments():
    data, _ = build_datamodule(config(), "semantic_segmentation", progress=False)
    assert data.classes.names == ("background", "circle", "square", "triangle", "star")


def test_public_sets_are_not_fetched_unless_asked(tmp_path):
    reader = {"_target_": "cvtrain.data.formats.voc.VOCReader", "root": str(tmp_path)}
    node = config(name="voc2007", download=False, root=str(tmp_path), reader=reader)
    with pytest.raises(DataError, match=r"data.download=true"):
        build_datamodule(node, "detection", progress=False)
    assert not list(tmp_path.iterdir())


def test_too_many_classes_for_a_semantic_mask(files):
    from cvtrain.data.table import Classes

    table = files(classes=Classes.from_names(map(str, range(255))))
    with pytest.raises(DataError, match="256 classes; semantic masks hold at most 255"):
        DataModule({"train": table}, "semantic_segmentation", image_size=32)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """``build(seed, typed, **data)``: the val images of 20 without a val split, and the report."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for n in range(20):
        path = tmp_path / "set" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * n, n, 0)).save(path)

    def build(seed, typed=(), **data):
        reader = {"_target_": "cvtrain.data.formats.folder.FolderReader"}
        node = {"name": "x", "reader": {**reader, "root": str(tmp_path / "set")}, "channels": 3}
        node |= {"on_bad": "error", "val_fraction": 0.5, "batch_size": 4, "image_size": 8}
        node |= {"resize": "stretch", "num_workers": 0, "cache": "none", **data}
        cfg = {"data": node, "augment": None, "overrides": list(typed)}
        module, report = build_datamodule(cfg, "classification", seed=seed, progress=False)
        table = module.table("val")
        return {table.files[i] for i in range(len(table))}, report

    return build


def test_the_runs_seed_leaves_the_validation_images_alone(folders):
    val, report = folders(1, split_seed=0)
    assert len(val) == 10
    assert folders(2, split_seed=0)[0] == val
    assert folders(1, split_seed=2)[0] != val
    assert "data.split_seed=0" in next(p.message for p in report.notes if p.code == "no-val-split")


def test_runs_of_before_the_key_keep_their_validation_images(folders):
    assert folders(3)[0] == folders(1, split_seed=3)[0] == folders(3, split_seed=None)[0]


@pytest.mark.parametrize("word", ["data.val_fraction=0.5", "++data.split_seed=3"])
def test_how_to_draw_is_not_typed_beside_a_val_split(folders, tmp_path, word):
    folders(0, typed=[word, "data.root=x"])
    (tmp_path / "set").rename(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "set" / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "set" / "val")
    folders(0, typed=["data.root=x"])
    with pytest.raises(UsageError, match=f"{re.escape(word)} would not be read: .* a val split"):
        folders(0, typed=[word, "data.root=x"])


def test_data_without_some_of_a_models_classes_is_numbered_as_the_model(tmp_path) -> None:
    own = Classes.from_names(["cat", "emu"])
    table = Packer()
    for name, label in (("a.png", 1), ("b.png", 0), ("c.png", -1)):
        table.image(name)
        table.add((1, 1, 5, 5), label, 1)
    labels = np.array([1, 0, 1])
    data = module({"val": table.table(tmp_path, own, image_labels=labels)})
    for other in (["cat", "dog"], ["cow", "emu"]):
        data.take_classes(Classes.from_names(other))
        assert data.classes == own, "what the model does not know stays for the caller to refuse"
    wanted = Classes.from_names(["dog", "emu", "cat"])
    data.take_classes(wanted)
    table = data.table("val")
    assert table.classes == wanted
    assert table.labels.tolist() == [1, 2, -1]
    assert table.image_labels.tolist() == [1, 2, 1]
    mine = replace(table, classes=Classes(("emu",), (7,)))
    data = module({"val": mine})
    data.take_classes(wanted)
    assert data.classes == mine.classes, "ids of the data's own are not those of the model"
    masks = replace(table, classes=own, masks=Strings(["m"] * 3))
    data = module({"val": masks})
    data.take_classes(wanted)
    assert data.classes == own, "masks are not written again"
