"""What is done to one training sample: crops, mosaic, the pipeline, copy-paste, a second try.

Everything follows from the sample's own generator and the epoch, nothing from the past.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cvtrain.augment.copy_paste import copy_paste
from cvtrain.augment.geometry import fit
from cvtrain.augment.mosaic import mosaic
from cvtrain.augment.object_crops import ObjectCrops
from cvtrain.augment.scene import Scene, box_areas
from cvtrain.structures import IGNORE_INDEX

if TYPE_CHECKING:
    from cvtrain.augment.pipeline import Pipeline

TRIES = 4
"""Draws for an image whose objects a draw loses, all of them; then it is left as it is."""


@dataclass(frozen=True)
class Augmentation:
    """A compiled ``augment`` node.

    Attributes:
        pipeline: transforms, ending at the network's input.
        mosaic: probability that a sample is made of four images.
        min_visibility, min_area: which boxes a mosaic or a pasted object drops.
        copy_paste: probability that objects of another image are pasted in.
        closes: the first epoch without mosaic and copy-paste; None: every epoch has them.
        crops: a sample is a crop around an object; None: it is the whole image.
    """

    pipeline: Pipeline
    mosaic: float = 0.0
    min_visibility: float = 0.1
    min_area: float = 1.0
    copy_paste: float = 0.0
    closes: int | None = None
    crops: ObjectCrops | None = None

    def __call__(
        self,
        scene: Scene,
        epoch: int,
        generator: np.random.Generator,
        partner: Callable[[], Scene],
    ) -> tuple[Scene | None, list[str]]:
        """The augmented scene, or None where no draw kept an object; and what was done, in words.

        Args:
            scene: an original.
            epoch: from 0.
            generator: all draws are its.
            partner: gives another original, drawn from the same generator.
        """
        for _ in range(TRIES):
            out, message = self._draw(scene, epoch, generator, partner)
            if not lost(scene, out) or not self._can_be_kept(scene):
                return out, message
        return None, []

    def _draw(
        self,
        scene: Scene,
        epoch: int,
        generator: np.random.Generator,
        partner: Callable[[], Scene],
    ) -> tuple[Scene, list[str]]:
        is_open = self.closes is None or epoch < self.closes
        limits = {"min_visibility": self.min_visibility, "min_area": self.min_area}
        message = []
        if self.crops is not None:
            scene, done = self.crops(scene, epoch, generator)
            message.append(done)
        if is_open and self.mosaic > 0 and generator.random() < self.mosaic:
            scenes = [scene, partner(), partner(), partner()]
            height, width = self.pipeline.size
            scene = mosaic(scenes, generator, height, width, resize=self.pipeline.resize, **limits)
            message.append("mosaic")
        out = self.pipeline(scene, generator)
        message += self.pipeline.applied
        if is_open and self.copy_paste > 0 and generator.random() < self.copy_paste:
            out = copy_paste(out, self.pipeline(partner(), generator), generator, **limits)
            message.append("copy-paste")
        return out, message

    def _can_be_kept(self, scene: Scene) -> bool:
        """Whether any object is large enough in the network's input, or there is a mask."""
        if not len(scene.boxes):
            return True
        height, width = scene.image.shape[:2]
        place = fit(height, width, *self.pipeline.size, self.pipeline.resize)
        scale = place.height / height * place.width / width
        return bool((box_areas(scene.boxes) * scale >= self.min_area).any())


def lost(before: Scene, after: Scene) -> bool:
    """Whether all objects that count, or all pixels with a class, are gone."""
    if len(before.boxes):
        return after.countable == 0 if before.countable else len(after.boxes) == 0
    if before.mask is None or after.mask is None:
        return False
    return bool((after.mask == IGNORE_INDEX).all() and (before.mask != IGNORE_INDEX).any())
