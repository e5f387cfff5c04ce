"""RT-DETR (2023): a transformer that says the set of objects itself, without suppression.

Paper: Zhao, Lv, Xu, Wei, Wang, Dang, Liu, Chen, "DETRs Beat YOLOs on Real-time Object Detection",
arXiv 2304.08069. Written from it and from the papers it rests on: DETR (2005.12872), Deformable
DETR (2010.04159), DINO (2203.03605), VarifocalNet (2008.13367), RepVGG (2101.03697).

Maps at strides 8, 16 and 32 through a hybrid encoder (layers/hybrid_encoder.py). The 300 cells
whose class is surest become queries: their features, and boxes that they propose. As their class is
trained towards the IoU of their box, sure of the class means sure of the place ("uncertainty-
minimal" selection). Six decoder layers look at a few points of the maps around each query's box and
correct it (layers/query_decoder.py). In training each layer's, and the selected cells' own,
predictions are matched with the objects, one each (layers/hungarian.py), by class, L1 distance and
GIoU, weights 2, 5, 2; varifocal, L1 and GIoU losses, weights 1, 5, 2, are summed over the layers
and divided by the objects. Queries made of the objects with noise are put right beside them
(layers/denoising.py). The best of all (query, class) pairs are the predictions: no suppression.
Fewer decoder layers than were trained can predict (``eval_layers``): faster, a little worse.

With 80 classes and ResNet-50, -34 (4 decoder layers, half the width in the fusion blocks), -18 (3
layers, half the width): 42, 31, 20 million parameters, as in the paper, counted with each RepBlock
as the one convolution that it is in the end.

Where the paper is silent or we deviate:

- The backbone is any, its batch norms train; the paper's ResNets (of kind D) are pretrained, with
  batch norms that are fixed, and learn at a tenth of the rate.
- All cells may become queries; Deformable DETR's code leaves out those next to the border.
- An object without a prediction to match, where there are more objects than queries, trains the
  denoising alone.
- A prediction without an object, more than half of it in a region to ignore, has no class loss.
- Objects are counted by each process for itself.
- The denoising queries' groups, see layers/denoising.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cvtrain.layers.anchors import Size
from cvtrain.layers.boxes import clip, corners, covered, objects_of
from cvtrain.layers.denoising import Denoising
from cvtrain.layers.hungarian import Costs, assign
from cvtrain.layers.hybrid_encoder import STRIDES, HybridEncoder
from cvtrain.layers.multi_scale import MultiScale, resize_batch
from cvtrain.layers.pad import pad_to_multiple
from cvtrain.layers.query_decoder import Guess, QueryDecoder, QuerySelection
from cvtrain.losses.box_regression import IoULoss
from cvtrain.losses.set_prediction import Pairs, set_terms
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model, evaluating
from cvtrain.structures import Prediction, Target

MULTIPLE = 32
"""Images are padded to a multiple of this, pixels."""
INSIDE = 0.5
"""A prediction of which a larger share lies in a region to ignore is no negative."""


class Outputs(NamedTuple):
    """What the network says of a batch.

    Attributes:
        cells: what the selected cells say.
        layers: what each decoder layer says of the queries.
        values: for each layer ``(B, S, C)``, what it reads of the maps; the denoising queries do.
        sizes: rows and columns of the maps.
        scale: float32 ``(4,)`` width, height, width, height of the padded images, pixels.
        image_size: height, width in pixels.
    """

    cells: Guess
    layers: list[Guess]
    values: list[Tensor]
    sizes: list[Size]
    scale: Tensor
    image_size: tuple[int, int]


class Objects(NamedTuple):
    """The objects of a batch, an entry an image.

    Attributes:
        boxes: ``(N, 4)`` xyxy pixels.
        labels: int64 ``(N,)``.
        ignored: ``(M, 4)``, regions to ignore.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    ignored: list[Tensor]


class RTDETR(Model):
    """Backbone, hybrid encoder, query selection and decoder.

    Args:
        backbone: its maps are used.
        loss: of the boxes, one of IoU's kin.
        num_classes: K.
        channels: of the encoder's maps and the queries, a multiple of 4 and of ``heads``.
        heads: of every attention.
        hidden: units of the connected layers behind each attention.
        fusion_blocks: RepBlocks of each fusion block.
        fusion_width: channels in the fusion blocks, in shares of ``channels``.
        queries: predictions of each layer; fewer on images with fewer cells.
        decoder_layers: at least 1.
        eval_layers: of them so many predict; None: all.
        points: that each head looks at on each map.
        class_weight, l1_weight, overlap_weight: of the losses.
        alpha, gamma: of the varifocal loss's negatives.
        denoising: pairs of denoising queries an image, about; None: none.
        label_noise: part of them whose label is drawn anew, 0..1.
        box_noise: how far their corners are moved, in halves of the sides; 0..1.
        multi_scale: smallest and largest size trained at, in shares of the images'; None: one.
        resize_every: batches in a row of one size.
        seed: the sizes are drawn from it.
        prior: probability of every class at the start, 0..1.
        min_score: predictions score more than this.
        max_detections: predictions an image, the best first.

    Raises:
        ValueError: a value out of range, a loss that is none of boxes' overlap, or a backbone
            without maps near strides 8 to 32.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: IoULoss,
        num_classes: int,
        channels: int = 256,
        heads: int = 8,
        hidden: int = 1024,
        fusion_blocks: int = 3,
        fusion_width: float = 1.0,
        queries: int = 300,
        decoder_layers: int = 6,
        eval_layers: int | None = None,
        points: int = 4,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        overlap_weight: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
        denoising: int | None = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        multi_scale: Sequence[float] | None = None,
        resize_every: int = 1,
        seed: int = 0,
        prior: float = 0.01,
        min_score: float = 0.01,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if not isinstance(loss, IoULoss):
            raise ValueError("RT-DETR regresses boxes: loss=giou, iou, diou or ciou")
        for name, value in (("queries", queries), ("max_detections", max_detections)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        weights = (class_weight, l1_weight, overlap_weight)
        if min(*weights, alpha, gamma) < 0:
            raise ValueError(f"weights {weights}, alpha={alpha} and gamma={gamma} are at least 0")
        if eval_layers is not None and not 1 <= eval_layers <= decoder_layers:
            raise ValueError(
                f"eval_layers={eval_layers}: this decoder has layers 1 to {decoder_layers}"
            )
        self.num_classes, self.queries = num_classes, queries
        self.eval_layers = eval_layers
        self.weights, self.alpha, self.gamma = weights, alpha, gamma
        self.min_score, self.max_detections = min_score, max_detections
        self.criterion = loss
        self.costs = Costs()
        self.scales = None
        if multi_scale is not None:
            self.scales = MultiScale(multi_scale, resize_every, MULTIPLE, seed)
        self.batch: tuple[int, int] | None = None  # epoch and batch that is trained

        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("maps")
        self.encoder = HybridEncoder(
            backbone.channels,
            backbone.strides,
            channels,
            heads,
            hidden,
            fusion_blocks,
            fusion_width,
        )
        if max(self.encoder.sources) < len(backbone.strides) - 1:  # a map beyond stride 32
            self.backbone.truncate(max(self.encoder.sources))
        self.selection = QuerySelection(channels, num_classes, prior)
        self.decoder = QueryDecoder(
            channels, num_classes, decoder_layers, heads, len(STRIDES), points, hidden, prior
        )
        self.denoising = None
        if denoising is not None:
            self.denoising = Denoising(channels, num_classes, denoising, label_noise, box_noise)

    def on_batch_start(self, epoch: int, batch: int) -> None:
        self.batch = (epoch, batch)

    def forward(self, images: Tensor, layers: int | None = None) -> Outputs:
        """``(B, C, H, W)`` of any size -> what the cells and ``layers`` (None: all) layers say."""
        return self._guesses(self.normalize(images), layers)

    def loss(
        self, images: Tensor, targets: list[Target], proposals: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Loss terms at the size of the batch (``on_batch_start``)."""
        x = self.normalize(images)
        if self.scales is not None and self.batch is not None:
            size = self.scales.size(*self.batch, x.shape[-2], x.shape[-1])
            x, targets = resize_batch(x, targets, size)
        return self.compute_loss(self._guesses(x), targets)

    def predict(self, images: Tensor, proposals: list[Tensor] | None = None) -> list[Prediction]:
        """Predictions by ``eval_layers`` decoder layers; those after them do not run."""
        with evaluating(self):
            return self.decode(self(images, self.eval_layers))

    def _guesses(self, x: Tensor, layers: int | None = None) -> Outputs:
        """Normalized images ``(B, C, H, W)`` -> what the cells and the decoder's layers say."""
        image_size = (x.shape[-2], x.shape[-1])
        x = pad_to_multiple(x, MULTIPLE)
        height, width = x.shape[-2:]
        maps = self.encoder(self.backbone(x), (height, width))
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps]
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, S, C)
        queries, cells = self.selection(memory, sizes, self.queries)
        values = self.decoder.values(memory, layers)
        # What the decoder begins with is given: the cells learn from their own predictions' loss.
        found = self.decoder(queries.detach(), cells.places.detach(), values, sizes)
        scale = torch.tensor([width, height, width, height], device=x.device, dtype=torch.float32)
        return Outputs(cells, found, values, sizes, scale, image_size)

    def compute_loss(self, outputs: Outputs, targets: list[Target]) -> dict[str, Tensor]:
        """Terms ``classes``, ``boxes``, ``overlap`` of the last layer, ``auxiliary`` of the layers
        before it, ``cells`` of the selection and ``denoising``; counts of objects and matches.
        """
        device = outputs.scale.device
        found = [objects_of(target, device) for target in targets]
        objects = Objects(*map(list, zip(*found, strict=True)))
        count = sum(len(boxes) for boxes in objects.boxes)
        guesses = [outputs.cells, *outputs.layers]
        matched = self._match(guesses, objects, outputs.scale)
        terms = self._terms(guesses, matched, objects, outputs.scale).sum(dim=2) / max(1, count)
        result = {
            "classes": terms[0, -1],
            "boxes": terms[1, -1],
            "overlap": terms[2, -1],
            "auxiliary": terms[:, 1:-1].sum(),
            "cells": terms[:, 0].sum(),
        }
        if self.denoising is not None:
            result["denoising"] = self._denoised(outputs, objects) / max(1, count)
        return {
            **result,
            "num_objects": torch.tensor(count, device=device),
            "num_positives": torch.tensor(len(matched.row) // len(guesses), device=device),
        }

    def _match(self, guesses: Sequence[Guess], objects: Objects, scale: Tensor) -> Pairs:
        """The objects' predictions, L sets an image: row ``l * B + b`` is image b's of layer l."""
        logits = torch.stack([g.logits for g in guesses]).detach()  # (L, B, Q, K)
        boxes = torch.stack([g.places for g in guesses]).detach().sigmoid()  # (L, B, Q, 4)
        costs = [
            self.costs(logits[:, b], boxes[:, b], wanted, labels, scale)
            for b, (wanted, labels) in enumerate(zip(objects.boxes, objects.labels, strict=True))
        ]
        rows, queries, wanted, kinds = [], [], [], []
        for b, problems in enumerate(assign(costs)):
            for level, (query, owned) in enumerate(problems):
                rows.append(torch.full_like(query, level * len(costs) + b))
                queries.append(query)
                wanted.append(objects.boxes[b][owned])
                kinds.append(objects.labels[b][owned])
        return Pairs(*(torch.cat(part) for part in (rows, queries, wanted, kinds)))

    def _terms(
        self, guesses: Sequence[Guess], pairs: Pairs, objects: Objects, scale: Tensor
    ) -> Tensor:
        """Float32 ``(3, L, B)``: the weighted losses of classes, distance and overlap."""
        logits = torch.cat([g.logits for g in guesses])  # (L * B, Q, K)
        boxes = torch.cat([g.places for g in guesses]).sigmoid()
        counted = torch.ones_like(logits[..., 0])  # (L * B, Q)
        for row in range(len(counted)):
            regions = objects.ignored[row % len(objects.ignored)]
            if len(regions):
                edges = corners(boxes[row].detach() * scale)
                counted[row, covered(edges, regions) > INSIDE] = 0.0
        return self._weighted(logits, boxes, pairs, counted, scale, len(guesses))

    def _weighted(
        self,
        logits: Tensor,
        boxes: Tensor,
        pairs: Pairs,
        counted: Tensor,
        scale: Tensor,
        layers: int,
    ) -> Tensor:
        parts = set_terms(
            logits, boxes, pairs, counted, scale, self.criterion, self.alpha, self.gamma
        )
        weighted = [w * part for w, part in zip(self.weights, parts, strict=True)]
        return torch.stack(weighted).unflatten(1, (layers, -1))  # (3, L * B) -> (3, L, B)

    def _denoised(self, outputs: Outputs, objects: Objects) -> Tensor:
        """The losses of the denoising queries, all layers'; each object counts once a layer."""
        assert self.denoising is not None
        noised = self.denoising(objects.boxes, objects.labels, outputs.scale)
        guesses = self.decoder(
            noised.queries, noised.places, outputs.values, outputs.sizes, noised.mask
        )
        layers, batch = len(guesses), len(noised.owner)
        image, query = (noised.owner >= 0).nonzero(as_tuple=True)
        first = torch.tensor([0, *map(len, objects.boxes[:-1])], device=image.device).cumsum(0)
        which = first[image] + noised.owner[image, query]  # among all objects
        level = torch.arange(layers, device=image.device).repeat_interleave(len(image))
        pairs = Pairs(
            row=level * batch + image.repeat(layers),
            query=query.repeat(layers),
            boxes=torch.cat(objects.boxes)[which].repeat(layers, 1),
            labels=torch.cat(objects.labels)[which].repeat(layers),
        )
        logits = torch.cat([g.logits for g in guesses])  # (L * B, M, K)
        boxes = torch.cat([g.places for g in guesses]).sigmoid()
        counted = noised.real.float().repeat(layers, 1)  # (L * B, M)
        terms = self._weighted(logits, boxes, pairs, counted, outputs.scale, layers)
        return (terms * noised.share).sum()

    def decode(self, outputs: Outputs) -> list[Prediction]:
        """The best (query, class) pairs of the layer that predicts, see ``eval_layers``."""
        last = min(len(outputs.layers), self.eval_layers or len(outputs.layers))
        logits, places = outputs.layers[last - 1]
        predictions = []
        for scores, boxes in zip(
            logits.sigmoid(), corners(places.sigmoid() * outputs.scale), strict=True
        ):
            boxes = clip(boxes, outputs.image_size)
            usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # (Q,)
            flat = (scores * usable[:, None]).flatten()  # (Q * K,)
            best, which = flat.topk(min(self.max_detections, len(flat)))
            which = which[best > self.min_score]
            query = which // self.num_classes
            predictions.append(
                Prediction(
                    boxes=boxes[query],
                    scores=flat[which],
                    labels=which % self.num_classes,
                )
            )
        return predictions
