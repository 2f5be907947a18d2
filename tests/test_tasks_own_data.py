"""A user's own data: every usual form of it, what is wrong with others, and what it is known by."""

import io
import logging

import numpy as np
import pytest
import torch
from data_folders import as_bytes
from PIL import Image

from evaluators.settings import DataSettings
from evaluators.tasks import own_data
from evaluators.tasks.datasets import open_dataset
from spaces.errors import SpecError

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
