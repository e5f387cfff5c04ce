"""What every test shares: no network, few threads, the real data sets where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before any import of these: albumentations asks the network for its version, wandb for a login.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets, from CVTRAIN_REAL_DATA; the test is skipped without."""
    folder = os.environ.get("CVTRAIN_REAL_DATA")
    if not folder:
        pytest.skip("CVTRAIN_REAL_DATA is not set")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"CVTRAIN_REAL_DATA={folder} is not a folder")
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves anything in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The key that seals runs is the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
