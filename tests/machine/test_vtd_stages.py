# SPDX-License-Identifier: GPL-2.0-or-later
"""First stage, second stage and nested translation: bits, reasons, accessed and dirty bits, and what stays cached."""

import pytest
from vtd_machine import PS, RW, SID, R, iotlb_domain, iotlb_global, iotlb_pages
from vtd_scalable import (
    ACCESSED,
    DID,
    DIRTY,
    FS,
    FULL,
    IOVA,
    NESTED,
    RID_PASID,
    SHIFT,
    SS,
    TARGET,
    USER,
    WRITE,
    P,
    Stages,
    pasid_iotlb,
    pasid_iotlb_pages,
)

from machine.iommu.replacement import Eager
from machine.iommu.vtd.reasons import FAULT_NAMES


@pytest.mark.parametrize("kind", [FS, SS, NESTED])
@pytest.mark.parametrize("level, size", [(1, 1 << 12), (2, 1 << 21)])
def test_pages_of_every_size_translate_alike_from_memory_and_cache(kind, level, size):
    machine = Stages(kind)
    target = 0x80_0000
    machine.put(target, level=level)
    for offset in (0, 0x123, 0xFFF):
        for write in (False, True):
            assert machine.request(IOVA + offset, write) == target | (IOVA + offset) % size
    walk = machine.unit.walk(SID, IOVA, True)
    assert (walk.maddr, walk.page_size) == (target | IOVA % size, size)


def test_gigabyte_pages_follow_the_capability():
    machine = Stages(FS)
    machine.put(1 << 30, level=3)
    assert machine.request(IOVA) == 1 << 30 | IOVA & (1 << 30) - 1
    machine = Stages(FS, first_stage_1g=False)
    machine.put(1 << 30, level=3)
    assert machine.request(IOVA).code == 0x72


@pytest.mark.parametrize("iova", [0x0000_7FFF_FFFF_F000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_F000])
def test_both_halves_of_the_canonical_space_translate(iova):
    machine = Stages(FS)
    machine.put(iova=iova)
    assert machine.request(iova + 5) == machine.request(iova + 5) == TARGET + 5


@pytest.mark.parametrize("iova", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63, 1 << 56])
def test_other_addresses_are_not_canonical(iova):
    machine = Stages(FS)
    assert machine.request(iova).code == 0x80


def test_five_levels_reach_further():
    machine = Stages(FS, five=True)
    machine.put(iova=1 << 55)
    assert machine.request(1 << 55) == TARGET
    assert machine.request(1 << 56).code == 0x80
    assert machine.unit.walk(SID, 1 << 55).steps[4].name == "FS-PML5E"


def test_five_levels_need_the_capability():
    machine = Stages(FS)
    machine.space(FS, fs=machine.first, high=1 << 2)
    assert machine.request(IOVA).code == 0x5B


@pytest.mark.parametrize(
    "level, flags, write, code",
    [
        (1, 0, False, 0x71),
        (1, P | WRITE, False, 0x81),
        (1, P | USER, True, 0x85),
        (1, P | USER, False, None),
        (3, P | WRITE, False, 0x81),
        (2, P | USER, True, 0x85),
        (4, 0, True, 0x71),
        (1, FULL | 1 << 45, False, 0x72),
        (3, FULL | 1 << 45, False, 0x72),
        (1, FULL | 1 << 63 | 1 << 11 | 0x18, True, None),
    ],
)
@pytest.mark.parametrize("kind", [FS, NESTED])
def test_first_stage_entries_grant_what_every_level_grants(kind, level, flags, write, code):
    machine = Stages(kind, host_address_width=45)
    machine.put()
    at = machine.fs_at(level=level)
    keep = machine.memory.read64(at) & 0xF_FFFF_F000
    machine.memory.write64(at, keep | flags)
    for _ in range(2):
        answer = machine.request(IOVA, write)
        assert answer == TARGET if code is None else answer.code == code
    assert machine.unit.walk(SID, IOVA, write).blocked == (code and FAULT_NAMES[code])


@pytest.mark.parametrize("level, low", [(2, 1 << 13), (2, 1 << 20), (3, 1 << 13), (3, 1 << 29), (4, 0)])
def test_low_address_bits_of_large_pages_are_reserved(level, low):
    machine = Stages(FS)
    machine.put(0, level=level)
    at = machine.fs_at(level=level)
    machine.memory.write64(at, machine.memory.read64(at) | low)
    assert machine.request(IOVA).code == 0x72
    if level < 4:
        machine.memory.write64(at, FULL | PS | 1 << 12)  # PAT
        assert machine.request(IOVA) == IOVA & (1 << 9 * level + 3) - 1


def test_tables_outside_ram_are_told_apart_by_level():
    machine = Stages(FS)
    machine.memory.write64(machine.fs_at(level=4), 0x4000_0000 | FULL)
    assert machine.request(IOVA).code == 0x70
    machine = Stages(FS)
    machine.space(FS, fs=0x4000_0000)
    assert machine.request(IOVA).code == 0x73
    assert machine.unit.walk(SID, IOVA).blocked == "cannot read top first-stage entry"


# Supervisor requests.


def test_supervisor_requests_need_sre_and_may_use_supervisor_pages():
    machine = Stages(FS, supervisor=True)
    machine.put(flags=P | WRITE)
    assert machine.request(IOVA, True) == TARGET
    machine = Stages(FS, supervisor=True)
    machine.space(FS, fs=machine.first)
    assert machine.request(IOVA).code == 0x5D
    assert machine.unit.walk(SID, IOVA).blocked == "supervisor request without SRE"


@pytest.mark.parametrize("wpe, expected", [(0, TARGET), (1 << 4, 0x85)])
def test_supervisor_writes_obey_read_only_pages_only_with_wpe(wpe, expected):
    machine = Stages(FS, supervisor=True, bits=wpe)
    machine.put(flags=P | USER)
    assert machine.request(IOVA) == TARGET
    answer = machine.request(IOVA, True)
    assert answer == expected if expected == TARGET else answer.code == expected


def test_user_requests_meet_what_a_supervisor_request_cached():
    machine = Stages(FS, supervisor=True)
    machine.scalable_context(flags=8, high=1 << 20)
    machine.put(flags=P)
    assert machine.request(IOVA) == TARGET
    assert machine.request(IOVA, pasid=RID_PASID).code == 0x81
    machine.put(flags=P | USER, iova=IOVA + 0x1000)
    assert machine.request(IOVA + 0x1000, True) == TARGET
    assert machine.request(IOVA + 0x1000, True, RID_PASID).code == 0x85


# Accessed and dirty bits.


@pytest.mark.parametrize("kind", [FS, NESTED])
def test_reads_set_accessed_and_writes_dirty(kind):
    machine = Stages(kind)
    machine.put()
    machine.request(IOVA)
    assert [machine.bits(machine.fs_at(level=level)) for level in (4, 3, 2, 1)] == [ACCESSED] * 4
    machine.request(IOVA)
    assert machine.bits(machine.fs_at()) == ACCESSED
    machine.request(IOVA, True)
    assert machine.bits(machine.fs_at()) == ACCESSED | DIRTY
    assert machine.bits(machine.fs_at(level=2)) == ACCESSED


def test_golden_leaf_of_qemu_after_a_write():
    machine = Stages(FS)
    at = machine.put(0x55_5000)
    machine.request(IOVA, True)
    assert machine.memory.read64(at) == 0x55_5067


def test_extended_accessed_bit_is_set_where_the_entry_asks():
    machine = Stages(FS, bits=1 << 7)
    machine.put()
    machine.request(IOVA)
    assert machine.bits(machine.fs_at(level=3)) == ACCESSED | 1 << 10


def test_cached_writable_page_walks_once_more_to_set_dirty():
    machine = Stages(FS)
    at = machine.put()
    machine.request(IOVA, True)
    machine.memory.write64(at, TARGET | FULL)  # software clears A and D without telling the unit
    machine.request(IOVA, True)
    assert machine.bits(at) == 0
    assert machine.submit(pasid_iotlb(DID, RID_PASID))
    machine.request(IOVA, True)
    assert machine.bits(at) == ACCESSED | DIRTY


@pytest.mark.parametrize("ssade", [0, 1 << 9])
def test_second_stage_keeps_accessed_and_dirty_only_if_asked(ssade):
    machine = Stages(SS, bits=ssade)
    at = machine.put()
    for write, expected in ((False, 1 << 8), (True, 3 << 8)):
        assert machine.request(IOVA, write) == TARGET
        assert machine.memory.read64(at) >> 8 & 3 == (expected >> 8 if ssade else 0)
    upper = machine.memory.read64(machine.entry_at(machine.second, IOVA, 3))
    assert upper >> 8 & 3 == bool(ssade)


def test_nested_write_sets_dirty_in_the_second_stage_for_data_and_tables():
    machine = Stages(NESTED, bits=1 << 9)
    machine.put(0x80_0000)
    machine.request(IOVA, True)
    tables = machine.entry_at(machine.second, machine.guest(machine.first), 2)
    data = machine.entry_at(machine.second, machine.guest(0x80_0000), 2)
    assert machine.memory.read64(tables) >> 8 & 3 == 3 and machine.memory.read64(data) >> 8 & 3 == 3


@pytest.mark.parametrize("kind, code", [(FS, 0x90), (SS, 0x7C)])
def test_walks_that_are_not_coherent_must_not_update(kind, code):
    machine = Stages(kind, bits=1 << 9, coherent_walk=False)
    at = machine.put()
    machine.bus.write_back(0, machine.memory.size)
    assert machine.request(IOVA).code == code
    walked = machine.memory.read64(at)
    machine.space(
        kind, fs=machine.first if kind == FS else 0, ss=machine.second if kind == SS else 0, middle=1 << 23, low=1 << 9
    )
    machine.bus.write_back(0, machine.memory.size)
    machine.submit((7 | 3 << 4, 0))
    assert machine.request(IOVA) == TARGET  # PWSNP
    assert machine.memory.read64(at) != walked


# Nested.


@pytest.mark.parametrize("write, code", [(False, 0x79), (True, 0x79)])
def test_output_that_the_second_stage_lacks(write, code):
    machine = Stages(NESTED)
    at = machine.put()
    machine.memory.write64(at, (1 << 40) | FULL)
    assert machine.request(IOVA, write).code == code
    machine.memory.write64(at, (1 << 50) | FULL)
    assert machine.request(IOVA, write).code == 0x72
    machine = Stages(NESTED, host_address_width=52)
    machine.memory.write64(machine.put(), (1 << 50) | FULL)
    assert machine.request(IOVA, write).code == 0x74


@pytest.mark.parametrize("rights, write, code", [(R, True, 0x85), (2, False, 0x86), (R, False, None), (2, True, None)])
def test_second_stage_permissions_bind_nested_requests(rights, write, code):
    machine = Stages(NESTED)
    machine.put(0x80_0000)
    at = machine.entry_at(machine.second, machine.guest(0x80_0000), 2)
    machine.memory.write64(at, 0x80_0000 | PS | rights)
    for _ in range(2):
        answer = machine.request(IOVA, write)
        assert answer == 0x80_0000 if code is None else answer.code == code


def test_second_stage_must_let_the_walker_read_and_update_tables():
    for level, rights, code in ((4, 0, 0x75), (3, 0, 0x76), (4, R, 0x77), (4, 2, 0x75)):
        machine = Stages(NESTED)
        machine.put()
        table = machine.fs_at(level=level) & ~0xFFF
        at = machine.entry_at(machine.second, machine.guest(table), 2)
        large = machine.memory.read64(at) & ~0xFFF
        machine.memory.write64(at, 0)  # split the 2 MiB page
        for page in range(512):
            machine.map(machine.second, machine.guest(large) + page * 0x1000, large + page * 0x1000)
        machine.map(machine.second, machine.guest(table), table, rights)
        machine.submit(iotlb_global())
        assert machine.request(IOVA).code == code


def test_nested_translation_takes_the_smaller_page():
    machine = Stages(NESTED)
    machine.put(0, level=3, iova=1 << 38)
    machine.memory.write64(machine.fs_at(1 << 38, 3), 0 | FULL | PS)
    machine.request((1 << 38) + SHIFT + 0x5000)
    tag = (DID, RID_PASID)
    assert machine.unit.scalable.first.nested.order(tag, (1 << 38) + SHIFT >> 12) == 9


@pytest.mark.parametrize(
    "kind, descriptor, survives",
    [
        (FS, pasid_iotlb(DID, RID_PASID), False),
        (FS, pasid_iotlb(DID, RID_PASID + 1), True),
        (FS, pasid_iotlb(DID + 1, RID_PASID), True),
        (FS, pasid_iotlb_pages(DID, RID_PASID, IOVA), False),
        (FS, pasid_iotlb_pages(DID, RID_PASID, IOVA, am=4), False),
        (FS, pasid_iotlb_pages(DID, RID_PASID, IOVA + 0x1000), True),
        (FS, pasid_iotlb_pages(DID, RID_PASID + 1, IOVA), True),
        (FS, iotlb_pages(DID, IOVA), True),
        (FS, iotlb_domain(DID), False),
        (FS, iotlb_domain(DID + 1), True),
        (FS, iotlb_global(), False),
        (NESTED, iotlb_pages(DID, 0), False),
        (NESTED, iotlb_pages(DID + 1, 0), True),
        (NESTED, pasid_iotlb_pages(DID, RID_PASID, IOVA), False),
        (NESTED, pasid_iotlb(DID, RID_PASID + 1), True),
        (NESTED, iotlb_domain(DID), False),
    ],
)
def test_stale_first_stage_translation_lives_until_a_command_that_names_it(kind, descriptor, survives):
    machine = Stages(kind)
    at = machine.put()
    assert machine.request(IOVA, True) == TARGET
    machine.memory.write64(at, 0)
    assert machine.submit(descriptor)
    assert (machine.request(IOVA, True) == TARGET) == survives


def test_freed_first_stage_table_is_walked_until_invalidated_without_the_leaf_hint():
    machine = Stages(FS)
    machine.put()
    machine.put(TARGET + 0x1000, iova=IOVA + 0x1000)
    assert machine.request(IOVA) == TARGET
    machine.memory.write64(machine.fs_at(level=2), 0)
    assert machine.submit(pasid_iotlb_pages(DID, RID_PASID, IOVA, am=9, ih=1))
    assert machine.request(IOVA + 0x1000) == TARGET + 0x1000
    assert machine.submit(pasid_iotlb_pages(DID, RID_PASID, IOVA, am=9))
    assert machine.request(IOVA + 0x1000).code == 0x71


def test_shared_domain_and_pasid_mix_and_different_pasids_do_not():
    machine = Stages(FS)
    machine.put()
    other = machine.page()
    machine.fs_map(other, IOVA, 0x70_0000)
    machine.space(FS, pasid=8, fs=other)
    assert machine.request(IOVA) == TARGET and machine.request(IOVA, pasid=8) == 0x70_0000
    machine.scalable_context(SID + 8, rid_pasid=8)
    machine.space(FS, pasid=8, sid=SID + 8, fs=machine.first)
    assert machine.request(IOVA, sid=SID + 8) == 0x70_0000


def test_second_stage_change_takes_nested_translations_along():
    machine = Stages(NESTED, policy=None)
    machine.put(0x80_0000)
    assert machine.request(IOVA) == 0x80_0000
    machine.map(machine.second, machine.guest(0x80_0000), 0xA0_0000, RW, level=2)
    assert machine.request(IOVA) == 0x80_0000
    assert machine.submit(iotlb_pages(DID, machine.guest(0x80_0000), am=9))
    assert machine.request(IOVA) == 0xA0_0000


def test_eager_nested_walks_every_time():
    machine = Stages(NESTED, policy=Eager())
    at = machine.put()
    assert machine.request(IOVA, True) == TARGET
    machine.memory.write64(at, 0)
    assert machine.request(IOVA, True).code == 0x71
