# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands queued in one go do what the same commands do when the unit is told of each."""

from hypothesis import given
from hypothesis import strategies as st
from smmuv3_board import CFGI_ALL, NSNH_ALL, SYNC, Board, cfgi_ste, s2_ipa, vmall
from vtd_machine import FSTS, IQERCD, IQH, IQT, VtdMachine, cc_domain, iotlb_domain, iotlb_pages, wait_status

WORD = 0x9000
VTD_COMMANDS = [
    iotlb_pages(1, 0x1000),
    iotlb_pages(2, 0x40_0000, 9),
    iotlb_domain(1),
    cc_domain(3),
    wait_status(1),
    wait_status(7, WORD),
    wait_status(3, 0x7FFF_FFF8),
    (0x65, 3),  # reserved bit of the status address
    (0xF, 0),  # no such type
    (0x15, 0),  # an interrupt on completion
    (iotlb_pages(1, 0)[0], 63),  # a mask beyond MAMV
]


def drive_vtd(commands, one_by_one):
    machine = VtdMachine().start()
    for k, (low, high) in enumerate(commands):
        machine.memory.write64(machine.ring + 16 * k, low)
        machine.memory.write64(machine.ring + 16 * k + 8, high)
    for tail in range(1, len(commands) + 1) if one_by_one else [len(commands)]:
        machine.w64(IQT, 16 * tail)
    registers = [machine.r32(offset) for offset in (FSTS, IQH, IQERCD)]
    stored = [machine.memory.read64(address) for address in (0x8000, WORD)]
    return registers, stored, machine.unit.counters


@given(st.lists(st.sampled_from(VTD_COMMANDS), min_size=1, max_size=12))
def test_vtd_descriptors_in_one_go_are_the_descriptors_one_by_one(commands):
    assert drive_vtd(commands, False) == drive_vtd(commands, True)


SMMUV3_COMMANDS = [
    s2_ipa(3, 0x1000),
    s2_ipa(3, 0x40_0000, num=3, scale=2, tg=1, leaf=0),
    vmall(3),
    NSNH_ALL,
    CFGI_ALL,
    cfgi_ste(8),
    SYNC,
    (0x46 | 1 << 12 | 5 << 32, WORD),  # a message when done
    (0x46 | 1 << 12 | 6 << 32, 0x7FFF_FFFC),  # a message to where nothing is
    (0x46 | 3 << 12, 0),  # a reserved signal
    (0x03 | 1 << 10, 0),  # the Secure half
    (0x99, 0),  # no such command
]


def drive_smmuv3(commands, one_by_one):
    board = Board()
    if one_by_one:
        for command in commands:
            board.command(command)
    else:
        board.command(*commands)
    registers = [board.r32(offset) for offset in (0x98, 0x9C, 0x60, 0x64)]
    return registers, board.memory.read64(WORD), board.pulses, board.unit.counters


@given(st.lists(st.sampled_from(SMMUV3_COMMANDS), min_size=1, max_size=12))
def test_smmuv3_commands_in_one_go_are_the_commands_one_by_one(commands):
    assert drive_smmuv3(commands, False) == drive_smmuv3(commands, True)
