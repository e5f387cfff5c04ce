from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from cvtrain.callbacks.pictures import Pictures, displayable
from cvtrain.errors import UsageError
from cvtrain.structures import Batch, ImageInfo, Prediction, Target


class Album(CSVLogger):
    def __init__(self, folder) -> None:
        super().__init__(folder)
        self.pictures: list[tuple[str, tuple[int, ...], int]] = []

    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        self.pictures.append((name, image.shape, step))


def test_every_few_epochs_a_picture_reaches_file_and_loggers(make_task, fit, tmp_path) -> None:
    pictures, album = Pictures(count=3, every_n_epochs=2), Album(tmp_path)
    pictures.path = tmp_path / "predictions.png"
    fit(make_task(), pictures, epochs=3, loggers=[album])
    with Image.open(pictures.path) as image:
        size = image.size
    assert [(name, step) for name, _, step in album.pictures] == [("predictions", 6)]
    assert album.pictures[0][1] == (size[1], size[0], 3)


def test_the_images_lie_evenly_in_the_set(make_task, tmp_path) -> None:
    pictures = Pictures(count=3)
    pictures.path = tmp_path / "predictions.png"
    loader = SimpleNamespace(sampler=range(9), batch_sampler=None)
    trainer = SimpleNamespace(
        val_dataloaders=loader, is_global_zero=True, state=SimpleNamespace(fn="validate")
    )
    task = make_task()
    pictures.on_validation_start(trainer, task)
    for first in (0, 4, 8):
        rows = range(first, min(first + 4, 9))
        batch = Batch(
            images=torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8),
            targets=[Target() for _ in rows],
            truths=[Target() for _ in rows],
            infos=[ImageInfo(row, str(row), str(row), 2, 2) for row in rows],
        )
        outputs = {"originals": [Prediction() for _ in rows]}
        pictures.on_validation_batch_end(trainer, task, outputs, batch, first // 4)
    assert [info.index for *_, info in pictures._samples] == [0, 4, 8]


def test_by_default_training_draws_nothing(make_task, fit, tmp_path) -> None:
    pictures = Pictures()
    pictures.path = tmp_path / "predictions.png"
    fit(make_task(), pictures, epochs=1)
    assert not pictures.path.exists()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 3, 4, 5), torch.uint8), ((2, 1, 4, 5), torch.uint8), ((2, 4, 4, 5), torch.int32),
     ((1, 2, 4, 5), torch.float32)],
)  # fmt: skip
def test_images_of_any_kind_can_be_shown(shape, dtype) -> None:
    images = (torch.rand(shape) * 200).to(dtype)
    shown = displayable(images)
    assert shown.shape == (shape[0], 4, 5, 3)
    assert shown.dtype == np.uint8
    if dtype == torch.uint8:
        assert np.array_equal(shown[..., 0], images[:, 0].numpy())


def test_sixteen_bits_are_stretched_by_the_image() -> None:
    images = torch.tensor([[[[1000, 3000]]], [[[7, 7]]]], dtype=torch.int32)
    shown = displayable(images)
    assert shown[0, 0, :, 0].tolist() == [0, 255]
    assert shown[1].max() == 0


@pytest.mark.parametrize("arguments", [{"count": 0}, {"every_n_epochs": 0}])
def test_one_line_for_what_is_wrong(arguments) -> None:
    with pytest.raises(UsageError, match="=0: expected 1 or more"):
        Pictures(**arguments)
