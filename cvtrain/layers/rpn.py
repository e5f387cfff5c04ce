"""The region proposal network: boxes that may hold an object of any class, by anchors on maps.

Paper: Ren, He, Girshick, Sun, "Faster R-CNN", arXiv 1506.01497, section 3.1. A 3 x 3 convolution
and two of 1 x 1, the same on every map: objectness and four codes for each anchor. An anchor is
positive from IoU 0.7 with an object on, or where it overlaps an object most; negative below 0.3;
256 an image are drawn for the loss, half of them positive if there are so many. On a pyramid every
level has anchors of one size (Lin et al. 2017, arXiv 1612.03144, section 4.1). With copied weights,
outputs, proposals and losses are those of torchvision's.

Where we deviate from the first paper, as the second and torchvision do:

- Objectness is one sigmoid an anchor (the paper: a softmax over two, which is the same function).
- Both terms are divided by the anchors drawn. The paper divides the boxes' by the places of the map
  and weights it by 10, which is about the same.
- Anchors that cross the border of the image count in training (the paper leaves them out; of small
  images they are nearly all).
- Smooth L1 turns from parabola to line at 1/9, as in the authors' code (the paper: at 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from cvtrain.layers.anchors import GridAnchors, flatten_map
from cvtrain.layers.box_coder import BoxCoder
from cvtrain.layers.boxes import clip, objects_of
from cvtrain.layers.matcher import NEGATIVE, Matcher
from cvtrain.layers.sampler import fixed_draws, sample_balanced
from cvtrain.structures import Target

SMALLEST = 1e-3
"""Proposals with a shorter side are dropped, pixels."""


class RPNOutputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        logits: float32 ``(B, A)``, objectness.
        codes: float32 ``(B, A, 4)``, boxes relative to the anchors.
        anchors: float32 ``(A, 4)`` xyxy pixels.
        counts: anchors of each map.
    """

    logits: Tensor
    codes: Tensor
    anchors: Tensor
    counts: list[int]


class RPN(nn.Module):
    """Anchors, their objectness and codes; the loss of these, and proposals.

    Args:
        in_channels: of every map.
        strides: of the maps.
        channels: of the hidden convolution; None: as many as the maps have.
        scales: sides of the anchors (roots of their areas) in strides of the map.
        ratios: height / width of the anchors.
        positive_iou: anchors of this IoU with an object and more are positive, 0..1.
        negative_iou: those below this are negative, 0..1.
        sample: anchors an image that the loss counts.
        positive_fraction: of positives among them at most, 0..1.
        beta: where the box loss turns from parabola to line.
        candidates: the best so many of each map go on to the suppression; in training, elsewhere.
        proposals: so many an image are left; in training, elsewhere.
        nms_iou: a box that overlaps a better one of its map by more is removed, 0..1.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        channels: int | None = None,
        scales: Sequence[float] = (8.0,),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        positive_iou: float = 0.7,
        negative_iou: float = 0.3,
        sample: int = 256,
        positive_fraction: float = 0.5,
        beta: float = 1 / 9,
        candidates: Sequence[int] = (2000, 1000),
        proposals: Sequence[int] = (2000, 1000),
        nms_iou: float = 0.7,
    ) -> None:
        super().__init__()
        for name, pair in (("candidates", candidates), ("proposals", proposals)):
            if len(pair) != 2 or min(pair) < 1:
                raise ValueError(
                    f"rpn.{name}={list(pair)}: give two numbers from 1, in training and elsewhere"
                )
        if sample < 1 or not 0 <= positive_fraction <= 1 or beta < 0 or not 0 <= nms_iou <= 1:
            raise ValueError(
                f"rpn.sample={sample} must be at least 1, rpn.beta={beta} at least 0, "
                f"rpn.positive_fraction={positive_fraction} and rpn.nms_iou={nms_iou} in 0..1"
            )
        if not scales or not ratios or min(*scales, *ratios) <= 0:
            raise ValueError(
                f"rpn.scales={list(scales)} rpn.ratios={list(ratios)}: give numbers above 0"
            )
        self.sample, self.positive_fraction, self.beta = sample, positive_fraction, beta
        self.candidates, self.proposals = tuple(candidates), tuple(proposals)
        self.nms_iou = nms_iou
        self.coder = BoxCoder()
        self.matcher = Matcher(positive_iou, negative_iou, rescue="ties")
        sides = [[float(scale * stride) for scale in scales] for stride in strides]
        self.anchors = GridAnchors(sides, ratios, strides)
        width = channels or in_channels
        per_place = len(scales) * len(ratios)
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)
        self.objectness = nn.Conv2d(width, per_place, 1)
        self.codes = nn.Conv2d(width, per_place * 4, 1)
        for layer in (self.conv, self.objectness, self.codes):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> RPNOutputs:
        """Maps ``(B, in_channels, H_i, W_i)``, one a stride -> logits and codes of every anchor."""
        logits, codes, sizes = [], [], []
        for x in maps:
            sizes.append((x.shape[-2], x.shape[-1]))
            hidden = F.relu(self.conv(x))
            logits.append(flatten_map(self.objectness(hidden), 1))  # (B, H W A, 1)
            codes.append(flatten_map(self.codes(hidden), 4))
        anchors = self.anchors(sizes, maps[0].device)
        return RPNOutputs(
            logits=torch.cat(logits, dim=1).squeeze(2).float(),
            codes=torch.cat(codes, dim=1).float(),
            anchors=torch.cat(anchors),
            counts=[len(a) for a in anchors],
        )

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs, image_size: tuple[int, int]) -> list[Tensor]:
        """Boxes worth a look, without gradient.

        Args:
            outputs: of the forward.
            image_size: height, width in pixels.

        Returns:
            For each image float32 ``(P, 4)`` xyxy pixels inside it, best first, P at least 1: where
            no anchor gives a box, the image.
        """
        candidates = self.candidates[0 if self.training else 1]
        most = self.proposals[0 if self.training else 1]
        found = []
        for logits, codes in zip(outputs.logits, outputs.codes, strict=True):
            chosen, levels, first = [], [], 0
            for i, part in enumerate(logits.split(outputs.counts)):
                best = part.topk(min(candidates, len(part))).indices
                chosen.append(best + first)
                levels.append(torch.full_like(best, i))
                first += len(part)
            which, level = torch.cat(chosen), torch.cat(levels)
            boxes = clip(self.coder.decode(codes[which], outputs.anchors[which]), image_size)
            good = (boxes[:, 2:] - boxes[:, :2] >= SMALLEST).all(dim=1)  # not a number: no
            boxes, scores, level = boxes[good], logits[which][good].sigmoid(), level[good]
            boxes = boxes[batched_nms(boxes, scores, level, self.nms_iou)[:most]]
            found.append(boxes if len(boxes) else whole_image(image_size, boxes))
        return found

    def loss(self, outputs: RPNOutputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``objectness`` and ``proposals``: of anchors drawn at random, image by image.

        In training torch's global generator draws, elsewhere a fixed one.
        """
        anchors = outputs.anchors
        entropies, regressed, count = [], [], 0
        for logits, codes, target in zip(outputs.logits, outputs.codes, targets, strict=True):
            boxes, _, ignored = objects_of(target, anchors.device)
            index, _ = self.matcher(anchors, boxes, ignored)
            positive, negative = sample_balanced(
                index >= 0,
                index == NEGATIVE,
                self.sample,
                self.positive_fraction,
                fixed_draws(self.training),
            )
            drawn = torch.cat([positive, negative])
            truth = torch.zeros(len(drawn), device=anchors.device)
            truth[: len(positive)] = 1.0
            entropies.append(
                F.binary_cross_entropy_with_logits(logits[drawn], truth, reduction="sum")
            )
            wanted = self.coder.encode(boxes[index[positive]], anchors[positive])
            regressed.append(
                F.smooth_l1_loss(codes[positive], wanted, reduction="sum", beta=self.beta)
            )
            count += len(drawn)
        return {
            "objectness": torch.stack(entropies).sum() / max(1, count),
            "proposals": torch.stack(regressed).sum() / max(1, count),
        }


def whole_image(image_size: tuple[int, int], like: Tensor) -> Tensor:
    """One box ``(1, 4)``, the image (height, width); of the dtype and device of ``like``."""
    height, width = image_size
    return like.new_tensor([[0.0, 0.0, width, height]])
