# SPDX-License-Identifier: GPL-2.0-or-later
"""Hardware that does not confirm an invalidation: -EIO, and nothing that a device may still reach is used again.

H7: the posted versions log it and report success.
"""

from collections.abc import Callable

import pytest
from guest_calls import RMRR_BASE, RMRR_DFN, RW, Caller, bed

from abi.errno import EIO, ENOENT
from hypervisor.frames import DOMID_NONE
from hypervisor.pagetable.radix import Changes
from hypervisor.pviommu import mappings
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC

SWITCHES = {
    "vtd": (0xFED9_0018, 1 << 31, 1 << 31 | 1 << 26),  # GCMD: translation without, with queued invalidation
    "smmuv3": (0xFD00_0020, 0b0101, 0b1101),  # CR0: SMMUEN and EVENTQEN without, with CMDQEN
}
"""By backend: a register's address, a value that stops the invalidation queue, one that lets it go on."""


class Stuck:
    """A unit whose queue stops and goes on at our word."""

    def __init__(self, caller: Caller) -> None:
        self.bus = caller.testbed.bus
        self.register, self.off, self.on = SWITCHES[caller.testbed.config.backend]

    def stop(self) -> None:
        self.bus.write32(self.register, self.off)

    def go_on(self) -> None:
        self.bus.write32(self.register, self.on)


@pytest.fixture
def stuck(caller: Caller) -> Stuck:
    return Stuck(caller)


def in_context(caller: Caller, sbdf: int = NIC) -> int:
    ctx = caller.alloc()
    assert caller.attach(ctx, sbdf) == 0
    return ctx


def test_an_unconfirmed_unmap_keeps_the_frames_for_good(caller: Caller, stuck: Stuck) -> None:
    ctx = in_context(caller)
    assert caller.map(ctx, 64, 8, 4).rc == 0
    for k in range(4):
        assert caller.reach(8 + k, write=True) == caller.mfn(64 + k)
    used = caller.arena_used
    stuck.stop()
    answer = caller.unmap(ctx, 8, 3)
    assert (answer.rc, answer.fields["unmapped"]) == (-EIO, 3)
    assert caller.lookup(ctx, 8) is None
    for k in range(3):
        assert caller.xen.remove_page(caller.dom0, caller.gfn(64 + k)) in (0, -EIO)
        assert caller.frames.owner[caller.mfn(64 + k)] == 0, "a device may still write to it"
    assert caller.unmap(ctx, 11).rc == -EIO
    assert caller.arena_used >= used, "hardware may still walk the table"
    stuck.go_on()
    assert caller.map(ctx, 80, 8, 4).rc == 0
    assert caller.unmap(ctx, 8, 4).rc == 0
    assert [caller.refs(80 + k) for k in range(4)] == [0] * 4
    assert any("flush" in line for line in caller.xen.console)
    for k in range(3):
        assert caller.frames.count(caller.mfn(64 + k)) >= 1
    assert caller.attach(0) == 0
    assert caller.free(ctx) == 0


def test_an_unconfirmed_fold_is_eio_with_the_pages_mapped(caller: Caller, stuck: Stuck) -> None:
    ctx = in_context(caller)
    assert caller.map(ctx, 0, 0x1000, 256).rc == 0
    assert caller.reach(0x1000) == caller.mfn(0)
    stuck.stop()
    answer = caller.map(ctx, 256, 0x1100, 256)
    assert (answer.rc, answer.fields["mapped"]) == (-EIO, 256)
    assert caller.lookup(ctx, 0x1000 + 511) == caller.mfn(511)
    assert all(caller.refs(pfn) == 1 for pfn in range(512))
    stuck.go_on()
    assert caller.unmap(ctx, 0x1000, 256).rc == 0
    assert caller.unmap(ctx, 0x1100, 256).rc == 0
    assert all(caller.refs(pfn) == 0 for pfn in range(512))


def test_an_addition_needs_no_confirmation(caller: Caller, stuck: Stuck) -> None:
    ctx = in_context(caller)
    stuck.stop()
    assert caller.map(ctx, 64, 8).rc == 0
    stuck.go_on()
    assert caller.reach(8) == caller.mfn(64)


def test_an_unconfirmed_free_may_be_repeated_and_the_tag_is_clean_when_it_comes_back(
    caller: Caller, stuck: Stuck
) -> None:
    """A new context must not inherit what hardware remembers under the old one's tag."""
    ctx = in_context(caller)
    assert caller.map(ctx, 64, 8, 4).rc == 0
    assert caller.reach(8, write=True) == caller.mfn(64)
    stuck.stop()
    assert caller.unmap(ctx, 8).rc == -EIO
    stuck.go_on()
    assert caller.attach(0) == 0
    stuck.stop()
    rc = caller.free(ctx)
    assert rc in (0, -EIO)
    if rc:
        assert caller.context(ctx).dying
        assert caller.alloc() != ctx
    stuck.go_on()
    assert caller.free(ctx) == (0 if rc else -ENOENT)
    assert caller.frames.count(caller.mfn(64)) == 1, "hardware has confirmed that it forgot"
    assert caller.alloc() == ctx
    assert caller.attach(ctx) == 0
    assert [caller.reach(8 + k) for k in range(4)] == [None] * 4, "what the old context mapped"


def test_a_page_is_not_freed_while_the_default_context_may_reach_it(caller: Caller, stuck: Stuck) -> None:
    gfn, mfn = caller.gfn(64), caller.mfn(64)
    assert caller.reach(gfn, write=True) == mfn
    stuck.stop()
    for _ in range(2):
        assert caller.xen.remove_page(caller.dom0, gfn) == -EIO
        assert caller.frames.owner[mfn] == 0
    stuck.go_on()
    assert caller.xen.remove_page(caller.dom0, gfn) == 0
    assert caller.frames.owner[mfn] == DOMID_NONE
    assert caller.reach(gfn) is None


def test_an_unconfirmed_move_leaves_the_device_in_its_context(caller: Caller, stuck: Stuck) -> None:
    ctx, other = in_context(caller), caller.alloc()
    assert caller.map(ctx, 64, 8).rc == 0
    assert caller.map(other, 65, 8).rc == 0
    assert caller.reach(8) == caller.mfn(64)
    stuck.stop()
    assert caller.attach(other) == -EIO
    assert caller.dom0.devices[NIC].context is caller.context(ctx)
    assert caller.reach(8) in (caller.mfn(64), None)
    stuck.go_on()
    assert caller.free(other) == 0
    assert caller.reach(8) in (caller.mfn(64), None)
    third = caller.alloc()
    assert caller.map(third, 66, 8).rc == 0
    assert caller.attach(third) == 0
    assert caller.reach(8) == caller.mfn(66)
    assert caller.attach(ctx) == 0
    assert caller.reach(8) == caller.mfn(64)


def test_a_preempted_unmap_stops_at_the_first_pass_that_is_not_confirmed(caller7: Caller) -> None:
    caller = caller7
    stuck = Stuck(caller)
    ctx = in_context(caller)
    for k in range(0, 2048, 2):
        assert caller.map(ctx, k, 0x1000 + k).rc == 0
        assert caller.map(ctx, k, 0x1001 + k).rc == 0
    caller.xen.preempt = lambda vcpu: True
    caller.xen.rescheduled = lambda vcpu: stuck.stop()
    usual, mappings.PASS_PAGES = mappings.PASS_PAGES, 512
    try:
        answer = caller.unmap(ctx, 0x1000, 2048)
    finally:
        mappings.PASS_PAGES = usual
    assert answer.rc == -EIO
    done = answer.fields["unmapped"]
    assert 512 < done < 2048
    assert caller.lookup(ctx, 0x1000 + done - 1) is None
    assert caller.lookup(ctx, 0x1000 + done) is not None
    assert sum(caller.refs(k) for k in range(0, 512, 2)) == 0
    assert sum(caller.refs(k) for k in range(512, 2048, 2)) == 2048 - 512


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_a_region_that_could_not_be_flushed_in_is_not_left_behind(backend: str) -> None:
    region = Rmrr(RMRR_BASE, RMRR_BASE + 0xF_FFFF, (COPIER,))  # half a superpage
    caller = bed(backend, rmrrs=(region,), ram=64 << 20)
    ctx = in_context(caller, NIC)
    flush: Callable[..., int] = caller.xen.backend.flush
    caller.xen.backend.flush = lambda *args: -EIO
    table = caller.context(ctx).table
    table.map(RMRR_DFN + 256, RMRR_DFN + 256, 256, table.format.permission[3], Changes())  # so that it folds
    assert caller.attach(ctx, COPIER) == -EIO
    caller.xen.backend.flush = flush
    assert not caller.context(ctx).identity
    assert caller.lookup(ctx, RMRR_DFN) is None
    assert caller.map(ctx, 64, RMRR_DFN, flags=RW).rc == 0
