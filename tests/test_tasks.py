"""Data roles, archives, training and scoring."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluators.compression.bottleneck import Bottleneck
from evaluators.compression.tcl import LevelGrid
from evaluators.edge import wire
from evaluators.settings import DataSettings, FinetuneSettings
from evaluators.tasks.data import open_dataset
from evaluators.tasks.scoring import paired_drop_pp, score_split
from evaluators.tasks.training import Lesson, finetune
from spaces.errors import SpecError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "tiny-imagenet-50.tar.gz"


def as_bytes(pictures):
    return {pixels.tobytes() for pixels in pictures.pixels}


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
    """TinyImageNet's layout with two classes of made-up pictures."""
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


def lesson(count=64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 8, 4, 4, generator=generator)
    labels = (features.mean((1, 2, 3)) > 0).long()
    return Lesson(features=features, labels=labels, teacher=nn.functional.one_hot(labels).float() * 3)


def train(tcl, seed=0, **settings):
    torch.manual_seed(0)
    tail = nn.Sequential(nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    bottleneck = Bottleneck(8, 4, spatial=True)
    bottleneck.start_from(lesson().features)
    chosen = FinetuneSettings(batch_size=8, epochs=4, **settings)
    before = {name: value.clone() for name, value in tail.state_dict().items()}
    history = finetune(tail, bottleneck, lesson(), chosen, grid=LevelGrid(1), tcl=tcl, seed=seed)
    return history, bottleneck, before, tail.state_dict()


def test_training_is_deterministic_for_a_seed():
    one, two, other = train(10.0), train(10.0), train(10.0, seed=1)
    assert one[0] == two[0] != other[0]
    assert torch.equal(one[1].encoder[0].weight, two[1].encoder[0].weight)


def test_training_lowers_the_loss_and_tcl_settles_activations():
    plain, clustered = train(0.0, learning_rate=0.02)[0], train(100.0, learning_rate=0.02)[0]
    assert plain[-1]["task_loss"] < plain[0]["task_loss"]
    assert clustered[-1]["clustering_loss"] < 0.8 * plain[-1]["clustering_loss"]
    assert clustered[-1]["settled"] > plain[-1]["settled"]


def test_scope_and_batch_statistics():
    _, _, before, after = train(0.0, scope="bottleneck")
    assert all(torch.equal(before[name], after[name]) for name in before)
    _, _, before, after = train(0.0, scope="tail", tail_learning_rate=0.01)
    assert not torch.equal(before["3.weight"], after["3.weight"])
    assert torch.equal(before["0.running_mean"], after["0.running_mean"])


def test_scoring_goes_through_bytes():
    features = torch.randn(10, 4, 3, 3)
    levels = wire.TensorLevels((4, 3, 3), np.full(4, -1, np.float32), np.full(4, 1, np.float32))
    form = wire.WireFormat(bits=1, tensors=(levels,))
    decoder = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(4)[:, :, None, None])
    tail = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    score = score_split(nn.Identity(), decoder, tail, features, form)
    signs = torch.where(features >= 0, 1.0, -1.0)
    assert np.array_equal(score.predictions, signs.mean((2, 3)).argmax(1).numpy())
    assert score.payload_bytes == len(score.sample) == wire.HEADER_BYTES + 5


def test_paired_drop():
    reference = np.array([True] * 60 + [False] * 40)
    same = paired_drop_pp(reference, reference)
    assert same == (0.0, (0.0, 0.0))
    worse = reference.copy()
    worse[:10] = False
    drop, (low, high) = paired_drop_pp(reference, worse)
    assert drop == pytest.approx(10) and 0 < low < 10 < high < 20
