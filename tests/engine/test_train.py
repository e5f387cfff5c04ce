"""What a run leaves behind, and what it says of settings that cannot work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from cvtrain.engine.train import train
from cvtrain.errors import CvtrainError, RunError, UsageError
from cvtrain.models.detection.yolo import YOLO


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_holds_exactly_this(trained) -> None:
    found = {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()}
    assert found == {
        ".cvtrain-run", "check.json", "config.yaml", "environment.json", "ground_truth.json",
        "metrics.csv",
        "overrides.txt", "predictions.json", "results.json", "train.log",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "plots/confusion.png", "plots/curves.png", "plots/labels_train.png",
        "plots/labels_val.png", "plots/pr.png", "plots/predictions.png",
    }  # fmt: skip


def test_results_and_metrics_say_the_same(trained) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert (results["task"], results["model"]) == ("detection", "yolo")
    assert (results["data"], results["split"], results["images"]) == ("shapes", "val", 5)
    assert results["seconds"] > 0
    table = rows(trained)
    assert next(iter(table[0])) == "epoch"
    assert [row["epoch"] for row in table] == ["0", "1"]
    best = table[results["epoch"]]
    for name, value in results["metrics"].items():
        if value is not None:
            assert value == pytest.approx(float(best[f"val/{name}"]), abs=1e-6)
    assert results["losses"]["loss"] == pytest.approx(float(best["val/loss"]), abs=1e-6)


def test_the_config_is_resolved_and_plain(trained) -> None:
    text = (trained / "config.yaml").read_text()
    assert "${" not in text
    config = yaml.safe_load(text)
    assert config["run_dir"] == str(trained)
    assert config["model"]["backbone"]["widths"] == [4, 8, 16, 16]
    assert "trust" not in config
    assert "data.num_train=16" in (trained / "overrides.txt").read_text().splitlines()


def test_the_environment_and_the_log(trained) -> None:
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    log = (trained / "train.log").read_text()
    for part in ("epoch 1/2", "epoch 2/2", "mAP50", "run folder"):
        assert part in log


def test_checkpoints_hold_averaged_and_raw_weights_and_plain_values(trained) -> None:
    last = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(name.startswith("model.") for name in last["state_dict"])
    assert any(name.startswith("model.backbone.") for name in last["state_dict"])
    assert last["state_dict"].keys() == last["current_model_state"].keys()
    raw = last["current_model_state"]
    assert any(not torch.equal(value, raw[name]) for name, value in last["state_dict"].items())
    header = last["cvtrain"]
    assert header["classes"]["names"] == ["circle", "square", "triangle", "star"]
    assert header["config"]["model"]["name"] == "yolo"
    assert last["epoch"] == 1


def test_the_gate_is_on_record(trained) -> None:
    check = json.loads((trained / "check.json").read_text())
    assert check["images"] == check["used"] + check["rejected"]


def test_what_speaks_against_an_optimizer_is_said(compose, tmp_path) -> None:
    words = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    assert train(compose(*words, "optimizer=sgd")) == 0
    assert "say model.fc_lr_scale=1" in (tmp_path / "run" / "train.log").read_text()


def test_the_same_seed_gives_the_same_run_and_another_does_not(compose, tmp_path) -> None:
    words = ("trainer.max_epochs=1",)
    states = []
    for n, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(n)
        assert train(compose(*words, f"seed={seed}", run_dir=folder)) == 0
        states.append(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_overfitting_trains_and_scores_the_same_images(compose, tmp_path) -> None:
    assert train(compose("debug=overfit", "trainer.max_epochs=1", "data.num_train=9")) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["split"], results["images"]) == ("train", 4)


def test_a_fast_debug_run_sees_two_batches(compose, tmp_path) -> None:
    config = compose("debug=fast", "data.num_val=12")
    config["trainer"]["max_epochs"] = 1
    assert train(config) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["images"] == 8
    assert len(rows(tmp_path / "run")) == 1


def test_a_profile_lands_in_the_run_folder(compose, tmp_path) -> None:
    assert train(compose("trainer.profiler=simple", "trainer.max_epochs=1")) == 0
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


def test_without_averaging_there_are_raw_weights_alone(compose, tmp_path) -> None:
    assert train(compose("callbacks=none", "trainer.max_epochs=1")) == 0
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert "current_model_state" not in last


def refused(config, kind: type[CvtrainError]) -> str:
    with pytest.raises(kind) as caught:
        train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run(compose) -> None:
    config = compose("optimizer.lr=1e30", "trainer.gradient_clip_val=null", "scheduler=none")
    message = refused(config, RunError)
    assert "not finite at step" in message


def test_weights_that_diverge_in_the_last_step_do_not_pass_for_a_result(compose, tmp_path) -> None:
    words = ("optimizer.lr=1e30", "trainer.gradient_clip_val=null", "scheduler=none")
    config = compose(*words, "data.batch_size=16", "trainer.max_epochs=1")
    assert "diverged" in refused(config, RunError)
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(compose, tmp_path) -> None:
    config = compose()
    config["trainer"]["accelerator"] = "gpu"
    assert "trainer.accelerator=cpu" in refused(config, RunError)
    assert not (tmp_path / "run").exists()


def test_out_of_memory_names_the_knobs(compose, monkeypatch, tmp_path) -> None:
    def explode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.50 GiB. GPU 0 ...")

    monkeypatch.setattr(YOLO, "loss", explode)
    message = refused(compose(), RunError)
    for part in ("3.50 GiB", "data.batch_size (now 4", "data.image_size (now", "precision"):
        assert part in message
    assert "RunError: out of memory" in (tmp_path / "run" / "train.log").read_text()


def test_another_runs_folder_is_refused(compose, trained) -> None:
    config = compose()
    config["run_dir"] = str(trained)
    assert f"resume={trained}" in refused(config, UsageError)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_epochs", 0, "trainer.max_epochs=0"),
        ("precision", "fp8", "trainer.precision=fp8"),
        ("precision", "16-mixed", "needs a GPU"),
        ("devices", "two", "trainer.devices=two"),
        ("devices", 0, "trainer.devices=0"),
        ("num_nodes", 0, "trainer.num_nodes=0"),
        ("accelerator", "quantum", "trainer.accelerator=quantum"),
        ("limit_val_batches", -1, "trainer.limit_val_batches=-1"),
        ("limit_train_batches", 1.5, "trainer.limit_train_batches=1.5"),
        ("profiler", "fancy", "trainer.profiler=fancy"),
        ("strategy", "magic", "magic"),
        ("check_val_every_n_epoch", True, "check_val_every_n_epoch=True"),
    ],
)
def test_one_line_for_settings_that_cannot_work(compose, tmp_path, key, value, said) -> None:
    config = compose()
    config["trainer"][key] = value
    assert said in refused(config, UsageError)
    assert not (tmp_path / "run").exists()


def test_a_callback_without_a_target_is_refused(compose) -> None:
    config = compose()
    config["callbacks"]["mine"] = {"epoch": 2}
    assert "callbacks.mine" in refused(config, UsageError)


def test_a_target_outside_the_allow_list_is_refused(compose, tmp_path) -> None:
    config = compose()
    config["callbacks"]["mine"] = {"_target_": "os.system", "command": f"touch {tmp_path}/pwned"}
    assert "os" in refused(config, UsageError)
    assert not (tmp_path / "pwned").exists()


def test_a_task_without_a_model_is_refused(compose) -> None:
    config = compose()
    config["model"] = None
    assert "no model" in refused(config, UsageError)


@pytest.mark.slow
def test_a_compiled_model_keeps_its_names(compose, tmp_path, trained) -> None:
    assert train(compose("trainer.compile=true", "trainer.max_epochs=1")) == 0
    states = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "run", trained)
    ]
    assert states[0].keys() == states[1].keys()


def test_a_classifier_goes_the_same_way(compose, command, tmp_path) -> None:
    from cvtrain.engine.predict import predict

    words = ("task=classification", "model=classifier", "backbone=darknet_tiny")
    config = compose(*words, "data.image_size=32", "trainer.max_epochs=1")
    assert train(config) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"accuracy", "f1_macro", "ece"} <= results["metrics"].keys()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 30), "red").save(pictures / "red.png")
    words = ("predict", f"ckpt={tmp_path}/run", f"source={pictures}", f"run_dir={tmp_path}/p")
    assert predict(command(*words)) == 0
    (entry,) = json.loads((tmp_path / "p" / "predictions.json").read_text())
    assert entry.keys() == {"image_id", "file_name", "category_id", "category", "score"}
    assert entry["file_name"] == "red.png"


def test_an_optimizer_class_of_the_users_own(compose, tmp_path) -> None:
    config = compose("trainer.max_epochs=1")
    config["optimizer"] = {"_target_": "torch.optim.Adagrad", "name": "mine", "lr": 0.01}
    assert "trust=[torch.optim.Adagrad]" in refused(config, UsageError)
    config["trust"] = ["torch.optim.Adagrad"]
    assert train(config) == 0
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    state = next(iter(last["optimizer_states"][0]["state"].values()))
    assert state.keys() == {"step", "sum"}


def test_channels_last_kernels_change_nothing_but_their_layout(compose, tmp_path) -> None:
    weights = []
    for value in ("true", "false"):
        folder = tmp_path / value
        words = (f"trainer.channels_last={value}", "trainer.max_epochs=1")
        assert train(compose(*words, run_dir=folder)) == 0
        last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        weights.append(last["current_model_state"])
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4)
