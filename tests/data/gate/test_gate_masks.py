"""Semantic masks through the gate."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvtrain.data.dataset import VisionDataset


@pytest.fixture
def masks(dataset):
    """Three pairs in train, one in val, classes cat and dog."""
    dataset.kinds = frozenset({"mask"})
    for split, names in (("train", "abc"), ("val", "v")):
        for name in names:
            values = dataset.draws.integers(0, 2, (40, 60), np.uint8)
            values[:3] = 255
            dataset.save(f"masks/{name}.png", Image.fromarray(values))
            dataset.add(f"images/{name} ö.png", split=split, mask=f"masks/{name}.png")
    return dataset


def test_clean_masks_have_nothing(masks) -> None:
    assert masks.codes("semantic_segmentation") == {}


def break_mask(dataset, how: str) -> None:
    path = dataset.root / "masks/b.png"
    if how == "missing":
        path.unlink()
    elif how == "unnamed":
        dataset.rows["train"][1].mask = ""
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "unreadable":
        path.write_bytes(b"no image here")
    elif how == "truncated":
        dataset.save("masks/b.png", dataset.pixels().convert("L"))
        path.write_bytes(path.read_bytes()[:900])
    elif how == "size":
        Image.new("L", (59, 40)).save(path)
    elif how == "mode":
        dataset.save("masks/b.png", dataset.pixels())
    elif how == "value":
        values = np.zeros((40, 60), np.uint8)
        values[0, :7] = 2
        values[1, :3] = 9
        Image.fromarray(values).save(path)
    elif how == "deep value":
        values = np.zeros((40, 60), np.uint16)
        values[0, :7] = 300
        Image.fromarray(values).save(path)


HOW = {
    "missing": ("mask-missing", "there is no mask file 'masks/b.png'"),
    "unnamed": ("mask-missing", "there is no mask for this image"),
    "empty": ("mask-empty", "the file is empty (0 bytes)"),
    "unreadable": ("mask-unreadable", "not a readable image"),
    "truncated": ("mask-truncated", "the file ends early"),
    "size": ("mask-size", "the mask is 59 x 40, its image 60 x 40 pixels"),
    "mode": ("mask-mode", "RGB; a mask has one channel"),
    "value": ("mask-value", "value 2 (7 pixels), 9 (3 pixels); classes are 0..1, void is 255"),
    "deep value": ("mask-value", "value 300 (7 pixels); classes are 0..1, void is 255"),
}


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
@pytest.mark.parametrize("how", HOW)
def test_wrong_mask(masks, how: str, on_bad: str) -> None:
    break_mask(masks, how)
    report = masks.gate("semantic_segmentation", on_bad=on_bad)
    (problem,) = report.errors
    code, message = HOW[how]
    assert problem.code == code
    assert problem.message.startswith(message)
    kept = on_bad == "fix" and code == "mask-value"  # the loader takes those pixels for void
    assert report.counts["train"].used == (3 if kept else 2)
    assert problem.action == ("" if on_bad == "error" else "fixed" if kept else "image dropped")


def test_values_that_fix_makes_void_are_void_to_the_loader(masks) -> None:
    from cvtrain.data.dataset import VisionDataset

    break_mask(masks, "value")
    table = masks.gate("semantic_segmentation", on_bad="fix").tables["train"]
    loaded = VisionDataset(table, "semantic_segmentation", height=40, width=60, resize="stretch")
    mask = loaded[1].truth.mask.numpy()
    assert sorted(np.unique(mask).tolist()) == [0, 255]
    assert (mask == 255).sum() == 10


def test_masks_do_not_matter_to_other_tasks(masks) -> None:
    masks.kinds = frozenset({"mask", "boxes"})
    break_mask(masks, "value")
    assert masks.gate("detection").errors == []


def test_binary_masks(masks) -> None:
    for path in (masks.root / "masks").iterdir():
        values = np.asarray(Image.open(path))
        Image.fromarray((values == 1).astype(np.uint8) * 255).save(path)
    assert masks.codes() == {"class-unused": 1}  # 255 is void as long as nobody says otherwise
    masks.mask_values = np.array([0, 255])
    assert masks.codes() == {}
    break_mask(masks, "value")
    (problem,) = masks.gate().errors
    assert problem.message.endswith("classes are 0, 255, void is 255")


def test_palette_and_bit_masks_hold_indices(masks) -> None:
    values = np.asarray(Image.open(masks.root / "masks/a.png"))
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putdata(values.ravel().tolist())
    palette.save(masks.root / "masks/a.png")
    Image.fromarray(values == 1).save(masks.root / "masks/b.png")
    assert masks.codes() == {}


def test_mask_without_a_class_is_a_note(masks) -> None:
    Image.new("L", (60, 40), 255).save(masks.root / "masks/b.png")
    report = masks.gate()
    assert [(p.code, p.file) for p in report.notes] == [("mask-void", "images/b ö.png")]
    assert report.counts["train"].used == 3


@pytest.mark.parametrize(("split", "names"), [("train", "abc"), ("val", "v")])
@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_a_split_of_nothing_but_void_is_an_error(masks, split, names, on_bad) -> None:
    for name in names:
        Image.new("L", (60, 40), 255).save(masks.root / f"masks/{name}.png")
    report = masks.gate("semantic_segmentation", on_bad=on_bad)
    (problem,) = report.errors
    assert problem.code == "split-void"
    assert problem.message.startswith(f"every mask of {split} is void throughout")
    assert report.stopping


def test_a_test_split_without_labels_stops_nothing(masks) -> None:
    masks.save("masks/t.png", Image.new("L", (60, 40), 255))
    masks.add("images/t.png", split="test", mask="masks/t.png")
    assert masks.codes("semantic_segmentation")["mask-void"] == 1
    assert not masks.gate("semantic_segmentation").errors


def test_masks_as_jpeg_are_doubted(masks) -> None:
    values = np.zeros((40, 60), np.uint8)
    masks.rows["train"][1].mask = "masks/b.jpg"
    Image.fromarray(values).save(masks.root / "masks/b.jpg", quality=100)
    (problem,) = masks.gate("semantic_segmentation").notes
    assert (problem.code, problem.file) == ("mask-lossy", "masks/b.jpg")


def test_a_jpeg_counts_as_the_nearest_class_where_these_are_apart(masks) -> None:
    values = np.zeros((40, 60), np.uint8)
    values[5:30, 7:33] = 255
    for split, rows in masks.rows.items():
        for row in rows:
            row.mask = f"{split}{row.file[7]}.jpg"
            Image.fromarray(values).save(masks.root / row.mask, quality=60)
    masks.mask_values = np.array([0, 255])
    report = masks.gate("semantic_segmentation")
    assert not report.errors
    assert [p.code for p in report.notes] == ["mask-lossy"] * 4
    assert "of 2,400 pixels are not exactly a class's and count as the nearest" in (
        report.notes[0].message
    )
    data = VisionDataset(
        report.tables["train"], "semantic_segmentation", height=40, width=60, resize="stretch"
    )
    assert (data[0].target.mask == values // 255).all()


def test_a_jpeg_of_indices_is_refused(masks) -> None:
    masks.rows["train"][1].mask = "masks/b.jpg"
    values = np.zeros((40, 60), np.uint8)
    values[5:30, 7:33] = 1
    Image.fromarray(values).save(masks.root / "masks/b.jpg", quality=90)
    (problem,) = masks.gate("semantic_segmentation", strict=False).errors
    assert (problem.code, problem.file) == ("mask-jpeg", "masks/b.jpg")
    assert "0, 1 (void: 255) lie too close to tell them apart" in problem.message
    assert "PNG" in problem.fix
    masks.mask_values = np.array([0, 128])
    masks.save("masks/b.jpg", Image.fromarray(masks.draws.integers(30, 90, (40, 60), np.uint8)))
    found = masks.gate("semantic_segmentation", strict=False).errors
    (problem,) = [p for p in found if p.code == "mask-jpeg"]
    assert "are more than 24 from any of 0, 128" in problem.message


def palette_mask(dataset, name: str, colors: list[tuple[int, int, int]]) -> None:
    """Index i has the i-th color; all indices are used, and void."""
    pixels = np.arange(2400, dtype=np.uint8).reshape(40, 60) % len(colors)
    pixels[0, :9] = 255
    image = Image.frombytes("P", (60, 40), pixels.astype(np.uint8).tobytes())
    flat = [v for color in colors for v in color]
    image.putpalette(flat + [len(name)] * (768 - len(flat)))
    dataset.save(name, image)


BLACK, GREEN, RED = (0, 0, 0), (0, 128, 0), (128, 0, 0)


def test_an_index_has_one_color_over_the_set(masks) -> None:
    masks.names = ("background", "leaf", "fruit")
    for name in "abcv":
        palette_mask(masks, f"masks/{name}.png", [BLACK, GREEN, RED])
    palette_mask(masks, "masks/a.png", [BLACK, GREEN])  # trimmed: nothing contradicts
    assert masks.codes("semantic_segmentation") == {}
    palette_mask(masks, "masks/b.png", [GREEN, BLACK, RED])
    (problem,) = masks.gate("semantic_segmentation", strict=False).errors
    assert (problem.code, problem.file) == ("mask-palette", "masks/b.png")
    assert problem.message == "index 0 is the color 0 128 0, in most other masks 0 0 0"
    assert "data.palette=FILE" in problem.fix
    assert "data.reader.mask_values=" in problem.fix
    masks.by_value = True
    assert masks.codes("semantic_segmentation") == {}
    masks.by_value = False
    assert masks.gate("semantic_segmentation", on_bad="drop").rejected == 1
    grays = [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    palette_mask(masks, "masks/b.png", grays)  # as tools write that think in indices
    assert masks.codes("semantic_segmentation") == {}


def test_black_that_is_not_index_0_is_a_note(masks) -> None:
    for name in "abcv":
        palette_mask(masks, f"masks/{name}.png", [GREEN, BLACK])
    (problem,) = masks.gate("semantic_segmentation").notes
    assert problem.code == "palette-order"
    assert problem.message.endswith("black is index 1 (dog), index 0 (cat) is the color 0 128 0")


def test_class_of_no_pixel_is_a_note(masks) -> None:
    masks.names = ("cat", "dog", "emu")
    assert masks.codes() == {"class-unused": 1}


@pytest.mark.parametrize("mixed", [True, False])
def test_255_in_masks_without_the_object_is_a_note(masks, mixed: bool) -> None:
    for name in "abcv":
        values = masks.draws.integers(0, 2, (40, 60), np.uint8)
        values *= 255 if mixed and name == "b" else 1
        masks.save(f"masks/{name}.png", Image.fromarray(values))
    expected = {"mask-void-only": 1} if mixed else {}
    assert masks.codes("semantic_segmentation") == expected
