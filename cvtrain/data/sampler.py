"""The order of an epoch: from (seed, epoch) alone, the same for any number of workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, ...]]):
    """Yields (epoch, row), the key of a sample and of every random draw for it.

    Where an epoch draws a row again (``strata``), (epoch, row, n) the n-th time, n = 2, 3, ...

    Args:
        length: rows of the table.
        seed: of the run.
        rank, world: this process and how many there are; rank r takes every ``world``-th sample.
        shuffle: a new order each epoch (training), or the table's own (validation).
        strata: int ``(length,)``: an epoch draws as often from each of its values, repeating rows
            of the rare ones and leaving out some of the frequent, in turn; None: each row once.
        pad: repeat the order's first samples until every rank has as many (training: ranks step
            together); without, no sample is seen twice (validation).
        now: tells the epoch as long as ``set_epoch`` was not called. Lightning calls that before
            each epoch but the first after a resume, whose batches it asks for earlier.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = False,
        pad: bool = False,
        strata: np.ndarray | None = None,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.length, self.seed = length, seed
        self.rank, self.world = rank, world
        self.shuffle, self.pad = shuffle, pad
        self.strata = strata
        self._now = now
        self._epoch: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch that an iteration begun now is of."""
        if self._epoch is not None:
            return self._epoch
        return 0 if self._now is None else self._now()

    def set_epoch(self, epoch: int) -> None:
        """Names the epoch of the iterations to come."""
        self._epoch = epoch

    def order(self) -> np.ndarray:
        """int64: every rank's samples in one, as they interleave."""
        order = np.arange(self.length)
        if self.shuffle:
            # Four numbers: no sample's own (seed, epoch, row) is this stream.
            generator = np.random.default_rng([self.seed, self.epoch, 0, 1])
            if self.strata is None:
                order = generator.permutation(self.length)
            else:
                order = balanced(self.strata, generator)
        if self.pad and self.length:
            order = np.resize(order, -(-self.length // self.world) * self.world)  # repeats
        return order

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        epoch, order = self.epoch, self.order()
        times = np.ones(len(order), np.int64) if self.strata is None else _times(order)
        for row, time in zip(order[self.rank :: self.world], times[self.rank :: self.world]):
            yield (epoch, int(row), int(time)) if time > 1 else (epoch, int(row))

    def __len__(self) -> int:
        total = -(-self.length // self.world) * self.world if self.pad else self.length
        return len(range(self.rank, total, self.world))


class SizeBatches(Sampler[list[Any]]):
    """Batches of samples that follow each other and are of one size, in the sampler's order.

    Args:
        sampler: keys of (epoch, row).
        sizes: ``(N, 2)`` height and width of each row.
        batch_size: at most so many.
        pixels: at most so many together, but one image in any case.
    """

    def __init__(
        self, sampler: EpochSampler, sizes: np.ndarray, batch_size: int, pixels: int
    ) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.sizes, self.pixels = sizes, pixels

    def __iter__(self) -> Iterator[list[Any]]:
        batch: list[Any] = []
        size = (0, 0)
        for key in self.sampler:
            height, width = (int(v) for v in self.sizes[key[1]])
            most = min(self.batch_size, max(1, self.pixels // max(1, height * width)))
            if batch and (size != (height, width) or len(batch) >= most):
                yield batch
                batch = []
            batch.append(key)
            size = (height, width)
        if batch:
            yield batch

    def __len__(self) -> int:
        return sum(1 for _ in self)


def balanced(strata: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """int64 ``(N,)`` rows of N, shuffled: of each stratum equally many, to within one.

    In a stratum every row comes equally often, to within one: no row twice before all came once.
    """
    values, counts = np.unique(strata, return_counts=True)
    shares = np.full(len(values), len(strata) // max(1, len(values)))
    shares[generator.permutation(len(values))[: len(strata) - shares.sum()]] += 1
    drawn = []
    for value, count, share in zip(values, counts, shares, strict=True):
        rows = np.flatnonzero(strata == value)
        rounds = [generator.permutation(rows) for _ in range(-(-share // count))]
        drawn.append(np.concatenate([rows[:0], *rounds])[:share])
    return generator.permutation(np.concatenate([np.zeros(0, np.int64), *drawn]))


def _times(order: np.ndarray) -> np.ndarray:
    """int64: the how manieth of its value each entry of ``order`` is, from 1."""
    places = np.argsort(order, kind="stable")
    rows = order[places]
    times = np.empty(len(order), np.int64)
    times[places] = np.arange(1, len(order) + 1) - np.searchsorted(rows, rows)
    return times
