# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the caches remember, and what happens when two cached translations cover one address."""

import pytest
from smmuv3_board import RAM_BLOCK, Board
from smmuv3_stage1_board import BLOCK1, OFFSET, SID, SYNC, Stage1Board, nh_all, nh_va

from machine.iommu.replacement import Eager, Oldest, Random
from machine.iommu.smmuv3 import Smmuv3Config
from machine.iommu.unit import Fault

VA = 0x7F00_1220_0000


def name(result):
    return result.name if isinstance(result, Fault) else result


def nested(replacement):
    board = Stage1Board(replacement=replacement)
    board.cd, board.root, board.root2 = board.nested()
    board.leaf = board.map1(board.root, VA, 0x13_0000, offset=OFFSET)
    return board


def test_an_eager_unit_follows_memory_without_invalidation():
    board = nested(Eager())
    assert board.unit.translate(SID, VA, True) == 0x13_0000 + OFFSET
    board.map(board.root2, 0x13_0000, 0x700000)
    assert board.unit.translate(SID, VA, True) == 0x700000
    board.memory.write64(board.leaf, 0)
    assert name(board.unit.translate(SID, VA, True)) == "F_TRANSLATION"
    board.memory.write64(board.cd + OFFSET, 0)
    assert name(board.unit.translate(SID, VA, True)) == "C_BAD_CD"
    board.memory.write64(0x100000 + 64 * SID, 0)
    assert name(board.unit.translate(SID, VA, True)) == "C_BAD_STE"


def test_the_most_stale_unit_keeps_every_structure():
    board = nested(None)
    board.unit.translate(SID, VA, True)
    for at in (board.leaf, board.cd + OFFSET, board.root2, 0x100000 + 64 * SID):
        board.memory.write64(at, 0)
    assert board.unit.translate(SID, VA, True) == 0x13_0000 + OFFSET


@pytest.mark.parametrize("seed", range(4))
def test_a_random_unit_gives_old_or_new_and_the_same_again_for_a_seed(seed):
    def run():
        board = nested(Random(seed, capacity=4))
        out = []
        for target in range(60):
            board.map(board.root2, 0x13_0000, 0x700000 + 0x1000 * target)
            other = VA + 0x1000 * (target + 1)  # traffic that makes entries go
            board.map1(board.root, other, 0x12_0000, offset=OFFSET)
            board.unit.translate(SID, other, False)
            out.append(board.unit.translate(SID, VA, False) - 0x700000 >> 12)
        return out

    first = run()
    assert first == run()
    assert all(seen <= now for now, seen in enumerate(first))
    assert any(seen < now for now, seen in enumerate(first))  # sometimes stale
    assert len(set(first)) > 3  # and not for ever


def test_a_random_unit_is_restored_with_its_sequence():
    board = nested(Random(7))
    for page in range(8):
        board.map1(board.root, VA + 0x1000 * page, 0x13_0000, offset=OFFSET)
        board.unit.translate(SID, VA + 0x1000 * page, False)
    state = board.unit.save()
    runs = []
    for _ in range(2):
        board.unit.restore(state)
        for page in range(8):
            board.unit.translate(SID, VA + 0x1000 * page, False)
        runs.append(board.unit.save())
    assert runs[0] == runs[1]


def test_a_small_unit_forgets_streams_and_what_hits_with_them():
    board = Board(replacement=Oldest(1))
    for sid, target in ((8, 0x400000), (9, 0x500000)):
        board.map(board.stage2(sid, sid), 0x1000, target)
    for _ in range(2):
        assert board.unit.translate(8, 0x1000, True) == 0x400000
        assert board.unit.translate(9, 0x1000, True) == 0x500000
    assert board.unit.counters.config_hits == 0
    board.memory.write64(0x100000 + 64 * 8, 0)
    assert name(board.unit.translate(8, 0x1000, True)) == "C_BAD_STE"


# -- break before make ----------------------------------------------------------------------------------------


def fold(board, translate, table, block, invalidation):
    """Pages are cached, then a block replaces their table, but one page is invalidated, and another is used."""
    assert translate(0x1000) == 0x401000
    board.memory.write64(table, block)
    board.command(invalidation, SYNC)
    assert translate(0x5000) == 0x605000
    return translate(0x1000)


ONE_PAGE = (0x2A | 3 << 32, 0x20_7000)
"""TLBI_S2_IPA, with the table descriptors on the way."""


def stage2_board(**config):
    board = Board(Smmuv3Config(**config))
    root = board.stage2(SID, 3)
    for page in range(8):
        board.map(root, 0x20_0000 + 0x1000 * page, 0x40_0000 + 0x1000 * page)
    level1 = board.memory.read64(root) & ~0xFFF
    level2 = board.memory.read64(level1) & ~0xFFF
    return board, lambda offset: name(board.unit.translate(SID, 0x20_0000 + offset, False)), level2 + 8


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"bbml": 0}, "F_TLB_CONFLICT"),
        ({"bbml": 1}, "F_TLB_CONFLICT"),
        ({"bbml": 0, "tlb_conflict": "small"}, 0x401000),
        ({"bbml": 0, "tlb_conflict": "large"}, 0x601000),
        ({"bbml": 2}, 0x401000),
    ],
)
def test_folding_without_break_before_make(config, expected):
    board, translate, table = stage2_board(**config)
    assert fold(board, translate, table, 0x600000 | RAM_BLOCK, ONE_PAGE) == expected
    if expected == "F_TLB_CONFLICT":
        record = board.events()[-1]
        assert record == (0x20 | SID << 32, 2 << 40 | 1 << 39 | 1 << 35, 0x20_1000, 0x20_1000)
    assert translate(0x2000) == 0x602000  # was not cached as a page
    board.command((0x2A | 3 << 32, 0x20_1000 | 1), SYNC)
    assert translate(0x1000) == 0x601000  # both went


def test_a_conflict_ends_when_the_block_is_invalidated_by_another_page():
    board, translate, table = stage2_board(bbml=0)
    assert fold(board, translate, table, 0x600000 | RAM_BLOCK, ONE_PAGE) == "F_TLB_CONFLICT"
    board.command((0x2A | 3 << 32, 0x20_5000 | 1), SYNC)
    assert translate(0x1000) == 0x401000  # stale, but alone


def test_a_block_with_nt_does_not_conflict_at_level_1():
    board, translate, table = stage2_board(bbml=1)
    assert fold(board, translate, table, 0x600000 | RAM_BLOCK | 1 << 16, ONE_PAGE) == 0x401000
    assert len(board.unit.iotlb) == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"bbml": 0}, "F_TLB_CONFLICT"), ({"bbml": 0, "tlb_conflict": "large"}, 0x601000), ({}, 0x401000)],
)
def test_folding_at_stage_1(config, expected):
    board = Stage1Board(**config)
    _, root = board.context()
    for page in range(8):
        leaf = board.map1(root, VA + 0x1000 * page, 0x40_0000 + 0x1000 * page)
    level3 = leaf & ~0xFFF
    table = next(at for at in range(0x200000, 0x240000, 8) if board.memory.read64(at) == level3 | 3)

    def translate(offset):
        return name(board.unit.translate(SID, VA + offset, False))

    assert fold(board, translate, table, 0x600000 | BLOCK1, nh_va(3, 5, VA + 0x7000, leaf=0)) == expected
    board.command(nh_all(3), SYNC)
    assert translate(0x1000) == 0x601000
