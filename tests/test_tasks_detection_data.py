"""Data sets of images with boxes as they come in real life: ultralytics' layout, Pascal VOC's, and what both share."""

from pathlib import Path

import numpy as np
import pytest
import squares
import torch
import yaml
from data_folders import ANNOTATION, voc_folder
from PIL import Image, UnidentifiedImageError

from evaluators.settings import DataSettings
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection_data import halves, size_of
from spaces.errors import SpecError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "tiny-imagenet-50.tar.gz"
WIDTH, HEIGHT = 60, 30
BOX = """<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>
<ymax>{box[3]}</ymax></bndbox></object>"""


def blank(file, value=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), value, np.uint8)).save(file)


# -- ultralytics' layout -----------------------------------------------------------------------------------------------


def yolo(folder, labels="0 0.5 0.5 0.2 0.4\n", **said):
    """Four images of each role, all with the same labels."""
    for number in range(4):
        for role in ("train", "val"):
            blank(folder / "images" / role / f"{number}.jpg", 10 * number)
            file = folder / "labels" / role / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(labels)
    said = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **said}
    (folder / "data.yaml").write_text(yaml.safe_dump({key: value for key, value in said.items() if value is not None}))
    return folder / "data.yaml"


def open_yolo(file):
    return open_dataset(DataSettings(name="yolo", root=file, image_size=32))


def boxes_of(data):
    """Class and corners of the boxes of the first training image."""
    files = data.train(None, 0).pixels.files
    first = min(files, key=lambda file: file.name)
    return [(thing.name, [round(corner, 3) for corner in thing.corners]) for thing in data.things(first)]


@pytest.mark.parametrize(
    ("row", "name", "corners"),
    [
        ("1 0.5 0.5 0.2 0.4", "dog", [24, 9, 36, 21]),
        ("1.0 0.5 0.5 0.2 0.4", "dog", [24, 9, 36, 21]),
        ("1\t0.5  0.5 0.2 0.4  \r", "dog", [24, 9, 36, 21]),
        ("\ufeff1 0.5 0.5 0.2 0.4", "dog", [24, 9, 36, 21]),
        ("0 0.1 0.2 0.4 0.2 0.3 0.6", "cat", [6, 6, 24, 18]),  # a triangle
        ("0 0.1 0.2 0.4 0.2 0.4 0.6 0.1 0.6", "cat", [6, 6, 24, 18]),  # a rectangle's four corners
        ("0 0.95 0.5 0.2 1.004", "cat", [51, 0, 60, 30]),  # over the edge
        ("0 -0.004 0.5 0.1 0.2", "cat", [0, 12, 2.76, 18]),
    ],
)
def test_rows_of_labels_become_boxes(tmp_path, row, name, corners):
    assert boxes_of(open_yolo(yolo(tmp_path, labels=f"{row}\n\n"))) == [(name, corners)]


def test_boxes_drawn_backwards_are_counted_and_left_out(tmp_path):
    data = open_yolo(yolo(tmp_path, labels="0 0.5 0.5 -0.2 0.4\n1 0.5 0.5 0.2 0\n0 1.005 0.5 0.001 0.5\n"))
    assert data.degenerate_boxes == 8 * 3 and data.train(None, 0).labels.shape == (0, 7)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("-1 0.5 0.5 0.2 0.4", "class -1; names has the classes 0 to 1"),
        ("2 0.5 0.5 0.2 0.4", "class 2; names has the classes 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.4", "class 0.5; names has"),
        ("nan 0.5 0.5 0.2 0.4", "class nan; names has"),
        ("inf 0.5 0.5 0.2 0.4", "class inf; names has"),
        ("cat 0.5 0.5 0.2 0.4", "could not convert"),
        ("0 30 15 12 12", "30; shares of the picture's width and height are needed, from 0 to 1"),
        ("0 nan 0.5 0.2 0.4", "nan; shares"),
        ("0 0.5 0.5 inf 0.4", "inf; shares"),
        ("0 -0.2 0.5 0.2 0.4", "-0.2; shares"),
        ("0 0.1 0.2 0.4 0.2 0.3 -0.6", "-0.6; shares"),
        ("0 0.1 0.2 0.4 0.2 0.3 1.6", "1.6; shares"),
        ("0 0.5 0.5 0.2 0.4 0.9", "5 numbers after the class"),
        ("0 0.5 0.5", "2 numbers after the class"),
        ("0", "0 numbers after the class"),
    ],
)
def test_rows_that_are_no_boxes_are_named(tmp_path, row, told):
    file = yolo(tmp_path)
    (tmp_path / "labels" / "val" / "2.txt").write_text(f"0 0.5 0.5 0.2 0.4\n\n{row}\n")
    with pytest.raises(SpecError) as caught:
        open_yolo(file)
    said = str(caught.value)
    assert f"{tmp_path}/labels/val/2.txt, line 3" in said and told in said and "data.root" in said


def test_a_box_that_is_written_twice_has_to_be_found_once(tmp_path):
    rows = "0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n0  0.5 0.5 0.2 0.4\n"
    assert [name for name, _ in boxes_of(open_yolo(yolo(tmp_path, labels=rows)))] == ["cat", "dog"]


def test_labels_of_poses_count_by_their_boxes(tmp_path):
    pose = "1 0.5 0.5 0.2 0.4 " + "0.5 0.5 2 " * 4
    assert boxes_of(open_yolo(yolo(tmp_path, labels=pose, kpt_shape=[4, 3]))) == [("dog", [24, 9, 36, 21])]


@pytest.mark.parametrize(
    "names", [["cat", "dog"], {0: "cat", 1: "dog"}, {"1": "dog", "0": "cat"}, {1: "dog", 0: "cat"}]
)
@pytest.mark.parametrize("count", [2, 2.0, "2", None])
def test_names_as_a_list_or_by_number(tmp_path, names, count):
    assert open_yolo(yolo(tmp_path, names=names, nc=count)).classes == ("cat", "dog")


def test_names_of_more_than_ten_classes_are_in_the_order_of_their_numbers(tmp_path):
    data = open_yolo(yolo(tmp_path, names={str(number): f"n{number}" for number in range(12)}))
    assert data.classes == tuple(f"n{number}" for number in range(12))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("person", "a list is needed"),
        ({1: "cat", 2: "dog"}, "has the keys 1, 2; 0 to 1 are needed"),
        ({0: "cat", "0": "dog"}, "has the keys 0, 0; 0 to 1 are needed"),
        ({"cat": 0, "dog": 1}, "has the keys cat, dog"),
        (["cat", "cat"], "'cat' more than once"),
        (["cat", "dog", "cow"], "names has 3 classes, and nc says 2"),
    ],
)
def test_names_that_cannot_be_right(tmp_path, names, told):
    with pytest.raises(SpecError, match=told):
        open_yolo(yolo(tmp_path, names=names, nc=2))


def test_a_number_that_stands_twice_in_names_is_named(tmp_path):
    file = yolo(tmp_path)
    file.write_text("train: images/train\nval: images/val\nnames:\n  0: cat\n  0: dog\n")
    with pytest.raises(SpecError, match=r"data\.yaml.*'0' stands twice"):
        open_yolo(file)


def test_the_layout_that_roboflow_writes(tmp_path):
    """Its paths go up from the YAML file, and yet lie beside it, as ultralytics reads them."""
    for role in ("train", "valid", "test"):
        for number in range(2):
            blank(tmp_path / role / "images" / f"{number}_jpg.rf.0a.JPG")
            labels = tmp_path / role / "labels" / f"{number}_jpg.rf.0a.txt"
            labels.parent.mkdir(exist_ok=True)
            labels.write_text("0 0.5 0.5 0.2 0.4")
    said = {"train": "../train/images", "val": "../valid/images", "test": "../test/images", "nc": 1, "names": ["cat"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(said))
    data = open_yolo(tmp_path / "data.yaml")
    assert [len(each.labels) for each in (data.train(None, 0), data.validation(), data.test())] == [2, 2, 2]
    inner = tmp_path / "train"
    (tmp_path / "data.yaml").rename(inner / "data.yaml")  # where the paths are right as they stand
    assert len(open_yolo(inner / "data.yaml").test()) == 2


def test_a_home_folder_in_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    yolo(tmp_path / "birds")
    study = tmp_path / "elsewhere"
    study.mkdir()
    file = yolo(study / "rest", path="~/birds")
    assert open_yolo(file).train(None, 0).pixels.files[0].is_relative_to(tmp_path / "birds")
    with pytest.raises(SpecError, match="path is ~nobody-of-this-name/birds"):
        open_yolo(yolo(study / "rest", path="~nobody-of-this-name/birds"))


def test_what_operating_systems_leave_behind_is_no_image(tmp_path):
    file = yolo(tmp_path / ".hidden")  # of folders above the data nothing is asked
    for name in ("._0.jpg", ".thumbs/0.jpg", "__MACOSX/0.jpg"):
        (tmp_path / ".hidden" / "images" / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / ".hidden" / "images" / "train" / name).write_bytes(b"no picture")
    assert len(open_yolo(file).train(None, 0)) == 4


def test_images_without_labels_show_nothing_and_a_folder_that_is_missing_is_named(tmp_path):
    file = yolo(tmp_path)
    (tmp_path / "labels" / "train" / "0.txt").unlink()
    (tmp_path / "labels" / "train" / "1.txt").write_text("\n")
    assert len(open_yolo(file).train(None, 0).labels) == 2
    (tmp_path / "labels" / "train").rename(tmp_path / "labels" / "Train")
    with pytest.raises(SpecError, match=r"labels/train is missing, where the labels of .*images/train belong"):
        open_yolo(file)
    (tmp_path / "labels" / "train").mkdir()
    with pytest.raises(SpecError, match=r"no image of train has a file of labels; looked for .*labels/train/0\.txt"):
        open_yolo(file)


def test_a_second_folder_of_images_needs_labels_too(tmp_path):
    yolo(tmp_path)
    for number in range(2):
        blank(tmp_path / "more" / "images" / f"{number}.jpg")
    file = yolo(tmp_path, train=["images/train", "more/images"])
    with pytest.raises(SpecError, match="more/labels is missing"):
        open_yolo(file)
    (tmp_path / "more" / "labels").mkdir()
    assert len(open_yolo(file).train(None, 0)) == 6


def test_lists_of_images_are_read_as_people_write_them(tmp_path):
    file = yolo(tmp_path, train="list.txt")
    (tmp_path / "list.txt").write_bytes(
        b"\xef\xbb\xbf./images/train/0.jpg\r\n\r\n./images/train/1.jpg  \r\n./images/train/0.jpg\r\n"
    )
    assert len(open_yolo(file).train(None, 0)) == 2
    (tmp_path / "list.txt").write_text("images/train/0.jpg\nimages/train/9.jpg\n")
    with pytest.raises(SpecError, match=r"list\.txt.*lists .*9\.jpg, which is not there"):
        open_yolo(file)


def open_as_ultralytics(plain):
    def image_open(*given, **more):
        try:
            return plain(*given, **more)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'pi_heif'") from None

    return image_open


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
@pytest.mark.parametrize("patched", [False, True])
def test_a_corrupt_picture_is_named(tmp_path, monkeypatch, content, patched):
    """ultralytics replaces Pillow's function when it is imported, and then wants a package for what is no picture."""
    if patched:
        monkeypatch.setattr(Image, "open", open_as_ultralytics(Image.open))
    file = yolo(tmp_path)
    picture = tmp_path / "images" / "train" / "2.jpg"
    picture.write_bytes(picture.read_bytes()[:-40] if content == "cut" else content)
    with pytest.raises(SpecError, match=r"2\.jpg.*(not a picture|not readable)"):
        list(open_yolo(file).train(None, 0).pixels)


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


# -- Pascal VOC's layout -----------------------------------------------------------------------------------------------


def devkit(root, images=("1", "2", "3", "4", "5", "6"), ending=".jpg", box=(11, 6, 30, 20)):
    folder = root / "VOCdevkit" / "VOC2007"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for name in images:
        blank(folder / "JPEGImages" / f"{name}{ending}")
        text = f"<annotation>{BOX.format(name='dog', box=box)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    for number, role in enumerate(("train", "val", "test")):
        (folder / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(images[number::3]) + "\n")
    return folder


def open_voc(root):
    return open_dataset(DataSettings(name="voc", root=root, image_size=32))


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".jpeg", ".png", ".PNG"])
def test_pictures_of_any_ending(tmp_path, ending):
    devkit(tmp_path, ending=ending)
    images = open_voc(tmp_path).train(None, 0)
    assert sorted(file.name for file in images.pixels.files) == [f"1{ending}", f"4{ending}"]
    assert images.labels[0].tolist() == [0, 11, 10, 5, 30, 20, 0] and images.pixels[0].shape == (16, 32, 3)


def test_of_several_pictures_of_one_name_the_jpg_counts(tmp_path):
    folder = devkit(tmp_path)
    blank(folder / "JPEGImages" / "1.JPEG")
    blank(folder / "JPEGImages" / "1.bmp")
    assert {file.name for file in open_voc(tmp_path).train(None, 0).pixels.files} == {"1.jpg", "4.jpg"}


def test_lists_as_people_write_them(tmp_path):
    folder = devkit(tmp_path, images=("one", "my photo", "my photo 2", "v1.5", "three", "8", "9"))
    for role, name in (("val", "8"), ("test", "9")):
        (folder / "ImageSets" / "Main" / f"{role}.txt").write_text(name)
    written = b"\xef\xbb\xbfone.jpg\r\n\r\n  one  \r\nmy photo\r\nmy photo 2\r\nv1.5 -1\r\nthree  1\r\n"
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(written)
    images = open_voc(tmp_path).train(None, 0)
    assert sorted(file.stem for file in images.pixels.files) == ["my photo", "my photo 2", "one", "three", "v1.5"]


def test_what_is_listed_and_missing_is_named(tmp_path):
    folder = devkit(tmp_path)
    (folder / "Annotations" / "2.xml").unlink()
    with pytest.raises(SpecError, match=r"2\.jpg.*listed for validation.*Annotations/2\.xml is missing"):
        open_voc(tmp_path)
    (folder / "JPEGImages" / "1.jpg").unlink()
    with pytest.raises(SpecError, match=r"train\.txt.*lists '1', and JPEGImages beside it has no picture of that name"):
        open_voc(tmp_path)


@pytest.mark.parametrize("box", [("nan", 6, 30, 20), (11, "-inf", 30, 20), (11, 6, "inf", 20)])
def test_boxes_that_are_no_numbers_are_named(tmp_path, box):
    devkit(tmp_path, box=box)
    with pytest.raises(SpecError, match=r"1\.xml.*not readable as a VOC annotation: the box of 'dog' is"):
        open_voc(tmp_path)


@pytest.mark.parametrize("box", [(11, 6, 75, 20), (11, 6, 30, 200), (-20, 6, 30, 20), (100, 6, 110, 20)])
def test_boxes_outside_their_picture_are_named(tmp_path, box):
    devkit(tmp_path, box=box)
    with pytest.raises(SpecError, match=r"1\.xml.*the box of 'dog' .* lies outside its picture of 60x30 pixels"):
        open_voc(tmp_path).train(None, 0)


def test_boxes_counted_from_zero_are_let_pass(tmp_path):
    devkit(tmp_path, box=(0, 0, 61, 30))
    assert open_voc(tmp_path).train(None, 0).labels[0].tolist() == [0, 11, -1, -1, 61, 30, 0]


def test_what_operating_systems_leave_behind_is_no_part_of_voc(tmp_path):
    folder = devkit(tmp_path)
    (folder / "Annotations" / "._1.xml").write_bytes(b"\x00\x05\x16\x07")
    (folder / "JPEGImages" / "._1.jpg").write_bytes(b"\x00\x05\x16\x07")
    devkit(tmp_path / "__MACOSX", images=("7", "8", "9"))
    assert [len(each) for each in (open_voc(tmp_path).train(None, 0), open_voc(tmp_path).test())] == [2, 2]


def test_voc_reads_boxes_and_drops_those_without_area(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (right, difficult) in enumerate([(20, 0), (1, 0), (15, 1), (40, 0)]):
        Image.fromarray(np.zeros((30, 60, 3), np.uint8)).save(folder / "JPEGImages" / f"{number}.jpg")
        (folder / "Annotations" / f"{number}.xml").write_text(ANNOTATION.format(right=right, difficult=difficult))
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


# -- what both share ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "borders"), [(2, 1), (5, 1), (19, 1), (40, 3), (100, 9), (359, 9), (5000, 9)])
def test_halves_keep_neighbours_together(count, borders):
    one, other = halves(list(range(count)))
    assert sorted(one + other) == list(range(count)) and one == sorted(one) and other == sorted(other)
    assert abs(len(one) - len(other)) <= max(1, borders // 2 + 1)
    mine = np.isin(np.arange(count), one)
    assert (mine[1:] != mine[:-1]).sum() == borders
    runs = np.diff(np.flatnonzero(np.concatenate([[True], mine[1:] != mine[:-1], [True]])))
    assert count < 20 or runs.min() >= 10
    assert halves([]) == ([], [])


def test_one_list_for_two_roles_is_halved_in_runs(tmp_path):
    folder = devkit(tmp_path, images=tuple(f"{number:03}" for number in range(40)))
    lists = folder / "ImageSets" / "Main"
    (lists / "val.txt").unlink()
    (lists / "test.txt").write_text("\n".join(f"{number:03}" for number in range(20)) + "\n")
    (lists / "train.txt").write_text("\n".join(f"{number:03}" for number in range(20, 40)) + "\n")
    data = open_voc(tmp_path)
    assert [int(file.stem) for file in data.validation().pixels.files] == list(range(10))
    assert [int(file.stem) for file in data.test().pixels.files] == list(range(10, 20))


def roles_of(data):
    return [[file.stem for file in role.pixels.files] for role in (data.validation(), data.test())]


def test_val_that_is_test_again_is_halved(tmp_path):
    """As in ultralytics' own VOC.yaml, whose val and test are the pictures of one list."""
    assert roles_of(open_yolo(yolo(tmp_path / "yolo", test=["images/val"]))) == [["0", "1"], ["2", "3"]]
    folder = devkit(tmp_path)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("3\n6\n")
    assert roles_of(open_voc(tmp_path)) == [["3"], ["6"]]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"val": "images/train"}, "train/0.jpg' given; is listed for train and for validation .and 1 more.; each"),
        ({"test": "list.txt"}, "val/1.jpg' given; is listed for validation and for test; each image may serve one"),
    ],
)
def test_an_image_of_two_roles_is_named(tmp_path, said, told):
    yolo(tmp_path)
    (tmp_path / "list.txt").write_text("images/val/1.jpg\n")
    with pytest.raises(SpecError, match=told):
        open_yolo(yolo(tmp_path, **said))


def test_a_voc_image_of_two_roles_is_named(tmp_path):
    folder = devkit(tmp_path)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n4\n")
    with pytest.raises(SpecError, match=r"2\.jpg' given; is listed for train and for validation; each image"):
        open_voc(tmp_path)


def test_lists_of_its_own_stay_as_they_are(tmp_path):
    devkit(tmp_path)
    data = open_voc(tmp_path)
    assert [file.stem for file in data.validation().pixels.files] == ["2", "5"]
    assert [file.stem for file in data.test().pixels.files] == ["3", "6"]


def changed_pixel(folder):
    blank(folder / "images" / "train" / "3.jpg", 31)


def changed_box(folder):
    (folder / "labels" / "val" / "0.txt").write_text("0 0.5 0.5 0.2 0.39\n")


def changed_test_picture(folder):
    blank(folder / "images" / "val" / "3.jpg", 31)


def changed_name(folder):
    file = folder / "data.yaml"
    file.write_text(file.read_text().replace("dog", "cow"))


@pytest.mark.parametrize("change", [changed_pixel, changed_box, changed_test_picture, changed_name])
def test_the_fingerprint_is_of_the_content(tmp_path, change):
    file = yolo(tmp_path / "one")
    same = open_yolo(yolo(tmp_path / "moved")).fingerprint
    assert open_yolo(file).fingerprint == same
    change(tmp_path / "one")
    assert open_yolo(file).fingerprint != same


def test_an_annotation_changed_between_two_openings_is_read_again(tmp_path):
    folder = devkit(tmp_path)
    before = open_voc(tmp_path).fingerprint
    (folder / "Annotations" / "1.xml").write_text(
        f"<annotation>{BOX.format(name='cat', box=(11, 6, 30, 20))}</annotation>"
    )
    assert open_voc(tmp_path).fingerprint != before


def test_one_class_is_a_data_set_too(tmp_path):
    file = squares.write(tmp_path, train=2, val=2, classes=1)
    data = open_yolo(file)
    assert data.classes == ("red",) and data.train(None, 0).labels[:, 1].tolist() == [0, 0]


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
