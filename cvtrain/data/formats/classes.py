"""Class tables: one for the whole data set, whatever its splits say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cvtrain.data.formats.base import problem
from cvtrain.data.formats.files import MalformedError, shorten, storable
from cvtrain.data.table import Classes, Problem


@dataclass
class MergedClasses:
    """The union of the splits' class tables.

    Attributes:
        classes: names and ids, in the order of the first split, then of the others.
        index: split -> its own category id -> class index.
        problems: split -> what is wrong with its table.
        known: names in the table of train; None: train has none.
    """

    classes: Classes
    index: dict[str, dict[int, int]] = field(default_factory=dict)
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    known: frozenset[str] | None = None


def merge_classes(tables: dict[str, list[tuple[int, str]]], files: dict[str, str]) -> MergedClasses:
    """One table from those of the splits: equal names are one class.

    Args:
        tables: split -> (category id, name) pairs in file order; the first is the reference.
        files: split -> the file its table stands in, for messages.
    """
    ids: list[int] = []
    names: list[str] = []
    merged = MergedClasses(Classes((), ()))
    first: dict[str, int] = {}
    for split, table in tables.items():
        own, found = _own_table(table, files[split], split)
        if split == "train":
            merged.known = frozenset(own)
        first = first or own
        moved = [name for name in own if first.get(name, own[name]) != own[name]]
        if moved:
            name = moved[0]
            message = f"{name!r} has id {own[name]}, in {next(iter(tables))} it has {first[name]}"
            found.append(problem("classes-differ", files[split], message, split=split))
        for name, ident in own.items():
            if name not in names:
                names.append(name)
                ids.append(ident if ident not in ids else max(ids) + 1)
        position = {name: i for i, name in enumerate(names)}
        index = merged.index[split] = {}
        for ident, name in table:
            if name in own:
                index.setdefault(ident, position[name])
        merged.problems[split] = found
    merged.classes = Classes(tuple(names), tuple(ids))
    return merged


def _own_table(
    table: list[tuple[int, str]], file: str, split: str
) -> tuple[dict[str, int], list[Problem]]:
    """Name -> id of one split, the first where one is given twice."""
    own: dict[str, int] = {}
    by_id: dict[int, str] = {}
    found: list[Problem] = []
    for ident, name in table:
        if ident in by_id:
            message = f"category id {ident} is given twice: {by_id[ident]!r} and {name!r}"
        elif name in own:
            message = f"category ids {own[name]} and {ident} have the same name {name!r}"
        else:
            own[name] = ident
            by_id[ident] = name
            continue
        by_id.setdefault(ident, name)
        where = f"category id {ident}"
        found.append(problem("class-duplicate", file, message, where=where, split=split))
    return own, found


def given_names(names: Sequence[str] | Mapping[Any, str] | None) -> Classes | None:
    """Classes from a ``names`` argument: a list, or a dict of names by index.

    Raises:
        MalformedError: a name is given twice, or an index is left out.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise MalformedError(f"{shorten(names)!r} is one word; give a list, [{shorten(names)}]")
    if isinstance(names, Mapping):
        names = in_order(names)
    unique = [storable(str(name)) for name in names]
    check_names(unique)
    return Classes.from_names(unique)


def in_order(names: Mapping[Any, str]) -> list[str]:
    """The names of a dict by index, in the order of the indices.

    Raises:
        MalformedError: the indices are not 0, 1, 2 ...
    """
    by_index = {str(key): name for key, name in names.items()}
    wanted = [str(i) for i in range(len(names))]
    if set(by_index) != set(wanted):
        raise MalformedError(f"the keys of `names` are {shorten(list(names))}, not 0, 1, 2 ...")
    return [by_index[key] for key in wanted]


def check_names(names: Sequence[str]) -> None:
    """Raises ``MalformedError`` where names are missing, empty or repeated."""
    if not names:
        raise MalformedError("no class names")
    if "" in names:
        raise MalformedError(f"class {list(names).index('')} has an empty name")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MalformedError(f"class name {name!r} is given twice")
        seen.add(name)
