"""Augmentation: albumentations pipelines, and the operations it lacks or does slowly.

``_target_: cvtrain.augment.Affine`` (``ResizedCrop``, ``Resize``, ``HSV``) names the transforms of
ours; any albumentations transform stands beside them. They are loaded on first use, because
albumentations takes seconds to import and prediction needs none of it.
"""

from __future__ import annotations

from typing import Any

_OURS = ("Affine", "ResizedCrop", "Resize", "HSV")

__all__ = ["HSV", "Affine", "Resize", "ResizedCrop"]


def __getattr__(name: str) -> Any:
    if name in _OURS:
        from cvtrain.augment import transforms

        return getattr(transforms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
