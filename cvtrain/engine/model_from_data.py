"""What a model's configuration leaves to the data: settled once, before the model is built.

The plain values go into the run's configuration and its checkpoints, so that a resumed run and a
loaded model need neither the data set nor a file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cvtrain.callbacks.console import LOG
from cvtrain.data.box_sizes import box_sizes
from cvtrain.data.datamodule import DataModule
from cvtrain.data.shapes import TREE
from cvtrain.data.tree_file import flat_tree, parse_tree, read_tree, with_classes
from cvtrain.errors import DataError
from cvtrain.layers.anchors import kmeans_sizes


def settle_model(config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
    """The config with what ``model`` asks of the data filled in.

    ``model.anchors=5``: five, by k-means on the boxes of the training set. ``model.tree=FILE``, or
    null: a tree of the data's classes.

    Raises:
        DataError: the data cannot give what is asked for.
        UsageError: a file that is no tree.
    """
    model = dict(config.get("model") or {})
    if isinstance(model.get("anchors"), int):
        model["anchors"] = _anchors(config, data, model["anchors"])
    if "tree" in model and not isinstance(model["tree"], Mapping):
        model["tree"] = _tree(model["tree"], data.classes.names)
    return {**config, "model": model} if model else dict(config)


def _anchors(config: Mapping[str, Any], data: DataModule, count: int) -> list[list[float]]:
    seed, node = int(config.get("seed") or 0), config["data"]
    sizes = box_sizes(data.table("train"), node["image_size"], node["resize"], seed)
    if len(sizes) < count:
        raise DataError(
            f"model.anchors={count}: the training images have {len(sizes):,} boxes, too few"
        )
    found, iou = kmeans_sizes(torch.from_numpy(sizes), count, seed=seed)
    pairs = [[round(float(v), 4) for v in pair] for pair in found]
    message = ", ".join(f"{w:.2f} x {h:.2f}" for w, h in pairs)
    LOG.info(f"{count} anchors of {len(sizes):,} boxes: {message}; average IoU {iou:.3f}")
    return pairs


def _tree(path: str | None, classes: Sequence[str]) -> dict[str, list[Any]]:
    """The tree of a file; without one ``shapes``' own for its classes, or a flat one."""
    if path is not None:
        found, where = with_classes(read_tree(path), classes, f"model.tree={path}"), path
    else:
        own = parse_tree(TREE)
        if set(classes) <= set(own["names"]):
            found, where = with_classes(own, classes), "that of shapes"
        else:
            found, where = flat_tree(classes), "none, all classes beside each other"
    inner = len(set(found["parents"]) - {-1})
    LOG.info(f"tree: {where}; {len(found['names']):,} nodes, {inner:,} of them with others below")
    return found
