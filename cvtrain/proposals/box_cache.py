"""Proposals that were made before, one small file an image, outside the data set.

An entry goes by the content of the image file and by the settings: a data set that is moved, copied
or split anew keeps its proposals, an image that is edited loses them. A file that is damaged counts
as none. Entries are written beside their names and renamed, by as many processes as there are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from cvtrain import storage
from cvtrain.proposals.selective_search import VERSION, Boxes, Settings
from cvtrain.storage import BROKEN_NPZ, replacing

KEPT = 2000
"""Boxes kept of an image where fewer are asked for, so that a smaller number finds them too."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/cvtrain/proposals``, by default below ``~/.cache``."""
    return storage.cache_folder("proposals")


def content_key(content: bytes | memoryview | np.ndarray) -> bytes:
    """16 bytes that stand for an image file's bytes, or for pixels that were never in a file."""
    hashed = hashlib.blake2b(digest_size=16)
    if isinstance(content, np.ndarray):
        hashed.update(f"{content.dtype.str} {content.shape}".encode())
        content = np.ascontiguousarray(content).data
    hashed.update(content)
    return hashed.digest()


class Cache:
    """The entries of one choice of settings (``max_boxes`` aside) and channels.

    Args:
        chosen: settings of selective search.
        channels: of the images, as the loader decodes them.
    """

    def __init__(self, chosen: Settings, channels: int) -> None:
        self.wanted = chosen.max_boxes
        self.settings = replace(chosen, max_boxes=max(KEPT, chosen.max_boxes))
        text = json.dumps({**replace(chosen, max_boxes=0).plain(), "channels": channels})
        name = hashlib.blake2b(f"{VERSION} {text}".encode(), digest_size=8).hexdigest()
        self.folder = cache_folder() / name

    def path(self, key: bytes) -> Path:
        """The entry's file."""
        text = key.hex()
        return self.folder / text[:2] / f"{text[2:]}.npz"

    def load(self, key: bytes) -> Boxes | None:
        """The best boxes of an image, as many as are wanted; None: they have to be made."""
        try:
            with self.path(key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                boxes, scores = arrays["boxes"], arrays["scores"]
                total, seconds = int(arrays["total"]), float(arrays["seconds"])
        except BROKEN_NPZ:
            return None
        sound = boxes.ndim == 2 and boxes.shape[1] == 4 and scores.shape == (len(boxes),)
        if not sound or not 1 <= len(boxes) <= total or len(boxes) < min(self.wanted, total):
            return None
        return self.cut(Boxes(boxes, scores, total, seconds))

    def save(self, key: bytes, found: Boxes) -> None:
        """Writes an entry.

        Raises:
            RunError: no room, or no right to write there.
        """
        path = self.path(key)
        remedy = "make room, or set XDG_CACHE_HOME to another folder"
        # One an image; a damaged one is seen, and made again.
        with replacing(path, remedy, durable=False) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(found))

    def cut(self, found: Boxes) -> Boxes:
        """The best of them, as many as are wanted."""
        return replace(found, boxes=found.boxes[: self.wanted], scores=found.scores[: self.wanted])
