"""Run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cvtrain.data.formats import rle


def runs_of(mask: np.ndarray) -> np.ndarray:
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return np.concatenate([[0], runs]) if flat[0] else runs


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(60):
        height, width = rng.integers(1, 300, 2)
        out.append((rng.random((height, width)) < rng.random()).astype(np.uint8))
        block = np.zeros((height, width), np.uint8)
        block[height // 3 :, width // 4 :] = 1
        out.append(block)
    return out


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


def test_compress_is_that_of_pycocotools(masks):
    for mask in masks:
        assert rle.compress(runs_of(mask)) == encode(mask)


def test_good_ones_pass_and_every_other_size_fails(masks, monkeypatch):
    encodings = [encode(mask) for mask in masks]
    pixels = [mask.size for mask in masks]
    assert not rle.broken(encodings, pixels).any()
    assert rle.broken(encodings, [p + 1 for p in pixels]).all()
    monkeypatch.setattr(rle, "_CHUNK", 100)  # cut between any two
    assert not rle.broken(encodings, pixels).any()


def test_a_bad_one_does_not_touch_its_neighbors(masks):
    encodings = [encode(mask) for mask in masks]
    pixels = [mask.size for mask in masks]
    for at, bad in ((0, ""), (7, "~~"), (20, "ooo"), (50, "é"), (119, "o" * 40 + "1"), (60, "-1")):
        encodings[at] = bad
    assert np.flatnonzero(rle.broken(encodings, pixels)).tolist() == [0, 7, 20, 50, 60, 119]


@pytest.mark.parametrize(
    ("encoding", "pixels", "bad"),
    [
        ("0", 0, False),  # one run of 0
        ("4", 4, False),
        ("N6", 4, True),  # -2, 6: adds up, but a run cannot be negative
        ("", 0, True),
        ("P", 0, True),  # more bits are said to follow
    ],
)
def test_small_cases(encoding, pixels, bad):
    assert rle.broken([encoding], [pixels]).tolist() == [bad]


def test_none_at_all():
    assert rle.broken([], []).tolist() == []
