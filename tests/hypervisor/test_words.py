# SPDX-License-Identifier: GPL-2.0-or-later
"""Arithmetic on whole runs of words is what it is on each of them."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.words import alike, ladder, leading_zeros, lowered, raised

WORDS = st.integers(0, (1 << 63) - 1)
RUNS = st.lists(WORDS, min_size=1, max_size=512)
HALVES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(first=WORDS, step=st.sampled_from([0, 1, 4096, 1 << 21, 1 << 30]), count=st.integers(1, 512))
def test_a_ladder_climbs_by_its_step(first, step, count):
    assert array("Q", ladder(first, step, count)).tolist() == [first + step * k for k in range(count)]


@given(words=RUNS, addend=WORDS)
def test_every_word_of_a_run_is_raised(words, addend):
    assert array("Q", raised(array("Q", words).tobytes(), addend)).tolist() == [word + addend for word in words]


@given(halves=HALVES, low=st.integers(0, 3), high=st.sampled_from([0, 1]))
def test_a_run_is_lowered_unless_a_word_of_it_has_too_little(halves, low, high):
    found = lowered(array("Q", [upper << 32 | lower for lower, upper in halves]).tobytes(), low, high)
    if all(lower > low and upper >= high for lower, upper in halves):
        assert found is not None
        assert array("Q", found).tolist() == [upper - high << 32 | lower - low for lower, upper in halves]
    else:
        assert found is None


@given(zeros=st.integers(0, 512), following=st.lists(st.sampled_from([0, 1, 1 << 63]), max_size=3))
def test_zeros_are_counted_up_to_the_first_word_with_a_bit_set(zeros, following):
    words = [0] * zeros + following
    expected = next((k for k, word in enumerate(words) if word), len(words))
    assert leading_zeros(memoryview(array("Q", words))) == expected


@given(items=st.lists(st.sampled_from([7, 7, 7, 7, 8]), min_size=1, max_size=64), first=st.integers(0, 63))
def test_items_are_alike_up_to_the_first_that_differs(items, first):
    first %= len(items)
    expected = next((k for k, item in enumerate(items[first:]) if item != items[first]), len(items) - first)
    assert alike(array("H", items), first, len(items) - first) == expected
    assert alike(bytearray(items), first, len(items) - first) == expected
