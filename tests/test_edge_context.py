"""The context model: its order of symbols against brute force, its bytes against entropy."""

import numpy as np
import pytest

from evaluators.edge import context
from evaluators.edge.errors import PayloadError

SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 5), (4, 4), (16, 16), (13, 20)]


@pytest.mark.parametrize("size", SIZES)
def test_every_place_is_coded_once_after_its_neighbours(size):
    known = set()
    for step in context._steps(*size):
        if step.kind:
            assert set(step.neighbours.ravel().tolist()) <= known
        assert not known & set(step.places.tolist()) and len(set(step.places.tolist())) == len(step.places)
        known |= set(step.places.tolist())
    assert known == set(range(size[0] * size[1]))


@pytest.mark.parametrize("size", [(16, 16), (13, 20)])
def test_neighbours_are_the_four_nearest_known_places_unless_at_a_border(size):
    height, width = size
    for step in context._steps(*size):
        for place, around in zip(step.places, step.neighbours.T, strict=True):
            y, x = divmod(int(place), width)
            distances = {(abs(int(n) // width - y), abs(int(n) % width - x)) for n in around}
            inner = all(0 <= y + d < height and 0 <= x + d < width for d in (-8, 8))
            if step.kind and inner:
                assert len(set(around.tolist())) == 4 and len({max(d) for d in distances}) == 1


def smooth(count, channels, size, bits, seed=0):
    """Symbols of maps that are alike in neighbouring places."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, size + 4, size + 4))
    for axis in (2, 3):
        noise = sum(np.roll(noise, shift, axis) for shift in range(5))
    maps = noise[:, :, 4:, 4:]
    edges = np.quantile(maps, np.linspace(0, 1, 2**bits + 1)[1:-1])
    return np.digitize(maps, edges).astype(np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_what_was_learned_makes_it_short(bits):
    tables = [context.learn(smooth(100, 6, 16, bits), bits)]
    assert tables[0].shape == (6, 6, context.contexts(bits), 2**bits) and tables[0].min() >= 1
    fresh = smooth(10, 6, 16, bits, seed=1)
    bodies = [context.encode([picture], tables) for picture in fresh]
    for picture, body in zip(fresh, bodies, strict=True):
        assert np.array_equal(context.decode(body, [(6, 16, 16)], tables)[0], picture)
    mean_bits = 8 * np.mean([len(body) for body in bodies])
    assert mean_bits < 0.8 * bits * 6 * 256  # all levels are equally frequent, so without context it would be that


def test_length_is_what_the_model_says():
    symbols = smooth(50, 3, 8, 2)
    table = context.learn(symbols, 2)
    flat = symbols[0].reshape(3, -1)
    information = 0.0
    for step in context._steps(8, 8):
        weights = context._probabilities(flat, step, table).astype(float)
        chosen = weights[np.arange(len(weights)), flat[:, step.places].ravel()]
        information -= np.log2(chosen / weights.sum(1)).sum()
    assert 0 <= 8 * len(context.encode([symbols[0]], [table])) - information < 65  # whole words, and the last one


def test_other_layouts_and_several_tensors():
    rng = np.random.default_rng(0)
    shapes = [(5,), (4, 9), (2, 3, 4, 5), (1, 1, 1)]
    batches = [rng.integers(0, 4, (30, *shape)).astype(np.uint8) for shape in shapes]
    tables = [context.learn(batch, 2) for batch in batches]
    symbols = [batch[0] for batch in batches]
    again = context.decode(context.encode(symbols, tables), shapes, tables)
    assert all(np.array_equal(one, other) for one, other in zip(symbols, again, strict=True))
    with pytest.raises(PayloadError):
        context.decode(b"123", shapes, tables)
