# SPDX-License-Identifier: GPL-2.0-or-later
"""Cache tags are handed out from the lowest up, and a snapshot brings back exactly what was in use."""

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.iommu.tags import Tags

COUNT = 6


def taken(tags: Tags) -> list[int]:
    """What can still be taken, which takes it."""
    return list(iter(tags.take, None))


def test_the_lowest_free_tag_comes_first_until_there_is_none():
    tags = Tags(4)
    assert taken(tags) == [0, 1, 2, 3]
    tags.give(2)
    tags.give(1)
    assert taken(tags) == [1, 2]


@given(st.lists(st.one_of(st.none(), st.integers(0, COUNT - 1), st.sampled_from(["save", "restore"])), max_size=30))
def test_a_snapshot_brings_back_what_was_in_use(steps):
    tags, used = Tags(COUNT), set()
    saved, saved_used = tags.save(), set()
    for step in steps:
        if step is None:
            lowest = min(set(range(COUNT)) - used, default=None)
            assert tags.take() == lowest
            used |= {lowest} - {None}
        elif step == "save":
            saved, saved_used = tags.save(), set(used)
        elif step == "restore":
            tags.restore(saved)
            used = set(saved_used)
        else:
            tags.give(step)
            used.discard(step)
    assert taken(tags) == sorted(set(range(COUNT)) - used)
