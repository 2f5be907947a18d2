"""The oracle for every cut: head then tail equals the whole model, bit for bit."""

import math

import torch
from torch.utils import _pytree as pytree

from evaluators.models.cut import SplitModel
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
