"""Fixed augmented views: every training image K times, the same K in every epoch."""

from __future__ import annotations

from torch.utils.data import Dataset

from cvtrain.data.collate import Sample
from cvtrain.data.dataset import VisionDataset
from cvtrain.data.table import Table


class Views(Dataset[Sample]):
    """The samples of a data set, K views of each: view v is the augmented sample of epoch v.

    With N rows, sample i is view ``i // N`` of row ``i % N``, whatever epoch it is asked for in.

    Args:
        base: augmented samples.
        count: K.
    """

    def __init__(self, base: VisionDataset, count: int) -> None:
        self.base, self.count = base, count

    @property
    def table(self) -> Table:
        """The N rows."""
        return self.base.table

    def __len__(self) -> int:
        return len(self.base) * self.count

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        view, row = divmod(self._index(key), len(self.base))
        return self.base[view, row]

    def described(self, index: int) -> Sample:
        """``self[index]`` without its image, whose file is not opened."""
        return self.base.described(index % len(self.base))

    def _index(self, key: int | tuple[int, ...]) -> int:
        index = key[1] if isinstance(key, tuple) else key
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index
