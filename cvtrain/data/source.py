"""From the config's ``data`` node to its reader; no torch here: ``check`` starts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def make_reader(data: Mapping[str, Any], trust: Sequence[str] = ()) -> Any:
    """The reader of the config's ``data`` node; public sets are fetched first if it says so.

    Raises:
        DataError: no data set of that layout is there (``data.download`` fetches).
        UsageError: the reader does not take its arguments.
    """
    from cvtrain.instantiate import instantiate

    if "download" in data:
        from cvtrain.data.public import prepare

        prepare(data["name"], data["root"], download=bool(data["download"]))
    return instantiate(data["reader"], where="data.reader", trust=trust)
