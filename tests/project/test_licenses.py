"""Nothing GPL or AGPL among the dependencies, direct or transitive."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement

# LGPL is another license (linking is allowed); "GPL" must stand alone or as (A)GPL-x.
FORBIDDEN = re.compile(
    r"(?<![A-Za-z])A?GPL(?![A-Za-z])|Affero|(?<!Lesser )(?<!Library )General Public License", re.I
)


def license_of(name: str) -> str:
    """What a distribution's metadata declares: expression, classifiers, else the license field."""
    meta = metadata.metadata(name)
    declared = [meta.get("License-Expression") or ""]
    declared += [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    if not any(declared):
        # Some paste the whole text here; its first lines name it.
        declared.append("\n".join((meta.get("License") or "").splitlines()[:5]))
    return " | ".join(d for d in declared if d)


def closure(root: str, extras: tuple[str, ...] = ("",)) -> set[str]:
    """Every installed distribution that ``root`` needs on this platform, transitively."""
    seen: set[str] = set()
    todo = [(root, extras)]
    while todo:
        name, wanted = todo.pop()
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            child = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if child not in seen:
                seen.add(child)
                todo.append((requirement.name, tuple(requirement.extras) or ("",)))
    return seen


def is_forbidden(license: str) -> bool:
    """A dual license with a free choice ("MIT OR GPL-2.0") is fine; GPL alone or joined is not."""
    choices = re.split(r"\bOR\b", license)
    return all(FORBIDDEN.search(choice) for choice in choices)


def test_no_gpl_among_dependencies() -> None:
    names = closure("cvtrain")
    names |= {"scikit-learn"} | closure("scikit-learn")  # young: an older install lacks it
    assert {"scipy", "joblib", "threadpoolctl"} <= names
    assert {"torch", "albumentations", "numpy", "antlr4-python3-runtime"} <= names
    found = {name: license for name in sorted(names) if is_forbidden(license := license_of(name))}
    assert not found


def test_every_dependency_declares_a_license_or_ships_one() -> None:
    def ships_one(name: str) -> bool:
        files = metadata.files(name) or []
        return any(re.search(r"licen[cs]e|copying|notice", f.name, re.I) for f in files)

    silent = [n for n in sorted(closure("cvtrain")) if not license_of(n) and not ships_one(n)]
    # Its metadata is bare; it is NVIDIA's and BSD-licensed CUDA tooling or a meta package.
    assert [n for n in silent if not n.startswith(("nvidia-", "cuda-"))] == []


@pytest.mark.parametrize(
    ("license", "forbidden"),
    [
        ("AGPL-3.0", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("GPL-2.0-only AND MIT", True),
        ("MIT OR GPL-2.0-only", False),
        ("LGPL-2.1", False),
        ("GNU Lesser General Public License v3", False),
        ("Apache-2.0", False),
    ],
)
def test_the_judgement_itself(license: str, forbidden: bool) -> None:
    assert is_forbidden(license) is forbidden
