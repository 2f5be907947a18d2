"""Residual branches that start silent."""

import pytest
import torch
import torchvision
from torch import nn

from evaluators.models.residual import zero_init_residual


def zero_norms(network):
    return [name for name, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d) and not module.weight.any()]  # fmt: skip


def test_only_branches_beside_a_plain_shortcut_are_silenced():
    network = torchvision.models.resnet18(num_classes=7)
    assert zero_init_residual(network, 32) == 5
    plain = ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]  # the others' shortcuts have a norm
    assert zero_norms(network) == [f"{block}.bn2" for block in plain]


def test_a_silent_block_is_its_shortcut():
    network = torchvision.models.mobilenet_v2(num_classes=7)
    assert zero_init_residual(network, 32) == 10
    block = next(module for name, module in network.named_modules() if name == "features.3")
    pixels = torch.randn(2, 24, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(pixels), pixels)


@pytest.mark.parametrize(
    ("network", "branches"),
    [
        # 35 of its 40 blocks have a shortcut; the two of stage 1 end in an activation.
        (lambda: torchvision.models.efficientnet_v2_s(num_classes=7), 33),
        (lambda: torchvision.models.densenet121(num_classes=7), 0),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0),
    ],
    ids=["stochastic depth", "no sums", "no residual"],
)
def test_branches_are_found_in_other_networks(network, branches):
    assert zero_init_residual(network(), 64) == branches
