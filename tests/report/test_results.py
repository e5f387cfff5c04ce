"""Result files: whole or not there, nothing rounded, nothing that is no JSON."""

from __future__ import annotations

import json
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from cvtrain.errors import RunError
from cvtrain.report.results import write_predictions, write_results
from cvtrain.storage import jsonable, write_atomic, write_json_atomic, write_json_list_atomic


def test_results_json(tmp_path):
    path = write_results(
        tmp_path / "new" / "run",
        "detection",
        "yolo",
        "voc",
        "val",
        {"mAP50": 1 / 3, "mAP_small": float("nan")},
        12.5,
        epoch=3,
        notes=["a"],
    )
    assert path == tmp_path / "new" / "run" / "results.json"
    written = json.loads(path.read_text())
    assert written == {
        "task": "detection",
        "model": "yolo",
        "data": "voc",
        "split": "val",
        "metrics": {"mAP50": 1 / 3, "mAP_small": None},
        "seconds": 12.5,
        "epoch": 3,
        "notes": ["a"],
    }
    assert list(written)[:6] == ["task", "model", "data", "split", "metrics", "seconds"]


def test_jsonable():
    value = {
        "f": np.float32(0.5),
        "i": np.int64(7),
        "b": np.bool_(True),
        "a": np.array([[1.0, np.inf]]),
        "t": torch.tensor([1.5, float("nan")]),
        "p": Path("a/b"),
        "tuple": (1, "é"),
        3: None,
    }
    assert jsonable(value) == {
        "f": 0.5,
        "i": 7,
        "b": True,
        "a": [[1.0, None]],
        "t": [1.5, None],
        "p": "a/b",
        "tuple": [1, "é"],
        "3": None,
    }
    with pytest.raises(TypeError, match="a set cannot be written as JSON"):
        jsonable({"x": {1, 2}})


def test_numbers_survive_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).random(100).tolist()
    path = write_json_list_atomic(tmp_path / "x.json", values)
    assert json.loads(path.read_text()) == values


@pytest.mark.parametrize("entries", [[], [1], [{"a": "日本"}, {"b": [1, 2]}]])
def test_lists(tmp_path, entries):
    path = write_json_list_atomic(tmp_path / "x.json", iter(entries))
    assert json.loads(path.read_text()) == entries
    # One entry a line, plus the brackets.
    assert len(path.read_text().splitlines()) == (len(entries) + 2 if entries else 1)


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    path = write_json_atomic(tmp_path / "x.json", {"file_name": "\udcff.jpg"})
    assert json.loads(path.read_text()) == {"file_name": "\udcff.jpg"}


def test_lists_are_streamed(tmp_path):
    entries = ({"image_id": f"images/{i:09}.jpg", "score": i / 7} for i in range(30_000))
    tracemalloc.start()
    try:
        path = write_json_list_atomic(tmp_path / "x.json", entries)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 1_500_000
    assert peak < 300_000


@pytest.fixture
def full_disk():
    """Writes beyond 4 kB fail in the operating system, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file_and_no_half(tmp_path, full_disk):
    path = tmp_path / "predictions.json"
    write_json_list_atomic(path, [1, 2])
    with pytest.raises(RunError, match=r"cannot write .*predictions\.json: File too large; free"):
        write_json_list_atomic(path, range(100_000))
    assert json.loads(path.read_text()) == [1, 2]
    with pytest.raises(RunError, match=r"cannot write .*results\.json"):
        write_json_atomic(tmp_path / "results.json", list(range(10_000)))
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


def test_plots_on_a_full_disk(tmp_path, full_disk, classification_details):
    from cvtrain.report.plots import plot_confusion

    with pytest.raises(RunError, match=r"cannot write .*c\.png"):
        plot_confusion(classification_details(tuple("abcdefgh")), tmp_path / "c.png")
    assert list(tmp_path.iterdir()) == []


def test_another_failure_leaves_nothing_either(tmp_path):
    def interrupted(file):
        file.write("[1, 2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x.json", interrupted)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError) as caught:
        write_json_atomic(tmp_path / "run" / "results.json", {})
    assert "\n" not in str(caught.value)
    assert "choose another run_dir=DIR" in str(caught.value)


def test_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    written = write_json_atomic(tmp_path / "x.json", {})
    assert written.stat().st_mode == plain.stat().st_mode


def test_write_predictions_is_valid_json_with_odd_names(tmp_path, detection_details, odd_names):
    metrics = detection_details(odd_names)["metrics"]
    predictions, truth = write_predictions(tmp_path, metrics)
    assert json.loads(predictions.read_text()) == metrics.predictions_json()
    assert json.loads(truth.read_text()) == metrics.ground_truth_json()
