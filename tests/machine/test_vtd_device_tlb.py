# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that cache translations: what they are told, what reaches memory past the unit, how it is taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vtd_machine import FSTS, IQE, PPF, PS, RW, SID, SNP, TE, R, VtdMachine, iotlb_domain, wait_status

from machine.devices.translation_cache import CachingPort, TranslationCache
from machine.dma import DmaFabric, PasidPort
from machine.iommu.ats import AtsUnit, Completion, InvalidateCompletion, Status
from machine.iommu.replacement import Eager
from machine.iommu.unit import Fault
from machine.iommu.vtd.config import VtdConfig

IOVA = 0x4000_0000
ICE, ITE = 1 << 5, 1 << 6
WAITED = 0x8000


def device_iotlb(sid, iova=0, order=None):
    """``order``: log2 of the pages, ``None`` for everything."""
    if order is None:
        return (3 | sid << 32, 0x7FFF_FFFF_FFFF_F001)
    size = iova & ~((1 << order + 12) - 1) | ((1 << order - 1) - 1) << 12 | 1 if order else iova
    return (3 | sid << 32, size)


def ready(tt=1, replacement=None, **config):
    machine = VtdMachine(VtdConfig(**{"device_tlb": True, **config}), replacement=replacement)
    table = machine.context(SID, machine.page(), did=7, tt=tt)
    machine.map(table, IOVA, 0x20_0000)
    machine.map(table, IOVA + 0x1000, 0x30_0000, R)
    machine.start()
    return machine, table


def port_of(machine):
    fabric = DmaFabric(machine.bus)
    fabric.cover(machine.unit)
    return CachingPort(fabric, SID)


def ask(machine, iova=IOVA, no_write=False):
    return machine.unit.translation_request(SID, iova, no_write)


def error_record(machine):
    value = machine.r64(0xB0)
    return value & 0xF, value >> 32 & 0xFFFF, value >> 48


def test_capability_is_told():
    assert VtdMachine(VtdConfig(device_tlb=True)).r64(0x10) & 4
    assert not VtdMachine().r64(0x10) & 4
    assert isinstance(VtdMachine().unit, AtsUnit)


def test_completion_has_address_permissions_and_snoop():
    machine, table = ready()
    assert ask(machine) == Completion(Status.SUCCESS, 0x20_0000, 0, True, True)
    assert ask(machine, IOVA + 0x1FFF) == Completion(Status.SUCCESS, 0x30_0000, 0, True, False)
    machine.map(table, IOVA + 0x2000, 0x31_0000 | SNP)
    assert ask(machine, IOVA + 0x2000).snooped
    machine.map(table, IOVA + 0x3000, 0x32_0000, 2)
    assert ask(machine, IOVA + 0x3000)[3:5] == (False, True)


@pytest.mark.parametrize("level, order", [(2, 9), (3, 18)])
def test_completion_covers_the_superpage(level, order):
    machine, table = ready()
    machine.map(table, IOVA * 2, 0x4000_0000, level=level)
    assert ask(machine, IOVA * 2 + 0x5123) == Completion(Status.SUCCESS, 0x4000_0000, order, True, True)


def test_unit_that_remembers_nothing_completes_page_by_page():
    machine, table = ready(replacement=Eager())
    machine.map(table, IOVA * 2, 0x4000_0000, level=2)
    assert ask(machine, IOVA * 2 + 0x5123) == Completion(Status.SUCCESS, 0x4000_5000, 0, True, True)


def test_request_that_only_reads_gets_no_write():
    machine, _ = ready()
    assert ask(machine, no_write=True)[3:5] == (True, False)


@pytest.mark.parametrize("iova", [IOVA + 0x8000, 1 << 45, 1 << 50])
def test_nothing_there_is_an_answer_and_no_fault(iova):
    machine, _ = ready()
    assert ask(machine, iova) == Completion(Status.SUCCESS)
    assert machine.r32(FSTS) == 0


@pytest.mark.parametrize("tt", [0, 2])
def test_other_translation_types_refuse_both_kinds_of_requests(tt):
    machine, _ = ready(tt=tt)
    answer = ask(machine)
    assert answer.status is Status.UNSUPPORTED and answer.fault.code == 0xD
    assert answer.fault.record[1] >> 60 & 3 == 1
    machine.clear_faults()
    fault = machine.unit.translated_request(SID, 0x20_0000, True)
    assert fault.code == 0xD and fault.record[1] >> 60 & 3 == 2
    assert isinstance(machine.write(IOVA), int)


def test_type_1_needs_the_capability():
    machine, _ = ready(device_tlb=False)
    assert machine.write(IOVA).code == 3
    assert ask(machine).status is Status.UNSUPPORTED


def test_broken_tables_abort_and_missing_ones_do_not_support():
    machine, table = ready()
    machine.map(table, IOVA + 0x4000, 1 << 50)
    assert ask(machine, IOVA + 0x4000).status is Status.ABORT
    assert machine.r32(FSTS) & PPF
    machine.map(table, IOVA + 0x5000, 0xFEE0_0000)
    assert ask(machine, IOVA + 0x5000).status is Status.ABORT
    assert machine.unit.translation_request(SID + 1, IOVA).status is Status.UNSUPPORTED
    assert machine.unit.translation_request(0x1234, IOVA).fault.code == 1


def test_translation_off_supports_no_translation_requests():
    machine, _ = ready()
    machine.command(machine.gcmd & ~TE)
    assert ask(machine) == Completion(Status.UNSUPPORTED)
    assert machine.unit.translated_request(SID, 0x1000, True).record == ()
    assert machine.r32(FSTS) == 0


def test_interrupt_range_is_reached_untranslated_only():
    machine, _ = ready()
    assert ask(machine, 0xFEE0_1000) == Completion(Status.SUCCESS, 0xFEE0_1000, 0, False, True, untranslated=True)
    assert machine.unit.translated_request(SID, 0xFEE0_1000, True).code == 0xE
    seen = []
    machine.interrupts.connect(0x77, lambda: seen.append(1))
    assert port_of(machine).write(0xFEE0_1000, (0x77).to_bytes(4, "little")) is None
    assert seen == [1]


def test_requests_with_pasid_are_refused_in_legacy_mode():
    machine, _ = ready()
    fabric = DmaFabric(machine.bus)
    fabric.cover(machine.unit)
    fault = PasidPort(fabric, SID, 0x12345).write(IOVA, b"x")
    assert (fault.code, fault.pasid) == (0x31, 0x12345)
    assert fault.record[1] >> 40 & 0xFFFFF == 0x12345 and fault.record[1] >> 31 & 1
    answer = machine.unit.translation_request(SID, IOVA, False, 5)
    assert answer.status is Status.UNSUPPORTED and answer.fault.code == 0x31


def test_device_with_a_cache_writes_past_the_unit_until_its_cache_is_invalidated():
    machine, table = ready()
    port = port_of(machine)
    assert port.write(IOVA + 0xFFC, b"1234") is None
    machine.map(table, IOVA, 0, 0)
    assert machine.submit(iotlb_domain(7), wait_status())
    assert port.write(IOVA, b"lost") is None
    assert machine.memory.read(0x20_0000, 4) == b"lost"
    assert machine.submit(device_iotlb(SID, IOVA, 0), wait_status())
    fault = port.write(IOVA, b"x")
    assert (fault.code, fault.record) == (0, ()) and port.faults == [fault]
    assert machine.r32(FSTS) == 0


def test_permission_that_the_cache_lacks_is_asked_for_again():
    machine, table = ready()
    port = port_of(machine)
    machine.memory.write(0x30_0000, b"data")
    assert port.read(IOVA + 0x1000, 4) == b"data"
    assert isinstance(port.write(IOVA + 0x1000, b"x"), Fault)
    machine.map(table, IOVA + 0x1000, 0x30_0000)
    machine.submit(iotlb_domain(7))
    assert port.write(IOVA + 0x1000, b"new ") is None
    assert port.read(IOVA + 0x1000, 4) == b"new "


def test_withdrawn_right_to_translated_requests_stops_cached_translations():
    machine, table = ready()
    port = port_of(machine)
    assert port.write(IOVA, b"x") is None
    machine.context(SID, table, did=7, tt=0)
    assert machine.submit((0x31 | 7 << 16 | SID << 32, 0))
    assert port.write(IOVA, b"y").code == 0xD


@pytest.mark.parametrize(
    "descriptor, gone",
    [
        (device_iotlb(SID, IOVA, 0), {0}),
        (device_iotlb(SID, IOVA + 0x3000, 1), {2, 3}),
        (device_iotlb(SID, IOVA, 2), {0, 1, 2, 3}),
        (device_iotlb(SID, IOVA + 0x8000, 3), set()),
        (device_iotlb(SID), set(range(8))),
        (device_iotlb(SID + 1, IOVA, 3), set()),
        (iotlb_domain(7), set()),
    ],
)
def test_descriptor_names_device_and_range(descriptor, gone):
    machine, table = ready()
    port = port_of(machine)
    machine.unit.connect_device_tlb(SID + 1, TranslationCache())
    for page in range(8):
        machine.map(table, IOVA + page * 0x1000, 0x40_0000 + page * 0x1000)
        assert port.write(IOVA + page * 0x1000, b"x") is None
    assert machine.submit(descriptor, wait_status())
    assert {page for page in range(8) if port.cache.lookup(None, (IOVA >> 12) + page) is None} == gone


def test_superpage_in_the_device_goes_with_any_page_inside():
    machine, table = ready()
    port = port_of(machine)
    machine.map(table, IOVA * 2, 0, level=2)
    assert port.write(IOVA * 2 + 0x5000, b"x") is None and len(port.cache) == 1
    assert machine.submit(device_iotlb(SID, IOVA * 2 + 0x9000, 0))
    assert len(port.cache) == 0


def test_silent_device_makes_the_next_wait_time_out():
    machine, _ = ready()
    port_of(machine).cache.answering = False
    assert not machine.submit(device_iotlb(SID), iotlb_domain(7), wait_status(1), wait_status(2))
    assert machine.r32(FSTS) == ITE and error_record(machine) == (0, SID, 0)
    assert machine.memory.read64(WAITED) == 0
    assert machine.r64(0x80) == 48  # behind the aborted wait
    machine.w64(0x88, 64)
    assert machine.memory.read64(WAITED) == 0
    machine.w32(FSTS, ITE)
    assert machine.memory.read64(WAITED) == 2 and machine.r64(0x80) == 64
    assert error_record(machine) == (0, 0, 0) and machine.r32(FSTS) == 0


def test_device_that_is_not_there_times_out_at_once_if_nothing_follows():
    machine, _ = ready()
    machine.submit(device_iotlb(0x4321))
    assert machine.r32(FSTS) == ITE and error_record(machine)[1] == 0x4321


def test_time_out_raises_the_fault_event_and_its_handler_may_resume():
    machine, _ = ready()
    machine.interrupts.connect(0x51, lambda: machine.w32(FSTS, ITE))
    machine.w32(0x3C, 0x51)
    machine.w64(0x40, 0xFEE0_1000)
    machine.w32(0x38, 0)
    assert machine.submit(device_iotlb(0x4321), wait_status(1), wait_status(2))
    assert machine.interrupts.delivered == 1 and machine.memory.read64(WAITED) == 2


@pytest.mark.parametrize("wrong_sid, wrong_tag", [(1, 0), (0, 1)])
def test_unexpected_completion_is_an_error_of_its_own(wrong_sid, wrong_tag):
    machine, _ = ready()

    class Confused:
        def invalidate(self, request):
            return InvalidateCompletion(request.sid + wrong_sid, request.itag + wrong_tag)

    machine.unit.connect_device_tlb(SID, Confused())
    machine.submit(device_iotlb(SID), wait_status())
    assert machine.r32(FSTS) == ICE | ITE
    assert error_record(machine) == (0, SID, SID + wrong_sid)
    machine.w32(FSTS, ICE)
    assert error_record(machine) == (0, SID, 0)


def test_time_out_outlives_a_snapshot():
    machine, _ = ready()
    cache = port_of(machine).cache
    cache.answering = False
    machine.memory.write64(machine.ring + 0x10, 0)
    machine.submit(device_iotlb(SID), (0xF, 0))  # stops before any wait
    assert machine.r32(FSTS) == IQE
    state = machine.unit.save()
    machine.unit.restore(state)
    machine.memory.write64(machine.ring + 0x10, wait_status()[0])
    machine.memory.write64(machine.ring + 0x18, WAITED)
    machine.w32(FSTS, IQE)
    assert machine.r32(FSTS) == ITE and machine.memory.read64(WAITED) == 0


@pytest.mark.parametrize(
    "descriptor, capable, code",
    [
        ((3 | SID << 32, 0), False, 3),
        ((3 | 1 << 4 | SID << 32, 0), True, 4),
        ((3 | 1 << 21 | SID << 32, 0), True, 4),
        ((3 | 1 << 48 | SID << 32, 0), True, 4),
        ((3 | SID << 32, 2), True, 4),
        ((8 | SID << 16, 0), True, 3),
    ],
)
def test_bad_descriptors_stop_the_queue(descriptor, capable, code):
    machine, _ = ready(device_tlb=capable, tt=0)
    machine.unit.connect_device_tlb(SID, TranslationCache())
    assert not machine.submit(descriptor)
    assert machine.r32(FSTS) == IQE and error_record(machine)[0] == code


def test_golden_descriptors_with_queue_depth_and_physical_function_are_accepted():
    machine, _ = ready()
    machine.unit.connect_device_tlb(SID, TranslationCache())
    assert machine.submit((3 | 0x1F << 16 | SID << 32 | 0xABC << 52 | 0xD << 12, 0x7FFF_FFFF_FFFF_F001))


def test_device_port_needs_a_unit_with_translation_services():
    machine, _ = ready()
    with pytest.raises(ValueError, match="translation services"):
        CachingPort(DmaFabric(machine.bus), SID)


def test_reset_device_answers_with_an_empty_cache():
    machine, _ = ready()
    port = port_of(machine)
    port.write(IOVA, b"x")
    port.cache.answering = False
    port.cache.reset()
    assert len(port.cache) == 0
    assert machine.submit(device_iotlb(SID), wait_status(3)) and machine.memory.read64(WAITED) == 3


@settings(max_examples=80, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from((0, R, 2, RW)), st.sampled_from((0x20_0000, 0x40_0000, 1 << 50))),
        max_size=12,
    ),
    large=st.booleans(),
    pages=st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=8),
)
def test_completions_say_what_dma_would_meet(edits, large, pages):
    machine, table = ready()
    if large:
        machine.memory.write64(machine.entry_at(table, IOVA, 2), 0x60_0000 | PS | RW)
    else:
        for page, rights, target in edits:
            machine.map(table, IOVA + page * 0x1000, target, rights)
    for page, no_write in pages:
        iova = IOVA + page * 0x1000
        read, write = (machine.unit.walk(SID, iova, each) for each in (False, True))
        answer = ask(machine, iova, no_write)
        if answer.status is Status.SUCCESS:
            assert answer.read == (read.maddr is not None)
            assert answer.write == (write.maddr is not None and not no_write)
            if answer.read or answer.write:
                size = 4096 << answer.order
                assert answer.maddr + iova % size == (read if answer.read else write).maddr
                assert size <= (read if answer.read else write).page_size
        else:
            assert answer.status is Status.ABORT and "reserved" in (read.blocked or "") + (write.blocked or "")
