"""YOLO9000 (2016): detects classes of a tree, also those that no box was ever drawn for.

Paper: Redmon, Farhadi, "YOLO9000: Better, Faster, Stronger", arXiv 1612.08242, section 4. Written
from the paper.

YOLOv2 with three anchors, whose classes are nodes of a tree: a softmax among the children of each
node (layers/word_tree.py), every object trains the path from its class to the root. Trained on
images with boxes and on images that have a class alone: of those the box that predicts the class
with the highest probability gets the class loss, and is assumed to overlap the object by an IoU of
0.3 at least (losses/yolov2.py). A prediction walks down the tree, at every split to the likeliest
child, until that is no longer likely enough.

Where the paper is silent or we deviate:

- A run's classes are those of the data set with boxes and, after them, those of the images without
  (``data.classification_root``); each is a node of the tree, a leaf or not. A box is said to be of
  the last of them that it met on its way down. Nodes that are no class of the data only lead there,
  so that the metric counts the data's own classes. The walk stops below a probability of
  ``tree_threshold``; the paper gives none.
- Without a tree all classes are beside each other: YOLOv2 with three anchors, one class a box.
- Every image is seen once an epoch. The paper repeats COCO's until ImageNet has four times as many.
- The anchors are those of the released network, made from COCO at 544 pixels.
- The paper's network is Darknet-19 with 9,418 classes: 28,269 numbers a cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cvtrain.layers.word_tree import WordTree
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.detection.yolov2 import YOLOv2
from cvtrain.structures import Prediction


class YOLO9000(YOLOv2):
    """A YOLOv2 whose classes are a tree's.

    Args:
        backbone: its last map is used, and the one of half its stride.
        loss: as ``losses.yolov2.YOLOv2Loss``.
        num_classes: K.
        image_size: of the network's input, pixels: an int or (H, W); the anchors are shares of it.
        anchors: (width, height) of each, in shares of the image.
        tree: ``parents``, the node above each node, and ``classes``, the node of each class; None:
            all classes beside each other.
        tree_threshold: a walk down the tree goes on to nodes of at least this probability, 0..1.
        options: as ``YOLOv2``.

    Raises:
        ValueError: a value out of range, or a tree of other classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        image_size: int | Sequence[int],
        anchors: Sequence[Sequence[float]],
        tree: Mapping[str, Any] | None = None,
        tree_threshold: float = 0.5,
        **options: Any,
    ) -> None:
        if not 0 <= tree_threshold <= 1:
            raise ValueError(f"tree_threshold={tree_threshold} must be in 0..1")
        if tree is not None and not isinstance(tree, Mapping):
            raise ValueError(f"tree={tree}: a run reads the file before it builds the model")
        if tree is None:
            tree = {"parents": [-1] * num_classes, "classes": range(num_classes)}
        if len(tree["classes"]) != num_classes:
            raise ValueError(f"tree.classes: {len(tree['classes'])} of {num_classes} classes")
        built = WordTree(tree["parents"], list(tree["classes"]))
        super().__init__(
            backbone,
            loss,
            num_classes,
            image_size,
            anchors,
            class_numbers=built.size,
            **options,
        )
        self.tree = built
        self.tree_threshold = tree_threshold

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.tree.surprise(logits, labels)

    def _decode(self, flat: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Prediction:
        objectness = flat[:, 4].sigmoid()  # (P,)
        which = (objectness > self.select.min_score).nonzero().flatten()
        if len(which) > self.candidates:
            which = which[objectness[which].topk(self.candidates).indices]
        labels, probability = self.tree.answer(flat[which, 5:], self.tree_threshold)
        scores = objectness[which] * probability
        return self.select(boxes[which], scores, labels, image_size=image_size)
