"""``cvtrain show``: a picture of training samples as the network will see them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROWS = 6
"""Images shown; each with its original and ``VARIANTS`` augmented versions."""
VARIANTS = 4
CELL = 448
"""Longer side of a picture in the grid, pixels: larger images are shrunk before they are drawn."""


def show(cfg: Mapping[str, Any]) -> int:
    """Draws originals beside augmented variants, with boxes, masks and names, to a PNG.

    Args:
        cfg: the resolved config; reads ``task.name``, ``data``, ``augment``, ``seed``, ``trust``
            and ``run_dir`` (None: ``runs/show/<timestamp>``).

    Returns:
        The exit code; the path of the picture is printed.

    Raises:
        DataError: the data set has errors, or no training split.
        UsageError: a value that cannot be used.
    """
    import numpy as np

    from cvtrain.data.datamodule import build_datamodule
    from cvtrain.report import draw

    task, seed = cfg["task"]["name"], cfg["seed"]
    trust = cfg.get("trust") or ()
    module, report = build_datamodule(cfg, task, seed=seed, trust=trust, splits=["train"])
    for line in report.summary_lines():
        print(line)
    originals, augmented = module.dataset("train"), module.dataset("train", train=True)
    order = np.random.default_rng([seed, 0, 0, 1]).permutation(len(originals))
    pictures, captions = [], []
    for row in (int(r) for r in order[:ROWS]):
        sample = originals[row]
        assert sample.truth is not None
        pictures.append(_picture(originals.image(row), sample.truth, module.classes.names))
        captions.append(_caption(sample.info.file_name, sample.truth, module.classes.names))
        for epoch in range(VARIANTS):
            variant = augmented[epoch, row]
            pictures.append(_picture(variant.image, variant.target, module.classes.names))
            captions.append(f"epoch {epoch}: {_size(variant.image)}")
    folder = Path(cfg.get("run_dir") or Path("runs") / "show" / time.strftime("%Y-%m-%d_%H-%M-%S"))
    name = f"{cfg['data']['name']}_{(cfg.get('augment') or {}).get('name', 'none')}.png"
    path = draw.save(folder / name, draw.grid(pictures, VARIANTS + 1, captions))
    print(path)
    return 0


def _picture(image: Any, target: Any, names: Any) -> Any:
    from cvtrain.report import draw

    return draw.draw(
        image,
        boxes=target.boxes,
        labels=target.labels,
        names=names,
        masks=target.masks,
        mask=target.mask,
        ignore=target.ignore,
        max_side=CELL,
    )


def _caption(file: str, target: Any, names: Any) -> str:
    label = "" if target.label is None else f"{names[int(target.label)]}: "
    if target.probs is not None:
        present = [names[k] for k in target.probs.nonzero().flatten().tolist()]
        label = f"{', '.join(present) or 'nothing'}: "
    return f"{label}{file}"


def _size(image: Any) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
