# SPDX-License-Identifier: GPL-2.0-or-later
"""The register file: identification, handshakes, guards, access sizes, save and restore."""

import pytest
from smmuv3_board import CMDQ, EVENTQ, STE_BYPASS, STRTAB, SYNC, Board

from machine.iommu.smmuv3 import Smmuv3Config

SMMUEN, EVENTQEN, CMDQEN = 1, 4, 8


def test_id_registers_report_a_stage_2_unit():
    board = Board(enable=False)
    idr0 = board.r32(0x00)
    assert idr0 & 0b11 == 0b01  # S2P, not S1P
    assert idr0 >> 2 & 3 == 2  # VMSAv8-64 only
    assert idr0 >> 4 & 1 == 1  # COHACC
    assert idr0 >> 13 & 3 == 3  # MSI, SEV
    assert idr0 >> 18 & 1 == 1  # VMID16
    assert idr0 >> 24 & 3 == 1 and idr0 >> 26 & 1 == 1  # terminate with abort
    assert idr0 >> 27 & 3 == 1  # two-level stream table
    assert board.r32(0x04) & 0x3F == 16
    assert board.r32(0x04) >> 21 & 0x1F == 16
    assert board.r32(0x0C) >> 10 & 7 == 0b101  # RIL, BBML 2
    assert board.r32(0x14) == 1 << 4 | 5  # 4K granule, 48 bits
    assert board.r32(0x1C) == 2


@pytest.mark.parametrize("oas", [32, 36, 40, 42, 44, 48])
def test_oas_is_encoded_in_idr5(oas):
    assert Board(Smmuv3Config(oas=oas), enable=False).r32(0x14) & 7 == [32, 36, 40, 42, 44, 48].index(oas)


@pytest.mark.parametrize(
    "choice", [{"oas": 47}, {"oas": 52}, {"sid_bits": 33}, {"cmdq_log2": 20}, {"bbml": 3}, {"iidr": 1 << 32}]
)
def test_impossible_configurations_are_refused(choice):
    with pytest.raises(ValueError, match=r"\d"):
        Smmuv3Config(**choice)


@pytest.mark.parametrize("offset", [0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C, 0x24, 0x54, 0x60])
def test_read_only_registers_ignore_writes(offset):
    board = Board(enable=False)
    before = board.r32(offset)
    board.w32(offset, 0xFFFFFFFF)
    assert board.r32(offset) == before


def test_cr0_acknowledges_at_once_and_keeps_reserved_bits_clear():
    board = Board(enable=False)
    board.w32(0x20, 0xFFFFFFFF)
    assert board.r32(0x20) == board.r32(0x24) == SMMUEN | EVENTQEN | CMDQEN
    board.w32(0x50, 0xFFFFFFFF)
    assert board.r32(0x50) == board.r32(0x54) == 0b101


@pytest.mark.parametrize(
    ("offset", "size", "control", "enable", "value"),
    [
        (0x28, 4, 0x20, SMMUEN, 0xFC0),
        (0x28, 4, 0x20, CMDQEN, 0x03F),
        (0x28, 4, 0x20, EVENTQEN, 0x03F),
        (0x2C, 4, 0x20, SMMUEN, 0x2),
        (0x68, 8, 0x50, 1, 0xFFFF_FFFF_FFFC),
        (0x70, 4, 0x50, 1, 0xFFFF_FFFF),
        (0x74, 4, 0x50, 1, 0x3F),
        (0x80, 8, 0x20, SMMUEN, 1 << 62 | 0xFFFF_FFFF_FFC0),
        (0x88, 4, 0x20, SMMUEN, 0x307FF),
        (0x90, 8, 0x20, CMDQEN, 1 << 62 | 0xFFFF_FFFF_FFFF),
        (0x9C, 4, 0x20, CMDQEN, 0x3),
        (0xA0, 8, 0x20, EVENTQEN, 1 << 62 | 0xFFFF_FFFF_FFFF),
        (0x100A8, 4, 0x20, EVENTQEN, 1 << 31 | 0x1),
        (0xB0, 8, 0x50, 4, 0xFFFF_FFFF_FFFC),
        (0xB8, 4, 0x50, 4, 0xFFFF_FFFF),
        (0xBC, 4, 0x50, 4, 0x3F),
    ],
)
def test_guarded_registers_change_only_while_their_guard_is_off(offset, size, control, enable, value):
    board = Board(enable=False)
    read, write = (board.r32, board.w32) if size == 4 else (board.r64, board.w64)
    if offset in (0x9C, 0x100A8):
        board.w64(0x90, CMDQ | 1)
        board.w32(0x98, 3)
        board.w64(0xA0, EVENTQ | 1)
    before = read(offset)
    board.w32(control, enable)
    write(offset, 0xFFFF_FFFF_FFFF_FFFF if size == 8 else 0xFFFF_FFFF)
    assert read(offset) & value == before & value
    board.w32(control, 0)
    write(offset, 0xFFFF_FFFF_FFFF_FFFF if size == 8 else 0xFFFF_FFFF)
    assert read(offset) & value == value


def test_registers_without_guard_stay_writable():
    board = Board()
    for offset, value in ((0x98, 0x0), (0x100AC, 1 << 31 | 0x5)):
        board.w32(offset, value)
        assert board.r32(offset) == value


def test_64_bit_registers_take_32_bit_halves():
    board = Board(enable=False)
    board.w32(0x84, 0x12)
    board.w32(0x80, 0x3456_7FFF)
    assert board.r64(0x80) == 0x12_3456_7FC0
    assert (board.r32(0x80), board.r32(0x84)) == (0x3456_7FC0, 0x12)


@pytest.mark.parametrize(
    ("offset", "size"), [(0x20, 1), (0x20, 2), (0x22, 4), (0x84, 8), (0x21, 8), (-4, 4), (0x30000, 4)]
)
def test_odd_accesses_read_zero_and_write_nothing(offset, size):
    board = Board(enable=False)
    before = dict(board.unit.registers.words)
    board.unit.write(offset, size, (1 << 8 * size) - 1)
    assert board.unit.read(offset, size) == 0
    assert board.unit.registers.words == before


def test_event_queue_indexes_live_in_page_1_only():
    board = Board(enable=False)
    board.w32(0xAC, 5)
    board.w32(0xA8, 5)
    assert board.r32(0x100AC) == board.r32(0x100A8) == board.r32(0xAC) == 0
    board.w32(0x100AC, 1)
    assert board.r32(0xAC) == 0


def test_message_registers_are_reserved_without_msi():
    board = Board(Smmuv3Config(msi=False), enable=False)
    for offset in (0x68, 0x70, 0xB0, 0xB8):
        board.w32(offset, 0xFFFFFFFF)
        assert board.r32(offset) == 0


def test_index_bits_above_the_wrap_flag_read_as_zero():
    board = Board(enable=False)
    board.w64(0x90, CMDQ | 3)
    board.w32(0x98, 0xFFFFF)
    board.w32(0x9C, 0xFFFFF)
    assert board.r32(0x98) == board.r32(0x9C) == 0xF
    board.w64(0xA0, EVENTQ | 2)
    board.w32(0x100AC, 0xFFFFFFFF)
    assert board.r32(0x100AC) == 1 << 31 | 7


def test_stream_table_registers_follow_while_disabled():
    board = Board(enable=False)
    board.enable()
    for sid in (2, 3):
        board.set_ste(sid, STE_BYPASS)
        assert board.unit.translate(sid, 0x40, False) == 0x40
    board.w32(0x20, CMDQEN)
    board.w32(0x88, 1)  # two streams only
    board.w32(0x20, SMMUEN | CMDQEN)
    for sid in (2, 3):
        assert board.unit.translate(sid, 0x40, False).name == "C_BAD_STREAMID"
    assert board.unit.translate(1, 0x40, False).name == "C_BAD_STE"
    assert board.r64(0x80) == STRTAB


@pytest.mark.parametrize("stray", [0x40, 0x2000])
def test_the_stream_table_base_is_aligned_to_the_table(stray):
    board = Board(enable=False)
    board.enable()
    board.set_ste(3, STE_BYPASS)
    board.w32(0x20, CMDQEN)
    board.w64(0x80, STRTAB | stray)
    board.w32(0x20, SMMUEN | CMDQEN)
    assert board.unit.translate(3, 0x40, False) == 0x40


def test_stream_ids_are_no_wider_than_sidsize():
    board = Board(Smmuv3Config(sid_bits=4))
    for sid in (15, 16):
        board.set_ste(sid, STE_BYPASS)
    assert board.unit.translate(15, 0x40, False) == 0x40
    assert board.unit.translate(16, 0x40, False).name == "C_BAD_STREAMID"


def test_a_one_level_unit_takes_any_table_for_linear():
    board = Board(Smmuv3Config(two_level=False), two_level=True)
    assert board.r32(0x88) == 8
    board.two_level = False
    board.set_ste(3, STE_BYPASS)
    assert board.unit.translate(3, 0x40, False) == 0x40


def test_a_unit_may_come_out_of_reset_closed():
    board = Board(Smmuv3Config(abort_at_reset=True), enable=False)
    assert board.r32(0x44) == 1 << 20 | 0x1000
    assert board.unit.translate(3, 0x40, False).name == "GBPA.ABORT"


def test_save_and_restore_bring_registers_caches_and_queues_back():
    board = Board()
    root = board.stage2()
    board.map(root, 0x1000, 0x5000)
    board.unit.translate(8, 0x1000, False)
    board.memory.snapshot()
    state = board.unit.save()
    registers = dict(board.unit.registers.words)
    board.map(root, 0x1000, 0x9000)
    board.command((0x30, 0), SYNC)
    board.unit.translate(9, 0, True)
    board.w32(0x20, 0)
    board.memory.reset()
    board.unit.restore(state)
    assert board.unit.registers.words == registers
    assert board.unit.counters.faults == 0 and not board.unit.counters.commands
    board.map(root, 0x1000, 0x9000)
    assert board.unit.translate(8, 0x1000, False) == 0x5000  # still cached
    board.command((0x30, 0), SYNC)
    assert board.unit.translate(8, 0x1000, False) == 0x9000
    board.memory.reset()
    board.unit.restore(state)  # a state can be restored many times
    assert board.unit.translate(8, 0x1000, False) == 0x5000


def test_restoring_a_disabled_state_stops_translation():
    board = Board()
    root = board.stage2()
    board.map(root, 0x1000, 0x5000)
    assert board.unit.translate(8, 0x1000, False) == 0x5000
    board.w32(0x20, 0)
    disabled = board.unit.save()
    board.w32(0x20, 0b1101)
    assert board.unit.translate(8, 0x1000, False) == 0x5000
    board.unit.restore(disabled)
    assert board.unit.translate(8, 0x1000, False) == 0x1000
