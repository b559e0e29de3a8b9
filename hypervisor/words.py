# SPDX-License-Identifier: GPL-2.0-or-later
"""Many consecutive 64-bit words at once: a run of them is one long number, its lanes the words.

Adding a number to each of 512 words, or making 512 leaves that follow each other, is one addition or multiplication
then, several times as fast as a loop over them.  As long as no lane over- or underflows, none touches its neighbour.
"""

import re
from array import array
from functools import cache
from typing import Final

LONGEST: Final = 512
"""Words in a run at most; the constants for each length are kept."""
_LOW_HALF: Final = (1 << 32) - 1
_ZEROS: Final = re.compile(rb"\0*")


@cache
def _ones(count: int) -> int:
    """1 in each of ``count`` lanes."""
    return sum(1 << 64 * k for k in range(count))


@cache
def _numbers(count: int) -> int:
    """0, 1, 2, ... in ``count`` lanes."""
    return sum(k << 64 * k for k in range(count))


def ladder(first: int, step: int, count: int) -> bytes:
    """``first``, ``first + step``, ... as ``count`` little-endian words."""
    return (first * _ones(count) + step * _numbers(count)).to_bytes(count << 3, "little")


def raised(words: bytes, addend: int) -> bytes:
    """``addend`` added to each word; no sum may need more than 64 bits."""
    return (int.from_bytes(words, "little") + addend * _ones(len(words) >> 3)).to_bytes(len(words), "little")


def lowered(words: bytes, low: int, high: int) -> bytes | None:
    """``low`` taken from the lower and ``high`` (0 or 1) from the upper half of each word, ``None`` if that would
    leave a lower half at 0 or below it, or an upper half below 0."""
    count = len(words) >> 3
    ones = _ones(count)
    lanes = int.from_bytes(words, "little")
    carries = ones << 32
    halves = ones * _LOW_HALF
    if (lanes & halves) + ones * (_LOW_HALF - low) & carries != carries:
        return None
    if high and (lanes >> 32 & halves) + halves & carries != carries:
        return None
    return (lanes - ones * (high << 32 | low)).to_bytes(count << 3, "little")


def leading_zeros(words: memoryview) -> int:
    """How many words come before the first that is not 0."""
    found = _ZEROS.match(words)
    assert found is not None  # it matches the empty string too
    return found.end() >> 3


def alike(items: "array[int] | bytearray", first: int, count: int) -> int:
    """How many of ``count`` items from ``first`` on, at least 1, are equal to the first of them."""
    one = items[first : first + 1]
    if items[first : first + count] == one * count:
        return count
    low, high = 1, count  # the first ``low`` are alike, the first ``high`` are not
    while high - low > 1:
        middle = low + high >> 1
        if items[first + low : first + middle] == one * (middle - low):
            low = middle
        else:
            high = middle
    return low
