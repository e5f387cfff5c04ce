"""Opens one image or mask file, decodes all of it, and says what it is: a fixed-size record.

Pillow decodes, because it reports a file that ends early where OpenCV fills the rest with gray;
only the formats that training reads are tried (no EPS, which would start Ghostscript). TIFFs that
Pillow does not know and images of N channels are decoded as the loader decodes them.

Threads, not processes: decoding and hashing release the interpreter lock, so that two threads took
0.34 s where two forked processes took 0.33 s and two spawned ones 0.66 s (300 JPEGs of 640 x 480,
one thread 0.59 s), and neither torch's threads nor a script without a main guard can be in the way.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from cvtrain.data.formats.files import FORMATS, MAX_PIXELS
from cvtrain.data.mask_file import is_lossy, mask_pixels, palette_colors
from cvtrain.errors import DataError

VERSION = f"5-{PIL.__version__}"
"""Of what a record says; another version's cached records are not read."""

OK, MISSING, EMPTY, UNREADABLE, TRUNCATED, BOMB, CHANNELS, NOT_FINITE = range(8)
STATUS = ("ok", "missing", "empty", "unreadable", "truncated", "bomb", "channels", "not-finite")
"""Names of ``Record.status``."""

RECORD = np.dtype(
    [
        ("status", "u1"),
        ("orientation", "u1"),  # EXIF, 1..8
        ("bits", "u1"),  # a channel
        ("lossy", "?"),  # the values are not exactly those that were saved
        ("low", "f4"),  # the smallest value, where a channel has more than 8 bits
        ("high", "f4"),  # the largest
        ("floating", "?"),  # the values are floats
        ("frames", "i4"),  # of an animation, pages of a TIFF
        ("height", "i4"),  # upright
        ("width", "i4"),
        ("stored_height", "i4"),  # before EXIF
        ("stored_width", "i4"),
        ("mode", "S8"),  # Pillow's name: L, RGB, P, ...
        ("format", "S8"),  # Pillow's name: JPEG, PNG, ...
        ("digest", "u8", (2,)),  # BLAKE2b of the upright pixels
    ]
)

_EXTENSIONS = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png .apng",
    "WEBP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "JPEG2000": ".jp2 .j2k .jpc .jpf .jpx",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "AVIF": ".avif .avifs",
}
_FORMAT_OF = {e: name for name, extensions in _EXTENSIONS.items() for e in extensions.split()}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SNIFF = (
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull`"),
    (b"<!DOCTYPE", "it is an HTML page, as a failed download leaves"),
    (b"<html", "it is an HTML page, as a failed download leaves"),
    (b"%PDF", "it is a PDF; export its pages as images"),
    (b"%!PS", "it is PostScript; export it as PNG"),
    (b"<svg", "it is an SVG drawing; export it as PNG"),
    (b"8BPS", "it is a Photoshop file; export it as PNG"),
)
_MAX_VALUES = 65536  # distinct values kept of one mask


@dataclass
class Probes:
    """What was found about N files.

    Attributes:
        records: N of ``RECORD``.
        details: why a file is bad, by row.
        values: masks only, by row: distinct pixel values int64 ``(V,)`` and their pixel counts.
        palettes: of palette files among them the packed color of each value, int64 ``(V,)``.
        cached: how many came from the cache.
    """

    records: np.ndarray
    details: dict[int, str] = field(default_factory=dict)
    values: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    palettes: dict[int, np.ndarray] = field(default_factory=dict)
    cached: int = 0

    @classmethod
    def blank(cls, count: int) -> Probes:
        records = np.zeros(count, RECORD)
        records["orientation"] = 1
        return cls(records)

    @property
    def ok(self) -> np.ndarray:
        """Bool ``(N,)``."""
        return self.records["status"] == OK

    @property
    def upright(self) -> np.ndarray:
        """int32 ``(N, 2)`` height, width."""
        return np.stack([self.records["height"], self.records["width"]], 1)


def extension_format(name: str) -> str:
    """The format that a file name's extension promises, "" where it promises none we know."""
    return _FORMAT_OF.get(PurePosixPath(name).suffix.lower(), "")


def probe_files(
    paths: Sequence[str],
    *,
    masks: bool,
    channels: int,
    workers: int,
    tick: Any = None,
    colors: bool = False,
) -> Probes:
    """Decodes every file.

    Args:
        paths: absolute paths.
        masks: also count the pixel values.
        channels: of the images the loader will make (``data.channels``).
        workers: threads.
        tick: called with the number of files done, from this thread.
        colors: of masks: their values are packed colors.
    """
    probes = Probes.blank(len(paths))
    size = max(1, min(32, len(paths) // (4 * workers)))
    with _strict_pillow(), ThreadPoolExecutor(workers, "cvtrain-gate") as pool:
        futures: dict[Future, range] = {}
        for start in range(0, len(paths), size):
            rows = range(start, min(start + size, len(paths)))
            chunk = [paths[i] for i in rows]
            futures[pool.submit(_probe_chunk, chunk, masks, channels, colors)] = rows
        try:
            for future in as_completed(futures):
                rows = futures[future]
                for i, (record, detail, values) in zip(rows, future.result()):
                    probes.records[i] = record
                    if detail:
                        probes.details[i] = detail
                    if values is not None:
                        probes.values[i] = values[:2]
                        if values[2] is not None:
                            probes.palettes[i] = values[2]
                if tick is not None:
                    tick(len(rows))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return probes


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Truncated files are errors, whatever another library set; warnings are ours to word."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _probe_chunk(paths: list[str], masks: bool, channels: int, colors: bool) -> list[tuple]:
    return [probe(path, mask=masks, channels=channels, colors=colors) for path in paths]


_Values = tuple[np.ndarray, np.ndarray, np.ndarray | None]
"""Distinct values of a mask, their counts, and their colors where it is a palette file."""


class _BadFileError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def probe(
    path: str, *, mask: bool = False, channels: int = 3, colors: bool = False
) -> tuple[np.void, str, _Values | None]:
    """Decodes one file: its record, why it is bad ("" where it is not), what a mask holds."""
    record = np.zeros(1, RECORD)[0]
    record["orientation"] = 1
    try:
        info = os.stat(path)  # noqa: PTH116
        if not stat.S_ISREG(info.st_mode):
            raise _BadFileError(UNREADABLE, "not a regular file")
        if info.st_size == 0:
            raise _BadFileError(EMPTY, "0 bytes")
        with open(path, "rb") as file:  # noqa: PTH123
            values = _decode(file, record, mask, 1 if mask else channels, colors)
    except _BadFileError as bad:
        record["status"] = bad.status
        return record, bad.detail, None
    except (FileNotFoundError, NotADirectoryError):
        record["status"] = MISSING
        return record, "no such file", None
    except OSError as error:  # permissions, a disk that fails, a loop of symlinks
        record["status"] = UNREADABLE
        return record, error.strerror or _short(error), None
    return record, "", values


def _decode(
    file: BinaryIO, record: np.void, mask: bool, channels: int, colors: bool
) -> _Values | None:
    """Fills ``record``; returns what a mask of one channel holds."""
    head = file.read(32)
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _BadFileError(BOMB, _bomb(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise every kind of error on broken headers
        if head[:4] in _TIFF_MAGIC and not mask:
            _decode_tiff(file, record, channels)
            return None
        size = file.seek(0, os.SEEK_END)
        raise _BadFileError(*_unidentified(head, size, error)) from error
    with image:
        try:
            tiff = image.format == "TIFF"
            tiff_bits = image.tag_v2.get(258) if tiff else None  # type: ignore[attr-defined]
            # Before loading of a TIFF, which loading turns; after it of others: to find the EXIF of
            # a PNG Pillow loads it, and a second load says nothing of what the first one met.
            orientation = _orientation(image) if tiff else 1
            image.load()
            orientation = orientation if tiff else _orientation(image)
        except MemoryError:
            raise
        except Exception as error:  # as above, on broken pixels
            raise _BadFileError(*_broken(error)) from error
        record["format"] = (image.format or "").encode()[:8]
        record["mode"] = image.mode.encode()
        record["orientation"] = orientation
        record["bits"] = _bits(image, head, tiff_bits)
        upright: Image.Image = image
        if image.format != "TIFF" and orientation != 1:  # Pillow turns TIFFs itself
            upright = ImageOps.exif_transpose(image)
        _sizes(record, upright.height, upright.width)
        record["digest"] = _digest(file, upright, int(record["bits"]))
        record["lossy"] = is_lossy(image)
        values = _values(image, colors) if mask else None
        try:
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        except Exception as error:  # a later frame is broken; the first, which is used, is not
            frames = 2 if "truncated" in str(error) else 1
        record["frames"] = frames
        if not mask and record["bits"] > 8 and image.mode not in _LOW_BITS_LOST:
            _look_at_values(record, np.asarray(image))
    if not mask and (channels not in (1, 3) or (record["bits"] > 8 and not record["high"])):
        _decode_channels(file, record, channels)
    return values


_LOW_BITS_LOST = ("RGB", "RGBA", "LA", "P", "PA", "CMYK")
"""Modes that Pillow makes of 16 bits per channel, too."""


def _look_at_values(record: np.void, pixels: np.ndarray) -> None:
    """The range of the values; a float image that holds NaN or infinity is bad."""
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        odd = int((~np.isfinite(pixels)).sum())
        raise _BadFileError(NOT_FINITE, f"{odd:,} of {pixels.size:,} values are NaN or infinite")
    if pixels.size:
        record["low"], record["high"] = pixels.min(), pixels.max()
    record["floating"] = pixels.dtype.kind == "f"


def _sizes(record: np.void, height: int, width: int) -> None:
    turned = record["orientation"] >= 5
    record["height"], record["width"] = height, width
    record["stored_height"] = width if turned else height
    record["stored_width"] = height if turned else width


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # EXIF that no reader can parse turns nothing, here as in the loader
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _bits(image: Image.Image, head: bytes, tiff: Any) -> int:
    """Bits a channel as the file stores them; Pillow itself reads 16-bit RGB as 8."""
    if image.format == "PNG":
        return head[24]
    if tiff:
        return int(tiff[0] if isinstance(tiff, tuple) else tiff)
    if image.mode in ("I", "F"):
        return 16 if image.format == "PPM" and image.mode == "I" else 32
    return 16 if image.mode.startswith("I;16") else 8


def _digest(file: BinaryIO, image: Image.Image, bits: int) -> np.ndarray:
    """uint64 ``(2,)``: equal for equal pixels, whatever the file format or its metadata."""
    hashed = hashlib.blake2b(digest_size=16)
    if bits > 8 and image.mode in ("RGB", "RGBA", "LA"):  # Pillow has dropped the low bits
        file.seek(0)
        hashed.update(file.read())
    else:
        pixels = image.convert("RGB") if image.mode in ("P", "PA") else image
        hashed.update(f"{pixels.mode} {pixels.width} {pixels.height} ".encode())
        hashed.update(pixels.tobytes())
    return np.frombuffer(hashed.digest(), np.uint64)


def _values(image: Image.Image, colors: bool) -> _Values | None:
    """What the loader sees in a mask; None where it is nothing of that kind."""
    array = mask_pixels(image, colors)
    if array is None:
        return None
    if array.dtype == np.uint8:
        counts = np.bincount(array.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        return values, counts[values], None if colors else palette_colors(image, values)
    values, counts = np.unique(array, return_counts=True)
    return values[:_MAX_VALUES].astype(np.int64), counts[:_MAX_VALUES], None


def _decode_tiff(file: BinaryIO, record: np.void, channels: int) -> None:
    """A TIFF that Pillow does not know, by the loader; it must fit, and not end early."""
    from cvtrain.data.decode import NotFiniteError, decode_bytes

    tags = _tiff_tags(file)
    if 256 not in tags or 257 not in tags:
        raise _BadFileError(TRUNCATED, "a TIFF whose directory is broken or cut off")
    if int(tags.get(256, 0)) * int(tags.get(257, 0)) > MAX_PIXELS:
        raise _BadFileError(BOMB, f"{tags[256]} x {tags[257]} pixels")
    raw = np.frombuffer(_read(file), np.uint8)
    offsets = np.ravel(tags.get(273, tags.get(324, ()))).astype(np.int64)
    counts = np.ravel(tags.get(279, tags.get(325, ()))).astype(np.int64)
    if len(offsets) == len(counts) and np.any(offsets + counts > len(raw)):
        end = int((offsets + counts).max())
        raise _BadFileError(TRUNCATED, f"the file has {len(raw)} of {end} bytes")
    try:
        array = decode_bytes(raw, "it", channels)
    except NotFiniteError as error:
        raise _BadFileError(NOT_FINITE, _short(error).removeprefix("it: ")) from error
    except DataError as error:
        detail = f"a TIFF that neither Pillow nor OpenCV reads with {channels} channels"
        raise _BadFileError(UNREADABLE, detail) from error
    orientation = tags.get(274, 1)
    record["orientation"] = orientation if orientation in range(1, 9) else 1
    record["bits"], record["frames"] = array.itemsize * 8, 1
    if record["bits"] > 8:
        _look_at_values(record, array)
    record["format"] = b"TIFF"
    _sizes(record, *array.shape[:2])
    hashed = hashlib.blake2b(f"{array.dtype} {array.shape} ".encode(), digest_size=16)
    hashed.update(array.tobytes())
    record["digest"] = np.frombuffer(hashed.digest(), np.uint64)


def _tiff_tags(file: BinaryIO) -> Any:
    """Tags of the first page."""
    try:
        file.seek(0)
        header = file.read(8)
        if header[2:3] == b"+" or header[3:4] == b"+":  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        return {key: tags[key] for key in (256, 257, 273, 274, 279, 324, 325) if key in tags}
    except MemoryError:
        raise
    except Exception as error:  # a directory that is broken or lies beyond the end
        raise _BadFileError(UNREADABLE, f"broken TIFF directory: {_short(error)}") from error


def _decode_channels(file: BinaryIO, record: np.void, channels: int) -> None:
    """What the loader gets: ``channels`` channels, and the values of more than 8 bits."""
    from cvtrain.data.decode import NotFiniteError, decode_bytes

    try:
        pixels = decode_bytes(np.frombuffer(_read(file), np.uint8), "it", channels)
    except NotFiniteError as error:
        raise _BadFileError(NOT_FINITE, _short(error).removeprefix("it: ")) from error
    except DataError as error:
        raise _BadFileError(CHANNELS, _short(error).removeprefix("it: ")) from error
    if record["bits"] > 8:
        _look_at_values(record, pixels)


def _read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _unidentified(head: bytes, size: int, error: Exception) -> tuple[int, str]:
    """Status and reason for a file of ``size`` bytes whose header Pillow refuses."""
    for magic, what in _SNIFF:
        if head.lstrip().lower().startswith(magic.lower()):
            return UNREADABLE, what
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return UNREADABLE, "it is a HEIC photograph; convert it to JPEG"
    if not any(head):
        return UNREADABLE, "its first bytes are all zero"
    for magic, name in ((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF")):
        if head.startswith(magic):
            return TRUNCATED, f"a {name} whose header is broken or cut off"
    if head[:4] == b"RIFF" and int.from_bytes(head[4:8], "little") + 8 > size:
        return TRUNCATED, f"{size} of {int.from_bytes(head[4:8], 'little') + 8} bytes"
    if isinstance(error, PIL.UnidentifiedImageError):
        return UNREADABLE, f"no image format known; it begins with {head[:8]!r}"
    return _broken(error)


def _broken(error: Exception) -> tuple[int, str]:
    text = _short(error)
    if isinstance(error, Image.DecompressionBombError):
        return BOMB, _bomb(error)
    if isinstance(error, EOFError) or "truncated" in text.lower() or "incomplete" in text.lower():
        return TRUNCATED, text
    return UNREADABLE, text


def _bomb(error: Exception) -> str:
    found = re.search(r"\((\d+) pixels\)", str(error))
    return f"{int(found[1]):,} pixels" if found else _short(error)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
