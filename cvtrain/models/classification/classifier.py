"""A backbone as an image classifier.

Backbone, its own global pooling (timm's, where it is one of timm's: the mean of the last map for
convolutional networks, the class token or the mean of the tokens for transformers, with whatever
norm the network has there), optional dropout, one linear layer, and what the loss is made for: a
softmax, or, for several labels an image, a sigmoid each. With a timm backbone this is timm's own
classifier: on the same weights the outputs are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from cvtrain.losses.targets import class_targets
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.models.classification.heads import build_head
from cvtrain.structures import Prediction, Target


class Classifier(Model):
    """Backbone, pooling, linear layer (or another head).

    Args:
        backbone: where the features come from.
        loss: takes logits ``(B, K)`` and labels int64 ``(B,)`` or shares of the classes float
            ``(B, K)``, gives a scalar. One with an attribute ``multi_label`` that is true makes the
            outputs sigmoids.
        num_classes: K.
        dropout: share of the pooled features dropped in training, 0..1.
        head: what stands on the features, see ``heads.build_head``; None: one linear layer.
    """

    def __init__(
        self,
        backbone: Backbone,
        loss: nn.Module,
        num_classes: int,
        dropout: float = 0.0,
        head: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.set_output("pooled")
        self.dropout = nn.Dropout(dropout)
        self.fc = build_head(head, backbone.num_features, num_classes)
        self.criterion = loss

    def features(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in the file's dtype -> what the head sees, ``(B, num_features)``."""
        return self.backbone.pooled(self.normalize(images))

    def forward(self, images: Tensor) -> Tensor:
        """Images -> logits ``(B, K)``, float32.

        Args:
            images: ``(B, C, H, W)`` in the file's dtype, or ``(B, num_features)``: their features,
                computed before.
        """
        features = images if images.ndim == 2 else self.features(images)
        return self.fc(self.dropout(features)).float()

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return {"classes": self.criterion(outputs, class_targets(targets, outputs.shape[1]))}

    def decode(self, outputs: Tensor) -> list[Prediction]:
        multi_label = getattr(self.criterion, "multi_label", False)
        probs = outputs.sigmoid() if multi_label else outputs.softmax(dim=1)
        return [Prediction(probs=p) for p in probs]  # (K,) each
