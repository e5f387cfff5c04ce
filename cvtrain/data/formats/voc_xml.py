"""One Pascal VOC XML file, parsed with defusedxml: no DTD tricks, no entities, no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from cvtrain.data.formats.files import MalformedError, shorten

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_YES = frozenset({"1", "true", "yes"})
_NO = frozenset({"", "0", "false", "no", "unspecified"})


class EntitiesError(MalformedError):
    """The file defines entities or a DTD: a bomb, or a way to read other files."""


@dataclass
class VOCObject:
    """An ``<object>``: its number from 1, class name, xyxy as written, the difficult flag."""

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass
class VOCFile:
    """What an annotation file says.

    Attributes:
        filename, path: as written, "" where missing.
        height, width: pixels, -1 where missing.
        objects: those that are well-formed.
        problems: (place, message) of what is not.
    """

    filename: str = ""
    path: str = ""
    height: int = -1
    width: int = -1
    objects: list[VOCObject] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def read_xml(path: Path) -> VOCFile:
    """Parses an annotation file.

    Raises:
        MalformedError: it is not XML (with the line) or not a VOC annotation.
        EntitiesError: it holds a DTD with entities.
    """
    root = _root(path)
    if root.tag != "annotation":
        raise MalformedError(f"the outermost element is <{shorten(root.tag)}>, not <annotation>")
    out = VOCFile(filename=_text(root, "filename"), path=_text(root, "path"))
    size = root.find("size")
    if size is not None:
        for key in ("height", "width"):
            text = _text(size, key)
            try:
                value = float(text or -1)
                if value != int(value) or abs(value) >= 2**31:
                    raise ValueError
            except (ValueError, OverflowError):
                out.problems.append(("size", f"<{key}> is {shorten(text)!r}"))
                continue
            setattr(out, key, int(value))
    for number, element in enumerate(root.findall("object"), 1):
        found = _object(element, number)
        if isinstance(found, str):
            out.problems.append((f"object {number}", found))
        else:
            out.objects.append(found)
    return out


def _root(path: Path) -> Element:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MalformedError(f"cannot be read: {error.strerror or error}") from error
    try:
        return fromstring(raw)
    except DefusedXmlException as error:
        raise EntitiesError(*_forbidden(raw, error)) from error
    except ParseError as error:
        line, column = error.position
        message = str(error).rpartition(": line")[0] or str(error)
        raise MalformedError(f"{message} (column {column + 1})", f"line {line}") from error
    except (ValueError, LookupError) as error:  # an encoding that there is none of
        raise MalformedError(shorten(error), "line 1") from error


def _forbidden(raw: bytes, error: DefusedXmlException) -> tuple[str, str]:
    """What defusedxml refused, and the line of it."""
    name, source = getattr(error, "name", None), getattr(error, "sysid", None)
    what = f"the entity {shorten(name)!r}" if name else "entities or refers to others"
    origin = f" from {shorten(source)!r}" if source else ""
    at = raw.find(b"<!ENTITY")
    line = raw.count(b"\n", 0, at) + 1
    return f"defines {what}{origin}", f"line {line}" if at >= 0 else ""


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _object(element: Element, number: int) -> VOCObject | str:
    """The object, or what is wrong with it."""
    name = _text(element, "name")
    if not name:
        return "the object has no <name>"
    box = element.find("bndbox")
    if box is None:
        return f"{name!r} has no <bndbox>"
    corners = []
    for tag in _CORNERS:
        text = _text(box, tag)
        try:
            corners.append(float(text))
        except ValueError:
            return f"<{tag}> of {name!r} is {shorten(text)!r}, not a number"
    difficult = _text(element, "difficult").lower()
    if difficult not in _YES | _NO:
        return f"<difficult> of {name!r} is {shorten(difficult)!r}, not 0 or 1"
    x1, y1, x2, y2 = corners
    return VOCObject(number, name, (x1, y1, x2, y2), difficult in _YES)
