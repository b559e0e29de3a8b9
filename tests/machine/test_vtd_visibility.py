# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores that have not reached the walker: cache lines that were not written back, and a write buffer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_machine import GCMD, GSTS, SID, VtdMachine, cc_device, cc_global, iotlb_domain, iotlb_pages, wait_status

from machine.iommu.replacement import Eager
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig

IOVA = 0x4000_0000
WBF = 1 << 27


def ready(flushed=True, **config):
    machine = VtdMachine(VtdConfig(**config))
    table = machine.context(SID, machine.page(), did=7)
    machine.map(table, IOVA, 0x20_0000)
    if flushed:
        machine.bus.write_back(0, machine.memory.size)
    machine.start()
    return machine, table


# ECAP.C = 0.


def test_tables_that_were_never_written_back_read_as_zeros():
    machine, _ = ready(flushed=False, coherent_walk=False)
    assert machine.read(IOVA).code == 1
    for page, code in ((machine.root, 2), (machine.memory.read64(machine.root) & ~0xFFF, 6)):
        machine.bus.write_back(page, 4096)
        assert machine.submit(cc_global())
        assert machine.read(IOVA).code == code


def test_new_mapping_is_seen_when_its_line_is_written_back():
    machine, table = ready(coherent_walk=False)
    at = machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.submit(iotlb_domain(7), wait_status())
    assert machine.write(IOVA + 0x1000).code == 5
    machine.bus.write_back(at, 8)
    assert machine.write(IOVA + 0x1000) == 0x30_0000


def test_unmapped_page_stays_open_after_the_right_invalidation_without_a_flush():
    machine, table = ready(coherent_walk=False)
    at = machine.map(table, IOVA, 0, 0)
    assert machine.submit(iotlb_pages(7, IOVA), wait_status())
    assert machine.write(IOVA) == 0x20_0000
    machine.bus.write_back(at, 8)
    assert machine.submit(iotlb_pages(7, IOVA), wait_status())
    assert machine.write(IOVA).code == 5


@pytest.mark.parametrize("page, seen", [(0, True), (7, True), (8, False), (511, False)])
def test_a_line_of_eight_entries_goes_together(page, seen):
    machine, table = ready(coherent_walk=False)
    machine.map(table, IOVA + page * 0x1000, 0x40_0000)
    machine.bus.write_back(machine.entry_at(table, IOVA + 0x3000, 1), 1)
    machine.submit(iotlb_domain(7))
    assert (machine.write(IOVA + page * 0x1000) == 0x40_0000) == seen


def test_context_entry_is_read_past_the_caches_too():
    machine, _ = ready(coherent_walk=False)
    machine.context_entry(SID, 0, 0)
    assert machine.submit(cc_device(7, SID))
    assert machine.write(IOVA) == 0x20_0000
    machine.bus.write_back((machine.memory.read64(machine.root) & ~0xFFF) + 16 * SID, 16)
    assert machine.submit(cc_device(7, SID))
    assert machine.write(IOVA).code == 2


def test_queue_and_status_are_coherent_although_walks_are_not():
    machine, _ = ready(coherent_walk=False)
    assert machine.submit(wait_status(0x5A))
    assert machine.memory.read64(0x8000) == 0x5A


def test_a_told_walk_shows_memory_while_the_unit_sees_less():
    machine, table = ready(coherent_walk=False)
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.unit.walk(SID, IOVA + 0x1000, True).maddr == 0x30_0000
    assert isinstance(machine.write(IOVA + 0x1000), Fault)


def test_writing_back_means_nothing_to_a_coherent_unit_or_outside_ram():
    machine, table = ready(coherent_walk=True)
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.write(IOVA + 0x1000) == 0x30_0000
    assert not machine.bus.uncached_readers
    machine, _ = ready(coherent_walk=False)
    for at, length in ((machine.memory.size, 64), (machine.memory.size - 1, 64), (0, 0), (1 << 60, 1 << 60)):
        machine.bus.write_back(at, length)
    assert machine.write(IOVA) == 0x20_0000


def test_units_may_snoop_without_promising_it():
    machine, table = ready(flushed=False, coherent_walk=False, snoops_anyway=True)
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.write(IOVA + 0x1000) == 0x30_0000 and not machine.r64(0x10) & 1


def test_view_past_the_caches_returns_with_the_snapshot():
    machine, table = ready(coherent_walk=False)
    machine.memory.snapshot()
    state = machine.unit.save()
    at = machine.map(table, IOVA, 0x30_0000)
    fresh = machine.map(table, IOVA + (1 << 39), 0x30_0000)
    machine.bus.write_back(at, 8)
    machine.bus.write_back(0, machine.memory.size)
    assert machine.write(IOVA) == 0x30_0000
    machine.memory.reset()
    machine.unit.restore(state)
    assert machine.write(IOVA) == 0x20_0000
    assert machine.unit.view.words[fresh >> 3] == 0


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("store", "store", "flush", "look")), st.integers(0, 31), st.integers(0, 5)),
        max_size=40,
    )
)
def test_walker_sees_each_entry_as_its_line_was_last_written_back(steps):
    machine = VtdMachine(VtdConfig(coherent_walk=False), replacement=Eager())
    table = machine.context(SID, machine.page())
    first = machine.entry_at(table, IOVA, 1)
    machine.bus.write_back(0, machine.memory.size)
    machine.start()
    stored, flushed = [0] * 32, [0] * 32
    for what, page, target in steps:
        if what == "store":
            stored[page] = (0x20_0000 + 0x1000 * target | 3) if target else 0
            machine.memory.write64(first + 8 * page, stored[page])
        elif what == "flush":
            machine.bus.write_back(first + 8 * page, 8 * target)
            if target:
                for line in range(page // 8, (page + target - 1) // 8 + 1):
                    flushed[8 * line : 8 * line + 8] = stored[8 * line : 8 * line + 8]
        else:
            got = machine.write(IOVA + 0x1000 * page)
            assert (0 if isinstance(got, Fault) else got | 3) == flushed[page]


# CAP.RWBF = 1.


def test_stores_wait_in_the_write_buffer_until_software_flushes_it():
    machine, table = ready(write_buffer_flush=True)
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.write(IOVA + 0x1000).code == 5
    machine.w32(GCMD, machine.gcmd | WBF)
    assert not machine.r32(GSTS) & WBF
    assert machine.write(IOVA + 0x1000) == 0x30_0000
    machine.map(table, IOVA + 0x2000, 0x30_0000)
    assert machine.write(IOVA + 0x2000).code == 5


@pytest.mark.parametrize("command", [iotlb_pages(9, 0), iotlb_domain(9), cc_device(9, 0)])
def test_any_invalidation_drains_the_write_buffer(command):
    machine, table = ready(write_buffer_flush=True)
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.submit(command)
    assert machine.write(IOVA + 0x1000) == 0x30_0000


def test_waiting_does_not_drain_the_write_buffer():
    machine, table = ready(write_buffer_flush=True)
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.submit(wait_status())
    assert machine.write(IOVA + 0x1000).code == 5


def test_write_buffer_returns_with_the_snapshot():
    machine, table = ready(write_buffer_flush=True)
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    state = machine.unit.save()
    machine.w32(GCMD, machine.gcmd | WBF)
    assert machine.write(IOVA + 0x1000) == 0x30_0000
    machine.unit.restore(state)
    assert machine.write(IOVA + 0x1000).code == 5


def test_units_without_the_capability_see_stores_at_once():
    machine, table = ready()
    assert machine.write(IOVA) == 0x20_0000
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    assert machine.write(IOVA + 0x1000) == 0x30_0000


def test_no_unit_has_both_a_write_buffer_and_walks_past_the_caches():
    with pytest.raises(ValueError):
        VtdConfig(write_buffer_flush=True, coherent_walk=False)
