# SPDX-License-Identifier: GPL-2.0-or-later
"""e3-fixed: a map whose flush the caller puts off, and flush_pages, on units that cache what is absent."""

import pytest
from guest_calls import MIB, RW, SCATTERED, bed

from abi.errno import EINVAL, EIO
from testbed.units import UnitSpec

NO_FLUSH = 1 << 3
DFN = 0x10


def caching(**config):
    return bed("vtd", "e3-fixed", "pvh", units=(UnitSpec("caching"),), **config)


def flushes(caller):
    """What the driver is told to flush from now on."""
    seen, flush = [], caller.xen.backend.flush

    def note(context, dfn, pages, changes):
        seen.append((context.number, dfn, pages))
        return flush(context, dfn, pages, changes)

    caller.xen.backend.flush = note
    return seen


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_the_capability_is_offered(backend):
    caller = bed(backend, "e3-fixed")
    offered = caller.call("query_capabilities").fields["cap_flags"]
    assert offered & caller.abi.caps["deferred_flush"]


def test_a_device_sees_the_mapping_after_the_flush_and_not_before():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    assert caller.reach(DFN) is None  # and the unit remembers that nothing is there
    assert caller.map(context, 9, DFN, flags=RW | NO_FLUSH).rc == 0
    assert caller.reach(DFN) is None
    assert caller.call("flush_pages", ctx_no=context, dfn=DFN, nr_pages=1).rc == 0
    assert caller.reach(DFN) == caller.mfn(9)


def test_without_the_flag_map_flushes_by_itself():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    assert caller.reach(DFN) is None
    assert caller.map(context, 9, DFN).rc == 0
    assert caller.reach(DFN) == caller.mfn(9)


def test_one_flush_for_many_maps():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    seen = flushes(caller)
    for page in range(16):
        assert caller.map(context, page + 16, DFN + page, flags=RW | NO_FLUSH).rc == 0
    assert seen == []
    assert caller.call("flush_pages", ctx_no=context, dfn=DFN, nr_pages=16).rc == 0
    assert seen == [(context, DFN, 16)]


def test_what_a_fold_took_away_is_flushed_all_the_same():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    assert caller.map(context, 512, 512, 256, flags=RW | NO_FLUSH).rc == 0
    seen = flushes(caller)
    assert caller.map(context, 768, 768, 256, flags=RW | NO_FLUSH).rc == 0
    assert caller.context(context).table.folds == 1
    assert len(seen) == 1


def test_unmap_knows_no_such_flag_and_flushes():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    assert caller.map(context, 9, DFN, flags=RW | NO_FLUSH).rc == 0
    assert caller.call("flush_pages", ctx_no=context, dfn=DFN, nr_pages=1).rc == 0
    assert caller.reach(DFN) == caller.mfn(9)
    assert caller.unmap(context, DFN).rc == 0
    assert caller.reach(DFN) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"ctx_no": 0},
        {"ctx_no": 7},
        {"pgsize": 0},
        {"pgsize": 2 * MIB, "dfn": 1},
        {"dfn": 1 << 40},
        {"dfn": (1 << 36) - 1, "nr_pages": 2},
    ],
)
def test_a_wrong_range_is_refused(fields):
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    seen = flushes(caller)
    assert caller.call("flush_pages", **{"ctx_no": context, "dfn": DFN, "nr_pages": 1} | fields).rc == -EINVAL
    assert seen == []


def test_no_pages_are_nothing_to_flush():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    seen = flushes(caller)
    assert caller.call("flush_pages", ctx_no=context, dfn=DFN, nr_pages=0).rc == 0
    assert seen == []


def test_hardware_that_does_not_confirm_is_eio():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    caller.xen.backend.flush = lambda *_: -EIO
    assert caller.call("flush_pages", ctx_no=context, dfn=DFN, nr_pages=1).rc == -EIO


def test_the_flag_is_v7s_unknown_one():
    caller = bed("vtd", "v7-fixed")
    assert caller.map(caller.alloc(), 9, DFN, flags=RW | NO_FLUSH).rc == -EINVAL


def test_a_preempted_map_keeps_its_flush_put_off():
    caller = caching()
    context = caller.alloc()
    assert caller.attach(context) == 0
    seen, passes = flushes(caller), []
    caller.xen.preempt = lambda vcpu: True
    caller.xen.rescheduled = passes.append
    answer = caller.map(context, SCATTERED, 0x1001, 1024, flags=RW | NO_FLUSH)
    assert (answer.rc, answer.fields["mapped"]) == (0, 1024)
    assert passes and seen == []
