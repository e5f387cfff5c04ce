"""OverFeat as a detector: any number of objects, and a background class learned on the fly.

Paper: Sermanet et al. 2013, arXiv 1312.6229, section 5: "Detection training is similar to
classification training but in a spatial manner. Multiple locations of an image may be trained
simultaneously. [...] The main difference with the localization task is the necessity to predict a
background class when no object is present"; negatives are chosen in training, "a few interesting
negative examples per image such as random ones or most offending ones". 24.3 mAP on ILSVRC 2013
(19.4 in the competition).

Network, dense outputs, phases (the classifier first, then on its fixed convolutions the regressor)
and merging are the localization model's, with its deviations: models/localization/overfeat.py.
What it says of the networks whose dense outputs equal those of windows cut out holds here.

What the paper leaves open, or we do otherwise:

- A window answers for the object that it overlaps most if their IoU is 0.3 and more; background is
  below 0.15, so a window that holds a small object, or a small piece of a large one, may be. Each
  object has at least one window at the scale nearest to its size. A window's class and its box are
  those of that object.
- Every step trains at one scale, drawn. Of an image the ``negatives`` most mistaken background
  windows count, and as many drawn at random.
- All classes of more than 0.05 at a window vote, 100 windows a scale and class at most.
- A box's score is s / (1 + s), s the sum of the votes merged into it: the paper's order, in 0..1.
- The scales begin at the image and end at a quarter of it, factors of 1.41 apart: detection's
  objects are smaller than localization's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cvtrain.errors import UsageError
from cvtrain.layers.boxes import area, objects_of, pairwise
from cvtrain.layers.matcher import NEGATIVE, Matcher
from cvtrain.layers.sampler import fixed_draws
from cvtrain.layers.window_head import to_window
from cvtrain.models.localization import overfeat
from cvtrain.models.localization.overfeat import Dense
from cvtrain.structures import Prediction, Target, empty_boxes

SCALES = (1.0, 1.41, 2.0, 2.83, 4.0)
"""An image's side over a window's."""
POSITIVE, EMPTY = 0.3, 0.15
"""IoU of a window with an object: from the first on it answers for it, below the second it is
background."""
VOTES = 0.05
"""Classes of more than this probability at a window vote."""
DETECTIONS = 100
"""Boxes of an image at most, the best."""


class OverFeat(overfeat.OverFeat):
    """The localization model for any number of objects an image.

    Args:
        negatives: background windows trained on an image, the most mistaken; as many at random.
        background: True, or None.

    The others are those of the localization model.

    Raises:
        UsageError: ``background=False``, and what the localization model refuses.
    """

    default_scales = SCALES
    default_windows = 100

    def _with_background(self, num_classes: int, background: bool | None) -> bool:
        if background is False:
            raise UsageError(
                "model.background=false: a detector must be able to say that nothing is there; "
                "leave it null"
            )
        return True

    # Losses ------------------------------------------------------------------------------------

    def _terms(self, images: Tensor, targets: list[Target], scale: float) -> dict[str, Tensor]:
        """``classes`` and ``boxes``, those of the stage, and the count ``num_objects``."""
        terms = super()._terms(images, targets, scale)
        objects = sum(len(objects_of(t)[0]) for t in targets)
        return {**terms, "num_objects": torch.tensor(float(objects), device=images.device)}

    def _class_terms(self, x: Tensor, targets: list[Target], scale: float) -> dict[str, Tensor]:
        maps, windows = self.maps(x, scale)
        logits = self.classifier(maps).float().flatten(2)  # (B, K + 1, V)
        return {"classes": self._window_loss(logits, windows, targets)}

    def _window_loss(self, logits: Tensor, windows: Tensor, targets: list[Target]) -> Tensor:
        """Cross-entropy of windows with an object, and of background, the hardest and some more."""
        terms = [logits.sum() * 0]
        for row, target in zip(logits, targets, strict=True):  # (K + 1, V)
            index = self._matched(windows, target)
            _, labels, _ = objects_of(target, windows.device)
            losses = -row.log_softmax(dim=0)
            here = (index >= 0).nonzero().flatten()
            if len(here):
                terms.append(losses[labels[index[here]], here].mean())
            mistaken = losses[self.num_classes][index == NEGATIVE]
            if len(mistaken):
                count = min(self.negatives, len(mistaken))
                draws = torch.randperm(len(mistaken), generator=fixed_draws(self.training))
                random = mistaken[draws[:count].to(mistaken.device)]
                terms.append(torch.cat([mistaken.topk(count).values, random]).mean())
        return torch.stack(terms).sum() / len(targets)

    def _box_loss(self, edges: Tensor, windows: Tensor, targets: list[Target]) -> Tensor:
        """Squared distance of the four edges, the mean over the windows that have an object."""
        losses = [edges.sum(dim=(1, 2, 3)) * 0]
        for row, target in zip(edges, targets, strict=True):  # (P, V, 4)
            index = self._matched(windows, target)
            boxes, labels, _ = objects_of(target, windows.device)
            here = (index >= 0).nonzero().flatten()
            found = index[here]
            wanted = to_window(boxes[found], windows[here])  # (N, 4)
            which = labels[found] if self.per_class else torch.zeros_like(found)
            losses.append((row[which, here] - wanted).square().sum(dim=1))
        return torch.cat(losses).sum() / max(1, sum(len(part) for part in losses[1:]))

    @torch.no_grad()
    def _matched(self, windows: Tensor, target: Target) -> Tensor:
        """int64 ``(V,)``: the object of each window of a scale, or as ``Matcher`` says."""
        boxes, _, ignored = objects_of(target, windows.device)
        index, _ = Matcher(POSITIVE, EMPTY)(windows, boxes, ignored)
        if len(boxes):
            mine = self._at_this_scale(boxes, windows).nonzero().flatten()
            value, place = pairwise(boxes[mine], windows).max(dim=1)  # (M, V) -> (M,)
            index[place[value > 0]] = mine[value > 0]
        return index

    def _at_this_scale(self, boxes: Tensor, windows: Tensor) -> Tensor:
        """Bool ``(N,)``: the objects to whose size no other scale's windows come nearer."""
        side = area(boxes).clamp(min=1e-9).log() / 2  # (N,)
        whole = math.log(self.grid.height * self.grid.width) / 2
        sides = side.new_tensor([whole - math.log(scale) for scale in self.scales])
        here = (sides - area(windows[0]).log() / 2).abs().argmin()
        return (side[:, None] - sides).abs().argmin(dim=1) == here

    # Predictions -------------------------------------------------------------------------------

    def decode(self, outputs: list[Dense]) -> list[Prediction]:
        """Merged boxes of each image; none before the regressor is trained."""
        return [self._detected(outputs, i) for i in range(outputs[0].probs.shape[0])]

    def _detected(self, outputs: list[Dense], i: int) -> Prediction:
        device = outputs[0].probs.device
        limit = np.array([outputs[0].width, outputs[0].height] * 2, np.float32)
        boxes_of, scores_of, labels_of = [], [], []
        for k in range(self.num_classes):
            votes = [self._votes(dense, i, k) for dense in outputs if dense.boxes is not None]
            boxes = np.concatenate([b for b, _ in votes]) if votes else np.zeros((0, 4))
            if not len(boxes):
                continue
            merged, sums = self._all_merged(boxes, np.concatenate([s for _, s in votes]), limit)
            boxes_of.append(merged)
            scores_of.append(sums / (1 + sums) if self.merge == "greedy" else sums)
            labels_of.append(np.full(len(sums), k))
        if not boxes_of:
            none = torch.zeros(0, device=device)
            return Prediction(boxes=empty_boxes(device), scores=none, labels=none.long())
        scores = np.concatenate(scores_of)
        best = np.argsort(-scores, kind="stable")[:DETECTIONS]
        return Prediction(
            boxes=torch.tensor(np.concatenate(boxes_of)[best], device=device).float(),
            scores=torch.tensor(scores[best], device=device).float(),
            labels=torch.tensor(np.concatenate(labels_of)[best], device=device),
        )

    def _votes(self, dense: Dense, i: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes ``(N, 4)`` and probabilities ``(N,)`` of a scale's surest windows for class k."""
        assert dense.boxes is not None
        scores = dense.probs[i, k].detach().cpu().numpy()
        boxes = dense.boxes[i, k if self.per_class else 0].detach().cpu().numpy()
        sure = np.flatnonzero(scores > VOTES)
        sure = sure[np.argsort(-scores[sure], kind="stable")[: self.max_windows]]
        return boxes[sure], scores[sure]
