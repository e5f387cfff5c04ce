"""Augmentation: albumentations pipelines, and the operations it lacks or does slowly.

``_target_: cvtrain.augment.Affine`` names a transform of ours; any albumentations transform stands
beside them. They are loaded on first use, because albumentations takes seconds to import and
prediction needs none of it.
"""

from __future__ import annotations

import importlib
from typing import Any

_OURS = {
    "transforms": ("Affine", "ResizedCrop", "Resize", "HSV"),
    "scale_jitter": ("ScaleJitter",),
    "elastic": ("Elastic",),
    "patch": ("SampledPatch",),
    "pixels": ("Tone", "WhiteBalance", "Gray", "Noise", "Blur"),
    "occlusion": ("CutOut", "GridDropout"),
    "weather": ("Fog", "Rain", "Snow", "SunFlare", "Shadow"),
    "policies": ("RandAugment", "TrivialAugment"),
}

__all__ = [
    "HSV",
    "Affine",
    "Blur",
    "CutOut",
    "Elastic",
    "Fog",
    "Gray",
    "GridDropout",
    "Noise",
    "Rain",
    "RandAugment",
    "Resize",
    "ResizedCrop",
    "SampledPatch",
    "ScaleJitter",
    "Shadow",
    "Snow",
    "SunFlare",
    "Tone",
    "TrivialAugment",
    "WhiteBalance",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    for module, names in _OURS.items():
        if name in names:
            return getattr(importlib.import_module(f"cvtrain.augment.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
