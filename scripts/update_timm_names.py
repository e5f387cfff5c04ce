"""Write cvtrain/config/timm_names.txt from the installed timm: an architecture a line, its tags.

The command line checks and lists backbone names from this file, without importing timm (6 s). Run
it after raising timm's version.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DEFAULT = Path(__file__).resolve().parent.parent / "cvtrain" / "config" / "timm_names.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEFAULT, help="the file to write")
    path = parser.parse_args().out

    import timm

    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for full in timm.list_pretrained():
        name, _, tag = full.partition(".")
        if tag:
            tags[name].append(tag)
    lines = [f"# timm {timm.__version__}: architecture, then the tags of its pretrained weights"]
    lines += [" ".join([name, *tags[name]]) for name in sorted(tags)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(tags)} architectures, {sum(map(len, tags.values()))} weights -> {path}")


if __name__ == "__main__":
    main()
