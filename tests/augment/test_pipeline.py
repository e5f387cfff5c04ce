"""A config's list of transforms: what it gives, where its draws come from, what it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import yaml

from cvtrain.augment import HSV, Affine, Resize
from cvtrain.augment.config import MIXING, SERVES, settled, title
from cvtrain.augment.pipeline import Pipeline, build_transforms
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import Scene
from cvtrain.data.datamodule import compile_augment
from cvtrain.errors import DataError, UsageError
from cvtrain.instantiate import instantiate
from cvtrain.structures import TASKS

CONF = Path(__file__).parents[2] / "conf" / "augment"


def scene(boxes=((10, 10, 40, 30), (50, 20, 90, 60)), *, mask=False, masks=False, dtype=np.uint8):
    image = np.random.default_rng(0).integers(0, 200, (80, 100, 3)).astype(dtype)
    found = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(found)
    whole = np.zeros((count, 80, 100), np.uint8)
    for k, (x0, y0, x1, y1) in enumerate(found.astype(int)):
        whole[k, y0:y1, x0:x1] = 1
    return Scene(
        image=image,
        boxes=found,
        labels=np.arange(count) + 5,
        ignore=np.arange(count) % 2 == 1,
        areas=(found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]) / 2,
        mask=np.full((80, 100), 3, np.uint8) if mask else None,
        masks=Masks.of(whole) if masks else None,
    )


def pipeline(*transforms, **options):
    return Pipeline(transforms, **{"height": 64, "width": 64, "resize": "letterbox", **options})


def rng(seed=0):
    return np.random.default_rng(seed)


def same(a: Scene, b: Scene) -> bool:
    names = ("image", "boxes", "labels", "ignore", "areas", "mask")
    if a.masks is not None and not np.array_equal(a.masks.dense(), b.masks.dense()):
        return False
    return all(
        np.array_equal(getattr(a, n), getattr(b, n)) for n in names if getattr(a, n) is not None
    )


COMMON = {
    "affine": lambda: Affine(scale=[0.7, 1.3], translate=0.2, rotate=10.0, hflip=0.5),
    "hsv": lambda: HSV(hue=20.0, saturation=1.5, exposure=1.5),
    "flip": lambda: A.HorizontalFlip(p=0.5),
    "crop": lambda: A.BBoxSafeRandomCrop(erosion_rate=0.1, p=0.9),
    "perspective": lambda: A.Perspective(p=0.9),
    "elastic": lambda: A.ElasticTransform(p=1.0),
    "noise": lambda: A.GaussNoise(p=1.0),
    "blur": lambda: A.MotionBlur(p=0.9),
    "jitter": lambda: A.ColorJitter(p=0.9),
    "dropout": lambda: A.CoarseDropout(p=0.9),
    "gamma": lambda: A.RandomGamma(p=0.9),
    "one of": lambda: A.OneOf([A.Rotate(p=1.0), A.VerticalFlip(p=1.0)], p=0.9),
    "some of": lambda: A.SomeOf([A.Rotate(p=1.0), A.Posterize(p=1.0), A.CLAHE(p=1.0)], n=2, p=0.9),
}


@pytest.mark.parametrize("name", COMMON)
def test_draws_follow_from_the_generator_alone(name):
    first, other = pipeline(COMMON[name]()), pipeline(COMMON[name]())
    data = scene(mask=True, masks=True)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global one, on purpose)
    once = first(data, rng(7))
    for seed in (1, 2, 3):  # a different past, and other global seeds
        other(data, rng(seed))
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert same(once, other(data, rng(7)))
    assert any(not same(once, first(data, rng(s))) for s in range(4))


def test_rows_travel_with_their_boxes_and_masks():
    cut = pipeline(A.Crop(45, 0, 100, 80), height=80, width=55, resize="stretch")
    out = cut(scene(masks=True), rng())
    assert out.labels.tolist() == [6]
    assert out.ignore.tolist() == [True]
    assert out.boxes.round(3).tolist() == [[5, 20, 45, 60]]
    assert out.masks.shape == (1, 80, 55)
    assert out.masks[0][20:60, 5:45].all()
    assert out.masks[0].sum() == 1600 == out.areas[0]


def test_areas_scale_with_their_boxes():
    out = pipeline(Resize(), height=160, width=200)(scene(), rng())
    assert np.allclose(out.areas, scene().areas * 4)


def test_boxes_with_too_little_in_view_are_dropped():
    half = A.Crop(0, 0, 70, 80)  # the second box keeps half of itself
    for least, left in ((0.45, 2), (0.55, 1)):
        out = pipeline(half, height=80, width=70, min_visibility=least)(scene(), rng())
        assert len(out.boxes) == left
    assert len(pipeline(min_area=1e5)(scene(), rng()).boxes) == 0


def test_an_object_that_left_its_box_is_dropped():
    data = scene(masks=True)
    right = np.broadcast_to(np.arange(data.image.shape[1]) >= 60, data.image.shape[:2])
    data.masks = data.masks.without(right)  # the object is at the left of its box
    out = pipeline(A.Crop(65, 0, 100, 80), height=80, width=35)(data, rng())
    assert len(out.boxes) == len(out.masks) == 0


def test_a_turned_box_is_cut_to_its_mask():
    turned = pipeline(Affine(rotate=45.0), height=100, width=100)
    for seed in range(5):
        out = turned(scene(((30, 30, 70, 50),), masks=True), rng(seed))
        xs = np.flatnonzero(out.masks[0].any(axis=0))
        assert out.boxes[0, [0, 2]].tolist() == [xs[0], xs[-1] + 1]


@pytest.mark.parametrize(
    "transform", [lambda: A.Rotate((30, 30), p=1.0), lambda: Affine(rotate=40)]
)
def test_pixels_from_outside_are_void_in_semantic_masks(transform):
    out = pipeline(transform())(scene(mask=True), rng(3))
    assert set(np.unique(out.mask)) == {3, 255}
    data = scene(mask=True)
    data.mask[:] = 255
    assert (pipeline(transform())(data, rng(3)).mask == 255).all()


@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects_pass(masks):
    listed = [make() for make in COMMON.values()]
    every = pipeline(*listed, Resize(), targets=("boxes", "masks"))
    out = every(scene((), masks=masks), rng())
    assert out.boxes.shape == (0, 4)
    assert out.labels.shape == (0,)
    assert (out.masks is not None) == masks
    if masks:
        assert out.masks.shape == (0, 64, 64)


def test_boxes_thinner_than_a_pixel_do_not_stop_it():
    data = scene(((10, 10, 10.0001, 30), (5, 5, 60, 60), (99.9, 79.9, 100, 80)))
    out = pipeline(Affine(scale=[0.5, 0.5]))(data, rng())
    assert out.labels.tolist() == [6]


def test_sixteen_bits_stay():
    out = pipeline(Affine(rotate=5), HSV(exposure=1.2))(scene(dtype=np.uint16), rng())
    assert out.image.dtype == np.uint16


def test_a_resize_goes_last_where_none_is_listed():
    out = pipeline(A.RandomCrop(30, 40), height=64, width=96)(scene(), rng())
    assert out.image.shape == (64, 96, 3)


def test_a_wrong_size_at_the_end_names_the_cure():
    with pytest.raises(
        DataError, match=r"gives 30 x 40 images, the network takes 64 x 64; end its"
    ):
        pipeline(Resize(), A.RandomCrop(30, 40), name="mine")(scene(), rng())


def test_a_transform_that_fails_is_named_in_one_line():
    with pytest.raises(
        DataError, match=r"augment=mine: RandomCrop failed on a uint8 80x100x3 image"
    ) as caught:
        pipeline(A.RandomCrop(300, 400), name="mine")(scene(), rng())
    assert "\n" not in str(caught.value)


def test_a_transform_that_leaves_boxes_behind_is_refused():
    class Roll(A.DualTransform):
        _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

        def apply(self, img, **params):
            return np.roll(img, 5, axis=1)

    pipeline(Roll(), targets=("mask",))
    with pytest.raises(UsageError, match="Roll moves pixels but not boxes"):
        pipeline(A.OneOf([Roll()]), targets=("boxes",))


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"_target_": "albumentations.HorizontalFlip", "always_apply": True}, "always_apply"),
        ({"_target_": "albumentations.Affine", "zoom": 2}, "zoom"),
        ({"_target_": "albumentations.Blur", "blur_limit": "much"}, "blur_limit"),
        ({"_target_": "cvtrain.augment.Affine", "scales": [1, 2]}, "scales"),
        ({"_target_": "albumentations.OneOf", "transforms": [
            {"_target_": "albumentations.Blur", "kernel": 3}]}, "kernel"),
        ({"_target_": "torch.nn.ReLU"}, r"transforms\[0\]._target_=torch.nn.ReLU is not among"),
        ({"p": 1}, "no albumentations transform"),
    ],
)  # fmt: skip
def test_arguments_a_transform_does_not_know_are_errors(node, named):
    with pytest.raises(UsageError, match=named) as caught:
        build_transforms([node], lambda n, where: instantiate(n, where=where))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"mosaik": 1.0}, "augment.mosaik is not known"),
        ({"mosaic": 2}, "augment.mosaic=2"),
        ({"min_area": "big"}, "augment.min_area=big"),
        ({"min_visibility": True}, "augment.min_visibility=True"),
        ({"transforms": {"a": 1}}, "augment.transforms"),
    ],
)
def test_a_wrong_augment_node_is_an_error(node, named):
    with pytest.raises(UsageError, match=named):
        settled(node)


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml")))
@pytest.mark.parametrize("task", TASKS)
def test_every_augment_yaml_runs_for_every_task(name, task):
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    assert title(node).split("+")[0] == name  # unet brings the family elastic: unet+elastic
    size = {"height": 64, "width": 96, "resize": "letterbox", "epochs": 10}
    wrong = [key for key in MIXING if node.get(key) and task not in SERVES[key]]
    if node.get("object_crops") and task != "semantic_segmentation":
        wrong.append("object_crops")
    if wrong:
        with pytest.raises(UsageError, match=f"augment.{wrong[0]}.* it serves task="):
            compile_augment(node, task, **size)
        return
    ready = compile_augment(node, task, **size)
    data = scene(mask=task.startswith("semantic"), masks=task.startswith("instance"))
    assert ready.pipeline(data, rng()).image.shape == (64, 96, 3)


def test_a_mosaic_has_no_single_class():
    with pytest.raises(
        UsageError, match=r"augment.mosaic=0.5 makes an image of many objects: it serves"
    ):
        compile_augment({"mosaic": 0.5}, "classification", height=64, width=64, resize="stretch")
