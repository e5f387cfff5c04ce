"""Where cvtrain keeps what it would otherwise make again: below the user's cache, never in data."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = {
    "features": "of images by fixed backbones, and R-CNN's; computed again when they are asked for",
    "gate": "which files were found good; they are opened and looked at again",
    "proposals": "of selective search, one file per image; computed again, about 1 s per image",
}
"""Folder -> what is in it, and what it costs to be without."""


def cache_home() -> Path:
    """``$XDG_CACHE_HOME/cvtrain``, by default below ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(home) / "cvtrain"


def cache_folder(kind: str) -> Path:
    """The folder of one of ``KINDS``."""
    assert kind in KINDS, kind
    return cache_home() / kind
