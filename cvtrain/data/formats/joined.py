"""Class names that are several labels in one cell, parted by something else than was said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SEPARATORS = (",", ";", "|", " ", "/", "+", "&", ":", "-", "_")
"""What may part labels, and stand within one too."""

_FEWEST = 3
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class Joined:
    """What makes class names look like labels joined.

    Attributes:
        separator: between the labels.
        names: the classes that are joins, sorted.
        parts: the labels they join, sorted.
        sure: several names, most of those with the separator in them, join classes that are there.
    """

    separator: str
    names: tuple[str, ...]
    parts: tuple[str, ...]
    sure: bool


def joined_labels(names: Sequence[str], given: str) -> Joined | None:
    """Classes whose names join those of others by another separator than ``given``; None: none.

    The evidence: all parts of a name are classes themselves (``cat dog`` beside ``cat`` and
    ``dog``); or nearly all names are made of parts that stand in several of them, not always in the
    same place (``cat dog``, ``dog bird``, ``bird cat``). ``polar bear`` beside ``grizzly bear`` and
    ``bear`` is a name of two words, and so is ``red car`` beside ``blue car`` and ``red truck``.
    """
    known = set(names)
    every = sorted(known)
    for separator in SEPARATORS:
        if separator == given:
            continue
        split = {name: _parts(name, separator) for name in every if separator in name}
        split = {name: parts for name, parts in split.items() if len(parts) > 1}
        joins = [name for name, parts in split.items() if known.issuperset(parts)]
        sure = len(joins) >= _FEWEST and 2 * len(joins) >= len(split)
        if not joins:
            joins = _recombined(split)
            joins = joins if len(joins) >= max(_FEWEST, _NEARLY_ALL * len(every)) else []
        if joins:
            parts = sorted({part for name in joins for part in split[name]})
            return Joined(separator, tuple(joins), tuple(parts), sure)
    return None


def _recombined(split: dict[str, list[str]]) -> list[str]:
    """The names all of whose parts stand in others too, where a part is first here and last there.

    What is always first or always last is an adjective or a noun.
    """
    uses = Counter(part for parts in split.values() for part in set(parts))
    joins = [name for name, parts in split.items() if all(uses[part] > 1 for part in parts)]
    firsts = {split[name][0] for name in joins}
    lasts = {split[name][-1] for name in joins}
    return joins if firsts & lasts else []


def _parts(name: str, separator: str) -> list[str]:
    return [part.strip() for part in name.split(separator) if part.strip()]
