# SPDX-License-Identifier: GPL-2.0-or-later
"""What stays cached until which command drops it, and the register-based commands."""

import pytest
from vtd_machine import (
    CCMD,
    IOTLB,
    IVA,
    SID,
    VtdMachine,
    cc_device,
    cc_domain,
    cc_global,
    iotlb_domain,
    iotlb_global,
    iotlb_pages,
    wait_status,
)

from machine.iommu.replacement import Eager, Random
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig

IOVA = 0x8000_0000


def ready(config=None, queue=True, **options):
    machine = VtdMachine(config, **options)
    table = machine.context(SID, machine.page(), did=7)
    machine.start(queue)
    return machine, table


def cached_then_cleared(machine, table, pages=range(1), level=1, step=0x1000):
    """Map, use and unmap pages without invalidating."""
    for page in pages:
        at = machine.map(table, IOVA + page * step, 0x20_0000 * level + page * step, level=level)
        assert isinstance(machine.write(IOVA + page * step), int)
        machine.memory.write64(at, 0)


def stale(machine, pages=range(1)):
    return [page for page in pages if isinstance(machine.write(IOVA + page * 0x1000), int)]


@pytest.mark.parametrize(
    "descriptor, survives",
    [
        (iotlb_pages(7, IOVA), False),
        (iotlb_pages(7, IOVA, ih=1), False),
        (iotlb_pages(7, IOVA, am=9), False),
        (iotlb_pages(7, IOVA + 0x1000), True),
        (iotlb_pages(7, IOVA + 0x1000, am=1), False),
        (iotlb_pages(8, IOVA), True),
        (iotlb_domain(7), False),
        (iotlb_domain(8), True),
        (iotlb_global(), False),
        (cc_global(), True),
        (wait_status(), True),
    ],
)
def test_stale_translation_lives_until_a_command_that_names_it(descriptor, survives):
    machine, table = ready()
    cached_then_cleared(machine, table)
    assert stale(machine) == [0]
    assert machine.submit(descriptor)
    assert bool(stale(machine)) == survives


def test_address_mask_2_drops_exactly_four_pages():
    machine, table = ready()
    cached_then_cleared(machine, table, range(8))
    assert machine.submit(iotlb_pages(7, IOVA + 0x2000, am=2))
    assert stale(machine, range(8)) == [4, 5, 6, 7]


@pytest.mark.parametrize("level", [2, 3])
def test_superpage_goes_with_any_page_inside(level):
    machine, table = ready()
    machine.map(table, IOVA, 0, level=level)
    assert machine.write(IOVA + 0x5000) == 0x5000
    machine.memory.write64(machine.entry_at(table, IOVA, level), 0)
    assert machine.write(IOVA + 0x9000) == 0x9000
    assert machine.submit(iotlb_pages(7, IOVA + 0x7000))
    assert isinstance(machine.write(IOVA + 0x5000), Fault)


def test_one_domain_s_entries_serve_every_device_in_it():
    machine, table = ready()
    machine.context(SID + 1, table, did=7)
    cached_then_cleared(machine, table)
    assert machine.write(IOVA, SID + 1) == 0x20_0000


def test_new_context_needs_no_invalidation():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA, SID + 1).code == 2
    machine.context(SID + 1, table, did=7)
    assert machine.write(IOVA, SID + 1) == 0x20_0000


def test_new_mapping_needs_no_invalidation():
    machine, table = ready()
    assert isinstance(machine.write(IOVA), Fault)
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA) == 0x20_0000


@pytest.mark.parametrize("drop", [iotlb_pages(7, IOVA), iotlb_domain(7), iotlb_global()])
def test_caching_mode_remembers_missing_pages_until_invalidated(drop):
    machine, table = ready(VtdConfig(caching_mode=True))
    assert machine.write(IOVA).code == 5
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA).code == 5
    assert machine.read(IOVA).code == 6
    assert machine.submit(drop)
    assert machine.write(IOVA) == 0x20_0000


def test_caching_mode_remembers_reserved_bits():
    machine, table = ready(VtdConfig(caching_mode=True))
    machine.map(table, IOVA, 1 << 50)
    assert machine.write(IOVA).code == 0xC
    machine.map(table, IOVA, 0x20_0000)
    assert machine.read(IOVA).code == 0xC
    machine.map(table, IOVA + 0x1000, 1 << 50, 2)
    assert machine.write(IOVA + 0x1000).code == 0xC
    assert machine.read(IOVA + 0x1000).code == 6


def test_caching_mode_remembers_missing_contexts_under_domain_zero():
    machine, table = ready(VtdConfig(caching_mode=True))
    assert machine.read(IOVA, SID + 8).code == 2
    machine.context(SID + 8, table, did=7)
    machine.map(table, IOVA, 0x20_0000)
    assert machine.submit(cc_device(7, SID + 8))
    assert machine.read(IOVA, SID + 8).code == 2
    assert machine.submit(cc_device(0, SID + 8))
    assert machine.read(IOVA, SID + 8) == 0x20_0000


def test_cached_permission_binds_until_invalidated():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000, 1)
    assert machine.read(IOVA) == 0x20_0000
    machine.map(table, IOVA, 0x20_0000, 3)
    assert machine.write(IOVA).code == 5
    assert machine.submit(iotlb_pages(7, IOVA))
    assert machine.write(IOVA) == 0x20_0000


@pytest.mark.parametrize(
    "descriptor, survives",
    [
        (cc_global(), False),
        (cc_domain(7), False),
        (cc_domain(8), True),
        (cc_device(7, SID), False),
        (cc_device(8, SID), True),
        (cc_device(7, SID + 1), True),
        (cc_device(7, SID + 1, fm=1), True),
        (cc_device(7, SID + 4, fm=1), False),
        (cc_device(7, SID + 6, fm=2), False),
        (cc_device(7, SID + 7, fm=3), False),
        (cc_device(7, SID + 8, fm=3), True),
        (iotlb_global(), True),
    ],
)
def test_stale_context_lives_until_a_command_that_names_it(descriptor, survives):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA) == 0x20_0000
    machine.context_entry(SID, 0, 0)
    assert machine.submit(descriptor)
    assert isinstance(machine.write(IOVA), int) == survives


def test_freed_table_is_still_walked_until_invalidated_without_the_leaf_hint():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + 0x1000, 0x20_1000)
    assert machine.write(IOVA) == 0x20_0000
    machine.memory.write64(machine.entry_at(table, IOVA, 2), 0)
    assert machine.submit(iotlb_pages(7, IOVA, am=9, ih=1))
    assert machine.write(IOVA + 0x1000) == 0x20_1000
    assert machine.submit(iotlb_pages(7, IOVA, ih=0))
    assert machine.submit(iotlb_pages(7, IOVA, am=9, ih=1))
    assert machine.write(IOVA + 0x1000).code == 5


@pytest.mark.parametrize("descriptor", [iotlb_domain(7), iotlb_global()])
def test_wide_invalidation_forgets_the_way_to_freed_tables(descriptor):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + 0x1000, 0x20_1000)
    assert machine.write(IOVA) == 0x20_0000
    machine.memory.write64(machine.entry_at(table, IOVA, 2), 0)
    assert machine.write(IOVA + 0x1000) == 0x20_1000
    assert machine.submit(descriptor)
    assert machine.write(IOVA + 0x1000).code == 5


def test_units_without_structure_caches_see_a_freed_table_at_once():
    machine, table = ready(VtdConfig(paging_structure_caches=False))
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + 0x1000, 0x20_1000)
    assert machine.write(IOVA) == 0x20_0000
    machine.memory.write64(machine.entry_at(table, IOVA, 2), 0)
    assert machine.write(IOVA) == 0x20_0000
    assert machine.write(IOVA + 0x1000).code == 5


@pytest.mark.parametrize("distance", [0x1000, 0x20_0000])
def test_cached_way_to_a_table_remembers_the_permissions_on_it(distance):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + distance, 0x20_1000)
    at = machine.entry_at(table, IOVA, 4)
    machine.memory.write64(at, machine.memory.read64(at) & ~2)
    assert machine.read(IOVA) == 0x20_0000
    assert machine.write(IOVA + distance).code == 5
    assert machine.read(IOVA + distance) == 0x20_1000


def test_eager_unit_forgets_contexts_tables_and_pages():
    machine, table = ready(replacement=Eager())
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA, 0x30_0000)
    assert machine.write(IOVA) == 0x30_0000
    machine.memory.write64(machine.entry_at(table, IOVA, 2), 0)
    assert machine.write(IOVA).code == 5
    machine.context_entry(SID, 0, 0)
    assert machine.write(IOVA).code == 2


def test_random_unit_decides_the_same_after_a_restore():
    machine, table = ready(replacement=Random(3))
    cached_then_cleared(machine, table, range(20))
    state = machine.unit.save()
    first = stale(machine, range(20))
    assert 0 < len(first) < 20
    for page in range(20):
        machine.map(table, IOVA + page * 0x1000, 0x40_0000)
    answers = [machine.write(IOVA + page * 0x1000) for page in range(20)]
    machine.unit.restore(state)
    assert answers == [machine.write(IOVA + page * 0x1000) for page in range(20)]


def test_small_iotlb_forgets_the_oldest():
    machine, table = ready(iotlb_capacity=2)
    cached_then_cleared(machine, table, range(3))
    assert stale(machine, range(3)) == [1, 2]


# The register-based interface.


def test_register_commands_report_their_granularity():
    machine, table = ready(queue=False)
    cached_then_cleared(machine, table)
    machine.w64(IVA, IOVA | 0)
    machine.w64(IOTLB, 1 << 63 | 3 << 60 | 8 << 32)
    assert machine.r64(IOTLB) >> 57 & 3 == 3 and not machine.r64(IOTLB) >> 63
    assert stale(machine) == [0]
    machine.w64(IOTLB, 1 << 63 | 3 << 60 | 7 << 32)
    assert stale(machine) == []
    machine.map(table, IOVA, 0x20_0000)
    assert machine.write(IOVA) == 0x20_0000
    machine.context_entry(SID, 0, 0)
    machine.w64(CCMD, 1 << 63 | 3 << 61 | (SID + 1) << 16 | 7)
    assert machine.r64(CCMD) >> 59 & 3 == 3 and not machine.r64(CCMD) >> 63
    assert machine.write(IOVA) == 0x20_0000
    machine.w64(CCMD, 1 << 63 | 3 << 61 | SID << 16 | 7)
    assert machine.write(IOVA).code == 2


def test_register_commands_as_two_halves_act_with_the_upper_one():
    machine, table = ready(queue=False)
    cached_then_cleared(machine, table)
    machine.w32(IOTLB, 0)
    assert stale(machine) == [0]
    machine.w32(IOTLB + 4, 1 << 31 | 1 << 28)
    assert stale(machine) == []


@pytest.mark.parametrize("iva, command", [(19, 3), (0, 0)])
def test_wrong_register_command_is_reported_and_does_nothing(iva, command):
    machine, table = ready(queue=False)
    cached_then_cleared(machine, table)
    machine.w64(IVA, IOVA | iva)
    machine.w64(IOTLB, 1 << 63 | command << 60 | 7 << 32)
    assert machine.r64(IOTLB) >> 57 & 3 == 0 and not machine.r64(IOTLB) >> 63
    assert stale(machine) == [0]


def test_register_commands_are_ignored_while_the_queue_is_on():
    machine, table = ready()
    cached_then_cleared(machine, table)
    machine.w64(IOTLB, 1 << 63 | 1 << 60)
    machine.w64(CCMD, 1 << 63 | 1 << 61)
    assert machine.r64(IOTLB) >> 57 & 0x43 == machine.r64(CCMD) >> 59 & 0x13 == 0
    assert stale(machine) == [0]


def test_page_selective_without_the_capability_drops_the_domain():
    machine, table = ready(VtdConfig(page_selective=False))
    cached_then_cleared(machine, table, range(2))
    assert machine.submit(iotlb_pages(7, IOVA))
    assert stale(machine, range(2)) == []
