"""Where dense detectors look: anchors on grids, SSD's default boxes, points, and k-means on IoU.

All are made anew from the sizes of the maps, so that a model takes images of any size. The order
everywhere: rows, columns within a row, then the boxes of a place; what a head gives as
``(B, A * K, H, W)`` becomes ``(B, H * W * A, K)`` by ``flatten_map``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cvtrain.layers.boxes import corners

Size = tuple[int, int]


def flatten_map(x: Tensor, numbers: int) -> Tensor:
    """``(B, A * numbers, H, W)`` -> ``(B, H * W * A, numbers)``, the order of the anchors."""
    batch, _, height, width = x.shape
    x = x.view(batch, -1, numbers, height, width)  # (B, A, numbers, H, W)
    return x.permute(0, 3, 4, 1, 2).reshape(batch, -1, numbers)


class GridAnchors:
    """Boxes of several scales and aspect ratios at every place of every map (Ren et al. 2015).

    torchvision's generator: cell (0, 0) has its anchors around the pixel (0, 0), and their sides
    are rounded to whole pixels. The distance between neighbors is the map's stride.

    Args:
        scales: for each map the roots of the anchors' areas, pixels.
        ratios: height / width, the same for all maps.
        strides: image pixels per map pixel, one a map.

    Raises:
        ValueError: another number of maps in ``scales`` than in ``strides``.
    """

    def __init__(
        self, scales: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        if len(scales) != len(strides):
            raise ValueError(f"anchors for {len(scales)} maps, there are {len(strides)}")
        self.strides = list(strides)
        self.per_place = [len(s) * len(ratios) for s in scales]
        sizes = tuple(tuple(s) for s in scales)
        self._generator = AnchorGenerator(sizes, (tuple(ratios),) * len(sizes))

    def __call__(self, map_sizes: Sequence[Size], device: torch.device) -> list[Tensor]:
        """Sizes (H, W) of the maps -> for each float32 ``(H * W * A, 4)`` xyxy pixels."""
        self._generator.set_cell_anchors(torch.float32, device)
        steps = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        return self._generator.grid_anchors([list(s) for s in map_sizes], steps)


def default_box_sizes(
    scales: Sequence[float], ratios: Sequence[Sequence[float]]
) -> list[list[tuple[float, float]]]:
    """SSD's default boxes (Liu et al. 2016, section 2.2), (width, height) in shares of the image.

    Args:
        scales: one a map, and one more, with which the last map's is averaged.
        ratios: for each map the width / height r of its boxes beside 1; 1/r comes with it.

    Returns:
        For each map: the scale, the geometric mean with the next, each ratio and its inverse;
        nothing is larger than the image.

    Raises:
        ValueError: not one scale more than there are maps.
    """
    if len(scales) != len(ratios) + 1:
        raise ValueError(
            f"{len(scales)} scales for {len(ratios)} maps: give one a map and one for the end"
        )
    result = []
    for scale, following, wide in zip(scales, scales[1:], ratios, strict=False):
        between = math.sqrt(scale * following)
        pairs = [(scale, scale), (between, between)]
        for ratio in wide:
            w, h = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            pairs += [(w, h), (h, w)]
        result.append([(min(w, 1.0), min(h, 1.0)) for w, h in pairs])
    return result


def default_boxes(
    sizes: Sequence[Sequence[tuple[float, float]]],
    map_sizes: Sequence[Size],
    image_size: Size,
    device: torch.device,
    steps: Sequence[float] | None = None,
) -> Tensor:
    """SSD's default boxes around the centers of the maps' cells.

    Args:
        sizes: what ``default_box_sizes`` gives.
        map_sizes: (H, W) of each map.
        image_size: height, width in pixels.
        device: where the result lies.
        steps: pixels between neighbors, one a map; None: the image evenly divided, as the paper
            has it.

    Returns:
        float32 ``(sum of H * W * A, 4)`` xyxy pixels.
    """
    height, width = image_size
    found = []
    for k, (pairs, (rows, columns)) in enumerate(zip(sizes, map_sizes, strict=True)):
        down = height / rows if steps is None else steps[k]
        right = width / columns if steps is None else steps[k]
        places = grid_points(rows, columns, down, right, device)  # (H * W, 2)
        sides = torch.tensor(pairs, device=device) * torch.tensor([width, height], device=device)
        center = places[:, None].expand(-1, len(pairs), -1)  # (H * W, A, 2)
        side = sides.expand(len(places), -1, -1)
        found.append(corners(torch.cat([center, side], dim=-1)).flatten(0, 1))
    return torch.cat(found)


def grid_points(
    rows: int,
    columns: int,
    down: float,
    right: float,
    device: torch.device,
    offset: float = 0.5,
) -> Tensor:
    """Float32 ``(rows * columns, 2)`` x, y pixels of a grid's cells, row by row.

    Args:
        rows: of the grid.
        columns: of the grid.
        down: height of a cell, pixels.
        right: width of a cell, pixels.
        offset: where in a cell, 0..1; 0.5: its center.
        device: where the result lies.
    """
    y = (torch.arange(rows, device=device, dtype=torch.float32) + offset) * down
    x = (torch.arange(columns, device=device, dtype=torch.float32) + offset) * right
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x.reshape(-1), y.reshape(-1)], dim=1)


def points(
    map_sizes: Sequence[Size], strides: Sequence[int], device: torch.device, offset: float = 0.5
) -> list[Tensor]:
    """The places of point-based detectors: for each map float32 ``(H * W, 2)`` x, y pixels."""
    return [
        grid_points(rows, columns, stride, stride, device, offset)
        for (rows, columns), stride in zip(map_sizes, strides, strict=True)
    ]


def kmeans_sizes(
    sizes: Tensor, k: int, seed: int = 0, restarts: int = 5, iterations: int = 300
) -> tuple[Tensor, float]:
    """Anchors for a data set: k-means on boxes' sides, the distance 1 - IoU (Redmon & Farhadi 2016,
    arXiv 1612.08242, section 2); the best of several starts.

    Args:
        sizes: ``(N, 2)`` widths and heights, in pixels or in shares of the image; all above 0.
        k: clusters.
        seed: of the starts, each k of the boxes, drawn as k-means++ draws them.
        restarts: starts tried.
        iterations: at most, each start.

    Returns:
        float32 ``(k, 2)`` sides, the smallest area first, and the mean IoU of each box with the
        nearest of them, the boxes put concentric.

    Raises:
        ValueError: fewer boxes than clusters, or boxes without area.
    """
    if k < 1 or len(sizes) < k:
        raise ValueError(f"k={k} clusters from {len(sizes)} boxes: give at least one box a cluster")
    sizes = sizes.double()
    if not bool((sizes > 0).all()):
        raise ValueError("boxes without area have no place among anchors")
    generator = torch.Generator().manual_seed(seed)
    best, best_iou = sizes[:k], -1.0
    for _ in range(restarts):
        centers = _first_centers(sizes, k, generator)
        assigned = torch.full((len(sizes),), -1)
        for _ in range(iterations):
            now = shape_iou(sizes, centers).argmax(dim=1)
            if torch.equal(now, assigned):
                break
            assigned = now
            for c in range(k):  # a cluster that lost all its boxes stays where it is
                mine = sizes[assigned == c]
                if len(mine):
                    centers[c] = mine.mean(dim=0)
        mean = float(shape_iou(sizes, centers).amax(dim=1).mean())
        if mean > best_iou:
            best, best_iou = centers, mean
    return best[best.prod(dim=1).argsort()].float(), best_iou


def shape_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of concentric boxes: sides ``(N, 2)`` and ``(M, 2)`` -> ``(N, M)``."""
    shared = torch.minimum(a[:, None], b[None]).prod(dim=-1)
    return shared / (a.prod(dim=-1)[:, None] + b.prod(dim=-1)[None] - shared)


def _first_centers(sizes: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """So many of the boxes, ``(k, 2)``; far ones (squared distance) are likelier (k-means++)."""
    chosen = [int(torch.randint(len(sizes), (), generator=generator))]
    for _ in range(k - 1):
        far = (1 - shape_iou(sizes, sizes[chosen]).amax(dim=1)).clamp(min=0).square()
        weights = far if float(far.sum()) > 0 else torch.ones_like(far)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return sizes[chosen].clone()
