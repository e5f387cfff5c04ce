"""A second try where a draw loses every object; and when mixing ends."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.policy import TRIES, Augmentation, lost
from cvtrain.augment.scene import Scene
from cvtrain.data.datamodule import DataModule
from cvtrain.structures import IGNORE_INDEX


def scene(boxes, ignore=None, mask=None):
    found = np.array(boxes, np.float64).reshape(-1, 4)
    return Scene(
        image=np.zeros((40, 40, 3), np.uint8),
        boxes=found,
        labels=np.zeros(len(found), np.int64),
        ignore=np.zeros(len(found), bool) if ignore is None else np.array(ignore),
        areas=np.ones(len(found)),
        mask=mask,
    )


class Fake:
    """A pipeline that loses all objects so many times."""

    size, resize, applied = (40, 40), "stretch", ["crop"]

    def __init__(self, losses):
        self.losses, self.calls = losses, 0

    def __call__(self, given, generator):
        self.calls += 1
        return scene([]) if self.calls <= self.losses else given


@pytest.mark.parametrize("losses", [0, 1, TRIES - 1, TRIES, TRIES + 5])
def test_a_draw_that_loses_every_object_is_drawn_again(losses):
    fake = Fake(losses)
    out, message = Augmentation(fake)(scene([[5, 5, 20, 20]]), 0, np.random.default_rng(0), list)
    assert fake.calls == min(losses + 1, TRIES)
    if losses < TRIES:
        assert len(out.boxes) == 1
        assert message == ["crop"]
    else:
        assert out is None


def test_objects_too_small_to_be_kept_cost_no_second_draw():
    fake = Fake(9)
    data = scene([[5, 5, 9, 9]])
    out, _ = Augmentation(fake, min_area=50)(data, 0, np.random.default_rng(0), list)
    assert fake.calls == 1
    assert len(out.boxes) == 0


def test_what_counts_as_lost():
    two = scene([[0, 0, 9, 9], [0, 0, 5, 5]], ignore=[False, True])
    assert lost(two, scene([[0, 0, 5, 5]], ignore=[True]))
    assert not lost(two, scene([[0, 0, 5, 5]]))
    assert not lost(scene([[0, 0, 5, 5]], ignore=[True]), scene([[0, 0, 5, 5]], ignore=[True]))
    assert not lost(scene([]), scene([]))
    void, some = np.full((4, 4), IGNORE_INDEX), np.zeros((4, 4))
    assert lost(scene([], mask=some), scene([], mask=void))
    assert not lost(scene([], mask=void), scene([], mask=void))
    assert not lost(scene([], mask=some), scene([], mask=some))


def module(table, augment, task="detection", **options):
    settings = {"image_size": 32, "num_workers": 0, "batch_size": 4, **options}
    return DataModule({"train": table}, task, augment, **settings)


CROP = {"transforms": [{"_target_": "cvtrain.augment.ResizedCrop", "scale": [0.02, 0.05]}]}


@pytest.mark.parametrize("task", ["detection", "instance_segmentation"])
def test_no_image_with_objects_comes_without_any(shapes, task):
    table = shapes(task, num_train=12)["train"]
    dataset = module(table, CROP, task).dataset("train", train=True)
    samples = [dataset[epoch, row] for epoch in range(5) for row in range(len(dataset))]
    assert all(len(s.target.boxes) for s in samples)
    cropped = [s for s in samples if s.info.placement is None]
    assert 0 < len(cropped) < len(samples)  # some crops kept an object, some images stayed whole


def test_draws_are_the_same_again(shapes):
    table = shapes("detection", num_train=6)["train"]
    first, again = (module(table, CROP).dataset("train", train=True) for _ in range(2))
    for _ in range(3):
        again[1, 4]  # another past
    assert np.array_equal(first[2, 3].image, again[2, 3].image)
    assert first[2, 3].target.boxes.tolist() == again[2, 3].target.boxes.tolist()


@pytest.mark.parametrize("key", ["mosaic", "copy_paste"])
@pytest.mark.parametrize(("close", "first_plain"), [(2, 2), (0.5, 5), (None, None)])
def test_mixing_ends_with_an_epoch(shapes, key, close, first_plain):
    task = "instance_segmentation"
    table = shapes(task, num_train=6)["train"]
    node = {key: 1.0, "close_epoch": close}
    dataset = module(table, node, task, epochs=10).dataset("train", train=True)
    word = key.replace("_", "-")
    for epoch in (0, 1, 2, 4, 5, 9):
        message = dataset.augmented(epoch, 3)[1]
        assert (word in message) == (first_plain is None or epoch < first_plain)


def test_mosaics_and_pasted_objects_keep_masks_in_their_boxes(shapes):
    task = "instance_segmentation"
    table = shapes(task, num_train=8)["train"]
    node = {"mosaic": 0.7, "copy_paste": 0.8}
    dataset, seen = module(table, node, task, image_size=64).dataset("train", train=True), 0
    for row in range(8):
        target = dataset[0, row].target
        assert len(target.boxes) == len(target.masks) == len(target.labels)
        for box, mask in zip(target.boxes, target.masks, strict=True):
            ys, xs = np.nonzero(mask.numpy())
            around = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert np.abs(box.numpy() - around).max() <= 2
            seen += 1
        assert int(target.masks.sum(dim=0).max()) <= 2  # drawn scenes overlap by annotation alone
    assert seen > 12
