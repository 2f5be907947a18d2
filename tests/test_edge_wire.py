"""The payload: packing against a plain loop, round trips, and every way a payload can be wrong."""

import dataclasses
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.edge import context, wire
from evaluators.edge.coders import CODERS

BITS = range(1, 9)
PAIRS = [(bits, coder) for bits in BITS for coder in CODERS if coder != "context" or bits <= context.MOST_BITS]


def make_format(bits=2, coder="packed", shape=(3, 4, 5)):
    low = np.linspace(-1, -0.5, shape[0], dtype=np.float32)
    levels = wire.TensorLevels(shape, low, -low)
    tables = ()
    if coder == "context":
        tables = (context.learn(wire.quantize(values((20, *shape)), levels, bits), bits),)
    return wire.WireFormat(bits=bits, tensors=(levels,), coder=coder, tables=tables)


def values(shape=(3, 4, 5), seed=0):
    return np.random.default_rng(seed).uniform(-1.3, 1.3, shape).astype(np.float32)


def pack_slowly(symbols, bits):
    text = "".join(str(int(symbol) >> place & 1) for place in range(bits - 1, -1, -1) for symbol in symbols)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_pack_equals_a_plain_loop_and_comes_back(bits, count):
    symbols = np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8)
    packed = wire.pack(symbols, bits)
    assert packed == pack_slowly(symbols, bits)
    assert len(packed) == (count * bits + 7) // 8
    assert np.array_equal(wire.unpack(packed, bits, count), symbols)


@pytest.mark.parametrize("bits", BITS)
def test_quantize_takes_the_nearest_level(bits):
    form = make_format(bits)
    levels, given_values = form.tensors[0], values()
    symbols = wire.quantize(given_values, levels, bits)
    ladder = [wire.dequantize(np.full(levels.shape, k, np.uint8), levels, bits) for k in range(2**bits)]
    distance = np.abs(np.stack(ladder) - given_values)
    chosen = np.take_along_axis(distance, symbols[None].astype(int), 0)[0]
    assert np.allclose(chosen, distance.min(0), atol=1e-6)
    assert np.array_equal(wire.quantize(wire.dequantize(symbols, levels, bits), levels, bits), symbols)


def test_quantize_works_on_batches():
    form = make_format(3)
    batch = np.stack([values(seed=seed) for seed in range(4)])
    whole = wire.quantize(batch, form.tensors[0], 3)
    assert np.array_equal(whole[2], wire.quantize(batch[2], form.tensors[0], 3))


@pytest.mark.parametrize(("bits", "coder"), PAIRS)
def test_round_trip(bits, coder):
    form = make_format(bits, coder)
    payload = wire.encode([values()], form)
    (received,) = wire.decode(payload, form)
    step = (form.tensors[0].high - form.tensors[0].low) / (2**bits - 1)
    clipped = np.clip(values(), form.tensors[0].low[:, None, None], form.tensors[0].high[:, None, None])
    assert np.all(np.abs(received - clipped) <= step[:, None, None] / 2 + 1e-6)
    if coder == "packed":
        assert len(payload) == wire.HEADER_BYTES + form.packed_bytes


def test_several_tensors_in_one_payload():
    pair = wire.WireFormat(bits=3, tensors=(*make_format().tensors, *make_format(shape=(5,)).tensors))
    first, second = wire.decode(wire.encode([values(), values((5,))], pair), pair)
    assert first.shape == (3, 4, 5) and second.shape == (5,)
    alone = make_format(3)
    assert np.array_equal(first, wire.decode(wire.encode([values()], alone), alone)[0])


def test_header_is_ten_bytes_and_format_survives_json():
    assert wire.HEADER_BYTES == 10 <= 16
    for coder in CODERS:
        form = make_format(4, coder)
        again = wire.WireFormat.from_dict(json.loads(json.dumps(form.to_dict())))
        assert again.fingerprint == form.fingerprint and again.to_dict() == form.to_dict()
        payload = wire.encode([values()], form)
        assert np.array_equal(wire.decode(payload, again)[0], wire.decode(payload, form)[0])


def test_an_older_manifest_is_refused():
    old = make_format(2, "context").to_dict() | {"version": 2}
    with pytest.raises(ValueError, match="wire format version 2 given, 3 known here"):
        wire.WireFormat.from_dict(old)


def test_formats_that_cannot_be():
    levels = make_format().tensors
    with pytest.raises(ValueError, match="known: packed, lzma"):
        wire.WireFormat(bits=2, tensors=levels, coder="zip")
    with pytest.raises(ValueError, match="tables"):
        wire.WireFormat(bits=2, tensors=levels, coder="context")
    with pytest.raises(ValueError, match="does not fit 3 channels of 1 bits"):
        wire.WireFormat(bits=1, tensors=levels, coder="context", tables=make_format(2, "context").tables)
    with pytest.raises(ValueError, match="1 to 4 bits; 5 given"):
        context.learn(np.zeros((1, 2, 3, 3), np.uint8), 5)


def test_a_coder_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(CODERS, "zstd", dataclasses.replace(CODERS["zstd"], available=False))
    with pytest.raises(ValueError, match="pip install zstandard"):
        make_format(2, "zstd")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(bad):
    broken = values()
    broken[0, 0, 0] = bad
    with pytest.raises(wire.PayloadError, match="NaN or infinite"):
        wire.encode([broken], make_format())


@pytest.mark.parametrize("coder", CODERS)
def test_wrong_payloads_are_told_apart(coder):
    form = make_format(2, coder)
    payload = wire.encode([values()], form)
    cases = {
        "too few": payload[:5],
        "version": bytes([9]) + payload[1:],
        "another configuration": payload[:2] + b"abcd" + payload[6:],
        "checksum": payload[:-1] + bytes([payload[-1] ^ 1]),
        "coded as": payload[:1] + bytes([(payload[1] + 1) % len(CODERS)]) + payload[2:],
    }
    for reason, wrong in cases.items():
        with pytest.raises(wire.PayloadError, match=reason):
            wire.decode(wrong, form)


def reframed(form, body):
    return wire.frame(body, form)


@pytest.mark.parametrize("coder", ["lzma", "zstd", "brotli"])
def test_bombs_stop_early(coder):
    form = make_format(2, coder)
    bomb = wire.compress(bytes(50_000_000), form)
    assert len(bomb) < 20_000
    tracemalloc.start()
    with pytest.raises(wire.PayloadError, match="more bytes"):
        wire.decode(reframed(form, bomb), form)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("coder", ["packed", "lzma", "zstd", "brotli"])
def test_short_and_broken_streams(coder):
    form = make_format(2, coder)
    with pytest.raises(wire.PayloadError, match="only 3"):
        wire.decode(reframed(form, wire.compress(b"abc", form)), form)
    with pytest.raises(wire.PayloadError):
        wire.decode(reframed(form, b"\xff" * 30), form)


def test_broken_context_streams():
    form = make_format(2, "context")
    body = wire.unframe(wire.encode([values()], form), form)
    for wrong in (body + bytes(1), body + b"\x01\x02\x03\x04" * 9):
        with pytest.raises(wire.PayloadError, match="more than"):
            wire.decode(reframed(form, wrong), form)
    for end in range(len(body)):  # fewer bytes are refused, or are another picture's
        try:
            found = wire.decompress(body[:end], form)
        except wire.PayloadError:
            continue
        assert wire.compress(found, form) == body[:end]


FORMATS = {pair: make_format(*pair) for pair in PAIRS}
SIZED = {pair: dataclasses.replace(form, carries_image_size=True) for pair, form in FORMATS.items()}


@settings(max_examples=10_000, deadline=None)
@given(
    data=st.data(),
    pair=st.sampled_from([pair for pair in PAIRS if pair[0] in (1, 2, 3, 8)]),
    fix_checksum=st.booleans(),
    with_size=st.booleans(),
)
def test_mutated_payloads_never_crash(data, pair, fix_checksum, with_size):
    form = SIZED[pair] if with_size else FORMATS[pair]
    payload = bytearray(wire.encode([values()], form, (640, 480)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)))]
    if fix_checksum and len(payload) >= wire.HEADER_BYTES:
        payload[6:10] = zlib.crc32(bytes(payload[10:])).to_bytes(4, "little")
    try:
        (received,) = wire.decode(bytes(payload), form)
        if with_size:
            width, height = wire.picture_size(bytes(payload), form)
            assert 0 < width < 2**16 and 0 < height < 2**16
    except wire.PayloadError:
        return
    assert received.shape == (3, 4, 5) and np.isfinite(received).all()
