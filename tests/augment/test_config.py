"""The augment node: families, strengths, what is refused."""

from __future__ import annotations

import pytest

from cvtrain.augment.config import (
    closing_epoch,
    families,
    is_close_epoch,
    refuse_task,
    scaled,
    settled,
    title,
    transforms_of,
)
from cvtrain.errors import UsageError

WEATHER = {"strength": 0.5, "transforms": []}


def test_families_run_in_one_order_however_they_were_typed():
    node = {"mine": WEATHER, "weather": WEATHER, "geometric": WEATHER, "mosaic": 0.0}
    assert families(node) == ["geometric", "weather", "mine"]
    assert title(node) == "geometric+weather+mine"


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({}, "none"),
        ({"name": "none", "transforms": []}, "none"),
        ({"name": "light", "transforms": [1]}, "light"),
        ({"name": "light", "transforms": [1], "weather": WEATHER}, "light+weather"),
        ({"name": "none", "weather": WEATHER}, "weather"),
        ({"name": "light+weather", "transforms": [1]}, "light+weather"),
        ({"transforms": [1]}, "transforms"),
    ],
)
def test_a_composition_says_all_its_names(node, expected):
    assert title(node) == expected
    assert settled({**node, "name": expected})["name"] == expected  # as it is stored


@pytest.mark.parametrize(("strength", "rotate", "holes"), [(0, 0, 1), (0.5, 15, 2), (1, 30, 4)])
def test_a_number_between_its_ends(strength, rotate, holes):
    tree = [{"rotate": {"weak": 0.0, "strong": 30.0}, "holes": [1, {"weak": 1, "strong": 4}]}]
    out = scaled(tree, strength, "augment.x")
    assert out == [{"rotate": rotate, "holes": [1, holes]}]
    assert isinstance(out[0]["rotate"], float)
    assert isinstance(out[0]["holes"][1], int)


@pytest.mark.parametrize(
    "ends", [{"weak": 0}, {"weak": 0, "strong": "a"}, {"weak": 0, "strong": 1, "p": 1}]
)
def test_half_a_range_is_refused_with_its_place(ends):
    with pytest.raises(UsageError, match=r"augment.x.0.p=.*weak: 0, strong: 1"):
        scaled([{"p": ends}], 0.5, "augment.x")


def test_an_entry_with_a_target_is_a_family_of_one():
    node = {"_target_": "cvtrain.augment.RandAugment", "magnitude": 3}
    assert transforms_of("randaugment", node) == [node]
    assert settled({"randaugment": node})["name"] == "randaugment"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"weather": {"strength": 2, "transforms": []}}, "augment.weather.strength=2"),
        ({"weather": {"strength": 0.2}}, "augment.weather.transforms"),
        ({"weather": {"strenght": 0.2, "transforms": []}}, "augment.weather.strenght is not known"),
        ({"mixup": 1.5}, "augment.mixup=1.5"),
        ({"mixup": 0.8, "cutmix": 0.5}, "together at most 1"),
        ({"mixup": 0.8, "mixup_alpha": 0}, "augment.mixup_alpha=0"),
        ({"close_epoch": 1.5}, "augment.close_epoch=1.5"),
        ({"mosiac": 0.5}, "augment.mosiac is not known"),
        ({"transforms": "Affine"}, "give a list"),
    ],
)
def test_wrong_nodes(node, message):
    with pytest.raises(UsageError, match=message):
        settled(node)


def test_void_alphas_are_null():
    assert settled({"mixup_alpha": None, "cutmix_alpha": None})["mixup_alpha"] is None


@pytest.mark.parametrize(
    ("value", "epochs", "expected"), [(None, 10, None), (3, 10, 3), (0.9, 10, 9), (0.5, 3, 2)]
)
def test_where_mixing_ends(value, epochs, expected):
    assert is_close_epoch(value)
    assert closing_epoch(value, epochs) == expected


def test_a_part_of_an_unknown_run_is_refused():
    assert not any(is_close_epoch(v) for v in (True, -1, 1.0, 0.0, "half"))
    with pytest.raises(UsageError, match="a number of epochs"):
        closing_epoch(0.5, None)


@pytest.mark.parametrize(
    ("key", "task", "message"),
    [
        ("mixup", "semantic_segmentation", "for semantic_segmentation there is augment.mosaic"),
        ("cutmix", "detection", "for detection there is augment.mixup and augment.mosaic"),
        ("cutmix", "semantic_segmentation", "classification"),
        ("mosaic", "classification", "augment.mixup and augment.cutmix"),
        ("mosaic", "localization", "set it 0"),
        ("copy_paste", "detection", "instance_segmentation"),
    ],
)
def test_a_task_that_cannot_be_mixed_so(key, task, message):
    refuse_task({key: 0.0}, task)
    with pytest.raises(UsageError, match=message):
        refuse_task({key: 0.5}, task)
