"""BatchNorm statistics, estimated anew: against plain means, and only where they help."""

import torch
from torch import nn
from torch.nn import functional

from evaluators.training.batchnorm import recalibrate_batchnorm


def images(count=300):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count,), generator=generator)
    values = torch.randn(count, 3, 4, 4, generator=generator) * 3 + 5
    return values + 4 * labels[:, None, None, None], labels


def network():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[-1.0] * 3, [1.0] * 3]))
        net[3].bias.zero_()
    return net


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def renew(net, inputs, labels, **settings):
    return recalibrate_batchnorm(
        net, lambda index: functional.cross_entropy(net(inputs[index]), labels[index]), len(labels), **settings
    )


def test_statistics_become_means_over_the_pictures():
    net, (inputs, labels) = network(), images()
    assert renew(net, inputs, labels)
    parts = inputs.split(125)
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in parts]).mean(0)
    assert torch.allclose(net[0].running_mean, means) and torch.allclose(net[0].running_var, variances)
    assert not net[0].training and net[0].momentum == 0.1
    assert torch.equal(net[3].weight, network()[3].weight)


def test_what_does_not_help_is_undone():
    inputs, labels = images()
    net = network()
    with torch.no_grad():
        net[0].running_var *= 1e6  # hardly any answer at all, which is the best one for labels that are all wrong
    before = state(net)
    assert not renew(net, inputs, 1 - labels)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.training and net[0].momentum == 0.1


def test_the_first_images_alone_may_judge():
    inputs, labels = images()
    asked, all_judge, few_judge, wrong = [], network(), network(), labels.clone()
    few_judge.register_forward_hook(lambda net, given, _: asked.append((len(given[0]), net[0].training)))
    wrong[125:] = 1 - labels[125:]  # more than half of them: all together they would not have the statistics renewed
    for net in (all_judge, few_judge):
        with torch.no_grad():
            net[0].running_var *= 1e6
    assert not renew(all_judge, inputs, wrong) and renew(few_judge, inputs, wrong, judging=100)
    assert asked == [(125, False), (125, True), (125, True), (50, True), (125, False)]


def test_networks_without_such_layers_are_left_alone():
    inputs, labels = images(10)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    assert not renew(net, inputs, labels)
    assert not renew(network(), inputs[:1], labels[:1])  # no variance of one picture
