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
    """

    in_channels: int
    channels: list[int]
    strides: list[int]
    num_features: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images ``(B, C, H, W)`` -> maps ``(B, channels[i], H_i, W_i)``.

        ``H_i`` is about ``H / strides[i]``; finest first.
        """

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)`` -> ``(B, num_features)``: the mean of the last map."""
        return self(x)[-1].mean(dim=(2, 3))

    def use(self, output: Output) -> None:
        """Drop what only the other output needs, so that every parameter left gets a gradient."""

    def normalizer(self) -> Normalize:
        """The input normalisation this backbone expects."""
        return Normalize(self.in_channels, self.mean, self.std)
