"""Which images are for validation where the data set does not say: seeded, stratified, no leak."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cvtrain.data.image_labels import strata
from cvtrain.data.table import CROWD, DIFFICULT, Table
from cvtrain.errors import DataError, UsageError


def draw_val(
    table: Table, digests: np.ndarray | None, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits a table's rows in two.

    An image's place follows from a hash of (seed, file name), so that neither the order on disk nor
    another image coming or going moves it far. Files with the same pixels stay on one side. Where
    images have classes, each class gives its share (one image at least, of two or more); an image
    of several counts for the rarest. Where images have objects, or none, both sides get some.

    Args:
        table: N images, those of train.
        digests: uint64 ``(N, 2)`` of the pixels; None: all differ.
        fraction: of the images, for validation.
        seed: another seed, another split.

    Returns:
        int64 rows of train and of val, each in the table's order.

    Raises:
        UsageError: the fraction is not between 0 and 1.
        DataError: there are fewer than two different images.
    """
    if not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise UsageError(f"data.val_fraction={fraction}: a number between 0 and 1, such as 0.2")
    names = [table.files[i] for i in range(len(table))]
    groups = _groups(names, digests)
    labels = strata(table)
    by_class: dict[int, list[list[int]]] = {}
    for group in groups:
        by_class.setdefault(int(labels[group[0]]), []).append(group)
    val: list[int] = []
    for members in by_class.values():
        val += _share(members, names, fraction, seed)
    if not val and len(groups) > 1:
        val = min(groups, key=lambda group: _draw(names[group[0]], seed))
    if table.num_annotations and table.image_labels is None and table.tags is None:
        val = _with_objects(table, groups, val, names, seed)
    if not val or len(val) == len(table):
        raise DataError(
            f"{len(groups)} different image{'' if len(groups) == 1 else 's'} cannot be split into "
            "train and val; add images, or a val split"
        )
    chosen = np.zeros(len(table), bool)
    chosen[val] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _with_objects(
    table: Table, groups: list[list[int]], val: list[int], names: Sequence[str], seed: int
) -> list[int]:
    """The rows for validation, one group exchanged where train or val would have no object."""
    counted = np.flatnonzero(table.flags & (CROWD | DIFFICULT) == 0)
    some = set((np.searchsorted(table.starts, counted, side="right") - 1).tolist())
    order = sorted(groups, key=lambda group: _draw(names[group[0]], seed))
    drawn = set(val)
    inside = [group for group in order if group[0] in drawn]
    outside = [group for group in order if group[0] not in drawn]
    rich = [[group for group in side if some.intersection(group)] for side in (inside, outside)]
    if not rich[0] and inside and len(rich[1]) > 1:
        gone, come = inside[0], rich[1][0]
    elif not rich[1] and outside and len(rich[0]) > 1:
        gone, come = rich[0][0], outside[0]
    else:
        return val
    return sorted(drawn.difference(gone).union(come))


def _groups(names: Sequence[str], digests: np.ndarray | None) -> list[list[int]]:
    """Rows with the same pixels, each group sorted by name."""
    if digests is None:
        return [[i] for i in range(len(names))]
    _, back = np.unique(digests, axis=0, return_inverse=True)
    members: dict[int, list[int]] = {}
    for i, k in enumerate(back.ravel().tolist()):
        members.setdefault(k, []).append(i)
    return [sorted(group, key=lambda i: names[i]) for group in members.values()]


def _share(groups: list[list[int]], names: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The rows of one class that are for validation."""
    total = sum(len(group) for group in groups)
    wanted = min(max(round(total * fraction), 1), total - 1)
    taken: list[int] = []
    for group in sorted(groups, key=lambda group: _draw(names[group[0]], seed)):
        if len(taken) + len(group) <= wanted:
            taken += group
    return taken


def _draw(name: str, seed: int) -> bytes:
    text = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()
