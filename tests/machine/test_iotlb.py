# SPDX-License-Identifier: GPL-2.0-or-later
"""The tagged translation cache against a list that is searched from end to end, and its replacement policies."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.iommu.iotlb import ORDERS, IoTlb
from machine.iommu.replacement import Eager, Oldest, Random, parse

PAGES = st.one_of(st.integers(0, 1 << 20), st.sampled_from((0, 511, 512, 513, 1 << 18, (1 << 18) - 1)))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(0, 2), PAGES, st.sampled_from(ORDERS)),
        st.tuples(st.just("look"), st.integers(0, 2), PAGES, st.just(0)),
        st.tuples(st.just("pages"), st.integers(0, 2), PAGES, st.sampled_from((1, 2, 8, 512, 1 << 19))),
        st.tuples(st.just("tag"), st.integers(0, 2), st.just(0), st.just(0)),
        st.tuples(st.just("all"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=50,
)


def covers(entry, tag, page, count=1):
    entry_tag, entry_page, order = entry[:3]
    first = entry_page >> order << order
    return entry_tag == tag and first < page + count and page < first + (1 << order)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_cache_answers_as_a_plain_list_of_entries_does(steps):
    cache, entries = IoTlb(), []
    for number, (what, tag, page, detail) in enumerate(steps):
        if what == "insert":
            entries = [e for e in entries if not (e[2] == detail and covers(e, tag, page))]
            entries.append((tag, page, detail, number))
            cache.insert(tag, page, detail, number)
        elif what == "look":
            found = min((e for e in entries if covers(e, tag, page)), key=lambda e: e[2], default=None)
            assert cache.lookup(tag, page) == (found and found[3])
            assert cache.order(tag, page) == (found and found[2])
        else:
            if what == "pages":
                gone = [e for e in entries if covers(e, tag, page, detail)]
                assert cache.invalidate_pages(tag, page, detail) == len(gone)
            elif what == "tag":
                gone = [e for e in entries if e[0] == tag]
                assert cache.invalidate_tag(tag) == len(gone)
            else:
                gone = entries
                assert cache.invalidate_all() == len(gone)
            entries = [e for e in entries if e not in gone]
        assert len(cache) == len(entries)


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, policy=st.one_of(st.just("eager"), st.builds("oldest:{}".format, st.integers(0, 4)),
                                     st.builds("random:{}".format, st.integers(0, 99))))  # fmt: skip
def test_no_policy_makes_a_cache_answer_what_the_most_stale_one_does_not_hold(steps, policy):
    cache, everything = IoTlb(replacement=parse(policy)), IoTlb()
    held = {}
    for number, (what, tag, page, detail) in enumerate(steps):
        if what == "insert":
            for each in (cache, everything):
                each.insert(tag, page, detail, number)
            held[number] = (tag, page, detail)
        elif what == "look":
            entry = cache.lookup(tag, page)
            assert entry is None or covers(held[entry], tag, page)
        else:
            for each in (cache, everything):
                if what == "pages":
                    each.invalidate_pages(tag, page, detail)
                elif what == "tag":
                    each.invalidate_tag(tag)
                else:
                    each.invalidate_all()
            gone = [e for e, (t, p, o) in held.items() if what == "all" or (t == tag and (
                what == "tag" or covers((t, p, o), tag, page, detail)))]  # fmt: skip
            for entry in gone:
                del held[entry]
        assert len(cache) <= len(everything)


def filled(policy, count=100):
    cache = IoTlb(replacement=policy)
    for page in range(count):
        cache.insert(page & 3, page, 0, page)
    return cache


def kept(cache, count=100):
    return [page for page in range(count) if cache.lookup(page & 3, page) is not None]


def test_most_stale_keeps_everything_and_eager_nothing():
    assert kept(filled(parse("stale"))) == list(range(100))
    assert kept(filled(Eager())) == []


def test_oldest_keeps_as_many_as_it_has_room_for():
    assert len(kept(filled(Oldest(7)))) == 7
    assert kept(filled(Oldest(1))) == [99]
    cache = IoTlb(2)
    for page in range(4):
        cache.insert(0, page, 0, page)
    assert [cache.lookup(0, page) for page in range(4)] == [None, None, 2, 3]


def test_random_repeats_by_seed_and_differs_between_seeds():
    first = kept(filled(Random(5)))
    assert first == kept(filled(Random(5)))
    assert first != kept(filled(Random(6)))
    assert 10 < len(first) < 90
    assert len(kept(filled(Random(5, capacity=3)))) <= 3


def test_random_goes_on_from_a_saved_state():
    policy = Random(9)
    filled(policy)
    state = policy.save()
    first = kept(filled(policy))
    policy.restore(state)
    assert kept(filled(policy)) == first


@pytest.mark.parametrize("text", ["", "lru", "stale:1", "eager:2", "oldest", "random:", "random:-1", "oldest:x"])
def test_unknown_policy_is_refused_by_name(text):
    with pytest.raises(ValueError, match="oldest:N"):
        parse(text)


def test_impossible_capacities_are_refused():
    for make in (lambda: Oldest(-1), lambda: Random(1, 0)):
        with pytest.raises(ValueError):
            make()


def test_saved_cache_comes_back():
    cache = filled(None, 10)
    state = cache.save()
    cache.invalidate_all()
    cache.restore(state)
    assert kept(cache, 10) == list(range(10)) and len(cache) == 10 and set(cache.tags()) == {0, 1, 2, 3}
