# SPDX-License-Identifier: GPL-2.0-or-later
"""The copier against its datasheet: lists, page boundaries, where a fault leaves it, messages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.devices.copier import (
    CTRL_RESET,
    CTRL_STEPPED,
    ERROR_DESTINATION,
    ERROR_FETCH,
    ERROR_INVALID,
    ERROR_SOURCE,
    FLAG_INTERRUPT,
    FLAG_LAST,
    MAX_LENGTH,
    STATUS_BUSY,
    STATUS_DONE,
    STATUS_ERROR,
    Copier,
    pack_descriptor,
)
from machine.dma import DmaFabric
from machine.interrupts import MessageInterrupts
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

BAR = 0xF000_0000
LIST, SOURCE, TARGET = 0x1_0000, 0x10_0000, 0x20_0000
CTRL, STATUS, CODE, INDEX, COMPLETED, LIST_LO, COUNT, DOORBELL = 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x20, 0x24
MSI_LO, MSI_DATA, MSI_LOST = 0x28, 0x30, 0x34


class BlockingUnit:
    """Identity; ``blocked`` holds (page, write) pairs that fault."""

    def __init__(self):
        self.blocked = set()
        self.requests = []

    def translate(self, sid, iova, write):
        self.requests.append((iova, write))
        if (iova >> 12, write) in self.blocked:
            return Fault("fake", sid, iova, write, 1, "blocked by the test")
        return iova


class Rig:
    def __init__(self):
        self.bus = SystemBus(PhysicalMemory(8 << 20))
        self.memory = self.bus.memory
        self.unit = BlockingUnit()
        fabric = DmaFabric(self.bus)
        fabric.cover(self.unit)
        self.copier = Copier(fabric.port(0x20))
        self.copier.attach(self.bus, BAR)

    def poke(self, offset, value):
        self.bus.write32(BAR + offset, value)

    def peek(self, offset):
        return self.bus.read32(BAR + offset)

    def start(self, *descriptors, at=LIST):
        self.memory.write(at, b"".join(pack_descriptor(*each) for each in descriptors))
        self.bus.write64(BAR + LIST_LO, at)
        self.poke(COUNT, len(descriptors))
        self.poke(DOORBELL, 1)


@pytest.fixture
def rig():
    return Rig()


def pattern(length, seed=0):
    return bytes((index * 13 + seed) & 0xFF for index in range(length))


def test_a_list_is_copied_and_reported_done(rig):
    rig.memory.write(SOURCE, pattern(9000))
    rig.start((SOURCE, TARGET + 100, 5000), (SOURCE + 5000, TARGET + 5100, 4000))
    assert rig.memory.read(TARGET + 100, 9000) == pattern(9000)
    assert (rig.peek(STATUS), rig.peek(COMPLETED), rig.peek(CODE)) == (STATUS_DONE, 2, 0)
    assert rig.copier.bytes_copied == 9000


def test_a_long_list_over_page_boundaries_is_fetched_whole(rig):
    rig.memory.write(SOURCE, pattern(2000))
    rig.start(*[(SOURCE + index, TARGET + index, 1) for index in range(2000)], at=LIST + 8)
    assert rig.memory.read(TARGET, 2000) == pattern(2000)


def test_an_empty_list_is_done_at_once(rig):
    rig.start()
    assert rig.peek(STATUS) == STATUS_DONE


def test_last_ends_the_list_before_count(rig):
    rig.start((SOURCE, TARGET, 8), (SOURCE, TARGET, 8, FLAG_LAST), (SOURCE, TARGET, 8, 0x80))
    assert (rig.peek(STATUS), rig.peek(COMPLETED)) == (STATUS_DONE, 2)


@pytest.mark.parametrize(
    ("blocked", "code", "copied"),
    [
        ((SOURCE >> 12) + 1, ERROR_SOURCE, 4096),
        (-(TARGET >> 12) - 1, ERROR_DESTINATION, 4096),
        (LIST >> 12, ERROR_FETCH, 0),
    ],
)
def test_a_fault_stops_the_list_where_it_happened(rig, blocked, code, copied):
    rig.memory.write(SOURCE, pattern(8192))
    rig.unit.blocked.add((abs(blocked), blocked < 0))
    rig.start((SOURCE, TARGET, 8192), (SOURCE, TARGET + 0x4000, 16))
    assert (rig.peek(STATUS), rig.peek(CODE), rig.peek(INDEX)) == (STATUS_ERROR, code, 0)
    assert rig.memory.read(TARGET, 8192) == pattern(8192)[:copied] + bytes(8192 - copied)
    assert rig.memory.read(TARGET + 0x4000, 16) == bytes(16)
    assert rig.copier.dma_faults == len(rig.copier.port.faults) == 1


def test_the_error_index_names_the_descriptor(rig):
    good = (SOURCE, TARGET, 8)
    rig.unit.blocked.add((5, False))
    rig.start(good, good, (0x5000, TARGET, 8), good)
    assert (rig.peek(INDEX), rig.peek(COMPLETED)) == (2, 2)


@pytest.mark.parametrize("bad", [(SOURCE, TARGET, MAX_LENGTH + 1, 0), (SOURCE, TARGET, 8, 4)])
def test_an_invalid_descriptor_is_refused_untouched(rig, bad):
    rig.memory.write(SOURCE, pattern(8))
    rig.start((SOURCE, TARGET + 0x1000, 8), bad)
    assert (rig.peek(CODE), rig.peek(INDEX)) == (ERROR_INVALID, 1)
    assert rig.memory.read(TARGET, 8) == bytes(8)


def test_a_stepped_list_goes_on_only_when_told(rig):
    rig.memory.write(SOURCE, pattern(24))
    rig.poke(CTRL, CTRL_STEPPED)
    rig.start(*[(SOURCE + at, TARGET + at, 8) for at in (0, 8, 16)])
    assert (rig.peek(STATUS), rig.peek(COMPLETED)) == (STATUS_BUSY, 0)
    assert rig.copier.step()
    rig.unit.blocked.add((TARGET >> 12, True))
    assert not rig.copier.step(5)
    assert (rig.peek(CODE), rig.peek(INDEX)) == (ERROR_DESTINATION, 1)
    assert rig.memory.read(TARGET, 24) == pattern(8) + bytes(16)


def test_leaving_stepped_mode_finishes_the_list(rig):
    rig.poke(CTRL, CTRL_STEPPED)
    rig.start((SOURCE, TARGET, 8), (SOURCE, TARGET, 8))
    rig.poke(CTRL, 0)
    assert (rig.peek(STATUS), rig.peek(COMPLETED)) == (STATUS_DONE, 2)


def test_the_list_under_way_is_latched(rig):
    rig.memory.write(SOURCE, pattern(16))
    rig.poke(CTRL, CTRL_STEPPED)
    rig.start((SOURCE, TARGET, 8), (SOURCE + 8, TARGET + 8, 8))
    rig.poke(LIST_LO, 0)
    rig.poke(COUNT, 0)
    rig.poke(DOORBELL, 1)
    assert not rig.copier.step(9)
    assert rig.memory.read(TARGET, 16) == pattern(16)
    assert rig.copier.lists == 1


def test_reset_stops_the_list(rig):
    rig.poke(CTRL, CTRL_STEPPED)
    rig.start((SOURCE, TARGET, 8))
    rig.poke(CTRL, CTRL_RESET)
    assert [rig.peek(offset) for offset in range(4, 0x38, 4)] == [0] * 13
    assert not rig.copier.step()


def test_messages_come_at_the_end_and_where_asked(rig):
    heard = []
    interrupts = MessageInterrupts()
    interrupts.connect(9, lambda: heard.append((rig.peek(STATUS), rig.peek(COMPLETED))))
    rig.bus.map(0xFEE0_0000, 0x1000, interrupts)
    rig.poke(MSI_LO, 0xFEE0_0000)
    rig.poke(MSI_DATA, 9)
    rig.start((SOURCE, TARGET, 8, FLAG_INTERRUPT), (SOURCE, TARGET, 8))
    assert heard == [(STATUS_BUSY, 1), (STATUS_DONE, 2)]
    rig.unit.blocked.add((0xFEE00, True))
    rig.start((SOURCE, TARGET, 8))
    assert rig.peek(MSI_LOST) == 1


def test_a_copier_that_rings_its_own_doorbell_comes_to_rest(rig):
    rig.memory.write(SOURCE, (1).to_bytes(4, "little"))
    rig.start((SOURCE, BAR + DOORBELL, 4))
    assert 1 < rig.copier.lists < 200
    before = rig.copier.lists
    rig.copier.kick()
    assert rig.copier.lists > before


def test_restore_resumes_a_list_under_way(rig):
    rig.memory.write(SOURCE, pattern(16))
    rig.poke(CTRL, CTRL_STEPPED)
    rig.start((SOURCE, TARGET, 8), (SOURCE + 8, TARGET + 8, 8))
    rig.copier.step()
    state = rig.copier.save()
    rig.poke(CTRL, CTRL_RESET)
    rig.copier.restore(state)
    assert rig.copier.save() == state
    assert not rig.copier.step()
    assert rig.memory.read(TARGET, 16) == pattern(16)


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.integers(0, 12000), st.integers(0, 12000), st.integers(0, 9000)), max_size=6),
    data=st.binary(min_size=64, max_size=64),
)
def test_a_list_without_overlap_does_what_slices_do(moves, data):
    rig = Rig()
    rig.memory.write(SOURCE, data * 400)
    expected = bytearray(24000)
    for source, target, length in moves:
        expected[target : target + length] = (data * 400)[source : source + length]
    rig.start(*[(SOURCE + source, TARGET + target, length) for source, target, length in moves])
    assert rig.peek(STATUS) == STATUS_DONE
    assert rig.memory.read(TARGET, 24000) == expected


@settings(max_examples=60, deadline=None)
@given(
    words=st.binary(min_size=24 * 4, max_size=24 * 4),
    writes=st.lists(
        st.tuples(st.integers(0, 0x1010), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 32)), max_size=9
    ),
)
def test_no_register_write_and_no_descriptor_makes_the_copier_raise(words, writes):
    rig = Rig()
    rig.memory.write(LIST, words)
    rig.poke(LIST_LO, LIST)
    rig.poke(COUNT, 4)
    for offset, size, value in writes:
        rig.copier.write(offset, size, value)
    rig.poke(DOORBELL, 0)
    rig.copier.step()
    assert rig.peek(STATUS) in (STATUS_BUSY, STATUS_DONE, STATUS_ERROR)
