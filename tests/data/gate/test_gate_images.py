"""Image files through the gate: every error left out and counted, every note losing nothing."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cvtrain.data.decode import decode
from cvtrain.data.table import CROWD, DIFFICULT
from cvtrain.errors import DataError, UsageError


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def spoil(dataset, name: str, how: str) -> None:
    path = dataset.root / name
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "unreadable":
        path.write_bytes(b"not an image, whatever its name says")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "bomb":
        whole = bytearray(path.read_bytes())
        whole[16:24] = (30_000).to_bytes(4, "big") * 2
        whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
        path.write_bytes(bytes(whole))


BAD = ["missing", "empty", "unreadable", "truncated", "bomb"]


@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_bad_file_is_left_out_and_counted(dataset, apart, how: str, on_bad: str) -> None:
    for name in ("a.png", "bild mit Ä.png", "c.png"):
        dataset.add(name, boxes=apart(2))
    spoil(dataset, "bild mit Ä.png", how)
    report = dataset.gate(on_bad=on_bad)
    (problem,) = report.errors
    assert (problem.code, problem.file, problem.split) == (
        f"image-{how}",
        "bild mit Ä.png",
        "train",
    )
    assert "\n" not in problem.message
    assert problem.fix
    count = report.counts["train"]
    assert (count.images, count.used, count.rejected) == (3, 2, 1)
    assert (count.annotations, count.annotations_used) == (6, 4)
    table = report.tables["train"]
    assert [table.files[i] for i in range(2)] == ["a.png", "c.png"]
    assert table.sizes.tolist() == [[40, 60], [40, 60]]
    assert len(report.stopping) == (1 if on_bad == "error" else 0)
    assert problem.action == ("" if on_bad == "error" else "image dropped")


def test_bomb_message_says_the_limit(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    spoil(dataset, "a.png", "bomb")
    (problem, _) = dataset.gate().errors
    assert problem.message == "900,000,000 pixels, more than the limit of 178,956,970"


def test_a_problem_of_the_reader_is_not_told_twice(dataset, box) -> None:
    from cvtrain.data.formats.base import problem

    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    spoil(dataset, "b.png", "missing")
    dataset.problems["train"] = [problem("image-missing", "x.json", "there is none", image=1)]
    report = dataset.gate()
    assert [(p.file, p.split) for p in report.errors] == [("x.json", "train")]
    assert report.counts["train"].rejected == 1


def test_problems_without_a_row_count_as_images(dataset, box) -> None:
    from cvtrain.data.formats.base import problem

    dataset.add("a.png", boxes=[box])
    dataset.problems["train"] = [
        problem("record-malformed", "x.json", "no file_name", where="images[3]"),
        problem("record-malformed", "x.json", "no id", where="images[4]"),
        problem("annotation-malformed", "x.json", "bbox", where="annotations[4]"),
    ]
    count = dataset.gate().counts["train"]
    assert (count.images, count.used, count.rejected) == (3, 1, 2)


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "a/../../b.png"])
def test_path_that_leaves_the_root_is_never_opened(dataset, box, name: str, monkeypatch) -> None:
    dataset.add("a.png", boxes=[box])
    from cvtrain.data.gate import cache

    opened: list[str] = []
    real = cache.probe_files

    def spy(paths, **options):
        opened.extend(paths)
        return real(paths, **options)

    monkeypatch.setattr(cache, "probe_files", spy)
    dataset.rows["train"].append(type(dataset.rows["train"][0])(name, [box]))
    report = dataset.gate()
    assert [p.code for p in report.errors] == ["path-outside-root"]
    assert report.counts["train"].rejected == 1
    assert opened
    assert all(path.startswith(str(dataset.root)) for path in opened)
    assert not any("outside" in path or "b.png" in path for path in opened)


def test_links_are_followed(dataset, box, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    dataset.pixels().save(elsewhere / "a.png")
    (dataset.root / "linked").symlink_to(elsewhere)
    dataset.add("linked/a.png", boxes=[box])
    assert dataset.codes() == {"class-unused": 1}


@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_annotated_size_differs(dataset, box, on_bad: str) -> None:
    dataset.add("a.png", boxes=[box], size=(40, 60))
    dataset.add("b.png", boxes=[[5, 5, 70, 30]], size=(400, 600))
    report = dataset.gate(on_bad=on_bad)
    first = report.errors[0]
    assert (first.code, first.file) == ("size-mismatch", "b.png")
    assert first.message == "annotated as 600 x 400, the file has 60 x 40 pixels"
    assert len(report.errors) == 1  # resized as a whole: fix does not guess in which pixels it is
    assert len(report.tables["train"]) == 1


def test_the_files_size_counts_where_nothing_was_resized(dataset, box) -> None:
    dataset.add("b.png", boxes=[[5, 5, 70, 30]], size=(40, 61))
    report = dataset.gate(on_bad="fix")  # the box is held against the file
    assert [p.code for p in report.errors] == ["size-mismatch", "box-outside"]
    assert report.tables["train"].boxes[0].tolist() == [5, 5, 60, 30]
    assert report.tables["train"].sizes.tolist() == [[40, 60]]


def test_half_a_size_is_compared(dataset, box) -> None:
    dataset.add("a.png", boxes=[box], size=(-1, 60))
    dataset.add("b.png", boxes=[box], size=(41, -1))
    assert [p.file for p in dataset.gate().errors] == ["b.png"]


def test_exif_with_upright_size_is_a_note(dataset, box) -> None:
    dataset.save("a.jpg", exif=exif(6))
    dataset.add("a.jpg", boxes=[[5, 5, 25, 55]], size=(60, 40))
    report = dataset.gate()
    assert [p.code for p in report.problems if p.code != "class-unused"] == ["exif-rotation"]
    assert report.tables["train"].sizes.tolist() == [[60, 40]]
    assert report.tables["train"].boxes.tolist() == [[5, 5, 25, 55]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("on_bad", ["error", "fix", "drop"])
def test_exif_with_stored_size_turns_the_boxes(dataset, orientation: int, on_bad: str) -> None:
    """A white rectangle, annotated as stored; after the fix the box is where the loader sees it."""
    from cvtrain.data.decode import decode

    array = np.zeros((40, 60), np.uint8)
    array[4:10, 20:50] = 255
    dataset.save("a.png", Image.fromarray(array), exif=exif(orientation))
    ring = b"[[20,4,50,4,50,10,20,10]]"
    dataset.add("a.png", boxes=[[20, 4, 50, 10]], size=(40, 60), segments=[ring])
    dataset.add("b.png", boxes=[[1, 1, 9, 9]], segments=[b""])
    report = dataset.gate(on_bad=on_bad)
    (problem,) = report.errors
    assert problem.code == "size-mismatch-exif"
    assert str(orientation) in problem.message
    if on_bad != "fix":
        assert len(report.tables["train"]) == 1
        return
    table = report.tables["train"]
    upright = decode(dataset.root / "a.png", 1)[..., 0]
    rows, columns = np.nonzero(upright)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert table.boxes[0].tolist() == seen
    points = np.reshape(json.loads(table.segments[0]), (-1, 2))
    assert [*points.min(0), *points.max(0)] == seen


def test_exif_turns_runs_too(dataset) -> None:
    from cvtrain.data.masks import from_mask, to_mask

    array = np.zeros((40, 60), np.uint8)
    array[4:10, 20:50] = 1
    array[4, 20] = 0
    dataset.save("a.png", Image.fromarray(array), exif=exif(6))
    segment = from_mask(array)
    dataset.add("a.png", boxes=[[20, 4, 50, 10]], size=(40, 60), segments=[segment])
    table = dataset.gate(on_bad="fix").tables["train"]
    assert np.array_equal(to_mask(table.segments[0], 60, 40), np.rot90(array, -1))


@pytest.mark.parametrize(
    ("mode", "suffix", "said"),
    [
        ("L", "png", "grayscale; read as RGB"),
        ("P", "png", "palette; read as RGB, by its palette"),
        ("RGBA", "png", "RGB with alpha; read as RGB, the alpha channel is not used"),
        ("LA", "png", "grayscale with alpha; read as RGB, the alpha channel is not used"),
        ("CMYK", "jpg", "CMYK; read as RGB"),
        ("1", "png", "black and white; read as RGB"),
    ],
)
def test_color_modes_are_notes(dataset, box, mode: str, suffix: str, said: str) -> None:
    dataset.add(f"a.{suffix}", image=dataset.pixels().convert(mode), boxes=[box])
    report = dataset.gate()
    (note,) = [p for p in report.notes if p.code == "color-mode"]
    assert note.message == said
    assert report.errors == []
    assert len(report.tables["train"]) == 1


def test_color_modes_follow_the_channels_asked_for(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box], image=dataset.pixels().convert("L"))
    notes = [p for p in dataset.gate(channels=1).notes if p.code == "color-mode"]
    assert [(p.file, p.message) for p in notes] == [("a.png", "RGB; read as gray")]


def test_16_bits_are_a_note(dataset, box) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, 3), np.uint16)
    cv2.imwrite(str(dataset.root / "rgb.png"), deep)
    cv2.imwrite(str(dataset.root / "gray.png"), deep[..., 0])
    dataset.add("rgb.png", boxes=[box])
    dataset.add("gray.png", boxes=[box])
    report = dataset.gate()
    assert report.errors == []
    message = [(p.file, p.message) for p in report.notes if p.code == "bit-depth"]
    assert message == [("rgb.png", "16 bits per channel"), ("gray.png", "16 bits per channel")]
    assert [p.file for p in report.notes if p.code == "color-mode"] == ["gray.png"]


def test_extension_that_lies_is_a_note(dataset, box) -> None:
    dataset.pixels().save(dataset.root / "a.jpg", format="PNG")
    dataset.pixels().save(dataset.root / "b.JPEG", format="JPEG")
    dataset.pixels().save(dataset.root / "c.png", format="WEBP")
    for name in ("a.jpg", "b.JPEG", "c.png"):
        dataset.add(name, boxes=[box])
    report = dataset.gate()
    lies = [(p.file, p.message) for p in report.notes if p.code == "extension-lies"]
    assert lies == [("a.jpg", ".jpg file holds a PNG"), ("c.png", ".png file holds a WEBP")]
    assert report.counts["train"].used == 3


def test_frames_are_a_note(dataset, box) -> None:
    frames = [dataset.pixels() for _ in range(3)]
    dataset.add("a.png", boxes=[box])
    frames[0].save(dataset.root / "b.gif", save_all=True, append_images=frames[1:])
    dataset.add("b.gif", boxes=[box])
    message = [p for p in dataset.gate().notes if p.code == "image-frames"]
    assert [(p.file, p.message) for p in message] == [
        ("b.gif", "3 frames or pages; the first is used")
    ]


def test_channels_that_do_not_fit_are_errors(dataset, box) -> None:
    four = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8))
    dataset.add("a.png", boxes=[box], image=four)
    dataset.add("b.png", boxes=[box])
    report = dataset.gate(channels=4, splits=["train"])
    assert [(p.code, p.file) for p in report.errors if p.split == "train"] == [
        ("image-channels", "b.png")
    ]
    assert "3 channels, data.channels=4" in report.errors[0].message


def test_copies_and_leaks(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    dataset.save("copy.bmp", Image.open(dataset.root / "a.png"))
    dataset.add("copy.bmp", boxes=[box])
    for name, origin in (("v.png", "b.png"), ("w.png", "b.png")):
        dataset.add(name, split="val", boxes=[box], image=Image.open(dataset.root / origin))
    report = dataset.gate()
    message = {
        p.file: (p.code, p.split, p.message) for p in report.notes if p.code != "class-unused"
    }
    assert message == {
        "copy.bmp": ("duplicate-image", "train", "the same pixels as 'a.png'"),
        "v.png": ("leak", "val", "the same pixels as 'b.png' in train"),
        "w.png": ("leak", "val", "the same pixels as 'b.png' in train"),
    }
    assert (report.images, report.used, report.errors) == (5, 5, [])


def test_copies_of_two_classes_say_so(dataset) -> None:
    dataset.kinds = frozenset({"label"})
    dataset.add("cat/a.png", label=0)
    dataset.add("dog/a.png", label=1, image=Image.open(dataset.root / "cat/a.png"))
    dataset.add("v.png", split="val", label=0)
    message = [p.message for p in dataset.gate().notes if p.code == "duplicate-image"]
    assert message == ["the same pixels as 'cat/a.png', there 'cat', here 'dog'"]


def test_rows_given_twice(dataset, box) -> None:
    """A reader of someone's own may do so; image ids would collide in predictions.json."""
    dataset.add("a.png", boxes=[box])
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    report = dataset.gate(on_bad="drop")
    assert [p.code for p in report.errors] == ["duplicate-file"]
    assert [report.tables["train"].files[i] for i in range(2)] == ["a.png", "b.png"]


def test_ids_given_twice(dataset, box) -> None:
    for name, ident in (("a.png", 7), ("b.png", 7), ("c.png", 8)):
        dataset.add(name, boxes=[box], ident=ident)
    dataset.add("v.png", split="val", boxes=[box], ident=7)  # another split's ids are its own
    report = dataset.gate(on_bad="fix")
    assert [(p.code, p.file, p.message) for p in report.errors] == [
        ("duplicate-image-id", "b.png", "id 7 is also that of 'a.png'")
    ]
    assert report.tables["train"].ids.tolist() == [7, 8]


def test_images_without_objects_are_kept(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png")
    report = dataset.gate("detection")
    assert [p.file for p in report.notes if p.code == "image-without-annotation"] == ["b.png"]
    assert len(report.tables["train"]) == 2


def test_localization_wants_an_object(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png")
    dataset.add("c.png", boxes=[[np.nan] * 4])
    dataset.add("v.png", split="val", boxes=[box])
    report = dataset.gate("localization", on_bad="drop")
    found = [(p.code, p.file) for p in report.errors]
    assert found == [
        ("box-nan", "c.png"),
        ("image-without-object", "b.png"),
        ("image-without-object", "c.png"),
    ]
    assert len(report.tables["train"]) == 1


def test_images_of_several_objects_are_left_out_if_asked(dataset, box) -> None:
    """Crowds and difficult objects count where nothing else does."""
    small = [1.0, 1.0, 4.0, 4.0]
    dataset.add("one.png", boxes=[box])
    dataset.add("two.png", boxes=[box, small])
    dataset.add("one_and_a_crowd.png", boxes=[box, small], flags=[0, CROWD])
    dataset.add("two_difficult.png", boxes=[box, small], flags=[DIFFICULT, DIFFICULT])
    dataset.add("one_mended.png", boxes=[box, [np.nan] * 4])
    dataset.add("v.png", split="val", boxes=[box])
    assert len(dataset.gate("localization", on_bad="drop").tables["train"]) == 5
    assert len(dataset.gate("detection", on_bad="drop", object_choice="only").tables["train"]) == 5
    report = dataset.gate("localization", on_bad="drop", object_choice="only")
    found = [(p.file, p.message, p.action) for p in report.notes if p.code.endswith("objects")]
    assert found == [
        ("two.png", "2 objects are on it, and data.object=only", "image dropped"),
        ("two_difficult.png", "2 objects are on it, and data.object=only", "image dropped"),
    ]
    files = report.tables["train"].files
    assert [files[i] for i in range(len(files))] == [
        *("one.png", "one_and_a_crowd.png", "one_mended.png")
    ]
    assert report.counts["train"].rejected == report.to_json()["rejected"] == 2
    assert report.to_json()["codes"]["image-several-objects"] == 2
    assert "image-several-objects 2" in "\n".join(report.summary_lines())
    with pytest.raises(UsageError, match=r"data\.object=all: choose one of largest, only"):
        dataset.gate("localization", object_choice="all")


def test_drawn_scenes_of_several_objects_are_left_out_too() -> None:
    from cvtrain.data.gate.run import run_gate
    from cvtrain.data.shapes import ShapesReader

    reader = ShapesReader("localization", 30, 10, 0, max_objects=3, scene_size=48)
    report = run_gate(reader, "localization", object_choice="only", progress=False)
    table = report.tables["train"]
    assert 0 < len(table) < 30
    assert (np.diff(table.starts) == 1).all()
    assert report.counts["train"].rejected == 30 - len(table)


def test_unlisted_files_are_said(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.unlisted = ["forgotten.png", "x/y.png"]
    report = dataset.gate()
    assert [p.file for p in report.notes if p.code == "file-unlisted"] == dataset.unlisted
    assert report.to_json()["unlisted"] == 2
    assert report.counts["train"].images == 1


def test_strict_raises_with_the_first_few(dataset, box) -> None:
    for i in range(8):
        dataset.add(f"{i}.png", boxes=[box])
        if i:
            spoil(dataset, f"{i}.png", "empty")
    with pytest.raises(DataError) as caught:
        dataset.gate(strict=True)
    lines = str(caught.value).splitlines()
    assert "7 errors in the data (image-empty 7)" in lines[0]
    assert "cvtrain check" in lines[0]
    assert "data.on_bad=fix|drop" in lines[0]
    assert lines[1].startswith("  1.png: the file is empty (0 bytes) [image-empty] -> ")
    assert len(lines) == 7
    assert lines[-1] == "  ... and 2 more"


def test_codes_of_someones_own_reader(dataset, box) -> None:
    from cvtrain.data.table import Problem

    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box])
    own = Problem("b.xyz", "", "my-code", "error", "no good", "mend it", image=1, rejects="image")
    other = Problem("b.xyz", "", "my-code", "error", "no good", "mend it")
    dataset.problems["train"] = [own]
    report = dataset.gate(on_bad="drop")
    assert (report.counts["train"].rejected, report.stopping) == (1, [])
    dataset.problems["train"] = [other]
    assert len(dataset.gate(on_bad="drop").stopping) == 1  # nothing says how to go on


def test_what_is_not_read_is_said(dataset, box) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    (dataset.root / "b.dng").write_bytes(b"x")
    (dataset.root / "c").write_bytes((dataset.root / "a.png").read_bytes())
    report = dataset.gate("detection")
    found = [(p.file, p.message) for p in report.notes if p.code == "file-not-read"]
    assert found == [
        ("c", "1 image without an extension is not read: c"),
        ("b.dng", "1 .dng file is not read: b.dng"),
    ]
    assert {message for _, message in found} <= set(report.summary_lines())
    assert report.unlisted == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_float_images_are_finite(dataset, box, value, channels) -> None:
    shape = (40, 60, 4) if channels == 4 else (40, 60)
    for name in "abv":
        pixels = dataset.draws.random(shape, np.float32)
        if name == "b":
            pixels[5, 7:9] = value
        path = dataset.root / f"{name}.tif"
        cv2.imwrite(str(path), pixels)
        dataset.add(path.name, split="val" if name == "v" else "train", boxes=[box])
    report = dataset.gate("detection", strict=False, channels=channels)
    (problem,) = report.errors
    assert (problem.code, problem.file) == ("image-not-finite", "b.tif")
    assert "values are NaN or infinit" in problem.message
    assert dataset.gate("detection", on_bad="drop", channels=channels).rejected == 1
    with pytest.raises(DataError, match="NaN or infinite"):
        decode(dataset.root / "b.tif", channels)


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_the_range_of_16_bit_files_is_said(dataset, box, shape, ending) -> None:
    for n, name in enumerate("abv"):
        pixels = dataset.draws.integers(0, 3000, shape, np.uint16)
        pixels[3, 5] = 4000 + n
        cv2.imwrite(str(dataset.root / f"{name}.{ending}"), pixels)
        split = "val" if name == "v" else "train"
        dataset.add(f"{name}.{ending}", split=split, boxes=[box])
    message = [p.message for p in dataset.gate("detection").notes if p.code == "value-range"]
    assert message == [
        "values of the 2 16-bit files of train reach 4,001 of 65,535",
        "values of the 1 16-bit file of val reach 4,002 of 65,535",
    ]


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3)])
@pytest.mark.parametrize(
    ("low", "high", "code"),
    [(0.25, 1.0, "value-range"), (0.0, 255.0, "float-range"), (-1.5, 1.0, "float-range")],
)
def test_the_range_of_float_files_is_said(dataset, box, shape, low, high, code) -> None:
    for name in ("a.tif", "b.tif"):
        pixels = dataset.draws.uniform(low, high, shape).astype(np.float32)
        pixels[3, 5], pixels[4, 6] = low, high
        cv2.imwrite(str(dataset.root / name), pixels)
        dataset.add(name, boxes=[box])
    report = dataset.gate("detection")
    (found,) = [p for p in report.notes if p.code in ("value-range", "float-range")]
    assert found.code == code
    assert f"values of the 2 float files of train reach from {low:g} to {high:g}" in found.message
    assert (found.message in report.summary_lines()) == (code == "float-range")
