# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole DMA requests through a VT-d unit: data, page crossings, partial effects and message interrupts."""

from vtd_machine import RW, SID, R, VtdMachine, iotlb_pages, wait_status

from machine.dma import DmaFabric
from machine.iommu.unit import Fault, IommuUnit

IOVA = 0x7F_F000


def ready():
    machine = VtdMachine()
    table = machine.context(SID, machine.page())
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + 0x1000, 0x30_0000, R)
    machine.start()
    fabric = DmaFabric(machine.bus)
    fabric.cover(machine.unit)
    return machine, table, fabric.port(SID)


def test_unit_satisfies_the_contract():
    unit: IommuUnit = VtdMachine().unit
    assert unit.register_size == 0x1000 and unit.name == "vtd0"


def test_data_lands_behind_the_mapping():
    machine, _, port = ready()
    assert port.write(IOVA + 8, b"payload") is None
    assert machine.memory.read(0x20_0008, 7) == b"payload"
    assert port.read(IOVA + 8, 7) == b"payload"


def test_read_across_two_pages_joins_both_targets():
    machine, _, port = ready()
    machine.memory.write(0x20_0FFC, b"left")
    machine.memory.write(0x30_0000, b"right")
    assert port.read(IOVA + 0xFFC, 9) == b"leftright"


def test_blocked_second_half_leaves_the_first_half_written():
    machine, _, port = ready()
    fault = port.write(IOVA + 0xFFC, b"leftright")
    assert isinstance(fault, Fault) and fault.code == 5 and fault.iova == IOVA + 0x1000
    assert machine.memory.read(0x20_0FFC, 4) == b"left"
    assert machine.memory.read(0x30_0000, 5) == bytes(5)


def test_message_interrupt_of_a_device_reaches_its_handler():
    machine, _, port = ready()
    seen = []
    machine.interrupts.connect(0x77, lambda: seen.append(1))
    assert port.write(0xFEE0_1000, (0x77).to_bytes(4, "little")) is None
    assert seen == [1]
    assert isinstance(port.read(0xFEE0_1000, 4), Fault)


def test_unmapped_page_stays_open_to_dma_until_the_flush_completes():
    machine, table, port = ready()
    port.write(IOVA, b"old")
    machine.map(table, IOVA, 0, 0)
    assert port.write(IOVA, b"new") is None
    assert machine.memory.read(0x20_0000, 3) == b"new"
    assert machine.submit(iotlb_pages(1, IOVA), wait_status())
    assert port.write(IOVA, b"too late").code == 5
    assert machine.memory.read(0x20_0000, 3) == b"new"


def test_counters_tell_hits_misses_and_faults():
    machine, _, port = ready()
    port.write(IOVA, b"1")
    port.write(IOVA, b"2")
    port.write(0, b"3")
    counters = machine.unit.counters
    assert (counters.iotlb_hits, counters.iotlb_misses, counters.faults) == (1, 2, 1)
    assert (counters.config_hits, counters.config_misses) == (2, 1)


def test_snapshot_of_a_unit_belongs_to_its_memory_s_snapshot():
    machine, table, port = ready()
    machine.memory.snapshot()
    state = machine.unit.save()
    machine.map(table, 0, 0x20_0000, RW)
    assert port.write(0, b"x") is None
    machine.memory.reset()
    machine.unit.restore(state)
    assert port.write(0, b"x").code == 5
