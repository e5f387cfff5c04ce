"""Class maps from network pixels back to those of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cvtrain import structures
from cvtrain.augment.geometry import fit, placement, put
from cvtrain.data.table import Classes
from cvtrain.metrics import metrics_for
from cvtrain.models.base import Model
from cvtrain.structures import ImageInfo, Prediction
from cvtrain.tasks.semantic_segmentation import SemanticSegmentationTask

SIZES = [((40, 60), (32, 48)), ((17, 90), (64, 64)), ((64, 64), (64, 64)), ((1, 300), (64, 64))]


def placed(size, net, resize="letterbox"):
    place = fit(*size, *net, resize)
    return place, placement(place, *size)


@pytest.fixture
def task():
    class Nothing(Model):
        def forward(self, images):
            return images

        def compute_loss(self, outputs, targets):
            return {}

        def decode(self, outputs):
            return []

    classes = Classes.from_names(["a", "b", "c"])
    metrics = metrics_for("semantic_segmentation", classes)
    words = ({"name": "sgd", "lr": 0.1}, None, "mIoU", "max", "semantic_segmentation")
    return SemanticSegmentationTask(Nothing(), classes, metrics, *words)


@pytest.mark.parametrize(("size", "net"), SIZES)
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_logits_are_interpolated_then_compared(size, net, resize, monkeypatch) -> None:
    place, where = placed(size, net, resize)
    logits = torch.randn(5, *net, generator=torch.Generator().manual_seed(0))
    inner = logits[:, place.top : place.top + place.height, place.left : place.left + place.width]
    expected = F.interpolate(inner[None], size=size, mode="bilinear", align_corners=False)[0]
    got = where.logits_to_original(logits)
    assert got.dtype == torch.uint8
    assert torch.equal(got.long(), expected.argmax(0))
    monkeypatch.setattr(structures, "_STRIPE", 1)  # a row at a time
    assert torch.equal(where.logits_to_original(logits), got)


@pytest.mark.parametrize(("size", "net"), SIZES)
def test_a_mask_alone_goes_by_nearest_pixels(size, net) -> None:
    _, where = placed(size, net)
    rows = torch.arange(net[0])[:, None].expand(net)
    got = where.mask_to_original(rows)
    assert got.shape == size
    centers = ((torch.arange(size[0]) + 0.5) * where.scale_y + where.shift_y).floor()
    centers = centers.clamp(max=where.shift_y + max(1, round(size[0] * where.scale_y)) - 1)
    assert torch.equal(got[:, 0].float(), centers)


def test_smooth_outlines_are_closer_to_the_truth_than_steps(task) -> None:
    """A disc seen at an eighth of its size: its true logits, and the classes they give there."""
    y, x = np.mgrid[:256, :256]
    disc = (np.hypot(y - 120, x - 133) < 80).astype(np.float32)
    place, where = placed((256, 256), (32, 32))
    share = torch.from_numpy(put(disc, place, 32, 32, 0, nearest=False))
    logits = torch.stack([1 - share, share, torch.zeros_like(share)])
    info = ImageInfo(0, "a", "a", 256, 256, where)
    truth = torch.from_numpy(disc).long()
    smooth = Prediction(mask=logits.argmax(0), logits=logits)
    steps = Prediction(mask=logits.argmax(0))
    wrong = [
        int((task.to_original_batch([p], [info])[0].mask != truth).sum()) for p in (smooth, steps)
    ]
    assert wrong[0] < 0.35 * wrong[1]
    assert task.to_original_batch([smooth], [info])[0].logits is None


def test_a_perfect_network_scores_nearly_one_at_any_input_size(task) -> None:
    rng = np.random.default_rng(0)
    true = np.kron(rng.integers(0, 3, (6, 8)), np.ones((20, 20), np.int64)).astype(np.uint8)
    place, where = placed(true.shape, (96, 96))
    seen = torch.from_numpy(put(true, place, 96, 96, 255, nearest=True)).long()
    logits = F.one_hot(seen.clamp(max=2), 3).permute(2, 0, 1).float()  # (H, W, K) -> (K, H, W)
    info = ImageInfo(0, "a", "a", *true.shape, where)
    message = task.to_original(Prediction(mask=logits.argmax(0), logits=logits), info)
    assert (message.mask.numpy() == true).mean() > 0.97
    with pytest.raises(ValueError, match="a mask and the image's placement are needed"):
        task.to_original(Prediction(), info)
