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
    """An ``<object>``: its number from 1, class name, xyxy as written, the difficult flag.

    ``fault``: why it has no box, which is NaN then; "" otherwise.
    """

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    fault: str = ""


@dataclass
class VOCFile:
    """What an annotation file says.

    Attributes:
        filename, path: as written, "" where missing.
        height, width: pixels, -1 where missing or 0.
        no_size: what ``<size>`` says where that is 0, "" otherwise.
        objects: those that are well-formed.
        problems: (code, place, message, class name) of what is not.
    """

    filename: str = ""
    path: str = ""
    height: int = -1
    width: int = -1
    no_size: str = ""
    objects: list[VOCObject] = field(default_factory=list)
    problems: list[tuple[str, str, str, str]] = field(default_factory=list)


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
                message = f"<{key}> is {shorten(text)!r}"
                out.problems.append(("record-malformed", "size", message, ""))
                continue
            setattr(out, key, int(value) or -1)
            if not value:
                out.no_size = f"<{key}> is {text}"
    for number, element in enumerate(root.findall("object"), 1):
        found = _object(element, number)
        if isinstance(found, str):
            place = f"object {number}"
            out.problems.append(("annotation-malformed", place, found, _text(element, "name")))
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
    difficult = _text(element, "difficult").lower()
    if difficult not in _YES | _NO:
        return f"<difficult> of {name!r} is {shorten(difficult)!r}, not 0 or 1"
    box, fault = _box(element, name)
    return VOCObject(number, name, box, difficult in _YES, fault)


def _box(element: Element, name: str) -> tuple[tuple[float, float, float, float], str]:
    """The corners, and what is wrong with them; NaN where they are none."""
    nothing = (float("nan"),) * 4
    box = element.find("bndbox")
    if box is None:
        return nothing, f"{name!r} has no <bndbox>"
    corners = []
    for tag in _CORNERS:
        text = _text(box, tag)
        try:
            corners.append(float(text))
        except ValueError:
            return nothing, f"<{tag}> of {name!r} is {shorten(text)!r}, not a number"
    x1, y1, x2, y2 = corners
    return (x1, y1, x2, y2), ""
