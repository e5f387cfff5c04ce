"""YOLO9000: the tree's classes and answers in the network, images that have a label alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cvtrain.data.shapes import NAMES, TREE
from cvtrain.data.tree_file import parse_tree, with_classes
from cvtrain.losses.yolov2 import Grid, YOLOv2Loss
from cvtrain.models.backbones.darknet import DarknetTiny
from cvtrain.models.backbones.darknet19 import Darknet19
from cvtrain.models.base import total_loss
from cvtrain.models.detection.yolo9000 import YOLO9000
from cvtrain.structures import Target

SHAPES = with_classes(parse_tree(TREE), NAMES)
ANCHORS = ((0.1, 0.15), (0.3, 0.3), (0.6, 0.4))
Make = Callable[..., YOLO9000]


@pytest.fixture
def make() -> Make:
    """A YOLO9000 of a few channels on the tree of shapes, its last layer away from the start."""

    def build(num_classes: int = 4, **keywords: Any) -> YOLO9000:
        torch.manual_seed(0)
        model = YOLO9000(
            DarknetTiny(widths=(4, 8, 8), blocks=(1, 1, 1), narrow=None),
            YOLOv2Loss(),
            num_classes,
            64,
            **{"anchors": ANCHORS, "channels": 16, "tree": SHAPES, **keywords},
        )
        with torch.no_grad():
            model.out.weight.add_(torch.randn_like(model.out.weight) * 0.5)
        return model.eval()

    return build


def path_probability(numbers: list[float], label: int) -> float:
    """Of a class of shapes: circle is below round, the others below polygon."""

    def softmax(members: list[int], which: int) -> float:
        return math.exp(numbers[which]) / sum(math.exp(numbers[n]) for n in members)

    if label == 0:
        return softmax([0, 1], 0)  # a circle is all that is round
    return softmax([0, 1], 1) * softmax([3, 4, 5], 2 + label)


def test_the_papers_network() -> None:
    parents = [-1] * 18 + [n // 10 for n in range(9400)]
    with torch.device("meta"):
        model = YOLO9000(
            Darknet19(),
            YOLOv2Loss(),
            9418,
            544,
            [[0.1, 0.1]] * 3,
            tree={"parents": [-1] * 9418, "classes": list(range(9418))},
        ).eval()
        assert model(torch.zeros(1, 3, 544, 544)).raw.shape == (1, 17, 17, 3, 5 + 9418)
    assert model.out.out_channels == 28_269
    tree = YOLO9000(
        DarknetTiny(), YOLOv2Loss(), 5, 64, ANCHORS, tree={"parents": parents, "classes": range(5)}
    ).tree
    labels, scores = tree.answer(torch.randn(3, 9418), 0.5)
    assert (labels < 5).all()
    assert ((scores > 0) & (scores <= 1)).all()


def test_the_shipped_anchors_are_those_of_the_released_network(compose_config: Any) -> None:
    anchors = compose_config("task=detection", "model=yolo9000")["model"]["anchors"]
    cells = [[0.77871, 1.14074], [3.00525, 4.31277], [9.22725, 9.61974]]
    torch.testing.assert_close(torch.tensor(anchors) * 17, torch.tensor(cells), atol=1e-3, rtol=0)


def test_classes_of_objects_are_paths(make: Make) -> None:
    model = make()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [40.0, 1.0, 46.0, 9.0]])
    target = Target(boxes=boxes, labels=torch.tensor([3, 0]))
    with torch.no_grad():
        grid = model(images)
        terms = model.compute_loss(grid, [target])
    rows = grid.raw[0, 5, 3, 2, 5:].tolist(), grid.raw[0, 0, 5, 0, 5:].tolist()
    expected = -math.log(path_probability(rows[0], 3)) - math.log(path_probability(rows[1], 0))
    assert float(terms["classes"]) == pytest.approx(expected, rel=1e-4)
    assert terms["num_labeled_images"] == 0


@pytest.mark.parametrize("label", [0, 2])
def test_an_image_with_a_label_trains_its_best_box_alone(make: Make, label: int) -> None:
    model = make()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        grid = model(images)
    raw = grid.raw.clone().requires_grad_()
    terms = model.compute_loss(grid_with(grid, raw), [Target(label=torch.tensor(label))])
    total_loss(terms).backward()
    terms = {name: value.detach() for name, value in terms.items()}
    flat = raw.detach().flatten(0, 3)
    best, most = 0, 0.0
    for place, numbers in enumerate(flat.tolist()):
        sure = path_probability(numbers[5:], label) / (1 + math.exp(-numbers[4]))
        if sure > most:
            best, most = place, sure
    numbers = flat[best].tolist()
    objectness = 1 / (1 + math.exp(-numbers[4]))
    short = max(0.0, 0.3 - objectness)
    assert float(terms["classes"]) == pytest.approx(
        -math.log(path_probability(numbers[5:], label)), rel=1e-4
    )
    assert float(terms["objectness"]) == pytest.approx(5 * short**2, rel=1e-4)
    assert terms["coord"] == terms["no_object"] == terms["prior"] == terms["num_objects"] == 0
    assert terms["num_labeled_images"] == 1
    assert raw.grad is not None
    touched = raw.grad.flatten(0, 3).ne(0)
    assert touched.any(dim=1).nonzero().flatten().tolist() == [best]
    assert not touched[best, :4].any()
    assert bool(touched[best, 4]) == (short > 0)


def grid_with(grid: Grid, raw: torch.Tensor) -> Grid:
    return Grid(raw, grid.anchors, grid.cell, grid.image_size)


def test_what_is_thought_to_be_an_object_is_left_so(make: Make) -> None:
    """An overlap of 0.3 at least: no box is told to be less sure."""
    model = make()
    raw = torch.zeros(1, 8, 8, 3, 11)
    raw[..., 4] = 2.0
    grid = Grid(raw, model.anchors, (8.0, 8.0), (64, 64))
    assert model.compute_loss(grid, [Target(label=torch.tensor(1))])["objectness"] == 0


def test_batches_of_both_kinds_give_every_parameter_a_gradient(make: Make) -> None:
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    full = Target(boxes=boxes, labels=torch.tensor([1]))
    for targets in (
        [full, Target(label=torch.tensor(2)), Target(label=torch.tensor(0))],
        [Target(label=torch.tensor(2))] * 3,
    ):
        model = make().train()
        model.on_batch_start(0, 5)  # resized, as those with boxes are
        total_loss(model.loss(images, targets)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_prediction_is_the_last_class_on_its_way(make: Make) -> None:
    raw = torch.zeros(1, 8, 8, 3, 5 + 6)
    raw[..., 4] = -12.0
    raw[0, 2, 5, 1, 4] = 12.0
    raw[0, 2, 5, 1, 5:] = torch.tensor([0.0, 4.0, 0.0, 0.0, 0.5, 0.0])  # polygon; triangle?
    model = make()
    found = model.decode(Grid(raw, model.anchors, (8.0, 8.0), (64, 64)))[0]
    assert found.labels is not None
    assert found.scores is not None
    assert found.labels.tolist() == [2]
    score = path_probability(raw[0, 2, 5, 1, 5:].tolist(), 2)
    assert float(found.scores[0]) == pytest.approx(score, rel=1e-3)
    # Where the data have polygons as such, an unsure triangle is a polygon.
    both = with_classes(parse_tree(TREE), [*NAMES, "polygon"])
    model = make(5, tree=both)
    found = model.decode(Grid(raw, model.anchors, (8.0, 8.0), (64, 64)))[0]
    assert found.labels is not None
    assert found.labels.tolist() == [4]
    sure = make(5, tree=both, tree_threshold=0.3)
    found = sure.decode(Grid(raw, model.anchors, (8.0, 8.0), (64, 64)))[0]
    assert found.labels is not None
    assert found.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"tree_threshold": 1.5}, "tree_threshold=1.5"),
        ({"tree": "a.txt"}, "a run reads the file"),
        ({"num_classes": 3}, "4 of 3 classes"),
        ({"passthroug": 3}, "passthroug"),
    ],
)
def test_bad_keys_are_refused(make: Make, keywords: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        make(**keywords)


@pytest.mark.slow
def test_16_photographs_can_be_learned_by_heart(real_data: Path, learn_photographs: Any) -> None:
    """The shipped configuration on real images, from scratch."""
    assert learn_photographs(real_data / "raccoon", "model=yolo9000") >= 0.9
