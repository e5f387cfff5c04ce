"""One file, opened: what it is, or why it cannot be used."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from cvtrain.data.decode import decode
from cvtrain.data.gate import decode_check as module
from cvtrain.data.gate.decode_check import STATUS, extension_format, probe, probe_files


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def status(path: Path, **options) -> str:
    return STATUS[probe_one(path, **options)[0]["status"]]


def probe_one(path: Path, *, mask: bool = False, channels: int = 3):
    return (
        (p := probe_files([str(path)], masks=mask, channels=channels, workers=1)).records[0],
        p.details.get(0, ""),
        p.values.get(0),
    )


FORMATS = ["jpg", "png", "webp", "bmp", "gif", "tif", "jp2", "ppm", "avif"]


@pytest.mark.parametrize("extension", FORMATS)
def test_formats_have_the_loaders_size(tmp_path: Path, pixels: np.ndarray, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path)
    record, detail, _ = probe_one(path)
    assert STATUS[record["status"]] == "ok", detail
    assert (record["height"], record["width"]) == decode(path).shape[:2] == (40, 60)
    assert record["orientation"] == 1
    assert record["frames"] == 1
    assert record["bits"] == 8
    assert extension_format(path.name) == record["format"].decode()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_orientation_is_that_of_the_loader(
    tmp_path: Path, pixels: np.ndarray, extension: str, orientation: int
) -> None:
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    record, _, _ = probe_one(path)
    assert record["orientation"] == orientation
    assert (record["height"], record["width"]) == decode(path).shape[:2]
    assert (record["stored_height"], record["stored_width"]) == (40, 60)


def test_upright_pixels_decide_what_is_the_same(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.bmp")
    Image.fromarray(pixels).save(tmp_path / "stored.png")
    digests = [
        tuple(probe_one(tmp_path / name)[0]["digest"])
        for name in ("turned.png", "upright.bmp", "stored.png")
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_found(
    tmp_path: Path, pixels: np.ndarray, extension: str, share: float
) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    record, detail, _ = probe_one(path)
    assert STATUS[record["status"]] in ("truncated", "unreadable")
    if share > 0.4:
        assert STATUS[record["status"]] == "truncated"
    assert detail
    assert "\n" not in detail


def test_truncated_16_bit_tiff_is_found_though_opencv_reads_it(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60, 3), np.uint16)
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), deep)
    record, _, _ = probe_one(path)
    assert (STATUS[record["status"]], record["bits"]) == ("ok", 16)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert status(path) == "truncated"


def test_truncation_is_found_whatever_others_set(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert status(path) == "truncated"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("content", "expected", "said"),
    [
        (b"", "empty", "0 bytes"),
        (b"hello, I am text", "unreadable", "begins with"),
        (b"\0" * 400, "unreadable", "all zero"),
        (b"<!DOCTYPE html><html></html>", "unreadable", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "unreadable", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unreadable", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable", "PostScript"),
    ],
)
def test_what_is_no_image_says_what_it_is(
    tmp_path: Path, content: bytes, expected: str, said: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    record, detail, _ = probe_one(path)
    assert STATUS[record["status"]] == expected
    assert said in detail


def test_missing_folder_pipe_and_broken_link(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert status(tmp_path / "none.jpg") == "missing"
    assert status(tmp_path / "link.jpg") == "missing"
    assert status(tmp_path / "folder.jpg") == "unreadable"
    assert status(tmp_path / "pipe.jpg") == "unreadable"
    assert status(tmp_path / "loop.jpg") == "unreadable"


def png_of(width: int, height: int) -> bytes:
    """A PNG header that claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_bomb_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(60_000, 60_000))
    record, detail, _ = probe_one(path)
    assert STATUS[record["status"]] == "bomb"
    assert detail == "3,600,000,000 pixels"


def test_tiff_bomb_that_pillow_does_not_know(tmp_path: Path) -> None:
    tags = [(256, 4, 60_000), (257, 4, 60_000), (258, 3, 13), (277, 3, 1), (273, 4, 8), (279, 4, 9)]
    body = struct.pack("<H", len(tags))
    for tag, kind, value in sorted(tags):
        body += struct.pack("<HHII", tag, kind, 1, value)
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + body + b"\0" * 20)
    assert status(path) == "bomb"


@pytest.mark.parametrize(
    ("mode", "bits", "values"),
    [("1", 1, 2), ("L", 8, 256), ("P", 8, 256), ("RGBA", 8, 0), ("CMYK", 8, 0), ("I;16", 16, 40)],
)
def test_modes_bits_and_mask_values(
    tmp_path: Path, pixels: np.ndarray, mode: str, bits: int, values: int
) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.arange(2400, dtype=np.uint16) // 60 * 1000).reshape(40, 60))
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([pixels, pixels[..., 0]]))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    record, detail, counted = probe_one(path, mask=True)
    assert STATUS[record["status"]] == "ok", detail
    assert record["mode"].decode() == mode
    assert record["bits"] == bits
    if values:
        assert counted is not None
        assert counted[1].sum() == 2400
        assert len(counted[0]) <= values
        expected = np.unique(np.asarray(image)).astype(int)
        assert np.array_equal(counted[0], expected * 255 if mode == "1" else expected)
    else:
        assert counted is None


def test_mask_in_gray_colors_has_values(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (40, 60), np.uint8)
    Image.fromarray(np.dstack([values] * 3)).save(tmp_path / "a.png")
    counted = probe_one(tmp_path / "a.png", mask=True)[2]
    assert counted is not None
    assert counted[0].tolist() == [0, 1, 2]
    assert counted[1].tolist() == np.bincount(values.ravel()).tolist()


def test_16_bit_rgb_png_differs_where_8_bits_agree(tmp_path: Path) -> None:
    deep = np.full((8, 8, 3), 256 * 7, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    cv2.imwrite(str(tmp_path / "b.png"), deep + 3)
    a, b = (probe_one(tmp_path / f"{n}.png")[0] for n in "ab")
    assert a["bits"] == b["bits"] == 16
    assert tuple(a["digest"]) != tuple(b["digest"])


def test_frames_are_counted(tmp_path: Path, pixels: np.ndarray) -> None:
    frames = [Image.fromarray(np.roll(pixels, k, 0)) for k in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert probe_one(tmp_path / "a.gif")[0]["frames"] == 3


def test_channels_are_those_the_loader_gets(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / "four.png")
    Image.fromarray(pixels).save(tmp_path / "three.png")
    assert status(tmp_path / "four.png", channels=4) == "ok"
    record, detail, _ = probe_one(tmp_path / "three.png", channels=4)
    assert STATUS[record["status"]] == "channels"
    assert "3 channels" in detail


def test_names_that_are_not_utf8(tmp_path: Path, pixels: np.ndarray) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4r \xff.png")
    Image.fromarray(pixels).save(path, format="PNG")
    assert STATUS[probe(path)[0]["status"]] == "ok"


def test_all_threads_see_all_files(tmp_path: Path, pixels: np.ndarray) -> None:
    paths = []
    for i in range(57):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(pixels[: 1 + i % 40, : 1 + i]).save(paths[-1])
    done: list[int] = []
    probes = probe_files(paths, masks=False, channels=3, workers=3, tick=done.append)
    assert sum(done) == 57
    assert probes.records["width"].tolist() == list(range(1, 58))
    assert probes.ok.all()


def test_an_interrupt_ends_the_pool(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe_files([str(tmp_path / "a.png")] * 200, masks=False, channels=3, workers=1, tick=stop)


def test_version_follows_pillow() -> None:
    import PIL

    assert PIL.__version__ in module.VERSION


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_what_passes_is_what_the_loader_decodes(
    tmp_path: Path, pixels: np.ndarray, extension: str
) -> None:
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    draws = np.random.default_rng(3)
    passed = 0
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[draws.integers(len(whole))] ^= int(draws.integers(1, 256))
        path.write_bytes(damaged)
        record, _, _ = probe_one(path)
        if STATUS[record["status"]] == "ok":
            passed += 1
            assert decode(path).shape[:2] == (record["height"], record["width"])
    assert passed > 0 or extension == "png"


def test_png_with_a_damaged_stream_is_found(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    assert status(path) in ("unreadable", "truncated")
