"""Image files to arrays: upright, RGB, in the file's own bit depth, each decoded once.

OpenCV decodes JPEG, PNG, WebP, BMP, GIF (first frame), JPEG 2000 and PNM; Pillow the rest, and what
OpenCV gets wrong: AVIF (no EXIF turn), TIFF with an alpha channel (premultiplied), 32-bit TIFF.
An alpha channel is dropped, not composited: hidden pixels keep the color that the file gives them.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cvtrain.data.formats.files import FORMATS, MAX_PIXELS
from cvtrain.errors import DataError

_ALPHA_OR_32_BIT = frozenset({"RGBA", "LA", "PA", "RGBa", "La", "I", "F"})
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class NotFiniteError(DataError):
    """A float image holds NaN or infinity, which no model and no augmentation can take."""


def decode(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads one image file.

    Args:
        path: the file; any name the file system allows.
        channels: 3 gives RGB whatever the file's mode (gray, palette, CMYK, RGBA); 1 gives gray;
            any other N the file's own N channels (RGBA for 4; a TIFF of N pages counts as N).

    Returns:
        ``(H, W, channels)``, uint8, or uint16 (float32) where the file holds that, EXIF applied.

    Raises:
        DataError: the file is missing, empty, no image, not of N channels, or a float image with
            values that are not finite.
    """
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as e:
        raise DataError(
            f"{path}: {e.strerror or e}; restore the file, or run `cvtrain check`"
        ) from e
    if not raw.size:
        raise DataError(f"{path}: the file is empty; restore or remove it")
    return decode_bytes(raw, str(path), channels)


def decode_bytes(raw: np.ndarray, name: str, channels: int = 3) -> np.ndarray:
    """``decode`` for the file's bytes (uint8 ``(n,)``); ``name`` is for the error message."""
    image = None if _needs_pillow(raw) else _opencv(raw, channels)
    if image is None:
        image = _pillow(raw, name, channels)
    if image.shape[2] != channels:
        raise DataError(
            f"{name}: has {image.shape[2]} channels, data.channels={channels}; "
            f"use data.channels={image.shape[2]} or 3 (RGB)"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        odd = int((~np.isfinite(image)).sum())
        raise NotFiniteError(
            f"{name}: {odd:,} of {image.size:,} values are NaN or infinite; write finite numbers"
        )
    return image


def header_pixels(raw: np.ndarray, name: str) -> int:
    """Width times height as the file's header claims; reads no pixels.

    Raises:
        DataError: Pillow does not know the format.
    """
    try:
        return _claimed(io.BytesIO(raw.data))
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except UnidentifiedImageError as e:  # whose text is the address of a buffer
        raise DataError(f"{name}: not an image of a format that is read") from e
    except (OSError, ValueError, SyntaxError) as e:
        raise DataError(f"{name}: not an image ({_short(e)})") from e


def _claimed(file: Path | io.BytesIO) -> int:
    with warnings.catch_warnings():
        # Pillow warns at half of MAX_PIXELS, which alone is what we go by.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as image:
            return int(image.width) * int(image.height)


def claimed_pixels(path: Path) -> int:
    """Width times height as a file's header claims; 0 where it cannot be read."""
    try:
        return _claimed(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0  # named where it is to be read


def _needs_pillow(raw: np.ndarray) -> bool:
    head = raw[:12].tobytes()
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1"):
        return True
    if head[:4] not in _TIFF_MAGIC:
        return False
    try:
        with Image.open(io.BytesIO(raw.data), formats=FORMATS) as image:
            return image.mode in _ALPHA_OR_32_BIT
    except (OSError, ValueError, SyntaxError):
        return False  # Pillow cannot read 16-bit RGB TIFF; OpenCV can


def _opencv(raw: np.ndarray, channels: int) -> np.ndarray | None:
    """None: OpenCV does not read this file."""
    flags = {3: cv2.IMREAD_COLOR_RGB, 1: cv2.IMREAD_GRAYSCALE}.get(channels)
    try:
        if flags is not None:
            tiff = flags == cv2.IMREAD_COLOR_RGB and raw[:4].tobytes() in _TIFF_MAGIC
            if tiff:  # OpenCV 5.0 scrambles 16-bit TIFF that it is asked for as RGB
                flags = cv2.IMREAD_COLOR
            image = cv2.imdecode(raw, flags | cv2.IMREAD_ANYDEPTH)
            if tiff and image is not None:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            return None if image is None else image.reshape(*image.shape[:2], channels)
        image = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
        if image is None:
            return None
        image = image.reshape(*image.shape[:2], -1)  # (H, W) -> (H, W, 1)
        if image.shape[2] != channels:
            read, pages = cv2.imdecodemulti(raw, cv2.IMREAD_UNCHANGED)
            if read and len(pages) == channels and len({p.shape for p in pages}) == 1:
                return np.ascontiguousarray(np.dstack(pages))  # N x (H, W) -> (H, W, N)
        if image.shape[2] in (3, 4):
            code = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
            image = cv2.cvtColor(image, code)
        return _turn(image, raw)
    except cv2.error:
        return None


def _turn(image: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Applies the EXIF orientation, which OpenCV leaves out where it keeps a file unchanged."""
    try:
        with Image.open(io.BytesIO(raw.data), formats=FORMATS) as opened:
            orientation = opened.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError):
        return image  # a format without EXIF that only OpenCV reads
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)  # (H, W, C) -> (W, H, C)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _pillow(raw: np.ndarray, name: str, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(raw.data), formats=FORMATS) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I", "F", "I;16", "I;16B", "I;16L"):
                array = _deep(np.asarray(image))[:, :, None]  # (H, W) -> (H, W, 1)
                return np.repeat(array, channels, axis=2) if channels in (1, 3) else array
            if channels in (1, 3):
                image = image.convert("RGB" if channels == 3 else "L")
            array = np.asarray(image)
    except Exception as e:  # Pillow's plugins raise every kind of error on broken files
        raise DataError(f"{name}: not a readable image ({_short(e)}); restore or remove it") from e
    return np.ascontiguousarray(array.reshape(*array.shape[:2], -1))  # (H, W) -> (H, W, 1)


def _deep(array: np.ndarray) -> np.ndarray:
    """Integers that fit become uint16, everything else float32."""
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 65535:
        return array.astype(np.uint16)
    return array.astype(np.float32)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
