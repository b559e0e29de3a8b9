# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest domains from creation to destruction, and devices in quarantine in between."""

import re
from pathlib import Path

import pytest

from abi.errno import EACCES, EINVAL, EIO, ENODEV, ENOENT, ENOMEM
from hypervisor.frames import DOMID_NONE, REF
from machine.firmware import Rmrr
from machine.iommu.unit import Fault
from testbed.build import COPIER, NIC, ROGUE, build
from testbed.config import Config, DomU
from testbed.invariants import check
from testbed.schedule import Caller, Hypercall, RandomWalk, injected, run_concurrently

REGION = Rmrr(0x3000_0000, 0x3000_1FFF, (COPIER,))
GUEST = DomU(devices=(COPIER, ROGUE), vcpus=2)


def host(backend, profile="v7-fixed", guest=GUEST, **more):
    return build(
        Config(
            backend=backend, profile=profile, ram=32 << 20, guest_ram=16 << 20, rmrrs=(REGION,), domus=(guest,), **more
        )
    )


@pytest.fixture(params=["vtd", "smmuv3"])
def bed(request):
    return host(request.param)


def free_frames(bed):
    return sum(1 for owner in bed.xen.frames.owner if owner == DOMID_NONE)


def busy(bed):
    """The guest with two contexts, a device in the first, mappings in both."""
    guest = bed.domus[0]
    caller = Caller(bed, guest.vcpus[0])
    assert caller.call("init", max_ctx_no=4, arena_order=6).result == 0
    for ctx in (1, 2):
        assert caller.call("alloc_context").fields["ctx_no"] == ctx
        assert caller.call("map_pages", ctx_no=ctx, gfn=8, dfn=0x100, nr_pages=40, flags=3).result == 0
    assert caller.call("reattach_device", ctx_no=1, devfn=COPIER & 0xFF).result == 0
    return guest, caller


def reaches(bed, sbdf, dfn):
    return not isinstance(bed.translate(sbdf, dfn << 12, False), Fault)


def test_a_guest_uses_its_own_contexts_and_reaches_its_own_memory_alone(bed):
    guest, _ = busy(bed)
    assert bed.translate(COPIER, 0x100 << 12, True) == bed.rams[1].mfns[8] << 12
    assert reaches(bed, ROGUE, 0x10)
    assert not check(bed)
    assert set(guest.devices) == {COPIER, ROGUE}
    assert COPIER not in bed.dom0.devices


def test_destroying_a_guest_gives_everything_back_and_its_devices_reach_nothing(bed):
    frames = bed.xen.frames
    before = free_frames(bed)
    guest, caller = busy(bed)
    assert reaches(bed, COPIER, 0x100) and reaches(bed, ROGUE, 8)
    assert bed.xen.destroy_domain(guest) == 0
    assert not check(bed)
    assert list(bed.xen.domains) == [0]
    assert not reaches(bed, COPIER, 0x100) and not reaches(bed, ROGUE, 8)
    assert all(frames.owner[mfn] == DOMID_NONE for mfn in bed.rams[1].mfns)
    dom_io = bed.xen.dom_io()
    assert set(dom_io.devices) == {COPIER, ROGUE}
    assert len({id(device.context) for device in dom_io.devices.values()}) == 2
    assert bed.translate(COPIER, REGION.base, True) == REGION.base, "firmware's region stays reachable"
    assert not reaches(bed, ROGUE, REGION.base >> 12)
    assert caller.call("alloc_context").result == -ENODEV
    for device in list(dom_io.devices.values()):
        assert bed.xen.assign_device(bed.dom0, device) == 0
    assert not dom_io.iommu.contexts and not dom_io.devices
    assert not check(bed)
    tables = dom_io.iommu.default.table.root_frames
    made = 1 + REGION.last // 4096 - REGION.base // 4096  # context 0 of dom0 maps the region since: no more tables
    assert free_frames(bed) - before > len(bed.rams[1].mfns) - tables - made


def test_a_device_goes_from_guest_to_guest_through_quarantine_or_at_once(bed):
    guest, _ = busy(bed)
    copier = guest.devices[COPIER]
    assert bed.xen.assign_device(bed.dom0, copier) == 0
    assert copier.context is bed.dom0.iommu.default
    assert not check(bed)
    assert bed.xen.deassign_device(guest, copier) == -ENODEV
    assert bed.xen.deassign_device(bed.dom0, copier) == 0
    assert not reaches(bed, COPIER, bed.ram.pfn_to_gfn(8))
    assert bed.xen.assign_device(guest, copier) == 0
    assert reaches(bed, COPIER, 8)
    assert not check(bed)


def test_without_room_for_a_context_of_its_own_a_device_is_kept_from_memory_all_the_same(bed):
    guest, _ = busy(bed)
    rogue = guest.devices[ROGUE]
    bed.xen.quarantine_contexts = 0
    assert bed.xen.deassign_device(guest, rogue) == 0
    assert rogue.context is bed.xen.dom_io().iommu.default
    assert not reaches(bed, ROGUE, 8)
    assert not check(bed)


def test_what_others_hold_of_a_dead_guest_stays_until_they_let_go(bed):
    guest, _ = busy(bed)
    mfn = bed.rams[1].mfns[100]
    bed.xen.frames.get(mfn, 1, REF)
    assert bed.xen.destroy_domain(guest) == 0
    assert bed.xen.domains[1] is guest and guest.dying
    assert bed.xen.frames.owner[mfn] == 1
    assert bed.xen.assign_device(guest, bed.xen.dom_io().devices[ROGUE]) == -EINVAL
    bed.xen.frames.put(mfn, 1, REF)
    assert bed.xen.destroy_domain(guest) == 0
    assert 1 not in bed.xen.domains
    assert not check(bed)


def test_what_a_guest_reserves_for_its_arena_has_to_be_granted(bed):
    caller = Caller(bed, bed.domus[0].vcpus[0])
    assert caller.call("init", max_ctx_no=4, arena_order=10).result == -ENOMEM
    assert caller.call("init", max_ctx_no=4, arena_order=9).result == 0
    assert caller.call("init", max_ctx_no=4, arena_order=1).result == -EACCES
    granted = host(bed.config.backend, guest=DomU(arena_pages=1024))
    assert Caller(granted, granted.domus[0].vcpus[0]).call("init", max_ctx_no=4, arena_order=10).result == 0


def test_a_dying_guest_can_do_nothing_more_nor_can_the_hardware_domain_for_it(bed):
    guest, caller = busy(bed)
    bed.xen.begin_dying(guest)
    assert caller.call("map_pages", ctx_no=2, gfn=1, dfn=1, flags=3).result == -ENODEV
    other = Caller(bed, bed.vcpu)
    assert other.call("map_pages", on=1, ctx_no=2, gfn=1, dfn=1, flags=3).result == -ENODEV
    assert bed.xen.destroy_domain(guest) == 0
    assert other.call("noop", on=1).result == -ENOENT


def test_a_snapshot_brings_a_destroyed_guest_back(bed):
    busy(bed)
    bed.snapshot()
    for _ in range(2):
        assert bed.xen.destroy_domain(bed.domus[0]) == 0
        bed.reset()
        assert bed.xen.domains[1] is bed.domus[0]
        assert not check(bed)
        assert reaches(bed, COPIER, 0x100)


def test_destruction_fails_with_an_errno_at_every_place_and_succeeds_when_tried_again(bed):
    guest, _ = busy(bed)
    bed.snapshot()
    with injected(bed) as faults:
        assert bed.xen.destroy_domain(guest) == 0
    places = faults.reached["any"]
    assert places > 5
    answers = set()
    for nth in range(1, places + 1):
        bed.reset()
        with injected(bed, f"any:{nth}") as faults:
            answers.add(bed.xen.destroy_domain(guest))
        assert not check(bed), faults.failed
        assert bed.xen.destroy_domain(guest) == 0
        assert 1 not in bed.xen.domains
        assert not check(bed)
        assert not bed.xen.kept
        assert not reaches(bed, COPIER, 0x100) and not reaches(bed, ROGUE, 8)
    assert answers in ({0}, {0, -EIO}), "no memory for a context of its own is no reason to refuse"


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_destruction_meets_calls_for_the_guest_in_every_order(backend):
    bed = host(backend)
    guest, _ = busy(bed)
    bed.snapshot()
    page = Hypercall("map_pages", {"ctx_no": 2, "gfn": 1, "dfn": 1, "flags": 3}, on=1)
    programs = [
        (bed.vcpu, [page, Hypercall("alloc_context", on=1), Hypercall("free_context", {"ctx_no": 2}, on=1)]),
        (guest.vcpus[0], [Hypercall("alloc_context"), Hypercall("reattach_device", {"ctx_no": 2, "devfn": 0x28})]),
        (guest.vcpus[1], [lambda: bed.xen.destroy_domain(guest)]),
    ]
    outcomes = set()
    for seed in range(10):
        bed.reset()
        run = run_concurrently(bed, programs, RandomWalk(seed, every=2))
        assert run.outcome == "done", run
        assert not run.inversions and not run.left_held
        assert run.results[2] == [0]
        assert 1 not in bed.xen.domains
        assert not check(bed), run
        outcomes.add(str(run.results))
    assert len(outcomes) > 2


def test_the_page_about_it_is_true():
    page = (Path(__file__).parents[2] / "docs" / "domains.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.S)[0], scope)
    assert list(scope["bed"].xen.domains) == [0]
    assert set(scope["bed"].xen.dom_io().devices) == {COPIER}


def test_an_older_interface_has_guests_that_cannot_call_and_can_be_destroyed():
    bed = host("vtd", "v3-fixed")
    guest = bed.domus[0]
    assert Caller(bed, guest.vcpus[0]).call("noop").result < 0
    assert bed.xen.destroy_domain(guest) == 0
    assert not check(bed)
    assert NIC in bed.dom0.devices
