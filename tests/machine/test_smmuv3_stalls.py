# SPDX-License-Identifier: GPL-2.0-or-later
"""Stalled transactions: their records, resume and termination, and a queue that cannot take them."""

import pytest
from smmuv3_stage1_board import OFFSET, PAGE1, RO, SID, SYNC, Stage1Board, nh_all, ste_stage1

VA = 0x7F00_1234_5000
S = 1 << 44
STALL = 1 << 31


def resume(sid, tag, retry=True, abort=False):
    return (0x44 | retry << 12 | abort << 13 | sid << 32, tag)


def stall_term(sid):
    return (0x45 | sid << 32, 0)


@pytest.fixture
def board():
    board = Stage1Board(stall_model=0)
    board.pointer, board.root = board.context(extra=S)
    board.outcomes = []
    board.unit.stalls.listener = board.outcomes.append
    return board


def test_a_fault_stalls_with_a_record_even_without_r(board):
    board.context(extra=S, clear=1 << 45)
    fault = board.unit.translate(SID, VA, True)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | STALL | 0, VA, 0)
    second = board.unit.translate(SID, VA + 0x1000, False)
    assert second.record[1] == 2 << 40 | 1 << 35 | STALL | 1  # a tag of its own
    assert set(board.unit.stalls.waiting) == {0, 1}
    assert board.outcomes == []


def test_a_retry_sees_what_software_mapped_meanwhile(board):
    board.unit.translate(SID, VA | 8, True)
    board.map1(board.root, VA, 0x400000)
    board.command(resume(SID, 0), SYNC)
    (outcome,) = board.outcomes
    assert (outcome.request.iova, outcome.result) == (VA | 8, 0x400008)
    assert board.unit.stalls.waiting == {}


def test_a_retry_that_faults_again_stalls_again(board):
    board.unit.translate(SID, VA, True)
    board.command(resume(SID, 0), SYNC)
    assert board.outcomes[0].result.record[1] & 0xFFFF == 1
    assert [event[1] & 0xFFFF for event in board.events()] == [0, 1]


@pytest.mark.parametrize("abort", [False, True])
def test_termination_aborts(board, abort):
    board.unit.translate(SID, VA, True)
    board.command(resume(SID, 0, retry=False, abort=abort), SYNC)
    assert board.outcomes[0].result is None


@pytest.mark.parametrize("command", [resume(SID, 7), resume(9, 0), resume(9, 0, retry=False), stall_term(9)])
def test_other_tags_and_streams_are_not_touched(board, command):
    board.unit.translate(SID, VA, True)
    board.command(command, SYNC)
    assert not board.cmdq_error()
    assert set(board.unit.stalls.waiting) == {0} and board.outcomes == []


def test_stall_term_aborts_every_stall_of_a_stream(board):
    board.context(9, vmid=4, extra=S)
    for sid, va in ((SID, VA), (SID, VA + 0x1000), (9, VA)):
        board.unit.translate(sid, va, True)
    board.command(stall_term(SID), SYNC)
    assert [(outcome.request.sid, outcome.result) for outcome in board.outcomes] == [(SID, None)] * 2
    assert [request.sid for request in board.unit.stalls.waiting.values()] == [9]


def test_clearing_smmuen_terminates_all(board):
    board.unit.translate(SID, VA, True)
    board.w32(0x20, 0b1100)
    assert board.outcomes[0].result is None and not board.unit.stalls.waiting


def test_configuration_errors_and_external_aborts_do_not_stall(board):
    board.memory.write64(board.root + 8 * (VA >> 39), 0x4000_0003)
    assert not board.unit.translate(SID, VA, True).record[1] & STALL
    board.set_ste(SID, ste_stage1(board.pointer, extra1=1 << 27))
    assert board.unit.translate(SID, VA, True).name == "C_BAD_CD"  # S1STALLD with CD.S
    assert not board.unit.stalls.waiting


def test_a_full_queue_holds_stalls_back_without_overflow(board):
    for page in range(16):
        board.unit.translate(SID, VA + 0x1000 * page, True)
    held = board.unit.translate(SID, VA + 0x20000, True)
    assert held.record == () and len(board.unit.stalls.unrecorded) == 1
    assert not board.r32(0x100A8) >> 31
    board.map1(board.root, VA + 0x20000, 0x400000)
    board.w32(0x100AC, 1)  # one place: the transaction is tried as though it had just arrived
    assert board.outcomes[-1].result == 0x400000
    assert board.unit.stalls.unrecorded == ()


def test_no_more_than_stall_max_wait():
    board = Stage1Board(stall_model=0, stall_max=2)
    board.context(extra=S)
    board.context(9, extra=S)
    assert board.r32(0x14) >> 16 == 2
    for page in range(3):
        board.unit.translate(SID, VA + 0x1000 * page, True)
    assert len(board.unit.stalls.waiting) == 2 and len(board.unit.stalls.unrecorded) == 1
    board.command(resume(SID, 0, retry=False), SYNC)
    assert set(board.unit.stalls.waiting) == {1, 2}


def test_permission_faults_stall_too(board):
    board.map1(board.root, VA, 0x400000, PAGE1 | RO)
    assert board.unit.translate(SID, VA, True).record[1] == 2 << 40 | STALL
    board.map1(board.root, VA, 0x400000)
    board.command(nh_all(3), resume(SID, 0), SYNC)
    assert board.outcomes[0].result == 0x400000


def test_stage_2_stalls_by_its_own_bit():
    board = Stage1Board(stall_model=0)
    board.outcomes = []
    board.unit.stalls.listener = board.outcomes.append
    _, root, root2 = board.nested(extra2=1 << 57)
    board.map1(root, VA, 0x600000, offset=OFFSET)
    fault = board.unit.translate(SID, VA, True)
    assert fault.record == (0x10 | SID << 32, 2 << 40 | 1 << 39 | STALL, VA, 0x600000)
    board.map(root2, 0x600000, 0x700000)
    board.command(resume(SID, 0), SYNC)
    assert board.outcomes[0].result == 0x700000
    # stage 1 of the same stream terminates
    assert not board.unit.translate(SID, VA + 0x1000, True).record[1] & STALL


def test_stalls_survive_a_snapshot(board):
    board.unit.translate(SID, VA, True)
    state = board.unit.save()
    board.command(resume(SID, 0, retry=False), SYNC)
    board.unit.restore(state)
    assert set(board.unit.stalls.waiting) == {0}


@pytest.mark.parametrize("command", [resume(SID, 0), stall_term(SID)])
def test_the_commands_are_illegal_where_there_are_no_stalls(command):
    board = Stage1Board()
    board.command(command)
    assert board.cmdq_error() == 1
