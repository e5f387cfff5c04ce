"""Images to predict on: files of the user's own, without ground truth."""

from __future__ import annotations

import glob
import os.path
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from cvtrain.augment.geometry import fit, map_points, pad_value, placement, put
from cvtrain.data.collate import LoaderBatch, Sample, collate
from cvtrain.data.dataset import input_size
from cvtrain.data.decode import claimed_pixels, decode_bytes, header_pixels
from cvtrain.data.formats.files import IMAGE_SUFFIXES, MAX_PIXELS, is_image, walk
from cvtrain.data.formats.unread import CONVERT, said_of_unread, unread_images
from cvtrain.data.given_boxes import BoxFinder, around, corners
from cvtrain.data.loader import Loader
from cvtrain.data.worker import prepare_process, start_worker
from cvtrain.errors import DataError, UsageError
from cvtrain.storage import is_run_folder
from cvtrain.structures import ImageInfo, Placement, Target
from cvtrain.text import printable

READ_AHEAD = 100_000_000
"""Pixels of images at their own size that loader processes hold together, about; each holds two."""


@dataclass(frozen=True)
class Unreadable:
    """A file of a folder that is no image."""

    file: str
    why: str


@dataclass
class ImageFolder(Dataset["Sample | Unreadable"]):
    """Images to predict on: a file, every image below a folder, or a glob (``**`` goes deep).

    Args:
        source: file, folder or glob.
        image_size: the network's input, pixels: an int or [H, W].
        resize, channels: as in ``VisionDataset``.
        proposals: finds boxes in each image, for models that are given them; they end up in
            ``Sample.proposals``. None: none.
        native: images stay as they are, at their own size.

    Attributes:
        root: the folder that ``info.file_name`` is relative to.
        files: POSIX paths below it, sorted.
        unreadable: what ``batches`` could not read so far.
        notes: lines on images that are not read, of other formats or without an extension.

    Raises:
        UsageError: nothing is there, or no file of an image's extension.
    """

    source: str | Path
    image_size: int | Sequence[int]
    resize: str = "letterbox"
    channels: int = 3
    proposals: BoxFinder | None = None
    native: bool = False
    root: Path = field(init=False)
    files: list[str] = field(init=False)
    height: int = field(init=False)
    width: int = field(init=False)
    unreadable: list[Unreadable] = field(init=False, default_factory=list)
    notes: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        prepare_process()
        self.height, self.width = input_size(self.image_size)
        self.root, self.files = find_images(self.source)
        if Path(self.source).expanduser().is_dir():
            lines = [line for _, line in unread_images(self.root, walk(self.root))]
            self.notes = [printable(f"{line}: {CONVERT}") for line in lines]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, row: int) -> np.ndarray:
        """The upright original ``(H, W, C)``.

        Raises:
            DataError: unreadable, or more pixels than any photograph.
        """
        path = self.root / self.files[row]
        try:
            raw = np.fromfile(path, np.uint8)
        except OSError as e:
            raise DataError(f"{path}: {e.strerror or e}") from e
        if not raw.size:
            raise DataError(f"{path}: the file is empty")
        pixels = header_pixels(raw, str(path))
        if pixels > MAX_PIXELS:
            raise DataError(
                f"{path}: more than {MAX_PIXELS:,} pixels, taken for a bomb; cut it into parts"
            )
        return decode_bytes(raw, str(path), self.channels)

    def most_workers(self) -> int:
        """So many processes may read ahead, that what they hold at their native size is bounded."""
        return READ_AHEAD // max(1, *(claimed_pixels(self.root / file) for file in self.files))

    def __getitem__(self, row: int) -> Sample | Unreadable:
        file = self.files[row]
        try:
            image = self.image(row)
            found = None if self.proposals is None else self.proposals.find(file, image).boxes
        except DataError as e:
            return Unreadable(file, str(e))
        height, width = image.shape[:2]
        if self.native:
            placed = Placement(1.0, 1.0, 0.0, 0.0, height, width)
            boxes = None if found is None else around(corners(found)[:, :2], height, width)
            info = ImageInfo(row, file, file, height, width, placed)
            return Sample(image, Target(), info, proposals=boxes)
        place = fit(height, width, self.height, self.width, self.resize)
        boxes = None
        if found is not None:
            points = map_points(corners(found)[:, :2], place.matrix(height, width))
            boxes = around(points, self.height, self.width)
        fill = pad_value(image.dtype)
        fitted = put(image, place, self.height, self.width, fill, nearest=False)
        where = placement(place, height, width)
        info = ImageInfo(row, file, file, height, width, where)
        return Sample(fitted, Target(), info, proposals=boxes)

    def batches(self, batch_size: int = 16, num_workers: int = 0) -> Iterator[LoaderBatch]:
        """Batches in the order of ``files``; what cannot be read is left out and listed.

        One that has no readable file at all is not yielded.
        """
        loader: Loader[Any] = Loader(
            self,
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=_collate_readable,
            worker_init_fn=start_worker,
        )
        for batch, unreadable in loader:
            self.unreadable.extend(unreadable)
            if batch is not None:
                yield batch


def _collate_readable(
    items: list[Sample | Unreadable],
) -> tuple[LoaderBatch | None, list[Unreadable]]:
    samples = [i for i in items if isinstance(i, Sample)]
    return (collate(samples) if samples else None), [i for i in items if isinstance(i, Unreadable)]


def find_images(source: str | Path) -> tuple[Path, list[str]]:
    """The folder that names are relative to, and the images in it: POSIX paths, sorted.

    What commands wrote below that folder is left out; a run's own folder may be named.

    Raises:
        UsageError: nothing is there.
    """
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (Path's own raises for ~nobody)
    text = str(path)
    if path.is_file():
        return path.parent, [path.name]
    if path.is_dir():
        root = path
        found = [path / name for name in walk(path) if is_image(name)]
    elif glob.has_magic(text):
        matches = glob.glob(text, recursive=True)  # noqa: PTH207 (Path.glob takes no absolute one)
        found = [p for p in map(Path, matches) if p.is_file()]
        fixed = []
        for part in path.parts[:-1]:
            if glob.has_magic(part):
                break
            fixed.append(part)
        root = Path(*fixed)
        found = _outside_runs(found, root, source)
    else:
        raise UsageError(f"source={source}: no such file or folder")
    if not found:
        unread = said_of_unread(path, walk(path)) if path.is_dir() else ""
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(printable(f"source={source}: no images there ({endings}){unread}"))
    return root, sorted(p.relative_to(root).as_posix() for p in found)


def _outside_runs(found: list[Path], root: Path, source: str | Path) -> list[Path]:
    """Those that lie in no run folder below ``root``.

    Raises:
        UsageError: there are only such ones.
    """
    parents = {parent for path in found for parent in path.parents if root in parent.parents}
    runs = {parent for parent in parents if is_run_folder(parent)}
    kept = [path for path in found if runs.isdisjoint(path.parents)]
    if found and not kept:
        run = min(runs)
        raise UsageError(
            f"source={source}: all {len(found)} files there are what commands wrote; give a run's "
            f"own folder to read them: source={run}"
        )
    return kept
