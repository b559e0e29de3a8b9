# SPDX-License-Identifier: GPL-2.0-or-later
"""The Event queue: delivery, overflow, aborts and its interrupt."""

from smmuv3_board import DOORBELL, EVENTQ, RAM, Board

from machine.iommu.smmuv3 import Smmuv3Config

SID = 8


def fault(board, iova=0x1000):
    return board.unit.translate(SID, iova, True)


def board_with_faults():
    board = Board()
    board.stage2(SID)
    return board


def test_records_arrive_in_order_and_wrap():
    board = board_with_faults()
    for lap in range(5):
        sent = [fault(board, 0x1000 * (lap * 10 + n)).record for n in range(10)]
        assert board.events() == sent


def test_a_disabled_queue_loses_events_without_overflow():
    board = board_with_faults()
    board.w32(0x20, 0b1001)
    result = fault(board)
    assert result.record == () and result.name == "F_TRANSLATION"
    assert board.r32(0x100A8) == 0


def test_a_full_queue_overflows_once_until_acknowledged():
    board = board_with_faults()
    for _ in range(16):
        assert fault(board).record
    assert board.r32(0x100A8) == 0x10
    assert fault(board).record == ()
    assert board.r32(0x100A8) == 1 << 31 | 0x10
    assert fault(board).record == ()
    assert board.r32(0x100A8) == 1 << 31 | 0x10
    assert len(board.events()) == 16
    assert fault(board).record  # overflow does not block once there is room
    board.w32(0x100AC, 1 << 31 | board.r32(0x100A8) & 0x1F)
    for _ in range(17):
        fault(board)
    assert board.r32(0x100A8) >> 31 == 0


def test_an_event_queue_outside_ram_aborts_and_stops_delivery():
    board = board_with_faults()
    board.w32(0x20, 0)
    board.w64(0xA0, RAM | 4)
    board.w32(0x20, 0b1101)
    assert fault(board).record == ()
    assert board.r32(0x60) == 1 << 2 and board.r32(0x100A8) == 0
    board.w32(0x20, 0)
    board.w64(0xA0, EVENTQ | 4)
    board.w32(0x20, 0b1101)
    assert fault(board).record == ()  # not acknowledged yet
    board.w32(0x64, 1 << 2)
    assert fault(board).record


def test_the_queue_interrupts_when_it_becomes_non_empty():
    board = board_with_faults()
    seen = []
    board.doorbell.connect(9, lambda: seen.append(board.r32(0x100A8)))
    board.w64(0xB0, DOORBELL)
    board.w32(0xB8, 9)
    board.w32(0x50, 4)
    fault(board)
    fault(board)
    assert seen == [1] and board.pulses == ["eventq"]
    board.events()
    fault(board)
    assert seen == [1, 3]


def test_a_handler_may_take_events_while_the_fault_is_reported():
    board = board_with_faults()
    taken = []
    board.doorbell.connect(9, lambda: taken.extend(board.events()))
    board.w64(0xB0, DOORBELL)
    board.w32(0xB8, 9)
    board.w32(0x50, 4)
    sent = [fault(board, 0x1000 * n).record for n in range(40)]
    assert taken == sent


def test_the_interrupt_needs_its_enable():
    board = board_with_faults()
    board.w64(0xB0, DOORBELL)
    board.w32(0xB8, 9)
    fault(board)
    assert board.doorbell.spurious == 0 and board.pulses == []


def test_an_aborted_event_message_is_a_global_error():
    board = board_with_faults()
    board.w64(0xB0, RAM)
    board.w32(0x50, 4)
    assert fault(board).record
    assert board.r32(0x60) == 1 << 5


def test_an_aborted_gerror_message_does_not_interrupt_again():
    board = board_with_faults()
    board.w64(0xB0, RAM)
    board.w64(0x68, RAM)
    board.w32(0x50, 5)
    fault(board)
    assert board.r32(0x60) == 1 << 5 | 1 << 7
    assert board.pulses == ["eventq", "gerror"]


def test_the_queue_size_is_limited_by_idr1():
    board = Board(Smmuv3Config(eventq_log2=1))
    board.stage2(SID)
    assert [bool(fault(board).record) for _ in range(3)] == [True, True, False]


def test_the_queue_base_is_aligned_to_its_size():
    board = board_with_faults()
    board.w32(0x20, 0)
    board.w64(0xA0, EVENTQ | 0x60 | 4)
    board.w32(0x20, 0b1101)
    sent = fault(board).record
    assert board.events() == [sent]


def test_fault_text_names_device_direction_and_reason():
    board = board_with_faults()
    assert str(fault(board)) == "smmu0: DMA write by 00:01.0 at 0x1000: F_TRANSLATION (0x10)"
