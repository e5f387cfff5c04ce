"""Text from strangers (names of files, of classes), made fit to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` on one line of a terminal: line ends, controls and what is no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
