"""The oracles for every cut: head then tail equals the whole model bit for bit, and its ONNX halves nearly so."""

import math

import numpy as np
import onnxruntime
import torch
from torch.utils import _pytree as pytree

from evaluators.compression.bottleneck import Bottleneck
from evaluators.models.answer import first_tensor
from evaluators.models.cut import SplitModel
from evaluators.models.onnx_export import OnnxNetwork, save_module
from spaces.partition import INPUT, OUTPUT


def assert_exact_everywhere(model, image_size, sampled=30):
    """Check names, shapes, counts and exactness at every point, or at a sample where there are over ``sampled``."""
    split = SplitModel(model, image_size)
    points = split.points
    names = [point.name for point in points]
    assert names[0] == INPUT and names[-1] == OUTPUT and len(set(names)) == len(names)
    macs = [point.head_macs for point in points]
    assert macs == sorted(macs) and macs[0] == 0 and all(p.head_macs + p.tail_macs == macs[-1] for p in points)
    assert all(shape and math.prod(shape) > 0 for point in points for shape in point.shapes)

    picture = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = pytree.tree_leaves(model(picture.clone()))
        for point in points[:: max(1, math.ceil(len(points) / sampled))]:
            tensors = split.head(point.name)(picture.clone())
            assert tuple(tuple(tensor.shape[1:]) for tensor in tensors) == point.shapes, point.name
            assert len(split.channel_axes(point.name)) == len(tensors)
            found = pytree.tree_leaves(split.tail(point.name)(*tensors))
            expected = whole[:1] if point.name == OUTPUT else whole
            same = [torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(found, expected)]
            assert len(found) == len(expected) and all(same), point.name
    return points


def assert_onnx_agrees(model, image_size, folder):
    """Check head, encoder and tail as ONNX models against torch, at every point, to 1e-4 of the largest value."""
    split = SplitModel(model, image_size)
    network = OnnxNetwork(split)
    picture = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))

    def run(name, tensors):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
        names = [node.name for node in session.get_inputs()]
        return session.run(None, dict(zip(names, tensors, strict=True)))

    def same(found, expected, what):
        for one, other in zip(found, expected, strict=True):
            assert np.abs(one - other.numpy()).max() <= 1e-4 * np.abs(other.numpy()).max(), what

    with torch.no_grad():
        whole = first_tensor(model(picture.clone()))
        for point in split.points[1:-1]:
            network.save_part(INPUT, point.name, folder / "head.onnx")
            network.save_part(point.name, OUTPUT, folder / "tail.onnx")
            tensors = split.head(point.name)(picture.clone())
            bottleneck = Bottleneck(point.shapes, split.channel_axes(point.name), 0.5, 1).eval()
            for parameter in bottleneck.parameters():
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(2))
            save_module(bottleneck.encoder, tensors, folder / "encoder.onnx", len(tensors))
            found = run("head", [picture.numpy()])
            same(found, tensors, f"head of {point.name}")
            same(run("encoder", found), bottleneck.encoder(*tensors), f"encoder of {point.name}")
            same(run("tail", found)[:1], [whole], f"tail of {point.name}")
