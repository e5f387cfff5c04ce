"""What a run was scored on, as a few digests: two runs compare only if theirs are equal.

No torch here: runs are refused before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

PARTS = ("classes", "files", "truths", "pixels")
"""Of a fingerprint, in the order in which differences are looked for."""


def fingerprint(truth: Mapping[str, Any], pixels: Mapping[str, bytes] | None) -> dict[str, Any]:
    """Digests of the images and the ground truth that scores were computed from.

    Neither the order of the images nor their ids count, nor where the data set lies.

    Args:
        truth: what ground_truth.json holds.
        pixels: a digest of each image's pixels by its name; None: not known (drawn images).

    Returns:
        ``images``, their number, and a digest of each of PARTS (``pixels`` None where not known).
    """
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    classes = {c["id"]: c["name"] for c in truth["categories"]}
    files = ([i["file_name"], i["width"], i["height"]] for i in truth["images"])
    truths = (_annotation(entry, names, classes) for entry in truth["annotations"])
    held = None if pixels is None else _digest([n, pixels[n].hex()] for n in names.values())
    return {
        "images": len(names),
        "classes": _digest([name] for name in classes.values()),
        "files": _digest(files),
        "truths": _digest(truths),
        "pixels": held,
    }


def _annotation(entry: Mapping[str, Any], names: Mapping[Any, str], classes: Any) -> list[Any]:
    own = {k: v for k, v in entry.items() if k not in ("id", "image_id", "category_id")}
    return [names[entry["image_id"]], classes[entry["category_id"]], own]


def _digest(entries: Iterable[Any]) -> str:
    """Of entries in any order."""
    hashed = hashlib.blake2b(digest_size=16)
    for line in sorted(json.dumps(entry, sort_keys=True) for entry in entries):
        hashed.update(line.encode() + b"\n")
    return hashed.hexdigest()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first of PARTS that two fingerprints disagree on; what either does not know is equal."""
    for part in PARTS:
        known = (one.get(part), other.get(part))
        if None not in known and known[0] != known[1]:
            return part
    return None
