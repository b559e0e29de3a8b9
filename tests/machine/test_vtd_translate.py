# SPDX-License-Identifier: GPL-2.0-or-later
"""DMA through a VT-d unit in legacy mode: what passes, where it lands, and what blocks it."""

import pytest
from vtd_machine import FRCD, PS, RW, SID, SNP, TM, R, VtdMachine, W

from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig

GIB = 1 << 30
IOVA = 0x12_3456_7000


def ready(config=None, aw=2, **context):
    machine = VtdMachine(config)
    table = machine.context(SID, machine.page(), aw, **context)
    machine.start()
    return machine, table


def code(answer):
    assert isinstance(answer, Fault), hex(answer)
    return answer.code


def test_translation_off_passes_every_address():
    machine = VtdMachine()
    assert machine.write(0xDEAD_B000) == 0xDEAD_B000
    assert machine.read(1 << 60) == 1 << 60


def test_page_keeps_the_offset():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    assert machine.read(IOVA + 0x123) == 0x20_0123
    assert machine.write(IOVA + 0xFFF) == 0x20_0FFF


@pytest.mark.parametrize("level, size", [(2, 2 << 20), (3, GIB)])
def test_superpage_keeps_the_offset(level, size):
    machine, table = ready()
    machine.map(table, 5 * size, 3 * size, level=level)
    for offset in (0, 0x1234, size - 1):
        assert machine.write(5 * size + offset) == 3 * size + offset


def test_three_level_table_serves_39_bits():
    machine, table = ready(aw=1)
    machine.map(table, (1 << 39) - 0x1000, 0x30_0000, top=3)
    assert machine.read((1 << 39) - 1) == 0x30_0FFF
    assert code(machine.read(1 << 39)) == 4


def test_address_width_is_the_smaller_of_mgaw_and_aw():
    machine, table = ready(VtdConfig(max_guest_address_width=42))
    machine.map(table, (1 << 42) - 0x1000, 0x30_0000)
    assert machine.read((1 << 42) - 0x1000) == 0x30_0000
    assert code(machine.read(1 << 42)) == 4


@pytest.mark.parametrize("rights, read_code, write_code", [(R, None, 5), (W, 6, None), (0, 6, 5)])
def test_leaf_permissions(rights, read_code, write_code):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000, rights)
    for answer, expected in ((machine.read(IOVA), read_code), (machine.write(IOVA), write_code)):
        assert (answer == 0x20_0000) if expected is None else code(answer) == expected


@pytest.mark.parametrize("level", [2, 3, 4])
def test_permissions_are_anded_along_the_walk(level):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000, RW)
    at = machine.entry_at(table, IOVA, level)
    machine.memory.write64(at, machine.memory.read64(at) & ~2)
    assert machine.read(IOVA) == 0x20_0000
    assert code(machine.write(IOVA)) == 5


def test_write_only_above_read_only_grants_nothing():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000, R)
    at = machine.entry_at(table, IOVA, 2)
    machine.memory.write64(at, machine.memory.read64(at) & ~1)
    assert (code(machine.read(IOVA)), code(machine.write(IOVA))) == (6, 5)


def leaf_with(bits, level=1, config=None):
    def build():
        machine, table = ready(config)
        machine.map(table, 0, bits, RW, level)
        return machine.write(0)

    return build


def table_with(bits, level):
    def build():
        machine, table = ready()
        machine.map(table, 0, 0x20_0000)
        at = machine.entry_at(table, 0, level)
        machine.memory.write64(at, machine.memory.read64(at) | bits)
        return machine.write(0)

    return build


@pytest.mark.parametrize(
    "attempt",
    [
        leaf_with(0x20_1000, 2),
        leaf_with(0x20_0000, 3),
        leaf_with(1 << 48),
        leaf_with(1 << 51),
        leaf_with(TM),
        leaf_with(SNP, config=VtdConfig(snoop_control=False)),
        leaf_with(0, 2, VtdConfig(superpage_2m=False, superpage_1g=False)),
        leaf_with(0, 3, VtdConfig(superpage_1g=False)),
        table_with(PS, 4),
        table_with(SNP, 2),
        table_with(TM, 3),
        table_with(1 << 50, 4),
    ],
)
def test_reserved_bits_fault(attempt):
    assert code(attempt()) == 0xC


@pytest.mark.parametrize("bits", [1 << 2, 0x78, PS, 0x300, 1 << 10, SNP, 0x3FF << 52, 1 << 63])
def test_ignored_bits_of_a_leaf_do_not_matter(bits):
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000 | bits)
    assert machine.write(IOVA + 8) == 0x20_0008


def test_not_present_entry_ignores_its_other_bits():
    machine, table = ready()
    machine.map(table, IOVA, TM | 1 << 50, 0)
    assert code(machine.write(IOVA)) == 5


def test_table_outside_ram_faults():
    machine, table = ready()
    machine.memory.write64(machine.entry_at(table, IOVA, 3), 0x4000_0000 | RW)
    assert code(machine.read(IOVA)) == 7


def test_output_without_ram_is_not_the_unit_s_business():
    machine, table = ready()
    machine.map(table, IOVA, 0x8000_0000)
    assert machine.read(IOVA) == 0x8000_0000


@pytest.mark.parametrize("level, iova", [(1, 0), (2, 0), (3, 0x3EE0_0000)])
def test_output_in_the_interrupt_range_faults(level, iova):
    machine, table = ready()
    machine.map(table, iova, {1: 0xFEE0_0000, 2: 0xFEE0_0000, 3: 0xC000_0000}[level], level=level)
    assert code(machine.write(iova)) == 0xE
    assert code(machine.write(iova + 0xFF0)) == 0xE


def test_rest_of_a_superpage_around_the_interrupt_range_works_and_hides_nothing():
    machine, table = ready()
    machine.map(table, 0, 0xC000_0000, level=3)
    assert machine.write(0x3ED0_0000) == 0xFED0_0000
    assert machine.write(0x3EF0_0000) == 0xFEF0_0000
    assert code(machine.write(0x3EE0_0000)) == 0xE


def test_pass_through_reaches_memory_untranslated():
    machine, _ = ready(tt=2)
    assert machine.write(0x12_3000) == 0x12_3000
    assert machine.read((1 << 48) - 1) == (1 << 48) - 1
    assert code(machine.read(1 << 48)) == 4


def test_pass_through_needs_the_capability():
    machine, _ = ready(VtdConfig(pass_through=False), tt=2)
    assert code(machine.read(0)) == 3


@pytest.mark.parametrize(
    "root, context, expected",
    [
        ((0, 0), None, 1),
        ((0x4000_0001, 0), None, 9),
        ((0x801, 0), None, 0xA),
        ((1 << 48 | 1, 0), None, 0xA),
        ((1, 1), None, 0xA),
        (None, (0, 0x102), 2),
        (None, (0x11, 0x102), 0xB),
        (None, (1 << 50 | 1, 0x102), 0xB),
        (None, (1, 0x182), 0xB),
        (None, (1, 1 << 24 | 0x102), 0xB),
        (None, (1, 0x100), 3),
        (None, (1, 0x103), 3),
        (None, (0x5, 0x102), 3),
        (None, (0xD, 0x102), 3),
        (None, (0x4000_0001, 0x102), 3),
    ],
)
def test_root_and_context_faults(root, context, expected):
    machine = VtdMachine()
    if root:
        machine.root_entry(0, *root)
    else:
        machine.context_entry(SID, *context)
    machine.start()
    assert code(machine.read(0x5000)) == expected
    assert machine.record() == (0x5000, SID, expected, 1, 1)


def test_every_bus_has_its_root_entry_and_every_function_its_context():
    machine = VtdMachine()
    ids = (0x0000, 0x00FF, 0x0100, 0x8041, 0xFF00, 0xFFFF)
    for number, sid in enumerate(ids):
        machine.map(machine.context(sid, machine.page(), did=number + 1), IOVA, number << 12)
    machine.start()
    assert [machine.read(IOVA, sid) for sid in ids] == [number << 12 for number in range(6)]
    assert code(machine.read(IOVA, 0x01FF)) == 2 and code(machine.read(IOVA, 0x0200)) == 1


def test_root_table_outside_ram_faults():
    machine = VtdMachine()
    machine.root = 0x4000_0000
    machine.start()
    assert code(machine.write(0)) == 8


def test_short_domain_ids_reserve_the_rest_of_the_field():
    machine, _ = ready(VtdConfig(domain_id_bits=8), did=0x100)
    assert code(machine.read(0)) == 0xB


def test_root_table_address_counts_from_the_command_not_from_the_write():
    machine, table = ready()
    machine.map(table, IOVA, 0x20_0000)
    machine.w64(0x20, machine.page())
    assert machine.read(IOVA) == 0x20_0000


def test_interrupt_requests_are_not_remapped():
    machine, _ = ready()
    assert machine.write(0xFEE0_0004) == 0xFEE0_0004
    assert code(machine.read(0xFEE0_0000)) == 0xE
    assert code(machine.write(0xFEE0_0001)) == 0xE


def test_xen_golden_entries_translate():
    """Root, pass-through context, dom0 context and 2M and 4K leaves as Xen 4.17 wrote them."""
    machine = VtdMachine(size=16 << 20)
    machine.context_entry(SID, 0x9, 0x2)
    table = machine.page()
    machine.context_entry(SID + 8, table | 1, 0x2)
    machine.start()
    machine.map(table, 0x40_0000, 0x40_0000, level=2)
    leaf = machine.map(table, 0x1000, 0x1000, R)
    machine.memory.write64(leaf, machine.memory.read64(leaf) | 0x9 << 52)
    assert machine.write(0x77_7000) == 0x77_7000
    assert machine.write(0x41_2345, SID + 8) == 0x41_2345
    assert machine.read(0x1004, SID + 8) == 0x1004
    assert code(machine.write(0x1004, SID + 8)) == 5


def test_fault_answer_carries_the_record():
    machine, _ = ready()
    fault = machine.write(IOVA + 0x10)
    assert (fault.unit, fault.sid, fault.iova, fault.write) == ("vtd0", SID, IOVA + 0x10, True)
    assert fault.name == "no write permission"
    assert fault.record == (machine.r64(FRCD), machine.r64(FRCD + 8)) == (IOVA, 1 << 63 | 5 << 32 | SID)
