# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalable mode's caches: what stays until which command drops it, and descriptors of 256 bits."""

import pytest
from vtd_machine import (
    FSTS,
    IQA,
    IQE,
    IQERCD,
    IQH,
    IQT,
    QIE,
    SID,
    STATUS_WORD,
    VtdMachine,
    cc_device,
    cc_domain,
    cc_global,
    iotlb_domain,
    iotlb_global,
    iotlb_pages,
    wait_status,
)
from vtd_scalable import DID, FS, RID_PASID, SS, ScalableMachine, pasid_cache, pasid_iotlb

from machine.iommu.replacement import Eager, Random

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


def damage_context(machine, word, value):
    table = machine.memory.read64(machine.root) & ~0xFFF
    at = table + 32 * SID + 8 * word
    machine.memory.write64(at, machine.memory.read64(at) ^ value)


def damage_pasid(machine, word, value):
    at = machine.pasid_entry_at() + 8 * word
    machine.memory.write64(at, machine.memory.read64(at) ^ value)


@pytest.mark.parametrize(
    "descriptors, survives",
    [
        ((cc_global(),), True),  # the PASID cache needs its own
        ((pasid_cache(everything=True),), False),
        ((pasid_cache(DID),), False),
        ((pasid_cache(DID + 1),), True),
        ((pasid_cache(DID, RID_PASID),), False),
        ((pasid_cache(DID, RID_PASID + 1),), True),
        ((pasid_cache(DID + 1, RID_PASID),), True),
        ((iotlb_global(),), True),
        ((pasid_iotlb(DID, RID_PASID),), True),
    ],
)
def test_stale_address_space_lives_until_a_command_that_names_it(descriptors, survives):
    machine, _ = ready()
    assert machine.request(IOVA) == TARGET
    damage_pasid(machine, 0, 1)
    assert machine.submit(*descriptors)
    assert (machine.request(IOVA) == TARGET) == survives


@pytest.mark.parametrize(
    "descriptor, survives",
    [
        (cc_global(), False),
        (cc_domain(DID + 1), False),
        (cc_device(DID + 1, SID), False),
        (cc_device(DID, SID + 1), True),
        (cc_device(DID, SID + 4, fm=1), False),
        (pasid_cache(everything=True), True),
    ],
)
def test_context_entries_carry_no_domain_id(descriptor, survives):
    machine, _ = ready()
    assert machine.request(IOVA) == TARGET
    damage_context(machine, 0, 1)
    assert machine.submit(descriptor)
    assert (machine.request(IOVA) == TARGET) == survives


@pytest.mark.parametrize(
    "descriptor, survives",
    [
        (iotlb_pages(DID, IOVA), False),
        (iotlb_pages(DID, IOVA + 0x1000), True),
        (iotlb_domain(DID), False),
        (iotlb_domain(DID + 1), True),
        (iotlb_global(), False),
        (pasid_iotlb(DID, RID_PASID), True),
    ],
)
def test_second_stage_translations_are_tagged_with_the_domain_alone(descriptor, survives):
    machine, table = ready()
    assert machine.request(IOVA) == TARGET
    machine.map(table, IOVA, 0x70_0000)
    machine.space(SS, pasid=7, ss=table)
    assert machine.request(IOVA, pasid=7) == TARGET
    assert machine.submit(descriptor)
    assert (machine.request(IOVA) == TARGET) == survives


def test_caching_mode_remembers_missing_entries_under_domain_zero():
    machine, _ = ready(caching_mode=True)
    assert machine.request(IOVA, pasid=5).code == 0x51
    machine.pasid_entry_at(5)
    assert machine.request(IOVA, pasid=5).code == 0x51
    assert machine.submit(pasid_cache(DID, 5)) and machine.request(IOVA, pasid=5).code == 0x51
    assert machine.submit(pasid_cache(0, 5)) and machine.request(IOVA, pasid=5).code == 0x59
    assert machine.request(IOVA, sid=SID + 1).code == 0x41
    machine.scalable_context(SID + 1)
    assert machine.request(IOVA, sid=SID + 1).code == 0x41
    assert machine.submit(cc_device(0, SID + 1)) and machine.request(IOVA, sid=SID + 1).code == 0x51


def test_eager_unit_forgets_everything():
    machine, table = ready(replacement=Eager())
    assert machine.request(IOVA) == TARGET
    machine.map(table, IOVA, 0x70_0000)
    assert machine.request(IOVA) == 0x70_0000
    damage_pasid(machine, 0, 1)
    assert machine.request(IOVA).code == 0x59
    damage_context(machine, 0, 1)
    assert machine.request(IOVA).code == 0x41


def test_random_unit_answers_right_while_nothing_changes():
    machine, table = ready(replacement=Random(4))
    for page in range(16):
        machine.map(table, IOVA + page * 0x1000, TARGET + page * 0x1000)
    for turn in range(64):
        page = turn * 7 & 15
        assert machine.request(IOVA + page * 0x1000) == TARGET + page * 0x1000


def test_root_change_drops_everything_where_the_unit_says_so():
    machine, _ = ready(set_root_invalidates=True)
    assert machine.request(IOVA) == TARGET
    machine.set_root(machine.page())
    assert machine.request(IOVA).code == 0x39


def test_snapshot_brings_caches_back():
    machine, _ = ready(FS)
    assert machine.request(IOVA) == TARGET
    machine.memory.snapshot()
    state = machine.unit.save()
    damage_pasid(machine, 0, 1)
    assert machine.submit(iotlb_global(), cc_global(), pasid_cache(everything=True))
    assert machine.request(IOVA).code == 0x59
    machine.memory.reset()
    machine.unit.restore(state)
    assert machine.request(IOVA) == TARGET and machine.unit.counters.iotlb_hits == 1


@pytest.mark.parametrize(
    "descriptor",
    [
        (6 | 1 << 4, 0),
        (6 | 2 << 4 | 1 << 6, 0),
        (6 | 2 << 4 | 1 << 52, 0),
        (6 | 3 << 4, 19),
        (6 | 3 << 4, 1 << 7),
        (7 | 2 << 4, 0),
        (7 | 1 << 6, 0),
        (7, 1),
        (7 | 1 << 52, 0),
    ],
)
def test_bad_descriptors_of_scalable_mode_stop_the_queue(descriptor):
    machine, _ = ready()
    assert not machine.submit(descriptor)
    assert machine.r32(FSTS) & IQE and machine.r32(IQERCD) == 4


def test_descriptors_of_scalable_mode_are_unknown_to_legacy_units():
    for kind in (6, 7, 8):
        machine = VtdMachine().start()
        assert not machine.submit((kind | 3 << 4, 0))
        assert machine.r32(IQERCD) == 3


# 256-bit descriptors.


def wide(machine, *descriptors, upper=0):
    machine.command(machine.gcmd & ~QIE)
    machine.w64(IQT, 0)
    machine.w64(IQA, machine.ring | 1 << 11)
    machine.command(machine.gcmd | QIE)
    for number, (low, high) in enumerate(descriptors):
        for word, value in enumerate((low, high, upper, 0)):
            machine.memory.write64(machine.ring + 32 * number + 8 * word, value)
    machine.w64(IQT, 32 * len(descriptors))
    return machine.r64(IQH) == 32 * len(descriptors)


def test_wide_descriptors_execute_and_wrap():
    machine, _ = ready()
    assert wide(machine, iotlb_global(), pasid_cache(everything=True), wait_status(0x77))
    assert machine.memory.read64(STATUS_WORD) == 0x77
    for number in range(128):
        at = machine.ring + 32 * number
        for word, value in enumerate((*wait_status(number), 0, 0)):
            machine.memory.write64(at + 8 * word, value)
    machine.w64(IQT, 0)
    assert machine.r64(IQH) == 0 and machine.memory.read64(STATUS_WORD) == 127


def test_upper_half_and_odd_tails_are_reserved():
    machine, _ = ready()
    assert not wide(machine, wait_status(1), upper=1)
    assert machine.r32(IQERCD) == 4 and machine.r64(IQH) == 0
    machine, _ = ready()
    assert wide(machine)
    machine.w64(IQT, 16)
    assert machine.r32(IQERCD) == 1 and machine.r64(IQH) == 0


def test_width_bit_does_not_exist_without_the_capability():
    machine = VtdMachine()
    machine.w64(IQA, 0x1800)
    assert machine.r64(IQA) == 0x1000
