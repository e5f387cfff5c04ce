"""What every backbone promises to the model built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

Output = Literal["maps", "pooled"]


class Backbone(nn.Module, ABC):
    """Images to feature maps, or to one vector.

    A model says once which of the two it takes, by ``use``; its input goes through
    ``self.normalize = backbone.normalizer()`` first. It keeps the backbone as ``self.backbone``:
    that is where ``backbone.weights=CHECKPOINT`` looks for it.

    Attributes:
        in_channels: channels of the images.
        channels: channels of each map, finest map first.
        strides: image pixels per map pixel, of each map.
        num_features: length of the pooled vector.
        mean, std: what the images are normalised with, in 0..1.
        minimum_size: the smallest side of an image that gives maps, pixels.
    """

    in_channels: int
    channels: list[int]
    strides: list[int]
    num_features: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    minimum_size: int = 1

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images ``(B, C, H, W)`` -> maps ``(B, channels[i], H_i, W_i)``; finest first.

        ``H_i`` is ``ceil(H / strides[i])``, a few less where a network has convolutions without
        padding (AlexNet, OverFeat).

        Raises:
            ValueError: a side smaller than ``minimum_size``.
        """

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)`` -> ``(B, num_features)``: the mean of the last map."""
        return self(x)[-1].mean(dim=(2, 3))

    def use(self, output: Output) -> None:
        """Drop what only the other output needs, so that every parameter left gets a gradient."""

    def check_size(self, image_size: int | Sequence[int] | None) -> None:
        """Raise ValueError where an image of ``image_size`` (pixels, or (H, W)) is too small."""
        if image_size is None:
            return
        sides = [image_size] if isinstance(image_size, int) else list(image_size)
        if min(sides) < self.minimum_size:
            shown = " x ".join(map(str, sides if len(sides) > 1 else sides * 2))
            raise ValueError(
                f"images of {shown} are too small: this network needs {self.minimum_size} pixels "
                f"a side or more (data.image_size={self.minimum_size})"
            )

    def normalizer(self) -> Normalize:
        """The input normalisation this backbone expects."""
        return Normalize(self.in_channels, self.mean, self.std)
