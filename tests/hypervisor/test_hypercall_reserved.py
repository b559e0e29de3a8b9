# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved memory regions (RMRR): they move with their device, and no sub-op may touch them."""

from itertools import product

import pytest
from guest_calls import RMRR_BASE, RMRR_DFN, RW, Caller, R, bed

from abi.errno import EADDRINUSE, EADDRNOTAVAIL, ENOENT, ENOMEM
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE

FOUR = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,))
ALL = list(product(("vtd", "smmuv3"), ("v3-fixed", "v7-fixed"), ("pv", "pvh")))
NEWER = [which for which in ALL if which[1] == "v7-fixed"]


@pytest.fixture(params=ALL, ids="-".join)
def caller(request: pytest.FixtureRequest) -> Caller:
    return bed(*request.param, rmrrs=(FOUR,))


@pytest.fixture(params=NEWER, ids="-".join)
def caller7(request: pytest.FixtureRequest) -> Caller:
    return bed(*request.param, rmrrs=(FOUR,))


def in_context(caller: Caller) -> int:
    ctx = caller.alloc()
    assert caller.attach(ctx, COPIER) == 0
    return ctx


def test_the_region_is_there_before_the_device_is_and_goes_with_it(caller: Caller) -> None:
    assert caller.reach(RMRR_DFN, COPIER, write=True) == RMRR_DFN
    ctx = in_context(caller)
    for k in range(4):
        assert caller.reach(RMRR_DFN + k, COPIER, write=True) == RMRR_DFN + k
    assert caller.lookup(ctx, RMRR_DFN + 4) is None, "D4: one page too many in the posted v7"
    assert caller.lookup(ctx, RMRR_DFN - 1) is None
    assert caller.attach(0, COPIER) == 0
    assert caller.lookup(ctx, RMRR_DFN) is None
    assert caller.reach(RMRR_DFN, COPIER, write=True) == RMRR_DFN
    assert caller.free(ctx) == 0
    assert caller.arena_used == 0


def test_a_device_without_regions_brings_none(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.attach(ctx, NIC) == 0
    assert caller.reach(RMRR_DFN, NIC) is None
    assert caller.map(ctx, 64, RMRR_DFN).rc == 0


def test_a_range_that_enters_the_region_stops_at_its_first_page(caller: Caller) -> None:
    """D1: the posted versions test the first page of the call only."""
    ctx = in_context(caller)
    answer = caller.map(ctx, 2048, RMRR_DFN - 3, 8)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRNOTAVAIL, 3)
    assert [caller.refs(2048 + k) for k in range(5)] == [1, 1, 1, 0, 0]
    answer = caller.unmap(ctx, RMRR_DFN - 3, 8)
    assert (answer.rc, answer.fields["unmapped"]) == (-EADDRNOTAVAIL, 3)
    assert caller.reach(RMRR_DFN, COPIER, write=True) == RMRR_DFN


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_range_that_starts_in_the_region_is_refused_at_once(caller: Caller, offset: int) -> None:
    ctx = in_context(caller)
    for pages in (1, 8):
        answer = caller.map(ctx, 2048, RMRR_DFN + offset, pages)
        assert (answer.rc, answer.fields["mapped"]) == (-EADDRNOTAVAIL, 0)
        answer = caller.unmap(ctx, RMRR_DFN + offset, pages)
        assert (answer.rc, answer.fields["unmapped"]) == (-EADDRNOTAVAIL, 0)


def test_the_pages_around_the_region_are_the_guests(caller: Caller) -> None:
    ctx = in_context(caller)
    assert caller.map(ctx, 64, RMRR_DFN - 1).rc == 0
    assert caller.map(ctx, 65, RMRR_DFN + 4).rc == 0
    assert caller.unmap(ctx, RMRR_DFN - 1).rc == 0
    assert caller.unmap(ctx, RMRR_DFN + 4).rc == 0


def test_the_region_comes_before_frame_and_conflict(caller: Caller) -> None:
    ctx = in_context(caller)
    answer = caller.call("map_pages", ctx_no=ctx, gfn=1 << 40, dfn=RMRR_DFN, flags=RW)
    assert answer.rc == -EADDRNOTAVAIL


def test_a_mapping_in_the_way_keeps_the_device_out_and_nothing_is_left(caller: Caller) -> None:
    """D5: the posted v7 maps over it silently."""
    for offset in (0, 2, 3):
        ctx = caller.alloc()
        assert caller.map(ctx, 64, RMRR_DFN + offset).rc == 0
        used = caller.arena_used
        assert caller.attach(ctx, COPIER) == -EADDRINUSE
        assert caller.dom0.devices[COPIER].context is caller.context(0)
        assert caller.reach(RMRR_DFN, COPIER) == RMRR_DFN
        assert [caller.lookup(ctx, RMRR_DFN + k) for k in range(4) if k != offset] == [None] * 3
        assert caller.lookup(ctx, RMRR_DFN + offset) == caller.mfn(64)
        assert not caller.context(ctx).identity
        assert caller.arena_used == used
        assert caller.unmap(ctx, RMRR_DFN + offset).rc == 0
        assert caller.attach(ctx, COPIER) == 0
        assert caller.attach(0, COPIER) == 0
        assert caller.free(ctx) == 0


def test_free_with_the_flag_takes_the_region_along(caller: Caller) -> None:
    ctx = in_context(caller)
    assert caller.map(ctx, 64, RMRR_DFN + 4).rc == 0
    assert caller.free(ctx, flags=1) == 0
    assert caller.reach(RMRR_DFN, COPIER, write=True) == RMRR_DFN
    assert caller.refs(64) == 0
    assert caller.arena_used == 0


def test_regions_hold_no_references_on_firmwares_frames(caller: Caller) -> None:
    counts = [caller.frames.refs[RMRR_DFN + k] for k in range(4)]
    ctx = in_context(caller)
    assert [caller.frames.refs[RMRR_DFN + k] for k in range(4)] == counts
    assert caller.free(ctx, flags=1) == 0
    assert [caller.frames.refs[RMRR_DFN + k] for k in range(4)] == counts


def test_no_memory_for_the_region_keeps_the_device_out(caller7: Caller) -> None:
    ctx = caller7.alloc()
    k = 1
    while caller7.map(ctx, 64 + k, k << 18).rc == 0:
        k += 1
    assert caller7.attach(ctx, COPIER) == -ENOMEM
    assert caller7.attach(ctx, NIC) == 0
    assert caller7.reach(RMRR_DFN, COPIER) == RMRR_DFN
    assert caller7.unmap(ctx, 1 << 18).rc == 0
    assert caller7.attach(ctx, COPIER) == 0


@pytest.mark.parametrize("guest", ["pv", "pvh"])
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_a_region_of_two_devices_stays_until_the_second_leaves(backend: str, guest: str) -> None:
    shared = Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER, ROGUE))
    caller = bed(backend, "v7-fixed", guest, rmrrs=(shared,))
    ctx = caller.alloc()
    for sbdf in (COPIER, ROGUE):
        assert caller.attach(ctx, sbdf) == 0
    assert caller.attach(0, COPIER) == 0
    assert caller.reach(RMRR_DFN, ROGUE, write=True) == RMRR_DFN
    assert caller.map(ctx, 64, RMRR_DFN).rc == -EADDRNOTAVAIL
    assert caller.attach(0, ROGUE) == 0
    assert caller.map(ctx, 64, RMRR_DFN).rc == 0


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_regions_that_overlap_another_devices_keep_it_out(backend: str) -> None:
    """Declared in context 0 they would be refused at boot, so the second one is given later."""
    caller = bed(backend, rmrrs=(FOUR,))
    ctx = in_context(caller)
    rogue = caller.dom0.devices[ROGUE]
    rogue.reserved = [(RMRR_DFN + 8, RMRR_DFN + 9), (RMRR_DFN + 3, RMRR_DFN + 4)]
    assert caller.attach(ctx, ROGUE) == -EADDRINUSE
    assert caller.lookup(ctx, RMRR_DFN + 8) is None, "the first of its regions went again"
    assert len(caller.context(ctx).identity) == 1


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("pages", [512, 600, 1024])
def test_large_regions_become_superpages_and_go_as_they_came(backend: str, pages: int) -> None:
    region = Rmrr(RMRR_BASE, RMRR_BASE + (pages << 12) - 1, (COPIER,))
    caller = bed(backend, rmrrs=(region,), ram=64 << 20)
    ctx = in_context(caller)
    for k in (0, 1, 511, pages - 1):
        assert caller.reach(RMRR_DFN + k, COPIER, write=True) == RMRR_DFN + k
    answer = caller.unmap(ctx, RMRR_DFN, 1, pgsize=2 << 20)
    assert answer.rc == -EADDRNOTAVAIL
    assert caller.attach(0, COPIER) == 0
    assert caller.free(ctx) == 0
    assert caller.arena_used == 0


def test_a_superpage_unit_around_the_region_is_refused_as_a_whole(caller7: Caller) -> None:
    ctx = in_context(caller7)
    start = RMRR_DFN & ~511
    assert caller7.map(ctx, 0, start, RMRR_DFN - start).rc == 0 if start < RMRR_DFN else True
    base = start - 512
    answer = caller7.map(ctx, 0, base, 2, pgsize=2 << 20)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRNOTAVAIL, 1)
    answer = caller7.unmap(ctx, base, 2, pgsize=2 << 20)
    assert (answer.rc, answer.fields["unmapped"]) == (-EADDRNOTAVAIL, 1)
    assert caller7.reach(RMRR_DFN, COPIER) == RMRR_DFN


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_a_unit_with_a_region_inside_is_neither_mapped_nor_unmapped_in_part(backend: str) -> None:
    inside = Rmrr(RMRR_BASE + 0x10_0000, RMRR_BASE + 0x10_0FFF, (COPIER,))
    caller = bed(backend, rmrrs=(inside,))
    ctx = in_context(caller)
    answer = caller.map(ctx, 0, RMRR_DFN, 1, pgsize=2 << 20)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRNOTAVAIL, 0)
    assert caller.lookup(ctx, RMRR_DFN) is None
    for dfn, pages in ((RMRR_DFN, 256), (RMRR_DFN + 257, 255)):
        assert caller.map(ctx, 0, dfn, pages, flags=R).rc == 0
    answer = caller.unmap(ctx, RMRR_DFN, 1, pgsize=2 << 20)
    assert (answer.rc, answer.fields["unmapped"]) == (-EADDRNOTAVAIL, 0)
    assert caller.lookup(ctx, RMRR_DFN) == caller.mfn(0)


def test_a_region_in_the_way_of_preempted_calls(caller7: Caller) -> None:
    caller7.xen.preempt = lambda vcpu: True
    ctx = in_context(caller7)
    start = RMRR_DFN - 1500
    answer = caller7.map(ctx, 0, start, 2048)
    assert (answer.rc, answer.fields["mapped"]) == (-EADDRNOTAVAIL, 1500)
    answer = caller7.unmap(ctx, start, 2048)
    assert (answer.rc, answer.fields["unmapped"]) == (-EADDRNOTAVAIL, 1500)


def test_lookup_of_a_region_never_is_a_bug() -> None:
    """D6: the posted v3 crashes where the frame has no guest frame number."""
    for guest, expected in (("pv", 0), ("pvh", -ENOENT)):
        caller = bed("vtd", "v3-fixed", guest, rmrrs=(FOUR,))
        ctx = in_context(caller)
        answer = caller.call("lookup_page", ctx_no=ctx, dfn=RMRR_DFN)
        assert answer.rc == expected
        assert caller.map(ctx, 64, 8).rc == 0
        assert caller.call("lookup_page", ctx_no=ctx, dfn=8).fields["gfn"] == caller.gfn(64)


def test_a_region_in_the_translated_guests_own_memory_is_a_faulty_set_up() -> None:
    """Its ordinary memory is at that device frame already, and not one to one."""
    with pytest.raises(ValueError, match="taken"):
        bed("vtd", guest="pv", rmrrs=(Rmrr(0x40_0000, 0x40_0FFF, (COPIER,)),))
    beyond_ram = 0xE800_0000
    overlapping = (
        Rmrr(beyond_ram, beyond_ram + 0x1FFF, (COPIER,)),
        Rmrr(beyond_ram + 0x1000, beyond_ram + 0x2FFF, (ROGUE,)),
    )
    with pytest.raises(ValueError, match="could not be given"):
        bed("vtd", rmrrs=overlapping)
    with pytest.raises(ValueError, match="could not be given"):
        bed("vtd", guest="pvh", rmrrs=(Rmrr(0x1F_0000, 0x1F_0FFF, (COPIER,)),))
    with pytest.raises(ValueError, match="whole pages"):
        bed(rmrrs=(Rmrr(0x123, 0x1FFF, (COPIER,)),))
    with pytest.raises(ValueError, match="whole pages"):
        bed(rmrrs=(Rmrr(0x2000, 0x1FFF, (COPIER,)),))
