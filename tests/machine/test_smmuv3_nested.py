# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 1 through stage 2: which stage a fault belongs to, what was being done, and what invalidations must reach."""

import pytest
from smmuv3_stage1_board import AF, NG, OFFSET, PAGE1, RO, SID, SYNC, Stage1Board, nh_all, nh_va, nh_vaa

from machine.iommu.unit import Fault

VA = 0x7F00_1234_5000
IPA = 0x13_0000
READ = 1 << 35
S2 = 1 << 39
CD, TT, IN = 0, 1 << 40, 2 << 40
TTRNW = 1 << 44
RAM_PAGE = 0x7FF


def name(result):
    return result.name if isinstance(result, Fault) else result


@pytest.fixture
def board():
    board = Stage1Board()
    board.cd, board.root, board.root2 = board.nested()
    board.leaf = board.map1(board.root, VA, IPA, offset=OFFSET)
    return board


def unmap2(board, ipa, attributes=0, pa=0):
    board.map(board.root2, ipa, pa, attributes)
    board.command((0x28 | 3 << 32, 0), (0x04, 31), SYNC)


def test_both_stages_translate(board):
    assert board.unit.translate(SID, VA | 0x28, True) == IPA + OFFSET | 0x28
    walk = board.unit.walk(SID, VA | 0x28)
    assert (walk.maddr, walk.page_size) == (IPA + OFFSET | 0x28, 4096)
    names = [step.name for step in walk.steps]
    # the CD and each of four tables is looked for through four levels, and so is the output
    assert names.count("stage 2 descriptor") == 24 and names.count("stage 1 descriptor") == 4
    assert walk.steps[-5].meaning.startswith(f"page 4K -> {IPA:#x}")


def test_the_smaller_page_is_what_is_cached(board):
    size = 1 << 21
    board.map1(board.root, VA & -size, 0, 0x741, level=2, offset=OFFSET)
    inner = VA & size - 1
    board.map(board.root2, inner & -0x1000, 0x700000)
    assert board.unit.translate(SID, VA, False) == 0x700000
    board.map(board.root2, (inner & -0x1000) + 0x1000, 0x600000)
    assert board.unit.translate(SID, VA + 0x1000, False) == 0x600000


@pytest.mark.parametrize(
    ("what", "cls"),
    [("cd", CD), ("table", TT), ("output", IN)],
)
def test_a_stage_2_fault_tells_what_was_being_fetched(board, what, cls):
    ipa = {"cd": board.cd, "table": board.root, "output": IPA}[what]
    slot = {"cd": 0, "table": 8 * (VA >> 39), "output": 0x28}[what]
    unmap2(board, ipa)
    fault = board.unit.translate(SID, VA | 0x28, False)
    assert fault.record == (0x10 | SID << 32, cls | S2 | READ, VA | 0x28, ipa + slot & ~0xFFF)
    assert board.unit.walk(SID, VA).blocked == "F_TRANSLATION"


def test_stage_1_faults_come_first_and_ask_no_stage_2(board):
    unmap2(board, IPA)
    board.memory.write64(board.leaf, IPA | PAGE1 | RO)
    assert board.unit.translate(SID, VA, True).record == (0x13 | SID << 32, IN, VA, 0)
    board.memory.write64(board.leaf, IPA | PAGE1 & ~AF)
    assert board.unit.translate(SID, VA, True).record == (0x12 | SID << 32, IN, VA, 0)
    board.memory.write64(board.leaf, 0)
    assert board.unit.translate(SID, VA, True).record == (0x10 | SID << 32, IN, VA, 0)


def test_permission_of_the_output_at_stage_2(board):
    unmap2(board, IPA, RAM_PAGE & ~(1 << 7), IPA + OFFSET)
    assert board.unit.translate(SID, VA, False) == IPA + OFFSET
    record = (0x13 | SID << 32, IN | S2, VA | 8, IPA)
    assert board.unit.translate(SID, VA | 8, True).record == record  # from the cached pair
    board.command(nh_all(3), SYNC)
    assert board.unit.translate(SID, VA | 8, True).record == record  # from stage 2's own cache
    board.command((0x30, 0), SYNC)
    assert board.unit.translate(SID, VA | 8, True).record == record  # from the tables


def test_a_table_that_stage_2_hides_is_a_permission_fault_of_the_walk(board):
    unmap2(board, board.root, RAM_PAGE & ~(1 << 6), board.root + OFFSET)
    fault = board.unit.translate(SID, VA, True)
    assert fault.record == (0x13 | SID << 32, TT | TTRNW | S2, VA, board.root)


@pytest.mark.parametrize("what", ["cd", "root"])
def test_s2ptw_keeps_fetches_from_device_memory(board, what):
    ipa = {"cd": board.cd, "root": board.root}[what]
    unmap2(board, ipa, RAM_PAGE & ~0x3C | 1 << 2, ipa + OFFSET)  # MemAttr 0001: Device-nGnRE
    expected = CD | S2 if what == "cd" else TT | TTRNW | S2
    fault = board.unit.translate(SID, VA, True)
    assert (fault.name, fault.record[1]) == ("F_PERMISSION", expected)
    at = 0x100000 + 64 * SID + 16
    board.memory.write64(at, board.memory.read64(at) & ~(1 << 54))
    board.command((0x04, 31), SYNC)
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET


def test_an_access_flag_update_needs_stage_2_to_let_the_table_be_written(board):
    board.nested(extra=1 << 43)
    board.cd, board.root, board.root2 = board.nested(9, vmid=4, extra=1 << 43)
    leaf = board.map1(board.root, VA, IPA, PAGE1 & ~AF, offset=OFFSET)
    table = leaf - OFFSET & ~0xFFF
    board.map(board.root2, table, table + OFFSET, RAM_PAGE & ~(1 << 7))
    fault = board.unit.translate(9, VA, False)
    # the transaction reads, what failed was a write: TTRnW is 0
    assert fault.record == (0x13 | 9 << 32, TT | S2 | READ, VA, table)
    board.map(board.root2, table, table + OFFSET)
    board.command((0x28 | 4 << 32, 0), SYNC)
    assert board.unit.translate(9, VA, False) == IPA + OFFSET
    assert board.memory.read64(leaf) & AF


def test_stage_2_flags_are_set_for_tables_and_output():
    board = Stage1Board()
    _, root, root2 = board.nested(extra2=3 << 55)
    leaf = board.map1(root, VA, IPA, offset=OFFSET)
    table2 = board.map(root2, leaf - OFFSET & ~0xFFF, leaf & ~0xFFF, RAM_PAGE & ~AF)
    out2 = board.map(root2, IPA, IPA + OFFSET, RAM_PAGE & ~(1 << 7) & ~AF | 1 << 51)
    board.command((0x28 | 3 << 32, 0), SYNC)
    assert board.unit.translate(SID, VA, False) == IPA + OFFSET
    assert board.memory.read64(table2) & AF
    assert board.memory.read64(out2) & (AF | 1 << 7) == AF
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET
    assert board.memory.read64(out2) & 1 << 7


def test_walk_aborts_name_the_stage(board):
    entry = board.memory.read64(board.root2)
    board.memory.write64(board.root2, 0x4000_0003)
    board.command((0x28 | 3 << 32, 0), (0x04, 31), SYNC)
    assert board.unit.translate(SID, VA, True).record == (0x0B | SID << 32, CD | S2, VA, 0x4000_0000)
    board.memory.write64(board.root2, entry)
    unmap2(board, board.root, RAM_PAGE, 0x4000_0000)
    slot = 0x4000_0000 + 8 * (VA >> 39)
    assert board.unit.translate(SID, VA, True).record == (0x0B | SID << 32, TT, VA, slot)


def test_stage_2_faults_are_silent_without_s2r(board):
    unmap2(board, IPA)
    at = 0x100000 + 64 * SID + 16
    board.memory.write64(at, board.memory.read64(at) & ~(1 << 58))
    board.command((0x04, 31), SYNC)
    assert board.unit.translate(SID, VA, True).record == ()


def test_a_stage_2_invalidation_by_ipa_leaves_what_both_stages_gave(board):
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET
    board.map(board.root2, IPA, 0x700000)
    board.command((0x2A | 3 << 32, IPA), SYNC)
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET  # stale, as the manual allows
    board.command(nh_vaa(3, VA), SYNC)
    assert board.unit.translate(SID, VA, True) == 0x700000


def test_a_stage_1_invalidation_leaves_stage_2(board):
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET
    board.map(board.root2, IPA, 0x700000)
    board.command(nh_va(3, 5, VA, leaf=0), SYNC)
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET
    board.command((0x2A | 3 << 32, IPA), SYNC)
    assert board.unit.translate(SID, VA, True) == IPA + OFFSET  # cached again meanwhile
    board.command(nh_all(3), SYNC)
    assert board.unit.translate(SID, VA, True) == 0x700000


def test_streams_with_stage_2_alone_share_it_with_nested_ones(board):
    board.unit.translate(SID, VA, True)
    board.stage2(9, vmid=3)  # empty tables
    assert board.unit.translate(9, IPA, True) == IPA + OFFSET


def test_s1dss_bypass_leads_to_stage_2_alone(board):
    ste = [board.memory.read64(0x100000 + 64 * SID + 8 * i) for i in range(8)]
    ste[0] |= 1 << 59
    ste[1] |= 1
    board.set_ste(SID, ste)
    assert board.unit.translate(SID, IPA, True) == IPA + OFFSET
    assert name(board.unit.translate(SID, 1 << 48, True)) == "F_ADDR_SIZE"
    assert board.unit.translate(SID, 0x5000, True).record == (0x10 | SID << 32, IN | S2, 0x5000, 0x5000)
    assert board.unit.walk(SID, IPA).maddr == IPA + OFFSET


def test_an_ipa_beyond_stage_2_is_its_translation_fault(board):
    board.cd, board.root, board.root2 = board.nested(9, vmid=4, t0sz=32, sl0=1)
    board.map1(board.root, VA, 1 << 33, PAGE1 | NG, offset=OFFSET)
    # tables of stage 2 start at level 1 now
    root2 = board.table()
    for page in range(64):
        board.map(root2, 0x10_0000 + 0x1000 * page, 0x90_0000 + 0x1000 * page, start=1)
    board.memory.write64(0x100000 + 64 * 9 + 24, root2)
    board.command((0x04, 31), (0x30, 0), SYNC)
    assert board.unit.translate(9, VA, True).record == (0x10 | 9 << 32, IN | S2, VA, 1 << 33)
