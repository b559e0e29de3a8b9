# SPDX-License-Identifier: GPL-2.0-or-later
"""From an STE with stage 1 to a context descriptor: legality, substreams, two-level tables, what CFGI drops."""

import pytest
from smmuv3_board import RAM, SYNC, cfgi_ste
from smmuv3_stage1_board import (
    PAGE1,
    SID,
    Stage1Board,
    cd,
    cfgi_cd,
    cfgi_cd_all,
    nh_all,
    ste_nested,
    ste_stage1,
)

from machine.iommu.unit import Fault

VA = 0x7F00_1234_5000
SSV = 1 << 11


def name(result):
    return result.name if isinstance(result, Fault) else result


def test_a_stream_with_one_cd_translates():
    board = Stage1Board()
    _, root = board.context()
    board.map1(root, VA, 0x400000)
    assert board.unit.translate(SID, VA | 0x18, True) == 0x400018
    walk = board.unit.walk(SID, VA | 0x18)
    assert (walk.maddr, walk.page_size, walk.blocked) == (0x400018, 4096, None)
    assert [step.name for step in walk.steps] == ["STE", "CD", *["stage 1 descriptor"] * 4]
    assert walk.steps[1].meaning.startswith("V ASID=5 T0SZ=16")
    assert walk.steps[-1].meaning == "page 4K -> 0x400000 RW-EL0 AF global Normal-WB ISH"


@pytest.mark.parametrize(
    ("extra", "clear", "config"),
    [
        pytest.param(0, 1 << 31, {}, id="V 0"),
        pytest.param(0, 1 << 46, {}, id="A 0"),
        pytest.param(0, 1 << 41, {}, id="AArch32"),
        pytest.param(1 << 44, 0, {}, id="S without stalls"),
        pytest.param(0, 0, {"stall_model": 2}, id="no S where stalls are forced"),
        pytest.param(1 << 15, 0, {}, id="big-endian"),
        pytest.param(1 << 43, 0, {"httu": 0}, id="HA without HTTU"),
        pytest.param(1 << 42 | 1 << 43, 0, {"httu": 1}, id="HD without dirty state"),
        pytest.param(1 << 6, 0, {}, id="64K granule"),
        pytest.param(0x3F, 0, {}, id="T0SZ 63"),
        pytest.param(0, 0x1F, {}, id="T0SZ 0"),
        pytest.param(0x100 << 48, 0, {"asid16": False}, id="wide ASID"),
        pytest.param(0, 1 << 30, {}, id="TTBR1 in use with TG1 reserved"),
    ],
)
def test_illegal_cd_is_bad_cd(extra, clear, config):
    board = Stage1Board(**config)
    board.context(extra=extra, clear=clear)
    fault = board.unit.translate(SID, VA, False)
    assert fault.record == (0x0A | SID << 32, 0, 0, 0)
    assert board.unit.walk(SID, VA).blocked == "C_BAD_CD"


def test_a_table_base_beyond_ips_is_bad_cd():
    board = Stage1Board()
    pointer, _ = board.context(ips=0)
    board.set_cd(pointer, cd(5, 1 << 32, ips=0))
    assert name(board.unit.translate(SID, VA, False)) == "C_BAD_CD"


def test_what_epd_disables_is_not_checked():
    board = Stage1Board()
    pointer, root = board.context()
    board.map1(root, VA, 0x400000)
    # both ranges disabled: T0SZ 0, a wild TTB0 and ENDI do not matter
    board.set_cd(pointer, cd(5, 1 << 51, t0sz=0, extra=1 << 14 | 1 << 15 | 3 << 6))
    fault = board.unit.translate(SID, VA, True)
    assert (fault.name, fault.record[1]) == ("F_TRANSLATION", 2 << 40)
    # the quiet CD of a process that died keeps what is cached
    board.set_cd(pointer, cd(5, root))
    assert board.unit.translate(SID, VA, True) == 0x400000
    board.set_cd(pointer, cd(5, root, extra=1 << 14, clear=1 << 45))
    assert board.unit.translate(SID, VA, True) == 0x400000
    board.command(nh_all(3), SYNC)
    assert board.unit.translate(SID, VA, True).record == ()


@pytest.mark.parametrize(
    ("ste", "config"),
    [
        pytest.param(ste_stage1(0x300000), {"stage1": False, "ssid_bits": 0}, id="no stage 1"),
        pytest.param(ste_nested(0x300000, 3, 0), {"stage2": False}, id="no stage 2"),
        pytest.param(ste_stage1(0x300000, cdmax=9), {}, id="S1CDMax above SSIDSIZE"),
        pytest.param(ste_stage1(0x300000, cdmax=7, fmt=1), {"two_level_cd": False}, id="two-level CDs absent"),
        pytest.param(ste_stage1(1 << 50), {}, id="S1ContextPtr beyond OAS"),
        pytest.param(ste_stage1(0x300000, extra1=1 << 27), {}, id="S1STALLD without choice"),
        pytest.param(ste_stage1(0x300000, extra1=1 << 30), {"hyp": True}, id="STRW reserved"),
        pytest.param(ste_stage1(0x300000, extra1=2 << 28), {"ats": True}, id="split-stage ATS without stage 2"),
        pytest.param(ste_stage1(0x300000, vmid=0x100), {"vmid16": False}, id="wide VMID"),
    ],
)
def test_illegal_stage_1_ste_is_bad_ste(ste, config):
    board = Stage1Board(**config)
    board.set_ste(SID, ste)
    assert board.unit.translate(SID, VA, False).record == (0x04 | SID << 32, 0, 0, 0)


def test_fields_without_their_feature_are_ignored():
    board = Stage1Board(ssid_bits=0, ats=False, hyp=False)
    pointer, root = board.context()
    board.map1(root, VA, 0x400000)
    # S1CDMax, S1Fmt, STRW and EATS mean nothing here
    board.set_ste(SID, ste_stage1(pointer, cdmax=20, fmt=2, dss=0, extra1=3 << 30 | 2 << 28))
    assert board.unit.translate(SID, VA, False) == 0x400000


class Substreams(Stage1Board):
    """Two-level or linear table of 256 CDs; CD n maps VA to 0x40_0000 + n pages."""

    def __init__(self, fmt, dss, **config):
        super().__init__(**config)
        self.fmt = fmt
        shift = {0: 8, 1: 6, 2: 10}[fmt]
        self.l1 = self.table(4)
        self.leaves = [self.table(16)] if fmt == 2 else [self.table() for _ in range(4)]
        if fmt:
            for slot, leaf in enumerate(self.leaves):
                self.memory.write64(self.l1 + 8 * slot, leaf | 1)
        self.shift = shift
        for ssid in (0, 1, 70, 200):
            root = self.table()
            self.map1(root, VA, 0x400000 + 0x1000 * ssid, PAGE1 | 1 << 11)
            self.set_cd(self.where(ssid), cd(ssid, root), flush=False)
        self.set_ste(SID, ste_stage1(self.l1, cdmax=8, fmt=fmt, dss=dss))

    def where(self, ssid):
        if not self.fmt:
            return self.l1 + 64 * ssid
        return self.leaves[ssid >> self.shift] + 64 * (ssid & (1 << self.shift) - 1)


@pytest.mark.parametrize("fmt", [0, 1, 2])
def test_the_substream_chooses_the_cd(fmt):
    board = Substreams(fmt, dss=2)
    for ssid in (1, 70, 200):
        assert board.unit.translate(SID, VA, True, ssid) == 0x400000 + 0x1000 * ssid
        assert board.unit.walk(SID, VA, True, ssid).maddr == 0x400000 + 0x1000 * ssid
    assert board.unit.translate(SID, VA, True) == 0x400000  # S1DSS: CD 0
    fault = board.unit.translate(SID, VA, True, 0)  # which substream 0 may then not use
    assert fault.record == (0x06 | SSV | SID << 32, 0, 0, 0)
    assert fault.pasid == 0
    fault = board.unit.translate(SID, VA, False, 7)
    assert fault.record == (0x0A | SSV | 7 << 12 | SID << 32, 0, 0, 0)
    fault = board.unit.translate(SID, VA, False, 256)
    assert fault.record == (0x08 | 256 << 12 | SID << 32, 0, 0, 0)  # no SSV: the SubstreamID is always valid


def test_faults_name_the_substream():
    board = Substreams(0, dss=2)
    fault = board.unit.translate(SID, VA + 0x1000, True, 70)
    assert fault.record == (0x10 | SSV | 70 << 12 | SID << 32, 2 << 40, VA + 0x1000, 0)


def test_s1dss_terminates_or_bypasses_what_has_no_substream():
    board = Substreams(0, dss=0)
    assert board.unit.translate(SID, VA, True).record == (0x06 | SID << 32, 0, 0, 0)
    assert board.unit.translate(SID, VA, True, 0) == 0x400000
    board.set_ste(SID, ste_stage1(board.l1, cdmax=8, dss=3))
    assert name(board.unit.translate(SID, VA, True)) == "F_STREAM_DISABLED"
    board.set_ste(SID, ste_stage1(board.l1, cdmax=8, dss=1))
    assert board.unit.translate(SID, 0x123456, True) == 0x123456
    assert name(board.unit.translate(SID, 1 << 48, True)) == "F_ADDR_SIZE"
    assert board.unit.translate(SID, VA, True, 70) == 0x400000 + 0x1000 * 70


def test_a_substream_where_there_are_none_is_refused():
    board = Stage1Board()
    board.context()
    assert board.unit.translate(SID, VA, True, 1).record == (0x08 | 1 << 12 | SID << 32, 0, 0, 0)
    root = board.stage2(9, 4)
    board.map(root, 0x1000, 0x2000)
    assert board.unit.translate(9, 0x1000, True) == 0x2000
    assert name(board.unit.translate(9, 0x1000, True, 0)) == "C_BAD_SUBSTREAMID"
    board.set_ste(10, (0b1001, 0, 0, 0, 0, 0, 0, 0))
    assert name(board.unit.translate(10, 0x1000, True, 3)) == "C_BAD_SUBSTREAMID"


def test_an_invalid_l1cd_is_bad_substreamid_and_cached_until_cfgi_cd_names_it_without_leaf():
    board = Substreams(1, dss=2)
    board.memory.write64(board.l1 + 8, 0)
    assert board.unit.translate(SID, VA, True, 70).record == (0x08 | 70 << 12 | SID << 32, 0, 0, 0)
    board.memory.write64(board.l1 + 8, board.leaves[1] | 1)
    board.command(cfgi_cd(SID, 70, leaf=1), SYNC)
    assert name(board.unit.translate(SID, VA, True, 70)) == "C_BAD_SUBSTREAMID"
    board.command(cfgi_cd(SID, 1, leaf=0), SYNC)  # another span
    assert name(board.unit.translate(SID, VA, True, 70)) == "C_BAD_SUBSTREAMID"
    board.command(cfgi_cd(SID, 64, leaf=0), SYNC)
    assert board.unit.translate(SID, VA, True, 70) == 0x400000 + 0x1000 * 70


def test_cds_that_cannot_be_fetched():
    board = Stage1Board()
    board.set_ste(SID, ste_stage1(RAM))
    assert board.unit.translate(SID, VA, True).record == (0x09 | SID << 32, 0, 0, RAM)
    board.set_ste(SID, ste_stage1(RAM, cdmax=8, fmt=1, dss=2))
    assert board.unit.translate(SID, VA, True, 70).record == (0x09 | SSV | 70 << 12 | SID << 32, 0, 0, RAM + 8)


DROPS = [
    (cfgi_cd(SID, 70), {70}),
    (cfgi_cd(SID, 1), {1}),
    (cfgi_cd(9, 70), set()),
    (cfgi_cd_all(SID), {1, 70}),
    (cfgi_cd_all(9), set()),
    (cfgi_ste(SID), {1, 70}),
    (cfgi_ste(9), set()),
    ((0x04 | SID << 32, 0), {1, 70}),
    ((0x04 | 16 << 32, 2), set()),
    ((0x04, 31), {1, 70}),
    ((0x30, 0), set()),
]


@pytest.mark.parametrize(("command", "dropped"), DROPS)
def test_a_cached_cd_lives_until_a_command_names_it(command, dropped):
    board = Substreams(1, dss=2)
    for ssid in (1, 70):
        board.unit.translate(SID, VA, True, ssid)
        board.memory.write64(board.where(ssid), 0)
    board.command(command, SYNC)
    for ssid in (1, 70):
        expected = "C_BAD_CD" if ssid in dropped else 0x400000 + 0x1000 * ssid
        assert name(board.unit.translate(SID, VA, True, ssid)) == expected


def test_cfgi_cd_is_illegal_without_stage_1():
    board = Stage1Board(stage1=False, ssid_bits=0)
    board.command(cfgi_cd(SID))
    assert board.cmdq_error() == 1
