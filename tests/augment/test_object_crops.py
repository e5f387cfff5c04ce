"""Crops of both stages: what is in the middle, what counts as background, which epochs."""

from __future__ import annotations

import numpy as np
import pytest

from cvtrain.augment.config import settled
from cvtrain.augment.object_crops import ObjectCrops, background_class, connected, ious
from cvtrain.augment.scene import Scene
from cvtrain.data.datamodule import compile_augment
from cvtrain.errors import UsageError

NODE = {"first_stage_epochs": 2, "context": 1.2, "min_iou": 0.5}
NAMES = ("background", "cat", "dog")


def scene(**more) -> Scene:
    """A cat of 20 x 10 pixels at (30, 40), a dog that touches it, a void pixel, 100 x 80 in all."""
    mask = np.zeros((80, 100), np.uint8)
    mask[40:50, 30:50] = 1
    mask[30:40, 40:60] = 2
    mask[45, 35] = 255
    image = np.arange(80 * 100, dtype=np.int64).reshape(80, 100, 1).repeat(3, axis=2)
    nothing = np.zeros(0)
    return Scene(
        image.astype(np.uint16), np.zeros((0, 4)), nothing, nothing.astype(bool), nothing,
        mask=mask, **more,
    )  # fmt: skip


def draw(crops: ObjectCrops, epoch: int, seed: int = 0, **more) -> tuple[Scene, str]:
    return crops(scene(**more), epoch, np.random.default_rng(seed))


def test_the_first_stage_centers_one_object_and_knows_no_other_class() -> None:
    crops = ObjectCrops(first=2, background=0)
    found = {}
    for seed in range(20):
        out, message = draw(crops, 1, seed)
        assert message == "centered object"
        found[tuple(np.unique(out.mask))] = out
    assert found.keys() == {(0, 1, 255), (0, 2)}
    cat = found[0, 1, 255]
    assert cat.mask.shape == cat.image.shape[:2] == (12, 24)  # 1.2 times 10 x 20
    assert (cat.mask[1:11, 2:22] != 0).all()
    assert cat.mask[6, 7] == 255, "void stays void"
    assert cat.image[0, 0, 0] == 39 * 100 + 28


def test_the_second_stage_keeps_all_classes_of_a_proposal_that_overlaps() -> None:
    windows = np.array([[30, 40, 50, 51], [0, 0, 20, 20], [40, 28, 60, 40]], np.float32)
    crops = ObjectCrops(first=2, background=0)
    shapes = set()
    for seed in range(20):
        out, message = draw(crops, 2, seed, windows=windows)
        assert message == "proposal"
        assert {1, 2} <= set(np.unique(out.mask))
        shapes.add(out.mask.shape)
        assert out.windows is None
    assert shapes == {(15, 24), (16, 24)}  # 1.2 times 20 x 11 and 20 x 12, whole pixels


def test_without_a_proposal_a_window_is_drawn_around_the_object() -> None:
    far = np.array([[0, 0, 20, 20]], np.float32)
    crops = ObjectCrops(first=0, context=1.0, background=0)
    for windows in (None, far):
        for seed in range(20):
            out, message = draw(crops, 5, seed, windows=windows)
            assert message == "drawn window"
            y, x = divmod(int(out.image[0, 0, 0]), 100)
            height, width = out.mask.shape
            box = np.array([x, y, x + width, y + height], float)
            boxes = np.array([[30, 40, 50, 50], [40, 30, 60, 40]], float)
            assert ious(boxes, box).max() > 0.4, "0.5 before the edges were rounded outwards"
    assert len({draw(crops, 5, seed)[0].mask.shape for seed in range(20)}) > 5


def test_stages_alone() -> None:
    assert {draw(ObjectCrops(None, background=0), e)[1] for e in (0, 99)} == {"centered object"}
    assert {draw(ObjectCrops(0, background=0), e)[1] for e in (0, 99)} == {"drawn window"}


def test_objects_of_the_data_set_come_before_parts_of_the_mask() -> None:
    objects = np.array([[10, 10, 30, 40, 1]], np.float64)
    out, _ = draw(ObjectCrops(None, context=1.0, background=0), 0, objects=objects)
    assert out.mask.shape == (30, 20)
    nothing = np.zeros((0, 5))
    assert draw(ObjectCrops(None, background=0), 0, objects=nothing)[0].mask.shape == (12, 24)


def test_a_crop_ends_at_the_border_of_the_image() -> None:
    objects = np.array([[90, 0, 100, 80, 1]], np.float64)
    out, _ = draw(ObjectCrops(None, background=0), 0, objects=objects)
    assert out.mask.shape == (80, 11)


def test_without_a_background_other_classes_stay() -> None:
    crops = ObjectCrops(None, background=None)
    seen = [set(np.unique(draw(crops, 0, seed)[0].mask)) for seed in range(20)]
    assert {0, 1, 2} in [s - {255} for s in seen]


def test_an_image_without_objects_stays_whole() -> None:
    empty = scene()
    for value in (0, 255):
        empty.mask[:] = value
        out, message = ObjectCrops(1, background=0)(empty, 0, np.random.default_rng(0))
        assert message == "no object"
        assert out.mask.shape == (80, 100)


def test_parts_of_a_mask() -> None:
    mask = np.full((6, 8), 255, np.uint8)
    mask[:, :4] = 0
    mask[0:2, 0:2] = mask[2, 2] = mask[5, 5:8] = 3
    want = [[0, 0, 3, 3, 3], [5, 5, 8, 6, 3]]
    assert sorted(connected(mask, 0).tolist()) == want  # touching at a corner is touching
    assert sorted(connected(mask, None).tolist()) == [want[0], [0, 0, 4, 6, 0], want[1]]
    tiny = scene()
    tiny.mask[0, 0] = 2
    boxes = ObjectCrops(1, background=0)._objects(tiny)
    assert len(boxes) == 2, "one pixel is no object worth a crop"
    assert background_class(("cat", "Background")) == 1
    assert background_class(("cat",)) is None


def test_it_goes_before_the_transforms_and_says_so() -> None:
    node = {"name": "c", "object_crops": NODE, "transforms": []}
    size = {"height": 32, "width": 48, "resize": "stretch"}
    ready = compile_augment(node, "semantic_segmentation", class_names=NAMES, **size)
    for epoch, want in ((0, "centered object"), (1, "centered object"), (2, "drawn window")):
        out, message = ready(scene(), epoch, np.random.default_rng(0), list)
        assert message == [want]
        assert out.mask.shape == out.image.shape[:2] == (32, 48)
    again, _ = ready(scene(), 2, np.random.default_rng(0), list)
    assert np.array_equal(again.image, out.image)
    share = {**node, "object_crops": {**NODE, "first_stage_epochs": 0.3}}
    ready = compile_augment(share, "semantic_segmentation", epochs=10, class_names=NAMES, **size)
    assert ready.crops == ObjectCrops(3, background=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_stage_epochs": 1.5}, "first_stage_epochs=1.5: give a number of epochs"),
        ({"context": 0.9}, "context=0.9: give a number from 1"),
        ({"min_iou": 0}, "min_iou=0: give a number above 0"),
        ({"other": 1}, "give first_stage_epochs, context, min_iou"),
    ],
)
def test_wrong_values_are_refused(change: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        settled({"name": "c", "object_crops": {**NODE, **change}})


def test_what_it_does_not_go_with() -> None:
    node = {"name": "c", "object_crops": NODE}
    with pytest.raises(UsageError, match=r"augment\.mosaic=0\.5 and augment\.object_crops exclude"):
        settled({**node, "mosaic": 0.5})
    with pytest.raises(UsageError, match="it serves task=semantic_segmentation, not detection"):
        compile_augment(node, "detection", height=32, width=32, resize="stretch")
