# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices with caches of their own: translation requests, translated requests, CMD_ATC_INV, page requests."""

import pytest
from smmuv3_board import STE_ABORT, STE_BYPASS
from smmuv3_stage1_board import (
    OFFSET,
    PAGE1,
    RO,
    SID,
    SYNC,
    Stage1Board,
    cd,
    nh_all,
    ste_nested,
    ste_stage1,
)

from machine.devices.translation_cache import CachingPort
from machine.dma import DmaFabric
from machine.iommu.ats import AtsUnit, Status
from machine.iommu.smmuv3.pri import PageRequest
from machine.iommu.unit import Fault

VA = 0x7F00_1234_5000
IPA = 0x13_0000
FULL, SPLIT = 1 << 28, 2 << 28
ATSCHK = 1 << 4
PRIQ = 0x1C_0000


def atc_inv(sid, address, size=0, ssid=None, every=False):
    low = 0x40 | sid << 32 | every << 9
    if ssid is not None:
        low |= 1 << 11 | ssid << 12
    return (low, address & ~0xFFF | size)


@pytest.fixture
def board():
    board = Stage1Board(ats=True, pri=True)
    board.pointer, board.root = board.context()
    board.set_ste(SID, ste_stage1(board.pointer, extra1=FULL))
    board.leaf = board.map1(board.root, VA, 0x400000)
    return board


def test_the_unit_is_an_ats_unit(board):
    assert isinstance(board.unit, AtsUnit)
    assert board.r32(0) & 1 << 10 and board.r32(0) & 1 << 16


def test_a_request_is_granted_what_the_tables_grant(board):
    assert board.unit.translation_request(SID, VA | 8)[:5] == (Status.SUCCESS, 0x400000, 0, True, True)
    assert board.unit.translation_request(SID, VA, no_write=True)[3:5] == (True, False)
    board.memory.write64(board.leaf, 0x400000 | PAGE1 | RO)
    board.command(nh_all(3), SYNC)
    assert board.unit.translation_request(SID, VA)[3:5] == (True, False)
    assert board.unit.translation_request(SID, VA + 0x1000)[:5] == (Status.SUCCESS, 0, 0, False, False)
    assert board.events() == []


def test_blocks_are_handed_out_whole(board):
    block = 0x8000_0000
    board.map1(board.root, block, 0x80_0000, 0x741, level=2)
    assert board.unit.translation_request(SID, block + 0x12_3000)[:3] == (Status.SUCCESS, 0x80_0000, 9)


@pytest.mark.parametrize(
    ("ste", "status", "event"),
    [
        (ste_stage1(0x300000), Status.UNSUPPORTED, True),
        (STE_BYPASS, Status.UNSUPPORTED, True),
        (ste_nested(0x300000, 3, 0x310000, extra1=SPLIT), Status.UNSUPPORTED, True),  # ATSCHK is 0
        (STE_ABORT, Status.UNSUPPORTED, False),
        ((0,) * 8, Status.ABORT, False),
        (ste_stage1(0x300000, extra1=FULL), Status.ABORT, False),  # no CD there
        (ste_stage1(0x300000, cdmax=4, dss=0, extra1=FULL), Status.ABORT, False),
    ],
)
def test_refusals(board, ste, status, event):
    board.set_ste(SID, ste)
    assert board.unit.translation_request(SID, VA).status is status
    assert board.events() == ([(0x05 | SID << 32, 0, VA, 0)] if event else [])


def test_nothing_is_served_while_disabled(board):
    board.w32(0x20, 0b1100)
    assert board.unit.translation_request(SID, VA).status is Status.UNSUPPORTED
    assert board.unit.translated_request(SID, 0x400000, True).name == "F_TRANSL_FORBIDDEN"
    assert [event[0] & 0xFF for event in board.events()] == [5, 7]


def test_dirty_state_is_set_when_write_is_granted(board):
    board.set_cd(board.pointer, cd(5, board.root, extra=3 << 42))
    board.memory.write64(board.leaf, 0x400000 | PAGE1 | RO | 1 << 51)
    board.unit.translation_request(SID, VA, no_write=True)
    assert board.memory.read64(board.leaf) & RO
    assert board.unit.translation_request(SID, VA).write
    assert not board.memory.read64(board.leaf) & RO


def test_translated_requests_pass_unless_atschk_asks_the_ste(board):
    board.set_ste(SID, ste_stage1(board.pointer))
    assert board.unit.translated_request(SID, 0x400000, True) == 0x400000
    assert board.unit.translated_request(SID, 1 << 50, True).record == ()
    board.w32(0x20, 0b1101 | ATSCHK)
    fault = board.unit.translated_request(SID, 0x400000, False)
    assert fault.record == (0x07 | SID << 32, 1 << 35, 0x400000, 0)
    board.set_ste(SID, ste_stage1(board.pointer, extra1=FULL))
    assert board.unit.translated_request(SID, 0x400000, True) == 0x400000
    board.set_ste(SID, (0,) * 8)
    assert board.unit.translated_request(SID, 0x400000, True).record == ()


def test_split_stage_hands_out_intermediate_addresses():
    board = Stage1Board(ats=True)
    board.w32(0x20, 0b1101 | ATSCHK)
    _, root, root2 = board.nested(extra1=SPLIT)
    board.map1(root, VA, IPA, offset=OFFSET)
    assert board.unit.translation_request(SID, VA)[:5] == (Status.SUCCESS, IPA, 0, True, True)
    assert board.unit.translated_request(SID, IPA | 4, True) == IPA + OFFSET | 4
    board.map(root2, IPA, 0x700000, 0)
    board.command((0x2A | 3 << 32, IPA), SYNC)
    fault = board.unit.translated_request(SID, IPA | 4, True)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 39, IPA | 4, IPA)


def test_full_ats_of_a_nested_stream_hands_out_machine_addresses():
    board = Stage1Board(ats=True)
    _, root, _ = board.nested(extra1=FULL)
    board.map1(root, VA, IPA, offset=OFFSET)
    assert board.unit.translation_request(SID, VA).maddr == IPA + OFFSET


def test_a_missing_atc_invalidation_leaves_the_device_on_old_memory(board):
    fabric = DmaFabric(board.bus)
    fabric.cover(board.unit)
    device = CachingPort(fabric, SID)
    assert device.write(VA, b"first") is None
    board.memory.write64(board.leaf, 0x500000 | PAGE1)
    board.command(nh_all(3), SYNC)
    device.write(VA, b"stale")
    assert board.memory.read(0x400000, 5) == b"stale"
    board.command(atc_inv(SID, VA + 0x1000), atc_inv(9, VA), atc_inv(SID, VA, ssid=1), SYNC)
    device.write(VA, b"STALE")
    assert board.memory.read(0x400000, 5) == b"STALE"
    board.command(atc_inv(SID, VA), SYNC)
    device.write(VA, b"fresh")
    assert board.memory.read(0x500000, 5) == b"fresh"


@pytest.mark.parametrize(("size", "address"), [(52, 0), (9, VA), (1, VA | 0x1000)])
def test_an_invalidation_covers_its_aligned_span(board, size, address):
    fabric = DmaFabric(board.bus)
    fabric.cover(board.unit)
    device = CachingPort(fabric, SID)
    device.write(VA, b"x")
    board.command(atc_inv(SID, address, size), SYNC)
    assert len(device.cache) == (1 if size == 1 and address >> 13 != VA >> 13 else 0)


def test_a_device_that_does_not_answer_stops_the_next_sync(board):
    fabric = DmaFabric(board.bus)
    fabric.cover(board.unit)
    device = CachingPort(fabric, SID)
    device.cache.answering = False
    board.command(atc_inv(SID, VA))
    assert not board.cmdq_error()
    state = board.unit.save()
    for _ in range(2):
        board.unit.restore(state)
        at = board.r32(0x98)
        board.command(SYNC, SYNC)
        assert board.cmdq_error() == 3
        assert board.r32(0x9C) & 0x1FF == at  # the SYNC itself
        board.w32(0x64, board.r32(0x60))
        assert board.r32(0x9C) & 0x1FF == board.r32(0x98)  # done at the second look


def test_commands_of_absent_features_are_illegal():
    for command in (atc_inv(SID, 0), (0x41, 0)):
        board = Stage1Board()
        board.command(command)
        assert board.cmdq_error() == 1
    board = Stage1Board(ats=True, pri=True)
    board.command(atc_inv(SID, 0, size=53))
    assert board.cmdq_error() == 1
    board = Stage1Board(ats=True, pri=True)
    board.command((0x41, 3 << 12))
    assert board.cmdq_error() == 1


def test_a_unit_without_ats_serves_nobody():
    board = Stage1Board()
    assert board.unit.translation_request(SID, VA).status is Status.UNSUPPORTED
    assert isinstance(board.unit.translated_request(SID, 0, False), Fault)


# -- page requests --------------------------------------------------------------------------------------------


@pytest.fixture
def paging(board):
    board.responses = []
    board.unit.pri.listener = board.responses.append
    board.w64(0xC0, PRIQ | 1)
    board.w32(0x50, 0b10)
    board.w32(0x20, 0b1111)
    return board


def test_a_page_request_lands_in_the_queue_and_is_answered(paging):
    request = PageRequest(SID, VA | 0x18, 0x105, read=True, write=True, last=True, pasid=70)
    assert paging.unit.pri.request(request)
    low = 1 << 63 | 1 << 62 | 1 << 61 | 1 << 60 | 70 << 32 | SID
    assert (paging.memory.read64(PRIQ), paging.memory.read64(PRIQ + 8)) == (low, VA | 0x105)
    assert paging.r32(0x100C8) == 1 and paging.pulses == ["priq"]
    paging.command((0x41 | 1 << 11 | 70 << 12 | SID << 32, 0x105 | 2 << 12), (0x41 | SID << 32, 1 << 12), SYNC)
    assert paging.responses == [(SID, 0x105, 0, 70, False), (SID, 0, 1, None, False)]


def test_an_overflow_answers_success_for_the_last_of_a_group(paging):
    for group in range(2):
        paging.unit.pri.request(PageRequest(SID, VA, group))
    assert not paging.unit.pri.request(PageRequest(SID, VA, 2, last=False))
    assert paging.responses == [] and paging.r32(0x100C8) >> 31 == 1
    paging.w32(0x100CC, 2)  # room, but the overflow is not acknowledged
    assert not paging.unit.pri.request(PageRequest(SID, VA, 3, pasid=5))
    assert paging.responses == [(SID, 3, 0, 5, True)]
    paging.w32(0x100CC, 2 | 1 << 31)
    assert paging.unit.pri.request(PageRequest(SID, VA, 4))


def test_a_queue_that_is_off_or_broken_answers_failure(paging):
    paging.w32(0x20, 0b1101)
    assert not paging.unit.pri.request(PageRequest(SID, VA, 0, pasid=5))
    paging.w64(0xC0, 0x4000_0000)
    paging.w32(0x20, 0b1111)
    assert not paging.unit.pri.request(PageRequest(SID, VA, 1))
    assert (paging.r32(0x60) ^ paging.r32(0x64)) & 8
    assert not paging.unit.pri.request(PageRequest(SID, VA, 2))
    assert [response[2:] for response in paging.responses] == [(15, None, True)] * 3
