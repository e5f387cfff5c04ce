"""What a right command hands to the engine."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from cvtrain.augment.config import title
from cvtrain.config import readable_keys, rules
from cvtrain.config.compose import hydra_compose, hydra_session, plain
from cvtrain.config.groups import GROUPS, ConfDirs, is_timm, package_conf, pick, timm_has

Cli = Callable[..., Any]


def interpolations(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [s for v in node.values() for s in interpolations(v)]
    if isinstance(node, list):
        return [s for v in node for s in interpolations(v)]
    return [node] if isinstance(node, str) and ("${" in node or node == "???") else []


def test_the_main_command(cli: Cli, here: Path) -> None:
    done = cli("task=detection model=yolo")
    assert (done.code, done.verb, done.err) == (0, "train", "")
    config = done.config
    assert config["command"] == "train"
    assert config["task"]["name"] == "detection"
    assert config["model"]["name"] == "yolo"
    assert config["model"]["loss"]["name"] == config["loss"]["name"] == "yolo"
    assert config["model"]["backbone"] == config["backbone"]
    assert config["augment"]["name"] == "yolo"
    assert config["data"]["name"] == "shapes"
    assert config["trust"] == []
    assert config["overrides"] == ["task=detection", "model=yolo"]
    assert Path(config["run_dir"]).parent == here / "runs/detection/yolo"
    assert not interpolations(config)
    assert type(config["model"]) is dict
    assert list(here.iterdir()) == [], "nothing is written before the engine has checked all"


def test_defaults_without_any_choice(cli: Cli) -> None:
    config = cli("seed=1").config
    assert (config["task"]["name"], config["model"]["name"]) == ("classification", "classifier")
    assert config["seed"] == 1


def test_an_explicit_choice_wins_in_any_order(cli: Cli) -> None:
    words = ["task=detection", "model=yolo", "backbone=resnet18 augment=light", "train"]
    configs = []
    for order in list(permutations(words))[::3]:
        config = cli(" ".join([*order, "run_dir=a"])).config
        configs.append({k: v for k, v in config.items() if k != "overrides"})
    assert all(c == configs[0] for c in configs)
    assert configs[0]["backbone"]["name"] == "resnet18"
    assert configs[0]["augment"]["name"] == "light"


@pytest.mark.parametrize("model", ConfDirs().options("model"))
def test_a_model_alone_brings_its_task(cli: Cli, model: str) -> None:
    config = cli(f"model={model}").config
    assert config["task"]["name"] == ConfDirs().tasks_of(model)[0]


def test_every_option_composes_with_its_keys_below_its_group() -> None:
    conf = ConfDirs()
    rows = list(zip_longest(*([(g, o) for o in conf.options(g)] for g in GROUPS)))
    with hydra_session(conf):
        for row in rows:  # one option of each group at a time
            chosen = {choice[0]: choice[1] for choice in row if choice is not None}
            flat = plain(hydra_compose([f"{g}={o}" for g, o in chosen.items()]))
            study = {"study"} if chosen.get("experiment") == "transfer_study" else set()
            assert set(flat) <= {*GROUPS, *readable_keys.root_keys(), "command"} | study, chosen
            for group, option in chosen.items():
                node = flat.get(group)
                if group not in ("experiment", "debug"):
                    assert isinstance(node, dict), f"{group}/{option}"
                    assert group not in node, f"{group}/{option} composes to {group}.{group}"
                if group == "augment":
                    assert title(node).split("+")[0] == option  # unet: unet+elastic
                if group in ("task", "model", "loss", "data", "optimizer", "scheduler"):
                    assert node["name"] == option or option in ("timm", "torch")


def test_every_group_choice_resolves(cli: Cli, here: Path) -> None:
    conf = ConfDirs()
    for data in conf.options("data"):
        node = conf.node("data", data)
        root = ["data.root=."] if "root" in node else []
        done = cli(f"data={data}", *root)
        assert done.code == 0, done.err
        assert not interpolations(done.config)
        if root:
            assert done.config["data"]["root"] == done.config["data"]["reader"]["root"] == str(here)


def test_settings_of_demo_size_stay_with_shapes(cli: Cli) -> None:
    demo, other = cli("model=yolo").config, cli("model=yolo data=coco data.root=.").config
    assert demo["data"]["image_size"] == 128
    assert other["data"]["image_size"] == 448
    assert other["trainer"]["max_epochs"] > demo["trainer"]["max_epochs"]


def test_experiments_are_the_papers(cli: Cli, here: Path) -> None:
    done = cli("experiment=yolo_pretrain data.root=.")
    assert done.code == 0, done.err
    config = done.config
    assert (config["task"]["name"], config["backbone"]["name"]) == ("classification", "yolov1_20")
    assert config["data"]["image_size"] == 224
    weights = Path(config["run_dir"]) / "checkpoints" / "best.ckpt"
    assert "backbone.weights=" in cli("experiment=yolo_voc data.root=.").line
    weights.parent.mkdir(parents=True)
    weights.touch()
    config = cli("experiment=yolo_voc data.root=.").config
    assert config["backbone"]["weights"] == str(weights)
    assert (config["model"]["name"], config["backbone"]["name"]) == ("yolo", "yolov1")
    assert (config["data"]["image_size"], config["data"]["batch_size"]) == (448, 64)
    assert config["trainer"]["max_epochs"] == 135
    assert config["callbacks"]["ema"] is None
    own = cli("optimizer.lr=0.5 experiment=yolo_voc data.root=. optimizer=adamw").config
    assert (own["optimizer"]["name"], own["optimizer"]["lr"]) == ("adamw", 0.5)


def test_a_timm_name_is_a_backbone(cli: Cli) -> None:
    assert "resnet26d" not in ConfDirs().options("backbone")
    config = cli("model=yolo backbone=resnet26d").config
    assert config["backbone"]["name"] == config["model"]["backbone"]["name"] == "resnet26d"
    tagged = cli("backbone=resnet50.a1_in1k backbone.pretrained=true").config["backbone"]
    assert (tagged["name"], tagged["pretrained"]) == ("resnet50.a1_in1k", True)
    named = cli("backbone=timm backbone.name=regnety_016").config["backbone"]
    assert named["name"] == "regnety_016"


def test_the_shipped_list_is_timms_own() -> None:
    import timm

    ours = {line for line in timm.list_models() if not is_timm(line)}
    assert not ours
    assert timm_has("resnet18.a1_in1k")
    assert not timm_has("resnet19")


def test_a_name_newer_than_the_list_is_looked_up_in_the_installed_timm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cvtrain.config import groups as conf

    monkeypatch.setattr(conf, "timm_names", dict)
    assert not timm_has("resnet18"), "the list is of the installed version: it has the last word"
    monkeypatch.setattr(conf.importlib.metadata, "version", lambda name: "99.0")
    assert timm_has("resnet18")
    assert timm_has("resnet18.a1_in1k")
    assert not timm_has("resnet19")


def test_void_defaults_are_null(cli: Cli, here: Path) -> None:
    own_model(here, "lone", "")
    (here / "mynets.py").touch()
    config = cli("--config-dir=conf model=lone trust=[mynets]").config
    assert config["loss"] is None
    assert config["backbone"] is None
    assert config["optimizer"] is not None


def test_a_key_of_another_task_is_null(cli: Cli) -> None:
    assert cli("task=detection").config["data"]["object"] is None
    assert cli("task=localization").config["data"]["object"] == "largest"
    assert cli("task=localization data.object=only").config["data"]["object"] == "only"
    assert cli("show task=localization data.object=only").config["data"]["object"] == "only"


@pytest.mark.parametrize(("typed", "read"), [("null", None), (" ", " "), ("|", "|")])
def test_a_separator_of_labels(cli: Cli, tmp_path: Path, typed: str, read: str | None) -> None:
    config = cli("data=csv", f"data.root={tmp_path}", f"data.reader.label_separator={typed}")
    assert config.config["data"]["reader"]["label_separator"] == read


def own_model(folder: Path, name: str, body: str, *, base: str = "") -> None:
    path = folder / "conf" / "model" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"# @package _global_\n# A model of my own\n{base}\nmodel:\n  name: {name}\n"
        + ("" if base else "  tasks: [classification]\n  _target_: mynets.Net\n")
        + body
    )


def test_a_users_own_folder_comes_first_and_is_listed(cli: Cli, here: Path) -> None:
    own_model(here, "mynet", "  width: 8\n")
    own_model(here, "yolo", "  grid: 3\n", base="defaults: []\n")
    (here / "mynets.py").touch()
    done = cli("--config-dir", "conf", "model=mynet", "model.width=16", "trust=[mynets]")
    assert done.code == 0, done.err
    assert done.config["model"]["width"] == 16
    assert done.config["trust"] == ["mynets"]
    assert "mynet" in cli("list models --config-dir=conf").out
    assert cli(f"hydra.searchpath=[file://{here}/conf] model=mynet trust=[mynets]").code == 0
    assert "--config-dir" in cli("hydra.searchpath=[pkg://mine] model=mynet").line
    assert "mynet" in cli("--config-dir=conf model=mynett").line
    assert "mynet" not in cli("list models").out
    assert pick(cli("model=yolo").config, "model.grid") == 7


def test_a_model_that_extends_another_has_its_task(cli: Cli, here: Path) -> None:
    own_model(here, "bigyolo", "  grid: 9\n", base="defaults:\n  - yolo\n  - _self_\n")
    done = cli("--config-dir=conf model=bigyolo")
    assert done.code == 0, done.err
    assert done.config["task"]["name"] == "detection"
    assert done.config["model"]["grid"] == 9


def test_paths_become_absolute(cli: Cli, here: Path) -> None:
    (here / "my photos (1)").mkdir()
    (here / "w=1,2.pt").touch()
    done = cli(
        "data=folder",
        "data.root=my photos (1)",
        "backbone.weights=w=1,2.pt",
        "run_dir=../x/run [a]",
    )
    assert done.code == 0, done.err
    config = done.config
    assert config["data"]["root"] == str(here / "my photos (1)")
    assert config["backbone"]["weights"] == str(here / "w=1,2.pt")
    assert config["model"]["backbone"]["weights"] == str(here / "w=1,2.pt")
    assert config["run_dir"] == str(here.parent / "x" / "run [a]")
    quoted = cli("data=folder", "data.root='my photos (1)'")
    assert quoted.config["data"]["root"] == str(here / "my photos (1)")


def test_home_and_environment_in_paths(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("PHOTOS", str(here))
    assert cli("data=folder", "data.root=~").config["data"]["root"] == str(here)
    done = cli("data=folder", "data.root=${oc.env:PHOTOS}")
    assert done.config["data"]["root"] == str(here)


def test_hydras_grammar_is_there(cli: Cli) -> None:
    config = cli(
        "logger=[csv,tensorboard]",
        "callbacks.ema=null",
        "+optimizer.amsgrad=true",
        "~callbacks.pictures",
        "augment=light",
        "augment.transforms.0.scale=[0.5,2]",
        "data.image_size=[64,96]",
        "debug=fast",
        "experiment=null",
    ).config
    assert set(config["logger"]) == {"csv", "tensorboard"}
    assert config["callbacks"]["ema"] is None
    assert "pictures" not in config["callbacks"]
    assert config["optimizer"]["amsgrad"] is True
    assert config["augment"]["transforms"][0]["scale"] == [0.5, 2]
    assert config["data"]["image_size"] == [64, 96]
    assert config["trainer"]["limit_train_batches"] == 2


def test_a_group_can_be_left_out(cli: Cli) -> None:
    assert cli("logger=null").config["logger"] is None
    assert cli("~logger").config["logger"] is None
    assert cli("scheduler=null").config["scheduler"] is None


def test_every_rule_is_for_a_key_that_exists() -> None:
    conf = ConfDirs()
    nodes = [
        {group: conf.node(group, option)} for group in GROUPS for option in conf.options(group)
    ]
    nodes.append(yaml.safe_load((package_conf() / "config.yaml").read_text()))
    study = package_conf() / "experiment" / "transfer_study.yaml"
    nodes.append(yaml.safe_load(study.read_text()))
    for key in rules.RULES:
        assert any(_has(node, key) for node in nodes), key


def _has(node: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_shipped_values_pass_the_rules() -> None:
    conf = ConfDirs()
    for group in GROUPS:
        for option in conf.options(group):
            node = {group: conf.node(group, option)}
            for key in rules.RULES:
                value = pick(node, key)
                if _has(node, key) and not (isinstance(value, str) and "${" in value):
                    assert rules.wrong(key, value) is None


def test_check_and_show(cli: Cli, here: Path) -> None:
    done = cli("check data=coco data.root=. data.on_bad=drop")
    assert (done.verb, done.code) == ("check", 0)
    assert done.config["data"]["root"] == str(here)
    assert done.config["run_dir"] is None
    assert done.config["overrides"] == ["data=coco", "data.root=.", "data.on_bad=drop"]
    done = cli("check task=instance_segmentation")
    assert done.config["task"]["name"] == "instance_segmentation"
    assert cli("show task=localization augment=light").config["augment"]["name"] == "light"


def test_show_finds_the_task_that_the_data_serves(cli: Cli, here: Path) -> None:
    (here / "voc" / "JPEGImages").mkdir(parents=True)
    (here / "voc" / "Annotations").mkdir()
    (here / "voc" / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    done = cli("show data=voc data.root=voc")
    assert done.code == 0, done.err
    assert done.config["task"]["name"] == "detection"
    assert done.config["augment"]["name"] == "yolo"
    assert cli("show data=shapes").config["task"]["name"] == "classification"


def test_cfg_job(cli: Cli) -> None:
    done = cli("task=detection backbone=resnet18 --cfg job")
    assert (done.code, done.verb) == (0, None)
    shown = yaml.safe_load(done.out)
    assert shown["backbone"]["name"] == "resnet18"
    assert shown["model"]["backbone"] == "${backbone}"
    resolved = yaml.safe_load(cli("--cfg job --resolve task=detection").out)
    assert resolved["model"]["backbone"]["name"] == "darknet_tiny"
    assert cli("data=coco --cfg job").code == 0, "what is missing is shown as ???"
    assert cli("--cfg hydra").code == 2


def test_a_hidden_yaml_is_extended_not_chosen(cli: Cli, here: Path) -> None:
    assert "_base" not in ConfDirs().options("data")
    assert "_base" not in cli("list data").out
    done = cli("data=_base")
    assert done.code == 2
    assert "data=_base: there is no such data" in done.line
    (here / "my/data").mkdir(parents=True)
    reader = "{_target_: own_readers.Reader}"
    text = f"defaults: [_base, _self_]\nname: mine\nreader: {reader}\nbatch_size: 3"
    (here / "my/data/mine.yaml").write_text(text)
    (here / "my/data/_hidden.yaml").write_text("name: hidden")
    conf = ConfDirs([here / "my"])
    assert "mine" in conf.options("data")
    assert "_hidden" not in conf.options("data")
    node = conf.node("data", "mine")
    assert (node["name"], node["batch_size"], node["val_fraction"]) == ("mine", 3, 0.2)
    (here / "own_readers.py").touch()
    data = cli("--config-dir=my data=mine data.on_bad=fix trust=[own_readers]").config["data"]
    assert (data["name"], data["batch_size"], data["on_bad"]) == ("mine", 3, "fix")


def test_every_data_set_has_the_shared_keys() -> None:
    conf = ConfDirs()
    shared = conf.node("data", "_base").keys()
    assert {"batch_size", "image_size", "on_bad", "val_fraction"} <= shared
    for option in conf.options("data"):
        assert shared <= conf.node("data", option).keys()


def test_several_labels_bring_their_loss_and_augmentation(cli: Cli) -> None:
    config = cli("task=multilabel_classification").config
    assert (config["model"]["name"], config["loss"]["name"]) == ("classifier", "bce")
    assert config["augment"]["name"] == "light"
    typed = cli("augment=none model=classifier task=multilabel_classification").config
    assert (typed["loss"]["name"], typed["augment"]["name"]) == ("bce", "none")
