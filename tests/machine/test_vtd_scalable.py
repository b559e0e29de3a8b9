# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's structures: which address space a request gets, which reason stops it, what stays cached."""

import pytest
from vtd_machine import (
    ECAP,
    FSTS,
    RTADDR,
    SID,
    TE,
    VtdMachine,
    cc_global,
    wait_status,
)
from vtd_scalable import FS, NESTED, PT, RID_PASID, SS, ScalableMachine

from machine.dma import DmaFabric, PasidPort
from machine.iommu.ats import Status
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig

IOVA = 0x4000_0000
TARGET = 0x20_0000


def ready(kind=SS, replacement=None, **config):
    machine = ScalableMachine(replacement=replacement, **config)
    machine.scalable_context()
    if kind == SS:
        table = machine.page()
        machine.map(table, IOVA, TARGET)
        machine.space(SS, ss=table)
    elif kind == FS:
        table = machine.page()
        machine.fs_map(table, IOVA, TARGET)
        machine.space(FS, fs=table)
    else:
        table = 0
        machine.space(kind)
    machine.start()
    return machine, table


def test_capabilities_tell_scalable_mode():
    ecap = ScalableMachine().r64(ECAP)
    assert ecap >> 43 & 1 and ecap >> 40 & 1 and ecap >> 35 & 31 == 19 and ecap >> 46 & 3 == 3 and ecap >> 26 & 1
    plain = VtdMachine().r64(ECAP)
    assert plain >> 18 == 0


@pytest.mark.parametrize(
    "wrong",
    [{"pasid_bits": 5}, {"pasid_bits": 21}, {"write_buffer_flush": True}, {"first_stage": False}],
)
def test_impossible_scalable_units_are_refused(wrong):
    with pytest.raises(ValueError):
        VtdConfig(scalable=True, **wrong)


@pytest.mark.parametrize("kind", [FS, SS])
def test_requests_without_pasid_use_the_one_of_the_context_entry(kind):
    machine, _ = ready(kind)
    for _ in range(2):
        assert machine.request(IOVA + 0x123) == machine.request(IOVA + 0x123, pasid=RID_PASID) == TARGET + 0x123
    assert machine.unit.walk(SID, IOVA + 0x123).maddr == TARGET + 0x123
    counters = machine.unit.counters
    assert (counters.iotlb_hits, counters.iotlb_misses, counters.config_misses) == (3, 1, 1)


def test_each_pasid_has_a_space_of_its_own():
    machine, _ = ready(FS)
    for pasid in (0, 63, 64, 0x1FFF):
        table = machine.page()
        machine.fs_map(table, IOVA, 0x10_0000 + pasid * 0x1000)
        machine.space(FS, pasid, fs=table)
    for _ in range(2):
        for pasid in (0, 63, 64, 0x1FFF):
            assert machine.request(IOVA, True, pasid) == 0x10_0000 + pasid * 0x1000
    assert machine.request(IOVA, True) == TARGET


def test_devices_of_the_upper_half_have_a_context_table_of_their_own():
    machine, table = ready()
    machine.scalable_context(SID | 0x80)
    machine.space(SS, sid=SID | 0x80, ss=table)
    assert machine.request(IOVA, sid=SID | 0x80) == TARGET
    assert machine.memory.read64(machine.root) != machine.memory.read64(machine.root + 8)


def test_pass_through_goes_as_far_as_the_width():
    machine, _ = ready(PT)
    assert machine.request(0x1234, True) == 0x1234
    assert machine.request(1 << 48).code == 0x83
    assert machine.request(0xFEE0_0000).code == 0xE


def test_dma_with_a_pasid_lands_and_crosses_pages():
    machine, table = ready(FS)
    machine.fs_map(table, IOVA + 0x1000, 0x50_0000)
    fabric = DmaFabric(machine.bus)
    port = PasidPort(fabric, SID, RID_PASID)
    assert port.write(0x5000, b"plain") is None and port.read(0x5000, 5) == b"plain"
    fabric.cover(machine.unit)
    assert port.write(IOVA + 0xFFE, b"four") is None
    assert machine.memory.read(TARGET + 0xFFE, 2) + machine.memory.read(0x50_0000, 2) == b"four"
    assert port.read(IOVA + 0xFFE, 4) == b"four"
    fault = port.write(IOVA + 0x1FFE, b"four")
    assert fault.pasid == RID_PASID and fault.code == 0x71 and port.faults == [fault]
    assert isinstance(port.read(0, 1), Fault)


def test_interrupt_range_is_an_ordinary_address_with_a_pasid():
    machine, table = ready(FS)
    machine.fs_map(table, 0xFEE0_0000, 0x60_0000)
    assert machine.request(0xFEE0_0000, True) == 0xFEE0_0000
    assert machine.request(0xFEE0_0000, True, RID_PASID) == 0x60_0000


@pytest.mark.parametrize("kind", [FS, SS, PT])
def test_output_in_the_interrupt_range_is_blocked(kind):
    machine, table = ready(kind)
    if kind == FS:
        machine.fs_map(table, IOVA, 0xFEE0_0000)
    elif kind == SS:
        machine.map(table, IOVA, 0xFEE0_0000)
    for _ in range(2):
        answer = machine.request(0xFEE0_0000 if kind == PT else IOVA, True, RID_PASID)
        assert answer.code == 0x87
    assert machine.unit.walk(SID, 0xFEE0_0000 if kind == PT else IOVA, True, RID_PASID).blocked


def damage_root(machine, value):
    machine.memory.write64(machine.root, value)


def damage_context(machine, word, value):
    table = machine.memory.read64(machine.root) & ~0xFFF
    at = table + 32 * SID + 8 * word
    machine.memory.write64(at, machine.memory.read64(at) ^ value)


def damage_directory(machine, value):
    at = machine.tables[SID] + 8 * (RID_PASID >> 6)
    machine.memory.write64(at, machine.memory.read64(at) ^ value)


def damage_pasid(machine, word, value):
    at = machine.pasid_entry_at() + 8 * word
    machine.memory.write64(at, machine.memory.read64(at) ^ value)


@pytest.mark.parametrize(
    "damage, code",
    [
        (lambda m: m.set_root(0x4000_0000), 0x38),
        (lambda m: damage_root(m, 0), 0x39),
        (lambda m: damage_root(m, 0x10_0003), 0x3A),
        (lambda m: damage_root(m, 1 << 50 | 1), 0x3A),
        (lambda m: damage_root(m, 0x4000_0001), 0x40),
        (lambda m: damage_context(m, 0, 1), 0x41),
        (lambda m: damage_context(m, 0, 1 << 5), 0x42),
        (lambda m: damage_context(m, 0, 1 << 4), 0x42),
        (lambda m: damage_context(m, 0, 1 << 2), 0x42),
        (lambda m: damage_context(m, 0, 1 << 50), 0x42),
        (lambda m: damage_context(m, 1, 1 << 20), 0x42),
        (lambda m: damage_context(m, 1, 1 << 21), 0x42),
        (lambda m: damage_context(m, 2, 1), 0x42),
        (lambda m: damage_context(m, 3, 1 << 63), 0x42),
        (lambda m: damage_context(m, 1, 1 << 13), 0x48),
        (lambda m: damage_directory(m, 1), 0x51),
        (lambda m: damage_directory(m, 1 << 2), 0x52),
        (lambda m: damage_directory(m, 1 << 51), 0x52),
        (lambda m: damage_directory(m, 1 << 40), 0x58),
        (lambda m: damage_pasid(m, 0, 1), 0x59),
        (lambda m: damage_pasid(m, 0, 1 << 10), 0x5A),
        (lambda m: damage_pasid(m, 0, 1 << 9), 0x5A),
        (lambda m: damage_pasid(m, 0, 1 << 51), 0x5A),
        (lambda m: damage_pasid(m, 1, 1 << 16), 0x5A),
        (lambda m: damage_pasid(m, 2, 1), 0x5A),
        (lambda m: damage_pasid(m, 2, 1 << 8), 0x5A),
        (lambda m: damage_pasid(m, 3, 1), 0x5A),
        (lambda m: damage_pasid(m, 7, 1 << 63), 0x5A),
        (lambda m: damage_pasid(m, 0, SS << 6), 0x5B),
        (lambda m: damage_pasid(m, 0, 7 << 6), 0x5B),
        (lambda m: damage_pasid(m, 0, 3 << 2), 0x84),
        (lambda m: damage_pasid(m, 0, 1 << 2), 0x5B),
    ],
)
def test_broken_structures_have_reasons_of_their_own(damage, code):
    machine, _ = ready(host_address_width=46)
    damage(machine)
    iova = IOVA if code != 0x84 else 1 << 47
    for _ in range(2):
        answer = machine.request(iova)
        assert isinstance(answer, Fault) and answer.code == code
    assert machine.unit.walk(SID, iova).blocked == answer.name
    assert machine.record() == (iova & ~0xFFF, SID, code, 1, 1)


@pytest.mark.parametrize(
    "pasid, flags, code", [(RID_PASID, 0, 0x45), (1 << 13, 8, 0x46), (0xFFFFF, 8, 0x46), (64 * 5, 8, 0x51)]
)
def test_requests_with_pasid_need_the_context_entry_s_leave(pasid, flags, code):
    machine, _ = ready()
    machine.scalable_context(flags=flags)
    answer = machine.request(IOVA, True, pasid)
    assert answer.code == code
    high = answer.record[1]
    assert (high >> 31 & 1, high >> 40 & 0xFFFFF, high >> 32 & 0xFF, high & 0xFFFF) == (1, pasid, code, SID)
    assert machine.unit.walk(SID, IOVA, True, pasid).blocked == answer.name


@pytest.mark.parametrize("pdts, bits, code", [(1, 20, None), (7, 20, None), (1, 13, 0x43)])
def test_directory_size_is_bounded_by_the_capability(pdts, bits, code):
    machine, _ = ready(pasid_bits=bits)
    machine.scalable_context(pdts=pdts)
    answer = machine.request(IOVA)
    assert answer == TARGET if code is None else answer.code == code


@pytest.mark.parametrize("where", ["context", "directory", "pasid"])
def test_fault_processing_disable_counts_wherever_it_is_set(where):
    machine, _ = ready()
    if where == "context":
        damage_context(machine, 0, 2)
    elif where == "directory":
        damage_directory(machine, 2)
    else:
        damage_pasid(machine, 0, 2)
    assert machine.request(IOVA + 0x1000).record == ()
    assert machine.r32(FSTS) == 0


def test_reserved_table_mode_blocks_everything():
    machine, _ = ready()
    machine.w64(RTADDR, machine.root | 2 << 10)
    machine.command(machine.gcmd, 1 << 30)
    assert machine.request(IOVA).code == 0x30
    assert machine.unit.walk(SID, IOVA).blocked == "reserved translation table mode"
    machine.command(machine.gcmd & ~TE)
    assert machine.request(IOVA, True, 5) == IOVA == machine.unit.walk(SID, IOVA, True, 5).maddr


def test_mode_bits_do_not_exist_without_the_capability():
    machine = VtdMachine()
    machine.w64(RTADDR, 0x5C00)
    assert machine.r64(RTADDR) == 0x5000


def test_scalable_unit_still_does_legacy_mode():
    machine = ScalableMachine()
    table = machine.context(SID, machine.page())
    machine.map(table, IOVA, TARGET)
    machine.start()
    VtdMachine.set_root(machine)
    assert machine.request(IOVA) == TARGET
    assert machine.request(IOVA, pasid=1).code == 0x31
    assert machine.unit.walk(SID, IOVA, False, 1).blocked == "request with PASID in legacy mode"


# Device TLBs.


def test_translation_requests_need_the_device_tlb_bit():
    machine, table = ready(FS, device_tlb=True)
    refused = machine.unit.translation_request(SID, IOVA, pasid=RID_PASID)
    assert refused.status is Status.UNSUPPORTED and refused.fault.code == 0x44
    machine.scalable_context(flags=0b1100)
    assert machine.submit(cc_global())
    answer = machine.unit.translation_request(SID, IOVA, pasid=RID_PASID)
    assert answer[:5] == (Status.SUCCESS, TARGET, 0, True, True)
    machine.fs_map(table, 1 << 31, 0, level=2)
    assert machine.unit.translation_request(SID, 1 << 31).order == 9
    assert machine.unit.translation_request(SID, 0).status is Status.SUCCESS
    assert machine.unit.translated_request(SID, TARGET, True) == TARGET


def test_pasid_device_tlb_descriptor_reaches_the_device():
    machine, _ = ready(device_tlb=True)
    seen = []

    class Port:
        def invalidate(self, request):
            seen.append(request)
            return (request.sid, request.itag)

    machine.unit.connect_device_tlb(SID, Port())
    assert machine.submit((8 | SID << 16 | 0x12345 << 32, IOVA | 1 << 11 | 0x1000), wait_status())
    assert (seen[0].iova, seen[0].order, seen[0].pasid, seen[0].every_pasid) == (IOVA, 2, 0x12345, False)
    assert machine.submit((8 | SID << 16, IOVA | 1), wait_status())
    assert seen[1].every_pasid and seen[1].order == 0
    assert not machine.submit((8 | SID << 16, 2))


def test_told_walk_names_every_structure():
    machine, _ = ready(FS)
    steps = [step.name for step in machine.unit.walk(SID, IOVA, True).steps]
    assert steps == [
        "scalable root entry",
        "scalable context entry",
        "PASID directory entry",
        "PASID table entry",
        "FS-PML4E",
        "FS-PDPE",
        "FS-PDE",
        "FS-PTE",
    ]
    text = machine.unit.walk(SID, IOVA, True).steps
    assert "RID_PASID=65" in text[1].meaning and "first stage" in text[3].meaning and "P RW US 4K" in text[7].meaning
    assert NESTED not in machine.unit.scalable.spaces
