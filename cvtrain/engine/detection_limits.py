"""Images with more objects than a model predicts: said before training and after scoring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cvtrain.data.table import CROWD, DIFFICULT, Table

TASKS = ("detection", "instance_segmentation")
"""Those whose models predict any number of objects."""


def objects_of(table: Table) -> np.ndarray:
    """int64 ``(N,)``: the objects of each image, crowd regions and difficult ones left out."""
    counts = (table.flags & (CROWD | DIFFICULT)) == 0
    before = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(before[table.starts])


def too_few(model: Mapping[str, Any], objects: np.ndarray) -> str:
    """Which limits of a model lie below the objects that images have; empty if none does.

    Args:
        model: its configuration.
        objects: ``(N,)`` of each image.
    """
    most = int(objects.max(initial=0))
    limits, instead = {}, []
    kept = model.get("max_detections")
    if kept is not None and kept < most:
        limits[f"model.max_detections={kept}"] = kept
        instead.append(f"model.max_detections={most}")
    proposals = (model.get("rpn") or {}).get("proposals")
    if proposals and proposals[1] < most:
        limits[f"model.rpn.proposals={_list(proposals)}"] = proposals[1]
        instead.append(f"model.rpn.proposals={_list([max(proposals[0], 2 * most), 2 * most])}")
    if not limits:
        return ""
    count = int((objects > min(limits.values())).sum())
    noun = "image has" if count == 1 else "images have"
    return (
        f"{count:,} {noun} more objects than {' and '.join(limits)} let the model predict (up to "
        f"{most:,}): not all can be found; {' '.join(instead)} lifts that, in eval and predict too"
    )


def _list(values: list[int]) -> str:
    return f"[{','.join(str(v) for v in values)}]"
