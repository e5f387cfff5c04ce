"""Named public sets, fetched from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvtrain.data import public
from cvtrain.data.formats.folder import FolderReader
from cvtrain.data.formats.voc import VOCReader
from cvtrain.data.public import PUBLIC, Archive, prepare
from cvtrain.errors import DataError, UsageError


class Server:
    """Serves bytes by path; knows ranges; may hang up early."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = server.files.get(self.path.lstrip("/"))
                asked = self.headers["Range"]
                server.ranges.append(asked)
                if content is None:
                    self.send_error(404)
                    return
                start = int(asked[len("bytes=") : -1]) if asked else 0
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start : server.cut])

            def log_message(self, *args: Any) -> None:
                return

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def offer(server, monkeypatch):
    """Puts an archive on the server and into ``PUBLIC`` under the name ``mine``."""

    def add(name: str, content: bytes, *gives: str, **more: Any) -> Archive:
        server.files[name] = content
        digest = f"md5:{hashlib.md5(content).hexdigest()}"
        archive = Archive(f"{server.url}/{name}", len(content), digest, gives, 100, **more)
        monkeypatch.setitem(PUBLIC, "mine", (*PUBLIC.get("mine", ()), archive))
        return archive

    return add


def tar_of(files: dict[str, bytes], mode: str = "w", links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()


def zip_of(files: dict[str, bytes], link: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(info, content)
    return out.getvalue()


@pytest.mark.parametrize("name", ["voc2007", "voc2012", "coco2017", "cifar10", "cifar100"])
def test_nothing_is_fetched_or_written_unasked(tmp_path, name, monkeypatch):
    monkeypatch.setattr(public, "_fetch", lambda *a: pytest.fail("fetched"))
    root = tmp_path / "not yet"
    with pytest.raises(DataError) as error:
        prepare(name, root)
    message = str(error.value)
    assert "\n" not in message
    assert "data.download=true" in message
    assert PUBLIC[name][0].url in message
    assert "MB" in message or "GB" in message
    assert str(root) in message
    assert not root.exists()


def test_unknown_name(tmp_path):
    with pytest.raises(UsageError, match="voc2007, voc2012"):
        prepare("imagenet", tmp_path, download=True)


def test_what_is_there_is_left_alone(tmp_path, capsys):
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    assert prepare("cifar10", tmp_path, download=True) == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test", "train"]
    assert capsys.readouterr().out == ""


def test_downloads_says_what_checks_unpacks_and_cleans_up(tmp_path, offer, server):
    xml = b"<annotation><object><name>a</name></object></annotation>"
    one = {"VOCdevkit/VOC2007/JPEGImages/1.jpg": b"x", "VOCdevkit/VOC2007/Annotations/1.xml": xml}
    lists = "VOCdevkit/VOC2007/ImageSets/Main"
    offer("one.tar", tar_of({**one, f"{lists}/train.txt": b"1"}), f"{lists}/train.txt")
    two = {"VOCdevkit/VOC2007/JPEGImages/2.jpg": b"y", f"{lists}/test.txt": b"2"}
    offer("two.zip", zip_of(two), f"{lists}/test.txt")
    message: list[str] = []
    root = prepare("mine", tmp_path / "a b", download=True, say=message.append)
    assert root == tmp_path / "a b"
    assert [p.name for p in root.iterdir()] == ["VOCdevkit"]
    assert VOCReader(root).splits() == ["train", "test"]
    assert (root / "VOCdevkit/VOC2007/JPEGImages/2.jpg").read_bytes() == b"y"
    assert message[0].startswith(f"downloading {server.url}/one.tar (10.2 kB) to {root}")
    assert any(line.startswith("unpacking two.zip") for line in message)
    server.files.clear()
    prepare("mine", root, download=True)  # all there: the server is not asked


def test_only_what_is_missing_is_fetched_and_files_that_are_there_stay(tmp_path, offer, server):
    offer("one.tar", tar_of({"one/1": b"x"}), "one")
    offer("two.tar", tar_of({"two/1": b"new", "two/2": b"x", "extra": b"x"}), "two/2")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/1").write_text("mine")
    prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert len(server.ranges) == 1
    assert (tmp_path / "two/1").read_text() == "mine"
    assert (tmp_path / "two/2").exists()
    assert (tmp_path / "extra").exists()


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, offer, server):
    content = tar_of({"a/1": bytes(50_000)})
    offer("one.tar", content, "a")
    server.cut = 20_000
    with pytest.raises(DataError, match="run again"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert not (tmp_path / "a").exists()
    server.cut = None
    prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert server.ranges == [None, "bytes=20000-"]
    assert (tmp_path / "a/1").stat().st_size == 50_000


def test_a_damaged_download_is_refused_and_forgotten(tmp_path, offer, server):
    content = tar_of({"a/1": b"x"})
    offer("one.tar", content, "a")
    server.files["one.tar"] = content[:-5] + b"evil!"
    with pytest.raises(DataError, match=r"md5 is .*, not .*damaged"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("more", [b"more" * 1000, b""])
def test_a_file_of_another_length_is_refused(tmp_path, offer, server, more):
    content = tar_of({"a/1": b"x"})
    offer("one.tar", content, "a")
    server.files["one.tar"] = content + more if more else content[:100]
    with pytest.raises(DataError, match=r"one\.tar"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.tar", "http://no-such-host.invalid/x.tar"]
)
def test_no_network_is_one_line(tmp_path, monkeypatch, address):
    archive = Archive(address, 10, "md5:0", ("a",), 10)
    monkeypatch.setitem(PUBLIC, "mine", (archive,))
    with pytest.raises(DataError) as error:
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    message = str(error.value)
    assert "\n" not in message
    assert address in message
    assert "check the network" in message


def test_not_found_is_one_line(tmp_path, offer, server):
    offer("one.tar", b"x", "a")
    server.files.clear()
    with pytest.raises(DataError, match=r"could not be fetched \(Not Found\)"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)


@pytest.mark.parametrize(
    "content",
    [
        tar_of({"../evil": b"x"}),
        tar_of({"a/../../evil": b"x"}),
        tar_of({"/tmp/evil": b"x"}),
        tar_of({}, links={"a": "/etc"}),
        zip_of({"../evil": b"x"}),
        zip_of({"..\\evil": b"x"}),
        zip_of({"C:/evil": b"x"}),
        zip_of({"a": b"/etc/passwd"}, link=True),
    ],
)
def test_archives_that_reach_outside_are_refused(tmp_path, offer, content):
    offer("one.tar", content, "a")
    root = tmp_path / "deep" / "er"
    with pytest.raises(DataError, match="leaves its folder"):
        prepare("mine", root, download=True, say=lambda line: None)
    outside = {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} - {Path("deep")}
    assert all(p.is_relative_to("deep/er") for p in outside)
    assert not (root / "a").exists()


def test_an_archive_without_the_promised_content(tmp_path, offer):
    offer("one.tar", tar_of({"b": b"x"}), "a")
    with pytest.raises(DataError, match="holds no a"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert not (tmp_path / "b").exists()


def test_something_that_is_no_archive(tmp_path, offer):
    offer("one.tar", b"<html>moved</html>", "a")
    with pytest.raises(DataError, match="could not be put into"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)


def test_a_disk_without_room(tmp_path, offer, monkeypatch, server):
    offer("one.tar", tar_of({"a": b"x"}), "a")
    usage = shutil.disk_usage(tmp_path)._replace(free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="has 5 B free"):
        prepare("mine", tmp_path, download=True, say=lambda line: None)
    assert server.ranges == []


def test_a_root_that_cannot_be_written(tmp_path, offer):
    offer("one.tar", tar_of({"a": b"x"}), "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="could not be put into"):
        prepare("mine", tmp_path / "file" / "below", download=True)


@pytest.mark.parametrize(
    ("name", "folder", "labels"),
    [("cifar10", "cifar-10-batches-bin", 1), ("cifar100", "cifar-100-binary", 2)],
)
def test_cifar_becomes_class_folders(tmp_path, server, monkeypatch, name, folder, labels):
    rng = np.random.default_rng(0)

    def records(classes):
        rows = rng.integers(0, 256, (len(classes), labels + 3072), np.uint8)
        rows[:, labels - 1] = classes
        return rows

    names = b"plane\ncar\n\n" if labels == 1 else b"plane\ncar\n"
    parts = {f"data_batch_{i}.bin": records([i % 2]) for i in range(1, 6)}
    parts["test_batch.bin"] = records([1, 0])
    if labels == 2:
        parts = {"train.bin": records([1, 0, 1, 0, 1]), "test.bin": records([1, 0])}
    files = {f"{folder}/{part}": rows.tobytes() for part, rows in parts.items()}
    meta = "batches.meta.txt" if labels == 1 else "fine_label_names.txt"
    content = tar_of({**files, f"{folder}/{meta}": names}, "w:gz")
    server.files["c.tar.gz"] = content
    (real,) = PUBLIC[name]
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    convert = real.convert
    archive = Archive(f"{server.url}/c.tar.gz", len(content), digest, real.gives, 9, convert)
    monkeypatch.setitem(PUBLIC, name, (archive,))
    root = prepare(name, tmp_path / "c", download=True, say=lambda line: None)
    reader = FolderReader(root)
    assert reader.splits() == ["train", "test"]
    train = reader.read("train").table
    assert train.classes.names == ("car", "plane")
    assert (len(train), len(reader.read("test").table)) == (5, 2)
    first = next(iter(parts.values()))[0]
    label = names.decode().split()[first[labels - 1]]
    with Image.open(root / "train" / label / "00000.png") as image:
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1).ravel(), first[labels:])
    assert reader.read("train").problems == []
    assert reader.read("train").unlisted == []
    assert sorted(p.name for p in root.iterdir()) == ["test", "train"]
