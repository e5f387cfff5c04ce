"""Every kind of file becomes upright RGB; depth and channels stay where asked for."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvtrain.data.decode import decode, header_pixels
from cvtrain.errors import DataError

CORNERS = np.zeros((40, 60, 3), np.uint8)
CORNERS[:20] = [250, 10, 10]
CORNERS[20:, :30] = [10, 250, 10]
CORNERS[20:, 30:] = [10, 10, 250]


def write(path, image: Image.Image, kind: str, **options) -> np.ndarray:
    """Saves; gives what Pillow reads: upright and RGB."""
    image.save(path, kind, **options)
    with Image.open(path) as back:
        return np.asarray(ImageOps.exif_transpose(back).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_applied(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = write(tmp_path / "a", Image.fromarray(CORNERS), kind, exif=exif)
    for channels in (3, 1):
        out = decode(tmp_path / "a", channels)
        assert out.shape == (*expected.shape[:2], channels)
        if channels == 3:
            assert np.abs(out.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_are_applied_where_channels_are_kept(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(CORNERS)
    image.putalpha(Image.fromarray(CORNERS[:, :, 0]))
    write(tmp_path / "a", image, "PNG", exif=exif)
    with Image.open(tmp_path / "a") as back:
        expected = np.asarray(ImageOps.exif_transpose(back))
    assert np.array_equal(decode(tmp_path / "a", 4), expected)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("LA", "PNG"),
     ("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "TIFF"), ("CMYK", "JPEG"),
     ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("RGB", "BMP"), ("RGB", "PPM")],
)  # fmt: skip
def test_every_color_mode_becomes_rgb(tmp_path, mode, kind):
    image = Image.fromarray(CORNERS).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(90)  # dropped: what lies behind it keeps its color
    expected = write(tmp_path / "a", image, kind)
    out = decode(tmp_path / "a")
    assert out.shape == (40, 60, 3)
    assert out.dtype == np.uint8
    assert np.abs(out.astype(int) - expected).mean() < 3


def test_sixteen_bits_stay(tmp_path):
    deep = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    assert cv2.imwrite(str(tmp_path / "gray.png"), deep)
    assert cv2.imwrite(str(tmp_path / "rgb.tif"), np.dstack([deep, deep // 2, deep // 3]))
    gray = decode(tmp_path / "gray.png", 1)
    assert gray.dtype == np.uint16
    assert np.array_equal(gray[:, :, 0], deep)
    assert np.array_equal(decode(tmp_path / "gray.png", 3)[:, :, 1], deep)
    color = decode(tmp_path / "rgb.tif", 3)
    assert color.dtype == np.uint16
    assert np.array_equal(color, np.dstack([deep // 3, deep // 2, deep]))  # BGR was written


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.uint16), ("F", np.float32)])
def test_32_bit_tiff(tmp_path, mode, dtype):
    image = Image.fromarray(CORNERS[:, :, 0]).convert(mode)
    image.save(tmp_path / "a.tif")
    out = decode(tmp_path / "a.tif", 3)
    assert out.shape == (40, 60, 3)
    assert out.dtype == dtype
    assert np.array_equal(out[:, :, 2], CORNERS[:, :, 0])


def test_n_channels_are_kept(tmp_path):
    four = np.random.default_rng(0).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    Image.fromarray(four).save(tmp_path / "four.png")
    assert np.array_equal(decode(tmp_path / "four.png", 4), four)
    pages = [np.full((9, 8), 20 * k, np.uint8) for k in range(6)]
    assert cv2.imwritemulti(str(tmp_path / "six.tif"), pages)
    six = decode(tmp_path / "six.tif", 6)
    assert six.shape == (9, 8, 6)
    assert six[0, 0].tolist() == [0, 20, 40, 60, 80, 100]
    with pytest.raises(DataError, match=r"has 4 channels, data.channels=5"):
        decode(tmp_path / "four.png", 5)


@pytest.mark.parametrize("name", ["a b.jpg", "ä ö 图.jpg", "'\"#%.jpg"])
def test_any_name_is_read(tmp_path, name):
    Image.fromarray(CORNERS).save(tmp_path / name, "JPEG", quality=95)
    assert np.abs(decode(tmp_path / name).astype(int) - CORNERS).mean() < 6


def test_an_extension_may_lie(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg", "PNG")
    assert np.array_equal(decode(tmp_path / "a.jpg"), CORNERS)


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "is empty"), (b"GIF89a", "not a readable image"), (b"no image " * 9, "not a readable"),
     (None, "No such file")],
)  # fmt: skip
def test_what_is_no_image_is_said_in_one_line(tmp_path, content, named, capfd):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=named) as caught:
        decode(tmp_path / "bad.png")
    assert "\n" not in str(caught.value)
    assert "bad.png" in str(caught.value)


def test_pixels_are_counted_from_the_header(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(CORNERS).save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    assert header_pixels(np.frombuffer(bytes(raw), np.uint8), "a") == 2400
    with pytest.raises(DataError, match="not an image"):
        header_pixels(np.frombuffer(b"nothing", np.uint8), "a")
