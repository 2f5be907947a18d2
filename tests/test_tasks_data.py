"""Data sets, their roles, archives and downloads."""

import hashlib
import http.server
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import squares
import torch
import yaml
from PIL import Image

from evaluators.settings import DataSettings
from evaluators.tasks import archives, datasets, voc
from evaluators.tasks.archives import Archive, fetch
from evaluators.tasks.datasets import open_dataset
from spaces.errors import SpecError, SplitsearchError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "tiny-imagenet-50.tar.gz"


def as_bytes(images):
    return {pixels.tobytes() for pixels in images.pixels}


def test_digits_are_divided_without_overlap():
    data = open_dataset(DataSettings(name="digits", image_size=32))
    train, validation, test = data.train(None, 0), data.validation(), data.test()
    assert len(train) + len(validation) + len(test) == 1797
    assert len(validation) == pytest.approx(360, abs=5)
    assert not as_bytes(train) & as_bytes(validation) and not as_bytes(validation) & as_bytes(test)
    share = torch.bincount(validation.labels) / len(validation)
    assert share.min() > 0.08 and share.max() < 0.12


def test_samples_are_balanced_and_seeded():
    data = open_dataset(DataSettings(name="digits", image_size=32))
    sample = data.train(100, 3)
    assert torch.bincount(sample.labels).tolist() == [10] * 10
    assert as_bytes(sample) == as_bytes(data.train(100, 3)) != as_bytes(data.train(100, 4))
    assert as_bytes(sample) <= as_bytes(data.train(None, 0))
    inputs = sample.inputs(data.picture, 5, 8)
    assert inputs.shape == (3, 3, 32, 32) and inputs.dtype == torch.float32


@pytest.fixture
def tiny(tmp_path):
    """TinyImageNet's layout with two classes of made-up images."""
    root = tmp_path / "tiny"
    rng = np.random.default_rng(0)
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for name in ("n1", "n2"):
        (root / "train" / name / "images").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(
                root / "train" / name / "images" / f"{name}_{i}.JPEG"
            )
        for i in range(4):
            picture = rng.integers(0, 256, (64, 64)).astype(np.uint8)
            Image.fromarray(picture).save(root / "val" / "images" / f"{name}{i}.JPEG")
            rows.append(f"{name}{i}.JPEG\t{name}\t0\t0\t1\t1")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def open_tiny(root):
    return open_dataset(DataSettings(name="tinyimagenet", image_size=64, root=root))


def test_tinyimagenet_reads_its_layout(tiny):
    data = open_tiny(tiny)
    assert data.classes == ("n1", "n2") and len(data.train(None, 0)) == 12
    halves = data.validation(), data.test()
    assert [torch.bincount(half.labels).tolist() for half in halves] == [[2, 2], [2, 2]]
    assert not as_bytes(halves[0]) & as_bytes(halves[1])
    assert halves[0].pixels[0].shape == (64, 64) and halves[0].inputs(data.picture).shape == (4, 3, 64, 64)


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
    assert len(list((own_cache / "data").iterdir())) == 1


def test_a_corrupt_archive_is_named_and_leaves_nothing(tiny, tmp_path, own_cache):
    with tarfile.open(tmp_path / "good.tar.gz", "w:gz") as packed:
        packed.add(tiny, "tiny")
    whole = (tmp_path / "good.tar.gz").read_bytes()
    for name, content in {"cut.tar.gz": whole[: len(whole) // 2], "junk.tar.gz": b"junk", "junk.zip": b"junk"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match="corrupt archive") as caught:
            open_tiny(tmp_path / name)
        assert "data.root" in str(caught.value) and name in str(caught.value)
    assert not list((own_cache / "data").iterdir())


def test_missing_data_says_what_is_missing(tiny, tmp_path):
    with pytest.raises(SpecError, match="no such folder or archive"):
        open_tiny(tmp_path / "absent")
    with pytest.raises(SpecError, match=r"there is no wnids\.txt"):
        open_tiny(tiny / "train")
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(SpecError, match=r"val_annotations\.txt is missing"):
        open_tiny(tiny)
    with pytest.raises(SpecError, match="did you mean 'digits'"):
        open_dataset(DataSettings(name="digit", image_size=8))


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_real_tinyimagenet_50():
    data = open_tiny(SHARED)
    assert len(data.classes) == 50
    validation, test = data.validation(), data.test()
    assert len(validation) == len(test) == 1250
    assert torch.bincount(validation.labels).tolist() == [25] * 50
    assert torch.bincount(data.train(4000, 0).labels).tolist() == [80] * 50


# -- class folders -----------------------------------------------------------------------------------------------------


def save_pictures(folder, classes, count, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / name / f"{number}.png")


def open_folder(root):
    return open_dataset(DataSettings(name="imagefolder", image_size=16, root=root))


def test_imagefolder_uses_the_lists_it_has(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        save_pictures(tmp_path / "all" / split, ("ant", "bee"), 4 + number, seed=number)
    data = open_folder(tmp_path / "all")
    assert data.classes == ("ant", "bee") and not data.carved
    assert [len(each) for each in (data.train(None, 0), data.validation(), data.test())] == [8, 10, 12]
    assert data.validation().pixels[0].shape == (16, 16, 3)

    save_pictures(tmp_path / "two" / "train", ("ant", "bee"), 4)
    save_pictures(tmp_path / "two" / "valid", ("ant", "bee"), 6, seed=1)
    data = open_folder(tmp_path / "two")
    assert torch.bincount(data.validation().labels).tolist() == torch.bincount(data.test().labels).tolist() == [3, 3]
    assert not as_bytes(data.validation()) & as_bytes(data.test())

    save_pictures(tmp_path / "flat", ("ant", "bee", "cat"), 10)
    data = open_folder(tmp_path / "flat")
    assert data.carved and [len(each) for each in (data.train(None, 0), data.validation(), data.test())] == [18, 6, 6]
    assert open_folder(tmp_path / "flat").fingerprint == data.fingerprint


def test_imagefolder_says_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    save_pictures(tmp_path / "only" / "train", ("ant",), 2)
    save_pictures(tmp_path / "more" / "train", ("ant",), 2)
    save_pictures(tmp_path / "more" / "val", ("ant", "wasp"), 2)
    told = {"empty": "no images found", "only": "it needs val/ or test/", "more": "wasp", "gone": "give the path"}
    for folder, text in told.items():
        with pytest.raises(SpecError, match=text) as caught:
            open_folder(tmp_path / folder)
        assert "data.root" in str(caught.value)


# -- a user's own ------------------------------------------------------------------------------------------------------

OWN = """
import numpy as np
from PIL import Image

def images(count, seed):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8), i % 3) for i in range(count)]

def data(root):
    train = [(Image.fromarray(pixels), label) for pixels, label in images(9, 0)]
    return {"train": train, "validation": images(6, 1), "test": images(3, 2), "classes": ["a", "b", "c"],
            "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "mirrored": False}

def half():
    return {"train": images(9, 0)}

def floats():
    return {role: [(np.zeros((4, 4, 3)), 0)] for role in ("train", "validation", "test")}

def fails():
    raise RuntimeError("no disk")
"""


def test_data_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)

    def opened(function):
        return open_dataset(DataSettings(name=f"python:{tmp_path / 'mine.py'}:{function}", image_size=16))

    data = opened("data")
    assert data.classes == ("a", "b", "c") and data.picture.mean == (0.5, 0.5, 0.5) and not data.mirrored
    assert torch.bincount(data.train(6, 0).labels).tolist() == [2, 2, 2]
    assert data.validation().inputs(data.picture).shape == (6, 3, 16, 16) and len(data.test()) == 3
    assert data.fingerprint == opened("data").fingerprint
    told = {"half": "train, validation and test", "fails": "RuntimeError: no disk", "none": "has: "}
    for function, text in told.items():
        with pytest.raises(SpecError, match=text) as caught:
            opened(function)
        assert "data.name" in str(caught.value)
    with pytest.raises(SpecError, match="uint8 arrays"):
        opened("floats").validation()


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
    assert len(server.asked) == 2 and not list((own_cache / "downloads").iterdir())


# -- images with boxes -----------------------------------------------------------------------------------------------

BOXES = """<annotation><object><name>dog</name><difficult>{difficult}</difficult>
<bndbox><xmin>1</xmin><ymin>11</ymin><xmax>{right}</xmax><ymax>30</ymax></bndbox></object></annotation>"""


def test_voc_reads_boxes_and_drops_those_without_area(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (right, difficult) in enumerate([(20, 0), (1, 0), (15, 1), (40, 0)]):
        Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(folder / "JPEGImages" / f"{number}.jpg")
        (folder / "Annotations" / f"{number}.xml").write_text(BOXES.format(right=right, difficult=difficult))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("0\n1\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("2\n3\n")
    data = open_dataset(DataSettings(name="voc", image_size=32, root=tmp_path))
    assert data.task == "detection" and data.classes[11] == "dog" and data.degenerate_boxes == 1
    # Pixels count from 1 there and from 0 here; the second picture's only box has no width.
    rows = sorted(data.train(None, 0).labels.tolist())
    assert len(rows) == 1 and rows[0][1:] == [11, 0, 10, 20, 30, 0]
    assert data.validation().labels.tolist() == [[0, 11, 0, 10, 15, 30, 1]] and len(data.test()) == 1
    square = data.validation().inputs(data.picture)
    assert square.shape == (1, 3, 32, 32)
    grey = torch.isclose(square[0, 0, :, 16], torch.tensor(114 / 255))
    assert grey.tolist() == [True] * 8 + [False] * 16 + [True] * 8
    (folder / "Annotations" / "2.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(SpecError, match=r"2\.xml.*not readable as a VOC annotation"):
        open_dataset(DataSettings(name="voc", image_size=32, root=tmp_path))


@pytest.mark.parametrize(
    ("name", "counts", "boxes", "dropped"), [("bccd-voc", (205, 87, 72), 4886, 2), ("voc2007-15", (10, 3, 2), 44, 0)]
)
def test_real_boxes(name, counts, boxes, dropped):
    root = SHARED.parent / name
    if not SHARED.exists():
        pytest.skip(f"{root} is not there")
    data = open_dataset(DataSettings(name="voc", image_size=640, root=root))
    roles = data.train(None, 0), data.validation(), data.test()
    assert tuple(len(role) for role in roles) == counts and data.degenerate_boxes == dropped
    assert sum(len(role.labels) for role in roles) == boxes


def voc_folder(root, name, lists):
    """A VOCdevkit of blank images with one dog each; ``lists`` are images by list."""
    folder = root / "VOCdevkit" / name
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for role, images in lists.items():
        (folder / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(images) + "\n")
        for picture in images:
            Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(folder / "JPEGImages" / f"{picture}.jpg")
            (folder / "Annotations" / f"{picture}.xml").write_text(BOXES.format(right=20, difficult=0))


def test_voc0712_trains_on_both_years_and_halves_the_test_pictures_of_one(tmp_path):
    lists = {"train": ["1"], "val": ["2"], "trainval": ["1", "2"], "test": [f"t{number}" for number in range(10)]}
    voc_folder(tmp_path, "VOC2007", lists)
    voc_folder(tmp_path, "VOC2012", {"train": ["7"], "val": ["8", "9"], "trainval": ["7", "8", "9"]})
    data = open_dataset(DataSettings(name="voc0712", image_size=32, root=tmp_path))
    named = {role: {file.stem for file in getattr(data, role)(*args).pixels.files}
             for role, args in {"train": (None, 0), "validation": (), "test": ()}.items()}  # fmt: skip
    assert named["train"] == {"1", "2", "7", "8", "9"}
    assert len(named["validation"]) == len(named["test"]) == 5
    assert named["validation"] | named["test"] == set(lists["test"])


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
    assert not list((own_cache / "downloads").iterdir())


def test_ultralytics_own_layout(tmp_path):
    file = squares.write(tmp_path, train=3, val=4)
    data = open_dataset(DataSettings(name="yolo", image_size=64, root=file))
    assert data.classes == ("red", "green") and data.degenerate_boxes == 0
    images = data.train(None, 0)
    assert len(images) == 3 and len(data.validation()) == len(data.test()) == 2
    assert images.sizes == [(128, 72)] * 3 and images.labels.shape == (6, 7)
    for number, pixels in enumerate(images.pixels):
        assert pixels.shape == (36, 64, 3)  # scaled down, while boxes stay in the picture's own pixels
        red = images.labels[(images.labels[:, 0] == number) & (images.labels[:, 1] == 0)][0]
        left, top, right, bottom = (int(value / 2) for value in red[2:6])
        inside = pixels[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3)
        assert (inside == (200, 40, 40)).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": None}, "needs train, val and names"),
        ({"val": "images/absent"}, "neither a folder nor a list"),
        ({"train": "empty"}, "names no images for train"),
    ],
)
def test_ultralytics_layout_with_something_missing(tmp_path, change, told):
    file = squares.write(tmp_path, train=2, val=2)
    (tmp_path / "empty").mkdir()
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **change}))
    with pytest.raises(SpecError, match=told):
        open_dataset(DataSettings(name="yolo", image_size=64, root=file))


def test_ultralytics_layout_with_lists_and_bad_labels(tmp_path):
    file = squares.write(tmp_path, train=2, val=2)
    (tmp_path / "train.txt").write_text("./images/train/0.png\n./images/train/1.png\n")
    file.write_text(yaml.safe_dump({"train": "train.txt", "val": ["images/val"], "names": ["red", "green"]}))
    data = open_dataset(DataSettings(name="yolo", image_size=64, root=file))
    (tmp_path / "labels" / "train" / "0.txt").unlink()  # a picture of nothing
    assert data.train(None, 0).labels.shape == (2, 7)
    (tmp_path / "labels" / "train" / "1.txt").write_text("5 0.5 0.5 0.1 0.1\n")
    with pytest.raises(SpecError, match=r"1\.txt.*not readable as labels of boxes"):
        data.train(None, 0)
    with pytest.raises(SpecError, match=r"data\.root.*YAML file"):
        open_dataset(DataSettings(name="yolo", image_size=64, root=tmp_path))
