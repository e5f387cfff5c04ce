from __future__ import annotations

import numpy as np
import pytest

from cvtrain.callbacks.loggers import MLflow, PictureLogger, TensorBoard, Wandb, _why_offline
from cvtrain.callbacks.metrics_csv import History
from cvtrain.errors import UsageError

PICTURE = np.zeros((4, 6, 3), np.uint8)


def test_tensorboard_writes_metrics_and_pictures(make_task, fit, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(str(tmp_path))
    fit(make_task(), History(tmp_path / "metrics.csv"), epochs=2, loggers=[logger])
    logger.log_picture("curves", PICTURE, 6)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/accuracy")] == [3, 6]
    assert events.Images("curves")[0].width == 6


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_without_an_account_wandb_stays_offline_and_says_how_to_sync(
    make_task, fit, tmp_path, no_account, said, capfd
) -> None:
    logger = Wandb(str(tmp_path), run_name="a/b/c")
    fit(make_task(), History(tmp_path / "metrics.csv"), epochs=1, loggers=[logger])
    logger.log_picture("curves", PICTURE, 3)
    logger.close("success")
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 1
    assert f"wandb sync {folders[0]}" in said()
    assert list(folders[0].glob("files/media/images/*.png"))
    assert "WARNING" not in capfd.readouterr().err


def test_without_a_network_too(monkeypatch, no_account) -> None:
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "127.0.0.1 does not answer" in _why_offline(wandb)


def test_an_unknown_mode(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"logger\.wandb\.mode=on"):
        Wandb(str(tmp_path), mode="on")


def test_mlflow_says_how_to_install_it(tmp_path, monkeypatch) -> None:
    import pytorch_lightning.loggers.mlflow as module

    monkeypatch.setattr(module, "_MLFLOW_AVAILABLE", False)
    with pytest.raises(UsageError, match="pip install"):
        MLflow(str(tmp_path))


def test_who_takes_pictures(tmp_path) -> None:
    from pytorch_lightning.loggers import CSVLogger

    assert isinstance(TensorBoard(str(tmp_path)), PictureLogger)
    assert not isinstance(CSVLogger(tmp_path), PictureLogger)
