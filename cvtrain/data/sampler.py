"""The order of an epoch: from (seed, epoch) alone, the same for any number of workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, row), the key of a sample and of every random draw for it.

    Args:
        length: rows of the table.
        seed: of the run.
        rank, world: this process and how many there are; rank r takes every ``world``-th sample.
        shuffle: a new order each epoch (training), or the table's own (validation).
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
        now: Callable[[], int] | None = None,
    ) -> None:
        self.length, self.seed = length, seed
        self.rank, self.world = rank, world
        self.shuffle, self.pad = shuffle, pad
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
            order = np.random.default_rng([self.seed, self.epoch, 0, 1]).permutation(self.length)
        if self.pad and self.length:
            order = np.resize(order, -(-self.length // self.world) * self.world)  # repeats
        return order

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        for row in self.order()[self.rank :: self.world]:
            yield epoch, int(row)

    def __len__(self) -> int:
        total = -(-self.length // self.world) * self.world if self.pad else self.length
        return len(range(self.rank, total, self.world))
