"""Every yaml of conf/augment: objects, masks and keypoints go where the pixels go."""

from __future__ import annotations

from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import yaml

from cvtrain.augment import Affine, ResizedCrop
from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.planes import Masks
from cvtrain.augment.scene import HIDDEN, UNSEEN, VISIBLE, Scene
from cvtrain.augment.transforms import Resize
from cvtrain.data.datamodule import compile_augment
from cvtrain.errors import DataError

CONF = Path(__file__).parents[2] / "conf" / "augment"
NAMES = sorted(p.stem for p in CONF.glob("*.yaml"))
FAMILIES = ("geometric", "color", "occlusion", "weather")
HEIGHT, WIDTH = 90, 120
RECOLORED = ("solarize", "posterize", "brightness", "contrast", "equalize", "autocontrast")
LEVELS = (250, 10)
"""Gray of the two objects on a ground of 120."""


def load(name, **changes):
    node = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    if name in FAMILIES:
        node[name] |= changes
    if name == "elastic":
        node[name]["std"] = 0.05  # of 90 pixels the default moves little
    return node


def scene(channels=3, dtype=np.uint8):
    """Two rectangles, one bright and one dark, with a keypoint at each center and corner."""
    image = np.full((60, 80, channels), 120, np.uint8)
    boxes = np.array([[8.0, 10, 32, 30], [44, 24, 74, 52]])
    masks = np.zeros((2, 60, 80), np.uint8)
    points = []
    for k, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        image[y0:y1, x0:x1] = LEVELS[k]
        masks[k, y0:y1, x0:x1] = 1
        inner = [[(x0 + x1) / 2, (y0 + y1) / 2], [x0 + 2, y0 + 2], [x1 - 2, y1 - 2]]
        points.append([[*p, VISIBLE] for p in inner])
    if dtype == np.uint16:
        image = image.astype(np.uint16) * 257
    if dtype == np.float32:
        image = image.astype(np.float32) / 255
    return Scene(
        image=image,
        boxes=boxes,
        labels=np.array([0, 1]),
        ignore=np.zeros(2, bool),
        areas=masks.sum(axis=(1, 2)).astype(float),
        mask=(masks[0] + 2 * masks[1]).astype(np.uint8),
        masks=Masks.of(masks),
        keypoints=np.array(points),
    )


def compiled(node, **options):
    settings = {"height": HEIGHT, "width": WIDTH, "resize": "letterbox", "epochs": 10, **options}
    # Neither is for this task: one blends whole images, one cuts objects out of masks of classes.
    node = {**node, "mixup": 0.0, "object_crops": None}
    return compile_augment(node, "instance_segmentation", **settings).pipeline


def check(out):
    """Boxes around masks, masks on their classes, keypoints in their masks, all in one place."""
    assert out.image.shape[:2] == out.mask.shape == out.masks.shape[1:] == (HEIGHT, WIDTH)
    assert len(out.boxes) == len(out.labels) == len(out.masks) == len(out.keypoints)
    for k, label in enumerate(out.labels):
        ys, xs = np.nonzero(out.masks[k])
        around = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert out.boxes[k].tolist() == around.tolist()
        assert (out.mask[out.masks[k] > 0] == label + 1).mean() > 0.9
        for x, y, seen in out.keypoints[k]:
            inside = 0 <= x <= WIDTH and 0 <= y <= HEIGHT
            assert (seen != UNSEEN) == inside
            if inside:
                column, row = min(int(x), WIDTH - 1), min(int(y), HEIGHT - 1)
                near = out.masks[k][max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
                assert near.any()


@pytest.mark.parametrize("name", NAMES)
def test_everything_annotated_moves_with_the_image(name):
    pipeline, data = compiled(load(name, strength=1.0)), scene()
    moved = 0
    for seed in range(12):
        out = pipeline(data, np.random.default_rng(seed))
        check(out)
        stays = len(out.boxes) == 2 and np.allclose(out.boxes, data.boxes * 1.5, atol=2.1)
        moved += not stays
    placing = name not in ("none", "color", "occlusion", "weather")
    assert (moved > 6) == placing


@pytest.mark.parametrize("name", ["geometric", "randaugment", "trivialaugment", "light"])
def test_an_object_is_where_its_pixels_are(name):
    """The bright and the dark rectangle, found in the image, are inside their masks."""
    node = load(name, strength=0.8)
    pipeline, data, seen = compiled(node), scene(), 0
    for seed in range(25):
        out = pipeline(data, np.random.default_rng(seed))
        if any(op in message for message in pipeline.applied for op in RECOLORED):
            continue
        for mask, label in zip(out.masks, out.labels, strict=True):
            gray = out.image.mean(axis=2)
            inside = gray[mask > 0]
            if mask.sum() > 80:
                assert np.abs(np.median(inside) - LEVELS[label]) < 12
                seen += 1
        bright = out.image.mean(axis=2) > 230
        owner = out.masks.take(out.labels == 0).union()
        assert (bright & ~owner).sum() <= 0.1 * max(40, bright.sum()) or not owner.any()
    assert seen > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_at_strength_0_next_to_nothing_happens(family):
    weak, still = compiled(load(family, strength=0.0)), compiled({})
    strong = compiled(load(family, strength=1.0))
    data, changed = scene(), []
    for seed in range(10):
        plain = still(data, np.random.default_rng(seed)).image.astype(int)
        out = weak(data, np.random.default_rng(seed))
        assert np.abs(out.image - plain).mean() < 1.0
        assert np.allclose(out.boxes, data.boxes * 1.5, atol=2.1)
        image = strong(data, np.random.default_rng(seed)).image
        changed.append(np.abs(image - plain).mean() > 2.0)
    assert sum(changed) >= 6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint8), (3, np.uint16), (1, np.uint16), (5, np.uint8)]
)
def test_other_depths_and_channels_work(family, channels, dtype):
    pipeline, data = compiled(load(family, strength=1.0)), scene(channels, dtype)
    changed = 0
    for seed in range(8):
        out = pipeline(data, np.random.default_rng(seed))
        assert out.image.shape == (HEIGHT, WIDTH, channels)
        assert out.image.dtype == dtype
        assert out.image.max() > np.iinfo(dtype).max * 0.3
        check(out)
        changed += bool(pipeline.applied)
    assert changed


@pytest.mark.parametrize("name", ["weather", "color", "occlusion", "randaugment"])
def test_floats_are_refused_by_the_name_of_the_transform(name):
    pipeline, data = compiled(load(name, strength=1.0)), scene(3, np.float32)

    def forty():
        for seed in range(40):
            pipeline(data, np.random.default_rng(seed))

    with pytest.raises(DataError, match=r"takes images of 8 or 16 bits, this one is float32"):
        forty()
    assert compiled(load("geometric"))(data, np.random.default_rng(0)).image.dtype == np.float32


@pytest.mark.parametrize(
    ("transform", "image", "message"),
    [
        (A.RandomRain(p=1.0), (np.uint8, 1), "RandomRain failed on a uint8 60x80x1 image"),
        (A.RandomSnow(p=1.0), (np.uint16, 3), "RandomSnow failed on a uint16 60x80x3.*float32"),
    ],
)
def test_albumentations_that_cannot_are_named(transform, image, message):
    dtype, channels = image
    pipeline = Pipeline([transform], height=60, width=80, resize="stretch", name="mine")
    data = scene(channels, dtype)
    data.keypoints = None
    with pytest.raises(DataError, match=message):
        pipeline(data, np.random.default_rng(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Affine(scale=[0.6, 1.4], translate=0.2, rotate=40.0, shear=15.0, hflip=0.5),
        lambda: Affine(hflip=0.5, vflip=0.5),
        lambda: ResizedCrop(scale=[0.3, 1.0], hflip=0.5),
        lambda: A.Perspective(scale=(0.05, 0.15), p=1.0),
        lambda: A.HorizontalFlip(p=1.0),
        Resize,
    ],
)
def test_keypoints_stay_on_their_pixels(make):
    """A white pixel each; after any transform it is found within a pixel of its keypoint."""
    points = np.array([[20.5, 15.5, 2.0], [60.5, 30.5, 2.0], [40.5, 50.5, 1.0]])
    image = np.zeros((60, 80, 3), np.uint8)
    for k, (x, y, _) in enumerate(points):
        image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2, k] = 255
    empty = np.zeros(0)
    data = Scene(
        image, np.zeros((0, 4)), empty.astype(int), empty.astype(bool), empty, keypoints=points
    )
    pipeline = Pipeline([make()], height=120, width=160, resize="letterbox")
    for seed in range(10):
        out = pipeline(data, np.random.default_rng(seed))
        assert out.keypoints.shape == (3, 3)
        for k, (x, y, seen) in enumerate(out.keypoints):
            if 12 < x < 148 and 12 < y < 108:
                weights = (out.image[..., k] - out.image.min(axis=2)).astype(float)
                ys, xs = np.mgrid[:120, :160] + 0.5
                assert abs((weights * xs).sum() / weights.sum() - x) < 0.6
                assert abs((weights * ys).sum() / weights.sum() - y) < 0.6
                assert seen == points[k, 2]
            if x < 0 or x > 160 or y < 0 or y > 120:
                assert seen == UNSEEN


def test_keypoints_of_objects_that_are_gone_go_with_them():
    pipeline = Pipeline([A.Crop(40, 0, 80, 60)], height=60, width=40, resize="stretch")
    out = pipeline(scene(), np.random.default_rng(0))
    assert out.labels.tolist() == [1]
    assert out.keypoints.shape == (1, 3, 3)
    assert out.keypoints[0, 0, :2].tolist() == [19.0, 38.0]


def test_a_hole_hides_keypoints_and_drops_what_is_wholly_below_it():
    node = {"own": {"transforms": [{"_target_": "cvtrain.augment.CutOut", "size": [0.3, 0.6]}]}}
    pipeline, data, hidden, dropped = compiled({**node, "min_visibility": 0.3}), scene(), 0, 0
    for seed in range(30):
        out = pipeline(data, np.random.default_rng(seed))
        check(out)
        hidden += int((out.keypoints[..., 2] == HIDDEN).sum())
        dropped += 2 - len(out.labels)
        gray = (out.image == 114).all(axis=2)
        for box, points in zip(out.boxes.round().astype(int), out.keypoints, strict=True):
            x0, y0, x1, y1 = box
            assert gray[y0:y1, x0:x1].mean() <= 0.75
            for x, y, seen in points:
                if gray[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2].all():
                    assert seen == HIDDEN
    assert hidden > 5
    assert dropped > 2


def test_pixel_families_run_at_the_networks_size():
    """Without a placing transform the resize comes first: a large original costs no more."""
    sizes = []

    class Spy(A.ImageOnlyTransform):
        def apply(self, img, **params):
            sizes.append(img.shape[:2])
            return img

    from cvtrain.augment.config import settled
    from cvtrain.augment.pipeline import build_pipeline

    large = scene()
    large.image = np.zeros((600, 800, 3), np.uint8)
    large.boxes, large.masks, large.mask, large.keypoints = large.boxes * 10, None, None, None

    def run(node):
        sizes.clear()
        made = build_pipeline(settled(node), lambda *_: Spy(p=1.0), 60, 80, resize="stretch")
        made(large, np.random.default_rng(0))
        return sizes

    assert run({"weather": {"transforms": ["spy"]}}) == [(60, 80)]
    assert run({"transforms": ["spy"], "weather": {"transforms": ["spy"]}}) == [
        (600, 800),
        (60, 80),
    ]
    assert run({"transforms": ["spy"]}) == [(600, 800)]
