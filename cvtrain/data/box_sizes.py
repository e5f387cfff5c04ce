"""The sides of a data set's objects as a network sees them: what anchors are made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cvtrain.augment.geometry import fit
from cvtrain.data.dataset import input_size
from cvtrain.data.table import CROWD, DIFFICULT, Table

MOST = 20_000
"""So many boxes are looked at; of more, as many drawn by seed."""


def box_sizes(
    table: Table, image_size: int | Sequence[int], resize: str, seed: int = 0
) -> np.ndarray:
    """Widths and heights, float64 ``(N, 2)``, in shares of the network's input.

    Objects that do not count (crowd, difficult) and boxes without area are left out.

    Args:
        table: of a split, checked by the gate.
        image_size: the network's input, pixels: an int or [H, W].
        resize: ``letterbox`` or ``stretch``.
        seed: of the draw, where there are more than ``MOST``.
    """
    height, width = input_size(image_size)
    counts = np.diff(table.starts)
    image = np.repeat(np.arange(len(table)), counts)
    scale = np.zeros((len(table), 2))  # shares of the input per pixel of the original
    for i, (h, w) in enumerate(table.sizes.tolist()):
        place = fit(h, w, height, width, resize)
        scale[i] = place.width / w / width, place.height / h / height
    sizes = (table.boxes[:, 2:] - table.boxes[:, :2]) * scale[image]  # (M, 2)
    keep = ((table.flags & (CROWD | DIFFICULT)) == 0) & (sizes > 0).all(axis=1)
    sizes = sizes[keep]
    if len(sizes) > MOST:
        rows = np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))[:MOST]
        sizes = sizes[np.sort(rows)]
    return sizes
