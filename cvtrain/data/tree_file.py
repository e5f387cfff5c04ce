"""Trees of classes in a text file, for models that know "dog" as well as "terrier". No torch here.

One class a line; a class stands below the one above it that is indented less::

    # what is drawn
    shape
      round
        circle
      polygon
        square
        triangle

Lines that are empty or begin with ``#`` are left out. Where one class alone stands at the top it is
the root: everything is one. Each class has one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvtrain.errors import DataError, UsageError

SHOWN = 5
"""Missing classes named; of more, how many they are."""


def read_tree(path: str | Path) -> dict[str, list[Any]]:
    """``names`` of the classes of a file and, for each, the index of its ``parents``; -1: none.

    Parents come before their children.

    Raises:
        UsageError: the file cannot be read, or is no tree.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"model.tree={path}: {why}") from error
    return parse_tree(text, f"model.tree={path}")


def parse_tree(text: str, where: str = "tree") -> dict[str, list[Any]]:
    """``read_tree`` of a text; ``where`` begins the messages.

    Raises:
        UsageError: no class at all, an indentation that fits none above, a class in two places or
            below itself.
    """
    names: list[str] = []
    parents: list[int] = []
    lines: dict[str, int] = {}
    open_nodes: list[tuple[int, int]] = []  # (indentation, node), from the top down to the last
    for number, line in enumerate(text.splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        expanded = line.expandtabs(4)
        indent = len(expanded) - len(expanded.lstrip())
        left = [depth for depth, _ in open_nodes if depth >= indent]
        while open_nodes and open_nodes[-1][0] >= indent:
            open_nodes.pop()
        if (left and left[0] != indent) or (not names and indent):
            raise UsageError(
                f"{where}, line {number}: {name} is indented like no line above it; put it under "
                "the first letter of its siblings"
            )
        above = [names[node] for _, node in open_nodes]
        if name in above:
            raise UsageError(f"{where}, line {number}: {name} stands below itself: a cycle")
        if name in lines:
            raise UsageError(
                f"{where}, line {number}: {name} stands in line {lines[name]} too; a class has one "
                "parent"
            )
        lines[name] = number
        parents.append(open_nodes[-1][1] if open_nodes else -1)
        open_nodes.append((indent, len(names)))
        names.append(name)
    if not names:
        raise UsageError(
            f"{where}: there is no class in it; write one per line, indented under its own"
        )
    return {"names": names, "parents": parents}


def with_classes(
    tree: Mapping[str, Sequence[Any]], classes: Sequence[str], where: str = "tree"
) -> dict[str, list[Any]]:
    """A tree without its root, and where a data set's classes are in it.

    Returns:
        ``names`` and ``parents`` as before, siblings side by side; ``classes``: the node of each
        class.

    Raises:
        DataError: a class that the tree does not have.
    """
    names, parents = list(tree["names"]), list(tree["parents"])
    missing = [name for name in classes if name not in set(names)]
    if missing:
        shown = ", ".join(missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{where} has no {shown}{more}, which the data set has; add a line for each"
        )
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        children.setdefault(parent, []).append(node)
    top = -1
    if len(children[-1]) == 1 and len(names) > 1 and names[children[-1][0]] not in classes:
        top = children[-1][0]  # the root: what is an object at all is of it
    order: list[int] = []
    ahead = [top]
    for parent in ahead:  # breadth first
        order += children.get(parent, [])
        ahead += children.get(parent, [])
    place = {node: k for k, node in enumerate(order)}
    found = {names[node]: k for node, k in place.items()}
    return {
        "names": [names[node] for node in order],
        "parents": [place.get(parents[node], -1) for node in order],
        "classes": [found[name] for name in classes],
    }


def flat_tree(classes: Sequence[str]) -> dict[str, list[Any]]:
    """All classes beside each other."""
    count = len(classes)
    return {"names": list(classes), "parents": [-1] * count, "classes": list(range(count))}
