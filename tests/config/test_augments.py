"""``augment=[geometric,weather]``: lists of families on the command line."""

from __future__ import annotations

import pytest
import yaml

from cvtrain.cli.completion import candidates
from cvtrain.config.groups import ConfDirs
from cvtrain.config.overrides import parse
from cvtrain.sweep.runner import _combinations


def test_families_compose_and_keep_their_keys(cli):
    words = "augment=[weather,geometric] augment.weather.strength=0.3"
    node = cli(words).config["augment"]
    assert node["name"] == "geometric+weather"
    assert node["weather"]["strength"] == 0.3
    assert node["geometric"]["strength"] == 0.5
    assert "transforms" not in node


def test_a_family_beside_a_list(cli):
    node = cli("task=detection augment=[detection,weather]").config["augment"]
    assert node["name"] == "detection+weather"
    assert node["min_visibility"] == 0.2
    assert len(node["transforms"]) == 2


def test_a_number_may_stand_for_its_two_ends(cli):
    key = "augment.geometric.transforms.0.rotate"
    node = cli(f"augment=geometric {key}=5").config["augment"]
    assert node["geometric"]["transforms"][0]["rotate"] == 5
    node = cli("augment=geometric", f"{key}={{weak:1,strong:2}}").config["augment"]
    assert node["geometric"]["transforms"][0]["rotate"] == {"weak": 1, "strong": 2}
    assert "it takes a number" in cli(f"augment=geometric {key}=abc").line


def test_no_augmentation_and_an_own_one(cli, here):
    assert cli("augment=null").config["augment"]["name"] == "none"
    (here / "own" / "augment").mkdir(parents=True)
    family = {"mine": {"strength": 0.5, "transforms": [{"_target_": "cvtrain.augment.Fog"}]}}
    (here / "own" / "augment" / "mine.yaml").write_text(yaml.safe_dump(family))
    done = cli("--config-dir own augment=[mine,geometric] augment.mine.strength=0.1")
    assert done.config["augment"]["name"] == "geometric+mine"
    assert "from 0 to 1" in cli("--config-dir own augment=mine augment.mine.strength=2.0").line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("augment=[geometric,wether]", "did you mean augment=weather?"),
        ("augment=[weather,weather]", "weather is named twice"),
        ("augment=[]", "augment=none is no augmentation"),
        ("augment=[light,detection]", "light and detection both set augment.transforms"),
        ("augment=geometric,weather", "together they are augment=[geometric,weather]"),
        ("augment=weather augment.weather.strength=2", "a number from 0 to 1"),
        ("augment=weather augment.weather.strenght=1", "augment.weather.strength=1"),
        ("augment=light augment.weather.strength=1", "a key of augment=weather"),
        ("augment.mixup=2", "a number from 0 to 1"),
        ("augment.mixup=0.8 augment.cutmix=0.5", "together at most 1"),
        ("augment.mixup_alpha=1", "would not be read: augment.mixup is 0"),
        ("augment.close_epoch=3", "would not be read: augment.mixup, cutmix, mosaic"),
        ("augment.mixup=1 augment.close_epoch=1.5", "a part of the run below 1"),
        (
            "augment.mixup=0.5 augment.close_epoch=1000 trainer.max_epochs=2",
            "augment.close_epoch=1000 is not reached: trainer.max_epochs=2; give a number below it",
        ),
        ("augment.mixup=0.5 augment.close_epoch=2 trainer.max_epochs=2", "is not reached"),
        (
            "augment.mixup=0.5 augment.close_epoch=0",
            "augment.mixup=0.5 would not be read: augment.close_epoch=0 of 30 epochs ends it",
        ),
        ("augment.mixup=0.5 augment.close_epoch=0.2 trainer.max_epochs=2", "before the first"),
        (
            "augment=randaugment augment.randaugment.strength=0.5",
            "did you mean augment.randaugment.magnitude (9 here)?",
        ),
        ("augment.mosaic=0.5", "for classification there is augment.mixup"),
        ("task=detection augment.cutmix=0.5", "it serves task=classification"),
    ],
)
def test_wrong_commands(cli, words, said):
    done = cli(words)
    assert done.code == 2
    assert said in done.line
    assert done.verb is None


def test_void_alphas_are_null_and_read_ones_stay(cli):
    node = cli("augment.mixup=0.5 augment.close_epoch=0.9").config["augment"]
    assert node["mixup_alpha"] == 0.2
    assert node["cutmix_alpha"] is None
    assert node["close_epoch"] == 0.9


def test_sweeps_over_lists(cli, here):
    from cvtrain.config.compose import hydra_session

    with hydra_session(ConfDirs()):
        typed = parse(["augment=[geometric,weather],light", "seed=1,2"], multirun=True)
        jobs = _combinations(typed)
    assert [job[0] for job in jobs] == ["augment=[geometric,weather]"] * 2 + ["augment=light"] * 2
    done = cli("-m", "augment=[geometric,wether],light", "sweep_dir=s")
    assert "did you mean augment=weather" in done.line


def test_completion_goes_on_in_a_list():
    conf = ConfDirs()
    assert candidates("cvtrain augment=[wea", conf) == ["augment=[weather"]
    second = candidates("cvtrain augment=[weather,", conf)
    assert "augment=[weather,geometric" in second
    assert "augment=[weather,weather" not in second
    assert candidates("cvtrain augment=[weather,geo", conf) == ["augment=[weather,geometric"]
    keys = candidates("cvtrain augment=weather augment.weather.", conf)
    assert "augment.weather.strength=" in keys


def test_a_yamls_late_close_epoch_does_not_stop_a_short_run(cli, here):
    (here / "own" / "augment").mkdir(parents=True)
    (here / "own" / "augment" / "late.yaml").write_text("mixup: 0.5\nclose_epoch: 10\n")
    done = cli("--config-dir own augment=late trainer.max_epochs=2")
    assert done.config["augment"]["close_epoch"] == 10
    assert cli("augment.mixup=0.5 augment.close_epoch=1 trainer.max_epochs=2").code == 0
    assert cli("model=yolox augment.close_epoch=0").code == 0  # no mixing, and the L1 loss


@pytest.mark.parametrize("key", ["randaugment.target", "trivialaugment.strength"])
def test_no_target_is_suggested(cli, key):
    assert "_target_" not in cli(f"augment={key.partition('.')[0]} augment.{key}=0.5").line
