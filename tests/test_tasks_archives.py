"""Data in archives, packed and downloaded."""

import hashlib
import http.server
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_folders import open_folder, open_tiny, tiny_imagenet, voc_folder

from evaluators.settings import DataSettings
from evaluators.tasks import archives, datasets, voc
from evaluators.tasks.archives import Archive, fetch
from evaluators.tasks.datasets import open_dataset
from spaces.errors import SpecError, SplitsearchError


@pytest.fixture
def tiny(tmp_path):
    return tiny_imagenet(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- archives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_an_archive_is_as_good_as_its_folder(tiny, tmp_path, own_cache, ending):
    archive = tmp_path / f"packed{ending}"
    if ending == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in tiny.rglob("*"):
                packed.write(path, Path("tiny") / path.relative_to(tiny))
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(tiny, "tiny")
    for root in (archive, tmp_path / "packed"):  # the archive itself, or its name without the ending
        assert len(open_tiny(root).train(None, 0)) == 12
    assert len(list((own_cache / "store" / "archive").iterdir())) == 1


def test_a_corrupt_archive_is_named_and_leaves_nothing(tiny, tmp_path, own_cache):
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as packed:
        packed.add(tiny, "tiny")
    whole = (tmp_path / "good.tar.gz").read_bytes()
    for name, content in {"cut.tar.gz": whole[: len(whole) // 2], "junk.tar.gz": b"junk", "junk.zip": b"junk"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match="corrupt archive") as caught:
            open_tiny(tmp_path / name)
        assert "data.root" in str(caught.value) and name in str(caught.value)
    assert not list((own_cache / "store" / "archive").iterdir())


def test_a_locked_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as packed:
        packed.writestr("x/ant/1.png", b"pixels")
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + offset] |= 1  # encrypted, says its header
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(SpecError, match=r"locked\.zip.*cannot be unpacked here .*password.*unpack it yourself"):
        open_folder(tmp_path / "locked.zip")


# -- downloads ---------------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves one file, with ranges; drops the connection after ``cut`` bytes as often as ``cuts`` says."""

    def __init__(self, content, cuts=0, ranges=True):
        self.content, self.cuts, self.ranges, self.asked = content, cuts, ranges, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/tiny-imagenet-200.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        body = self.server.content[start:]
        if not body:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(archives, "_PAUSE_S", 0.0)
    servers = []

    def start(content, **how):
        server = Server(content, **how)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def as_archive(server):
    return Archive(url=server.url, md5=hashlib.md5(server.content).hexdigest())


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(serve, tmp_path, ranges):
    content = np.random.default_rng(0).bytes(3_000_000)
    server = serve(content, cuts=2, ranges=ranges)
    fetch(as_archive(server), tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == content and not list(tmp_path.glob("*.part"))
    assert server.asked == [None, "bytes=1500000-", "bytes=2250000-" if ranges else "bytes=1500000-"]


def test_what_an_earlier_attempt_left_is_used(serve, tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    server = serve(content)
    for left in (40_000, 100_000):
        (tmp_path / "file.zip.part").write_bytes(content[:left])
        fetch(as_archive(server), tmp_path / "file.zip")
        assert (tmp_path / "file.zip").read_bytes() == content
    assert server.asked == ["bytes=40000-", "bytes=100000-"]


def test_downloads_that_cannot_work_say_so(serve, tmp_path):
    server = serve(b"not the archive")
    with pytest.raises(SplitsearchError, match="not the file it should be"):
        fetch(Archive(url=server.url, md5="0" * 32), tmp_path / "file.zip")
    assert not list(tmp_path.iterdir())
    broken = serve(b"x" * 1000, cuts=99)
    with pytest.raises(SplitsearchError, match="the next attempt goes on from there"):
        fetch(as_archive(broken), tmp_path / "other.zip")
    assert (tmp_path / "other.zip.part").stat().st_size > 0


def test_download_true_fetches_unpacks_and_then_needs_no_network(tiny, tmp_path, own_cache, serve, monkeypatch):
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in tiny.rglob("*"):
            packed.write(path, Path("tiny-imagenet-200") / path.relative_to(tiny))
    server = serve(archive.read_bytes(), cuts=1)
    monkeypatch.setattr(datasets, "TINY_IMAGENET", as_archive(server))
    root = tmp_path / "data" / "tiny-imagenet-200"
    settings = {"name": "tinyimagenet", "image_size": 64, "root": root}
    with pytest.raises(SpecError, match="download: true"):
        open_dataset(DataSettings(**settings))
    assert not server.asked and not root.exists()
    for _ in range(2):
        assert len(open_dataset(DataSettings(**settings, download=True)).train(None, 0)) == 12
    assert len(server.asked) == 2 and not list((own_cache / "downloads").glob("[!.]*"))


def test_voc0712_is_downloaded_from_its_three_archives(serve, own_cache, monkeypatch, tmp_path):
    parts = {"a.tar": ("VOC2007", {"trainval": ["1", "2"]}), "b.tar": ("VOC2007", {"test": ["3", "4"]}),
             "c.tar": ("VOC2012", {"trainval": ["5"]})}  # fmt: skip
    public, servers = [], []
    for name, (year, lists) in parts.items():
        voc_folder(tmp_path / name, year, lists)
        with tarfile.open(tmp_path / "packed.tar", "w") as packed:
            packed.add(tmp_path / name / "VOCdevkit", "VOCdevkit")
        servers.append(serve((tmp_path / "packed.tar").read_bytes()))
        served = as_archive(servers[-1])
        public.append(replace(served, url=f"{served.url.rsplit('/', 1)[0]}/{name}"))
    monkeypatch.setattr(voc.Voc0712, "public", tuple(public))
    settings = {"name": "voc0712", "image_size": 32, "root": tmp_path / "there"}
    with pytest.raises(SpecError, match=r"download: true fetches .*a\.tar.*c\.tar"):
        open_dataset(DataSettings(**settings))
    for root in (settings["root"], None, None):  # without a root, once into the cache
        data = open_dataset(DataSettings(**{**settings, "root": root}, download=True))
        assert len(data.train(None, 0)) == 3 and len(data.test()) == 1
    assert [len(server.asked) for server in servers] == [2, 2, 2]
    assert not list((own_cache / "downloads").glob("[!.]*"))
