"""RandAugment and TrivialAugment: the operations against what they are defined to do."""

from __future__ import annotations

import random
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from cvtrain.augment import RandAugment, TrivialAugment
from cvtrain.augment.pipeline import Pipeline
from cvtrain.augment.policies import _PIXEL_OPS, GEOMETRIC, OPS
from cvtrain.errors import UsageError

IMAGE = np.random.default_rng(0).integers(20, 220, (40, 50, 3), dtype=np.uint8)
REFERENCES = {
    "brightness": lambda i, v: ImageEnhance.Brightness(i).enhance(1 + v),
    "contrast": lambda i, v: ImageEnhance.Contrast(i).enhance(1 + v),
    "color": lambda i, v: ImageEnhance.Color(i).enhance(1 + v),
    "sharpness": lambda i, v: ImageEnhance.Sharpness(i).enhance(1 + v),
    "posterize": lambda i, v: ImageOps.posterize(i, int(v)),
    "solarize": lambda i, v: ImageOps.solarize(i, int(v * 255)),
    "autocontrast": lambda i, v: ImageOps.autocontrast(i),
    "equalize": lambda i, v: cv2.merge([cv2.equalizeHist(c) for c in cv2.split(np.asarray(i))]),
}


@pytest.mark.parametrize("op", REFERENCES)
@pytest.mark.parametrize("magnitude", [-0.6, 0.4])
def test_pixel_operations_are_those_of_pillow_and_opencv(op, magnitude):
    value = {"posterize": 5, "solarize": 0.5}.get(op, magnitude)
    ours = _PIXEL_OPS[op](IMAGE, value).astype(int)
    theirs = np.asarray(REFERENCES[op](Image.fromarray(IMAGE), value)).astype(int)
    inner = np.s_[1:-1, 1:-1]  # Pillow does not sharpen the outermost pixels
    assert np.abs(ours - theirs)[inner].max() <= 2


@pytest.mark.parametrize("op", sorted(REFERENCES))
def test_16_bits_are_8_bits_finer(op):
    value = {"posterize": 5, "solarize": 0.5}.get(op, 0.4)
    wide = _PIXEL_OPS[op](IMAGE.astype(np.uint16) * 257, value)
    assert wide.dtype == np.uint16
    if op != "posterize":  # whose steps begin elsewhere
        assert np.abs(wide / 257 - _PIXEL_OPS[op](IMAGE, value)).max() <= 2


def ops_of(policy, count):
    pipeline = Pipeline([policy], height=40, width=50, resize="stretch")
    from cvtrain.augment.scene import Scene

    empty = np.zeros(0)
    data = Scene(IMAGE, np.zeros((0, 4)), empty.astype(int), empty.astype(bool), empty)
    found = []
    for seed in range(count):
        pipeline(data, np.random.default_rng(seed))
        found.append(list(policy._drawn))
    return found


def test_randaugment_draws_n_operations_of_one_magnitude():
    drawn = ops_of(RandAugment(num_ops=3, magnitude=15), 300)
    assert all(len(ops) == 3 for ops in drawn)
    counts = Counter(op for ops in drawn for op, _ in ops)
    assert set(counts) == set(OPS)
    assert min(counts.values()) > 900 / 14 / 2
    values = {op: {abs(v) for ops in drawn for o, v in ops if o == op} for op in OPS}
    assert values["rotate"] == {15.0}
    assert values["translate x"] == {0.225}
    assert values["shear y"] == {0.15}
    assert values["color"] == {0.45}
    assert values["posterize"] == {6}
    assert values["solarize"] == {0.5}
    signs = {v > 0 for ops in drawn for o, v in ops if o == "rotate"}
    assert signs == {True, False}


def test_trivialaugment_draws_one_of_any_magnitude():
    drawn = ops_of(TrivialAugment(), 600)
    assert all(len(ops) == 1 for ops in drawn)
    turns = np.array([v for ((op, v),) in drawn if op == "rotate"])
    assert turns.min() < -90
    assert turns.max() > 90
    bits = {v for ((op, v),) in drawn if op == "posterize"}
    assert bits == {2, 3, 4, 5, 6, 7, 8}


@pytest.mark.parametrize("op", GEOMETRIC)
def test_a_geometric_operation_moves_a_box_as_it_says(op, monkeypatch):
    policy = RandAugment(shift=0.0, hflip=0.0)
    monkeypatch.setattr(policy, "choose", lambda: [(op, 1.0)])
    policy.bind(40, 50, "stretch")
    policy.set_random_state(np.random.default_rng(0), random.Random(0))
    matrix = policy.draw(40, 50)
    value = dict(policy._drawn)[op]
    center = matrix @ [25, 20, 1]
    if op.startswith("translate"):
        assert center.tolist() == (
            [25 + 50 * value, 20] if op[-1] == "x" else [25, 20 + 40 * value]
        )
    else:
        assert center == pytest.approx([25, 20])
        right = matrix @ [35, 20, 1] - center
        expected = {
            "rotate": [10 * np.cos(np.radians(value)), 10 * np.sin(np.radians(value))],
            "shear x": [10, 0],
            "shear y": [10, 10 * value],
        }[op]
        assert right == pytest.approx(expected)


@pytest.mark.parametrize("arguments", [{"magnitude": 31}, {"num_ops": -1}, {"shift": 2}])
def test_ranges(arguments):
    with pytest.raises(UsageError, match=f"RandAugment {next(iter(arguments))}"):
        RandAugment(**arguments)
