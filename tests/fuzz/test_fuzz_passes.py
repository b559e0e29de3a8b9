# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that are preempted are held linearizable pass by pass: sound code is, and a look without a lock is not."""

import pytest

from fuzz.concurrent import Concurrent
from fuzz.engines.schedules import Explorer, simplify
from fuzz.passes import Pauses, WantedElsewhere
from fuzz.program import parse
from hypervisor.locking.guards import GUARDS, one_context

HEAD = "# pviommu program 1\nbench backend={} profile={} guest={} contexts=4 arena=6\nalloc\n"
MAP_IN_PASSES = (
    HEAD.format("vtd", "v7-fixed", "pvh") + "preempt pattern=0x1\nvcpu 0\nmap ctx=1 frame=ram:8 at=0x401 pages=1300\n"
    "vcpu 1\nunmap ctx=1 at=0x402\nmap ctx=1 frame=ram:9 at=0x900\n"
)
FREE_IN_PASSES = (
    HEAD.format("smmuv3", "v3-fixed", "pv")
    + "".join(f"map ctx=1 frame=ram:8 at={0x401 + 256 * k:#x} pages=256\n" for k in range(5))
    + "preempt pattern=0x1\nvcpu 0\nfree ctx=1\nvcpu 1\nmap ctx=1 frame=ram:9 at=0x10\nfree ctx=1\nalloc\n"
)


def attempts(text, strategy, runs, preemptions=1):
    explorer = Explorer(Concurrent(parse(text)), full=False)
    return list(explorer.attempts(strategy, runs, 1, 3, preemptions))


def broken(found):
    return {attempt.broken.clause for attempt in found if attempt.broken is not None}


@pytest.mark.parametrize("strategy", ["random", "exhaustive"])
@pytest.mark.parametrize("text", [MAP_IN_PASSES, FREE_IN_PASSES])
def test_sound_calls_in_passes_are_linearizable(text, strategy):
    found = attempts(text, strategy, 60)
    assert not [f"{attempt.schedule}: {attempt.broken}" for attempt in found if attempt.broken is not None]
    between = [point for attempt in found for point in attempt.run.points if point.kind == "pass"]
    assert between and len({str(attempt.run.results) for attempt in found}) > 2


def test_whole_calls_would_not_explain_what_sound_code_does(monkeypatch):
    """An unmap after the first pass and a map before the last: no order of the three calls answers like that."""
    said = Pauses.said
    monkeypatch.setattr(Pauses, "said", lambda self, point: None if point.kind == "pass" else said(self, point))
    assert broken(attempts(MAP_IN_PASSES, "exhaustive", 60)) == {"linearizable"}


def _counts_before_it_locks(locks, domain, args, call):
    """What unmap_pages says that it removed is the difference of two looks, and the first is taken too early."""

    def mapped():
        context = domain.iommu.contexts.get(args[0])
        return sum(context.table.lookup(page) is not None for page in range(0x400, 0x600)) if context else 0

    before = mapped()
    result, _ = one_context(locks, domain, args, call)
    return result, (abs(before - mapped()),)


def test_a_look_without_the_lock_is_found_between_the_passes_of_a_map(monkeypatch):
    monkeypatch.setitem(GUARDS, "unmap_pages", _counts_before_it_locks)
    found = attempts(MAP_IN_PASSES, "exhaustive", 60)
    assert broken(found) == {"linearizable"}
    first = next(attempt for attempt in found if attempt.broken is not None)
    concurrent = Concurrent(parse(MAP_IN_PASSES))
    simple = simplify(concurrent, first)
    assert len(simple.run.schedule.switches) <= 2
    again = concurrent.attempt(simple.schedule)
    assert (again.broken, again.run.points) == (simple.broken, simple.run.points)


def test_each_vcpu_is_asked_by_the_whole_pattern_in_every_run():
    text = MAP_IN_PASSES.replace("pattern=0x1", "pattern=0x2")
    concurrent = Concurrent(parse(text))
    runs = [concurrent.attempt("", full=False).run for _ in range(2)]
    assert runs[0].points == runs[1].points
    wanted = WantedElsewhere(0b10)
    assert [wanted(who) for who in ("a", "a", "b", "b", "b")] == [False, True, False, True, False]
