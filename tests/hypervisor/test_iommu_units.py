# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines with several units, units of every kind, and every replacement policy, seen from their devices."""

import pytest
from guest_calls import RW, R, bed

from machine.dma import DmaFabric
from machine.firmware import Firmware
from machine.iommu.unit import Fault
from testbed import backends
from testbed.build import COPIER, NIC, ROGUE, build
from testbed.config import MIB, Config
from testbed.units import UnitSpec

SMALL = {"ram": 32 * MIB, "guest_ram": 16 * MIB}
ROOT_PORT = 0xE0
DEVICES = (NIC, COPIER, ROGUE)
DIFFERENT = {
    "vtd": (
        UnitSpec("39-bit+no-superpages+non-coherent", (COPIER,)),
        UnitSpec("caching+domain-selective", (ROOT_PORT,)),
        UnitSpec("write-buffer+few-domains+moved"),
    ),
    "smmuv3": (
        UnitSpec("40-bit+vmid8", (COPIER,)),
        UnitSpec("linear+short-queues+no-ranges", (ROOT_PORT,)),
        UnitSpec("sid-17+break-before-make", (), stream_offset=0x1_0000),
    ),
}
VENDORS = pytest.mark.parametrize("backend", DIFFERENT)


def scenario(caller):
    """Maps, moves, folds, splits and unmaps with DMA in between; every page is where it has to be, at every step."""
    first, second = caller.alloc(), caller.alloc()
    caller.attach(first, NIC)
    caller.attach(second, COPIER)
    caller.attach(second, ROGUE)
    mfns = [caller.testbed.mfns[1024 + k] for k in range(512)]
    for sbdf in DEVICES:
        assert caller.reach(0x400, sbdf) is None
    for ctx in (first, second):
        for start in range(0, 512, 128):
            assert caller.map(ctx, 1024 + start, 0x400 + start, 128, RW).rc == 0
            for sbdf in DEVICES:
                caller.reach(0x400 + start, sbdf)
    for sbdf in DEVICES:
        assert [caller.reach(0x400 + k, sbdf, True) for k in (0, 7, 511)] == [mfns[0], mfns[7], mfns[511]]
    assert caller.unmap(second, 0x407, 1).rc == 0
    assert [caller.reach(0x407, sbdf) for sbdf in DEVICES] == [mfns[7], None, None]
    assert caller.map(second, 1033, 0x407, 1, R).rc == 0
    assert [caller.reach(0x407, sbdf, True) for sbdf in DEVICES] == [mfns[7], None, None]
    assert [caller.reach(0x407, sbdf) for sbdf in DEVICES] == [mfns[7], mfns[9], mfns[9]]
    caller.attach(first, ROGUE)
    assert [caller.reach(0x407, sbdf) for sbdf in DEVICES] == [mfns[7], mfns[9], mfns[7]]
    for sbdf in DEVICES:
        caller.attach(0, sbdf)
        assert caller.reach(0x407, sbdf) != mfns[7]
    assert caller.free(first) == 0
    third = caller.alloc()
    caller.attach(third, NIC)
    assert caller.reach(0x400, NIC) is None
    assert caller.map(third, 1027, 0x400, 1, RW).rc == 0
    assert caller.reach(0x400, NIC, True) == mfns[3]


@VENDORS
def test_every_unit_of_a_machine_follows_what_the_guest_does(backend):
    scenario(bed(backend, units=DIFFERENT[backend]))


@pytest.mark.parametrize(("backend", "kind"), [(b, k) for b in DIFFERENT for k in backends.get(b).kinds])
def test_a_unit_of_every_kind_is_driven_correctly(backend, kind):
    scenario(bed(backend, units=(UnitSpec(kind),)))


@VENDORS
@pytest.mark.parametrize("policy", ["stale", "eager", "oldest:1", "oldest:5", "random:1", "random:99"])
def test_the_driver_is_right_under_every_replacement_policy(backend, policy):
    scenario(bed(backend, units=DIFFERENT[backend], iotlb=policy))
    scenario(bed(backend, iotlb=policy))


@VENDORS
def test_an_eager_machine_caches_nothing(backend):
    caller = bed(backend, iotlb="eager")
    ctx = caller.alloc()
    caller.attach(ctx, NIC)
    assert caller.map(ctx, 5, 0x10, 1, RW).rc == 0
    for _ in range(3):
        assert caller.reach(0x10) == caller.testbed.mfns[5]
    assert caller.testbed.unit.counters.iotlb_hits == 0


def test_superpages_width_and_depth_are_what_every_unit_can_do():
    def backend(*kinds):
        scopes = [(COPIER,), (ROGUE,)][: len(kinds) - 1]
        specs = (*(UnitSpec(k, s) for k, s in zip(kinds, scopes)), UnitSpec(kinds[-1]))
        return build(Config(units=specs, **SMALL)).xen.backend

    both = backend("default", "default")
    assert (both.orders, both.levels, both.max_iova) == ((0, 9, 18), 4, (1 << 48) - 1)
    mixed = backend("39-bit", "default")
    assert (mixed.orders, mixed.levels, mixed.max_iova) == ((0, 9, 18), 3, (1 << 39) - 1)
    assert backend("default", "2m").orders == (0, 9)
    assert backend("2m", "no-superpages", "default").orders == (0,)
    assert backend("default", "caching").flushes_additions
    assert backend("write-buffer", "default").flushes_additions
    assert not both.flushes_additions


def test_a_bridge_in_a_scope_stands_for_what_is_behind_it():
    testbed = build(Config(units=(UnitSpec(scope=(ROOT_PORT,)), UnitSpec()), **SMALL))
    assert testbed.fabric.unit_for(NIC) is testbed.units[0]
    assert testbed.fabric.unit_for(COPIER) is testbed.units[1]
    firmware = testbed.platform.firmware
    assert [(d.include_all, d.scope) for d in firmware.drhds] == [(False, (ROOT_PORT,)), (True, ())]
    assert firmware.drhds[1].base - firmware.drhds[0].base == 0x1000
    smmu = build(Config(backend="smmuv3", units=DIFFERENT["smmuv3"], **SMALL))
    assert [(n.include_all, NIC in n.scope) for n in smmu.platform.firmware.smmus] == [
        (False, False),
        (False, True),
        (True, False),
    ]


def test_a_stream_offset_is_what_the_unit_sees_and_reports():
    caller = bed("smmuv3", units=DIFFERENT["smmuv3"])
    ctx = caller.alloc()
    caller.attach(ctx, ROGUE)
    fault = caller.testbed.translate(ROGUE, 0x5000, True)
    assert isinstance(fault, Fault)
    assert fault.sid == 0x1_0000 + ROGUE
    assert caller.testbed.walk(ROGUE, 0x5000).sid == 0x1_0000 + ROGUE
    assert caller.xen.backend.take_faults()[-1].sid == 0x1_0000 + ROGUE


def test_requests_go_where_the_last_wiring_says():
    caller = bed()
    fabric = DmaFabric(caller.testbed.bus)
    assert fabric.route(NIC) == (None, NIC)
    fabric.cover(caller.testbed.unit, stream_offset=7)
    assert fabric.route(NIC | 5 << 16) == (caller.testbed.unit, NIC + 7)


@pytest.mark.parametrize(
    "units",
    [
        (),
        (UnitSpec(), UnitSpec()),
        (UnitSpec(scope=(NIC,)),),
        (UnitSpec(scope=(NIC,)), UnitSpec(scope=(NIC, COPIER)), UnitSpec()),
    ],
)
def test_scopes_that_leave_or_share_a_function_are_refused(units):
    with pytest.raises(ValueError, match="unit"):
        Config(units=units)


def test_an_unknown_kind_or_policy_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="non-coherent"):
        build(Config(units=(UnitSpec("incoherent"),)))
    with pytest.raises(ValueError, match="random:SEED"):
        Config(iotlb="newest")


def test_firmware_of_a_backend_without_tables_stays_empty():
    from testbed.units import firmware_for

    testbed = build(Config(**SMALL))
    assert firmware_for([Firmware()], (UnitSpec(),), testbed.pci) == Firmware()
