# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices with caches of their own (ATS) behind both drivers: what goes away leaves their caches too, and one that does
not answer is cut off."""

import random

import pytest
from copying_device import Copying
from guest_calls import RW

from abi.errno import EIO
from hypervisor.smmuv3.device_caches import DeviceCaches, pages_of_device
from machine.iommu.unit import Fault
from testbed.build import COPIER, NIC


@pytest.fixture(params=["vtd", "smmuv3"])
def backend(request):
    return request.param


def test_a_device_that_caches_loses_what_is_unmapped(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    for count in (1, 2, 3, 16):
        for k in range(count):
            assert caller.map(copying.ctx, 2048 + k, 0x300 + k, 1, RW).rc == 0
            assert copying.reach(0x300 + k) == 2048 + k
        assert len(copying.cache)
        assert caller.unmap(copying.ctx, 0x300, count).rc == 0
        for k in range(count):
            assert copying.reach(0x300 + k) is None
    assert copying.sent >= 4


def test_only_the_pages_that_went_away_leave_the_devices_cache(backend):
    copying = Copying(backend=backend)
    assert copying.caller.map(copying.ctx, 2048, 0x300, 16, RW).rc == 0
    for k in range(16):
        assert copying.reach(0x300 + k) == 2048 + k
    assert copying.caller.unmap(copying.ctx, 0x304, 4).rc == 0
    assert len(copying.cache) == 12


def test_a_moved_device_takes_no_translation_along(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    second = caller.alloc()
    assert caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    assert caller.map(second, 2049, 0x300, 1, RW).rc == 0
    assert copying.reach(0x300) == 2048
    caller.attach(second, COPIER)
    assert copying.reach(0x300) == 2049
    assert caller.unmap(copying.ctx, 0x300, 1).rc == 0
    assert copying.reach(0x300) == 2049
    assert caller.unmap(second, 0x300, 1).rc == 0
    assert copying.reach(0x300) is None


def test_a_device_that_does_not_answer_is_cut_off_and_the_call_succeeds(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    assert caller.map(copying.ctx, 2048, 0x300, 2, RW).rc == 0
    assert copying.reach(0x300) == 2048
    copying.cache.answering = False
    assert caller.unmap(copying.ctx, 0x300, 1).rc == 0
    assert copying.reach(0x300) is None, "it still has the translation, and may not use it"
    assert copying.reach(0x301) is None, "nor anything else"
    assert copying.broken
    sent = copying.sent
    assert caller.unmap(copying.ctx, 0x301, 1).rc == 0
    assert copying.sent == sent, "nobody waits for it again"


def test_a_broken_device_goes_to_the_default_context_only_and_stays_blocked_there(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    assert caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    copying.reach(0x300)
    copying.cache.answering = False
    assert caller.unmap(copying.ctx, 0x300, 1).rc == 0
    second = caller.alloc()
    assert caller.attach(second, COPIER) == -EIO
    assert caller.attach(0, COPIER) == 0
    assert caller.attach(second, COPIER) == -EIO
    copying.cache.answering = True
    for dfn in (0x300, caller.gfn(2048)):
        assert copying.reach(dfn) is None
        assert isinstance(caller.testbed.translate(COPIER, dfn << 12, True), Fault)
    assert caller.free(copying.ctx) == 0


def test_a_device_that_falls_silent_during_its_move_is_cut_off_too(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    second = caller.alloc()
    assert caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    assert copying.reach(0x300) == 2048
    copying.cache.answering = False
    assert caller.attach(second, COPIER) == -EIO
    assert copying.reach(0x300) is None
    assert caller.map(second, 2049, 0x300, 1, RW).rc == 0
    assert copying.reach(0x300) is None


def test_a_snapshot_keeps_device_caches_and_who_is_broken(backend):
    copying = Copying(backend=backend)
    caller = copying.caller
    assert caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
    copying.reach(0x300)
    caller.testbed.snapshot()
    copying.cache.answering = False
    assert caller.unmap(copying.ctx, 0x300, 1).rc == 0
    caller.testbed.reset()
    assert not copying.broken
    assert len(copying.cache) == 1
    assert copying.reach(0x300) == 2048
    assert caller.unmap(copying.ctx, 0x300, 1).rc == 0
    assert copying.reach(0x300) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_caching_device_never_reaches_what_the_tree_does_not_say(backend, seed):
    copying = Copying(backend=backend, iotlb=("stale", "random:3", "eager", "oldest:2")[seed])
    caller, rng = copying.caller, random.Random(seed)
    contexts, current = [copying.ctx, caller.alloc()], copying.ctx
    for _ in range(150):
        ctx, dfn, count = rng.choice(contexts), 0x200 + rng.randrange(24), rng.choice([1, 1, 2, 4, 7])
        match rng.randrange(6):
            case 0 | 1:
                caller.map(ctx, 2048 + rng.randrange(9), dfn, count, RW)
            case 2 | 3:
                caller.unmap(ctx, dfn, count)
            case 4:
                current = rng.choice(contexts)
                assert caller.attach(current, COPIER) == 0
        for probe in (dfn, dfn + 1, 0x200 + rng.randrange(30)):
            mfn = caller.lookup(current, probe)
            got = copying.reach(probe)
            assert (None if got is None else caller.mfn(got)) == mfn


class TestSmmuv3Only:
    """What VT-d's own tests say of its words and order."""

    @pytest.fixture
    def backend(self):
        return "smmuv3"

    def test_only_devices_that_can_cache_are_allowed_to(self, backend):
        copying = Copying(backend=backend)
        copying.caller.attach(copying.ctx, NIC)
        memory, units = copying.caller.testbed.memory, copying.caller.xen.backend.units
        for unit, sbdf, eats in ((units[0], COPIER, 1), (units[1], NIC, 0)):
            word = memory.words[(unit.streams._entry(unit.stream_of(sbdf)) >> 3) + 1]
            assert word >> 28 & 3 == eats

    def test_the_tlb_forgets_before_the_devices_are_asked(self, backend, monkeypatch):
        copying = Copying(backend=backend)
        assert copying.caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
        types, queue = [], copying.caller.xen.backend.units[0].commands
        run_one = queue.run_one
        monkeypatch.setattr(queue, "run_one", lambda low, high: types.append(low & 0xFF) or run_one(low, high))
        assert copying.caller.unmap(copying.ctx, 0x300, 1).rc == 0
        assert types == [0x2A, 0x40]
        types.clear()
        copying.caller.attach(0, COPIER)
        assert types[:2] == [0x03, 0x40], "the entry aborts before the device forgets, or it would ask again"

    def test_invalidations_left_out_leave_the_device_where_it_was(self, backend, monkeypatch):
        copying = Copying(backend=backend)
        assert copying.caller.map(copying.ctx, 2048, 0x300, 1, RW).rc == 0
        assert copying.reach(0x300) == 2048
        monkeypatch.setattr(DeviceCaches, "forget", lambda *_: 0)
        assert copying.caller.unmap(copying.ctx, 0x300, 1).rc == 0
        assert copying.reach(0x300) == 2048

    @pytest.mark.parametrize(
        ("dfn", "pages", "first", "order"),
        [(5, 1, 5, 0), (4, 2, 4, 1), (5, 2, 4, 2), (0x3F8, 16, 0, 11), (0, 1 << 36, 0, 36)],
    )
    def test_a_command_covers_its_pages_with_one_aligned_power_of_two(self, backend, dfn, pages, first, order):
        assert pages_of_device(dfn, pages) == first << 12 | order
