"""What every backbone promises to the model built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from cvtrain.layers.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize

Output = Literal["maps", "pooled", "connected"]

PROBE = 64
"""Side of the image on which it is tried out what a map depends on, pixels."""


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
        mean, std: what the images are normalized with, in 0..1.
        minimum_size: the smallest side of an image that gives maps, pixels.
        architecture: what a message calls the network, e.g. ``resnet18``.
        classifiers: beginnings of the names that the network's own classifier has in a file.
    """

    in_channels: int
    channels: list[int]
    strides: list[int]
    num_features: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    minimum_size: int = 1
    architecture: str = ""
    classifiers: Sequence[str] = ("fc.", "head.", "heads.", "classifier.")
    _fixed: frozenset[str] = frozenset()  # parameters that ``hold`` took the gradient from
    _held: tuple[str, ...] = ()  # modules that ``hold`` keeps in eval mode

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not cls.architecture:
            cls.architecture = cls.__name__

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalized images ``(B, C, H, W)`` -> maps ``(B, channels[i], H_i, W_i)``; finest first.

        ``H_i`` is ``H / strides[i]``, rounded up or down, a few less where a network has
        convolutions without padding (AlexNet, OverFeat).

        Raises:
            ValueError: a side smaller than ``minimum_size``.
        """

    def pooled(self, x: Tensor) -> Tensor:
        """Normalized images ``(B, C, H, W)`` -> ``(B, num_features)``: the mean of the last map."""
        return self(x)[-1].mean(dim=(2, 3))

    def last_and_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last map ``(B, channels[-1], h, w)`` and what ``pooled`` gives, of the same images.

        Not after ``use("maps")``. A backbone whose ``pooled`` is its own overrides this too, or
        runs twice.
        """
        if type(self).pooled is Backbone.pooled:
            last = self(x)[-1]
            return last, last.mean(dim=(2, 3))
        return self(x)[-1], self.pooled(x)

    def set_output(self, output: Output) -> None:
        """Drop what only another output needs, so that every parameter left gets a gradient.

        ``connected``: the maps, and the layers that ``fc_layers`` gives.
        """

    def fc_layers(self) -> Any:
        """Connected layers behind the last map, as convolutions; None: there are none such.

        A module with ``fc1`` (a convolution of the last map, not padded), ``act1``, ``fc2`` (1 x 1,
        to ``num_features`` channels) and ``act2``.
        """
        return None

    def truncate(self, index: int) -> None:
        """Let the maps end with ``self.channels[index]``: every parameter that learns has a part
        in one of them. To be called once, after ``use("maps")``.

        Here, layers that come after are fixed and run for nothing; a backbone that can drop them
        overrides this.
        """
        names, parameters = zip(*self.named_parameters(), strict=True)
        side = max(PROBE, self.minimum_size)
        modes = [(m, m.training) for m in self.modules()]
        self.eval()  # no statistics of a batch norm move
        x = torch.zeros(1, self.in_channels, side, side, device=parameters[0].device)
        with torch.enable_grad():
            last = self(x)[index].sum()
        found = torch.autograd.grad(last, parameters, allow_unused=True)
        for module, mode in modes:
            module.training = mode
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                self.get_parameter(name).requires_grad_(False)
        self.channels, self.strides = self.channels[: index + 1], self.strides[: index + 1]

    def dilate(self, stride: int) -> bool:
        """Run the last stage at ``stride``, half its own, with dilated convolutions in place of a
        strided one, so that a place still sees as much (a trous; weights stay what they are).

        Returns:
            Whether this network can; nothing has changed where it cannot.
        """
        return False

    def split(self, stride: int) -> tuple[int, int]:
        """End the maps at ``stride``: the layers after it are run by ``later`` alone, on regions.

        Instead of ``use``, and once.

        Returns:
            Channels of what ``later`` gives, and the side of the regions' maps that it takes.

        Raises:
            ValueError: a network whose last layers do not run on a region's map.
        """
        raise ValueError(
            f"the last layers of {self.architecture} cannot be run on regions, those of a ResNet "
            "and of VGG can: choose such a backbone, or model.top=fc"
        )

    def forward_tail(self, x: Tensor) -> Tensor:
        """The layers that ``split`` cut off, on maps ``(R, C, side, side)`` of its stride.

        Raises:
            ValueError: ``split`` was not called.
        """
        raise ValueError(f"{self.architecture} was not split")

    def input_layers(self) -> list[str]:
        """Names of the weights that see the image itself: the first convolution's."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                return [f"{name}.weight"]
        return []

    def translations(self, state: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
        """A file's tensors in the names of this backbone, where others name them otherwise.

        Returns:
            Pairs (a few words on the translation, tensors by name); those that fit best are taken.
        """
        return []

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

    def stages(self) -> list[list[str]]:
        """Names of all entries of the state dict, from the image to the last map.

        Every entry (parameter or buffer) stands in exactly one stage. Transfer learning fixes
        stages, or lets them learn at rates of their own.

        Here: the children in the order in which they are registered, those of a container
        (``Sequential``, ``ModuleList``, ``ModuleDict``) one by one; what belongs to no child goes
        with the first. A child without a kernel (a norm) goes with the one before it. A backbone
        whose children come in another order overrides this.
        """
        return stages_by_children(self)

    def freeze_stages(self, count: int) -> None:
        """Fix the first ``count`` stages: no gradients, and eval mode whatever ``train()`` sets.

        So their weights, and the statistics of their batch norms, stay bit for bit what they are.
        Stages above them that an earlier call fixed are trained again, from the next ``train()``
        on in the mode that it sets.
        """
        fixed = {name for stage in self.stages()[:count] for name in stage}
        for name, parameter in self.named_parameters():
            if name in fixed and parameter.requires_grad:
                self._fixed |= {name}
                parameter.requires_grad_(False)
            elif name not in fixed and name in self._fixed:
                self._fixed -= {name}
                parameter.requires_grad_(True)
        state = list(self.state_dict())
        held = []
        for prefix, _ in self.named_modules():
            inside = [name for name in state if not prefix or name.startswith(f"{prefix}.")]
            if inside and fixed.issuperset(inside):
                held.append(prefix)
        self._held = tuple(held)
        self._rest()

    def _rest(self) -> None:
        """Eval mode for the modules of fixed stages; by name, as a strategy may replace modules."""
        for name in self._held:
            nn.Module.train(self.get_submodule(name), False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._rest()
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "stages":  # a module would be registered, and never be found
            raise AttributeError("stages is a method of every Backbone: give the list another name")
        super().__setattr__(name, value)

    def normalizer(self) -> Normalize:
        """The input normalization this backbone expects."""
        return Normalize(self.in_channels, self.mean, self.std)


def stages_by_children(module: nn.Module) -> list[list[str]]:
    """``Backbone.stages`` of a module whose children stand in the order of its forward."""
    prefixes = []
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            prefixes += [f"{name}.{inner}." for inner, _ in child.named_children()]
        else:
            prefixes.append(f"{name}.")
    state = module.state_dict()
    groups = [[key for key in state if key.startswith(prefix)] for prefix in prefixes]
    own = [key for key in state if not key.startswith(tuple(prefixes))]
    first = next((group for group in groups if group), [])
    rest = groups[groups.index(first) + 1 :] if first else []
    return join_norms([own + first, *rest], state)


def join_norms(groups: Sequence[Sequence[str]], state: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names, empty ones left out, those without a kernel joined to the one before them.

    Args:
        groups: names of entries of ``state``, from the image to the last map.
        state: a state dict.
    """
    joined: list[list[str]] = []
    begun = False  # whether the last group has a kernel: one in front of all kernels waits for it
    for group in groups:
        kernel = any(state[name].ndim > 1 for name in group)
        if not joined or (kernel and begun):
            joined.append([])
            begun = False
        joined[-1] += group
        begun = begun or kernel
    return [group for group in joined if group]
