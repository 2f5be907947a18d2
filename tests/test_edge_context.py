"""The context model: its order of symbols against brute force, its bytes against entropy and against its own costs."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.edge import context, context_model
from evaluators.edge.errors import PayloadError
from evaluators.edge.steps import steps

SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 5), (4, 4), (16, 16), (13, 20)]


@pytest.mark.parametrize("size", SIZES)
def test_every_place_is_coded_once_after_its_neighbours(size):
    known = set()
    for step in steps(*size):
        if step.kind:
            assert set(step.neighbours.ravel().tolist()) <= known
        assert not known & set(step.places.tolist()) and len(set(step.places.tolist())) == len(step.places)
        known |= set(step.places.tolist())
    assert known == set(range(size[0] * size[1]))


@pytest.mark.parametrize("size", [(16, 16), (13, 20)])
def test_neighbours_are_the_four_nearest_known_places_unless_at_a_border(size):
    height, width = size
    for step in steps(*size):
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
    assert tables[0].shape == (6, context_model.columns(bits)) and tables[0].dtype == np.int16
    fresh = smooth(10, 6, 16, bits, seed=1)
    bodies = [context.encode([picture], tables) for picture in fresh]
    for picture, body in zip(fresh, bodies, strict=True):
        assert np.array_equal(context.decode(body, [(6, 16, 16)], tables)[0], picture)
    mean_bits = 8 * np.mean([len(body) for body in bodies])
    assert mean_bits < 0.8 * bits * 6 * 256  # all levels are equally frequent, so without context it would be that


@pytest.mark.parametrize(("bits", "share"), [(1, 0.1), (2, 0.25)])
def test_channels_that_repeat_earlier_ones_cost_next_to_nothing(bits, share):
    first = smooth(100, 4, 8, bits)
    shifted = np.roll(first, 1, axis=3)  # known but for the first column
    both = np.concatenate([first, shifted], axis=1)
    table = context.learn(both, bits)
    spent = np.take_along_axis(context.costs(both[:5], table, bits), both[:5, ..., None].astype(int), -1)
    assert spent[:, 4:, :, 1:].mean() < share * spent[:, :4].mean()


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(9, 8, 8), (3, 7, 5), (4, 9), (5,), (2, 3, 4, 5)])
def test_length_is_what_the_costs_say(bits, shape):
    rng = np.random.default_rng(0)
    symbols = (rng.integers(0, 2**bits, (40, *shape)) * rng.integers(0, 2, (40, *shape))).astype(np.uint8)
    table = context.learn(symbols, bits)
    costs = context.costs(symbols, table, bits)
    assert costs.shape == (*symbols.shape, 2**bits) and costs.dtype == np.float32
    assert np.allclose((2.0**-costs).sum(-1), 1, atol=1e-5)
    spent = np.take_along_axis(costs, symbols[..., None].astype(int), -1).reshape(40, -1).sum(1)
    for picture, expected in zip(symbols, spent, strict=True):
        length = 8 * len(context.encode([picture], [table]))
        assert -16 < length - expected < 10  # a row of bytes that happens to name the interval may be shorter than it


def test_costs_of_another_bit_width_are_refused():
    symbols = smooth(10, 3, 4, 2)
    with pytest.raises(ValueError, match="a table of 2 bits given, symbols of 1"):
        context.costs(symbols, context.learn(symbols, 2), 1)


def test_other_layouts_and_several_tensors():
    rng = np.random.default_rng(0)
    shapes = [(5,), (4, 9), (2, 3, 4, 5), (1, 1, 1)]
    batches = [rng.integers(0, 4, (30, *shape)).astype(np.uint8) for shape in shapes]
    tables = [context.learn(batch, 2) for batch in batches]
    symbols = [batch[0] for batch in batches]
    body = context.encode(symbols, tables)
    again = context.decode(body, shapes, tables)
    assert all(np.array_equal(one, other) for one, other in zip(symbols, again, strict=True))
    with pytest.raises(PayloadError, match="more than"):
        context.decode(body + bytes(30), shapes, tables)


def made_up(channels, bits, seed):
    """A table that no floating point had a part in."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-90, 91, (channels, context_model.columns(bits))).astype(np.int16)
    sources = np.stack([rng.integers(0, channels, (channels, 12)), rng.integers(0, 9, (channels, 12))], axis=-1)
    table[:, :24] = sources.reshape(channels, 24)
    return table


def test_bytes_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for bits in (1, 2, 3, 4):
        symbols = np.random.default_rng(bits).integers(0, 2**bits, (9, 7, 6)).astype(np.uint8)
        body = context.encode([symbols], [made_up(9, bits, bits)])
        assert np.array_equal(context.decode(body, [symbols.shape], [made_up(9, bits, bits)])[0], symbols)
        digest.update(body)
    assert digest.hexdigest()[:16] == "dad4df26795e172e"


def test_probabilities_are_the_logistic_curve():
    exact = [4096 / (1 + math.exp(-each / 64)) for each in range(-512, 513)]
    found = context_model.probabilities(np.arange(-600, 1700))
    assert np.abs(found[600:1625] - np.clip(exact, 1, 4095)).max() <= 0.51
    assert (found[:600] == found[600]).all() and (found[1625:] == found[1624]).all()


@pytest.mark.parametrize("wrong", ["columns", "channel", "place", "axes"])
def test_broken_tables_are_refused(wrong):
    table = made_up(4, 2, 0)
    if wrong == "columns":
        table = table[:, :-1]
    if wrong == "channel":
        table[0, 0] = 4
    if wrong == "place":
        table[0, 1] = 9
    if wrong == "axes":
        table = table[0]
    with pytest.raises(ValueError, match="context table"):
        context.check(table, (4, 3, 3), 2)


def test_a_table_of_other_channels_or_bits_is_refused():
    for shape, bits in (((5, 3, 3), 2), ((4, 3, 3), 1)):
        with pytest.raises(ValueError, match="does not fit"):
            context.check(made_up(4, 2, 0), shape, bits)


@settings(max_examples=2000, deadline=None)
@given(body=st.binary(max_size=40), bits=st.integers(1, 4))
def test_whatever_is_decoded_has_no_other_bytes(body, bits):
    table = made_up(3, bits, bits)
    try:
        (symbols,) = context.decode(body, [(3, 4, 3)], [table])
    except PayloadError:
        return
    assert context.encode([symbols], [table]) == body
