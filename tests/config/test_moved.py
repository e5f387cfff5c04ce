"""Names of older versions: typed ones are refused, stored ones are brought up to date."""

from __future__ import annotations

import copy

import pytest

from cvtrain.config.moved import MOVED_TARGETS, RENAMED_KEYS, up_to_date
from cvtrain.instantiate import allowed


def test_a_stored_configuration_gets_todays_names() -> None:
    stored = {
        "model": {
            "_target_": "cvtrain.models.detection.fcos.FCOS",
            "centre_radius": 1.5,
            "rpn": {"positive_share": 0.5},
            "loss": {"_target_": "cvtrain.losses.boxes.IoULoss"},
        },
        "proposals": {"colours": None},
        "data": {"colours": 1, "reader": [{"_target_": "cvtrain.losses.boxes.SmoothL1"}]},
    }
    before = copy.deepcopy(stored)
    assert up_to_date(stored) == {
        "model": {
            "_target_": "cvtrain.models.detection.fcos.FCOS",
            "center_radius": 1.5,
            "rpn": {"positive_fraction": 0.5},
            "loss": {"_target_": "cvtrain.losses.box_regression.IoULoss"},
        },
        "proposals": {"colors": None},
        "data": {
            "colours": 1,
            "reader": [{"_target_": "cvtrain.losses.box_regression.SmoothL1"}],
        },
    }
    assert stored == before
    assert up_to_date(up_to_date(stored)) == up_to_date(stored)


def test_every_new_module_is_one_that_may_be_built() -> None:
    built = {target.rpartition(".")[0] for target in (*allowed("model"), *allowed("loss"))}
    assert set(MOVED_TARGETS.values()) <= built
    assert not set(MOVED_TARGETS) & built


@pytest.mark.parametrize(
    ("words", "new"),
    [
        ("model=fcos model.centre_radius=2", "model.center_radius=2"),
        ("model=yolo model.connected_scale=1", "model.fc_lr_scale=1"),
        ("model=faster_rcnn model.rpn.positive_share=0.4", "model.rpn.positive_fraction=0.4"),
        ("model=rfcn model.foreground_share=0.2", "model.positive_fraction=0.2"),
        ("model=fast_rcnn proposals.colours=[RGB]", "proposals.colors=[RGB]"),
    ],
)
def test_an_old_key_is_refused_with_the_new_one(cli, words, new) -> None:
    assert cli(words).line.endswith(f"has another name now; write {new}")
    assert cli(words.split()[0], new).code == 0


def test_old_keys_are_gone(cli) -> None:
    for model in ("fcos", "yolox", "yolo", "faster_rcnn", "rfcn", "mask_rcnn", "deconvnet"):
        text = repr(cli(f"model={model} --cfg job").out)
        assert [key for key in RENAMED_KEYS if key.rpartition(".")[2] in text] == []
