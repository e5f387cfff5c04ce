"""Proposals in a file: what ``cvtrain proposals`` writes and ``proposals=file`` reads.

One ``.npz`` of numpy arrays, without pickle, for N images with M boxes in all:

======== ============ ==================================================================
array    type         what it holds
======== ============ ==================================================================
files    text (N,)    image files, POSIX paths below ``data.root``, each once
starts   int (N + 1,) boxes of image i are rows ``starts[i]:starts[i + 1]``, best first
boxes    float (M, 4) x0, y0, x1, y1 in pixels of the upright original
scores   float (M,)   optional: larger is better, falling within an image
sizes    int (N, 2)   optional: height and width of each image
made_by  text ()      optional: JSON, how they were made
======== ============ ==================================================================

Anybody's boxes become such a file by ``numpy.savez(path, files=..., starts=..., boxes=...)``.
Images of the file that a data set does not have are of no account; one that the file lacks is an
error.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvtrain.data.table import Table
from cvtrain.errors import DataError, UsageError
from cvtrain.proposals.names import Names
from cvtrain.proposals.selective_search import Boxes
from cvtrain.proposals.source import Prepared
from cvtrain.storage import BROKEN_NPZ, replacing
from cvtrain.text import printable

_SHOWN = 3


def write_proposals(
    path: str | Path,
    files: Sequence[str],
    sizes: np.ndarray,
    boxes: Iterable[Boxes],
    made_by: Mapping[str, Any],
) -> Path:
    """Writes the boxes of N images, beside the file's name first, then renamed.

    Args:
        path: ends in ``.npz``.
        files: N names, as in the table.
        sizes: int ``(N, 2)`` height, width.
        boxes: of each image.
        made_by: plain data.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    found = list(boxes)
    starts = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(b.boxes) for b in found], out=starts[1:])
    arrays = {
        "files": np.array(files, np.str_) if len(files) else np.zeros(0, "U1"),
        "sizes": np.asarray(sizes, np.int32).reshape(-1, 2),
        "starts": starts,
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(b.boxes for b in found)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(b.scores for b in found)]),
        "made_by": np.array(json.dumps(made_by)),
    }
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


class ProposalFile:
    """Boxes from a file, checked against the images they are for.

    Args:
        path: a file as above.
        max_boxes: the best of each image are taken.

    Raises:
        UsageError: no such file.
        DataError: it is none of proposals, or damaged.
    """

    def __init__(self, path: str | Path, *, max_boxes: int = 2000) -> None:
        self.path, self.max_boxes = Path(path), max_boxes
        if not self.path.is_file():
            raise UsageError(f"proposals.path={path}: there is no such file")
        try:
            if not zipfile.is_zipfile(self.path):
                raise zipfile.BadZipFile("it is no zip archive, or its end is missing")
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in arrays.files}
        except BROKEN_NPZ as error:
            raise DataError(
                f"{self.path} is no file of proposals (a .npz of numpy arrays, as `cvtrain "
                f"proposals` writes it): {_line(error)}"
            ) from error
        self._files, self._starts, self._boxes, self._scores, self._sizes = self._checked(held)
        self._names = Names(map(str, self._files))

    def prepare(
        self,
        tables: Mapping[str, Table],
        *,
        channels: int = 3,
        workers: int | None = None,
        progress: bool = True,
    ) -> Prepared:
        """Refuses boxes that are not those of these images.

        Raises:
            DataError: images that the file lacks, that had another size when it was made, or that
                its boxes leave.
        """
        begun = time.perf_counter()
        rows: dict[str, tuple[int, tuple[int, int]]] = {}
        for table in tables.values():
            for i in range(len(table)):
                name = table.files[i]
                height, width = (int(v) for v in table.sizes[i])
                rows[name] = (self._names.row(name), (height, width))
        missing = [name for name, (row, _) in rows.items() if row < 0]
        if rows and len(missing) == len(rows):
            first = printable(str(self._files[0])) if len(self._files) else "nothing"
            raise DataError(
                f"{self.path} holds boxes of other images: none of the {len(rows):,} images is in "
                f"it (it begins with {first}, the data set with {printable(missing[0])}); make "
                "them with `cvtrain proposals`"
            )
        if missing:
            shown = ", ".join(printable(name) for name in missing[:_SHOWN])
            more = ", ..." if len(missing) > _SHOWN else ""
            raise DataError(
                f"{self.path} lacks {len(missing):,} of the {len(rows):,} images: {shown}{more}; "
                "make their boxes too"
            )
        for name, (row, size) in rows.items():
            self._check_image(name, row, size)
        return Prepared(len(rows), 0, 0.0, time.perf_counter() - begun)

    def boxes(self, file: str) -> Boxes:
        """The best boxes of an image; the whole of it where the file has none.

        Raises:
            DataError: the file does not have the image.
        """
        row = self._names.row(file)
        if row < 0:
            raise DataError(f"{self.path} lacks {printable(file)}; make its boxes too")
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        best = slice(start, min(stop, start + self.max_boxes))
        boxes, scores = self._boxes[best], self._scores[best]
        if not len(boxes):
            height, width = self._sizes[row]
            boxes = np.array([[0, 0, width, height]], np.float32)
            scores = np.ones(1, np.float32)
        return Boxes(boxes, scores, max(1, stop - start))

    def find(self, file: str, image: np.ndarray) -> Boxes:
        """The best boxes of an image that no table holds, checked against its size.

        Raises:
            DataError: the file does not have it, by that name or in that size.
        """
        row = self._names.row(file)
        if row >= 0:
            self._check_image(file, row, (image.shape[0], image.shape[1]))
        return self.boxes(file)

    def _check_image(self, name: str, row: int, size: tuple[int, int]) -> None:
        shown, then = printable(name), tuple(int(v) for v in self._sizes[row])
        if then != (0, 0) and then != size:
            raise DataError(
                f"{self.path}: {shown} was {then[0]} x {then[1]} when its boxes were made, is "
                f"{size[0]} x {size[1]} now; make them again"
            )
        self._sizes[row] = size
        boxes = self._boxes[self._starts[row] : self._starts[row + 1]]
        limit = np.array([size[1], size[0]] * 2, np.float32) + 1e-3
        good = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        good &= (boxes >= -1e-3).all(1) & (boxes <= limit).all(1)
        if not good.all():
            at = int(np.flatnonzero(~good)[0])
            raise DataError(
                f"{self.path}: box {at} of {shown} is {boxes[at].tolist()}; boxes are x0, y0, x1, "
                f"y1 inside its {size[1]} x {size[0]} pixels"
            )

    def _checked(self, held: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """files, starts, boxes, scores and sizes (0 where unknown), of the types promised."""
        for name in ("files", "starts", "boxes"):
            if name not in held:
                raise DataError(
                    f"{self.path} is no file of proposals: it has no array {name!r} (files, starts "
                    "and boxes are needed)"
                )
        files, starts, boxes = held["files"], held["starts"], held["boxes"]
        count = len(files) if files.ndim == 1 else -1
        scores = held.get("scores", np.zeros(len(boxes), np.float32))
        sizes = held.get("sizes", np.zeros((max(count, 0), 2), np.int32))
        faults = {
            "files is no list of names": files.ndim != 1 or (count and files.dtype.kind != "U"),
            "starts does not fit files and boxes": starts.shape != (count + 1,)
            or starts.dtype.kind not in "iu"
            or not _rises(starts, len(boxes)),
            "boxes is not (M, 4) numbers": boxes.ndim != 2
            or boxes.shape[1:] != (4,)
            or boxes.dtype.kind not in "iuf",
            "scores does not fit boxes": scores.shape != (len(boxes),)
            or scores.dtype.kind not in "iuf",
            "sizes does not fit files": sizes.shape != (count, 2) or sizes.dtype.kind not in "iu",
            "files names an image twice": files.ndim == 1 and len(np.unique(files)) != count,
        }
        for fault, found in faults.items():
            if found:
                raise DataError(f"{self.path} is damaged, or made wrongly: {fault}")
        return (
            files,
            starts.astype(np.int64),
            boxes.astype(np.float32),
            scores.astype(np.float32),
            sizes.astype(np.int64),
        )


def _rises(starts: np.ndarray, boxes: int) -> bool:
    rises = starts[0] == 0 and starts[-1] == boxes and (np.diff(starts.astype(np.int64)) >= 0).all()
    return bool(rises)


def _line(error: BaseException) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
