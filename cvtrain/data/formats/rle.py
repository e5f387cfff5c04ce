"""COCO run-length encodings: checked in bulk, packed, without looping over their numbers.

A mask's runs go down the columns and alternate between 0 and 1, beginning with 0. The compressed
form writes run i as its difference from run i - 2 (from the fourth on) in 5-bit groups, lowest
first, each group a character from 48 on with bit 5 set where more follow, sign in the last group's
bit 4. A run list that does not add up to the image's pixels makes decoders written in C write
outside their memory, so every one is added up before it gets into a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_GROUPS = 7  # 5-bit groups of a value at most: 35 bits, more than any image has pixels
_CHUNK = 1 << 20  # characters checked at a time, so that the work arrays stay small


def compress(counts: np.ndarray) -> str:
    """The compressed form of run lengths, int64 ``(R,)``, each in 0..2^31."""
    values = counts.copy()
    values[3:] -= counts[1:-2]
    shifts = 5 * np.arange(_GROUPS)
    limits = np.int64(1) << (shifts[1:] - 1)
    # (R, 1) against (G - 1,) -> (R, G - 1): how many more groups than one each value needs
    more = ((values[:, None] < -limits) | (values[:, None] >= limits)).sum(1)
    groups = (values[:, None] >> shifts) & 31  # (R, G)
    place = np.arange(_GROUPS)
    groups |= np.where(place < more[:, None], 32, 0)
    return (groups + 48)[place <= more[:, None]].astype(np.uint8).tobytes().decode("ascii")


def runs(encodings: Sequence[str]) -> list[np.ndarray]:
    """The run lengths, int64 ``(R,)``, of each of compressed encodings that are not broken."""
    if not encodings:
        return []
    raw = [e.encode("ascii") for e in encodings]
    codes = np.frombuffer(b"".join(raw), np.uint8).astype(np.int64) - 48
    ends = (codes & 32) == 0
    values, _ = _values(codes, ends)
    last = np.cumsum(ends)[np.cumsum([len(r) for r in raw]) - 1] - 1  # of each string, in values
    first = np.concatenate([[0], last[:-1] + 1])
    return np.split(_undo_differences(values, first, last), first[1:])


def broken(encodings: Sequence[str], pixels: Sequence[int]) -> np.ndarray:
    """Which compressed encodings are not masks of so many pixels: bool ``(n,)``."""
    part = np.cumsum([len(e) for e in encodings], dtype=np.int64) // _CHUNK
    cuts = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(encodings)]
    bad = [
        _broken(encodings[a:b], np.asarray(pixels[a:b], np.int64))
        for a, b in itertools.pairwise(cuts)
    ]
    return np.concatenate(bad)


def _broken(encodings: Sequence[str], pixels: np.ndarray) -> np.ndarray:
    raw = [e.encode("utf-8", "replace") for e in encodings]
    lengths = np.array([len(r) for r in raw], np.int64)
    bad = lengths == 0
    full = np.flatnonzero(~bad)
    if not len(full):
        return bad
    codes = np.frombuffer(b"".join(raw), np.uint8).astype(np.int64) - 48
    first = np.cumsum(lengths[full]) - lengths[full]  # of each string, in codes
    last = first + lengths[full] - 1
    out_of_range = (codes < 0) | (codes > 63)
    ends = (codes & 32) == 0
    open_end = ~ends[last]
    ends[last] = True
    values, groups = _values(codes, ends)
    # strings -> the values they hold
    number = np.cumsum(ends)  # values up to and including each character
    value_last = number[last] - 1
    value_first = np.concatenate([[0], value_last[:-1] + 1])
    runs = _undo_differences(values, value_first, value_last)
    sums = np.add.reduceat(runs, value_first)
    bad[full] = (
        open_end
        | np.logical_or.reduceat(out_of_range, first)
        | np.logical_or.reduceat(groups > _GROUPS, value_first)
        | np.logical_or.reduceat(runs < 0, value_first)
        | (sums != pixels[full])
    )
    return bad


def _values(codes: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed values of the 5-bit groups, and how many groups each has."""
    stops = np.flatnonzero(ends)
    starts = np.concatenate([[0], stops[:-1] + 1])
    groups = stops - starts + 1
    place = np.arange(len(codes)) - np.repeat(starts, groups)
    shift = 5 * np.minimum(place, _GROUPS)
    values = np.add.reduceat((codes & 31) << shift, starts)
    negative = (codes[stops] & 16) != 0
    return values - (negative.astype(np.int64) << (5 * np.minimum(groups, _GROUPS + 1))), groups


def _undo_differences(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """run[i] = value[i] + run[i - 2] for i > 2, in each string on its own."""
    lengths = last - first + 1
    place = np.arange(len(values)) - np.repeat(first, lengths)
    runs = values.copy()
    for parity in (1, 0):
        mine = (place % 2 == parity) & (place > 0)
        sums = np.cumsum(np.where(mine, values, 0))
        before = np.concatenate([[0], sums])[first]  # what earlier strings add up to
        runs[mine] = (sums - np.repeat(before, lengths))[mine]
    return runs
