"""Objects in mask files: run-length encodings and boxes, straight from the runs of the pixels."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from cvtrain.data.formats import rle
from cvtrain.data.formats.files import FORMATS, MalformedError, shorten
from cvtrain.data.mask_file import is_lossy, mask_pixels, palette_colors

_MOST_THREADS = 16
T = TypeVar("T")


@dataclass(frozen=True)
class MaskObject:
    """One object of a mask.

    Attributes:
        value: its pixels' value.
        box: xyxy around its pixels.
        segment: as the table stores it, RLE in JSON.
    """

    value: int
    box: tuple[float, float, float, float]
    segment: bytes


def objects_of(pixels: np.ndarray, background: Sequence[int] = (0,)) -> list[MaskObject]:
    """Every value of ``(H, W)`` but ``background`` as an object, in rising order.

    The pixels' runs down the columns are found once and sorted by value, so that 500 objects take
    hardly longer than one. Pieces of one value are one object.
    """
    height, width = pixels.shape
    flat = pixels.ravel(order="F")  # (H, W) -> (W * H,), down the columns as RLE counts
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    values = flat[starts].astype(np.int64)
    order = np.argsort(values, kind="stable")
    order = order[~np.isin(values[order], background)]
    names, first = np.unique(values[order], return_index=True)
    parts = np.split(order, first[1:]) if len(names) else []
    return [
        MaskObject(int(value), _box(starts[part], ends[part], height), _segment(
            starts[part], ends[part], height, width))
        for value, part in zip(names, parts, strict=True)
    ]  # fmt: skip


def empty_object(height: int, width: int) -> MaskObject:
    """An object without a pixel, for the gate to refuse."""
    none = np.zeros(0, np.int64)
    return MaskObject(0, (0.0, 0.0, 0.0, 0.0), _segment(none, none, height, width))


def _box(starts: np.ndarray, ends: np.ndarray, height: int) -> tuple[float, float, float, float]:
    """Around runs down the columns; one that goes on in the next column covers rows 0 to H."""
    left, right = starts // height, (ends - 1) // height
    whole = left != right
    top = np.where(whole, 0, starts % height)
    bottom = np.where(whole, height, (ends - 1) % height + 1)
    return float(left.min()), float(top.min()), float(right.max() + 1), float(bottom.max())


def _segment(starts: np.ndarray, ends: np.ndarray, height: int, width: int) -> bytes:
    before = np.concatenate([[0], ends])[: len(starts)]
    counts = np.stack([starts - before, ends - starts], 1).ravel()  # (R, 2) -> (2R,)
    rest = height * width - (int(ends[-1]) if len(ends) else 0)
    if rest:
        counts = np.append(counts, rest)
    text = rle.compress(counts.astype(np.int64))
    return json.dumps({"size": [height, width], "counts": text}, separators=(",", ":")).encode()


def read_pixels(path: Path, colors: bool | None = None, numbers: bool = True) -> np.ndarray:
    """``(H, W)`` whole numbers of a mask file, upright: its values, else its packed colors.

    Args:
        path: of the file.
        colors: True: always colors. None: where it is in colors; a palette file's are indices,
            but where black is not index 0 it changes places with it.
        numbers: each value stands for itself, so that a JPEG is refused unless it is 0 throughout.

    Raises:
        MalformedError: it cannot be read, holds neither, or is a JPEG of numbers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                upright = ImageOps.exif_transpose(image)
                pixels = mask_pixels(upright, bool(colors))
                if pixels is None and colors is None:
                    pixels = mask_pixels(upright, True)
                elif colors is None:
                    pixels = _black_is_0(image, pixels)
                if numbers and is_lossy(image) and pixels is not None and pixels.any():
                    raise MalformedError("it is a JPEG, which changes numbers; save it as PNG")
    except FileNotFoundError as error:
        raise MalformedError("there is no such file") from error
    except (MemoryError, MalformedError):
        raise
    except Exception as error:  # Pillow's plugins raise every kind of error on broken files
        empty = path.exists() and not path.stat().st_size
        message = (
            "it is empty (0 bytes)" if empty else f"not a readable mask: {shorten(error, 120)}"
        )
        raise MalformedError(message) from error
    if pixels is None:
        raise MalformedError("its pixels are no whole numbers; save it as PNG")
    return pixels


def _black_is_0(image: Image.Image, pixels: np.ndarray | None) -> np.ndarray | None:
    """The indices of a palette file, black being 0: others number the background, as they come."""
    if pixels is None or image.mode not in ("P", "PA"):
        return pixels
    used = np.unique(pixels)
    colors = palette_colors(image, used)
    if colors is None or used[0] != 0 or not colors[0] or (colors != 0).all():
        return pixels
    black = int(used[colors == 0][0])
    order = np.arange(256, dtype=np.uint8)
    order[[0, black]] = order[[black, 0]]
    return order[pixels]


def read_object(path: Path) -> MaskObject:
    """The object of a file of its own: its light pixels, those that are not 0 where none is light.

    Light is half of the file's range or more, so that the noise of a JPEG and soft edges count as
    what they nearly are; masks of 0 and 1 have no light pixel.

    Raises:
        MalformedError: it cannot be read.
    """
    pixels = read_pixels(path, numbers=False)
    if pixels.dtype == np.int32:  # colors: the largest of the three channels
        channels = [pixels >> 16 & 255, pixels >> 8 & 255, pixels & 255]
        pixels = np.maximum.reduce(channels).astype(np.uint8)
    half = np.iinfo(pixels.dtype).max // 2 + 1 if pixels.dtype.kind == "u" else 128
    light = pixels >= half
    found = objects_of((light if light.any() else pixels != 0).astype(np.uint8))
    return found[0] if found else empty_object(*pixels.shape)


def in_threads(read: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T | MalformedError]:
    """``read`` of every file, in order, a few at a time; what is wrong with one is in its place."""

    def one(path: Path) -> T | MalformedError:
        try:
            return read(path)
        except MalformedError as error:
            return error

    counted = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    with ThreadPoolExecutor(min(len(counted), _MOST_THREADS), "cvtrain-masks") as pool:
        yield from pool.map(one, paths, chunksize=1)
