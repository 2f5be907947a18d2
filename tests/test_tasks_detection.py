"""Detection: boxes, letterbox, loss and mean average precision, against ultralytics' and OpenCV's own."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import squares
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

pytest.importorskip("ultralytics")

from evaluators.edge import boxes, picture, wire
from evaluators.edge.errors import PayloadError
from evaluators.edge.letterbox import Letterbox, letterboxed, resized
from evaluators.models.load import build
from evaluators.settings import BaselineSettings, DataSettings, ModelSettings
from evaluators.tasks.data import LabelledImages
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection import BoxCriterion, Detection, in_float
from evaluators.tasks.detection_data import ImageFiles, letterbox_format
from evaluators.training.uncut_detector import train_detector, yolo_layout
from spaces.errors import SpecError

SIZE = 96
SHAPES = [(500, 375), (375, 500), (333, 500), (640, 480), (60, 80), (320, 320), (1000, 31)]  # width, height


def network(classes=3):
    return build(ModelSettings(name="ultralytics/yolov10n", num_classes=classes)).network


def photograph(width, height, seed=0):
    """Smooth noise, as sharp as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


# -- the letterbox -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("size", [320, 416])
def test_the_letterbox_is_that_of_ultralytics(width, height, size):
    """Its loader scales with OpenCV, its LetterBox pads."""
    import cv2
    from ultralytics.data.augment import LetterBox

    pixels = np.asarray(photograph(width, height))
    scale = size / max(width, height)
    wide, high = min(math.ceil(width * scale), size), min(math.ceil(height * scale), size)
    scaled = cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_LINEAR) if scale != 1 else pixels
    expected = LetterBox((size, size), scaleup=False)(image=scaled)
    found = letterboxed(pixels, size)
    assert found.shape == expected.shape == (size, size, 3)
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 2 and difference.mean() < 0.6  # OpenCV rounds its weights to 11 bits
    # Scaled down beforehand, as a device does it, the picture is the same.
    form = letterbox_format(size)
    assert np.array_equal(picture.to_input(picture.fit_picture(photograph(width, height), form), form)[0, 0] * 255,
                          found[..., 0].astype(np.float32))  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_boxes_find_back_to_the_picture(width, height):
    place = Letterbox(width, height, 320)
    corners = np.array([[0, 0, width, height], [width / 4, height / 8, width / 2, height / 2]], np.float32)
    assert np.allclose(place.to_picture(place.to_square(corners)), corners, atol=1e-3)
    assert np.allclose(place.to_square(corners)[0], [place.left, place.top, place.left + place.width,
                                                     place.top + place.height])  # fmt: skip
    assert place.to_picture(np.array([[-50, -50, 900, 900]])).tolist() == [[0, 0, width, height]]


def test_pictures_are_not_cropped_for_a_letterbox_nor_enlarged():
    form = letterbox_format(320)
    assert picture.fit_picture(photograph(640, 480), form).shape == (240, 320, 3)
    assert picture.fit_picture(photograph(60, 80), form).shape == (80, 60, 3)
    grey = photograph(640, 480).convert("L")
    assert picture.fit_picture(grey, form).shape == (240, 320)
    assert picture.to_input(picture.fit_picture(grey, form), form).shape == (1, 3, 320, 320)
    assert resized(grey, 640, 480) is grey


# -- payloads of a detector --------------------------------------------------------------------------------------------


def test_a_payload_says_how_large_its_picture_was():
    levels = (wire.TensorLevels((2, 3, 3), np.array([-1, -1]), np.array([1, 1])),)
    plain, with_size = (
        wire.WireFormat(bits=2, tensors=levels),
        wire.WireFormat(bits=2, tensors=levels, carries_image_size=True),
    )
    values = [np.random.default_rng(0).uniform(-1, 1, (2, 3, 3)).astype(np.float32)]
    payload = wire.encode(values, with_size, (640, 480))
    assert len(payload) == len(wire.encode(values, plain)) + 4 and wire.HEADER_BYTES + 4 <= 16
    assert wire.picture_size(payload, with_size) == (640, 480)
    assert np.array_equal(wire.decode(payload, with_size)[0], wire.decode(wire.encode(values, plain), plain)[0])
    assert wire.WireFormat.from_dict(with_size.to_dict()).fingerprint == with_size.fingerprint != plain.fingerprint
    with pytest.raises(PayloadError, match="another configuration"):
        wire.decode(payload, plain)
    with pytest.raises(PayloadError, match="how large"):
        wire.picture_size(wire.encode(values, with_size), with_size)
    with pytest.raises(PayloadError, match="70000x480; up to 65535"):
        wire.encode(values, with_size, (70_000, 480))
    with pytest.raises(PayloadError, match="too few"):
        wire.decode(payload[:12], with_size)
    with pytest.raises(PayloadError, match="checksum"):
        wire.picture_size(payload[:10] + b"\0" + payload[11:], with_size)


def test_a_name_is_drawn_also_where_the_font_has_not_its_letters(monkeypatch):
    """As with a Pillow before 10.1."""
    monkeypatch.setattr(ImageDraw.ImageDraw, "font", ImageFont.load_default_imagefont())
    found = [boxes.Box(0, 0.9, 20.0, 20.0, 80.0, 80.0)]
    white = Image.new("RGB", (100, 100), "white")
    drawn, asked = (np.asarray(boxes.drawn(white, found, (name,))) for name in ("собака", "??????"))
    assert np.array_equal(drawn, asked) and (drawn != 255).any()


def test_boxes_are_in_the_pictures_pixels_and_can_be_drawn():
    answer = np.array([[80, 40, 240, 280, 0.5, 1], [0, 40, 160, 160, 0.9, 0], [0, 0, 9, 9, 0.1, 0]], np.float32)
    found = boxes.boxes_of(answer, Letterbox(640, 480, 320))
    assert [(box.label, box.score) for box in found] == [(0, 0.9), (1, 0.5)]
    assert (found[1].left, found[1].top, found[1].right, found[1].bottom) == (160, 0, 480, 480)
    assert (
        found[0].to_dict(("cat", "dog"))["name"] == "cat" and len(boxes.boxes_of(answer, Letterbox(9, 9, 320), 0)) == 3
    )
    white = Image.new("RGB", (640, 480), "white")
    drawn = np.asarray(boxes.drawn(white, found, ("cat", "dog")))
    assert drawn.shape == (480, 640, 3) and (drawn[300, 160] != 255).any() and (drawn[300, 300] == 255).all()


# -- mean average precision --------------------------------------------------------------------------------------------


def in_memory(rows, sizes):
    blank = [np.zeros((height, width, 3), np.uint8) for width, height in sizes]
    return LabelledImages(blank, torch.tensor(rows, dtype=torch.float32).reshape(-1, 7), sizes)


def answers_of(*images, room=10):
    """Each a list of rows (left, top, right, bottom, score, class)."""
    found = torch.zeros(len(images), room, 6)
    for number, rows in enumerate(images):
        found[number, : len(rows)] = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return found


TASK = Detection(None, letterbox_format(SIZE))
SQUARE = [(SIZE, SIZE)] * 2


def test_perfect_and_useless_answers():
    images = in_memory([[0, 0, 10, 10, 50, 50, 0], [1, 1, 20, 20, 90, 60, 0]], SQUARE)
    right = answers_of([[10, 10, 50, 50, 0.9, 0]], [[20, 20, 90, 60, 0.8, 1]])
    perfect = TASK.judge(right, images)
    assert perfect.accuracy == pytest.approx(0.995, abs=0.006) and perfect.metrics["mAP50"] > 0.99
    swapped = right.clone()
    swapped[..., 5] = 1 - swapped[..., 5]
    nothing = TASK.judge(swapped, images)
    assert nothing.accuracy == 0
    drop, (low, high) = TASK.drop_pp(perfect, nothing)
    assert drop == pytest.approx(100 * perfect.accuracy) and low <= drop <= high
    assert TASK.drop_pp(perfect, perfect) == (0.0, (0.0, 0.0))
    assert TASK.agreement(right, right) == 1 and TASK.agreement(right, swapped) == 0
    assert TASK.judge(torch.zeros(2, 5, 6), images).accuracy == 0


def test_intervals_of_a_drop_have_width_unless_the_answers_are_the_same():
    count = 30
    images = in_memory([[i, 0, 10, 10, 50, 50, 0] for i in range(count)], SQUARE[:1] * count)
    right = [[[10, 10, 50, 50, 0.9, 0]] for _ in range(count)]
    surer = [[[10, 10, 50, 50, 0.8, 0]] for _ in range(count)]
    loose = [[[10, 10, 50, 40, 0.9, 0]] if i < 3 else boxes for i, boxes in enumerate(right)]
    judged = {name: TASK.judge(answers_of(*rows), images) for name, rows in
              {"right": right, "surer": surer, "loose": loose, "none": [[]] * count}.items()}  # fmt: skip
    assert TASK.drop_pp(judged["right"], TASK.judge(answers_of(*right), images)) == (0.0, (0.0, 0.0))
    unseen = 100 * 3.8415 / (count + 3.8415)  # what may be true of this share of images, and was met in none of 30
    assert TASK.drop_pp(judged["right"], judged["surer"]) == (0.0, pytest.approx((-unseen, unseen), rel=1e-4))
    drop, (low, high) = TASK.drop_pp(judged["right"], judged["none"])
    assert drop > 99 and low == pytest.approx(drop - unseen, rel=1e-4) and high == 100
    drop, (low, high) = TASK.drop_pp(judged["right"], judged["loose"])
    found = judged["right"].without_group - judged["loose"].without_group
    error = math.sqrt(19 / 20 * ((found - found.mean()) ** 2).sum())
    assert drop > 0 and (high - low) / 2 == pytest.approx(100 * 2.0930 * error, rel=1e-4)  # Student's t, 19 degrees
    alone = in_memory([[0, 0, 10, 10, 50, 50, 0]], SQUARE[:1])
    one, other = (TASK.judge(answers_of(rows[0]), alone) for rows in (right, surer))
    assert TASK.drop_pp(one, one) == (0.0, (0.0, 0.0)) and TASK.drop_pp(one, other) == (0.0, (-100.0, 100.0))


def test_looser_boxes_count_at_lower_thresholds_alone():
    images = in_memory([[0, 0, 0, 0, 80, 80, 0]], SQUARE[:1])
    loose = TASK.judge(answers_of([[0, 0, 80, 60, 0.9, 0]]), images)  # three quarters of the area
    assert loose.metrics["mAP50"] > 0.99 and loose.accuracy == pytest.approx(0.6 * loose.metrics["mAP50"], abs=0.01)


def test_difficult_boxes_count_neither_way():
    easy, hard = [0, 0, 10, 10, 50, 50, 0], [0, 0, 60, 60, 90, 90, 1]
    both = answers_of([[60, 60, 90, 90, 0.95, 0], [10, 10, 50, 50, 0.9, 0]])
    one = answers_of([[10, 10, 50, 50, 0.9, 0]])
    with_hard = in_memory([easy, hard], SQUARE[:1])
    assert TASK.judge(both, with_hard).accuracy == TASK.judge(one, with_hard).accuracy > 0.99
    assert TASK.judge(both, in_memory([easy], SQUARE[:1])).accuracy < 0.6  # a surer wrong box
    # At thresholds above its overlap with the difficult box, the same answer is wrong.
    near = answers_of([[60, 60, 90, 84, 0.95, 0], [10, 10, 50, 50, 0.9, 0]])
    assert TASK.judge(near, with_hard).metrics["mAP50"] > 0.99 > TASK.judge(near, with_hard).accuracy


# -- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_ultralytics_own():
    net = network()
    images = in_memory([[0, 0, 10, 10, 50, 50, 0], [1, 1, 20, 20, 90, 60, 0], [1, 2, 0, 0, 30, 30, 1]], SQUARE)
    torch.manual_seed(0)
    criterion = Detection(net, letterbox_format(SIZE)).criterion(images)
    inputs = torch.rand(2, 3, SIZE, SIZE)
    with criterion.learning(net, 0.0):
        output = net(inputs)
    found = criterion(output, torch.arange(2), 1.0)  # without a teacher there is nothing to distil
    theirs = net.init_criterion()
    theirs.o2m, theirs.o2o = 0.1, 0.9
    batch = {
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[30, 30, 40, 40], [55, 40, 70, 40]]) / SIZE,
    }
    expected = theirs(in_float(output[1]), batch)[0].sum() / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and len(criterion) == 2
    answering = net(inputs)  # by one head alone, which is all that is learned from then
    assert not answering[1]["one2many"] and torch.equal(answering[0], output[0])
    part = theirs.one2one.loss(in_float(output[1]["one2one"]), batch)[0].sum() / 2
    assert criterion(answering, torch.arange(2), 0.0).item() == pytest.approx(part.item(), rel=1e-5)
    none = in_memory([], SQUARE)
    assert torch.isfinite(Detection(net, letterbox_format(SIZE)).criterion(none)(output, torch.arange(2), 0.0))


def test_a_detector_of_one_class_learns_and_answers():
    net = network(1)
    task = Detection(net, letterbox_format(SIZE))
    images = in_memory([[0, 0, 10, 10, 50, 50, 0], [1, 0, 20, 20, 90, 60, 0]], SQUARE)
    inputs = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    answers = net(inputs)[0].detach()
    assert answers.shape[2] == 6 and not answers[..., 5].any() and task.judge(answers, images).accuracy < 0.1
    criterion = task.criterion(images, task.teaching(net(inputs)))
    with criterion.learning(net, 0.5):
        criterion(net(inputs), torch.arange(2), 0.5).backward()
    gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    right = answers_of([[10, 10, 50, 50, 0.9, 0]], [[20, 20, 90, 60, 0.8, 0]])
    assert task.judge(right, images).accuracy == pytest.approx(0.995)


def test_distillation_is_zero_with_the_teacher_itself_and_pulls_towards_it():
    net, task = network(), Detection(network(), letterbox_format(SIZE))
    inputs = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    output = net(inputs)
    teacher = task.teaching(output)
    criterion = BoxCriterion(net, [torch.zeros(0, 6)] * 2, SIZE, teacher)
    assert criterion(output, torch.arange(2), 1.0).item() == pytest.approx(0, abs=2e-3)  # half precision
    raw = {name: value.detach().clone().requires_grad_() for name, value in output[1]["one2one"].items()
           if name != "feats"}  # fmt: skip
    with torch.no_grad():
        raw["scores"] += torch.randn_like(raw["scores"])
        raw["boxes"] += torch.randn_like(raw["boxes"])
    moved = (None, {"one2one": raw})
    before = criterion(moved, torch.arange(2), 1.0)
    before.backward()
    with torch.no_grad():
        for value in raw.values():
            value -= 1e-3 * functional.normalize(value.grad.flatten(), dim=0).view_as(value) * value.numel() ** 0.5
    assert 0 < criterion(moved, torch.arange(2), 1.0) < before


def test_edges_without_a_distribution_are_taught_too():
    net = network()
    scores, edges = torch.full((2, 3, 5), 4.0), torch.rand(2, 4, 5)
    criterion = BoxCriterion(net, [torch.zeros(0, 6)] * 2, SIZE, (edges, scores))
    same, moved = ({"one2one": {"boxes": edges + by, "scores": scores}} for by in (0.0, 0.5))
    assert criterion((None, same), torch.arange(2), 1.0).item() == pytest.approx(0, abs=1e-5)
    # Half a stride at every place, all of them equally sure.
    assert criterion((None, moved), torch.arange(2), 1.0).item() == pytest.approx(0.5 * net.args.dfl, rel=1e-4)


# -- training from scratch, and ultralytics' own validation of what comes out ------------------------------------------


def test_boxes_over_the_edge_are_laid_out_so_that_ultralytics_takes_their_picture(tmp_path):
    from ultralytics.data.utils import verify_image_label

    photograph(60, 30).save(tmp_path / "0.png")
    rows = [[0, 0, 6, 6, 30, 15, 0], [0, 1, -1, -1, 61, 31, 0], [0, 0, 0, 0, 9, 9, 1]]  # the last one is difficult
    images = LabelledImages(
        ImageFiles([tmp_path / "0.png"], letterbox_format(SIZE)), torch.tensor(rows, dtype=torch.float32), [(60, 30)]
    )
    file = yolo_layout(images, ("red", "green"), tmp_path / "layout")
    picture, labels = (next((file.parent / kind).glob("000000.*")) for kind in ("images", "labels"))
    found = verify_image_label((str(picture), str(labels), "", False, 2, 0, 0, False))
    assert found[1].tolist() == [pytest.approx([0, 0.3, 0.35, 0.4, 0.3]), [1, 0.5, 0.5, 1, 1]]


def test_labels_are_read_as_ultralytics_reads_them(tmp_path):
    """Boxes and polygons at random; what it refuses is refused, but for boxes without area, which are left out."""
    from ultralytics.data.utils import verify_image_label

    random = np.random.default_rng(0)
    file = squares.write(tmp_path, train=1, val=2)
    data = open_dataset(DataSettings(name="yolo", root=file, image_size=SIZE))
    picture, labels = tmp_path / "images" / "train" / "0.png", tmp_path / "labels" / "train" / "0.txt"
    agreed = {True: 0, False: 0}
    for _ in range(300):
        count = random.choice([4, 4, 5, 6, 8, 10, 3])
        numbers = random.uniform(0.2, 0.6, count)
        if random.random() < 0.4:
            numbers[random.integers(count)] = random.choice([1.005, 1.02, 7.0, np.nan, -0.004, -0.05])
        label = random.choice(["0", "1", "1.0", "2", "-1", "0.5"], p=(0.3, 0.3, 0.3, 0.04, 0.03, 0.03))
        labels.write_text(" ".join([label, *(f"{number:.4f}" for number in numbers)]))
        theirs = verify_image_label((str(picture), str(labels), "", False, 2, 0, 0, False))[1]
        try:
            (thing,) = data.things(picture)
        except SpecError:
            thing = None
        if thing is not None and count == 4 and min(numbers[2:]) < 0:
            assert thing.degenerate
            continue
        assert (theirs is None) == (thing is None), labels.read_text()
        agreed[thing is None] += 1
        if thing is not None:
            label, x, y, across, down = theirs[0]
            corners = [x - across / 2, y - down / 2, x + across / 2, y + down / 2]
            expected = np.clip(corners, 0, 1) * ([squares.WIDTH, squares.HEIGHT] * 2)
            assert data.classes.index(thing.name) == label and thing.corners == pytest.approx(expected, abs=1e-3)
    assert min(agreed.values()) > 50


@pytest.mark.architectures
@pytest.mark.slow
def test_trained_by_ultralytics_and_scored_as_ultralytics_scores(tmp_path, monkeypatch):
    """A short training that is stopped and goes on; then mAP by our path and by ultralytics' own validator."""
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    file = squares.write(tmp_path / "squares")
    data = open_dataset(DataSettings(name="yolo", root=file, image_size=SIZE))
    model = ModelSettings(name="ultralytics/yolov10n", num_classes=2)
    net, said = network(2), []
    recipe = BaselineSettings(epochs=60, batch_size=4)

    def stop(text):
        said.append(text)
        if text.startswith("training the uncut model: epoch 3 of"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_detector(net, model, data, recipe, 0, tmp_path / "check", stop)
    history = train_detector(net, model, data, recipe, 0, tmp_path / "check", said.append)
    assert [row["epoch"] for row in history] == list(range(1, 61))
    assert sum("epoch 2 of" in text for text in said) == 1  # it did not start over

    images = data.train(None, 0)
    with torch.no_grad():
        found = net(images.inputs(data.picture))[0]
    verdict = Detection(net, data.picture).judge(found, images)
    theirs = by_ultralytics(net, images, data.classes, tmp_path)
    assert verdict.metrics["mAP50"] > 0.3
    assert verdict.metrics["mAP50"] == pytest.approx(theirs["metrics/mAP50(B)"], abs=0.002)
    assert verdict.accuracy == pytest.approx(theirs["metrics/mAP50-95(B)"], abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "classes"), [(None, 2), ("pretrained", 1), (Path("of-other-classes.pt"), 1)])
def test_training_begins_with_given_weights_where_there_are_some(tmp_path, monkeypatch, weights, classes):
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    file = squares.write(tmp_path / "squares", train=4, classes=classes)
    data = open_dataset(DataSettings(name="yolo", root=file, image_size=SIZE))
    net = network(classes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    before = net.model[4].cv1.conv.weight.clone()
    model = ModelSettings(name="ultralytics/yolov10n", num_classes=classes, weights=weights)
    hardly = BaselineSettings(epochs=1, batch_size=4, learning_rate=1e-9)
    train_detector(net, model, data, hardly, 0, tmp_path / "check", lambda _: None)
    assert torch.allclose(net.model[4].cv1.conv.weight, before, atol=1e-4) == (weights is not None)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_training_leaves_torch_its_threads(tmp_path, monkeypatch, three_threads):
    """ultralytics would take as many as the machine has cores, less one, for all that follows."""
    monkeypatch.setenv("SPLITSEARCH_CACHE", str(tmp_path / "cache"))
    data = open_dataset(DataSettings(name="yolo", root=squares.write(tmp_path / "squares", train=4), image_size=SIZE))
    model, threads = ModelSettings(name="ultralytics/yolov10n", num_classes=2), []
    recipe = BaselineSettings(epochs=1, batch_size=4)
    train_detector(
        network(2), model, data, recipe, 0, tmp_path / "c", lambda _: threads.append(torch.get_num_threads())
    )
    assert [*threads, torch.get_num_threads()] == [3, 3]


def by_ultralytics(net, images, classes, folder):
    """Its validator on the same images, square as ours are, with the head that needs no suppression."""
    from ultralytics.models.yolo.detect import DetectionValidator

    assert isinstance(images.pixels, ImageFiles)
    file = yolo_layout(images, classes, folder / "layout")
    net.names, net.pt_path = dict(enumerate(classes)), None
    arguments = {
        "data": str(file),
        "nms": False,
        "imgsz": SIZE,
        "rect": False,
        "plots": False,
        "device": "cpu",
        "batch": 4,
        "project": str(folder),
        "name": "validation",
        "verbose": False,
    }
    return DetectionValidator(args=arguments)(model=copy.deepcopy(net))  # it fuses layers
