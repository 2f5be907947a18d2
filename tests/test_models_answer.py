"""The answer in whatever networks return, and networks that are cut although they return something odd."""

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch
import torchvision
from torch import nn

from evaluators.models.answer import first_tensor, without_auxiliary_heads
from evaluators.models.cut import SplitModel
from spaces.errors import SplitsearchError
from spaces.partition import OUTPUT

SCORES, OTHER = torch.zeros(2, 5), torch.zeros(2, 7)


@dataclasses.dataclass
class Scores:
    features: torch.Tensor
    logits: torch.Tensor
    loss: torch.Tensor | None = None


@dataclasses.dataclass
class Unnamed:
    loss: torch.Tensor | None
    scores: torch.Tensor


class ModelOutput(OrderedDict):
    """As transformers has it: a dict that torch cannot look into, with attributes."""


@pytest.mark.parametrize(
    "answer",
    [
        SCORES,
        (SCORES, OTHER),
        [SCORES, OTHER],
        (None, {"aux": SCORES}),
        {"aux": OTHER, "logits": SCORES},
        OrderedDict(aux=OTHER, out=SCORES),
        {"scores": SCORES, "aux": OTHER},
        ModelOutput(loss=OTHER, logits=SCORES),
        namedtuple("Outputs", "aux logits")(OTHER, SCORES),
        namedtuple("Outputs", "scores aux")(SCORES, OTHER),
        Scores(OTHER, SCORES),
        Unnamed(None, SCORES),
        (Scores(OTHER, SCORES), OTHER),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_the_answer_is_found(answer):
    assert first_tensor(answer) is SCORES


@pytest.mark.parametrize("answer", [None, {}, {"n": 1}, "text", 3.0])
def test_no_answer_is_told(answer):
    with pytest.raises(SplitsearchError, match="without a tensor in it; it is to return its class scores"):
        first_tensor(answer)


class Answering(nn.Module):
    """Dresses its answer up."""

    def __init__(self, dress):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3)
        self.last, self.dress = nn.Linear(7, 5), dress

    def forward(self, x):
        features = self.two(self.one(x)).mean((2, 3))
        return self.dress(features, self.last(features))


class AskingForSizes(Answering):
    """The same, which only torch.export can follow."""

    def forward(self, x):
        return super().forward(x if x.shape[2] > 4 else x * 2)


DRESSES = {
    "dict": lambda features, scores: {"features": features, "logits": scores},
    "dataclass": lambda features, scores: Scores(features, scores),
    "ModelOutput": lambda features, scores: ModelOutput(features=features, logits=scores),
    "tuple of dataclass": lambda features, scores: (Scores(features, scores), features),
}


@pytest.mark.parametrize("kind", [Answering, AskingForSizes])
@pytest.mark.parametrize("dress", DRESSES)
def test_networks_with_dressed_answers_are_cut(kind, dress):
    network = kind(DRESSES[dress]).eval()
    split = SplitModel(network, 8)
    assert [point.name for point in split.points] == ["input", "one", "two", "mean", OUTPUT]
    picture = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = first_tensor(network(picture))
    assert torch.equal(split.head(OUTPUT)(picture)[0], expected)
    assert torch.equal(first_tensor(split.tail("one")(*split.head("one")(picture))), expected)
    assert split.points[-1].shapes == ((5,),)


@pytest.mark.parametrize(
    ("name", "heads", "side"), [("googlenet", ["aux1", "aux2"], 32), ("inception_v3", ["AuxLogits"], 96)]
)
def test_auxiliary_heads_stay_out_of_training(name, heads, side):
    """Inception's does not even accept maps of 96 pixels."""
    network = getattr(torchvision.models, name)(num_classes=5, init_weights=False).train()
    names = list(network.state_dict())
    with without_auxiliary_heads(network):
        scores = first_tensor(network(torch.randn(2, 3, side, side)))
        assert list(network.state_dict()) == names
    assert scores.shape == (2, 5)
    scores.sum().backward()
    assert all(weight.grad is None for head in heads for weight in network.get_submodule(head).parameters())
    assert network.fc.weight.grad is not None
    assert not any("forward" in vars(network.get_submodule(head)) for head in heads)
