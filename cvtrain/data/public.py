"""Named public data sets: fetched from their official homes, only where the user asks for it.

Nothing here touches the network unless ``prepare`` is called with ``download=True``; it then says
what comes from where, how large it is and where it goes. Archives are checked against a known
digest before they are opened, and unpacked beside their destination and renamed, so that a data set
is there whole or not at all. What is there is read by the ordinary readers.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import posixpath
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from cvtrain.errors import DataError, UsageError

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20  # bytes read at a time
_WORK = ".cvtrain-download"  # folder in data.root for what is under way
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
_CIFAR = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Archive:
    """A file of a public data set.

    Attributes:
        url: its official home.
        size: bytes.
        digest: ``md5:...`` or ``sha256:...``.
        gives: paths below data.root that are there once it is unpacked, the last one to come last.
        unpacked: bytes on disk after unpacking, roughly.
        convert: turns the unpacked folder into the layout that is read, in another folder.
    """

    url: str
    size: int
    digest: str
    gives: tuple[str, ...]
    unpacked: int
    convert: Callable[[Path, Path], None] | None = None

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)


def _cifar10(source: Path, target: Path) -> None:
    folder = source / "cifar-10-batches-bin"
    names = (folder / "batches.meta.txt").read_text().split()
    train = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
    _cifar(train, target / "train", names, labels=1)
    _cifar([folder / "test_batch.bin"], target / "test", names, labels=1)


def _cifar100(source: Path, target: Path) -> None:
    folder = source / "cifar-100-binary"
    names = (folder / "fine_label_names.txt").read_text().split()
    _cifar([folder / "train.bin"], target / "train", names, labels=2)
    _cifar([folder / "test.bin"], target / "test", names, labels=2)


def _cifar(files: list[Path], target: Path, names: list[str], labels: int) -> None:
    """Writes the records of binary CIFAR files as ``target/CLASS/NUMBER.png``.

    A record is ``labels`` bytes, the last of them the class, and 3 x 32 x 32 bytes of pixels.
    """
    for name in names:
        (target / name).mkdir(parents=True, exist_ok=True)
    number = 0
    for file in files:
        records = np.fromfile(file, np.uint8).reshape(-1, labels + 3072)
        pixels = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
        for label, image in zip(records[:, labels - 1], pixels, strict=True):
            path = target / names[label] / f"{number:05d}.png"
            Image.fromarray(np.ascontiguousarray(image)).save(path, compress_level=1)
            number += 1


PUBLIC: dict[str, tuple[Archive, ...]] = {
    "voc2007": (
        Archive(
            f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
            460_032_000,
            "md5:c52e279531787c972589f7e41ab4ae64",
            ("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt",),
            460_000_000,
        ),
        Archive(
            f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
            451_020_800,
            "md5:b6e924de25625d8de591ea690078ad9f",
            ("VOCdevkit/VOC2007/ImageSets/Main/test.txt",),
            451_000_000,
        ),
    ),
    "voc2012": (
        Archive(
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "md5:6cd6e144f989b92b3379bac3b3de84fd",
            ("VOCdevkit/VOC2012/ImageSets/Main/trainval.txt",),
            2_000_000_000,
        ),
    ),
    "coco2017": (
        Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            252_907_541,
            "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
            850_000_000,
        ),
        Archive(
            f"{_COCO}/zips/val2017.zip",
            815_585_330,
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ("val2017",),
            820_000_000,
        ),
        Archive(
            f"{_COCO}/zips/train2017.zip",
            19_336_861_798,
            "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
            ("train2017",),
            19_400_000_000,
        ),
    ),
    "cifar10": (
        Archive(
            f"{_CIFAR}/cifar-10-binary.tar.gz",
            170_052_171,
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ("train", "test"),
            440_000_000,
            _cifar10,
        ),
    ),
    "cifar100": (
        Archive(
            f"{_CIFAR}/cifar-100-binary.tar.gz",
            168_513_733,
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            ("train", "test"),
            440_000_000,
            _cifar100,
        ),
    ),
}
"""Name -> its files, in the order in which they are fetched."""


def prepare(
    name: str, root: str | Path, download: bool = False, say: Callable[[str], None] = print
) -> Path:
    """Makes sure that a public data set lies in ``root``.

    Args:
        name: a key of ``PUBLIC``.
        root: data.root; it is created if something is to be fetched.
        download: fetch what is not there. Without, nothing is fetched and nothing written.
        say: takes the lines that say what happens.

    Returns:
        The absolute path of ``root``.

    Raises:
        UsageError: there is no such set.
        DataError: it is not there and ``download`` is off, or it could not be fetched.
    """
    if name not in PUBLIC:
        raise UsageError(f"no public data set {name!r}; there are: {', '.join(PUBLIC)}")
    path = Path(os.path.abspath(os.path.expanduser(root)))  # noqa: PTH100, PTH111 (keep links)
    wanted = _missing(name, path)
    if not wanted:
        return path
    files = ", ".join(f"{a.url} ({_bytes(a.size)})" for a in wanted)
    if not download:
        total = _bytes(sum(a.size for a in wanted))
        raise DataError(
            f"{name} is not in data.root={root}; data.download=true fetches {files}, {total} in "
            "all, or set data.root to where it lies"
        )
    try:
        with _lock(path):
            for archive in _missing(name, path):  # another process may have fetched some
                _check_room(archive, path)
                say(f"downloading {archive.url} ({_bytes(archive.size)}) to {path}")
                file = _fetch(archive, path / _WORK, say)
                say(f"unpacking {archive.name} (about {_bytes(archive.unpacked)}) to {path}")
                _unpack(archive, file, path)
                file.unlink()
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{name} could not be put into {path}: {error}; free space or choose another data.root"
        ) from error
    shutil.rmtree(path / _WORK, ignore_errors=True)
    return path


def _missing(name: str, root: Path) -> list[Archive]:
    return [a for a in PUBLIC[name] if not all((root / given).exists() for given in a.gives)]


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    """One process fetches, others on this machine wait for it."""
    import fcntl  # not on Windows, where nothing else here needs it

    (root / _WORK).mkdir(parents=True, exist_ok=True)
    with (root / _WORK / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_room(archive: Archive, root: Path) -> None:
    need = archive.size + archive.unpacked
    free = shutil.disk_usage(root).free
    if free < need:
        raise DataError(
            f"{archive.name} needs {_bytes(need)} while it is unpacked, {root} has {_bytes(free)} "
            "free; free space or choose another data.root"
        )


def _fetch(archive: Archive, folder: Path, say: Callable[[str], None]) -> Path:
    """Downloads an archive, going on where an earlier try stopped, and checks its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{archive.name}.part"
    try:
        if not part.is_file() or part.stat().st_size < archive.size:
            _receive(archive, part, say)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        TimeoutError,
        ConnectionError,
    ) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{archive.url} could not be fetched ({reason}); check the network and run again (it "
            f"continues where it stopped), or unpack the file into {folder.parent} yourself"
        ) from error
    kind, wanted = archive.digest.split(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != wanted:
        part.unlink()
        raise DataError(
            f"{archive.url}: {kind} is {digest.hexdigest()}, not {wanted}: the download is damaged "
            "or the file was replaced; run again, or unpack a good copy yourself"
        )
    return part


def _receive(archive: Archive, part: Path, say: Callable[[str], None]) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "cvtrain"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        if have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        with part.open("ab" if have else "wb") as file:
            note = have * 10 // archive.size
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                if have > archive.size:
                    break  # not the file that is wanted; the digest says so
                if have * 10 // archive.size > note:
                    note = have * 10 // archive.size
                    say(f"  {archive.name}: {note * 10} % of {_bytes(archive.size)}")
    if have < archive.size:
        raise http.client.IncompleteRead(b"", archive.size - have)


def _unpack(archive: Archive, file: Path, root: Path) -> None:
    """Unpacks into a folder beside, then moves all into ``root``, the last given path last."""
    folder = root / _WORK / "unpacked"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _extract(file, folder)
    if archive.convert is not None:
        raw, folder = folder, root / _WORK / "converted"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive.convert(raw, folder)
    for given in archive.gives:
        if not (folder / given).exists():
            raise DataError(f"{archive.url} holds no {given}; unpack the data set yourself")
    last = folder / archive.gives[-1]
    _move(folder, root, last)
    last_target = root / archive.gives[-1]
    if not last_target.exists():
        last_target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(last, last_target)  # noqa: PTH105


def _move(source: Path, target: Path, last: Path) -> None:
    """Moves what is in ``source`` into ``target``; what is there stays, ``last`` is left behind."""
    for path in sorted(source.iterdir()):
        to = target / path.name
        if path == last:
            continue
        if path in last.parents or (path.is_dir() and to.is_dir()):
            to.mkdir(exist_ok=True)
            _move(path, to, last)
        elif not to.exists():
            os.replace(path, to)  # noqa: PTH105


def _extract(file: Path, folder: Path) -> None:
    """Unpacks a tar or zip file; members that are links or leave the folder are refused."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                link = stat.S_ISLNK(info.external_attr >> 16)
                target = _member(folder, info.filename, plain=not link)
                if info.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    with archive.open(info) as source:
                        _write(source, target)
        return
    with tarfile.open(file) as archive:
        for member in archive:
            target = _member(folder, member.name, plain=member.isfile() or member.isdir())
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                content = archive.extractfile(member)
                assert content is not None  # a plain file has content
                with content:
                    _write(content, target)


def _member(folder: Path, name: str, plain: bool) -> Path:
    path = posixpath.normpath(name.replace("\\", "/"))
    if not plain or posixpath.isabs(path) or path.split("/")[0] == ".." or ":" in path:
        raise DataError(f"the archive holds {name!r}, a link or a path that leaves its folder")
    return folder / path


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)


def _bytes(count: int) -> str:
    """``170052171`` -> ``170 MB``."""
    value = float(count)
    units = ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.3g} {units[0]}"
