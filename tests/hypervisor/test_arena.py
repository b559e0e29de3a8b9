# SPDX-License-Identifier: GPL-2.0-or-later
"""An arena hands out its lowest free page, whatever came back in which order, and knows what is its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.errors import XenBug
from hypervisor.iommu.pool import Arena

BASE, PAGES = 64, 8


@given(st.lists(st.integers(-1, PAGES - 1), max_size=60), st.lists(st.integers(-1, PAGES - 1), max_size=20))
def test_an_arena_is_a_set_of_free_pages_of_which_the_lowest_goes_first(before, after):
    arena, free = Arena(BASE, PAGES), set(range(BASE, BASE + PAGES))
    _play(arena, free, before)
    saved, then = arena.save(), set(free)
    _play(arena, free, after)
    arena.restore(saved)
    _play(arena, then, after)


def _play(arena, free, steps):
    """-1 takes a page, any other number gives that one back."""
    for step in steps:
        frame = BASE + step
        if step < 0:
            assert arena.allocate() == (min(free) if free else None)
            free.discard(min(free, default=None))
        elif frame in free:
            with pytest.raises(XenBug):
                arena.free(frame)
        else:
            arena.free(frame)
            free.add(frame)
        assert arena.used == PAGES - len(free)
        assert arena.in_use() == set(range(BASE, BASE + PAGES)) - free


@pytest.mark.parametrize("frame", [BASE - 1, BASE + PAGES])
def test_a_foreign_page_is_not_taken_back(frame):
    with pytest.raises(XenBug):
        Arena(BASE, PAGES).free(frame)
