# SPDX-License-Identifier: GPL-2.0-or-later
"""The Command queue: consumption, errors, signals, and what each invalidation leaves stale."""

import pytest
from smmuv3_board import (
    BASE,
    CFGI_ALL,
    CMDQ,
    DOORBELL,
    L2TAB,
    NSNH_ALL,
    RAM,
    RAM_BLOCK,
    RAM_PAGE,
    STE_ABORT,
    STE_BYPASS,
    STRTAB,
    SYNC,
    Board,
    cfgi_ste,
    s2_ipa,
    vmall,
)

from machine.iommu.smmuv3 import Smmuv3Config
from machine.iommu.unit import Fault

SID, VMID = 8, 3
OLD, NEW = 0x50_0000, 0x90_0000


def warm(capacity=None, config=None, level=3):
    """A board whose TLB remembers OLD at IPA 0x4000_0000 while memory says NEW already."""
    board = Board(config, capacity)
    root = board.stage2(SID, VMID)
    attributes = RAM_PAGE if level == 3 else RAM_BLOCK
    size = 1 << 39 - 9 * level
    base = 0x4000_0000
    board.map(root, base, 0 if level == 1 else OLD & -size, attributes, level)
    assert board.unit.translate(SID, base, False) == (0 if level == 1 else OLD & -size)
    board.map(root, base, 1 << 30 if level == 1 else NEW & -size, attributes, level)
    return board


def is_stale(board, level=3):
    size = 1 << 39 - 9 * level
    return board.unit.translate(SID, 0x4000_0000, False) == (0 if level == 1 else OLD & -size)


def test_consuming_moves_cons_to_prod():
    board = Board()
    board.command(NSNH_ALL, SYNC)
    assert board.r32(0x9C) == board.r32(0x98) == 2
    assert board.unit.counters.commands == {"CMD_TLBI_NSNH_ALL": 1, "CMD_SYNC": 1}


def test_the_queue_wraps_and_toggles_its_wrap_flag():
    board = Board()
    for number in range(0x100 * 5 // 2):
        board.command(NSNH_ALL, SYNC)
        assert board.r32(0x9C) == (2 * number + 2) & 0x1FF
    assert board.cmdq_error() == 0


def test_commands_wait_while_the_queue_is_disabled():
    board = Board()
    board.w32(0x20, 0b0101)
    board.command(SYNC)
    assert board.r32(0x9C) == 0
    board.w32(0x20, 0b1101)
    assert board.r32(0x9C) == 1


def test_a_full_queue_is_consumed_whole():
    board = Board()
    board.w32(0x20, 0)
    board.w64(0x90, CMDQ | 2)
    for index in range(4):
        board.memory.write64(CMDQ + 16 * index, 0x46)
    board.w32(0x98, 4)
    board.w32(0x20, 8)
    assert board.r32(0x9C) == 4


def test_the_queue_base_is_aligned_to_its_size():
    board = Board()
    board.w32(0x20, 0)
    board.w64(0x90, CMDQ + 0x20 | 8)
    board.w32(0x20, 0b1101)
    board.command(SYNC)
    assert board.r32(0x9C) == 1


ILLEGAL = [
    pytest.param((0x00, 0), id="reserved 00"),
    pytest.param((0xFF, 0), id="reserved ff"),
    pytest.param((0x80, 0), id="implementation defined"),
    pytest.param((0x05, 0), id="CFGI_CD"),
    pytest.param((0x06, 0), id="CFGI_CD_ALL"),
    pytest.param((0x07, 0), id="CFGI_VMS_PIDM"),
    pytest.param((0x10, 0), id="TLBI_NH_ALL"),
    pytest.param((0x11, 0), id="TLBI_NH_ASID"),
    pytest.param((0x12, 0), id="TLBI_NH_VA"),
    pytest.param((0x13, 0), id="TLBI_NH_VAA"),
    pytest.param((0x18, 0), id="TLBI_EL3_ALL"),
    pytest.param((0x20, 0), id="TLBI_EL2_ALL"),
    pytest.param((0x22, 0), id="TLBI_EL2_VA"),
    pytest.param((0x40, 0), id="ATC_INV"),
    pytest.param((0x41, 0), id="PRI_RESP"),
    pytest.param((0x44, 0), id="RESUME"),
    pytest.param((0x45, 0), id="STALL_TERM"),
    pytest.param((0x58, 0), id="TLBI_S_S12_VMALL"),
    pytest.param((0x70, 0), id="DPTI_ALL"),
    pytest.param((0x46 | 3 << 12, 0), id="SYNC with reserved signal"),
    pytest.param((0x03 | 1 << 10, 0), id="CFGI_STE Secure"),
    pytest.param((0x04 | 1 << 10, 31), id="CFGI_ALL Secure"),
    pytest.param((0x01 | 1 << 10, 0), id="PREFETCH_CONFIG Secure"),
    pytest.param((0x02 | 1 << 10, 0), id="PREFETCH_ADDR Secure"),
    pytest.param(s2_ipa(VMID, 0, tg=1), id="range with NUM, SCALE and TTL 0"),
    pytest.param(s2_ipa(VMID, 0, tg=2, ttl=1), id="16K range with TTL that counts as 0"),
]


@pytest.mark.parametrize("command", ILLEGAL)
def test_an_illegal_command_stops_the_queue_until_acknowledged(command):
    board = Board()
    board.command(SYNC, command, SYNC)
    assert board.cmdq_error() == 1
    assert board.r32(0x9C) & 0xFFFFF == 1
    board.command(SYNC)
    assert board.r32(0x9C) & 0xFFFFF == 1
    at = CMDQ + 16
    board.memory.write64(at, 0x46)
    board.memory.write64(at + 8, 0)
    board.w32(0x64, board.r32(0x60))
    assert board.cmdq_error() == 0
    assert board.r32(0x9C) == board.r32(0x98) == 4
    assert "CMD_SYNC" in board.unit.counters.commands


def test_an_acknowledged_error_that_is_not_repaired_comes_back():
    board = Board()
    board.command((0xFF, 0))
    board.w32(0x64, board.r32(0x60))
    assert board.cmdq_error() == 1 and board.r32(0x60) == 0 and board.r32(0x64) == 1


def test_disabling_the_queue_does_not_acknowledge_its_error():
    board = Board()
    board.command((0xFF, 0), SYNC)
    board.w32(0x20, 0)
    board.w32(0x20, 0b1101)
    assert board.cmdq_error() == 1 and board.r32(0x9C) & 0xFFFFF == 0


def test_prod_may_move_back_while_the_error_is_active():
    board = Board()
    board.command((0xFF, 0), SYNC)
    board.w32(0x98, 0)
    board.w32(0x64, 1)
    assert board.cmdq_error() == 0 and board.r32(0x9C) & 0xFFFFF == 0


def test_a_queue_outside_ram_aborts():
    board = Board()
    board.w32(0x20, 0)
    board.w64(0x90, RAM | 4)
    board.w32(0x20, 8)
    board.w32(0x98, 1)
    assert board.cmdq_error() == 2


def test_gerror_interrupts_once_per_activation():
    board = Board()
    rings = []
    board.doorbell.connect(0x77, lambda: rings.append(board.r32(0x60) ^ board.r32(0x64)))
    board.w64(0x68, DOORBELL)
    board.w32(0x70, 0x77)
    board.w32(0x50, 1)
    board.command((0xFF, 0))
    assert rings == [1] and board.pulses == ["gerror"]
    board.w32(0x98, 5)
    assert rings == [1]
    board.w32(0x64, 1)
    assert rings == [1, 1]


def test_sync_without_signal_signals_nothing():
    board = Board()
    board.command((0x46 | 0xABCD << 32, DOORBELL))
    assert board.pulses == [] and board.doorbell.spurious == 0


def test_sync_message_reaches_memory_after_the_commands_before_it():
    board = Board()
    board.command(NSNH_ALL, (0x46 | 1 << 12 | 0xCAFE_F00D << 32, 0x3004))
    assert board.memory.read64(0x3000) == 0xCAFE_F00D << 32
    assert board.pulses == ["cmdq-sync"]


def test_sync_message_finds_itself_consumed_already():
    board = Board()
    seen = []
    board.doorbell.connect(5, lambda: seen.append(board.r32(0x9C)))
    board.command(NSNH_ALL, (0x46 | 1 << 12 | 5 << 32, DOORBELL), NSNH_ALL)
    assert seen == [2] and board.r32(0x9C) == 3


def test_sync_message_address_zero_and_no_msi_use_the_wire():
    board = Board()
    board.command((0x46 | 1 << 12 | 5 << 32, 0))
    assert board.pulses == ["cmdq-sync"] and board.memory.read64(0) == 0
    plain = Board(Smmuv3Config(msi=False))
    plain.command((0x46 | 1 << 12 | 5 << 32, 0x3000))
    assert plain.pulses == ["cmdq-sync"] and plain.memory.read64(0x3000) == 0


def test_sync_message_address_is_cut_to_the_output_size():
    board = Board(Smmuv3Config(oas=40))
    board.command((0x46 | 1 << 12 | 5 << 32, 1 << 40 | 0x3000))
    assert board.memory.read64(0x3000) == 5 and board.r32(0x60) == 0


def test_sync_event_needs_sev():
    board = Board()
    board.command((0x46 | 2 << 12, 0))
    quiet = Board(Smmuv3Config(sev=False))
    quiet.command((0x46 | 2 << 12, 0))
    assert (board.pulses, quiet.pulses) == (["sev"], [])


def test_an_aborted_sync_message_is_a_global_error_and_the_queue_goes_on():
    board = Board()
    board.command((0x46 | 1 << 12, RAM), SYNC)
    assert board.r32(0x60) == 1 << 4 and board.r32(0x9C) == 2


def test_an_interrupt_handler_may_queue_more_commands():
    board = Board()
    board.doorbell.connect(5, lambda: board.command(NSNH_ALL, SYNC))
    board.command((0x46 | 1 << 12 | 5 << 32, DOORBELL))
    assert board.r32(0x9C) == board.r32(0x98) == 3


def test_an_interrupt_handler_may_move_the_queue():
    board = Board()

    def move():
        board.w32(0x20, 0)
        board.w64(0x90, CMDQ + 0x8000 | 2)
        board.w32(0x98, 0)
        board.w32(0x9C, 0)
        board.w32(0x20, 0b1101)

    board.doorbell.connect(5, move)
    board.command((0x46 | 1 << 12 | 5 << 32, DOORBELL), SYNC, SYNC)
    assert board.r32(0x9C) == 0


def test_commands_that_queue_themselves_come_to_a_rest():
    board = Board()
    board.w32(0x20, 0)
    board.w64(0x90, CMDQ | 1)
    for index, prod in enumerate((0, 1)):
        board.memory.write64(CMDQ + 16 * index, 0x46 | 1 << 12 | prod << 32)
        board.memory.write64(CMDQ + 16 * index + 8, BASE + 0x98)
    board.w32(0x9C, 2)
    board.w32(0x98, 1)
    board.w32(0x20, 8)
    assert board.unit.counters.commands["CMD_SYNC"] <= 8


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(
    ("command", "stale"),
    [
        pytest.param(SYNC, True, id="SYNC alone"),
        pytest.param(CFGI_ALL, True, id="CFGI_ALL"),
        pytest.param(NSNH_ALL, False, id="NSNH_ALL"),
        pytest.param(vmall(VMID), False, id="VMALL"),
        pytest.param(vmall(VMID + 1), True, id="VMALL, other VMID"),
        pytest.param(vmall(VMID | 0x100), True, id="VMALL, VMID equal in 8 bits"),
        pytest.param(s2_ipa(VMID, 0x4000_0000), False, id="S2_IPA"),
        pytest.param(s2_ipa(VMID, 0x4000_0000, leaf=0), False, id="S2_IPA not leaf"),
        pytest.param(s2_ipa(VMID + 1, 0x4000_0000), True, id="S2_IPA, other VMID"),
        pytest.param(s2_ipa(VMID, 0x8000_0000), True, id="S2_IPA, other page"),
    ],
)
def test_a_translation_stays_until_the_right_command(command, stale, level):
    board = warm(level=level)
    assert is_stale(board, level)
    board.command(command, SYNC)
    assert is_stale(board, level) == stale


@pytest.mark.parametrize("level", [1, 2])
def test_any_page_of_a_block_invalidates_the_block(level):
    board = warm(level=level)
    board.command(s2_ipa(VMID, 0x4000_0000 + (1 << 39 - 9 * level) - 0x1000), SYNC)
    assert not is_stale(board, level)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("ttl", [0, 1, 2, 3])
def test_the_level_hint_reaches_only_entries_of_its_level(level, ttl):
    board = warm(level=level)
    board.command(s2_ipa(VMID, 0x4000_0000, num=1, tg=1, ttl=ttl), SYNC)
    assert is_stale(board, level) == (ttl not in (0, level))


def test_a_misaligned_level_hint_invalidates_nothing():
    board = warm(level=2)
    board.command(s2_ipa(VMID, 0x4000_1000, tg=1, ttl=2), SYNC)
    assert is_stale(board, 2)


@pytest.mark.parametrize("tg", [2, 3])
def test_commands_for_other_granules_leave_4k_entries(tg):
    board = warm()
    board.command(s2_ipa(VMID, 0x4000_0000, num=31, scale=10, tg=tg), SYNC)
    assert is_stale(board)


@pytest.mark.parametrize(("num", "scale", "pages"), [(1, 0, 2), (3, 0, 4), (0, 1, 2), (2, 2, 12), (31, 31, 1 << 40)])
def test_a_range_covers_num_plus_1_times_2_to_the_scale_pages(num, scale, pages):
    board = Board()
    root = board.stage2(SID, VMID)
    slots = [board.map(root, page << 12, 0x10_0000 + (page << 12)) for page in range(20)]
    for page in range(20):
        board.unit.translate(SID, page << 12, False)
    for slot in slots:
        board.memory.write64(slot, 0)
    board.command(s2_ipa(VMID, 4 << 12, num, scale, tg=1), SYNC)
    gone = [page for page in range(20) if not isinstance(board.unit.translate(SID, page << 12, False), int)]
    assert gone == list(range(4, min(20, 4 + pages)))


TABLE_COMMANDS = [
    pytest.param(SYNC, (), id="SYNC alone"),
    pytest.param(CFGI_ALL, (), id="CFGI_ALL"),
    pytest.param(NSNH_ALL, (0, 1, 2), id="NSNH_ALL"),
    pytest.param(vmall(VMID), (0, 1, 2), id="VMALL"),
    pytest.param(vmall(VMID + 1), (), id="VMALL, other VMID"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, leaf=1), (), id="leaf only"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, leaf=0), (0, 1, 2), id="not leaf"),
    pytest.param(s2_ipa(VMID, 0x401F_F000, leaf=0), (0, 1, 2), id="not leaf, same tables"),
    pytest.param(s2_ipa(VMID, 0x4020_0000, leaf=0), (0, 1), id="not leaf, same 1G"),
    pytest.param(s2_ipa(VMID, 0x8000_0000, leaf=0), (0,), id="not leaf, same 512G"),
    pytest.param(s2_ipa(VMID, 1 << 39, leaf=0), (), id="not leaf, elsewhere"),
    pytest.param(s2_ipa(VMID + 1, 0x4000_0000, leaf=0), (), id="not leaf, other VMID"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, tg=1, ttl=3, leaf=0), (0, 1, 2), id="not leaf, TTL 3"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, tg=1, ttl=2, leaf=0), (0, 1), id="not leaf, TTL 2"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, tg=1, ttl=1, leaf=0), (0,), id="not leaf, TTL 1"),
    pytest.param(s2_ipa(VMID, 0x4000_0000, tg=3, num=1, leaf=0), (), id="not leaf, 64K"),
    pytest.param(s2_ipa(VMID, 0x3FE0_0000, tg=1, scale=9, num=1, leaf=0), (0, 1, 2), id="not leaf, range"),
]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("command", "dropped"), TABLE_COMMANDS)
def test_a_table_descriptor_stays_until_the_right_command(command, dropped, level):
    board = Board()
    root = board.stage2(SID, VMID)
    base = 0x4000_0000
    probe = base + (1 << 30 - 9 * level)  # found from the descriptor of this level, not from a deeper one
    board.map(root, base, OLD)
    board.map(root, probe, NEW)
    assert board.unit.translate(SID, base, False) == OLD
    board.memory.write64(root, 0)
    board.command(command, SYNC)
    assert isinstance(board.unit.translate(SID, probe, False), int) == (level not in dropped)
    assert board.unit.walk(SID, probe).blocked == "F_TRANSLATION"


def test_a_walk_from_a_cached_table_still_reads_the_levels_below():
    board = Board()
    root = board.stage2(SID, VMID)
    board.map(root, 0x1000, OLD)
    board.unit.translate(SID, 0x1000, False)
    other = board.table()
    board.map(root, 0, other, 3, level=2)  # a new level 3 table
    board.memory.write64(other + 8, NEW | RAM_PAGE)
    board.command(s2_ipa(VMID, 0x1000, leaf=1), SYNC)
    assert board.unit.translate(SID, 0x1000, False) == OLD
    board.command(s2_ipa(VMID, 0x1000, leaf=0), SYNC)
    assert board.unit.translate(SID, 0x1000, False) == NEW


@pytest.mark.parametrize("capacity", [0, 1, 2])
def test_small_caches_forget_but_never_lie_about_unchanged_tables(capacity):
    board = Board(capacity=capacity)
    root = board.stage2(SID, VMID)
    for page in range(6):
        board.map(root, page << 30, OLD + (page << 12))
    for page in (0, 1, 2, 3, 4, 5, 0, 5, 1, 4):
        assert board.unit.translate(SID, page << 30, False) == OLD + (page << 12)


def test_range_fields_are_reserved_without_ril():
    board = warm(config=Smmuv3Config(ril=False))
    board.command(s2_ipa(VMID, 0x4000_0000, num=3, scale=1, tg=2, ttl=3), SYNC)
    assert not is_stale(board)


def test_streams_with_one_vmid_share_translations():
    board = Board()
    board.map(board.stage2(8, 5), 0x1000, OLD)
    board.map(board.stage2(9, 5), 0x1000, NEW)
    board.map(board.stage2(10, 6), 0x1000, NEW)
    assert board.unit.translate(8, 0x1000, False) == OLD
    assert board.unit.translate(9, 0x1000, False) == OLD
    assert board.unit.translate(10, 0x1000, False) == NEW


def test_faults_are_not_cached():
    board = Board()
    root = board.stage2(SID, VMID)
    assert not isinstance(board.unit.translate(SID, 0x1000, False), int)
    board.map(root, 0x1000, OLD)
    assert board.unit.translate(SID, 0x1000, False) == OLD


def test_a_cached_lack_of_permission_stays():
    board = Board()
    root = board.stage2(SID, VMID)
    board.map(root, 0x1000, OLD, 0x77F)
    assert board.unit.translate(SID, 0x1000, True).name == "F_PERMISSION"
    board.map(root, 0x1000, OLD)
    assert board.unit.translate(SID, 0x1000, True).name == "F_PERMISSION"
    board.command(vmall(VMID), SYNC)
    assert board.unit.translate(SID, 0x1000, True) == OLD


def test_no_capacity_means_no_staleness():
    board = warm(capacity=0)
    assert not is_stale(board)


@pytest.mark.parametrize(
    ("command", "stale"),
    [
        pytest.param(SYNC, True, id="SYNC alone"),
        pytest.param(NSNH_ALL, True, id="TLBI"),
        pytest.param(cfgi_ste(SID), False, id="CFGI_STE"),
        pytest.param(cfgi_ste(SID, leaf=0), False, id="CFGI_STE not leaf"),
        pytest.param(cfgi_ste(SID + 1), True, id="CFGI_STE, other stream"),
        pytest.param(CFGI_ALL, False, id="CFGI_ALL"),
        pytest.param((0x04 | 9 << 32, 0), False, id="RANGE of 8 and 9"),
        pytest.param((0x04 | 10 << 32, 0), True, id="RANGE of 10 and 11"),
        pytest.param((0x04 | 15 << 32, 2), False, id="RANGE of 8 to 15"),
        pytest.param((0x04 | 0 << 32, 2), True, id="RANGE of 0 to 7"),
        pytest.param((0x04 | 0xFFFF_FFFF << 32, 30), True, id="RANGE of the upper half"),
    ],
)
@pytest.mark.parametrize(("old", "new"), [((0,) * 8, STE_BYPASS), (STE_ABORT, STE_BYPASS), (STE_BYPASS, STE_ABORT)])
def test_an_ste_stays_until_the_right_command(old, new, command, stale):
    board = Board()
    board.set_ste(SID, old)
    before = isinstance(board.unit.translate(SID, 0, False), int)
    board.set_ste(SID, new, flush=False)
    board.command(command, SYNC)
    after = isinstance(board.unit.translate(SID, 0, False), int)
    assert (after == before) == stale


def test_detaching_needs_no_tlb_invalidation_but_the_vmid_keeps_its_entries():
    board = warm()
    board.set_ste(SID, STE_ABORT)
    assert board.unit.translate(SID, 0x4000_0000, False).name == "STE.Config=abort"
    board.stage2(SID, VMID)  # an empty table, the same VMID
    assert is_stale(board)


def test_leaf_invalidation_keeps_the_first_level_descriptor():
    board = Board(two_level=True, log2streams=16)
    board.memory.write64(STRTAB, L2TAB | 9)
    board.set_ste(SID, STE_BYPASS)
    assert board.unit.translate(SID, 0, False) == 0
    board.memory.write64(STRTAB, 0)
    board.command(cfgi_ste(SID), SYNC)
    assert board.unit.translate(SID, 0, False) == 0
    board.command(cfgi_ste(SID, leaf=0), SYNC)
    assert board.unit.translate(SID, 0, False).name == "C_BAD_STREAMID"


@pytest.mark.parametrize("kept", [True, False])
def test_an_empty_first_level_descriptor_may_be_cached(kept):
    board = Board(Smmuv3Config(caches_empty_l1std=kept), two_level=True, log2streams=16)
    board.set_ste(SID, STE_BYPASS)
    assert board.unit.translate(SID, 0, False).name == "C_BAD_STREAMID"
    board.memory.write64(STRTAB, L2TAB | 9)
    board.command(cfgi_ste(SID), SYNC)
    assert isinstance(board.unit.translate(SID, 0, False), Fault) == kept
    board.command(cfgi_ste(SID, leaf=0), SYNC)
    assert board.unit.translate(SID, 0, False) == 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_range_invalidation_spares_neighbouring_first_level_descriptors(index):
    board = Board(two_level=True, log2streams=16)
    for entry in range(3):
        board.memory.write64(STRTAB + 8 * entry, L2TAB | 9)
    board.set_ste(SID, STE_BYPASS)
    sids = [SID + 0x100 * entry for entry in range(3)]
    for entry, sid in enumerate(sids):
        board.unit.translate(sid, 0, False)
        board.memory.write64(STRTAB + 8 * entry, 0)
    board.command((0x04 | 0x100 << 32, 7), *(cfgi_ste(sid) for sid in sids), SYNC)
    assert isinstance(board.unit.translate(sids[index], 0, False), int) == (index != 1)


@pytest.mark.parametrize(("sid", "log2range", "stale"), [(0x100, 7, True), (0, 7, False), (0, 8, False)])
def test_range_invalidation_reaches_first_level_descriptors(sid, log2range, stale):
    board = Board(two_level=True, log2streams=16)
    board.memory.write64(STRTAB, L2TAB | 9)
    board.set_ste(SID, STE_BYPASS)
    board.unit.translate(SID, 0, False)
    board.memory.write64(STRTAB, 0)
    board.command((0x04 | sid << 32, log2range), SYNC)
    assert isinstance(board.unit.translate(SID, 0, False), int) == stale


def test_prefetch_caches_the_ste_and_reports_nothing():
    board = Board()
    board.set_ste(SID, STE_BYPASS)
    board.command((0x01 | SID << 32, 0), (0x01 | 0xFFFF << 32, 0), (0x02 | SID << 32, 0x1000))
    board.set_ste(SID, STE_ABORT, flush=False)
    assert board.unit.translate(SID, 0, False) == 0
    assert board.events() == [] and board.cmdq_error() == 0


def test_prefetch_does_nothing_while_translation_is_disabled():
    board = Board()
    board.set_ste(SID, STE_BYPASS)
    board.w32(0x20, 8)
    board.command((0x01 | SID << 32, 0))
    board.set_ste(SID, STE_ABORT, flush=False)
    board.w32(0x20, 0b1101)
    assert board.unit.translate(SID, 0, False).name == "STE.Config=abort"


def test_caches_outlive_smmuen():
    board = warm()
    board.w32(0x20, 0b1100)
    assert board.unit.translate(SID, 0x4000_0000, False) == 0x4000_0000
    board.w32(0x20, 0b1101)
    assert is_stale(board)
