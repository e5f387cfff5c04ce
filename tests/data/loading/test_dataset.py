"""Samples: the right targets for each task, and draws from (seed, epoch, row) alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cvtrain.augment.geometry import fit, put
from cvtrain.data.datamodule import DataModule
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.mask_file import ClassOfValue, decode_mask
from cvtrain.data.masks import rle_areas, rles_of, to_masks
from cvtrain.data.table import CROWD, DIFFICULT, Strings
from cvtrain.errors import DataError
from cvtrain.structures import TASKS, Target

AUGMENT = yaml.safe_load(
    (Path(__file__).parents[3] / "conf" / "augment" / "segmentation.yaml").read_text("utf-8")
)


def equal(a: Target | None, b: Target | None) -> bool:
    if a is None or b is None:
        return a is b
    for name, value in vars(a).items():
        other = getattr(b, name)
        if (value is None) != (other is None):
            return False
        if isinstance(value, list):
            if value != other:
                return False
        elif value is not None and not (value.dtype == other.dtype and torch.equal(value, other)):
            return False
    return True


def module(tables, task, *, mosaic=None, **options):
    if mosaic is None:
        whole = ("classification", "multilabel_classification", "localization")
        mosaic = 0.0 if task in whole else 0.5
    augment = {**AUGMENT, "mosaic": mosaic}
    settings = {"batch_size": 4, "image_size": [40, 56], "num_workers": 0, **options}
    return DataModule(tables, task, augment, **settings)


def epoch_of(loader, epoch):
    """Row -> (image, target) of an epoch."""
    loader.sampler.set_epoch(epoch)
    samples = {}
    for batch in loader:
        for image, target, info in zip(batch.images, batch.targets, batch.infos, strict=True):
            samples[info.index] = (image.clone(), target)
    return samples


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k][0], b[k][0]) and equal(a[k][1], b[k][1]) for k in a
    )


@pytest.mark.parametrize("task", TASKS)
def test_workers_change_nothing(shapes, task):
    tables = shapes(task)
    epochs = []
    for workers in (0, 1, 2):
        loader = module(tables, task, num_workers=workers).train_dataloader()
        epochs.append([epoch_of(loader, e) for e in (0, 1)])  # the same workers, twice
    for other in epochs[1:]:
        assert same(epochs[0][0], other[0])
        assert same(epochs[0][1], other[1])
    assert not same(epochs[0][0], epochs[0][1])


def test_a_resume_goes_on_with_the_same_samples(shapes):
    tables = shapes()
    whole = module(tables, "detection", num_workers=2).train_dataloader()
    expected = [epoch_of(whole, e) for e in range(3)][2]
    np.random.seed(1)  # noqa: NPY002 (the global one, on purpose)
    torch.manual_seed(1)
    assert same(epoch_of(module(tables, "detection").train_dataloader(), 2), expected)


def test_ranks_share_an_epoch_of_the_same_samples(shapes, monkeypatch):
    tables = shapes(num_train=12)  # so many that no rank is left with a batch of one
    expected = epoch_of(module(tables, "detection").train_dataloader(), 1)
    for world in (2, 3):
        union = {}
        for rank in range(world):
            data = module(tables, "detection")
            monkeypatch.setattr(data, "_ranks", lambda r=rank, w=world: (r, w, w))
            union.update(epoch_of(data.train_dataloader(), 1))
        assert same(union, expected)


def test_seeds_and_batch_sizes(shapes):
    tables = shapes(num_train=12)
    one = epoch_of(module(tables, "detection", seed=1).train_dataloader(), 0)
    assert not same(one, epoch_of(module(tables, "detection", seed=2).train_dataloader(), 0))
    assert same(
        one, epoch_of(module(tables, "detection", seed=1, batch_size=7).train_dataloader(), 0)
    )


@pytest.mark.parametrize("task", TASKS)
def test_validation_holds_the_truth_in_original_pixels(shapes, task):
    tables = shapes(task)
    data = module(tables, task)
    table = data.table("val")
    seen = 0
    for batch in data.val_dataloader():
        assert batch.images.shape[1:] == (3, 40, 56)
        assert batch.images.dtype == torch.uint8
        for target, truth, info in zip(batch.targets, batch.truths, batch.infos, strict=True):
            rows = table.rows(info.index)
            assert (info.height, info.width) == (48, 64)
            assert info.file_name == info.image_id
            if task in ("detection", "instance_segmentation"):
                assert np.array_equal(truth.boxes.numpy(), table.boxes[rows].astype(np.float32))
                assert truth.labels.tolist() == table.labels[rows].tolist()
                assert truth.areas.tolist() == table.areas[rows].tolist()
                back = info.placement.boxes_to_original(target.boxes)
                assert torch.allclose(back, truth.boxes, atol=1e-3)
            if task == "instance_segmentation":
                assert truth.masks is None
                assert truth.rles == rles_of(table.segments, rows, 48, 64)
                assert rle_areas(truth.rles).tolist() == table.areas[rows].tolist()
                assert target.rles is None
                assert target.masks.dtype == torch.bool
                place = fit(48, 64, 40, 56, "letterbox")
                whole = to_masks(table.segments, rows, 48, 64)
                placed = [put(m, place, 40, 56, 0, nearest=True) for m in whole]
                assert np.array_equal(target.masks.numpy(), np.array(placed, bool))
            if task == "semantic_segmentation":
                assert truth.mask.shape == (48, 64)
                assert truth.mask.dtype == torch.uint8
                assert int((truth.mask > 0).sum()) == int(table.areas[rows].sum())
                # 48 x 64 letterboxed into 40 x 56: a border of void left and right.
                assert (target.mask[:, [0, -1]] == 255).all()
                assert (target.mask[:, 2:-2] < 5).all()
            if task in ("classification", "localization"):
                assert int(target.label) == int(truth.label) == table.image_labels[info.index]
            if task == "multilabel_classification":
                present = target.probs.nonzero().flatten().tolist()
                assert present == sorted(set(table.labels[rows].tolist()))
                assert torch.equal(target.probs, truth.probs)
            if task == "localization":
                assert target.boxes.shape == (1, 4)
                assert truth.labels.shape == (1,)
            seen += 1
    assert seen == 7


def test_training_has_no_truths_and_no_placement(shapes):
    batch = next(iter(module(shapes(), "detection").train_dataloader()))
    assert batch.truths is None
    assert all(i.placement is None for i in batch.infos)


def annotated(files, boxes, **fields):
    count = len(boxes)
    return files(
        1,
        starts=np.array([0, count]),
        boxes=np.array(boxes, np.float64),
        labels=np.arange(count),
        lines=np.zeros(count, np.int64),
        **{"flags": np.zeros(count, np.uint8), "areas": np.full(count, np.nan), **fields},
    )


def test_flags_and_areas(files):
    table = annotated(
        files,
        [[0, 0, 10, 10], [5, 5, 8, 9], [1, 1, 2, 2]],
        flags=np.array([CROWD, 0, DIFFICULT], np.uint8),
        areas=np.array([60.0, np.nan, np.nan]),
    )
    truth = VisionDataset(table, "detection", height=48, width=64)[0].truth
    assert truth.ignore.tolist() == [True, False, True]
    assert truth.areas.tolist() == [60.0, 12.0, 1.0]
    assert truth.areas.dtype == torch.float64
    net = VisionDataset(table, "detection", height=48, width=64)[0].target
    assert net.areas.tolist() == [240.0, 48.0, 4.0]


def test_localization_takes_the_largest_object_that_counts(files):
    table = annotated(
        files,
        [[0, 0, 30, 20], [5, 5, 15, 15], [1, 1, 2, 2]],
        flags=np.array([CROWD, 0, 0], np.uint8),
    )
    sample = VisionDataset(table, "localization", height=24, width=32)[0]
    assert sample.truth.boxes.tolist() == [[5, 5, 15, 15]]
    assert int(sample.truth.label) == 1


def test_localization_never_loses_its_object(files):
    table = annotated(files, [[14, 9, 18, 13]])
    augment = {"transforms": [{"_target_": "cvtrain.augment.ResizedCrop", "scale": [0.1, 0.2]}]}
    data = DataModule({"train": table}, "localization", augment, image_size=32, num_workers=0)
    dataset = data.dataset("train", train=True)
    targets = [dataset[e, 0].target for e in range(20)]
    assert all(t.boxes.shape == (1, 4) for t in targets)
    assert len({tuple(t.boxes[0].tolist()) for t in targets}) > 1


def test_images_without_objects_are_samples(files):
    for task in ("detection", "instance_segmentation"):
        data = DataModule({"train": files()}, task, AUGMENT, image_size=32, num_workers=0)
        for train in (True, False):
            target = data.dataset("train", train=train)[0, 1].target
            assert target.boxes.shape == (0, 4)
            assert target.boxes.dtype == torch.float32
            assert target.labels.dtype == torch.int64
            assert target.ignore.dtype == torch.bool
            if task == "instance_segmentation":
                assert target.masks.shape == (0, 32, 32)


@pytest.mark.parametrize("save", ["gray", "palette", "rgb", "deep"])
def test_mask_files_hold_classes(tmp_path, save):
    values = np.array([[0, 1, 2], [255, 7, 1]], np.uint8)
    image = Image.fromarray(values)
    if save == "palette":
        image = Image.fromarray(values, "P")
        image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    if save == "rgb":
        image = Image.fromarray(np.dstack([values] * 3))
    if save == "deep":
        image = Image.fromarray(np.where(values == 255, 60_000, values.astype(np.uint16)))
    image.save(tmp_path / "m.png")
    classes = ClassOfValue(np.arange(8))(decode_mask(tmp_path / "m.png"))
    assert classes.dtype == np.uint8
    assert np.array_equal(classes, values)


def test_masks_in_colors_are_refused(tmp_path):
    Image.fromarray(np.eye(3, dtype=np.uint8)[None].repeat(3, 0) * 255).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="a mask in colors"):
        decode_mask(tmp_path / "m.png")
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        decode_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("values", "expected"),
    [(None, [0, 1, 2, 255, 255]), (np.array([7, 255, 0]), [2, 255, 255, 1, 0])],
)
def test_mask_values_become_classes(files, tmp_path, values, expected):
    # Values 0 1 2 255 7; what is no class is void.
    mask = np.zeros((24, 32), np.uint8)
    mask[0, :5] = [0, 1, 2, 255, 7]
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    table = files(1, masks=Strings(["mask.png"]), mask_values=values)
    truth = VisionDataset(table, "semantic_segmentation", height=24, width=32)[0].truth
    assert truth.mask[0, :5].tolist() == expected


def test_a_file_that_changed_since_the_check_is_noticed(files, tmp_path):
    table = files(2)
    dataset = VisionDataset(table, "classification", height=24, width=32)
    cv2.imwrite(str(tmp_path / "001.png"), np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(DataError, match=r"001.png: is 5 x 6 now, was 24 x 32"):
        dataset.image(1)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_depths(files, tmp_path, channels):
    shape = (24, 32) if channels == 1 else (24, 32, 4)
    deep = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "000.png"), deep)
    table = files(1, image_labels=np.zeros(1, np.int64))
    cv2.imwrite(str(tmp_path / "000.png"), deep)
    data = DataModule(
        {"train": table}, "classification", AUGMENT, image_size=32, channels=channels, num_workers=0
    )
    for batch in (next(iter(data.train_dataloader())), next(iter(data.loader("train")))):
        assert batch.images.shape == (1, channels, 32, 32)
        assert batch.images.dtype == torch.uint16


@pytest.mark.parametrize(
    ("folder", "reader", "task"),
    [
        ("raccoon", "voc.VOCReader", "detection"),
        ("cifar10_mini", "folder.FolderReader", "classification"),
        ("street_mini", "masks.MasksReader", "semantic_segmentation"),
        ("membrane", "masks.MasksReader", "semantic_segmentation"),
        ("nuclei_mini", "coco.COCOReader", "instance_segmentation"),
        ("nuclei_mini", "coco.COCOReader", "semantic_segmentation"),
        ("nuclei_mini", "coco.COCOReader", "localization"),
    ],
)
def test_real_data_load_for_their_tasks(real_data, folder, reader, task):
    from cvtrain.data.datamodule import build_datamodule

    data = {
        "name": folder,
        "reader": {"_target_": f"cvtrain.data.formats.{reader}", "root": str(real_data / folder)},
        "on_bad": "error", "val_fraction": 0.2, "channels": 3, "batch_size": 4,
        "image_size": 96, "resize": "letterbox", "num_workers": 0, "cache": "none",
    }  # fmt: skip
    built, report = build_datamodule({"data": data, "augment": AUGMENT}, task, progress=False)
    assert report.images == report.used + report.rejected
    train, val = built.dataset("train", train=True), built.dataset("val")
    for row in range(0, len(train), max(1, len(train) // 5)):
        assert train[1, row].image.shape == (96, 96, 3)
    for row in range(0, len(val), max(1, len(val) // 5)):
        sample = val[row]
        if sample.truth.boxes is not None:
            back = sample.info.placement.boxes_to_original(sample.target.boxes)
            assert torch.allclose(back, sample.truth.boxes, atol=1e-2)
        if sample.truth.rles is not None:
            # Polygons run through pixel centers: they lose about half a pixel all around.
            inside = float(rle_areas(sample.truth.rles).sum())
            assert 0.85 < inside / float(sample.truth.areas.sum()) < 1.02
        if sample.truth.mask is not None:
            kinds = set(sample.truth.mask.unique().tolist())
            assert kinds <= {255, *range(len(built.classes))}
            assert kinds != {255}


def test_a_mask_is_upright_and_one_bit_files_are_black_and_white(tmp_path: Path) -> None:
    bits = np.zeros((4, 6), bool)
    bits[0, 1] = True
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert decode_mask(tmp_path / "bits.png").tolist() == (bits * 255).tolist()
    turned = Image.fromarray(bits.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    turned.save(tmp_path / "turned.png", exif=exif)
    assert decode_mask(tmp_path / "turned.png").tolist() == np.rot90(bits, -1).astype(int).tolist()
