"""From the config's ``data`` node to its reader; no torch here: ``check`` starts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cvtrain.errors import UsageError

_DRAWN = ("data.val_fraction", "data.split_seed")
"""Keys that are read only where validation images are drawn from training images."""


def split_seed(data: Mapping[str, Any], seed: int) -> int:
    """What the drawn validation images follow from; runs of before the key drew by their seed."""
    given = data.get("split_seed")
    return int(seed if given is None else given)


def make_reader(
    data: Mapping[str, Any], trust: Sequence[str] = (), typed: Sequence[str] = ()
) -> Any:
    """The reader of the config's ``data`` node; public sets are fetched first if it says so.

    Args:
        data: the node.
        trust: packages that the reader may come from.
        typed: the overrides of the command line.

    Raises:
        DataError: no data set of that layout is there (``data.download`` fetches).
        UsageError: the reader does not take its arguments; a key was typed that says how to draw
            validation images, and the data set has some.
    """
    from cvtrain.instantiate import instantiate

    if "download" in data:
        from cvtrain.data.public import prepare

        prepare(data["name"], data["root"], download=bool(data["download"]))
    reader = instantiate(data["reader"], where="data.reader", trust=trust)
    drawn = [text for text in typed if text.lstrip("+").partition("=")[0] in _DRAWN]
    if drawn and "val" in reader.splits():
        raise UsageError(
            f"{drawn[0]} would not be read: the data set has a val split of its own, and nothing "
            "is drawn from train; omit the key, or move the images of val to train"
        )
    return reader
