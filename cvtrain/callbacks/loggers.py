"""Loggers beside metrics.csv: TensorBoard, Weights & Biases, MLflow. No network unless asked."""

from __future__ import annotations

import netrc
import os
import socket
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlparse

import numpy as np
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from cvtrain.callbacks.console import LOG
from cvtrain.errors import UsageError

REACH_SECONDS = 3.0
"""How long the W&B server may take to answer before a run is kept offline."""


@runtime_checkable
class PictureLogger(Protocol):
    """A logger that takes pictures."""

    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """``(H, W, 3)`` uint8 RGB."""


class TensorBoard(TensorBoardLogger):
    """Event files in the run folder.

    Args:
        save_dir: the run folder.
        sub_dir: below it.
        run_name: not used: the folder is the name.

    Raises:
        UsageError: a ``sub_dir`` that leads out of it.
    """

    def __init__(self, save_dir: str, sub_dir: str = "tensorboard", run_name: str = "") -> None:
        path = PurePath(sub_dir)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(
                f"logger.tensorboard.sub_dir={sub_dir}: it leads out of the run folder; give a "
                "folder below it"
            )
        super().__init__(save_dir=save_dir, name=sub_dir, version="", default_hp_metric=False)

    @rank_zero_only
    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """``(H, W, 3)`` uint8 RGB."""
        self.experiment.add_image(name, image, step, dataformats="HWC")


class Wandb(WandbLogger):
    """Weights & Biases; offline where there is no account or no network, and says how to sync.

    Args:
        save_dir: the run folder; the run's files go into ``wandb/`` below it.
        project: of W&B.
        name: of the run; None: ``run_name``.
        entity: team or user.
        tags: of the run.
        mode: ``auto`` (online where a key is known and the server answers), ``online``,
            ``offline``. ``WANDB_MODE`` in the environment decides where it is set.
        run_name: ``<task>/<model>/<run folder>``.

    Raises:
        UsageError: an unknown mode.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "cvtrain",
        name: str | None = None,
        entity: str | None = None,
        tags: Sequence[str] = (),
        mode: str = "auto",
        run_name: str = "",
    ) -> None:
        if mode not in ("auto", "online", "offline"):
            raise UsageError(f"logger.wandb.mode={mode}: expected auto, online or offline")
        import wandb

        mode = os.environ.get("WANDB_MODE") or mode
        self.why_offline = "as asked"
        if mode == "auto":
            self.why_offline = _why_offline(wandb)
            mode = "offline" if self.why_offline else "online"
        super().__init__(
            save_dir=save_dir,
            project=project,
            name=name or run_name,
            entity=entity,
            tags=list(tags),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._wandb_init.pop("anonymous", None)  # wandb warns of it, whatever its value
        self.kept_offline = mode in ("offline", "dryrun")

    @rank_zero_only
    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """``(H, W, 3)`` uint8 RGB."""
        self.log_image(name, [image], step=step)

    def finalize(self, status: str) -> None:
        """Nothing: the run stays open for what the evaluation after training has to say."""

    @rank_zero_only
    def close(self, status: str) -> None:
        """Close the run (``success`` or ``failed``) and say where it is."""
        run = self._experiment
        if run is None:
            return
        folder = Path(run.dir).parent
        url = None if self.kept_offline else run.url
        run.finish(exit_code=0 if status == "success" else 1)
        self._experiment = None
        if self.kept_offline:
            LOG.info(f"wandb: kept offline ({self.why_offline}); to upload it: wandb sync {folder}")
        elif url:
            LOG.info(f"wandb: {url}")


class MLflow(MLFlowLogger):
    """MLflow, where it is installed.

    Args:
        save_dir: the run folder; ``mlruns/`` below it is used where no server is named.
        experiment: name of the MLflow experiment.
        name: of the run; None: ``run_name``.
        tracking_uri: of the server; None: ``MLFLOW_TRACKING_URI``, otherwise files.
        run_name: ``<task>/<model>/<run folder>``.

    Raises:
        UsageError: MLflow is not installed.
    """

    def __init__(
        self,
        save_dir: str,
        experiment: str = "cvtrain",
        name: str | None = None,
        tracking_uri: str | None = None,
        run_name: str = "",
    ) -> None:
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        try:
            super().__init__(
                experiment_name=experiment,
                run_name=name or run_name,
                tracking_uri=uri or f"file:{Path(save_dir) / 'mlruns'}",
            )
        except ModuleNotFoundError as error:
            raise UsageError(
                "logger=mlflow: MLflow is not installed; pip install 'cvtrain[mlflow]'"
            ) from error

    @rank_zero_only
    def log_picture(self, name: str, image: np.ndarray, step: int) -> None:
        """``(H, W, 3)`` uint8 RGB."""
        self.experiment.log_image(self.run_id, image, f"{name.replace('/', '_')}_{step}.png")


def _why_offline(wandb: Any) -> str:
    """Why a run cannot go online, or an empty string."""
    settings = wandb.Settings()
    url = urlparse(os.environ.get("WANDB_BASE_URL") or settings.base_url)
    if not _has_key(url.hostname or ""):
        return "no API key: wandb login"
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=REACH_SECONDS).close()
    except OSError as error:
        return f"{url.hostname} does not answer: {error}"
    return ""


def _has_key(host: str) -> bool:
    """Whether ``wandb login`` has left a key for this server, or the environment has one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
