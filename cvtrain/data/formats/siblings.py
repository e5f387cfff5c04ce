"""Class folders that are none: images beside masks, labels or annotations of the same names."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from cvtrain.data.formats.base import SPLITS
from cvtrain.data.formats.files import FORMATS, inside, stem
from cvtrain.data.mask_file import levels_of

IMAGES = frozenset({"images", "image", "imgs", "img", "jpegimages"})
"""Words, lower case, for the images of pairs."""

_MASKS = "masks mask segmentations segmentation segmentationclass segmentationobject instances"
_LABELS = "labels label annotations annotation anns gt groundtruth"
ANNOTATIONS = frozenset([*_MASKS.split(), *_LABELS.split()])
"""Words for what is said about them."""

_ALONE = "images imgs jpegimages imagesets masks labels annotations segmentations groundtruth"
_NEVER = frozenset([*_ALONE.split(), "segmentationclass", "segmentationobject"])
"""Words that are no class even where nothing else looks like pairs."""

_SPLITS = frozenset(alias for aliases in SPLITS.values() for alias in aliases)
_SUFFIX = re.compile(r"[_\-. ]?(masks?|labels?|gt|groundtruth|seg|segmentation|annotation|matte)")
_LOOKED_AT = 6
_MOST_FOLDERS = 8
_MOST_COLORS = 32


def not_classes(root: Path, files: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """The two folders of which one holds what is said about the other's images; None: classes.

    Equal names alone say nothing, as many data sets number the images of each class anew: the names
    end in ``_mask`` or the like, or the images are of one size and one side's hold few colors.

    Args:
        root: absolute path of the data set.
        files: folder below the root -> its image files.

    Returns:
        Folder of the images and of the others; the same folder twice where it is called so and has
        no partner.
    """
    words = {folder: _word(folder) for folder in files}
    images = [f for f, word in words.items() if word in IMAGES or word in _SPLITS]
    others = [f for f, word in words.items() if word in ANNOTATIONS]
    if images and others:
        return images[0], others[0]
    never = next((f for f, word in words.items() if word in _NEVER), None)
    if never is not None:
        return never, never
    if len(files) > _MOST_FOLDERS:
        return None
    names = {f: {inside(stem(file), f): file for file in held} for f, held in files.items()}
    return next((pair for pair in permutations(names, 2) if _are_pairs(root, names, *pair)), None)


def _word(folder: str) -> str:
    """What a name says beside the split, numbers and kinds of files: train_masks -> masks."""
    name = posixpath.basename(folder).lower()
    parts = [p for p in re.split(r"[^a-z]+", name) if p not in ("", "png", "jpg", "gif", "files")]
    rest = [p for p in parts if p not in _SPLITS]
    return "".join(rest) if rest else "".join(parts)


def _are_pairs(root: Path, names: Mapping[str, Mapping[str, str]], a: str, b: str) -> bool:
    """Whether the files of folder ``b`` are masks of those of ``a``."""
    own, theirs = names[a], names[b]
    suffixed = 0
    for name in theirs:
        found = re.search(rf"{_SUFFIX.pattern}$", name.lower())
        suffixed += found is not None and name[: found.start()] in own
    if suffixed > len(theirs) / 2:
        return True
    both = sorted(own.keys() & theirs.keys())
    if not both or len(both) < 0.9 * min(len(own), len(theirs)):
        return False
    sample = [
        both[k] for k in np.linspace(0, len(both) - 1, min(_LOOKED_AT, len(both))).astype(int)
    ]
    few = []
    for name in sample:
        image, mask = _look(root / own[name]), _look(root / theirs[name])
        if image is None or mask is None or image[0] != mask[0]:
            return False
        few.append((image[1], mask[1]))
    return all(mask for _, mask in few) and not any(image for image, _ in few)


def _look(path: Path) -> tuple[tuple[int, int], bool] | None:
    """The size of an image, and whether it holds few colors; None where it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > 50_000_000:
                return None
            pixels = np.asarray(image.convert("RGB"), np.int64)
            lossy = image.format in ("JPEG", "MPO")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    if lossy:
        counts = np.bincount(pixels[..., 1].ravel(), minlength=256)
        return pixels.shape[:2], levels_of(counts) is not None
    return pixels.shape[:2], len(np.unique(packed)) <= _MOST_COLORS
