"""YOLO 2015: the paper's numbers, the grid by hand, what becomes a prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cvtrain.losses.yolo import YOLOLoss
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.yolov1 import YOLOv1Backbone
from cvtrain.models.base import total_loss
from cvtrain.models.detection.yolo import YOLO, _overlaps
from cvtrain.structures import Target


@pytest.fixture
def make() -> Callable[..., YOLO]:
    """A YOLO of a few channels; keywords go to it."""

    def build(num_classes: int = 3, image_size: Any = 64, **keywords: Any) -> YOLO:
        torch.manual_seed(0)
        backbone = DarknetTiny(widths=(4, 8), blocks=(1, 1), narrow=None)
        return YOLO(backbone, YOLOLoss(), num_classes, image_size, **keywords)

    return build


def encode(grid: int, b: int, c: int, objects: list[tuple[int, int, int, list[float], int]]) -> Any:
    """Raw outputs, 0 but for (row, column, box, [x, y, w, h, confidence], class)."""
    out = torch.zeros(1, grid, grid, 5 * b + c)
    for row, column, box, (x, y, w, h, confidence), label in objects:
        values = torch.tensor([x, y, w**0.5, h**0.5, confidence])
        out[0, row, column, 5 * box : 5 * box + 5] = values
        out[0, row, column, 5 * b + label] = 1.0
    return out


def test_the_papers_network_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        model = YOLO(YOLOv1Backbone(), YOLOLoss(), num_classes=20, image_size=448)
    assert sum(p.numel() for p in model.parameters()) == 271_703_550
    assert model.map_size == (7, 7)
    assert model.hidden.in_features == 7 * 7 * 1024
    assert model.hidden.out_features == 4096
    assert model.out.out_features == 7 * 7 * 30
    assert model.dropout.p == 0.5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 24
    assert all(c.bias is not None for c in convs)
    leaks = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    assert leaks == {0.1}


def test_the_yaml_gives_the_papers_network_with_its_backbone(build_model: Any) -> None:
    with torch.device("meta"):
        model = build_model(
            "task=detection", "model=yolo", "backbone=yolov1", "data.image_size=448", num_classes=20
        )
    assert sum(p.numel() for p in model.parameters()) == 271_703_550
    assert model.dropout.p == 0.5


def test_outputs_become_boxes_by_hand(make: Callable[..., YOLO]) -> None:
    """Row 2, column 4 of 7 on 140 x 70 pixels (w x h): cells of 20 x 10 pixels."""
    model = make(image_size=(70, 140))
    raw = encode(7, 2, 3, [(2, 4, 1, [0.5, 0.25, 0.2, 0.4, 0.8], 2)])
    (found,) = model.decode(raw)
    assert found.boxes is not None
    # Center (4.5 * 20, 2.25 * 10) = (90, 22.5); 28 wide, 28 high.
    torch.testing.assert_close(found.boxes, torch.tensor([[76.0, 8.5, 104.0, 36.5]]))
    torch.testing.assert_close(found.scores, torch.tensor([0.8]))
    assert found.labels.tolist() == [2]


def test_the_loss_and_the_boxes_agree(make: Callable[..., YOLO]) -> None:
    """Outputs of no loss decode to the boxes they were made from."""
    model = make(image_size=(96, 160))
    target = Target(
        boxes=torch.tensor([[10.0, 5.0, 70.0, 45.0], [90.0, 60.0, 150.0, 90.0]]),
        labels=torch.tensor([1, 0]),
    )
    raw = torch.zeros(1, 7, 7, 13, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(300):
        loss = total_loss(model.compute_loss(raw, [target]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3
    (found,) = model.decode(raw.detach())
    assert found.boxes is not None
    assert found.labels is not None
    order = [found.labels.tolist().index(k) for k in (1, 0)]
    torch.testing.assert_close(found.boxes[order], target.boxes, atol=0.5, rtol=0)


def test_boxes_are_clipped_and_those_outside_dropped(make: Callable[..., YOLO]) -> None:
    raw = encode(
        7,
        2,
        3,
        [
            (0, 0, 0, [0.0, 0.0, 1.0, 1.0, 0.9], 0),  # centered on the corner
            (6, 6, 1, [9.0, 9.0, 0.1, 0.1, 0.8], 1),  # far outside
        ],
    )
    (found,) = make(image_size=70).decode(raw)
    assert found.boxes.tolist() == [[0, 0, 35, 35]]


def test_nms_is_class_wise(make: Callable[..., YOLO]) -> None:
    raw = encode(7, 2, 3, [(3, 3, 0, [0.5, 0.5, 0.5, 0.5, 0.9], 0)])
    raw[0, 3, 3, 5:10] = raw[0, 3, 3, 0:5]
    raw[0, 3, 3, 9] = 0.6  # the same box, less sure of itself
    raw[0, 3, 3, 11] = 0.5  # of class 1, too
    (found,) = make().decode(raw)
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.45]))
    (all_of_them,) = make(nms_iou=1.0).decode(raw)
    assert len(all_of_them.boxes) == 4


def test_the_tail_is_kept_and_the_best_come_first(make: Callable[..., YOLO]) -> None:
    raw = torch.rand(2, 7, 7, 13, generator=torch.Generator().manual_seed(0)) * 0.01
    found = make(nms_iou=1.0, max_detections=30).decode(raw)
    assert [len(p.boxes) for p in found] == [30, 30]
    everything = make(nms_iou=1.0, max_detections=10_000).decode(raw)
    for few, many in zip(found, everything, strict=True):
        assert many.scores.min() < 1e-6  # no threshold
        torch.testing.assert_close(few.scores, many.scores[:30])
    cut = make(nms_iou=1.0, max_detections=10_000, min_score=5e-5).decode(raw)
    assert all((p.scores > 5e-5).all() and len(p.scores) for p in cut)


def test_scores_stay_in_0_to_1_and_products_of_negatives_do_not_count(
    make: Callable[..., YOLO],
) -> None:
    raw = encode(7, 1, 2, [(0, 0, 0, [0.5, 0.5, 0.1, 0.1, 1.4], 0)])
    raw[0, 5, 5] = torch.tensor([0.5, 0.5, 0.3, 0.3, -0.5, -0.5, -0.5])
    (found,) = make(2, boxes_per_cell=1).decode(raw)
    assert found.scores.tolist() == [1.0]


def test_outputs_that_are_not_finite_give_no_prediction(make: Callable[..., YOLO]) -> None:
    raw = torch.full((1, 7, 7, 13), float("nan"))
    (found,) = make().decode(raw)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


@pytest.mark.parametrize("size", [32, 64, 100, (96, 160), [60, 33]])
@pytest.mark.parametrize("grid", [1, 4, 7])
def test_any_image_size_and_grid(size: Any, grid: int, make: Callable[..., YOLO]) -> None:
    model = make(image_size=size, grid=grid, boxes_per_cell=3)
    height, width = (size, size) if isinstance(size, int) else size
    out = model(torch.zeros(2, 3, height, width, dtype=torch.uint8))
    assert out.shape == (2, grid, grid, 18)
    assert max(model.map_size) < 2 * grid or max(model.map_size) == 1


def test_another_size_of_image_is_one_clear_line(make: Callable[..., YOLO]) -> None:
    with pytest.raises(ValueError, match=r"images are 32 x 48 pixels; .* for 64 x 64"):
        make()(torch.zeros(1, 3, 48, 32, dtype=torch.uint8))


def test_bad_keys_are_refused(make: Callable[..., YOLO]) -> None:
    with pytest.raises(ValueError, match="grid=0"):
        make(grid=0)
    with pytest.raises(ValueError, match="fc_lr_scale=0"):
        make(fc_lr_scale=0.0)


@pytest.mark.parametrize(("cells", "pixels"), [(7, 7), (7, 8), (7, 13), (7, 4), (1, 1), (3, 5)])
def test_cells_cover_the_map_evenly(cells: int, pixels: int) -> None:
    shares = _overlaps(cells, pixels)
    torch.testing.assert_close(shares.sum(1), torch.ones(cells))
    torch.testing.assert_close(shares.sum(0) / cells * pixels, torch.ones(pixels))
    if cells == pixels:
        assert torch.equal(shares, torch.eye(cells))


def test_all_cells_start_alike_and_look_at_their_own_place(make: Callable[..., YOLO]) -> None:
    model = make(image_size=28, dropout=0.0).eval()  # stride 4: a map of 7 x 7
    features = torch.zeros(2, 8, 7, 7)
    features[0, :, 1, 5] = features[1, :, 6, 0] = torch.arange(8.0)
    with torch.no_grad():
        hidden = nn.functional.leaky_relu(model.hidden(features.flatten(1)), 0.1)
        out = model.out(hidden).view(2, 7, 7, 13)
    assert not torch.equal(out[0, 1, 5], out[0, 0, 0])
    torch.testing.assert_close(out[0, 1, 5], out[1, 6, 0])
    out[0, 1, 5] = out[1, 6, 0] = out[0, 0, 0]
    assert (out == out[0, 0, 0]).all()  # nobody else saw it


def test_sgd_is_doubted_where_the_connected_layers_are_slowed(make: Callable[..., YOLO]) -> None:
    message = make(fc_lr_scale=0.04).optimizer_warning("SGD")
    assert message.startswith("model.fc_lr_scale=0.04 is for optimizers like Adam: with optimizer")
    assert "learn at 0.0016 of the others' rate; say model.fc_lr_scale=1" in message
    assert make(fc_lr_scale=0.04).optimizer_warning("adamw") == ""
    assert make(fc_lr_scale=1.0).optimizer_warning("sgd") == ""


def test_connected_scale_changes_the_speed_and_not_the_function(make: Callable[..., YOLO]) -> None:
    slow, plain = make(fc_lr_scale=0.1).eval(), make().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(slow(images), plain(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slow.hidden.weight, plain.hidden.weight * 10)


def test_every_cell_can_learn_from_the_whole_map(make: Callable[..., YOLO]) -> None:
    model = make(dropout=0.0).train()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    model(images).square().sum().backward()
    for layer in (model.hidden, model.out):
        assert layer.weight.grad is not None
        assert layer.weight.grad.ne(0).float().mean() > 0.99


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    """The shipped configuration on real images, from scratch."""
    assert learn_photographs(real_data / "raccoon", "model=yolo") >= 0.95
