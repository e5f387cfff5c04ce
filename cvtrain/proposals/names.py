"""File names to rows, in two arrays: no Python object a name, so that forked workers share it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import numpy as np


class Names:
    """Which row a name has, by its hash.

    Args:
        names: each once.
    """

    def __init__(self, names: Iterable[str]) -> None:
        keys = np.array([_hash(n) for n in names], np.uint64)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def row(self, name: str) -> int:
        """The name's row, -1 where it is not among them."""
        key = np.uint64(_hash(name))
        at = int(np.searchsorted(self._keys, key))
        return int(self._order[at]) if at < len(self) and self._keys[at] == key else -1


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")
