# SPDX-License-Identifier: GPL-2.0-or-later
"""Which frames may be mapped, what reference that takes, and when a frame is free again."""

import pytest
from guest_calls import ARG, RMRR_BASE, RMRR_DFN, RW, Caller, R, W, bed
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.errno import EADDRINUSE, EINVAL, EIO, ENOENT, EPERM
from base.units import DomId
from hypervisor import p2m
from hypervisor.frames import DOMID_NONE
from machine.firmware import Rmrr
from testbed.build import COPIER, MMIO_START, NIC_BAR

OTHER = DomId(7)
NEWER = "v7-fixed"


def other_domains_frame(caller: Caller) -> int:
    if OTHER not in caller.xen.domains:
        caller.xen.create_domain(OTHER, p2m_frames=64)
    mfn = caller.frames.allocate(OTHER)
    assert mfn is not None
    return mfn


def try_map(caller: Caller, ctx: int, gfn: int, flags: int, dfn: int = 0x900) -> int:
    """Map one frame and take it out again; a refusal has to leave no trace."""
    before = caller.everything()
    answer = caller.call("map_pages", ctx_no=ctx, gfn=gfn, dfn=dfn, flags=flags, nr_pages=1)
    if answer.rc:
        assert answer.fields["mapped"] == 0
        assert caller.xen.save() == before
        assert caller.changed_frames() <= {caller.mfn(ARG)}
        return answer.rc
    assert answer.fields["mapped"] == 1
    assert caller.unmap(ctx, dfn).rc == 0
    after = caller.xen.save()
    assert after[0] == before[0], "owners or references differ after map and unmap"
    return 0


# ---------------------------------------------------------------------------------------- translated guests: the p2m


def kinds(caller: Caller) -> dict[int, tuple[int, int]]:
    """By p2m type of an own frame: the errno of a read-only and of a writable mapping."""
    newer = caller.abi.has("init")
    hole, paged = (-ENOENT, -ENOENT) if newer else (-EPERM, -EIO)
    return {
        p2m.RAM_RW: (0, 0),
        p2m.RAM_LOGDIRTY: (0, 0),
        p2m.IOREQ: (0, 0),
        p2m.RAM_RO: (0, -EPERM),
        p2m.RAM_SHARED: (0, -EPERM),
        p2m.GRANT_RW: (0, 0),
        p2m.GRANT_RO: (0, -EPERM),
        p2m.FOREIGN: (0, 0),
        p2m.NONE: (hole, hole),
        p2m.RAM_PAGED: (paged, paged),
        p2m.MMIO: (-EPERM, -EPERM),
    }


@pytest.mark.parametrize("kind", sorted(p2m.KINDS), ids=[p2m.KINDS[k] for k in sorted(p2m.KINDS)])
def test_the_type_of_a_guest_frame_decides(pvh_caller: Caller, kind: int) -> None:
    caller = pvh_caller
    ctx = caller.alloc()
    caller.dom0.p2m.set(700, caller.mfn(700), 1, kind)
    reading, writing = kinds(caller)[kind]
    assert try_map(caller, ctx, 700, R) == reading
    assert try_map(caller, ctx, 700, RW) == writing
    assert try_map(caller, ctx, 700, W) == writing


def test_every_type_of_frame_has_its_row() -> None:
    assert set(kinds(bed(guest="pvh"))) == set(p2m.KINDS)


@pytest.mark.parametrize("kind", [p2m.FOREIGN, p2m.GRANT_RW, p2m.GRANT_RO])
def test_another_domains_frame_needs_the_hardware_domain_and_its_consent_in_the_p2m(
    pvh_caller: Caller, kind: int
) -> None:
    caller = pvh_caller
    ctx = caller.alloc()
    mfn = other_domains_frame(caller)
    newer = caller.abi.has("init")
    caller.dom0.p2m.set(700, mfn, 1, kind)
    assert try_map(caller, ctx, 700, R) == (0 if newer else -EPERM)
    assert try_map(caller, ctx, 700, RW) == (0 if newer and kind != p2m.GRANT_RO else -EPERM)
    caller.dom0.p2m.set(700, mfn, 1, p2m.RAM_RW)
    assert try_map(caller, ctx, 700, R) == -EPERM, "an ordinary page of somebody else"


def test_the_type_in_the_middle_of_a_range_stops_it_there(pvh_caller: Caller) -> None:
    caller = pvh_caller
    ctx = caller.alloc()
    caller.dom0.p2m.set(705, caller.mfn(705), 1, p2m.RAM_RO)
    caller.dom0.p2m.clear(710)
    answer = caller.map(ctx, 700, 0x900, 20)
    assert (answer.rc, answer.fields["mapped"]) == (-EPERM, 5)
    answer = caller.map(ctx, 705, 0x905, 20, flags=R)
    assert answer.rc == -caller.xen.profile.errno_hole
    assert answer.fields["mapped"] == 5
    assert [caller.refs(pfn) for pfn in range(700, 712)] == [1] * 10 + [0, 0]


# ----------------------------------------------------------------------------------------- PV guests: machine frames


def test_machine_frames_that_nobody_may_ask_for_are_eperm(pv_caller: Caller) -> None:
    """Xen's, firmware's, the heap's and the arena's frames: a PV guest can name them all (F2, F5)."""
    caller = pv_caller
    backend, profile = caller.testbed.config.backend, caller.testbed.config.profile
    caller = bed(backend, profile, "pv", rmrrs=(Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, (COPIER,)),))
    ctx = caller.alloc()
    arena = caller.dom0.iommu.arena
    free = caller.frames.frames - 1
    assert caller.frames.owner[free] == DOMID_NONE
    for mfn in (0, 1, 255, arena.base, arena.base + arena.pages - 1, free, RMRR_DFN, RMRR_DFN + 3):
        for flags in (R, W, RW):
            assert try_map(caller, ctx, mfn, flags) == -EPERM, hex(mfn)


def test_frames_behind_the_end_of_ram_are_holes_or_mmio(caller: Caller) -> None:
    ctx = caller.alloc()
    hole = -caller.xen.profile.errno_hole
    newer = caller.abi.has("init")
    first, unit = MMIO_START >> 12, caller.testbed.backend.unit_base >> 12
    beyond = caller.frames.frames if not caller.dom0.pv else first - 1
    if not caller.dom0.pv:
        assert try_map(caller, ctx, beyond, R) == hole
    assert try_map(caller, ctx, first, RW) == (0 if newer else -EPERM)
    assert try_map(caller, ctx, NIC_BAR >> 12, R) == (0 if newer else -EPERM)
    assert try_map(caller, ctx, unit, R) in (-EPERM, hole), "the IOMMU's own registers"
    assert try_map(caller, ctx, 0x10_0000, R) == hole


def test_a_run_of_mmio_frames_ends_before_the_unit(caller7: Caller) -> None:
    caller = caller7
    ctx = caller.alloc()
    unit = caller.testbed.backend.unit_base >> 12
    answer = caller.call("map_pages", ctx_no=ctx, gfn=unit - 5, dfn=0x900, flags=RW, nr_pages=20)
    assert answer.rc in (-EPERM, -ENOENT)
    assert answer.fields["mapped"] == 5
    assert caller.lookup(ctx, 0x904) == unit - 1
    answer = caller.unmap(ctx, 0x900, 20)
    assert (answer.rc, answer.fields["unmapped"]) == (-ENOENT, 5)


def test_another_domains_machine_frame_is_the_hardware_domains_to_map_from_v4_on(pv_caller: Caller) -> None:
    caller = pv_caller
    ctx = caller.alloc()
    mfn = other_domains_frame(caller)
    newer = caller.abi.has("init")
    assert try_map(caller, ctx, mfn, RW) == (0 if newer else -EPERM)
    if newer:
        assert caller.call("map_pages", ctx_no=ctx, gfn=mfn, dfn=8, flags=RW).rc == 0
        assert (caller.frames.count(mfn), caller.frames.writable_count(mfn)) == (2, 1)


def test_an_ordinary_domain_maps_nothing_but_its_own(caller7: Caller) -> None:
    xen = caller7.xen
    guest = xen.create_domain(OTHER, pv=True)
    vcpu = xen.add_vcpu(guest, caller7.vcpu.memory)
    own = xen.frames.allocate(OTHER)
    ram = caller7.testbed.ram

    def call(name: str, **fields: int) -> int:
        ram.write(0x6000, caller7.encode(name, **fields))
        return xen.hypercall(vcpu, 43, caller7.abi.by_name[name].number, ram.linear(0x6000))

    assert call("init", max_ctx_no=1, arena_order=4) == 0
    assert call("alloc_context") == 0
    assert call("map_pages", ctx_no=1, gfn=own, dfn=8, flags=RW) == 0
    for foreign in (caller7.mfn(300), 0, xen.frames.frames - 1):
        assert call("map_pages", ctx_no=1, gfn=foreign, dfn=9, flags=R) == -EPERM
    assert call("map_pages", ctx_no=1, gfn=MMIO_START >> 12, dfn=9, flags=R) in (-EPERM, -ENOENT)
    assert call("reattach_device", ctx_no=1, bus=1) < 0, "dom0's device"


def test_a_pv_page_table_can_be_mapped_for_reading_only(pv_caller: Caller) -> None:
    """R5: a device that writes into one owns the machine."""
    caller = pv_caller
    ctx = caller.alloc()
    caller.frames.pagetable[caller.mfn(805)] = 1
    assert try_map(caller, ctx, caller.gfn(805), RW) == -EPERM
    assert try_map(caller, ctx, caller.gfn(805), W) == -EPERM
    assert try_map(caller, ctx, caller.gfn(805), R) == 0
    answer = caller.map(ctx, 800, 0x900, 20)
    assert (answer.rc, answer.fields["mapped"]) == (-EPERM, 5)
    assert [caller.refs(pfn) for pfn in range(800, 808)] == [1] * 5 + [0] * 3


# --------------------------------------------------------------------------------------------------------- references


def test_a_mapping_holds_one_reference_per_page_and_a_pv_guests_writable_one_a_type_reference(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.map(ctx, 64, 8, 4, flags=RW).rc == 0
    assert caller.map(ctx, 64, 0x108, 4, flags=R).rc == 0
    assert caller.map(ctx, 64, 0x208, 4, flags=W).rc == 0
    for pfn in range(64, 68):
        assert caller.refs(pfn) == 3
        assert caller.frames.writable_count(caller.mfn(pfn)) == (2 if caller.dom0.pv else 0)
    for dfn in (8, 0x108, 0x208):
        assert caller.unmap(ctx, dfn, 4).rc == 0
    for pfn in range(64, 68):
        assert caller.refs(pfn) == 0
        assert caller.frames.writable_count(caller.mfn(pfn)) == 0


def test_a_superpage_holds_a_reference_for_each_of_its_pages(caller7: Caller) -> None:
    ctx = caller7.alloc()
    assert caller7.map(ctx, 512, 0x1000, 512).rc == 0
    assert all(caller7.refs(pfn) == 1 for pfn in range(512, 1024))
    assert caller7.unmap(ctx, 0x1003, 2).rc == 0
    assert [caller7.refs(pfn) for pfn in (514, 515, 516, 517)] == [1, 0, 0, 1]
    assert caller7.free(ctx) == 0
    assert all(caller7.refs(pfn) == 0 for pfn in range(512, 1024))


def test_the_same_frame_may_be_mapped_many_times(caller: Caller) -> None:
    ctx = caller.alloc()
    for dfn in range(100):
        assert caller.map(ctx, 64, dfn).rc == 0
    assert caller.refs(64) == 100
    assert caller.free(ctx) == 0
    assert caller.refs(64) == 0


def test_a_conflict_takes_no_reference(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.map(ctx, 64, 8).rc == 0
    for _ in range(3):
        answer = caller.map(ctx, 65, 6, 10)
        assert answer.rc == -EADDRINUSE
        assert answer.fields["mapped"] == 2
        assert caller.unmap(ctx, 6, 2).rc == 0
    assert [caller.refs(pfn) for pfn in range(64, 76)] == [1] + [0] * 11


def test_the_same_mapping_again_is_a_conflict_too(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.map(ctx, 64, 8).rc == 0
    assert caller.map(ctx, 64, 8).rc == -EADDRINUSE
    assert caller.map(ctx, 64, 8, flags=R).rc == -EADDRINUSE
    assert caller.refs(64) == 1


def test_a_frame_taken_from_the_guest_lives_until_no_device_can_reach_it(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.attach(ctx) == 0
    assert caller.map(ctx, 64, 8).rc == 0
    assert caller.map(ctx, 64, 0x108, flags=R).rc == 0
    mfn = caller.mfn(64)
    assert caller.reach(8, write=True) == mfn
    assert caller.xen.remove_page(caller.dom0, caller.gfn(64)) == 0
    assert caller.frames.owner[mfn] == 0
    assert caller.frames.count(mfn) == 2
    assert caller.reach(8, write=True) == mfn
    assert caller.unmap(ctx, 8).rc == 0
    assert caller.frames.count(mfn) == 1
    assert caller.unmap(ctx, 0x108).rc == 0
    assert caller.frames.owner[mfn] == DOMID_NONE
    assert caller.reach(8) is None
    assert caller.reach(0x108) is None


def test_a_frame_taken_from_the_guest_is_out_of_the_default_context_at_once(caller: Caller) -> None:
    gfn, mfn = caller.gfn(64), caller.mfn(64)
    assert caller.reach(gfn, write=True) == mfn
    assert caller.xen.remove_page(caller.dom0, gfn) == 0
    assert caller.reach(gfn) is None
    assert caller.frames.owner[mfn] == DOMID_NONE


def test_a_frame_is_taken_from_the_guest_once_only(caller: Caller) -> None:
    """The second time would drop the reference that a device mapping holds."""
    ctx = caller.alloc()
    assert caller.map(ctx, 64, 8).rc == 0
    assert caller.xen.remove_page(caller.dom0, caller.gfn(64)) == 0
    before = caller.everything()
    assert caller.xen.remove_page(caller.dom0, caller.gfn(64)) == -EINVAL
    assert caller.xen.save() == before
    assert caller.frames.count(caller.mfn(64)) == 1
    assert caller.unmap(ctx, 8).rc == 0
    assert caller.frames.owner[caller.mfn(64)] == DOMID_NONE


def test_only_ram_of_the_domain_can_be_taken_away(caller: Caller) -> None:
    before = caller.everything()
    gfns = [MMIO_START >> 12, 1 << 40]
    if caller.dom0.pv:
        gfns += [0, caller.frames.frames - 1]
    for gfn in gfns:
        assert caller.xen.remove_page(caller.dom0, gfn) == -EINVAL
    assert caller.xen.save() == before


def test_freeing_a_context_frees_the_frames_that_only_it_held(caller: Caller) -> None:
    ctx = caller.alloc()
    assert caller.map(ctx, 64, 8, 20).rc == 0
    for pfn in range(64, 74):
        assert caller.xen.remove_page(caller.dom0, caller.gfn(pfn)) == 0
    assert caller.frames.freed == 0
    assert caller.free(ctx) == 0
    assert caller.frames.freed == 10


@settings(max_examples=25, deadline=None)
@given(
    profile=st.sampled_from(("v3-fixed", "v7-fixed")),
    guest=st.sampled_from(("pv", "pvh")),
    calls=st.lists(
        st.tuples(
            st.booleans(), st.integers(0, 60), st.integers(0, 60), st.integers(0, 40), st.sampled_from((R, W, RW))
        ),
        max_size=25,
    ),
)
def test_references_are_the_mappings_whatever_is_mapped_and_unmapped(profile, guest, calls) -> None:
    caller = bed("vtd", profile, guest)
    ctx = caller.alloc()
    expected: dict[int, tuple[int, int]] = {}
    for mapping, pfn, dfn, pages, flags in calls:
        if mapping:
            done = caller.map(ctx, 2000 + pfn, dfn, pages, flags).fields["mapped"]
            expected.update({dfn + k: (caller.gfn(2000 + pfn) + k, flags) for k in range(done)})
        else:
            done = caller.unmap(ctx, dfn, pages).fields["unmapped"]
            for k in range(done):
                del expected[dfn + k]
    for pfn in range(2000, 2110):
        gfn, mfn = caller.gfn(pfn), caller.mfn(pfn)
        assert caller.refs(pfn) == sum(there == gfn for there, _ in expected.values())
        writable = sum(there == gfn and flags & W == W for there, flags in expected.values())
        assert caller.frames.writable_count(mfn) == (writable if guest == "pv" else 0)
