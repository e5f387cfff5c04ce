"""``cvtrain check``: the page, check.json and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cvtrain.commands import check as module
from cvtrain.commands.check import check, write_check
from cvtrain.errors import DataError, RunError
from cvtrain.storage import RUN_MARKER


@pytest.fixture
def run(dataset, monkeypatch, tmp_path):
    """check() on ``dataset``; gives the exit code and check.json."""
    monkeypatch.setattr("cvtrain.data.source.make_reader", lambda *_: dataset)

    def call(**options):
        data = {"on_bad": "error", "val_fraction": 0.2, "channels": 3, "num_workers": 1}
        cfg = {
            "data": {**data, **options.pop("data", {})},
            "seed": 0,
            "run_dir": str(tmp_path / "out"),
            "task": {"name": "classification"},
            "overrides": [],
            "trust": [],
            **options,
        }
        return check(cfg), json.loads((tmp_path / "out" / "check.json").read_text())

    return call


@pytest.fixture
def bad(dataset, box):
    """Four images, one empty, and a box without a number."""
    for i in range(4):
        dataset.add(f"größe {i}.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[[float("nan")] * 4, box])
    (dataset.root / "größe 2.png").write_bytes(b"")
    dataset.unlisted = ["extra.png"]
    return dataset


def test_what_was_left_out_as_asked_is_counted(dataset, box, run, capsys) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("b.png", boxes=[box, [1, 1, 9, 9]])
    dataset.add("v.png", split="val", boxes=[box])
    task = {"task": {"name": "localization"}, "overrides": ["task=localization"]}
    code, written = run(**task, data={"object": "only"})
    assert (code, written["images"], written["used"], written["rejected"]) == (0, 3, 2, 1)
    assert written["codes"]["image-several-objects"] == 1
    assert "1 of 3 images dropped, as asked" in capsys.readouterr().out
    code, written = run(**task, data={"object": "largest"})
    assert (code, written["rejected"]) == (0, 0)
    assert "dropped, as asked" not in capsys.readouterr().out


def test_report_and_exit_code(bad, run, capsys) -> None:
    code, written = run()
    assert code == 1
    assert (written["images"], written["used"], written["rejected"]) == (5, 4, 1)
    assert written["unlisted"] == 1
    assert written["codes"] == {
        "image-empty": 1,
        "box-nan": 1,
        "file-unlisted": 1,
        "class-unused": 1,
    }
    first = written["problems"][0]
    assert {k: first[k] for k in ("file", "where", "code", "severity", "split")} == {
        "file": "größe 2.png",
        "where": "",
        "code": "image-empty",
        "severity": "error",
        "split": "train",
    }
    assert first["message"] == "the file is empty (0 bytes)"
    assert set(first) == {
        "file", "where", "code", "severity", "message", "fix", "split", "action"
    }  # fmt: skip
    assert [p["severity"] for p in written["problems"]] == ["error", "error", "note", "note"]
    page = capsys.readouterr().out
    for text in (
        "2 errors",
        "größe 2.png: the file is empty (0 bytes)",
        "v.png annotation id 1: box [nan, nan, nan, nan] is not finite",
        "-> copy the file again",
        "train       4     3        1",
        "2 errors: training stops; data.on_bad=fix repairs",
        "check.json",
    ):
        assert text in page


def test_drop_goes_on(bad, run, capsys) -> None:
    code, written = run(data={"on_bad": "drop"})
    assert code == 0
    actions = {p["code"]: p["action"] for p in written["problems"] if p["severity"] == "error"}
    assert actions == {"image-empty": "image dropped", "box-nan": "annotation dropped"}
    assert "continues with data.on_bad=drop: 1 of 5 images dropped" in capsys.readouterr().out


def test_clean_set(dataset, box, run, capsys) -> None:
    dataset.names = ("cat",)
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    code, written = run()
    assert (code, written["problems"], written["on_bad"]) == (0, [], "error")
    assert written["splits"]["val"] == {
        "images": 1, "used": 1, "rejected": 0, "annotations": 1, "annotations_used": 1
    }  # fmt: skip
    assert "no errors; no notes" in capsys.readouterr().out


def test_task_counts_only_where_it_was_typed(dataset, box, run) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    assert run()[0] == 0
    with pytest.raises(DataError, match="task=classification needs label"):
        run(overrides=["task=classification"])


def test_task_null_is_no_task(dataset, box, run) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    code, report = run(task=None, overrides=["task=null"])
    assert (code, report["task"]) == (0, None)


def test_markup_in_names_and_bytes_that_are_not_utf8(dataset, box, run, capsys) -> None:
    for name in ("[bold]a[red].png", "b\udce4r.png"):
        dataset.save("x.png")
        (dataset.root / "x.png").rename(dataset.root / name)
        dataset.add(name, boxes=[box])
        (dataset.root / name).write_bytes(b"")
    dataset.add("c.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    code, written = run()
    assert code == 1
    assert [p["file"] for p in written["problems"][:2]] == ["[bold]a[red].png", "b\udce4r.png"]
    page = capsys.readouterr().out
    assert "[bold]a[red].png: the file is empty" in page
    assert "b\\udce4r.png: the file is empty" in page


def test_long_lists_are_cut_on_the_page_alone(dataset, box, run, capsys) -> None:
    for i in range(9):
        dataset.add(f"{i}.png", boxes=[[5, 5, 99, 30]])
    dataset.add("v.png", split="val", boxes=[box])
    _, written = run()
    assert written["codes"]["box-outside"] == 9
    page = capsys.readouterr().out
    assert page.count("leaves the image of 60 x 40") == 3
    assert "... and 6 more" in page


def test_cache_that_cannot_be_written_is_said(dataset, box, run, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    import os

    for path in dataset.root.iterdir():
        os.utime(path, (0, 0))
    assert run()[0] == 0
    assert "cannot be" in capsys.readouterr().out


def test_default_folder_is_new_each_time(dataset, box, run, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        folders.append(module._run_dir({"run_dir": None}))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3
    assert all(f.parent == Path("runs/check") for f in folders)


def test_old_report_survives_a_full_disk(dataset, box, run, monkeypatch, tmp_path) -> None:
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    run()
    old = (tmp_path / "out/check.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"No space left on device; .* choose another run_dir"):
        write_check(tmp_path / "out", dataset.gate())
    assert (tmp_path / "out/check.json").read_bytes() == old
    assert {p.name for p in (tmp_path / "out").iterdir()} == {RUN_MARKER, "check.json"}


def test_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, cvtrain.commands.check, cvtrain.data.gate.run, cvtrain.data.formats.auto\n"
        "assert not {'torch', 'cv2', 'albumentations', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_command_on_a_real_folder(tmp_path: Path, dataset) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            for i in range(2):
                dataset.save(f"{split}/{label}/{i}.png")
    (dataset.root / "train/cat/1.png").write_bytes(b"")
    command = [sys.executable, "-m", "cvtrain", "check", "data=auto"]
    command += [f"data.root={dataset.root}", f"run_dir={tmp_path / 'out dir'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "train/cat/1.png: the file is empty" in done.stdout
    written = json.loads((tmp_path / "out dir/check.json").read_text())
    assert (written["images"], written["used"], written["rejected"]) == (8, 7, 1)
    assert not (tmp_path / "runs").exists()


def test_any_name_stays_on_one_line_and_numbers_agree(dataset, run, capsys, box) -> None:
    for name in ("a.png", "new\nline.png", "\x1b[31mred.png", "latin\udce9.png"):
        dataset.add(name, boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    for name in ("new\nline.png", "\x1b[31mred.png", "latin\udce9.png"):
        (dataset.root / name).write_bytes(b"")
    code, _ = run()
    page = capsys.readouterr().out
    assert code == 1
    for shown in (r"new\nline.png", r"\x1b[31mred.png", r"latin\udce9.png"):
        assert f"         {shown}: the file is empty (0 bytes)\n" in page
    assert (
        "\n3 errors: training stops; data.on_bad=fix repairs what can be, data.on_bad=drop" in page
    )
    assert "drop drops it\n" in page
    with pytest.raises(DataError) as refused:
        dataset.gate(strict=True)
    lines = str(refused.value).split("\n")
    assert len(lines) == 4
    assert "\x1b" not in str(refused.value)


def test_one_note_is_not_notes(dataset, run, capsys, box) -> None:
    dataset.names = ("cat",)
    dataset.add("a.png", boxes=[box])
    dataset.add("v.png", split="val", boxes=[box])
    dataset.add("empty.png")
    run()
    page = capsys.readouterr().out
    assert "\n1 note\n" in page
    assert "no errors; 1 note, which loses nothing\n" in page


def test_on_bad_is_not_offered_for_what_it_cannot_mend(dataset, box) -> None:
    dataset.add("v.png", split="val", boxes=[box])
    with pytest.raises(DataError) as refused:
        dataset.gate(strict=True)
    message = "; data.on_bad=fix|drop cannot fix that (no-train-split): correct the data\n"
    assert message in str(refused.value)
    dataset.add("w.png", split="val", boxes=[box])
    (dataset.root / "w.png").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        dataset.gate(strict=True)
    message = "continues without what is wrong, except for no-train-split, which only you can fix\n"
    assert message in str(refused.value)
