"""A backbone as an image classifier.

Backbone, its own global pooling (timm's, where it is one of timm's: the mean of the last map for
convolutional networks, the class token or the mean of the tokens for transformers, with whatever
norm the network has there), optional dropout, one linear layer, and what the loss is made for: a
softmax, or, for several labels an image, a sigmoid each. With a timm backbone this is timm's own
classifier: on the same weights the outputs are equal.
"""

from __future__ import annotations

from torch import Tensor, nn

from cvtrain.losses.targets import class_targets
from cvtrain.models.backbones.base import Backbone
from cvtrain.models.base import Model
from cvtrain.types import Prediction, Target


class Classifier(Model):
    """Backbone, pooling, linear layer.

    Args:
        backbone: where the features come from.
        loss: takes logits ``(B, K)`` and labels int64 ``(B,)`` or shares of the classes float
            ``(B, K)``, gives a scalar. One with an attribute ``multi_label`` that is true makes the
            outputs sigmoids.
        num_classes: K.
        dropout: share of the pooled features dropped in training, 0..1.
    """

    def __init__(
        self, backbone: Backbone, loss: nn.Module, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.normalize = backbone.normalizer()
        self.backbone = backbone
        self.backbone.use("pooled")
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.num_features, num_classes)
        self.criterion = loss
        nn.init.normal_(self.fc.weight, std=0.01)  # start at nearly equal probabilities
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in the file's dtype -> logits ``(B, K)``, float32."""
        features = self.backbone.pooled(self.normalize(images))  # (B, num_features)
        return self.fc(self.dropout(features)).float()

    def compute_loss(self, outputs: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        return {"classes": self.criterion(outputs, class_targets(targets, outputs.shape[1]))}

    def decode(self, outputs: Tensor) -> list[Prediction]:
        multi_label = getattr(self.criterion, "multi_label", False)
        probs = outputs.sigmoid() if multi_label else outputs.softmax(dim=1)
        return [Prediction(probs=p) for p in probs]  # (K,) each
