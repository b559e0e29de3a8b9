# SPDX-License-Identifier: GPL-2.0-or-later
"""The register block of a VT-d unit: what it reports, what can be written, faults and their messages."""

import pytest
from vtd_machine import (
    BASE,
    CAP,
    ECAP,
    FEADDR,
    FECTL,
    FEDATA,
    FRCD,
    FSTS,
    GCMD,
    GSTS,
    IQA,
    IQE,
    IQH,
    IQT,
    PFO,
    PPF,
    QIE,
    RTADDR,
    SID,
    SRTP,
    TE,
    VtdMachine,
)

from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig
from machine.iommu.vtd.unit import VtdUnit

QEMU = {"fault_records": 1, "coherent_walk": False, "snoop_control": False}


@pytest.mark.parametrize(
    "config, cap, ecap",
    [
        (VtdConfig(**QEMU), 0x00D2_008C_222F_0606, 0xF42),
        (
            VtdConfig(**QEMU, caching_mode=True, max_guest_address_width=39, address_widths=(39,)),
            0x00D2_008C_2226_0286,
            0xF42,
        ),
        (VtdConfig(**{**QEMU, "snoop_control": True}), 0x00D2_008C_222F_0606, 0xFC2),
    ],
)
def test_capabilities_read_as_on_qemu(config, cap, ecap):
    machine = VtdMachine(config)
    assert machine.r64(CAP) == cap
    assert machine.r64(ECAP) == ecap
    assert machine.r32(0) == 0x10


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain_id_bits": 7},
        {"address_widths": (40,)},
        {"address_widths": ()},
        {"host_address_width": 60},
        {"superpage_2m": False},
        {"fault_records": 0},
        {"fault_record_offset": 0xF0},
        {"iotlb_offset": 0x28},
        {"max_guest_address_width": 20},
        {"max_address_mask": 64},
    ],
)
def test_impossible_capabilities_are_refused(wrong):
    with pytest.raises(ValueError):
        VtdConfig(**wrong)


def test_moved_registers_work_where_the_capabilities_say():
    machine = VtdMachine(VtdConfig(fault_record_offset=0x400, iotlb_offset=0x500, fault_records=2)).start(False)
    fro = (machine.r64(CAP) >> 24 & 0x3FF) * 16
    iro = (machine.r64(ECAP) >> 8 & 0x3FF) * 16
    machine.read(0x3000)
    assert machine.r64(fro) == 0x3000 and machine.r64(fro + 8) >> 63
    machine.w64(iro + 8, 1 << 63 | 1 << 60)
    assert machine.r64(iro + 8) >> 57 & 3 == 1


def test_one_shot_commands_set_status_and_persistent_ones_follow_the_last_write():
    machine = VtdMachine()
    machine.w32(GCMD, SRTP)
    assert machine.r32(GSTS) == SRTP
    machine.w32(GCMD, QIE)
    assert machine.r32(GSTS) == SRTP | QIE
    machine.w32(GCMD, QIE | TE)
    assert machine.r32(GSTS) == SRTP | QIE | TE
    machine.w32(GCMD, TE)
    assert machine.r32(GSTS) == SRTP | TE
    assert machine.r32(GCMD) == 0


def test_unsupported_commands_have_no_status():
    machine = VtdMachine(VtdConfig(queued_invalidation=False))
    machine.w32(GCMD, 0xFFFF_FFFF & ~TE)
    assert machine.r32(GSTS) == SRTP
    machine.w64(IQT, 0x10)
    assert machine.r64(IQT) == 0


def test_root_change_keeps_caches_unless_the_unit_says_otherwise():
    for promise, expected in ((False, int), (True, Fault)):
        machine = VtdMachine(VtdConfig(set_root_invalidates=promise))
        table = machine.context(SID, machine.page())
        machine.map(table, 0x5000, 0x20_0000)
        machine.start()
        assert machine.read(0x5000) == 0x20_0000
        machine.set_root(machine.page())
        assert isinstance(machine.read(0x5000), expected)


@pytest.mark.parametrize("offset", [CAP, ECAP, GSTS, IQH, 0x58, 0x64, 0x70, 0xB0, 0xB8, 0xFF8])
def test_read_only_and_absent_registers_ignore_writes(offset):
    machine = VtdMachine()
    before = machine.r32(offset)
    machine.w32(offset, ~before & 0xFFFF_FFFF)
    assert machine.r32(offset) == before


@pytest.mark.parametrize(
    "offset, mask",
    [
        (RTADDR, 0xFFFF_FFFF_FFFF_F000),
        (IQA, 0xFFFF_FFFF_FFFF_F007),
        (IQT, 0x7FFF0),
        (FEDATA, 0xFFFF_FFFF_FFFF_FFFF & ~(3 << 32)),
        (0x28, 0x6000_0003_FFFF_FFFF),
    ],
)
@pytest.mark.parametrize("halves", [False, True])
def test_write_masks(offset, mask, halves):
    machine = VtdMachine()
    value = 0xFFFF_FFFF_FFFF_FFFF if offset != 0x28 else 0x7FFF_FFFF_FFFF_FFFF
    if halves or offset & 7:
        machine.w32(offset, value & 0xFFFF_FFFF)
        machine.w32(offset + 4, value >> 32)
        assert machine.r32(offset) | machine.r32(offset + 4) << 32 == mask
    else:
        machine.w64(offset, value)
        assert machine.r64(offset) == mask


def test_narrow_and_unaligned_accesses():
    machine = VtdMachine()
    assert machine.bus.load(BASE + CAP + 1, 1) == machine.r64(CAP) >> 8 & 0xFF
    assert machine.unit.read(CAP + 6, 4) == machine.r64(CAP) >> 48 | (machine.r64(ECAP) & 0xFFFF) << 16
    machine.bus.store(BASE + RTADDR + 1, 1, 0xFF)
    machine.unit.write(RTADDR + 4, 8, 1 << 63)
    machine.unit.write(IQT + 1, 4, 0x100)
    assert machine.r64(RTADDR) == machine.r64(IQT) == 0
    assert machine.unit.read(0xFFC, 8) == machine.unit.read(-8, 8) == (1 << 64) - 1


# Faults.


def faulting(**config):
    return VtdMachine(VtdConfig(**config)).start()


def test_records_fill_in_order_and_status_points_at_the_first():
    machine = faulting(fault_records=3)
    for sid in (8, 16, 24):
        machine.write(sid << 12, sid)
    assert [machine.record(i) for i in range(3)] == [(sid << 12, sid, 1, 0, 1) for sid in (8, 16, 24)]
    assert machine.r32(FSTS) == PPF
    machine.clear_faults()
    assert machine.r32(FSTS) == 0
    machine.write(0x1000)
    machine.w32(FRCD + 12, 1 << 31)
    assert machine.r32(FSTS) == 0
    machine.write(0x1000)
    assert machine.r32(FSTS) == PPF | 1 << 8


def test_pending_status_stays_while_any_record_is_unread():
    machine = faulting(fault_records=2)
    machine.write(0, 8)
    machine.write(0, 16)
    machine.w32(FRCD + 12, 1 << 31)
    assert machine.r32(FSTS) == PPF
    machine.w32(FRCD + 28, 1 << 31)
    assert machine.r32(FSTS) == 0


def test_full_log_overflows_and_stays_closed_until_overflow_is_cleared():
    machine = faulting(fault_records=1)
    machine.write(0x1000, 8)
    assert machine.write(0x2000, 16).record == ()
    assert machine.r32(FSTS) == PPF | PFO
    machine.w32(FRCD + 12, 1 << 31)
    assert machine.write(0x3000, 24).record == ()
    assert machine.r32(FSTS) == PFO
    machine.w32(FSTS, PFO)
    assert machine.write(0x4000, 32).record
    assert machine.record()[:2] == (0x4000, 32)


def test_faults_of_one_source_collapse_while_its_record_is_unread():
    machine = faulting()
    machine.write(0x1000)
    assert machine.write(0x2000).record == ()
    machine.write(0x3000, 8)
    assert machine.record(0)[0] == 0x1000 and machine.record(1)[:2] == (0x3000, 8)
    assert machine.record(2)[4] == 0
    machine.w32(FRCD + 12, 1 << 31)
    assert machine.write(0x2000).record[0] == 0x2000


def test_without_collapsing_every_fault_is_recorded():
    machine = faulting(collapse_faults=False)
    for page in range(3):
        machine.write(page << 12)
    assert [machine.record(page)[0] for page in range(3)] == [0, 0x1000, 0x2000]


@pytest.mark.parametrize("low, high, expected", [(2, 0, 2), (0x13, 0x102, 0xB), (3, 0x103, 3), (3, 0x102, 6)])
def test_fault_processing_disable_silences_what_follows_the_context_entry(low, high, expected):
    machine = VtdMachine()
    machine.context_entry(SID, machine.page() | low, high)
    machine.start()
    answer = machine.read(0)
    assert (answer.code, answer.record) == (expected, ())
    assert machine.r32(FSTS) == 0


def armed(machine, handler):
    machine.interrupts.connect(0x51, handler)
    machine.w32(FEDATA, 0x51)
    machine.w64(FEADDR, 0xFEE0_1000)
    machine.w32(FECTL, 0)


def test_event_is_masked_at_reset_and_pending_until_unmasked():
    machine = faulting()
    assert machine.r32(FECTL) == 1 << 31
    machine.write(0)
    assert machine.r32(FECTL) == 3 << 30 and machine.interrupts.delivered == 0
    armed(machine, lambda: None)
    assert machine.r32(FECTL) == 0 and machine.interrupts.delivered == 1


def test_servicing_the_fault_withdraws_a_masked_event():
    machine = faulting()
    machine.write(0)
    machine.clear_faults()
    assert machine.r32(FECTL) == 1 << 31


def test_one_event_until_all_conditions_are_serviced():
    machine = faulting(fault_records=1)
    armed(machine, lambda: None)
    machine.write(0, 8)
    machine.write(0, 16)
    machine.submit((0xF, 0))
    assert machine.r32(FSTS) == PFO | PPF | IQE
    assert machine.interrupts.delivered == 1
    machine.clear_faults()
    assert machine.r32(FSTS) == IQE  # the bad descriptor is still there
    assert machine.interrupts.delivered == 2


def test_handler_may_service_faults_during_the_request():
    machine = faulting(fault_records=1)
    seen = []

    def handler():
        seen.append(machine.record()[:3])
        machine.clear_faults()

    armed(machine, handler)
    answers = [machine.write(page << 12) for page in range(3)]
    assert seen == [(page << 12, SID, 1) for page in range(3)]
    assert [answer.record[0] for answer in answers] == [0, 0x1000, 0x2000]


def test_message_address_in_ram_is_a_plain_store():
    machine = faulting()
    machine.w32(FEDATA, 0xCAFE)
    machine.w64(FEADDR, 0x9004)
    machine.w32(FECTL, 0)
    machine.write(0)
    assert machine.memory.read64(0x9000) == 0xCAFE << 32


@pytest.mark.parametrize("target", [FECTL, FSTS, GCMD, IQT, FEDATA, FRCD + 12])
def test_message_into_the_unit_s_own_registers_ends(target):
    machine = faulting()
    machine.w32(FEDATA, 0xC000_0010)
    machine.w64(FEADDR, BASE + target)
    machine.w32(FECTL, 0)
    assert machine.write(0).code == 1


def test_error_event_that_clears_the_error_unrepaired_does_not_spin():
    machine = faulting()
    machine.w32(FEDATA, IQE)
    machine.w64(FEADDR, BASE + FSTS)
    machine.w32(FECTL, 0)
    assert not machine.submit((0xF, 0))
    assert machine.r64(IQH) == 0 and not machine.r32(FSTS) & IQE
    machine.memory.write64(machine.ring, 0xD2)
    assert machine.submit()


def test_error_handler_may_repair_the_queue():
    machine = faulting()

    def repair():
        machine.memory.write64(machine.ring, 0xD2)
        machine.w32(FSTS, IQE)

    armed(machine, repair)
    assert machine.submit((0xF, 0), (0x11, 0))
    assert machine.unit.counters.commands == {"IOTLB global": 1, "context-cache global": 1}


# Snapshots.


def test_save_and_restore_bring_registers_caches_and_queue_back():
    machine = VtdMachine(VtdConfig(fault_records=2))
    table = machine.context(SID, machine.page())
    leaf = machine.map(table, 0x5000, 0x20_0000)
    machine.start()
    machine.read(0x5000)
    machine.write(0, 8)
    machine.memory.write64(leaf, 0)
    before = [machine.r32(offset) for offset in range(0, 0x300, 4)]
    state = machine.unit.save()
    machine.submit((0xD2, 0), (0x11, 0), (0xF, 0))
    machine.clear_faults()
    machine.command(0)
    machine.write(0, 16)
    machine.unit.restore(state)
    assert [machine.r32(offset) for offset in range(0, 0x300, 4)] == before
    assert machine.unit.counters.faults == 0 and machine.unit.counters.commands == {}
    assert machine.read(0x5000) == 0x20_0000
    machine.write(0, 16)
    assert machine.record(1)[:2] == (0, 16)
    assert machine.submit((0xD2, 0))
    assert machine.read(0x5000).code == 6
    machine.unit.restore(state)
    assert machine.read(0x5000) == 0x20_0000


# What does not happen.


def test_default_unit_is_the_default_configuration():
    machine = VtdMachine()
    assert VtdUnit("vtd1", machine.bus).read(CAP, 8) == VtdConfig().cap == machine.r64(CAP)


def test_iotlb_register_without_its_command_bit_is_a_plain_store():
    machine = VtdMachine()
    table = machine.context(SID, machine.page())
    leaf = machine.map(table, 0x5000, 0x20_0000)
    machine.start(queue=False)
    assert machine.read(0x5000) == 0x20_0000
    machine.memory.write64(leaf, 0)
    machine.w64(0xF8, 1 << 60 | 3 << 32)
    assert machine.r64(0xF8) == 1 << 60 | 3 << 32
    assert machine.read(0x5000) == 0x20_0000


@pytest.mark.parametrize("needed", [True, False])
def test_write_buffer_flush_completes_at_once(needed):
    machine = VtdMachine(VtdConfig(write_buffer_flush=needed))
    machine.command(0, 1 << 27)
    assert machine.r32(GSTS) == 0
    assert machine.unit.counters.commands == ({"write-buffer flush": 1} if needed else {})
