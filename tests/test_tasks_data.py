"""Data sets, their roles, archives and downloads."""

import hashlib
import http.server
import io
import logging
import os
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
from evaluators.tasks import archives, datasets, image_files, own_data, voc
from evaluators.tasks.archives import Archive, fetch
from evaluators.tasks.data import LabelledImages, divide, few_of
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection_data import size_of
from search.spec import load_spec
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


def test_few_images_are_a_balanced_quarter_and_always_the_same():
    labels = torch.arange(2000) % 8
    images = LabelledImages(np.arange(2000), labels)
    few = few_of(images)
    assert len(few) == 500 == len(set(few)) and few == sorted(few) == few_of(images)
    assert set(torch.bincount(labels[few]).tolist()) == {62, 63}
    assert len(few_of(images.only(range(600)))) == 200
    assert few_of(images.only(range(150))) == list(range(150))


def test_some_images_keep_their_labels_and_are_not_read_before_they_are_asked_for():
    class Unread(list):
        def __getitem__(self, number):
            assert number in (4, 2)
            return super().__getitem__(number)

    pixels = Unread(np.full((2, 2, 3), number, np.uint8) for number in range(6))
    some = LabelledImages(pixels, torch.arange(6) * 10).only([4, 2])
    assert len(some) == 2 and some.labels.tolist() == [40, 20]
    assert [each.max() for each in some.pixels] == [4, 2] and [each.max() for each in some.pixels[1:]] == [2]
    boxes = torch.tensor([[0, 7.0], [2, 8.0], [4, 9.0], [4, 6.0]])  # number of the image, and the rest of a row
    found = LabelledImages(pixels, boxes, [(number, 1) for number in range(6)]).only([4, 3, 2])
    assert found.labels.tolist() == [[0, 9.0], [0, 6.0], [2, 8.0]] and boxes[1, 0] == 2
    assert found.sizes == [(4, 1), (3, 1), (2, 1)]
    assert len(few_of(LabelledImages([None] * 900, boxes))) == 225


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


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("TRAIN", "VAL", "TEST"), ("training", "testing"), ("val", "test")]
)
def test_folders_of_roles_are_not_taken_for_classes(tmp_path, names):
    """Two of them would do for a study of two classes, which then learns to tell training from test images."""
    for name in names:
        save_pictures(tmp_path / name, ("ant", "bee"), 5)
    with pytest.raises(SpecError, match=rf"holds {', '.join(sorted(names))} and no train; folders of classes lie in"):
        open_folder(tmp_path)


def test_what_operating_systems_leave_behind_is_no_data(tmp_path):
    save_pictures(tmp_path / "in" / "birds" / "train", ("ant", "bee"), 4)
    save_pictures(tmp_path / "in" / "birds" / "val", ("ant", "bee"), 4, seed=1)
    root = tmp_path / "in" / "birds"
    clutter = (".DS_Store", "._birds", "train/.cache/1.png", "train/ant/._0.png", "train/ant/Thumbs.db")
    clutter += ("train/__MACOSX/._ant", "train/bee/.thumbnails/0.png", "val/@eaDir/0.png", "val/bee/@eaDir/0.png/S.jpg")
    clutter += ("__MACOSX/1.png", "../__MACOSX/birds/._ant", "../.hidden/x", "val/System Volume Information/1.png")
    for name in clutter:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as packed:
        for path in sorted((tmp_path / "in").rglob("*")):
            packed.write(path, path.relative_to(tmp_path / "in"))
    for place in (root, tmp_path / "in", tmp_path / "birds.zip", tmp_path / "birds"):
        data = open_folder(place)
        assert data.classes == ("ant", "bee")
        assert [len(each) for each in (data.train(None, 0), data.validation(), data.test())] == [8, 4, 4]


def test_a_place_below_a_hidden_folder_is_no_clutter(tmp_path):
    save_pictures(tmp_path / ".cache" / "__MACOSX" / "flat", ("ant", "bee"), 5)
    assert len(open_folder(tmp_path / ".cache" / "__MACOSX" / "flat").train(None, 0)) == 6


def test_clutter_is_left_out_of_tinyimagenet(tiny, tmp_path):
    before = open_tiny(tiny).fingerprint
    for name in ("__MACOSX/x", "train/n1/images/._n1_0.JPEG", "train/.DS_Store"):
        (tiny / name).parent.mkdir(exist_ok=True)
        (tiny / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "outer" / "__MACOSX").mkdir(parents=True)
    tiny.rename(tmp_path / "outer" / "tiny")
    for root in (tmp_path / "outer", tmp_path / "outer" / "tiny"):
        assert len(open_tiny(root).train(None, 0)) == 12 and open_tiny(root).fingerprint == before


@pytest.mark.parametrize(
    "ending", ["gif", "jfif", "jpe", "JPG", "avif", "tif", "mpo", "pgm", "jp2", "tga", "webp", "bmp"]
)
def test_every_usual_ending_is_read(tmp_path, ending):
    save_pictures(tmp_path / "flat", ("ant",), 5)
    (tmp_path / "flat" / "bee").mkdir()
    for number in range(5):
        kind = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "pgm": "PPM", "jp2": "JPEG2000", "tif": "TIFF"}.get(
            ending
        )
        picture = Image.new("L", (20, 30), 40 * number)
        picture.save(tmp_path / "flat" / "bee" / f"{number}.{ending}", kind or ending.upper())
    data = open_folder(tmp_path / "flat")
    assert torch.bincount(data.train(None, 0).labels).tolist() == [3, 3]
    bees = {int(np.median(pixels)) for role in (data.train(None, 0), data.validation(), data.test())
            for pixels, label in zip(role.pixels, role.labels) if label == 1}  # fmt: skip
    assert all(any(abs(40 * number - bee) < 4 for bee in bees) for number in range(5))


def test_what_is_not_read_is_named(tmp_path, caplog):
    save_pictures(tmp_path / "flat", ("ant", "bee"), 5)
    (tmp_path / "flat" / "cat").mkdir()
    for name in ("1.heic", "2.HEIC", "notes.txt", "LICENSE", ".hidden"):
        (tmp_path / "flat" / "cat" / name).write_text("")
    with pytest.raises(SpecError) as caught:
        open_folder(tmp_path / "flat")
    told = str(caught.value)
    assert str(tmp_path / "flat" / "cat") in told and "a class without images" in told
    assert ".heic (2), .txt (1), no ending (1) left out" in told and ".jpeg" in told
    save_pictures(tmp_path / "flat" / "cat", ("more",), 5)
    with caplog.at_level(logging.WARNING, "splitsearch"):
        assert len(open_folder(tmp_path / "flat").classes) == 3
    assert ".heic (2), .txt (1), no ending (1) left out" in caplog.text
    (tmp_path / "lists" / "train").mkdir(parents=True)
    save_pictures(tmp_path / "lists" / "train", ("ant", "bee"), 3)
    save_pictures(tmp_path / "lists" / "val", ("ant",), 3)
    assert len(open_folder(tmp_path / "lists").validation()) == 2  # without bees, and there is no folder to be empty
    (tmp_path / "lists" / "val" / "bee").mkdir()
    with pytest.raises(SpecError, match=r"val/bee' given; a class without images; no files left out"):
        open_folder(tmp_path / "lists")


def test_classes_with_few_pictures(tmp_path):
    for count in range(1, 8):
        save_pictures(tmp_path / f"flat{count}", ("ant", "bee", "cat"), count)
        save_pictures(tmp_path / f"half{count}" / "train", ("ant", "bee", "cat"), 1)
        save_pictures(tmp_path / f"half{count}" / "test", ("ant", "bee", "cat"), count)
        for root, least in ((f"flat{count}", 4), (f"half{count}", 2)):
            if count < least:
                with pytest.raises(SpecError, match=rf"too few.*at least {least} in each class.*ant has {count}"):
                    open_folder(tmp_path / root)
            else:
                data = open_folder(tmp_path / root)
                roles = data.train(None, 0), data.validation(), data.test()
                assert all(torch.bincount(role.labels, minlength=3).min() >= 1 for role in roles)


def test_a_rare_class_is_enough_for_no_role(tmp_path):
    """Undivided, three images of a class leave none to choose by; a list that is there may lack a class."""
    save_pictures(tmp_path / "flat", ("ant",), 10)
    save_pictures(tmp_path / "flat", ("bee",), 3)
    with pytest.raises(SpecError, match=r"at least 4 in each class are needed, and bee has 3"):
        open_folder(tmp_path / "flat")
    save_pictures(tmp_path / "lists" / "train", ("ant", "bee"), 4)
    save_pictures(tmp_path / "lists" / "val", ("ant",), 10)
    save_pictures(tmp_path / "lists" / "val", ("bee",), 1)
    assert len(open_folder(tmp_path / "lists").test()) == 6


def test_dividing_stays_as_it_was():
    labels = np.repeat(np.arange(3), (10, 3, 1))
    carved = [part.tolist() for part in divide(labels, (0.6, 0.2, 0.2), 2)]
    assert carved == [[0, 2, 5, 6, 7, 9, 11, 12, 13], [3, 4], [1, 8, 10]]  # as of the first release
    assert [part.tolist() for part in divide(np.empty(0, np.int64), (0.5, 0.5), 2)] == [[], []]


def test_val_under_two_names_is_taken_once(tmp_path):
    for split in ("train", "val", "valid", "test"):
        save_pictures(tmp_path / "all" / split, ("ant", "bee"), 2)
    assert len(open_folder(tmp_path / "all").validation()) == 4
    for path in sorted((tmp_path / "all" / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "all" / "test").rmdir()
    assert len(open_folder(tmp_path / "all").validation()) == len(open_folder(tmp_path / "all").test()) == 2


def test_pictures_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 250  # the left half; upright it is the upper one
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png", exif=exif)
    data = open_folder(tmp_path)
    for images in (data.train(None, 0), data.validation(), data.test()):
        assert all((each[:8] == 250).all() and (each[8:] == 0).all() for each in images.pixels)


def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    for name, told in {"cut": "not readable as a picture", "empty": "not a picture", "huge": "too large"}.items():
        save_pictures(tmp_path / name, ("ant", "bee"), 5)
        for number in range(5):  # every one, as the roles are drawn by chance
            file = tmp_path / name / "bee" / f"{number}.png"
            file.write_bytes({"cut": file.read_bytes()[:400], "empty": b""}.get(name, file.read_bytes()))
        data = open_folder(tmp_path / name)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200 if name == "huge" else 10**6)
        for read in (lambda data=data: data.train(None, 0), data.validation, data.test):
            with pytest.raises(SpecError, match=rf"data\.root: .*{name}/\w+/\d\.png' given; .*{told}"):
                read()


def test_a_listed_picture_that_is_missing_is_named(tiny):
    data = open_tiny(tiny)
    for path in (tiny / "val" / "images").iterdir():
        path.unlink()
    with pytest.raises(SpecError, match=r"val/images/n\d\d\.JPEG' given; there is no such file"):
        data.validation()
    with pytest.raises(SpecError, match=r"val/images/n\d\d\.JPEG' given; cannot be read"):
        _ = data.fingerprint


def test_tinyimagenet_with_something_missing(tiny):
    annotations = tiny / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    for text, told in {"": "too few", "n10.JPEG\n": "every line needs"}.items():
        annotations.write_text(text)
        with pytest.raises(SpecError, match=told):
            open_tiny(tiny)
    annotations.write_text(f"\n{whole}\n\n")
    assert len(open_tiny(tiny).validation()) == 4
    for path in (tiny / "train" / "n2" / "images").iterdir():
        path.unlink()
    with pytest.raises(SpecError, match="n2/images' given; no images found"):
        open_tiny(tiny)
    (tiny / "train" / "n2" / "images").rmdir()
    with pytest.raises(SpecError, match="n2/images' given; no images found"):
        open_tiny(tiny)
    (tiny / "wnids.txt").write_text("\n")
    with pytest.raises(SpecError, match="names no classes"):
        open_tiny(tiny)


# -- what a data set is known by ---------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_content_wherever_it_lies(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        save_pictures(tmp_path / "here" / split, ("ant", "bee"), 3, seed=number)
        save_pictures(tmp_path / "there" / "deeper" / split, ("ant", "bee"), 3, seed=number)
    seen = {open_folder(tmp_path / "here").fingerprint}
    assert open_folder(tmp_path / "there").fingerprint in seen
    for split in ("train", "val", "test"):
        file = tmp_path / "here" / split / "ant" / "1.png"
        content, times = file.read_bytes(), file.stat()
        file.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])  # as many bytes, and as old
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        seen.add(open_folder(tmp_path / "here").fingerprint)
        file.write_bytes(content)
    one, other = (tmp_path / "here" / "test" / name / "0.png" for name in ("ant", "bee"))
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1]), other.write_bytes(content[0])  # same pictures, other labels
    seen.add(open_folder(tmp_path / "here").fingerprint)
    assert len(seen) == 5


def test_a_digest_of_content_is_what_it_says(tmp_path):
    files = []
    for number in range(3 * image_files._BATCH + 1):
        (tmp_path / str(number)).write_bytes(b"x" * number)
        files.append((f"name {number}", tmp_path / str(number)))
    expected = hashlib.sha256()
    for number, (name, _) in enumerate(files):
        expected.update(f"{len(name)} {name}".encode() + hashlib.sha256(b"x" * number).digest())
    assert image_files.content_digest(files) == expected.hexdigest()
    assert image_files.content_digest([]) == hashlib.sha256().hexdigest()


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


FORMS = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (6, 10, 12, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]

def roles(items, **more):
    return {role: items() if callable(items) else items for role in ("train", "validation", "test")} | more

def hwc(): return roles(list(zip(PIXELS, LABELS)))
def pil(): return roles([(Image.fromarray(p), l) for p, l in zip(PIXELS, LABELS)])
def chw(): return roles(list(zip(PIXELS.transpose(0, 3, 1, 2), LABELS)))
def tensors(): return roles(TensorDataset(torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS)))
def tensors_hwc(): return roles(TensorDataset(torch.tensor(PIXELS), torch.tensor(LABELS)))
def subset(): return roles(Subset(TensorDataset(torch.tensor(PIXELS), torch.tensor(LABELS)), range(6)))
def rows(): return roles([{"image": p, "label": l} for p, l in zip(PIXELS, LABELS)])
def other_rows(): return roles([{"id": 7, "img": p, "target": l} for p, l in zip(PIXELS, LABELS)])
def lists(): return roles([[p, np.int64(l), "more"] for p, l in zip(PIXELS, LABELS)])
def generator(): return roles(lambda: ((p, l) for p, l in zip(PIXELS, LABELS)))
def zipped(): return roles(lambda: zip(PIXELS, LABELS))
def floats_of_whole_numbers(): return roles(list(zip(PIXELS, [0.0, 1.0, 2.0, 0.0, 1.0, 2.0])))
def words(): return roles(list(zip(PIXELS, ["ant", "bee", "cat"] * 2)))
def words_named(): return roles(list(zip(PIXELS, ["cat", "ant", "bee"] * 2)), classes=["cat", "ant", "bee"])
def names_by_number(): return roles(list(zip(PIXELS, LABELS)), classes={0: "a", 1: "b", 2: "c"})

class Streamed(IterableDataset):
    def __iter__(self): return iter(zip(PIXELS, LABELS))
    def __len__(self): return 6

def streamed(): return roles(Streamed())

class Targets:
    target_transform = None
    def __init__(self, targets, transform=None): self.targets, self.target_transform = targets, transform
    def __len__(self): return 6
    def __getitem__(self, i): return PIXELS[i], (self.target_transform or int)(self.targets[i])

def targets(): return roles(Targets(torch.tensor(LABELS)))
def turned_targets(): return roles(Targets([2, 1, 0, 2, 1, 0], lambda label: 2 - label))

def grey(): return roles(list(zip(PIXELS[:, :, :, 0], LABELS)))
def grey_last(): return roles(list(zip(PIXELS[:, :, :, :1], LABELS)))
def grey_first(): return roles(list(zip(torch.tensor(PIXELS[:, None, :, :, 0]), LABELS)))

def loader(): return roles(DataLoader(TensorDataset(torch.tensor(PIXELS), torch.tensor(LABELS)), batch_size=2))
def nothing(): return roles(None)
def spent():
    once = iter(list(zip(PIXELS, LABELS)))
    return roles(once)
def columns(): return roles({"image": PIXELS, "label": LABELS})
def pixels_only(): return roles(list(PIXELS[:, :, :, 0] > 300))
def numbers(): return roles([1, 2, 3])
def nameless(): return roles([{"photo": PIXELS[0], "label": 0}])
def unlabelled(): return roles([{"image": PIXELS[0], "caption": "ant"}])
def scaled(): return roles([(PIXELS[0] / 255, 0)] * 3)
def whole_numbers(): return roles([(PIXELS[0].astype(np.int64), 0)] * 3)
def batch(): return roles([(PIXELS, 0)] * 3)
def path(): return roles([("a.jpg", 0)] * 3)
def lost(): return roles([(Image.new("F", (4, 4)), 0)] * 3)
def negative(): return roles(list(zip(PIXELS, [0, 1, -1])))
def beyond(): return roles(list(zip(PIXELS, [0, 1, 3])), classes=["a", "b", "c"])
def identifiers(): return roles(list(zip(PIXELS, [0, 1, 10**9])))
def fractions(): return roles(list(zip(PIXELS, [0, 1, 1.5])))
def missing(): return roles(list(zip(PIXELS, [0, 1, float("nan")])))
def onehot(): return roles(list(zip(PIXELS, np.eye(3))))
def mixed(): return roles(list(zip(PIXELS, [0, 1, "cat"])))
def strange_word(): return roles(list(zip(PIXELS, ["ant", "bee", "cot"])), classes=["ant", "bee", "cat"])
def twice(): return roles(list(zip(PIXELS, ["ant", "bee"])), classes=["ant", "bee", "ant"])
def one_text(): return roles(list(zip(PIXELS, LABELS)), classes="abc")
def two_means(): return roles(list(zip(PIXELS, LABELS)), mean=(0.5, 0.5))
def no_spread(): return roles(list(zip(PIXELS, LABELS)), std=(0.5, 0.5, 0))
def fewer_targets():
    items = Targets(LABELS)
    items.targets = LABELS[:4]
    return roles(items)

class Breaking:
    def __len__(self): return 3
    def __getitem__(self, index):
        if index == 2: raise OSError("disk on fire")
        return PIXELS[index], index

def breaking(): return roles(Breaking())

class Shaky:
    targets = LABELS
    def __len__(self): return 6
    def __getitem__(self, i): return rng.integers(0, 256, (8, 8, 3)).astype(np.uint8), LABELS[i]

def shaky(): return roles(Shaky())
"""


@pytest.fixture
def open_form(tmp_path):
    (tmp_path / "forms.py").write_text(FORMS)
    return lambda function: open_dataset(DataSettings(name=f"python:{tmp_path / 'forms.py'}:{function}", image_size=8))


def test_own_data_in_every_usual_form(open_form):
    plain = open_form("hwc")
    assert plain.classes == ("0", "1", "2")
    forms = ("pil chw tensors tensors_hwc subset rows other_rows lists generator zipped floats_of_whole_numbers "
             "streamed targets turned_targets words words_named names_by_number")  # fmt: skip
    for form in forms.split():
        data = open_form(form)
        for images, expected in ((data.train(None, 0), plain.train(None, 0)), (data.test(), plain.test())):
            assert [each.tobytes() for each in images.pixels] == [each.tobytes() for each in expected.pixels], form
            assert images.labels.tolist() == expected.labels.tolist() and images.labels.dtype == torch.int64, form
    assert open_form("words").classes == ("ant", "bee", "cat")
    assert open_form("words_named").classes == ("cat", "ant", "bee")
    assert open_form("names_by_number").classes == ("a", "b", "c")
    greys = [open_form(form).validation() for form in ("grey", "grey_last", "grey_first")]
    assert greys[0].pixels[0].shape == (8, 8) and as_bytes(greys[0]) == as_bytes(greys[1]) == as_bytes(greys[2])


@pytest.mark.parametrize(
    ("form", "told"),
    {
        "loader": "train: a DataLoader gives batches.*loader.dataset",
        "nothing": "train: pairs of .picture, label.*not NoneType",
        "spent": "validation: there are no images in it",
        "columns": "train: pairs .* not dict",
        "numbers": r"train\[0\]: pairs .* not int",
        "nameless": r"train\[0\]: has photo, label; one of image, img",
        "unlabelled": r"train\[0\]: has image, caption; one of label, target",
        "scaled": r"train\[0\]: float64 given; .*uint8 arrays or tensors .*ToTensor",
        "whole_numbers": r"train\[0\]: int64 given; .*uint8",
        "batch": r"train\[0\]: an array of shape \(6, 10, 12, 3\) given; ",
        "path": r"train\[0\]: str given; images are PIL images",
        "lost": r"train\[0\]: its pixels are floating-point",
        "negative": r"train\[2\]: its label is -1; class indices count from 0",
        "beyond": r"train\[2\]: its label is 3; classes has 0 to 2",
        "identifiers": r"train\[2\]: its label is 1000000000; class indices",
        "fractions": r"train\[2\]: its label is 1.5; a class index",
        "missing": r"train\[2\]: its label is nan; a class index",
        "onehot": r"train\[0\]: its label is array.*; a class index",
        "mixed": r"train\[2\]: its label is 'cat'; a class index, or a word everywhere",
        "strange_word": r"train\[2\]: its label is 'cot', which classes lacks; did you mean 'cat'",
        "twice": "classes has a name twice",
        "one_text": "classes is 'abc'; a list of names",
        "two_means": r"mean is \(0.5, 0.5\); three numbers",
        "no_spread": "std is .*; three numbers",
        "fewer_targets": "train: 6 images and 4 targets",
        "breaking": r"train\[2\]: reading it fails: OSError: disk on fire",
    }.items(),
)  # fmt: skip
def test_own_data_that_cannot_be_used_says_where_and_what_is_allowed(open_form, form, told):
    with pytest.raises(SpecError, match=told) as caught:
        open_form(form)
    assert str(caught.value).startswith("data.name: ")


def test_own_images_are_turned_upright_and_damaged_ones_named(tmp_path):
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.fromarray(np.repeat([[250, 0]], 16, axis=0).repeat(8, axis=1).astype(np.uint8)).save(file, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(file.getvalue())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    (tmp_path / "mine.py").write_text(
        "import io\nfrom PIL import Image\ndef data(root):\n    images = [(Image.open(io.BytesIO((root / "
        "name).read_bytes())), 0) for name in ('turned.png', 'cut.png')]\n"
        "    return dict(train=images, validation=images[:1], test=images[:1])\n"
    )
    data = open_dataset(DataSettings(name=f"python:{tmp_path / 'mine.py'}:data", image_size=16, root=tmp_path))
    (upright,) = data.validation().pixels
    assert (upright[:8] == 250).all() and (upright[8:] == 0).all()
    with pytest.raises(SpecError, match=r"train\[1\]: not readable as a picture"):
        data.train(None, 0)


def test_the_fingerprint_of_own_data_covers_images_and_labels_of_all_roles(tmp_path):
    source = (
        "import numpy as np\ndef data(root):\n    saved = np.load(root / 'data.npz')\n    return {role: "
        "list(zip(saved[role], saved[role + '_labels'])) for role in ('train', 'validation', 'test')}\n"
    )
    random = np.random.default_rng(0)
    roles = ("train", "validation", "test")
    arrays = {role: random.integers(0, 256, (30, 8, 8, 3)).astype(np.uint8) for role in roles}
    arrays |= {f"{role}_labels": random.integers(0, 3, 30) for role in roles}

    def fingerprint(folder="one", code=source, **change):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "mine.py").write_text(code)
        np.savez(tmp_path / folder / "data.npz", **{**arrays, **change})
        name = f"python:{tmp_path / folder / 'mine.py'}:data"
        return open_dataset(DataSettings(name=name, image_size=8, root=tmp_path / folder)).fingerprint

    assert fingerprint() == fingerprint() == fingerprint("two")
    seen = {fingerprint(), fingerprint(code=source + "# changed\n")}
    for role in roles:
        pixels, labels = arrays[role].copy(), arrays[f"{role}_labels"].copy()
        pixels[17, 3, 3, 1] ^= 1
        labels[17] = (labels[17] + 1) % 3
        seen |= {fingerprint(**{role: pixels}), fingerprint(**{f"{role}_labels": labels})}
    assert len(seen) == 8


def test_own_images_that_change_at_each_reading_are_left_out_of_the_fingerprint(open_form, caplog):
    with caplog.at_level(logging.WARNING, "splitsearch"):
        assert open_form("shaky").fingerprint == open_form("shaky").fingerprint
    assert "leave random transforms out" in caplog.text


def test_the_fingerprint_of_much_own_data_looks_at_a_part(open_form, monkeypatch):
    monkeypatch.setattr(own_data, "_SAMPLED", 4)
    assert open_form("hwc")._sampled("train") == [0, 1, 3, 5]


# -- where data is found -----------------------------------------------------------------------------------------------


@pytest.fixture
def located(write_study, study_dict, tmp_path):
    """The root that a study in the folder ``studies`` finds for a name."""
    (tmp_path / "studies").mkdir()

    def find(given, **more):
        study_dict["data"] = {"name": "imagefolder", "image_size": 16, "root": given, **more}
        return load_spec(write_study(study_dict, "studies/demo.yaml")).data.root

    return find


def test_only_the_data_or_its_archive_is_taken_for_it(located, tmp_path):
    (tmp_path / "studies" / "birds").mkdir()
    for name in ("birds.log", "birds.zip.part", "birds.yaml", "birdsong"):
        (tmp_path / name).write_text("")
    assert located("birds") == tmp_path / "studies" / "birds"
    (tmp_path / "birds.tgz").write_text("")
    assert located("birds") == tmp_path / "birds"


@pytest.mark.parametrize("name", ["x[1]", "**", "a*b?", "[!x", "data{1}"])
def test_a_name_is_no_pattern(located, tmp_path, name):
    for other in ("x1", "x1.zip", "ab.zip", "y.zip"):
        (tmp_path / other).write_text("")
    assert located(name) == Path(name)
    (tmp_path / "studies" / f"{name}.zip").write_text("")
    assert located(name) == tmp_path / "studies" / name
    (tmp_path / "studies" / f"{name}.zip").unlink()
    save_pictures(tmp_path / name, ("ant", "bee"), 5)
    assert located(name) == tmp_path / name and len(open_folder(located(name)).train(None, 0)) == 6


@pytest.mark.parametrize("key", ["data.root", "data.name", "model.weights", "model.name"])
def test_an_unknown_user_is_an_error_that_says_so(write_study, study_dict, key):
    section, name = key.split(".")
    given = "~no-such-user-here/x.py"
    study_dict[section][name] = f"python:{given}:function" if name == "name" else given
    with pytest.raises(SpecError, match="no such user") as caught:
        load_spec(write_study(study_dict))
    assert caught.value.key == key and given in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_not_there(located, name):
    with pytest.raises(SpecError, match="no such folder or archive"):
        open_folder(located(name))


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


# -- images with boxes -------------------------------------------------------------------------------------------------

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
    assert not list((own_cache / "downloads").glob("[!.]*"))


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_the_upright_picture(tmp_path, orientation):
    file = squares.write(tmp_path, train=2, val=2)
    turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
             5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
             8: Image.Transpose.ROTATE_270}  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    for path in tmp_path.rglob("*.png"):
        with Image.open(path) as upright:
            stored = upright.transpose(turns[orientation]) if orientation > 1 else upright.copy()
        stored.save(path, exif=exif)
        assert size_of(path) == (128, 72)
    data = open_dataset(DataSettings(name="yolo", image_size=128, root=file))
    images = data.train(None, 0)
    assert images.sizes == [(128, 72)] * 2
    for number, pixels in enumerate(images.pixels):
        for label, colour in enumerate([(200, 40, 40), (40, 200, 40)]):
            row = images.labels[(images.labels[:, 0] == number) & (images.labels[:, 1] == label)][0]
            left, top, right, bottom = (round(value) for value in row[2:6].tolist())
            assert (pixels == colour).all(axis=2).sum() == (right - left) * (bottom - top)
            assert (pixels[top:bottom, left:right] == colour).all()
