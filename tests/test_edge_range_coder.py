"""The range coder: against a plain one that keeps every bit, against entropy, and streams that nobody made."""

import numpy as np
import pytest

from evaluators.edge import range_coder
from evaluators.edge.errors import PayloadError


def decisions(count, seed, certain=True):
    """Probabilities of a 1, and decisions as likely as they say."""
    rng = np.random.default_rng(seed)
    ones = np.clip(rng.beta(0.4, 0.4, count) * 4096, 1, 4095).astype(np.int64)
    if certain:
        ones[rng.random(count) < 0.05] = 4096
    return ones, (rng.random(count) * 4096 < ones).astype(np.uint8)


def unlikely(count):
    """The most expensive decisions there are."""
    ones = np.full(count, 4095, np.int64)
    return ones, np.zeros(count, np.uint8)


def coded_slowly(ones, bits):
    """One decision after the other, with numbers as long as need be."""
    low, width, scale = 0, 1 << 104, 104
    for number, (one, bit) in enumerate(zip(ones.tolist(), bits.tolist(), strict=True)):
        if number % 4 == 0:
            if width < 1 << 56:
                low, width, scale = low << 48, width << 48, scale + 48
            width = width >> 48 << 48
        low, width = (low, width // 4096 * one) if bit else (low + width // 4096 * one, width // 4096 * (4096 - one))
    if width < 1 << 56:
        low, width, scale = low << 48, width << 48, scale + 48
    for length in range(scale // 8 + 1):
        unit = 1 << scale - 8 * length
        named = -(-low // unit)
        if named * unit < low + width:
            return named.to_bytes(length, "big")
    raise AssertionError("an interval of whole numbers holds one")


@pytest.mark.parametrize("seed", range(30))
def test_bytes_are_those_of_a_plain_coder(seed):
    ones, bits = decisions(4 * (1 + seed * 3), seed)
    assert range_coder.encode(ones, bits) == coded_slowly(ones, bits)


def test_the_most_expensive_decisions():
    ones, bits = unlikely(400)
    body = range_coder.encode(ones, bits)
    assert body == coded_slowly(ones, bits) and 600 <= len(body) <= 601
    assert np.array_equal(range_coder.Decoder(body).decode(ones), bits)


@pytest.mark.parametrize("count", [0, 4, 52, 512, 4096])
def test_round_trip_in_batches_of_any_size_and_hardly_a_byte_above_entropy(count):
    ones, bits = decisions(count, count)
    body = range_coder.encode(ones, bits)
    likely = np.where(bits, ones, 4096 - ones) / 4096
    assert len(body) < 1.5 - np.log2(likely).sum() / 8
    decoder = range_coder.Decoder(body)
    found = [decoder.decode(part) for part in np.split(ones, [4 * (count // 12), 4 * (count // 6)])]
    decoder.finish()
    assert np.array_equal(np.concatenate(found), bits)


def test_a_batch_is_filled_up_with_certain_decisions():
    ones, bits = decisions(7, 0, certain=False)
    body = range_coder.encode(np.append(ones, 4096), np.append(bits, 1))
    assert np.array_equal(range_coder.Decoder(body).decode(ones), bits)


def received(body, ones):
    decoder = range_coder.Decoder(body)
    bits = decoder.decode(ones)
    decoder.finish()
    return bits


@pytest.mark.parametrize("seed", range(20))
def test_other_bytes_are_other_decisions_or_refused(seed):
    ones, bits = decisions(200, seed)
    body = range_coder.encode(ones, bits)
    rng = np.random.default_rng(seed)
    longer = [body + bytes(each) for each in (1, 2, 30)] + [body + rng.bytes(each) for each in (1, 3, 30)]
    others = [body[:-1] + bytes([body[-1] ^ 1]), *(body[:end] for end in range(len(body))), *longer]
    for other in others:
        try:
            found = received(other, ones)
        except PayloadError:
            continue
        assert not np.array_equal(found, bits) and range_coder.encode(ones, found) == other
    for other in (body + bytes(1), body + bytes(100)):
        with pytest.raises(PayloadError, match="more than"):
            received(other, ones)


def test_a_stream_that_fits_nothing():
    with pytest.raises(PayloadError, match="fits no symbols"):  # above all intervals, since widths are rounded down
        received(b"\xff" * 40, np.full(400, 2047, np.int64))
    with pytest.raises(PayloadError, match="fits no symbols"):  # at once, before numbers get as long as the stream
        range_coder.Decoder(b"\xff" * 40).decode(np.full(1_000_000, 2047, np.int64))
    assert received(b"", np.full(8, 4096, np.int64)).all()
