"""A range coder for binary decisions, in numpy and plain Python. Only integers decide, so all machines agree.

A decision has a probability in 4,096ths. Four decisions share one interval: their probabilities are multiplied exactly,
in numpy, and the loop in Python runs over such groups. A batch that is no multiple of four ends in certain decisions,
which cost nothing.

The interval is ``[low, low + width)``, inside of a window of 104 bits. A group makes it narrower; where it is too
narrow, both are shifted up by a word, and what leaves the window is kept. The stream is the shortest row of bytes that
names a number inside of the last interval, zeros being thought behind it. It says neither how long it is nor how many
decisions it holds, since both ends know that.
"""

from __future__ import annotations

import numpy as np

from .errors import PayloadError

GROUP = 4
PRECISION = 12
ONE = 1 << PRECISION  # certain
_GROUP_BITS = GROUP * PRECISION
_WORD_BITS = 48
_NARROW_BITS = 56  # so eight bits at least are left when a group takes 48 away, and one shift makes up for any group
_NARROW = 1 << _NARROW_BITS
_WINDOW_BITS = _NARROW_BITS + _WORD_BITS


def encode(ones: np.ndarray, bits: np.ndarray) -> bytes:
    """Code decisions, a whole number of groups.

    Args:
        ones: how probable a 1 is, int64, from 1 to 4,095, or 4,096 where it is certain.
        bits: 0 or 1, as many.
    """
    starts, shares = _intervals(ones, bits)
    low, width, total, words = 0, 1 << _WINDOW_BITS, 0, []
    for start, share in zip(starts, shares):
        width >>= _GROUP_BITS
        low += width * start
        width *= share
        if width < _NARROW:
            words.append(low >> _NARROW_BITS)  # may hold a carry
            low = (low & (_NARROW - 1)) << _WORD_BITS
            width <<= _WORD_BITS
    for word in words:
        total = (total << _WORD_BITS) + word
    return _shortest((total << _WINDOW_BITS) + low, width, _WINDOW_BITS + _WORD_BITS * len(words))


def _intervals(ones: np.ndarray, bits: np.ndarray) -> tuple[list[int], list[int]]:
    """Where each group's interval starts and how wide it is, in 2**48ths of what there was."""
    shares = np.where(bits, ones, ONE - ones)
    starts = np.where(bits, 0, ones)
    for scale in (PRECISION, 2 * PRECISION):
        starts = (starts[0::2] << scale) + shares[0::2] * starts[1::2]
        shares = shares[0::2] * shares[1::2]
    return starts.tolist(), shares.tolist()


def _shortest(low: int, width: int, scale_bits: int) -> bytes:
    """The fewest bytes that name a number inside of an interval, as a fraction of ``2**scale_bits``."""
    kept, dropped = low, 0
    while dropped < scale_bits:
        coarser = -(-low >> dropped + 8)
        if coarser << dropped + 8 >= low + width:
            break
        kept, dropped = coarser, dropped + 8
    return kept.to_bytes((scale_bits - dropped) // 8, "big")


class Decoder:
    """Gives back, batch by batch, what :func:`encode` got."""

    def __init__(self, body: bytes) -> None:
        self._body, self._read_bits = body, 0
        self._width = 1 << _WINDOW_BITS
        self._code = self._next(_WINDOW_BITS)

    def decode(self, ones: np.ndarray) -> np.ndarray:
        """Decisions with these probabilities of a 1, uint8; filled up to a whole group here.

        Raises:
            PayloadError: the stream lies outside of all intervals. Its numbers would grow without end from here on.
        """
        padded = ones.tolist() + [ONE] * (-len(ones) % GROUP)
        found, code, width = bytearray(), self._code, self._width
        say, each = found.append, iter(padded)
        # Written out four times, since a loop in here takes 1.4 times as long.
        for first, second, third, fourth in zip(each, each, each, each):
            width >>= _GROUP_BITS
            part = width * first
            edge = part << 36
            if code < edge:
                width = part
                say(1)
            else:
                code -= edge
                width = (width << PRECISION) - part
                say(0)
            part = width * second
            edge = part << 24
            if code < edge:
                width = part
                say(1)
            else:
                code -= edge
                width = (width << PRECISION) - part
                say(0)
            part = width * third
            edge = part << 12
            if code < edge:
                width = part
                say(1)
            else:
                code -= edge
                width = (width << PRECISION) - part
                say(0)
            part = width * fourth
            if code < part:
                width = part
                say(1)
            else:
                code -= part
                width = (width << PRECISION) - part
                say(0)
            if width < _NARROW:
                if code >= width:
                    raise _no_symbols()
                width <<= _WORD_BITS
                code = (code << _WORD_BITS) | self._next(_WORD_BITS)
        if code >= width:
            raise _no_symbols()
        self._code, self._width = code, width
        return np.frombuffer(found, np.uint8)[: len(ones)]

    def finish(self) -> None:
        """Check that the stream ends here and is the one that :func:`encode` makes.

        Raises:
            PayloadError: it is not.
        """
        below = self._read_bits - 8 * len(self._body)
        if below < 0:
            raise PayloadError("the stream holds more than this configuration's symbols")
        last = self._body[-1] << below if self._body else 0
        # The next number with a byte less must lie outside of the interval, and this be the first with so many.
        if self._code >> below or (self._body and (self._code - last) % (256 << below) < self._width):
            raise PayloadError("the stream holds more than this configuration's symbols")

    def _next(self, bits: int) -> int:
        """The next bits of the stream, zeros behind its end."""
        start = self._read_bits // 8
        self._read_bits += bits
        word = self._body[start : start + bits // 8]
        return int.from_bytes(word, "big") << bits - 8 * len(word)


def _no_symbols() -> PayloadError:
    return PayloadError("the stream fits no symbols of this configuration")
