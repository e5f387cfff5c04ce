"""The ``DataLoader`` whose worker processes leave signals and errors to the main process."""

from __future__ import annotations

from typing import Any, TypeVar

from torch.utils.data import DataLoader

from cvtrain.data.shared import Packing
from cvtrain.data.worker import starting_workers

T_co = TypeVar("T_co", covariant=True)


class Loader(DataLoader[T_co]):
    """A ``DataLoader``; its ``worker_init_fn`` is to be ``cvtrain.data.worker.start_worker``.

    A worker that dies of a signal raises an error in the main process (torch's SIGCHLD handler),
    at any place, so also while that one ends because of the same signal. No worker does, from its
    very first instruction. They pack their batches themselves (``cvtrain.data.shared``).
    """

    def __init__(self, dataset: Any, *, collate_fn: Any, num_workers: int = 0, **options: Any):
        if num_workers:
            collate_fn = Packing(collate_fn)
        super().__init__(dataset, collate_fn=collate_fn, num_workers=num_workers, **options)

    def _get_iterator(self) -> Any:
        if not self.num_workers:
            return super()._get_iterator()
        with starting_workers():
            return super()._get_iterator()
