"""Class folders: which lists and pictures are read, and what is told of the rest."""

import logging
import zipfile

import numpy as np
import pytest
import torch
from data_folders import as_bytes, open_folder, save_pictures
from PIL import Image

from spaces.errors import SpecError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
