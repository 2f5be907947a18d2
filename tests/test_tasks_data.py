"""Data sets: their roles, TinyImageNet's layout, what a data set is known by and where it is found."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from data_folders import as_bytes, open_folder, open_tiny, save_pictures, tiny_imagenet

from evaluators.settings import DataSettings
from evaluators.tasks import image_files
from evaluators.tasks.data import LabelledImages, divide, few_of
from evaluators.tasks.datasets import open_dataset
from search.spec import load_spec
from spaces.errors import SpecError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "tiny-imagenet-50.tar.gz"


# -- roles -------------------------------------------------------------------------------------------------------------


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


def test_dividing_stays_as_it_was():
    labels = np.repeat(np.arange(3), (10, 3, 1))
    carved = [part.tolist() for part in divide(labels, (0.6, 0.2, 0.2), 2)]
    assert carved == [[0, 2, 5, 6, 7, 9, 11, 12, 13], [3, 4], [1, 8, 10]]  # as of the first release
    assert [part.tolist() for part in divide(np.empty(0, np.int64), (0.5, 0.5), 2)] == [[], []]


# -- TinyImageNet's layout ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    return tiny_imagenet(tmp_path / "tiny")


def test_tinyimagenet_reads_its_layout(tiny):
    data = open_tiny(tiny)
    assert data.classes == ("n1", "n2") and len(data.train(None, 0)) == 12
    halves = data.validation(), data.test()
    assert [torch.bincount(half.labels).tolist() for half in halves] == [[2, 2], [2, 2]]
    assert not as_bytes(halves[0]) & as_bytes(halves[1])
    assert halves[0].pixels[0].shape == (64, 64) and halves[0].inputs(data.picture).shape == (4, 3, 64, 64)


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


def test_clutter_is_left_out_of_tinyimagenet(tiny, tmp_path):
    before = open_tiny(tiny).fingerprint
    for name in ("__MACOSX/x", "train/n1/images/._n1_0.JPEG", "train/.DS_Store"):
        (tiny / name).parent.mkdir(exist_ok=True)
        (tiny / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "outer" / "__MACOSX").mkdir(parents=True)
    tiny.rename(tmp_path / "outer" / "tiny")
    for root in (tmp_path / "outer", tmp_path / "outer" / "tiny"):
        assert len(open_tiny(root).train(None, 0)) == 12 and open_tiny(root).fingerprint == before


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


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_real_tinyimagenet_50():
    data = open_tiny(SHARED)
    assert len(data.classes) == 50
    validation, test = data.validation(), data.test()
    assert len(validation) == len(test) == 1250
    assert torch.bincount(validation.labels).tolist() == [25] * 50
    assert torch.bincount(data.train(4000, 0).labels).tolist() == [80] * 50


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
