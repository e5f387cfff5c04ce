"""Images to predict on: what is found, and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cvtrain.data.image_folder import ImageFolder, find_images
from cvtrain.errors import UsageError
from cvtrain.storage import mark_run_folder


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    (root / "deep er").mkdir(parents=True)
    for k, name in enumerate(("b.jpg", "a.PNG", "deep er/ü.webp")):
        Image.fromarray(np.full((20 + k, 30, 3), 60 * (k + 1), np.uint8)).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def test_a_folder_is_searched_all_the_way_down(folder):
    images = ImageFolder(folder, 32)
    assert images.files == ["a.PNG", "b.jpg", "deep er/ü.webp"]
    assert len(images) == 3
    batches = list(images.batches(batch_size=2))
    assert [len(b) for b in batches] == [2, 1]
    assert batches[0].truths is None
    info = batches[1].infos[0]
    assert (info.image_id, info.file_name) == ("deep er/ü.webp", "deep er/ü.webp")
    assert (info.height, info.width) == (22, 30)
    assert batches[0].images.shape == (2, 3, 32, 32)


def test_what_commands_wrote_is_not_predicted_on(folder):
    run = folder / "runs" / "x"
    mark_run_folder(run)
    Image.new("RGB", (9, 9)).save(run / "loss.png")
    files = ["a.PNG", "b.jpg", "deep er/ü.webp"]
    assert find_images(folder)[1] == files
    assert sorted(find_images(f"{folder}/**/*.[jpPw][pPeN]*")[1]) == files
    assert find_images(run) == (run, ["loss.png"]), "named itself, it is read"
    assert find_images(f"{run}/*.png") == (run, ["loss.png"])
    with pytest.raises(UsageError, match=r"all 1 files there are what commands wrote.*source=.*x$"):
        find_images(f"{folder}/runs/*/*.png")


def test_predictions_go_back_to_the_original(folder):
    batch = next(ImageFolder(folder / "b.jpg", [64, 48]).batches())
    where = batch.infos[0].placement
    corner = where.boxes_to_network(torch.tensor([[0.0, 0, 30, 20]]))
    assert corner.tolist() == [[0, 16, 48, 48]]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_listed_and_not_fatal(folder, workers):
    (folder / "c.jpg").write_bytes(b"\xff\xd8 not really")
    (folder / "d.png").write_bytes(b"")
    images = ImageFolder(folder, 32)
    seen = [i.file_name for b in images.batches(1, workers) for i in b.infos]
    assert seen == ["a.PNG", "b.jpg", "deep er/ü.webp"]
    assert [u.file for u in images.unreadable] == ["c.jpg", "d.png"]
    assert "empty" in images.unreadable[1].why


def test_an_image_with_nan_costs_itself_alone_and_other_formats_are_named(folder):
    pixels = np.full((20, 30), 0.5, np.float32)
    Image.fromarray(pixels).save(folder / "e.tif")
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(folder / "c.tif")
    (folder / "f.heic").write_bytes(b"x")
    images = ImageFolder(folder, 32)
    assert images.notes[0].startswith("1 .heic file is not read: f.heic: save them as JPEG")
    seen = [i.file_name for b in images.batches(1) for i in b.infos]
    assert seen == ["a.PNG", "b.jpg", "deep er/ü.webp", "e.tif"]
    assert [u.file for u in images.unreadable] == ["c.tif"]
    assert "NaN" in images.unreadable[0].why


def test_bombs_are_not_decoded(folder, monkeypatch):
    monkeypatch.setattr("cvtrain.data.image_folder.MAX_PIXELS", 610)
    images = ImageFolder(folder, 32)
    assert sum(len(b) for b in images.batches()) == 1
    assert all("bomb" in u.why for u in images.unreadable)
    assert len(images.unreadable) == 2


def test_globs_and_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert ImageFolder("in/*.jpg", 32).files == ["b.jpg"]
    assert ImageFolder("in/**/*.webp", 32).files == ["deep er/ü.webp"]
    assert ImageFolder("*/b.jpg", 32).files == ["in/b.jpg"]
    assert ImageFolder(str(folder / "?.*"), 32).files == ["a.PNG", "b.jpg"]
    assert ImageFolder("in/b.jpg", 32).files == ["b.jpg"]


@pytest.mark.parametrize("source", ["missing.jpg", "in/*.bmp", "empty"])
def test_nothing_there_is_said(folder, monkeypatch, source):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "empty").mkdir()
    with pytest.raises(UsageError, match=f"source={source.replace('*', '.')}"):
        ImageFolder(source, 32)
