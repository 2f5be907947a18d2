"""What would fail hours into a run is said beforehand, in one line that tells what to do."""

import copy
import dataclasses

import pytest
import torch
import torchvision
from squares import write as write_squares
from torch import nn

from evaluators.models.cut import SplitModel
from evaluators.models.load import build
from evaluators.settings import BaselineSettings, DataSettings, FinetuneSettings, ModelSettings
from evaluators.tasks.classification import Classification
from evaluators.tasks.datasets import open_dataset
from evaluators.tasks.detection import Detection
from evaluators.training import rehearsal, uncut
from evaluators.training.rehearsal import rehearse
from spaces.errors import InfeasibleSplit, SpecError, SplitsearchError
from spaces.space import SearchSpace


class Net(nn.Module):
    """Two convolutions and what a test puts between them and the last layer."""

    def __init__(self, middle=None, classes=10, width=8):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        self.middle = middle or nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        return self.last(self.middle(self.two(self.one(x).relu()).relu()).flatten(1))


@dataclasses.dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    features: torch.Tensor


class Dressed(Net):
    def forward(self, x):
        x = self.middle(self.two(self.one(x).relu())).flatten(1)
        return Output(None, self.last(x), x)


@pytest.fixture
def no_export(monkeypatch):
    monkeypatch.setattr(rehearsal, "_export", lambda *_: None)


def tried(network, size=32, *, trained=False, fresh=None, finetune=None, space=None, **baseline):
    network.eval()
    data = open_dataset(DataSettings(name="digits", image_size=size))
    recipe = BaselineSettings(**baseline)
    split = SplitModel(network, size)
    settings = finetune or FinetuneSettings()
    rehearse(network, split, data, Classification(), settings, recipe, trained=trained, fresh=fresh, space=space)


def space_of(*partitions, heads=("own", "distilled")):
    return SearchSpace(partitions=partitions, ae_ratios=(0.25, 1.0), bits=(1, 4), tcl=(0.0,), heads=heads)


@pytest.mark.parametrize("space", [None, space_of("one")])
def test_a_rehearsal_leaves_everything_as_it_was(space):
    network = Dressed(nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1))).eval()
    network.requires_grad_(False)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    tried(network, size=64, space=space)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_the_wrong_number_of_answers_is_refused(no_export):
    with pytest.raises(SpecError, match=r"model\.num_classes: 10 given; Net answers with \(B, 1000\) where \(B, 10\)"):
        tried(Net(classes=1000))
    with pytest.raises(SpecError, match=r"answers with \(B, 8, 8, 8\)"):
        tried(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)))


class FeaturesFirst(Net):
    def forward(self, x):
        x = self.middle(self.two(self.one(x).relu())).flatten(1)
        return x, self.last(x)


def test_the_answer_is_to_come_first_or_by_its_name(no_export):
    with pytest.raises(SpecError, match=r"answers with \(B, 8\).*scores first or as 'logits'"):
        tried(FeaturesFirst())


def test_networks_of_one_size_are_trained_at_that_size(no_export):
    fixed = Net(nn.Identity(), width=8 * 16 * 16)
    assert {epoch.size for epoch in uncut.plan(fixed.eval(), 8, 64)} == {64}
    tried(fixed, size=64)
    tried(
        build(ModelSettings(name="torchvision/vit_b_32", num_classes=10, options={"image_size": 64})).network, size=64
    )
    assert {epoch.size for epoch in uncut.plan(Net().eval(), 8, 64)} == {48, 64}
    vit = torchvision.models.VisionTransformer(64, 32, 1, 2, 8, 16, num_classes=10)
    tried(vit, size=64)


class MoreScoresForMorePixels(Net):
    """Accepts any size and answers in another form."""

    def forward(self, x):
        return torch.cat([super().forward(x)[:, :5], x.mean(1).flatten(1)[:, : x.shape[-1] // 12]], 1)


def test_networks_whose_answer_follows_the_size_are_trained_at_one_size(no_export):
    assert {epoch.size for epoch in uncut.plan(MoreScoresForMorePixels().eval(), 8, 64)} == {64}
    tried(MoreScoresForMorePixels(), size=64)


NORM_OF_ONE_VALUE = (nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))


def test_batches_of_one_under_batchnorm(no_export):
    tried(Net(nn.Sequential(*NORM_OF_ONE_VALUE)), batch_size=5)
    message = r"baseline\.batch_size: 1 given; batches of one image do not do for the BatchNorm layers of Net at 32 px"
    with pytest.raises(SpecError, match=message):
        tried(Net(nn.Sequential(*NORM_OF_ONE_VALUE)), batch_size=1)
    tried(Net(), batch_size=1)
    tried(Net(nn.Sequential(*NORM_OF_ONE_VALUE)), batch_size=1, trained=True)


class OneByOne(nn.Module):
    def forward(self, x):
        if self.training and len(x) == 1:
            raise ValueError("no batch of one, please")
        return x.mean((2, 3))


def test_a_left_over_image_is_tried_where_it_will_come(no_export):
    with pytest.raises(SplitsearchError, match="no batch of one, please"):
        tried(Net(OneByOne()), batch_size=5)


class AsksWhileTraining(nn.Module):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not in training\nand more")
        return x.mean((2, 3))


class Overflows(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * (float("inf") if self.training else 1.0)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (
            lambda: Net(AsksWhileTraining()),
            r"a training step of Net on 2 images of 48 px fails at 'raise RuntimeError.*\(test_training_rehearsal\.py:"
            r"\d+\): not in training; mend its forward in training mode, or give trained weights",
        ),
        (lambda: Net(Overflows()), "a training step of Net on 2 images of 48 px gives a loss of nan"),
        (Detached, "does not require grad.*mend its forward"),
    ],
)
def test_a_training_step_that_fails_says_where(no_export, network, told):
    with pytest.raises(SplitsearchError, match=told):
        tried(network(), size=64)


class Bare(nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, (2, 5))[:, 0].flatten(1)


def test_a_network_without_parameters_cannot_be_trained(no_export):
    with pytest.raises(SplitsearchError, match="Bare has no parameters"):
        tried(Bare())


def test_trained_networks_are_not_trained_but_fine_tuned(no_export):
    tried(Net(AsksWhileTraining()), trained=True)
    tried(Net(), trained=True, finetune=FinetuneSettings(scope="all"))


def test_operations_without_a_word_in_onnx_are_named():
    network = Net(nn.AdaptiveMaxPool2d(3), width=72)
    with pytest.raises(SplitsearchError) as caught:
        tried(network, size=16, trained=True)
    said = str(caught.value)
    assert said.startswith("Net cannot be exported to ONNX, which is what runs on the device (middle): ")
    assert "adaptive_max_pool2d" in said and said.endswith("replace that operation by one that ONNX has")
    assert "\n" not in said


def test_onnx_that_computes_something_else_is_noticed(monkeypatch):
    run = rehearsal._run
    monkeypatch.setattr(rehearsal, "_run", lambda file, tensors: [each + 1 for each in run(file, tensors)])
    with pytest.raises(SplitsearchError, match=r"Net as ONNX does not compute what torch does, up to two"):
        tried(Net(), trained=True)


BOTH = space_of("one", "two")


@pytest.fixture
def distilled(monkeypatch):
    """Partition points whose distilled heads are trained."""
    trained, train = [], rehearsal.FinetuneTrainer.train

    def watched(self, config, budget, seed):
        trained.append((config.partition, config.head))
        return train(self, config, budget, seed)

    monkeypatch.setattr(rehearsal.FinetuneTrainer, "train", watched)
    return trained


@pytest.mark.parametrize("scope", ["tail", "bottleneck", "all"])
def test_one_distilled_head_is_tried_where_the_space_has_any(no_export, distilled, scope):
    settings = FinetuneSettings(scope=scope, quantization="straight-through", distillation=0.5)
    tried(Net(), trained=True, finetune=settings, space=space_of("one", "two", heads=("own", "distilled-wide")))
    assert distilled == [("two", "distilled-wide")]
    tried(Net(), trained=True, space=space_of("one", "two", heads=("own",)))
    oblong = Net(nn.AdaptiveAvgPool2d((2, 4)), width=64)
    tried(oblong, trained=True, space=space_of("middle"))  # each such trial will say by itself why it cannot run
    assert len(distilled) == 1
    tried(oblong, trained=True, space=space_of("one", "middle"))
    assert distilled[1:] == [("one", "distilled")]


def test_a_distilled_head_that_fails_is_told_beforehand(no_export, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such batch\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("evaluators.training.distilled_heads.distil", fails)
        with pytest.raises(SplitsearchError, match=r"training a distilled head for two fails.*: no such batch; search"):
            tried(Net(), trained=True, space=BOTH)
    with monkeypatch.context() as patch:
        patch.setattr("evaluators.edge.wire.decode", fails)
        with pytest.raises(SplitsearchError, match="sending a picture through a distilled head for two fails"):
            tried(Net(), trained=True, space=BOTH)
    run = rehearsal._run
    monkeypatch.setattr(rehearsal, "_run", lambda file, tensors: [each + 1 for each in run(file, tensors)])
    with pytest.raises(SplitsearchError, match="a distilled head for two as ONNX does not compute what torch does"):
        tried(Net(), trained=True, space=BOTH)


def test_a_step_that_diverges_on_two_images_is_no_fault_of_the_study(no_export, monkeypatch):
    def diverges(*_):
        raise InfeasibleSplit("training a distilled head diverged")

    monkeypatch.setattr("evaluators.training.distilled_heads.distil", diverges)
    tried(Net(), trained=True, space=BOTH)


def test_detectors_are_tried_except_for_their_training(tmp_path, no_export, monkeypatch):
    pytest.importorskip("ultralytics")
    monkeypatch.setattr(rehearsal, "_train_uncut", None)
    data = open_dataset(DataSettings(name="yolo", root=write_squares(tmp_path), image_size=96))
    network = build(ModelSettings(name="ultralytics/yolov10n", num_classes=2)).network
    split, task = SplitModel(network, 96), Detection(network, data.picture)
    rehearse(network, split, data, task, FinetuneSettings(), BaselineSettings(), trained=False)
    monkeypatch.setattr(data, "classes", ("one", "two", "three"))
    network.end2end = False
    with pytest.raises(SplitsearchError, match=r"answers with \(B, 6, 189\); rows of box, score and class"):
        rehearse(network, SplitModel(network, 96), data, task, FinetuneSettings(), BaselineSettings(), trained=True)
