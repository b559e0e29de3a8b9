# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams, stage 2 walks, faults and their records."""

import pytest
from smmuv3_board import (
    L2TAB,
    RAM,
    RAM_BLOCK,
    RAM_PAGE,
    STE_ABORT,
    STE_BYPASS,
    STRTAB,
    SYNC,
    Board,
    ste_stage2,
)

from machine.iommu.smmuv3 import Smmuv3Config
from machine.iommu.unit import Fault

SID = 8


def fault_name(result):
    assert isinstance(result, Fault), hex(result)
    return result.name


def test_disabled_unit_passes_addresses_through():
    board = Board(enable=False)
    assert board.unit.translate(SID, 0x1234, True) == 0x1234


def test_disabled_unit_aborts_silently_when_gbpa_says_so():
    board = Board(enable=False)
    board.w32(0x44, 1 << 20)
    assert board.r32(0x44) == 0x1000  # without Update the write is ignored
    board.w32(0x44, 1 << 31 | 1 << 20)
    assert board.r32(0x44) == 1 << 20
    fault = board.unit.translate(SID, 0x1234, True)
    assert (fault.name, fault.record) == ("GBPA.ABORT", ())
    board.w32(0x44, 1 << 31 | 0x1000)
    assert board.unit.translate(SID, 0x1234, True) == 0x1234


def test_disabled_unit_aborts_addresses_beyond_oas_without_event():
    board = Board(Smmuv3Config(oas=40), enable=False)
    assert board.unit.translate(SID, 1 << 40, False).record == ()
    assert board.unit.translate(SID, (1 << 40) - 4, False) == (1 << 40) - 4


def test_bypass_stream_passes_and_checks_oas():
    board = Board(Smmuv3Config(oas=40))
    board.set_ste(SID, STE_BYPASS)
    assert board.unit.translate(SID, 0xABC123, False) == 0xABC123
    fault = board.unit.translate(SID, 1 << 40, False)
    # F_ADDR_SIZE of stage 1: S2 is 0, CLASS is IN, RnW is 1
    assert fault.record == (0x11 | SID << 32, 2 << 40 | 1 << 35, 1 << 40, 0)
    assert board.events() == [fault.record]


def test_abort_stream_is_silent():
    board = Board()
    board.set_ste(SID, STE_ABORT)
    fault = board.unit.translate(SID, 0x1000, True)
    assert fault.record == () and board.events() == []


@pytest.mark.parametrize("config", [0, 1, 2, 3])
def test_reserved_configs_abort_silently(config):
    board = Board()
    board.set_ste(SID, (1 | config << 1, 0, 0, 0, 0, 0, 0, 0))
    assert board.unit.translate(SID, 0, False).record == ()


@pytest.mark.parametrize(
    "ste",
    [
        pytest.param((0,) * 8, id="not valid"),
        pytest.param((0b1011, 0, 0, 0, 0, 0, 0, 0), id="stage 1"),
        pytest.param((0b1111, *ste_stage2(3, 0)[1:]), id="stage 1 and 2"),
        pytest.param(ste_stage2(3, 0, t0sz=15), id="T0SZ below 64-IAS"),
        pytest.param(ste_stage2(3, 0, t0sz=40, sl0=0), id="T0SZ above 39"),
        pytest.param(ste_stage2(3, 0, sl0=3), id="SL0 reserved"),
        pytest.param(ste_stage2(3, 0, t0sz=16, sl0=1), id="32 root pages"),
        pytest.param(ste_stage2(3, 0, t0sz=25, sl0=2), id="root with one entry"),
        pytest.param(ste_stage2(3, 0, t0sz=34, sl0=1), id="level 1 root with one entry"),
        pytest.param(ste_stage2(3, 0, t0sz=29, sl0=0), id="32 root pages at level 2"),
        pytest.param(ste_stage2(3, 1 << 40, ps=2), id="S2TTB beyond S2PS"),
        pytest.param(ste_stage2(3, 0, extra2=1 << 46), id="64K granule"),
        pytest.param(ste_stage2(3, 0, extra2=2 << 46), id="16K granule"),
        pytest.param(ste_stage2(3, 0, extra2=1 << 52), id="big-endian"),
        pytest.param(ste_stage2(3, 0, extra2=1 << 55), id="S2HD"),
        pytest.param(ste_stage2(3, 0, extra2=1 << 56), id="S2HA"),
        pytest.param(ste_stage2(3, 0, extra2=1 << 57), id="stall"),
        pytest.param((0b1101, 0, ste_stage2(3, 0)[2] & ~(1 << 51), 0, 0, 0, 0, 0), id="AArch32"),
    ],
)
def test_illegal_ste_is_bad_ste(ste):
    board = Board()
    board.set_ste(SID, ste)
    fault = board.unit.translate(SID, 0x1000, True)
    assert fault.record == (0x04 | SID << 32, 0, 0, 0)
    assert board.unit.walk(SID, 0x1000, True).blocked == "C_BAD_STE"


def test_wide_vmid_is_bad_ste_on_an_8_bit_unit():
    board = Board(Smmuv3Config(vmid16=False))
    board.stage2(SID, vmid=0x100)
    assert fault_name(board.unit.translate(SID, 0, False)) == "C_BAD_STE"


def test_level_0_start_needs_44_bits_of_output():
    board = Board(Smmuv3Config(oas=42))
    board.stage2(SID, t0sz=22, sl0=2, ps=3)
    assert fault_name(board.unit.translate(SID, 0, False)) == "C_BAD_STE"


def test_s2ttb_is_aligned_to_the_root_by_the_unit():
    board = Board()
    root = board.table()
    board.map(root, 0x1000, 0x5000)
    board.set_ste(SID, ste_stage2(3, root | 0xFF0))
    assert board.unit.translate(SID, 0x1234, False) == 0x5234


def test_stream_beyond_the_table_is_bad_streamid_only_with_recinvsid():
    board = Board()
    assert board.unit.translate(0x100, 0, True).record == (0x02 | 0x100 << 32, 0, 0, 0)
    board.w32(0x20, 0)
    board.w32(0x2C, 0)
    board.w32(0x20, 0b1101)
    assert board.unit.translate(0x100, 0, True).record == ()


def test_ste_outside_ram_is_a_fetch_fault():
    board = Board(enable=False)
    board.w64(0x80, RAM)
    board.enable()
    board.w32(0x20, 0)
    board.w64(0x80, RAM)
    board.w32(0x20, 0b1101)
    fault = board.unit.translate(SID, 0, True)
    assert fault.record == (0x03 | SID << 32, 0, 0, RAM + 64 * SID)


def two_level_board(span):
    board = Board(two_level=True, log2streams=16)
    board.memory.write64(STRTAB, L2TAB | span)
    board.command((0x03 | SID << 32, 0), SYNC)
    return board


def test_two_level_stream_table_translates():
    board = two_level_board(9)
    root = board.stage2(SID)
    board.map(root, 0x1000, 0x5000)
    assert board.unit.translate(SID, 0x1000, True) == 0x5000
    assert fault_name(board.unit.translate(0x100 | SID, 0x1000, True)) == "C_BAD_STREAMID"


@pytest.mark.parametrize(
    ("span", "reachable"), [(0, 0), (1, 1), (2, 2), (4, 8), (9, 256), (10, 0), (11, 0), (12, 0), (31, 0)]
)
def test_span_is_2_to_the_span_minus_1_stes(span, reachable):
    board = two_level_board(span)
    for sid in (0, 1, 7, 8, 255):
        board.set_ste(sid, STE_BYPASS)
        passes = board.unit.translate(sid, 0x40, False) == 0x40
        assert passes == (sid < reachable)
        if not passes:
            assert board.unit.walk(sid, 0x40).blocked == "C_BAD_STREAMID"


def test_l2ptr_is_aligned_to_its_span():
    board = two_level_board(9)
    board.memory.write64(STRTAB, L2TAB | 64 * 3 | 9)
    board.command((0x03 | SID << 32, 0))
    board.set_ste(SID, STE_BYPASS)
    assert board.unit.translate(SID, 0x40, False) == 0x40


@pytest.mark.parametrize(("level", "attributes", "size"), [(3, RAM_PAGE, 12), (2, RAM_BLOCK, 21), (1, RAM_BLOCK, 30)])
def test_pages_and_blocks_of_every_size_translate(level, attributes, size):
    board = Board()
    root = board.stage2(SID)
    ipa, pa = 0x7 << 39 | 0x5 << size, 0x3 << size
    board.map(root, ipa, pa, attributes, level)
    for offset in (0, 0x123, (1 << size) - 1):
        assert board.unit.translate(SID, ipa + offset, False) == pa + offset
        walk = board.unit.walk(SID, ipa + offset)
        assert (walk.maddr, walk.page_size) == (pa + offset, 1 << size)
    assert fault_name(board.unit.translate(SID, ipa + (1 << size), False)) == "F_TRANSLATION"
    assert fault_name(board.unit.translate(SID, ipa - 1, False)) == "F_TRANSLATION"


@pytest.mark.parametrize(
    ("bits", "t0sz", "sl0", "ps", "pages"),
    [
        (32, 32, 1, 0, 1),
        (36, 28, 1, 1, 1),
        (39, 25, 1, 2, 1),
        (40, 24, 1, 2, 2),
        (42, 22, 1, 3, 8),
        (43, 21, 1, 4, 16),
        (44, 20, 2, 4, 1),
        (48, 16, 2, 5, 1),
        (34, 30, 0, 2, 16),
        (25, 39, 0, 2, 1),
    ],
)
def test_every_root_geometry_reaches_its_whole_input_range(bits, t0sz, sl0, ps, pages):
    board = Board()
    root = board.table(pages)
    start = 2 - sl0
    board.set_ste(SID, ste_stage2(3, root, t0sz, sl0, ps))
    last = (1 << bits) - 0x1000
    for number, ipa in enumerate(sorted({0, last, last >> 1 & ~0xFFF, 1 << bits - 1})):
        board.map(root, ipa, 0x10000 + 0x1000 * number, start=start)
        assert board.unit.translate(SID, ipa | 0x18, True) == 0x10018 + 0x1000 * number
        assert board.unit.walk(SID, ipa).maddr == 0x10000 + 0x1000 * number
    if bits < 48:
        fault = board.unit.translate(SID, 1 << bits, True)
        assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 39, 1 << bits, 1 << bits)


def test_input_beyond_t0sz_faults_even_if_a_table_follows_the_root():
    board = Board()
    root = board.table(2)
    board.map(root, 1 << 39, 0x5000, start=1)  # fills the page after a root of one page
    board.set_ste(SID, ste_stage2(3, root, t0sz=25, sl0=1))
    assert fault_name(board.unit.translate(SID, 1 << 39, False)) == "F_TRANSLATION"


def test_addresses_wider_than_the_bus_do_not_break_the_record():
    board = Board()
    board.stage2(SID)
    assert board.unit.translate(SID, 1 << 64 | 0x1000, True).record[2] == 0x1000


def test_input_beyond_ias_is_a_stage_1_address_size_fault():
    board = Board()
    board.stage2(SID)
    fault = board.unit.translate(SID, 1 << 48 | 0x1234, True)
    assert fault.record == (0x11 | SID << 32, 2 << 40, 1 << 48 | 0x1234, 0)
    assert board.unit.walk(SID, 1 << 48).blocked == "F_ADDR_SIZE"


def test_absent_page_faults_with_input_address_and_ipa_page():
    board = Board()
    board.stage2(SID)
    fault = board.unit.translate(SID, 0x12345678, False)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 39 | 1 << 35, 0x12345678, 0x12345000)
    assert board.events() == [fault.record]
    assert (fault.code, fault.sid, fault.iova, fault.write) == (0x10, SID, 0x12345678, False)


@pytest.mark.parametrize("level", [0, 3])
def test_block_at_level_0_or_3_is_a_translation_fault(level):
    board = Board()
    root = board.stage2(SID)
    board.map(root, 0, 0, RAM_BLOCK, level)
    assert fault_name(board.unit.translate(SID, 0, False)) == "F_TRANSLATION"


@pytest.mark.parametrize("level", [0, 1, 2])
def test_table_outside_ram_is_an_external_abort_with_the_descriptor_address(level):
    board = Board()
    root = board.stage2(SID)
    board.map(root, 0x1000, RAM, 3, level)
    fault = board.unit.translate(SID, 0x1000, True)
    fetch = RAM + (8 if level == 2 else 0)
    assert fault.record == (0x0B | SID << 32, 2 << 40 | 1 << 39, 0x1000, fetch)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_output_beyond_s2ps_is_an_address_size_fault(level):
    board = Board()
    root = board.stage2(SID, ps=2)
    board.map(root, 0, 1 << 40, RAM_PAGE if level == 3 else RAM_BLOCK, level)
    assert fault_name(board.unit.translate(SID, 0, False)) == "F_ADDR_SIZE"


def test_table_pointer_beyond_s2ps_is_an_address_size_fault():
    board = Board()
    root = board.stage2(SID, ps=2)
    board.memory.write64(root, 1 << 40 | 3)
    assert fault_name(board.unit.translate(SID, 0, False)) == "F_ADDR_SIZE"


@pytest.mark.parametrize("ps", [5, 6, 7])
def test_s2ps_is_capped_to_the_output_address_size(ps):
    board = Board(Smmuv3Config(oas=44))
    root = board.stage2(SID, t0sz=20, ps=ps)
    board.map(root, 0, 1 << 43)
    board.map(root, 0x1000, 1 << 44)
    assert board.unit.translate(SID, 0, False) == 1 << 43
    assert fault_name(board.unit.translate(SID, 0x1000, False)) == "F_ADDR_SIZE"


def test_clear_access_flag_faults_unless_affd():
    board = Board()
    root = board.stage2(SID)
    board.map(root, 0, 0x5000, RAM_PAGE & ~(1 << 10))
    assert fault_name(board.unit.translate(SID, 0, False)) == "F_ACCESS"
    board.set_ste(SID, ste_stage2(3, root, extra2=1 << 53))
    assert board.unit.translate(SID, 0, False) == 0x5000


@pytest.mark.parametrize(("s2ap", "read", "write"), [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)])
@pytest.mark.parametrize("warm", [False, True])
def test_s2ap_allows_exactly_what_it_says(s2ap, read, write, warm):
    board = Board()
    root = board.stage2(SID)
    board.map(root, 0, 0x5000, RAM_PAGE & ~(3 << 6) | s2ap << 6)
    if warm:
        board.unit.translate(SID, 0, False)
    for is_write, allowed in ((False, read), (True, write)):
        result = board.unit.translate(SID, 0x10, is_write)
        walk = board.unit.walk(SID, 0x10, is_write)
        assert (walk.readable, walk.writable) == (bool(read), bool(write))
        if allowed:
            assert result == walk.maddr == 0x5010
        else:
            assert result.code == 0x13 and walk.blocked == "F_PERMISSION"
            assert result.record[1] == 2 << 40 | 1 << 39 | (0 if is_write else 1 << 35)


def test_faults_come_in_the_architectures_order():
    board = Board()
    root = board.stage2(SID, ps=2)
    slot = board.map(root, 0, 0)
    for descriptor, name in [
        (1 << 40 | 0x301, "F_TRANSLATION"),
        (1 << 40 | 0x303, "F_ADDR_SIZE"),
        (0x303, "F_ACCESS"),
        (0x703, "F_PERMISSION"),
    ]:
        board.memory.write64(slot, descriptor)
        assert fault_name(board.unit.translate(SID, 0, True)) == name


def test_s2r_clear_silences_stage_2_faults_but_not_external_aborts():
    board = Board()
    root = board.table()
    low, attributes, stage2, *rest = ste_stage2(3, root)
    board.set_ste(SID, (low, attributes, stage2 & ~(1 << 58), *rest))
    assert board.unit.translate(SID, 0, True).record == ()
    board.map(root, 0x1000, RAM, 3, 2)
    assert board.unit.translate(SID, 0x1000, True).record != ()


def test_instcfg_makes_reads_instruction_fetches_that_xn_blocks():
    board = Board()
    root = board.table()
    board.map(root, 0, 0x5000)
    board.map(root, 0x1000, 0x6000, RAM_PAGE | 1 << 54)
    board.set_ste(SID, ste_stage2(3, root, extra1=3 << 50 | 3 << 48))
    assert board.unit.translate(SID, 0, False) == 0x5000
    assert board.unit.translate(SID, 0x1000, True) == 0x6000
    fault = board.unit.translate(SID, 0x1000, False)
    assert fault.record[:2] == (0x13 | SID << 32, 2 << 40 | 1 << 39 | 0b111 << 33)


def test_instcfg_has_no_effect_where_idr1_denies_it():
    board = Board(Smmuv3Config(perms_override=False))
    assert board.r32(0x04) >> 26 & 1 == 0
    root = board.table()
    board.map(root, 0, 0x5000, RAM_PAGE | 1 << 54)
    board.set_ste(SID, ste_stage2(3, root, extra1=3 << 50 | 3 << 48))
    assert board.unit.translate(SID, 0, False) == 0x5000
    assert board.unit.translate(SID, 0x1000, False).record[1] == 2 << 40 | 1 << 39 | 1 << 35


@pytest.mark.parametrize(
    ("xn", "unprivileged", "privileged"), [(0, True, True), (1, True, False), (2, False, False), (3, False, True)]
)
def test_xnx_distinguishes_privilege(xn, unprivileged, privileged):
    board = Board(Smmuv3Config(xnx=True))
    root = board.table()
    board.map(root, 0, 0x5000, RAM_PAGE | xn << 53)
    for privcfg, allowed in ((2, unprivileged), (3, privileged)):
        board.set_ste(SID, ste_stage2(3, root, extra1=3 << 50 | privcfg << 48))
        assert isinstance(board.unit.translate(SID, 0, False), int) == allowed


def test_fields_that_translation_ignores_are_ignored():
    board = Board()
    root = board.stage2(SID)
    noise = 0x1F << 59 | 0xF << 55 | 1 << 52 | 1 << 51 | 7 << 48 | 1 << 11 | 3 << 8
    board.map(root, 0, 0x5000, RAM_PAGE | noise)
    assert board.unit.translate(SID, 0x8, True) == 0x5008
    board.map(root, 0x200000, 0x600000, RAM_BLOCK | noise | 0x1FF000, level=2)
    assert board.unit.translate(SID, 0x200008, True) == 0x600008


def test_xens_golden_p2m_entries_translate():
    board = Board()
    root = board.table(1)
    board.set_ste(SID, ste_stage2(3, root, t0sz=20, sl0=2, ps=4))
    for number, (attributes, writable) in enumerate(
        [
            (0x0080_0000_0000_07FF, True),  # RAM
            (0x0540_0000_0000_07FF, True),  # iommu_map_rw
            (0x05C0_0000_0000_077F, False),  # iommu_map_ro
            (0x02C0_0000_0000_06FF, True),  # mmio_direct_c
            (0x01C0_0000_0000_06C7, True),  # mmio_direct_dev
        ]
    ):
        ipa = number << 12
        board.map(root, ipa, 0x10000 + ipa, attributes)
        walk = board.unit.walk(SID, ipa, True)
        assert (walk.readable, walk.writable) == (True, writable)
        assert board.unit.translate(SID, ipa, False) == 0x10000 + ipa
    board.map(root, 0x200000, 0x400000, 0x0080_0000_0000_07FD, level=2)
    assert board.unit.translate(SID, 0x212345, True) == 0x412345


@pytest.mark.parametrize(("vtcr", "pages", "bits"), [(0x8004_3594, 1, 44), (0x8002_3558, 2, 40)])
def test_xens_vtcr_goes_into_the_ste_as_bits_50_to_32(vtcr, pages, bits):
    board = Board()
    root = board.table(pages)
    dw2 = 9 | (vtcr & 0x7FFFF) << 32 | 1 << 51 | 1 << 54 | 1 << 58
    board.set_ste(SID, (0b1101, 1 << 44, dw2, root, 0, 0, 0, 0))
    last = (1 << bits) - 0x1000
    board.map(root, last, 0x5000, 0x0080_0000_0000_07FF, start=2 - (vtcr >> 6 & 3))
    assert board.unit.translate(SID, last | 0xFFF, True) == 0x5FFF
    assert "VMID=9" in board.unit.walk(SID, last).steps[0].meaning


def test_walk_names_every_structure_on_the_way():
    board = two_level_board(9)
    root = board.stage2(SID)
    board.map(root, 0x8060_0000, 0x40_0000, RAM_BLOCK, level=2)
    walk = board.unit.walk(SID, 0x8060_0010)
    assert [(step.name, step.level, step.slot) for step in walk.steps] == [
        ("L1STD", None, 0),
        ("STE", None, None),
        ("stage 2 descriptor", 0, 0),
        ("stage 2 descriptor", 1, 2),
        ("stage 2 descriptor", 2, 3),
    ]
    assert walk.steps[0].meaning == f"Span=9 (256 STEs) L2Ptr={L2TAB:#x}"
    assert walk.steps[1].meaning == f"V Config=S2 VMID=3 T0SZ=16 SL0=2 PS=5 S2TTB={root:#x} AA64 R PTW"
    assert walk.steps[2].meaning.startswith("table -> 0x")
    assert walk.steps[4].meaning == "block 2M -> 0x400000 RW AF Normal-WB ISH"
    assert walk.steps[4].words == (0x40_0000 | RAM_BLOCK,)
    assert walk.steps[4].maddr & 0xFFF == 8 * 3


def test_walk_records_nothing_and_fills_no_cache():
    board = Board()
    root = board.stage2(SID)
    assert board.unit.walk(SID, 0x1000).blocked == "F_TRANSLATION"
    assert board.events() == [] and board.unit.counters.faults == 0
    board.map(root, 0x1000, 0x5000)
    board.unit.walk(SID, 0x1000)
    before = board.unit.counters.iotlb_misses
    board.unit.translate(SID, 0x1000, False)
    assert board.unit.counters.iotlb_misses == before + 1


def test_two_units_behind_one_bus_do_not_share_state():
    board = Board()
    other = Board()
    board.set_ste(SID, STE_BYPASS)
    assert board.unit.translate(SID, 0x40, False) == 0x40
    assert fault_name(other.unit.translate(SID, 0x40, False)) == "C_BAD_STE"
