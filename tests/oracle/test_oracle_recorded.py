# SPDX-License-Identifier: GPL-2.0-or-later
"""What is excused and what is not, with answers that a QEMU gave once: no model runs here."""

from pathlib import Path

import pytest

from machine.iommu.smmuv3 import Smmuv3Config, Smmuv3Unit
from machine.iommu.unit import Fault
from machine.mmio import SystemBus
from oracle import smmu_rig
from oracle.dma_probe import Mailbox, Prober
from oracle.edu import LANDING, token
from oracle.program import from_text
from oracle.qemu_virt import RAM_SIZE, RAM_START
from oracle.shared_ram import SharedRam
from oracle.smmu_rig import SmmuRig

UNPRIVILEGED = Path(__file__).parent / "corpus" / "qemu-smmuv3_unprivileged_request.txt"
REACHED = 0x8032_1DC0
"""Where QEMU 7.2 sent the access of that program."""


class RecordedVirt:
    def __init__(self, stage, devices, talk=False):
        self.ram = SharedRam(RAM_SIZE, RAM_START)
        self.devices = dict.fromkeys(slot << 3 for slot in range(1, 1 + devices))

    def close(self):
        self.ram.close()


class RecordedUnit:
    """Registers as our own unit has them; every access gets ``answer``."""

    answer = None
    name, seen, settled_prod = "recorded", True, 0

    def __init__(self, name, virt, identify):
        config = Smmuv3Config(stage1=True, stage2=False)
        self.mailboxes = {}
        self._twin = Smmuv3Unit(name, SystemBus(virt.ram.memory), config, None)
        self._identify = identify

    def read(self, offset, size):
        value = self._twin.read(offset, size)
        return self._identify(offset, value) if offset < 0x20 else value

    def write(self, offset, size, value):
        self._twin.write(offset, size, value)

    def write_and_read(self, offset, size, value, then):
        self.write(offset, size, value)
        return [self.read(register, width) for register, width in then]

    def probe(self, sid, iova, write, expected, guesses):
        return Fault(self.name, sid, iova, write, 0, "nothing") if self.answer is None else self.answer

    def discard(self):
        """Nothing is recorded."""

    def event(self):
        """There is nobody to tell."""


@pytest.fixture
def replayed(monkeypatch):
    """A function: the rig after a program was run on a machine whose model gives one answer to every access."""
    rigs = []

    def run(program, answer):
        monkeypatch.setattr(RecordedUnit, "answer", answer)
        monkeypatch.setattr(smmu_rig, "Virt", RecordedVirt)
        monkeypatch.setattr(smmu_rig, "QemuSmmuUnit", RecordedUnit)
        monkeypatch.setattr(smmu_rig, "program", lambda: "recorded")
        monkeypatch.setattr(smmu_rig, "major_version", lambda program: 7)
        first, *steps = from_text(program)
        rigs.append(rig := SmmuRig(*first.arguments))
        for step in steps:
            rig.steps[step.word](*step.arguments)
        return rig

    yield run
    for rig in rigs:
        rig.close()


@pytest.mark.parametrize("access", ["read", "write"])
def test_an_unprivileged_request_that_the_model_lets_through_is_excused(replayed, access):
    rig = replayed(UNPRIVILEGED.read_text().replace("read", access), REACHED)
    assert rig.differences == []
    assert sum(rig.tally.excused.values()) == 1


@pytest.mark.parametrize("answer", [None, REACHED + 0x1000], ids=["nowhere", "elsewhere"])
def test_it_is_not_excused_if_it_ends_anywhere_else(replayed, answer):
    rig = replayed(UNPRIVILEGED.read_text(), answer)
    assert len(rig.differences) == 1
    assert rig.tally.excused == {}


def test_an_access_that_our_half_lets_through_is_not_excused(replayed):
    program = "machine 1 48 0\ncontext 1\nattach 4 1\nmap 1 0x200 0x40200 1 3\nread 4 0x200000\n"
    difference = replayed(program, None).differences[0]
    assert (difference.ours, difference.model) == ("reaches 0x40200000", "nothing arrived, nothing was recorded")


# Where a DMA went.

IOVA, MAILBOX = 0x5000, Mailbox(0x9000, 0x4000)
BEYOND = 64 << 20


class Line:
    """A device and its unit: an access goes where ``routes`` sends it, beyond RAM it is lost."""

    index = 1

    def __init__(self, memory, **routes):
        self.memory = memory
        self.routes = {MAILBOX.iova: MAILBOX.maddr, IOVA: routes["to"]}
        self.landed = bytes(8)

    def next_token(self):
        return 1

    def transfer(self, address, offset, length, to_memory):
        return address, offset, length, to_memory

    def run(self, start, then):
        address, offset, length, to_memory = start
        maddr = self.routes[address]
        if maddr is not None and maddr < self.memory.size:
            if not to_memory:
                self.landed = self.memory.read(maddr, length)
            else:
                self.memory.write(maddr, self.landed if offset == LANDING else token(self.index, offset // 8))
        return [0]


@pytest.fixture
def landed():
    """A function: what the prober says of an access that really goes to ``to``."""
    ram = SharedRam(1 << 20)
    prober = Prober(None, ram, (), lambda status: False, lambda: None)

    def probe(write, to, expected, guesses=()):
        line = Line(ram.memory, to=to)
        if write:
            found = prober.write(line, IOVA, expected, guesses)
        else:
            found = prober.read(line, IOVA, expected, guesses, MAILBOX)
        return found.maddr, found.seen

    yield probe
    ram.close()


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
class TestWhereItLanded:
    def test_an_expected_place_in_ram_is_seen(self, landed, write):
        assert landed(write, 0x3000, [0x2000, 0x3000]) == (0x3000, True)

    def test_a_guess_is_seen_as_well(self, landed, write):
        assert landed(write, 0x3000, [0x2000], [0x3000]) == (0x3000, True)
        assert landed(write, 0x3000, [], [0x3000]) == (0x3000, True)

    def test_what_misses_its_place_in_ram_went_to_the_one_beyond(self, landed, write):
        assert landed(write, BEYOND, [0x2000, BEYOND]) == (BEYOND, False)

    def test_a_guess_is_not_believed_unseen(self, landed, write):
        assert landed(write, None, [], [0x3000, BEYOND]) == (None, True)

    def test_what_arrives_nowhere_although_all_places_are_ram_is_lost(self, landed, write):
        assert landed(write, None, [0x2000, 0x3000]) == (None, True)
