"""Pictures of images with what is said of them: boxes, class names, masks. numpy, OpenCV, Pillow.

Small images are enlarged first, so that lines and letters stay readable; every class has a color
of its own, and text stands on that color in black or white, whichever is easier to read.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cvtrain.data.masks import resize_part, rle_part
from cvtrain.storage import replacing
from cvtrain.structures import IGNORE_INDEX
from cvtrain.text import printable, shortened

PALETTE = np.array(
    [
        [230, 57, 70], [46, 134, 222], [60, 180, 75], [255, 190, 11], [157, 78, 221],
        [0, 181, 173], [244, 121, 32], [240, 98, 200], [122, 199, 12], [92, 107, 192],
        [161, 105, 60], [0, 121, 107], [200, 30, 120], [128, 128, 0], [100, 181, 246],
        [255, 138, 128], [94, 53, 177], [38, 70, 83], [212, 175, 55], [120, 144, 156],
    ],
    np.uint8,
)  # fmt: skip
"""One RGB color a class; class 20 begins anew."""

MIN_SIDE = 320
"""Images whose shorter side is below this are enlarged by a whole factor, pixels."""
LONGEST = 4096
"""No image is enlarged so far that its longer side exceeds this, pixels."""
CROWDED = 25
"""More objects than this are drawn with thin lines and a legend instead of a name each."""

MOST_COVERED = 0.15
"""Names that would cover more of the image than this share of it go into a legend, too."""

_FEW = 4  # so many are always named
BACKGROUND = "background"
"""A class of this name is left without color; of classes that have numbers alone, number 0 is."""
_VOID = np.array([20, 20, 20], np.uint8)
_PAPER = (250, 250, 250)
_INK = (25, 25, 25)


def color(label: int) -> tuple[int, int, int]:
    """The RGB color of a class."""
    r, g, b = (int(v) for v in PALETTE[label % len(PALETTE)])
    return r, g, b


def to_rgb8(image: Any) -> np.ndarray:
    """An image of any depth and channels, ``(H, W[, C])`` -> uint8 ``(H, W, 3)`` to look at.

    More than three channels: the first three are shown. Floats are shown as a network takes them,
    0 black and 1 white; those outside of that range are stretched to the image's own.
    """
    array = np.asarray(image)
    array = array if array.ndim == 3 else array[:, :, None]  # (H, W) -> (H, W, 1)
    if array.dtype.kind == "f":
        low, high = float(np.nanmin(array)), float(np.nanmax(array))
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        array = np.nan_to_num((array - low) / max(high - low, 1e-9) * 255)
    elif array.dtype != np.uint8:
        array = array // (np.iinfo(array.dtype).max // 255)
    array = array[:, :, :3] if array.shape[2] >= 3 else array[:, :, :1].repeat(3, axis=2)
    return np.ascontiguousarray(array.astype(np.uint8))


def draw(
    image: Any,
    boxes: Any = None,
    labels: Any = None,
    names: Sequence[str] = (),
    scores: Any = None,
    masks: Any = None,
    mask: Any = None,
    ignore: Any = None,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
    listed: Sequence[int] = (),
    thin: Any = None,
    frame: tuple[int, int] | None = None,
    crowded: bool | None = None,
) -> np.ndarray:
    """Draws annotations or predictions on a copy of an image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB (other types go through ``to_rgb8``).
        boxes: ``(N, 4)`` xyxy, pixels of the image.
        labels: ``(N,)``; needed with boxes.
        names: of the classes.
        scores: ``(N,)`` in 0..1, written behind the names.
        masks: instance masks, ``(N, H, W)`` or N of them as RLE of the image's size.
        mask: ``(H, W)`` semantic classes; a legend is drawn below the image.
        ignore: bool ``(N,)``: drawn thin and gray, named "(ignored)".
        min_side: enlarge until the shorter side has this many pixels, or the longer LONGEST.
        max_side: shrink, before drawing, until the longer side has no more than this.
        listed: classes that the legend names, where there is one, though nothing here is one.
        thin: more boxes ``(P, 4)``, in thin white lines below the others, without names.
        frame: height and width of what boxes and masks lie in, if the image has another size: it is
            drawn with the frame's aspect, and ``min_side`` and ``max_side`` start from it.
        crowded: whether there is a legend instead of a name at each box; None: see ``is_crowd``.

    Returns:
        uint8 ``(H', W', 3)``, a legend below it where there is a semantic mask or a crowd.
    """
    canvas = to_rgb8(image)
    height, width = frame or canvas.shape[:2]
    size = _drawn_size(height, width, min_side, max_side)
    canvas = _scale(canvas, size, smooth=True)
    seen: list[int] = []
    if mask is not None:
        classes = np.asarray(mask)
        canvas = _tint(canvas, _scale(classes.astype(np.uint8), size, smooth=False), names)
        seen += sorted({int(c) for c in np.unique(classes)} | set(listed))
    stretch = np.array([size[1] / width, size[0] / height] * 2)
    if thin is not None:
        _thin(canvas, np.asarray(thin, np.float64).reshape(-1, 4) * stretch)
    if boxes is not None:
        found = np.asarray(boxes, np.float64).reshape(-1, 4) * stretch
        kinds = np.asarray(labels, np.int64).reshape(-1)
        void = np.zeros(len(found), bool) if ignore is None else np.asarray(ignore, bool)
        tags = _tags(kinds, names, scores, void)
        crowded = _crowded(found, tags, size) if crowded is None else crowded
        outlined = np.zeros(len(found), bool)
        if masks is not None:
            outlined = _instances(canvas, masks, kinds, 1 if crowded else _thick(*size) // 2)
        hidden = (
            outlined & ~void & crowded
        )  # of many, boxes around outlines would hide what is there
        canvas = _boxes(canvas, found, kinds, void, hidden, None if crowded else tags)
        if crowded:
            seen += sorted({int(k) for k in kinds} | set(listed))
    return _legend(canvas, seen, names) if seen else canvas


def is_crowd(
    frame: tuple[int, int],
    boxes: Any,
    labels: Any,
    names: Sequence[str] = (),
    scores: Any = None,
    ignore: Any = None,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
) -> bool:
    """Whether ``draw`` with these arguments has no room for a name at each box."""
    size = _drawn_size(*frame, min_side, max_side)
    stretch = np.array([size[1] / frame[1], size[0] / frame[0]] * 2)
    kinds = np.asarray(labels, np.int64).reshape(-1)
    void = np.zeros(len(kinds), bool) if ignore is None else np.asarray(ignore, bool)
    found = np.asarray(boxes, np.float64).reshape(-1, 4) * stretch
    return _crowded(found, _tags(kinds, names, scores, void), size)


def _drawn_size(height: int, width: int, min_side: int, max_side: int | None) -> tuple[int, int]:
    """Height and width that an image of ``height`` x ``width`` is drawn at."""
    most = max(1, LONGEST // max(1, height, width))
    factor = float(min(most, max(1, -(-min_side // max(1, min(height, width))))))
    if max_side is not None and max(height, width) * factor > max_side:
        factor = max_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def grid(
    images: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    title: str = "",
) -> np.ndarray:
    """Lays pictures out in rows, each with a caption below it: uint8 ``(H, W, 3)``.

    Pictures of several sizes are scaled to fit the cells, which have the size of the largest.

    Args:
        images: row after row.
        columns: pictures a row.
        captions: one a picture.
        heads: one a column, above it; neighbors that are alike share one and stand apart from
            the next.
        title: above all.
    """
    if not images:
        raise ValueError("grid needs at least one image")
    columns = max(1, min(columns, len(images)))
    height = max(i.shape[0] for i in images)
    width = max(i.shape[1] for i in images)
    size = int(np.clip(width / 22, 12, 22))
    font = _font(size)
    lines = [_wrap(printable(caption), font, width) for caption in captions or ()]
    deepest = max((len(words) for words in lines), default=0)
    gap, band = max(8, size // 2), int(size * (0.4 + 1.3 * deepest)) * bool(lines)
    rows = -(-len(images) // columns)
    starts = [k for k in range(1, columns) if heads is not None and heads[k] != heads[k - 1]]
    lefts = [
        gap + k * (width + gap) + 2 * gap * sum(s <= k for s in starts) for k in range(columns)
    ]
    top = gap + int(size * 2.6) * bool(title) + int(size * 2.2) * (heads is not None)
    sheet = Image.new("RGB", (lefts[-1] + width + gap, top + rows * (height + band + gap)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        large = _font(int(size * 1.3))
        text = _shorten(printable(title), large, sheet.width - 2 * gap)
        pen.text((gap, gap + size * 1.1), text, _INK, large, anchor="lm")
    for begin, end in zip([0, *starts], [*starts, columns], strict=True):
        if heads is None:
            break
        left, right = lefts[begin], lefts[end - 1] + width
        text = _shorten(printable(heads[begin]), _font(size), right - left)
        pen.text(((left + right) / 2, top - size * 1.2), text, _INK, _font(size), anchor="mm")
        pen.line((left, top - size * 0.3, right, top - size * 0.3), _INK, 1)
    for k, image in enumerate(images):
        row, column = divmod(k, columns)
        x, y = lefts[column], top + row * (height + band + gap)
        fitted = _fit(to_rgb8(image), height, width)
        left = x + (width - fitted.shape[1]) // 2
        sheet.paste(Image.fromarray(fitted), (left, y + (height - fitted.shape[0]) // 2))
        for i, text in enumerate(lines[k] if lines else ()):
            below = y + height + size * (0.85 + 1.3 * i)
            pen.text((x + width / 2, below), text, _INK, font, anchor="mm")
    return np.asarray(sheet).copy()


def save(path: str | Path, image: np.ndarray, durable: bool = True) -> Path:
    """Writes a PNG; makes the folder.

    Args:
        path: the PNG to write.
        image: ``(H, W, 3)`` uint8.
        durable: wait until it has reached the disk; False: for one of many.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    with replacing(path, durable=durable) as partial:
        Image.fromarray(image).save(partial, format="PNG", compress_level=4)
    return path


def save_mask(path: Path, mask: Any, names: Sequence[str]) -> None:
    """Writes a class map as PNG: a pixel holds the index of its class, 255 void.

    It has a palette of the colors that pictures have (a class named background: black), so that
    any viewer shows it and any reader finds the indices.

    Args:
        path: the PNG to write; its folder is made.
        mask: ``(H, W)`` class indices.
        names: of the classes.

    Raises:
        RunError: the file cannot be written.
    """
    image = Image.fromarray(np.asarray(mask).astype(np.uint8))
    image.putpalette([v for k in range(256) for v in _palette(k, names)])
    with replacing(path, durable=False) as partial:  # one an image
        image.save(partial, format="PNG")


def _palette(label: int, names: Sequence[str]) -> tuple[int, int, int]:
    if label == IGNORE_INDEX:
        return 255, 255, 255
    if label == _background(names):
        return 0, 0, 0
    return color(label)


def shrunk(image: np.ndarray, longest: int = LONGEST, smooth: bool = True) -> np.ndarray:
    """An image or class map ``(H, W[, C])`` whose longer side has at most ``longest`` pixels.

    Of one that is shrunk the first three channels stay.
    """
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    if image.ndim == 3:
        image = np.ascontiguousarray(image[:, :, : 3 if image.shape[2] >= 3 else 1])
    size = (max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
    small = _scale(image, size, smooth)
    return small.reshape(*size, *image.shape[2:])  # OpenCV drops a last axis of 1


def _scale(image: np.ndarray, size: tuple[int, int], smooth: bool) -> np.ndarray:
    """``(H, W[, 3])`` -> ``size``, a copy."""
    if image.shape[:2] == size:
        return image.copy()
    enlarge = size[0] >= image.shape[0]
    method = cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA
    method = method if smooth else cv2.INTER_NEAREST_EXACT
    return cv2.resize(image, (size[1], size[0]), interpolation=method)


def _fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    scale = min(height / image.shape[0], width / image.shape[1])
    if scale <= 1.0:
        return image
    size = (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale)))
    return _scale(image, size, smooth=True)


def _tint(image: np.ndarray, mask: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Semantic classes in color over the image; void is dark, a background stays as it is."""
    colors = PALETTE[np.where(mask == IGNORE_INDEX, 0, mask) % len(PALETTE)]  # -> (H, W, 3)
    colors = np.where((mask == IGNORE_INDEX)[:, :, None], _VOID, colors)
    tinted = cv2.addWeighted(image, 0.45, colors, 0.55, 0.0)
    plain = mask == _background(names)
    tinted[plain] = image[plain]
    return tinted


def _background(names: Sequence[str]) -> int:
    """The class without color; -1: there is none."""
    if BACKGROUND in names:
        return names.index(BACKGROUND)
    numbers = len(names) > 0 and names[0] == "0" and all(name.isdecimal() for name in names)
    return 0 if numbers else -1


def _instances(canvas: np.ndarray, masks: Any, labels: np.ndarray, thick: int) -> np.ndarray:
    """Fills and outlines each instance, in place; neighbors of a class differ in shade.

    Returns:
        bool ``(N,)``: where there was something to draw.
    """
    drawn = np.zeros(len(masks), bool)
    for k, whole in enumerate(masks):
        if isinstance(whole, dict):
            (part, top, left), size = rle_part(whole), tuple(whole["size"])
        else:
            part, top, left, size = np.asarray(whole), 0, 0, whole.shape
        part, top, left = resize_part(part, top, left, size, canvas.shape[:2])
        one = np.ascontiguousarray(part, np.uint8)
        drawn[k] = one.any()
        if not drawn[k]:
            continue
        shade = np.array(color(int(labels[k]))) * (1.0, 0.8, 1.15)[k % 3]
        inside = one.astype(bool)
        paint = np.clip(shade, 0, 255)
        part = canvas[top : top + one.shape[0], left : left + one.shape[1]]
        part[inside] = (0.5 * part[inside] + 0.5 * paint).astype(np.uint8)
        outline, _ = cv2.findContours(one, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        # Lighter than what it encloses: neighbors stay apart.
        ink, offset = [int(v) for v in 255 - (255 - paint) * 0.45], (left, top)
        cv2.drawContours(canvas, outline, -1, ink, max(1, thick), cv2.LINE_AA, offset=offset)
    return drawn


def _thick(height: int, width: int) -> int:
    """Of the lines of a few boxes, pixels."""
    return max(2, round(min(height, width) / 200))


def _thin(canvas: np.ndarray, boxes: np.ndarray) -> None:
    """Lines of one white pixel with a dark one outside, seen on any ground; drawn in place."""
    for x0, y0, x1, y1 in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(canvas, (x0 - 1, y0 - 1), (x1, y1), (40, 40, 40), 1)
    for x0, y0, x1, y1 in np.rint(boxes).astype(int).tolist():
        cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), (255, 255, 255), 1)


def _boxes(
    canvas: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    ignore: np.ndarray,
    hidden: np.ndarray,
    tags: Sequence[str] | None,
) -> np.ndarray:
    """Boxes, but those that are ``hidden``, each with its tag; None: thin lines without."""
    height, width = canvas.shape[:2]
    thick = 1 if tags is None else _thick(height, width)
    for box, label, void, hide in zip(boxes, labels, ignore, hidden, strict=True):
        if hide:
            continue
        # Pixel i covers [i, i + 1): the last pixel of a box ends before its right edge.
        x0, y0, x1, y1 = (int(v) for v in np.rint(box))
        x1, y1 = x1 - 1, y1 - 1
        ink = (150, 150, 150) if void else color(int(label))
        cv2.rectangle(canvas, (x0, y0), (x1, y1), ink, 1 if void else thick, cv2.LINE_AA)
    if tags is None:
        return canvas
    size = _tag_size(height, width)
    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    placed: list[tuple[float, float, float, float]] = []
    for k in np.argsort(boxes[:, 1], kind="stable"):
        ink = (150, 150, 150) if ignore[k] else color(int(labels[k]))
        placed.append(_tag(pen, tags[k], boxes[k], (height, width), ink, _font(size), placed))
    return np.asarray(sheet).copy()


def _tag_size(height: int, width: int) -> int:
    """Font size of the names, pixels."""
    side = min(height, width)
    return int(np.clip(side / 26, 12, max(30, side / 60)))


def _tags(labels: np.ndarray, names: Sequence[str], scores: Any, ignore: np.ndarray) -> list[str]:
    """What is written at each box."""
    message = [_name(int(k), names) for k in labels]
    if scores is not None:
        message = [
            f"{text} {float(s):.2f}" for text, s in zip(message, np.asarray(scores), strict=True)
        ]
    return [
        f"{text} (ignored)" if void else text for text, void in zip(message, ignore, strict=True)
    ]


def _crowded(boxes: np.ndarray, tags: Sequence[str], size: tuple[int, int]) -> bool:
    """Whether tags would hide what is there: many boxes, mostly narrow ones, or large tags."""
    if len(boxes) <= _FEW:
        return False
    if len(boxes) > CROWDED:
        return True
    height = _tag_size(*size)
    widths = np.array([_font(height).getlength(text) for text in tags])
    narrow = boxes[:, 2] - boxes[:, 0] < widths
    covered = 1.4 * height * widths.sum() / (size[0] * size[1])
    return bool(narrow.mean() > 0.5) or covered > MOST_COVERED


def _tag(
    pen: ImageDraw.ImageDraw,
    text: str,
    box: np.ndarray,
    size: tuple[int, int],
    ink: tuple[int, int, int],
    font: Any,
    placed: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Writes a name at a box, where no other name stands if there is such a place."""
    height, width = size
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    w, h = right - left + 8, bottom - top + 6
    x0, y0, x1, y1 = (float(v) for v in box)
    places = [(x0, y0 - h), (x0, y0), (x1 - w, y0 - h), (x0, y1), (x0, y1 - h), (x1 - w, y1)]
    inside = [(min(max(0.0, x), width - w), y) for x, y in places if 0 <= y <= height - h]
    inside = inside or [(min(max(0.0, x0), width - w), min(max(0.0, y0), height - h))]
    free = [p for p in inside if not any(_meet((*p, p[0] + w, p[1] + h), q) for q in placed)]
    # Whole pixels: at a fractional place just above the image Pillow cuts off the letters' tops.
    x, y = (float(int(v)) for v in (free or inside)[0])
    area = (x, y, x + w, y + h)
    pen.rectangle((x, y, x + w - 1, y + h - 1), fill=ink)
    pen.text((x + 4 - left, y + 3 - top), text, _on(ink), font)
    return area


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _legend(canvas: np.ndarray, classes: Sequence[int], names: Sequence[str]) -> np.ndarray:
    """Adds a strip below the image: a colored square and the name of each class."""
    width = canvas.shape[1]
    size = int(np.clip(width / 28, 11, max(20, width / 60)))
    font, line = _font(size), int(size * 1.6)
    entries, x, row = [], 6.0, 0
    plain = _background(names)
    for label in (c for c in dict.fromkeys(classes) if c != plain):
        text = "void" if label == IGNORE_INDEX else _name(label, names)
        text = _shorten(text, font, width - 2 * size - 12)
        length = font.getlength(text) + size * 2
        if x + length > width and x > 6:
            x, row = 6.0, row + 1
        entries.append((x, row, text, tuple(map(int, _VOID)) if text == "void" else color(label)))
        x += length
    strip = Image.new("RGB", (width, (row + 1) * line + 6), _PAPER)
    pen = ImageDraw.Draw(strip)
    for x, row, text, ink in entries:
        y = 3 + row * line + line / 2
        pen.rectangle((x, y - size / 2, x + size, y + size / 2), fill=ink)
        pen.text((x + size * 1.3, y), text, _INK, font, anchor="lm")
    return np.concatenate([canvas, np.asarray(strip)], axis=0)


def _name(label: int, names: Sequence[str]) -> str:
    return printable(names[label]) if 0 <= label < len(names) else f"class {label}"


def _on(ink: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast on that color."""
    r, g, b = ink
    return (0, 0, 0) if 0.299 * r + 0.587 * g + 0.114 * b > 140 else (255, 255, 255)


def _shorten(text: str, font: Any, width: float) -> str:
    return shortened(text, width, font.getlength)


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """The text on one line, or broken at a space onto two; what is left over is cut off."""
    if font.getlength(text) <= width:
        return [text]
    breaks = [i for i, c in enumerate(text) if c == " " and font.getlength(text[:i]) <= width]
    if not breaks:
        return [_shorten(text, font, width)]
    return [text[: breaks[-1]], _shorten(text[breaks[-1] + 1 :], font, width)]


@functools.cache
def _font(size: int) -> Any:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic and more."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)
