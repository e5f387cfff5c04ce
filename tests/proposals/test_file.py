"""Files of proposals: round trip, other images, damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvtrain.data.table import Strings, Table
from cvtrain.errors import CvtrainError, DataError, RunError, UsageError
from cvtrain.proposals.file import ProposalFile, write_proposals
from cvtrain.proposals.selective_search import Boxes

Photos = Callable[..., Table]


def boxes(count: int, seed: int = 0) -> Boxes:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 20, (count, 2))
    found = np.concatenate([corners, corners + rng.integers(1, 20, (count, 2))], axis=1)
    scores = np.sort(rng.random(count))[::-1]
    return Boxes(found.astype(np.float32), scores.astype(np.float32), count)


def write(path: Path, table: Table, counts: list[int]) -> list[Boxes]:
    found = [boxes(n, i) for i, n in enumerate(counts)]
    files = [table.files[i] for i in range(len(table))]
    write_proposals(path, files, table.sizes, found, {"name": "test"})
    return found


def test_round_trip(photos: Photos, tmp_path: Path) -> None:
    table = photos(names=["größe.png", "b.png", "c.png"])
    found = write(tmp_path / "p.npz", table, [5, 0, 3])
    source = ProposalFile(tmp_path / "p.npz", max_boxes=4)
    prepared = source.prepare({"train": table.take([0, 1]), "val": table.take([2])})
    assert (prepared.images, prepared.made) == (3, 0)
    first = source.boxes("größe.png")
    assert np.array_equal(first.boxes, found[0].boxes[:4])
    assert np.array_equal(first.scores, found[0].scores[:4])
    assert (first.boxes.dtype, first.total) == (np.float32, 5)
    assert source.boxes("b.png").boxes.tolist() == [[0, 0, 48, 40]], "the whole image"
    assert len(source.boxes("c.png").boxes) == 3
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["p.npz"]


def test_a_file_of_ones_own_needs_three_arrays(photos: Photos, tmp_path: Path) -> None:
    table = photos(2)
    np.savez(
        tmp_path / "own.npz",
        files=["001.png", "other.png", "000.png"],
        starts=[0, 1, 1, 3],
        boxes=[[0, 0, 5, 5], [1, 2, 3, 4], [0.5, 0.5, 47.5, 40]],
    )
    source = ProposalFile(tmp_path / "own.npz")
    source.prepare({"train": table})
    assert source.boxes("001.png").boxes.tolist() == [[0, 0, 5, 5]]
    assert source.boxes("000.png").boxes.tolist() == [[1, 2, 3, 4], [0.5, 0.5, 47.5, 40]]


def test_other_images_are_refused(photos: Photos, tmp_path: Path) -> None:
    write(tmp_path / "p.npz", photos(5), [2] * 5)
    source = ProposalFile(tmp_path / "p.npz")
    other = photos(names=["x.png", "y.png"], folder="other")
    with pytest.raises(DataError, match=r"boxes of other images: none of the 2 images is in it"):
        source.prepare({"train": other})
    names = ["000.png", *(f"new{i}.png" for i in range(5))]
    more = replace(photos(6), files=Strings(names))
    with pytest.raises(DataError, match=r"lacks 5 of the 6 images: new0.png, new1.png, new2.png, "):
        source.prepare({"train": more})
    with pytest.raises(DataError, match=r"lacks x.png"):
        source.boxes("x.png")
    grown = replace(photos(5), sizes=np.tile(np.array([[50, 60]], np.int32), (5, 1)))
    with pytest.raises(DataError, match=r"000.png was 40 x 48 when its boxes were made, is 50 x"):
        source.prepare({"train": grown})


@pytest.mark.parametrize(
    "box", [[0, 0, 49, 10], [5, 5, 5, 9], [np.nan, 0, 4, 4], [-1, 0, 4, 4], [9, 0, 4, 4]]
)
def test_boxes_that_are_none_of_the_image(photos: Photos, tmp_path: Path, box: list) -> None:
    np.savez(tmp_path / "p.npz", files=["000.png"], starts=[0, 2], boxes=[[0, 0, 1, 1], box])
    source = ProposalFile(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"box 1 of 000.png is .*; boxes are x0, y0, x1, y1 inside"):
        source.prepare({"train": photos(1)})


GOOD: dict[str, Any] = {"files": ["a", "b"], "starts": [0, 1, 2], "boxes": [[0, 0, 1, 1]] * 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boxes": None}, "no array 'boxes'"),
        ({"files": [1, 2]}, "files is no list of names"),
        ({"files": ["a", "a"]}, "names an image twice"),
        ({"starts": [0, 2]}, "starts does not fit"),
        ({"starts": [0, 2, 1]}, "starts does not fit"),
        ({"starts": [0.0, 1.0, 2.0]}, "starts does not fit"),
        ({"boxes": [[0, 0, 1]] * 2}, "boxes is not"),
        ({"scores": [1.0]}, "scores does not fit"),
        ({"sizes": [[1, 1]]}, "sizes does not fit"),
        ({"files": [["a"], ["b"]]}, "files is no list of names"),
    ],
)
def test_damaged_files(tmp_path: Path, change: dict, said: str) -> None:
    arrays = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DataError, match=said) as error:
        ProposalFile(tmp_path / "p.npz")
    assert "\n" not in str(error.value)


def test_no_file_of_proposals(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        ProposalFile(tmp_path / "none.npz")
    write(tmp_path / "p.npz", photos(2), [3, 3])
    whole = (tmp_path / "p.npz").read_bytes()
    pickled = np.array([{"a": 1}], object)
    np.savez(tmp_path / "pickled.npz", files=pickled, starts=[0], boxes=[])
    for name, content in {
        "text.npz": b"hello",
        "empty.npz": b"",
        "cut.npz": whole[: len(whole) // 2],
        "pickled.npz": (tmp_path / "pickled.npz").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CvtrainError) as error:
            ProposalFile(tmp_path / name)
        assert "is no file of proposals" in str(error.value)
        assert "\n" not in str(error.value)


def test_any_wrong_byte_is_one_line(photos: Photos, tmp_path: Path) -> None:
    """In names, sizes, checksums and what is compressed; some, of no account, are not noticed."""
    write(tmp_path / "p.npz", photos(2), [3, 3])
    whole, refused = (tmp_path / "p.npz").read_bytes(), []
    for place in range(0, len(whole), 3):
        wrong = bytearray(whole)
        wrong[place] ^= 0xFF
        (tmp_path / "wrong.npz").write_bytes(wrong)
        try:
            ProposalFile(tmp_path / "wrong.npz")
        except DataError as error:
            refused.append(error)
    assert len(refused) > 200
    assert {"BadZipFile", "error"} <= {type(e.__cause__).__name__ for e in refused}  # zlib.error
    assert not [e for e in refused if "\n" in str(e)]


def test_a_file_that_cannot_be_written(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*choose another run_dir"):
        write(tmp_path / "blocked" / "p.npz", photos(1), [1])
