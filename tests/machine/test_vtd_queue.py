# SPDX-License-Identifier: GPL-2.0-or-later
"""How the invalidation queue runs, waits, signals and stops."""

import pytest
from vtd_machine import (
    FSTS,
    GSTS,
    ICS,
    IECTL,
    IQA,
    IQE,
    IQERCD,
    IQH,
    IQT,
    QIE,
    SID,
    STATUS_WORD,
    TE,
    VtdMachine,
    wait_interrupt,
    wait_status,
)

IOVA = 0x8000_0000


def ready(config=None, queue=True, **options):
    machine = VtdMachine(config, **options)
    table = machine.context(SID, machine.page(), did=7)
    machine.start(queue)
    return machine, table


def test_wait_stores_its_status_word_only():
    machine, _ = ready()
    for address in (STATUS_WORD, STATUS_WORD + 4):
        machine.memory.write64(STATUS_WORD, 0x1111_1111_2222_2222)
        assert machine.submit(wait_status(0xABCD, address))
        assert machine.memory.read64(STATUS_WORD) == (
            0x1111_1111_0000_ABCD if address == STATUS_WORD else 0x0000_ABCD_2222_2222
        )


def test_status_store_is_undone_by_a_memory_snapshot():
    machine, _ = ready()
    machine.memory.snapshot()
    assert machine.submit(wait_status())
    machine.memory.reset()
    assert machine.memory.read64(STATUS_WORD) == 0


def test_status_address_without_ram_loses_the_store():
    machine, _ = ready()
    assert machine.submit(wait_status(1, 0xFFFF_FFFF_FFFF_FFFC))


def test_ring_wraps_and_head_follows():
    machine, _ = ready()
    for turn in range(600):
        assert machine.submit(wait_status(turn))
        assert machine.memory.read64(STATUS_WORD) == turn
    assert machine.r64(IQH) == machine.r64(IQT) == 600 * 16 % 4096
    assert machine.unit.counters.commands["wait"] == 600


def test_completion_interrupt_comes_once_per_service():
    machine, _ = ready()
    got = []
    machine.interrupts.connect(0x41, lambda: got.append(machine.r32(ICS)))
    machine.w32(IECTL + 4, 0x41)
    machine.w64(IECTL + 8, 0xFEE0_0000)
    assert machine.submit(wait_interrupt())
    assert not got and machine.r32(IECTL) == 3 << 30 and machine.r32(ICS) == 1
    machine.w32(IECTL, 0)
    assert got == [1] and machine.r32(IECTL) == 0
    assert machine.submit(wait_interrupt())
    assert got == [1]
    machine.w32(ICS, 1)
    assert machine.r32(ICS) == 0
    assert machine.submit(wait_interrupt())
    assert got == [1, 1]


def test_servicing_completion_withdraws_a_masked_interrupt():
    machine, _ = ready()
    assert machine.submit(wait_interrupt())
    machine.w32(ICS, 1)
    assert machine.r32(IECTL) == 1 << 31


def test_completion_handler_may_submit_more():
    machine, _ = ready()
    machine.interrupts.connect(0x41, lambda: machine.submit(wait_status(2)))
    machine.w32(IECTL + 4, 0x41)
    machine.w64(IECTL + 8, 0xFEE0_0000)
    machine.w32(IECTL, 0)
    assert machine.submit(wait_interrupt()) is False  # the handler moved the tail further
    assert machine.r64(IQH) == machine.r64(IQT) == 32
    assert machine.memory.read64(STATUS_WORD) == 2


@pytest.mark.parametrize(
    "descriptor, info",
    [
        ((0, 0), 3),
        ((0xF, 0), 3),
        ((0x3 | 1 << 32, 1), 3),
        ((0x205, 0), 3),
        ((0x01, 0), 4),
        ((0x02, 0), 4),
        ((0x51, 0), 4),
        ((0x11, 1), 4),
        ((0x1D2, 0), 4),
        ((0xF2, 0x80), 4),
        ((0xF2, 19), 4),
        ((0xE2 | 1 << 32, 0), 4),
        ((0x65 | 1 << 8, STATUS_WORD), 4),
        ((0x65, STATUS_WORD | 2), 4),
        ((0x04 | 1 << 5, 0), 4),
    ],
)
def test_bad_descriptor_stops_the_queue_until_software_repairs_it(descriptor, info):
    machine, _ = ready()
    assert machine.submit(wait_status(1))
    assert not machine.submit(descriptor, wait_status(2))
    assert machine.r64(IQH) == 16
    assert machine.r32(FSTS) & IQE and machine.r32(IQERCD) == info
    assert not machine.submit(wait_status(3))
    assert machine.memory.read64(STATUS_WORD) == 1
    machine.memory.write64(machine.ring + 16, wait_status()[0])
    machine.memory.write64(machine.ring + 24, STATUS_WORD)
    machine.w32(FSTS, IQE)
    assert machine.r64(IQH) == machine.r64(IQT)
    assert machine.memory.read64(STATUS_WORD) == 3
    assert not machine.r32(FSTS) & IQE and machine.r32(IQERCD) == 0


def test_clearing_the_error_without_repair_stops_again():
    machine, _ = ready()
    assert not machine.submit((0xF, 0))
    machine.w32(FSTS, IQE)
    assert machine.r32(FSTS) & IQE and machine.r64(IQH) == 0


def test_tail_beyond_the_ring_is_an_error():
    machine, _ = ready()
    machine.w64(IQT, 0x1000)
    assert machine.r32(FSTS) & IQE and machine.r32(IQERCD) == 1


def test_ring_outside_ram_is_an_error():
    machine, _ = ready(queue=False)
    machine.w64(IQA, 0x4000_0000)
    machine.command(TE | QIE)
    machine.w64(IQT, 16)
    assert machine.r32(FSTS) & IQE and machine.r32(IQERCD) == 2


def test_ring_at_the_end_of_ram_runs_up_to_the_edge():
    machine, _ = ready(queue=False)
    machine.ring = machine.memory.size - 0x1000
    machine.w64(IQA, machine.ring | 1)
    machine.command(TE | QIE)
    for turn in range(255):
        assert machine.submit(wait_status(turn))
    machine.memory.write64(machine.memory.size - 16, wait_status()[0])
    machine.memory.write64(machine.memory.size - 8, STATUS_WORD)
    machine.w64(IQT, 0x1000)
    assert machine.r64(IQH) == 0x1000 and machine.r32(FSTS) == 0
    machine.w64(IQT, 0x1010)
    assert machine.r64(IQH) == 0x1000 and machine.r32(IQERCD) == 2


def test_ring_size_and_address_count_from_the_command():
    machine, _ = ready()
    machine.w64(IQA, 0x4000_0000)
    assert machine.submit(wait_status(5))
    assert machine.memory.read64(STATUS_WORD) == 5
    machine.command(TE)
    assert machine.r64(IQH) == 0 and not machine.r32(GSTS) & QIE
    machine.w64(IQT, 0)
    machine.w64(IQA, machine.ring | 1)
    machine.command(TE | QIE)
    machine.w64(IQT, 0x10)
    machine.w64(IQT, 0x1010)
    assert machine.r32(FSTS) & IQE == IQE  # beyond what was ever written: zero descriptors
    assert machine.r32(IQERCD) == 3


def test_xen_golden_descriptors_are_accepted():
    machine, _ = ready()
    did = 5
    for low, high in (
        (0x11, 0),
        (0xD2, 0),
        (0xE2 | did << 16, 0),
        (0x4, 0),
        (0x14 | 9 << 32, 0),
    ):
        assert machine.submit((low, high), (0x0000_0001_0000_0065, STATUS_WORD))
    assert machine.unit.counters.commands == {
        "context-cache global": 1,
        "IOTLB global": 1,
        "IOTLB domain": 1,
        "interrupt-entry": 2,
        "wait": 5,
    }
