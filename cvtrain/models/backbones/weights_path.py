"""Where a weights file lies: the file itself, or a run folder's checkpoint. No torch here."""

from __future__ import annotations

from pathlib import Path

from cvtrain.errors import UsageError


def find_weights(path: Path, key: str = "backbone.weights") -> Path:
    """The file itself, or a run folder's best checkpoint, else its last.

    Args:
        path: as it was given.
        key: what messages say of it.

    Raises:
        UsageError: there is no such file, or a folder that holds no checkpoint.
    """
    if path.is_dir():
        for folder in (path / "checkpoints", path):
            for name in ("best.ckpt", "last.ckpt"):
                if (folder / name).is_file():
                    return folder / name
        raise UsageError(
            f"{key}={path}: the folder holds no checkpoints/best.ckpt; "
            "give a weights file or a run's folder"
        )
    if not path.is_file():
        raise UsageError(f"{key}={path}: there is no such file")
    return path
