# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 1: ranges, rights, flags, tags, and the invalidations by VA and ASID."""

import pytest
from smmuv3_stage1_board import (
    AF,
    BLOCK1,
    EL0,
    NG,
    PAGE1,
    RO,
    SID,
    SYNC,
    Stage1Board,
    cd,
    nh_all,
    nh_asid,
    nh_va,
    nh_vaa,
    ste_stage1,
)

from machine.iommu.unit import Fault

VA = 0x7F00_1234_5000
PRIVILEGED, FETCH = 3 << 48, 3 << 50


def name(result):
    return result.name if isinstance(result, Fault) else result


def attempt(board, va, privileged=False):
    """Which of read, write and fetch the pages at ``va`` let through, as "rwx"."""
    out = ""
    for letter, write, fetch in (("r", False, 0), ("w", True, 0), ("x", False, FETCH)):
        board.set_ste(SID, ste_stage1(board.pointer, extra1=fetch | (PRIVILEGED if privileged else 0)))
        if isinstance(board.unit.translate(SID, va, write), int):
            out += letter
        else:
            assert board.events()[-1][0] == 0x13 | SID << 32
    return out


@pytest.fixture
def board():
    board = Stage1Board()
    board.pointer, board.root = board.context()
    return board


# -- ranges ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1, 2, 3])
def test_blocks_and_pages_translate(board, level):
    size = {1: 1 << 30, 2: 1 << 21, 3: 1 << 12}[level]
    board.map1(board.root, VA & -size, 0, PAGE1 if level == 3 else BLOCK1, level)
    assert board.unit.translate(SID, VA | 0x18, True) == (VA | 0x18) & size - 1
    assert board.unit.walk(SID, VA).page_size == size


@pytest.mark.parametrize("t0sz", [16, 17, 24, 25, 26, 33, 34, 39])
def test_the_start_level_follows_from_t0sz(board, t0sz):
    bits = 64 - t0sz
    level = 0 if bits > 39 else 1 if bits > 30 else 2
    root = board.table()
    size = 8 << bits - (39 - 9 * level)
    board.set_cd(board.pointer, cd(5, root | size >> 1 & ~15, t0sz=t0sz))  # the base is aligned by the unit
    va = (1 << bits) - 0x1000
    board.map1(root, va, 0x600000, start=level)
    # a start-level table that is not full is indexed by the bits that are left
    assert board.unit.translate(SID, va, False) == 0x600000
    fault = board.unit.translate(SID, 1 << bits, False)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 35, 1 << bits, 0)


def test_bit_55_selects_the_table(board):
    low, high = board.table(), board.table()
    board.set_cd(board.pointer, cd(5, low, ttb1=high, t1sz=24))
    board.map1(low, 0x1000, 0x400000)
    board.map1(high, (1 << 40) - 0x1000, 0x500000)
    assert board.unit.translate(SID, 0x1008, False) == 0x400008
    assert board.unit.translate(SID, 0xFFFF_FFFF_FFFF_F008, False) == 0x500008
    for va in (0xFFFF_FE00_0000_0000, 0xFF7F_FFFF_FFFF_F000, 0x7FFF_FFFF_FFFF_F000, 1 << 63 | 0x1000):
        assert name(board.unit.translate(SID, va, False)) == "F_TRANSLATION"


def test_a_disabled_upper_range_is_a_translation_fault(board):
    fault = board.unit.translate(SID, 0xFFFF_FFFF_FFFF_F000, False)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 35, 0xFFFF_FFFF_FFFF_F000, 0)


def test_the_top_byte_is_ignored_where_the_cd_says_so(board):
    board.map1(board.root, VA, 0x400000)
    tagged = VA | 0xA5 << 56
    assert name(board.unit.translate(SID, tagged, False)) == "F_TRANSLATION"
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 38))
    assert board.unit.translate(SID, tagged, False) == 0x400000
    board.command(nh_va(3, 5, VA), SYNC)
    fault = board.unit.translate(SID, tagged | 0x2000_0000, False)
    assert fault.record[2] == tagged | 0x2000_0000  # the event keeps every bit


def test_an_output_beyond_ips_is_an_address_size_fault(board):
    board.set_cd(board.pointer, cd(5, board.root, ips=1))
    board.map1(board.root, VA, 1 << 36)
    assert board.unit.translate(SID, VA, True).record == (0x11 | SID << 32, 2 << 40, VA, 0)


def test_a_table_that_cannot_be_read_is_an_external_abort(board):
    board.memory.write64(board.root + 8 * (VA >> 39), 0x4000_0003)
    slot = 0x4000_0000 + 8 * (VA >> 30 & 511)
    # CLASS is TT although no stage 2 is involved
    assert board.unit.translate(SID, VA, True).record == (0x0B | SID << 32, 1 << 40, VA, slot)


def test_faults_are_silent_without_cd_r(board):
    board.set_cd(board.pointer, cd(5, board.root, clear=1 << 45))
    assert board.unit.translate(SID, VA, True).record == ()


# -- rights ---------------------------------------------------------------------------------------------------

#   AP, PXN and UXN            unprivileged  privileged
RIGHTS = [
    (EL0, "rwx", "rw"),
    (EL0 | RO, "rx", "rx"),
    (0, "x", "rwx"),
    (RO, "x", "rx"),
    (EL0 | 1 << 54, "rw", "rw"),
    (EL0 | RO | 1 << 53, "rx", "r"),
    (1 << 53 | 1 << 54, "", "rw"),
]


@pytest.mark.parametrize(("bits", "unprivileged", "privileged"), RIGHTS)
def test_rights_of_a_page(board, bits, unprivileged, privileged):
    board.map1(board.root, VA, 0x400000, PAGE1 & ~EL0 | bits)
    assert attempt(board, VA) == unprivileged
    assert attempt(board, VA, privileged=True) == privileged


@pytest.mark.parametrize(
    ("table", "unprivileged", "privileged"),
    [
        (1 << 61, "x", "rwx"),
        (1 << 62, "rx", "rx"),
        (3 << 61, "x", "rx"),
        (1 << 60, "rw", "rw"),
        (1 << 59 | 1 << 62, "rx", "r"),
    ],
)
def test_tables_withhold_rights_unless_had(board, table, unprivileged, privileged):
    board.map1(board.root, VA, 0x400000, tables=table)
    assert attempt(board, VA) == unprivileged
    assert attempt(board, VA, privileged=True) == privileged
    board.set_cd(board.pointer, cd(5, board.root | 2))
    board.command(nh_all(3), SYNC)
    assert attempt(board, VA) == "rwx"


def test_had_is_ignored_where_the_id_register_lacks_it():
    board = Stage1Board(had=False)
    board.pointer, board.root = board.context()
    board.map1(board.root, VA, 0x400000, tables=1 << 62)
    board.set_cd(board.pointer, cd(5, board.root | 2))
    assert attempt(board, VA) == "rx"


def test_wxn_and_pan(board):
    board.map1(board.root, VA, 0x400000)
    board.map1(board.root, VA + 0x1000, 0x401000, PAGE1 & ~EL0)
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 36))
    assert attempt(board, VA) == "rw"
    assert attempt(board, VA + 0x1000, privileged=True) == "rw"
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 40))
    board.command(nh_all(3), SYNC)
    assert attempt(board, VA, privileged=True) == ""
    assert attempt(board, VA + 0x1000, privileged=True) == "rwx"


def test_the_el2_world_has_one_privilege():
    board = Stage1Board(hyp=True)
    pointer, root = board.context(strw=2)
    board.map1(root, VA, 0x400000, PAGE1 & ~EL0)
    assert board.unit.translate(SID, VA, True) == 0x400000
    # no upper range, and EPD0 does not disable the lower one
    board.set_cd(pointer, cd(5, root, extra=1 << 14))
    board.command((0x20, 0), SYNC)
    assert board.unit.translate(SID, VA, True) == 0x400000
    assert name(board.unit.translate(SID, 0xFFFF_FFFF_FFFF_F000, True)) == "F_TRANSLATION"


# -- flags ----------------------------------------------------------------------------------------------------


def test_a_clear_access_flag_faults_unless_affd(board):
    board.map1(board.root, VA, 0x400000, PAGE1 & ~AF)
    assert board.unit.translate(SID, VA, True).record == (0x12 | SID << 32, 2 << 40, VA, 0)
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 35))
    assert board.unit.translate(SID, VA, True) == 0x400000


def test_hardware_sets_the_access_flag(board):
    slot = board.map1(board.root, VA, 0x400000, PAGE1 & ~AF)
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 43))
    assert board.unit.walk(SID, VA).maddr == 0x400000
    assert board.memory.read64(slot) & AF == 0  # a look changes nothing
    assert board.unit.translate(SID, VA, False) == 0x400000
    assert board.memory.read64(slot) == 0x400000 | PAGE1


def test_hardware_marks_a_page_dirty_at_the_first_write(board):
    slot = board.map1(board.root, VA, 0x400000, PAGE1 | RO | 1 << 51)
    board.set_cd(board.pointer, cd(5, board.root, extra=3 << 42))
    assert board.unit.translate(SID, VA, False) == 0x400000
    assert board.memory.read64(slot) & RO
    assert board.unit.translate(SID, VA, True) == 0x400000  # although the read was cached
    assert not board.memory.read64(slot) & RO
    # without DBM, or where a table says read-only, it is a permission fault
    board.map1(board.root, VA + 0x1000, 0x400000, PAGE1 | RO)
    assert name(board.unit.translate(SID, VA + 0x1000, True)) == "F_PERMISSION"
    slot = board.map1(board.root, 0x1000, 0x400000, PAGE1 | RO | 1 << 51, tables=1 << 62)
    assert name(board.unit.translate(SID, 0x1000, True)) == "F_PERMISSION"
    assert board.memory.read64(slot) & RO


def test_dirty_state_without_hd_is_a_permission_fault(board):
    board.map1(board.root, VA, 0x400000, PAGE1 | RO | 1 << 51)
    board.set_cd(board.pointer, cd(5, board.root, extra=1 << 43))
    assert board.unit.translate(SID, VA, True).record == (0x13 | SID << 32, 2 << 40, VA, 0)


# -- tags -----------------------------------------------------------------------------------------------------

OTHER = 9


@pytest.mark.parametrize(
    ("attributes", "vmid", "asid", "extra", "hit"),
    [
        (NG, 3, 5, 0, True),
        (NG, 3, 6, 0, False),
        (NG, 4, 5, 0, False),
        (0, 3, 6, 0, True),
        (0, 4, 6, 0, False),
        (0, 3, 6, 1 << 47, False),  # ASET: globals of another set
    ],
)
def test_which_streams_share_a_cached_page(board, attributes, vmid, asid, extra, hit):
    board.map1(board.root, VA, 0x400000, PAGE1 | attributes)
    board.unit.translate(SID, VA, False)
    board.context(OTHER, vmid=vmid, asid=asid, extra=extra)  # tables of its own, empty
    result = board.unit.translate(OTHER, VA, False)
    assert name(result) == (0x400000 if hit else "F_TRANSLATION")


BLOCK_VA = VA & -(1 << 21)
COMMANDS = [
    # command, the nG page goes, the global page goes, tables go
    (nh_all(3), True, True, True),
    (nh_all(4), False, False, False),
    (nh_asid(3, 5), True, False, True),
    (nh_asid(3, 6), False, False, False),
    (nh_va(3, 5, VA), True, False, False),
    (nh_va(3, 5, VA, leaf=0), True, False, True),
    (nh_va(3, 6, VA), False, False, False),
    (nh_va(4, 5, VA), False, False, False),
    (nh_va(3, 5, VA | 0xFF << 56), True, False, False),
    (nh_va(3, 6, VA + 0x1000), False, True, False),
    (nh_vaa(3, VA), True, False, False),
    (nh_vaa(3, VA + 0x1000), False, True, False),
    (nh_vaa(4, VA), False, False, False),
    (nh_va(3, 5, VA, num=1, tg=1, ttl=3), True, True, False),
    (nh_va(3, 5, VA, num=1, tg=1), True, True, False),
    (nh_va(3, 5, BLOCK_VA, tg=1, ttl=2, leaf=0), False, False, False),
    (nh_va(3, 5, VA, num=1, tg=2), False, False, False),
    ((0x28 | 3 << 32, 0), True, True, True),
    ((0x28 | 4 << 32, 0), False, False, False),
    ((0x30, 0), True, True, True),
    ((0x2A | 3 << 32, VA), False, False, False),
    ((0x04, 31), False, False, False),
]


@pytest.mark.parametrize(("command", "page", "everybody", "tables"), COMMANDS)
def test_what_an_invalidation_drops(board, command, page, everybody, tables):
    board.map1(board.root, VA, 0x400000, PAGE1 | NG)
    board.map1(board.root, VA + 0x1000, 0x401000)
    for va in (VA, VA + 0x1000):
        board.unit.translate(SID, va, False)
    # now the whole tree is another one, and the tables on the way are empty
    old_level3 = VA >> 12 & 511
    other = board.table()
    entry = board.memory.read64(board.root + 8 * (VA >> 39))
    board.memory.write64(board.root + 8 * (VA >> 39), 0)
    level1 = entry & 0xFFFF_FFFF_F000
    level2 = board.memory.read64(level1 + 8 * (VA >> 30 & 511)) & 0xFFFF_FFFF_F000
    level3 = board.memory.read64(level2 + 8 * (VA >> 21 & 511)) & 0xFFFF_FFFF_F000
    for slot in (old_level3, old_level3 + 1, old_level3 + 2):
        board.memory.write64(level3 + 8 * slot, other | PAGE1)
    board.command(command, SYNC)
    assert not board.cmdq_error()
    stale = (0x400000, 0x401000)
    for va, old, gone in ((VA, stale[0], page), (VA + 0x1000, stale[1], everybody)):
        fresh = "F_TRANSLATION" if tables else other
        assert name(board.unit.translate(SID, va, False)) == (fresh if gone else old)
    # a page that was never cached shows whether the table descriptors are
    assert name(board.unit.translate(SID, VA + 0x2000, False)) == ("F_TRANSLATION" if tables else other)


def test_el2_commands_reach_their_world_only():
    board = Stage1Board(hyp=True)
    _, root = board.context(strw=2)
    slot = board.map1(root, VA, 0x400000, PAGE1 | NG)
    for command, gone in (
        ((0x30, 0), False),
        (nh_all(3), False),
        ((0x21 | 5 << 48, 0), False),  # no ASIDs without E2H
        ((0x22 | 9 << 48, VA), True),
        ((0x23, VA), True),
        ((0x20, 0), True),
    ):
        board.memory.write64(slot, 0x400000 | PAGE1)
        assert board.unit.translate(SID, VA, False) == 0x400000
        board.memory.write64(slot, 0x500000 | PAGE1)
        board.command(command, SYNC)
        assert board.unit.translate(SID, VA, False) == (0x500000 if gone else 0x400000)
        board.command((0x20, 0), SYNC)


def test_el2_commands_with_e2h_match_asids():
    board = Stage1Board(hyp=True)
    board.w32(0x20, 0b1100)
    board.w32(0x2C, 3)
    board.w32(0x20, 0b1101)
    _, root = board.context(strw=2)
    slot = board.map1(root, VA, 0x400000, PAGE1 | NG)
    for command, gone in (((0x22 | 9 << 48, VA), False), ((0x22 | 5 << 48, VA), True), ((0x21 | 5 << 48, 0), True)):
        board.memory.write64(slot, 0x400000 | PAGE1 | NG)
        assert board.unit.translate(SID, VA, False) == 0x400000
        board.memory.write64(slot, 0x500000 | PAGE1 | NG)
        board.command(command, SYNC)
        assert board.unit.translate(SID, VA, False) == (0x500000 if gone else 0x400000)
        board.command((0x20, 0), SYNC)


@pytest.mark.parametrize("opcode", [0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23])
def test_stage_1_commands_are_illegal_without_stage_1(opcode):
    board = Stage1Board(stage1=False, ssid_bits=0)
    board.command((opcode, 0))
    assert board.cmdq_error() == 1


@pytest.mark.parametrize("opcode", [0x28, 0x2A, 0x20])
def test_other_commands_are_illegal_without_their_feature(opcode):
    board = Stage1Board(stage2=False)
    board.command((opcode, 0))
    assert board.cmdq_error() == 1


def test_without_stage_2_there_are_no_vmids():
    board = Stage1Board(stage2=False)
    _, root = board.context(vmid=7)
    board.map1(root, VA, 0x400000)
    assert board.unit.translate(SID, VA, False) == 0x400000
    board.context(OTHER, vmid=8)
    assert board.unit.translate(OTHER, VA, False) == 0x400000
