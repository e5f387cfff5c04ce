"""How a segmentation network is shown an image: fitted, whole or in tiles; mirrored, in sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from cvtrain.errors import RunError, UsageError
from cvtrain.layers.pad import mirror
from cvtrain.layers.tiles import ALIGN, Around, Blend, Spans, Window
from cvtrain.models.base import Model, evaluating
from cvtrain.structures import IGNORE_INDEX, Placement, Target

Mode = Literal["fit", "whole", "tiles"]

OVERLAP = 0.25
"""Of tiles, where the user does not say: neighbors share a quarter of a side."""
STRIP = 1 << 26
"""Numbers of the strip of a map that is held at once, all classes: 256 MiB."""
CHUNK = 1 << 23
"""Numbers of the rows that are compared at once."""


@dataclass(frozen=True)
class View:
    """One look at an image: its size times ``scale``, mirrored or not."""

    scale: float
    flip: bool


PLAIN = View(1.0, False)
"""The look that training has, and the loss is of."""


class Inference:
    """Class maps of images of any size, from one look at each or the mean of several.

    Tiles of one look blend their logits; looks of several sizes, or mirrored, have the mean of
    their probabilities taken at the image's own pixels.

    Args:
        mode: ``fit``: the image in the network's input, as in training. ``whole``: the image as it
            is on disk, at once. ``tiles``: windows of it, likewise not resized.
        tile_size: pixels of a window, an int or [H, W].
        overlap: share of a window's side that it has in common with the next, 0..0.9. None: 0.25,
            or 0 where the model is shown what lies around its window.
        flip: whether the mirrored image (left-right) is looked at, too.
        scales: sizes at which the image is looked at, 1 being that of ``mode``.
        batch_size: windows that the network sees at once.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(
        self,
        mode: Mode = "fit",
        tile_size: int | Sequence[int] = 512,
        overlap: float | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        batch_size: int = 1,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode}: expected {' | '.join(get_args(Mode))}")
        size = [tile_size] * 2 if isinstance(tile_size, int) else list(tile_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"tile_size={tile_size}: expected pixels, an int or [H, W]")
        if overlap is not None and not 0 <= overlap <= 0.9:
            raise ValueError(f"overlap={overlap}: expected a share of the tile, 0..0.9")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales={list(scales)}: expected numbers above 0, as [0.75, 1, 1.25]")
        self.mode, self.flip = mode, bool(flip)
        self.tile = (int(size[0]), int(size[1]))
        self.overlap = overlap
        self.batch_size = max(1, int(batch_size))
        sides = (False, True) if flip else (False,)
        self.views = [View(float(s), side) for s in scales for side in sides]

    @property
    def native(self) -> bool:
        """Whether images are shown as they are on disk, not fitted into the network's input."""
        return self.mode != "fit"

    @property
    def plain(self) -> bool:
        """Whether the fitted image is looked at once, as in training."""
        return self.mode == "fit" and self.views == [PLAIN]

    def check(self, model: Model) -> None:
        """Raise UsageError where this model cannot be shown images so."""
        if takes_any_size(model):
            return
        name = type(model).__name__
        if self.mode == "whole":
            raise UsageError(
                f"task.inference.mode=whole: {name} takes images of one size; use tiles or fit"
            )
        if any(view.scale != 1 for view in self.views):
            raise UsageError(
                f"task.inference.scales: {name} takes images of one size; leave it at [1.0]"
            )

    def masks(
        self,
        model: Model,
        images: Tensor,
        names: Sequence[str],
        truths: Sequence[Target] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Loss terms and the class of every pixel.

        Args:
            model: whose predictions have logits.
            images: ``(B, C, H, W)`` on its device.
            names: of the images, for the error.
            truths: class maps ``(H, W)`` there, for the loss; None: no loss.

        Returns:
            The terms of the unmirrored image at scale 1, seen for it alone where that is no view:
            means over windows, weighted with their pixels that are not void. uint8 ``(B, H, W)``.

        Raises:
            RunError: logits that are not finite.
            UsageError: a model without logits.
        """
        losses = _Losses(truths)
        height, width = images.shape[-2:]
        out = torch.zeros((len(images), height, width), dtype=torch.uint8, device=images.device)
        for strip, left, top in self._strips(model, images, losses):
            check_finite(strip, names)
            rows, columns = strip.shape[-2:]
            out[:, top : top + rows, left : left + columns] = strip.argmax(dim=1)
        return losses.means(), out

    def logits(self, model: Model, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> float32 ``(B, K, H, W)`` at once; of several views the logarithm of
        their mean probabilities.
        """
        strips = [strip for strip, _, _ in self._strips(model, images, _Losses(None))]
        found = torch.cat(strips, dim=2)
        return found if len(self.views) == 1 else found.clamp(min=1e-30).log()

    # One image after another, from the top down --------------------------------------------------

    def _strips(
        self, model: Model, images: Tensor, losses: _Losses
    ) -> Iterator[tuple[Tensor, int, int]]:
        """Rows of the map ``(B, K, rows, columns)``, and the left and top pixel of each part.

        Logits where there is one view, else the mean of the probabilities of all. The map of a wide
        image comes in panels, so that what is held of it is bounded whatever its width and K.
        """
        batch, _, height, width = images.shape
        planes = batch * int(getattr(model, "num_classes", 1))
        panel = width
        if self.mode == "tiles":
            held = planes * self.tile[0] * sum(v.scale for v in self.views)
            panel = max(self.tile[1], int(STRIP / held))
        if losses.wanted and PLAIN not in self.views:
            for _ in self._look_down(model, images, PLAIN, (0, width), losses, max(1, height // 8)):
                pass  # for its loss alone
        shown = {v.scale: resized(images, v.scale) for v in self.views}
        for left in range(0, width, panel):
            columns = (left, min(width, left + panel))
            step = max(1, CHUNK // (planes * (columns[1] - left)))
            looks = [
                self._look_down(model, shown[v.scale], v, columns, losses, step, (height, width))
                for v in self.views
            ]
            for top, parts in zip(range(0, height, step), zip(*looks, strict=True), strict=True):
                if len(parts) == 1:
                    yield parts[0], left, top
                else:
                    yield torch.stack([p.softmax(dim=1) for p in parts]).mean(dim=0), left, top

    def _look_down(
        self,
        model: Model,
        images: Tensor,
        view: View,
        columns: tuple[int, int],
        losses: _Losses,
        step: int,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Tensor]:
        """Logits of one view, ``step`` rows at a time, at the pixels of an image of ``size``."""
        shape = (int(images.shape[-2]), int(images.shape[-1]))
        height, width = size or shape
        like = torch.zeros(0, device=images.device)
        low, high, down = Placement.between(height, shape[0], like)
        left, right, across = (x[slice(*columns)] for x in Placement.between(width, shape[1], like))
        first, last = int(left[0]), int(right[-1]) + 1
        counted = losses.within(columns) if view == PLAIN else _Losses(None)
        blend = self._blend(model, images, view.flip, (first, last), counted)
        for top in range(0, height, step):
            part = slice(top, min(height, top + step))
            begin, end = int(low[part][0]), int(high[part][-1]) + 1
            strip = blend.rows(begin, end)
            if shape != (height, width):  # as Placement.logits_to_original
                share = down[part, None]
                above, below = strip[:, :, low[part] - begin], strip[:, :, high[part] - begin]
                strip = above * (1 - share) + below * share
                strip = strip[..., left - first] * (1 - across) + strip[..., right - first] * across
            yield strip

    def _blend(
        self, model: Model, images: Tensor, flip: bool, columns: tuple[int, int], losses: _Losses
    ) -> Blend:
        height, width = images.shape[-2:]
        tiled = self.mode == "tiles"
        context = model_context(model) if tiled else 0
        fixed = not takes_any_size(model)
        tile = self.tile if tiled else (height, width)
        overlap = (0.0 if context else OVERLAP) if self.overlap is None else self.overlap
        rows, along = (
            Spans.over(n, t, overlap, 1 if fixed else ALIGN)
            for n, t in zip((height, width), tile, strict=True)
        )

        def see(crops: Tensor, around: Around, windows: Sequence[Window]) -> Tensor:
            targets = losses.targets(windows)
            shape = crops.shape[-2:]
            short = (tile[0] - shape[0], tile[1] - shape[1]) if fixed else (0, 0)
            if any(short):  # an image that is smaller than the network's one size
                crops = mirror(crops, (0, short[1], 0, short[0]))
                targets = grown(targets, short)
            if flip:
                crops, around = crops.flip(-1), (around[1], around[0], *around[2:])
            terms, maps = _look(model, crops, around, targets)
            losses.add(terms, targets)
            maps = maps.flip(-1) if flip else maps
            return maps[..., : shape[0], : shape[1]] if any(short) else maps

        together = max(1, self.batch_size // len(images))
        return Blend(images, rows, along, see, context, columns, together)


class _Losses:
    """Loss terms of windows: their means, weighted with the pixels that are not void.

    Args:
        truths: class maps of the images that the windows are of; None: no loss is wanted.
        columns: a window that begins in others counts for nothing here.
    """

    def __init__(
        self, truths: Sequence[Target] | None, columns: tuple[int, int] | None = None
    ) -> None:
        self.truths, self.columns = truths, columns
        self.totals: dict[str, Tensor] = {}
        self.pixels: list[Tensor] = []

    @property
    def wanted(self) -> bool:
        return self.truths is not None

    def within(self, columns: tuple[int, int]) -> _Losses:
        """The same sums, for the windows that begin in these columns."""
        part = _Losses(self.truths, columns)
        part.totals, part.pixels = self.totals, self.pixels
        return part

    def targets(self, windows: Sequence[Window]) -> list[Target] | None:
        """One for each window and image, window after window."""
        if self.truths is None:
            return None
        found = []
        for w in windows:
            first, end = self.columns or (w.left, w.right)
            for truth in self.truths:
                assert truth.mask is not None
                mask = truth.mask[w.top : w.bottom, w.left : w.right]
                if not first <= w.left < end:
                    mask = torch.full_like(mask, IGNORE_INDEX)
                found.append(Target(mask=mask))
        return found

    def add(self, terms: dict[str, Tensor], targets: list[Target] | None) -> None:
        """Take in the terms of some windows."""
        if targets is None:
            return
        masks = [t.mask for t in targets if t.mask is not None]
        pixels = torch.stack([(m != IGNORE_INDEX).sum() for m in masks]).sum().float()
        self.pixels.append(pixels)
        for name, value in terms.items():
            part = value if name.startswith("num_") else value * pixels
            self.totals[name] = self.totals.get(name, torch.zeros_like(part)) + part

    def means(self) -> dict[str, Tensor]:
        """Of each term; counts are added up."""
        if not self.pixels:
            return {}
        pixels = torch.stack(self.pixels).sum().clamp(min=1)
        return {k: v if k.startswith("num_") else v / pixels for k, v in self.totals.items()}


def takes_any_size(model: Model) -> bool:
    """Whether a model takes images of any size (``SegmentationModel.any_size``)."""
    return bool(getattr(model, "any_size", True))


def model_context(model: Model) -> int:
    """Pixels that a model is to be shown around a tile (``SegmentationModel.context``)."""
    return int(getattr(model, "context", 0))


def check_finite(logits: Tensor, names: Sequence[str]) -> None:
    """Raise RunError where they are not all finite."""
    if not bool(torch.isfinite(logits).all()):
        raise RunError(
            f"the model's logits for {', '.join(names)} are not finite: training has "
            "diverged; lower optimizer.lr, or set trainer.precision=32-true"
        )


def resized(images: Tensor, scale: float) -> Tensor:
    """``(B, C, H, W)`` images at another size, in the same type; bilinear, averaging below half."""
    if scale == 1:
        return images
    size = [max(1, round(n * scale)) for n in images.shape[-2:]]
    exact = images.dtype == torch.uint8 and images.device.type == "cpu"
    x = images if exact else images.float()
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=scale < 0.5)
    return x if x.dtype == images.dtype else x.round().to(images.dtype)


def grown(targets: list[Target] | None, by: tuple[int, int]) -> list[Target] | None:
    """Class maps with so many void rows below and columns at the right."""
    if targets is None:
        return None
    return [
        Target(mask=F.pad(t.mask, (0, by[1], 0, by[0]), value=IGNORE_INDEX))
        for t in targets
        if t.mask is not None
    ]


def _look(
    model: Model, images: Tensor, around: Around, targets: list[Target] | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Loss terms, and logits float32 without the pixels around."""
    terms: dict[str, Tensor] = {}
    if any(around):
        with evaluating(model):
            outputs: Any = model(images, around)
            if targets is not None:
                terms = model.compute_loss(outputs, targets)
            predictions = model.decode(outputs)
    elif targets is not None:
        terms, predictions = model.loss_and_predict(images, targets)
    else:
        predictions = model.predict(images)
    found = [p.logits for p in predictions if p.logits is not None]
    if len(found) < len(images):
        raise UsageError(
            f"task.inference: {type(model).__name__} gives classes without logits, which cannot "
            "be blended; use task.inference.mode=fit without flip and scales"
        )
    return terms, torch.stack(found).float()
