# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card against its datasheet: rings, write-back, drops, DMA faults, message interrupts."""

from collections import deque
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine.devices.nic import Nic
from machine.dma import DmaFabric
from machine.interrupts import MessageInterrupts
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

DESCRIPTOR = Struct("<QHHHH")
EOP, ERROR, DONE = 1, 1 << 14, 1 << 15
CTRL, STATUS, IRQ_MASK, IRQ_STATUS = 0x04, 0x08, 0x14, 0x18
TX, RX = 0x40, 0x60
TAIL, HEAD = 0x0C, 0x10
BAR = 0xF000_0000
MAC = bytes.fromhex("02509e000002")
TX_RING, RX_RING = 0x1_0000, 0x2_0000
BUFFERS = 0x10_0000
SBDF = 0x18


class FaultingUnit:
    """Identity, except for the 4 KiB pages in ``blocked``."""

    def __init__(self):
        self.blocked = set()

    def translate(self, sid, iova, write):
        if iova >> 12 in self.blocked:
            return Fault("fake", sid, iova, write, 1, "blocked by the test")
        return iova


class ScriptedWire:
    description = "scripted"
    lost = 0

    def __init__(self):
        self.sent = []
        self.arriving = deque()

    def send(self, frame):
        self.sent.append(frame)

    def receive(self):
        return self.arriving.popleft() if self.arriving else None

    def wait(self, timeout):
        return bool(self.arriving)

    def close(self):
        pass


class Rig:
    """A card with identity DMA and the few register pokes that a driver makes."""

    def __init__(self, log2size=3):
        self.bus = SystemBus(PhysicalMemory(8 << 20))
        self.memory = self.bus.memory
        self.unit = FaultingUnit()
        fabric = DmaFabric(self.bus)
        fabric.cover(self.unit)
        self.wire = ScriptedWire()
        self.nic = Nic(fabric.port(SBDF), self.wire, MAC)
        self.nic.attach(self.bus, BAR)
        self.size = 1 << log2size
        self.buffers = BUFFERS
        for ring, base in ((TX, TX_RING), (RX, RX_RING)):
            self.poke(ring, base)
            self.poke(ring + 4, 0)
            self.poke(ring + 8, log2size)
        self.poke(CTRL, 1)

    def poke(self, offset, value):
        self.bus.write32(BAR + offset, value)

    def peek(self, offset):
        return self.bus.read32(BAR + offset)

    def base(self, ring):
        return TX_RING if ring == TX else RX_RING

    def put(self, ring, index, address, length, flags=0):
        at = self.base(ring) + index % self.size * 16
        self.memory.write(at, DESCRIPTOR.pack(address, length, flags, 0, 0))

    def get(self, ring, index):
        return DESCRIPTOR.unpack(self.memory.read(self.base(ring) + index % self.size * 16, 16))

    def flags(self, ring, index):
        return self.get(ring, index)[2]

    def queue(self, *fragments, ring_doorbell=True, eop=True):
        """Put one frame's fragments behind TX_TAIL."""
        tail = self.peek(TX + TAIL)
        for number, fragment in enumerate(fragments):
            self.memory.write(self.buffers, fragment)
            last = eop and number == len(fragments) - 1
            self.put(TX, tail, self.buffers, len(fragment), EOP if last else 0)
            self.buffers += 0x4000
            tail = (tail + 1) % self.size
        if ring_doorbell:
            self.poke(TX + TAIL, tail)
        return tail

    def offer(self, *lengths):
        """Put receive buffers behind RX_TAIL; their addresses."""
        tail = self.peek(RX + TAIL)
        addresses = []
        for length in lengths:
            self.put(RX, tail, self.buffers, length)
            addresses.append(self.buffers)
            self.buffers += 0x4000
            tail = (tail + 1) % self.size
        self.poke(RX + TAIL, tail)
        return addresses

    def dma_error(self):
        return self.peek(STATUS) >> 1 & 1


@pytest.fixture
def rig():
    return Rig()


def frame(length, seed=0):
    return bytes((index * 7 + seed) & 0xFF for index in range(length))


# Registers


def test_identity_mac_and_link_read_as_the_datasheet_says(rig):
    assert rig.peek(0x00) == 0x4E494331
    assert rig.peek(0x0C) == 0x009E5002
    assert rig.peek(0x10) == 0x0200
    assert rig.peek(STATUS) == 1
    rig.nic.wire = None
    assert rig.peek(STATUS) == 0


def test_ring_base_and_size_change_only_while_disabled(rig):
    for offset in (0x40, 0x44, 0x48, 0x60, 0x64, 0x68):
        before = rig.peek(offset)
        rig.poke(offset, before + 1)
        assert rig.peek(offset) == before
    rig.poke(CTRL, 0)
    for offset in (0x40, 0x44, 0x48, 0x60, 0x64, 0x68):
        before = rig.peek(offset)
        rig.poke(offset, before + 1)
        assert rig.peek(offset) == before + 1


def test_reset_clears_itself_and_every_ring(rig):
    rig.queue(frame(60))
    rig.poke(CTRL, 2)
    assert rig.peek(CTRL) == 0
    assert [rig.peek(offset) for offset in (0x14, 0x18, 0x40, 0x48, 0x4C, 0x50, 0x60, 0x68, 0x6C, 0x70)] == [0] * 10


def test_64_bit_and_narrow_accesses_are_parts_of_32_bit_registers(rig):
    rig.poke(CTRL, 0)
    rig.bus.write64(BAR + 0x40, 0x1234_5678_9ABC_D000)
    assert (rig.peek(0x40), rig.peek(0x44)) == (0x9ABC_D000, 0x1234_5678)
    assert rig.bus.read64(BAR + 0x40) == 0x1234_5678_9ABC_D000
    assert rig.bus.load(BAR + 0x45, 1) == 0x56
    rig.bus.store(BAR + 0x40, 2, 0xFFFF)
    assert rig.peek(0x40) == 0x9ABC_D000


# Transmission


def test_a_frame_is_sent_and_its_descriptor_done(rig):
    rig.queue(frame(1500))
    assert rig.wire.sent == [frame(1500)]
    assert rig.flags(TX, 0) == EOP | DONE
    assert rig.peek(TX + HEAD) == rig.peek(TX + TAIL) == 1


def test_fragments_are_gathered_up_to_eop(rig):
    rig.queue(frame(14), frame(1000, 1), frame(7, 2))
    assert rig.wire.sent == [frame(14) + frame(1000, 1) + frame(7, 2)]
    assert [rig.flags(TX, index) for index in range(3)] == [DONE, DONE, DONE | EOP]


def test_an_unfinished_frame_waits_for_its_eop(rig):
    rig.queue(frame(100), eop=False)
    assert (rig.wire.sent, rig.flags(TX, 0), rig.peek(TX + HEAD)) == ([], 0, 0)
    rig.queue(frame(50, 1))
    assert rig.wire.sent == [frame(100) + frame(50, 1)]
    assert rig.peek(TX + HEAD) == 2


def test_the_tx_ring_wraps_around(rig):
    frames = [frame(60 + number, number) for number in range(50)]
    for number in range(0, 50, 5):
        for each in frames[number : number + 5]:
            tail = rig.queue(each, ring_doorbell=False)
            rig.nic.tx.tail = tail
        rig.poke(TX + TAIL, tail)
    assert rig.wire.sent == frames
    assert rig.peek(TX + HEAD) == 50 % rig.size


def test_a_frame_whose_fragments_wrap_is_one_frame(rig):
    for _ in range(6):
        rig.queue(frame(60))
    rig.queue(frame(100, 1), frame(100, 2), frame(100, 3))
    assert rig.wire.sent[-1] == frame(100, 1) + frame(100, 2) + frame(100, 3)
    assert [rig.flags(TX, index) for index in (6, 7, 8)] == [DONE, DONE, DONE | EOP]


def test_the_largest_frame_passes_and_one_byte_more_is_an_overrun(rig):
    rig.queue(frame(9000), frame(18))
    assert [len(each) for each in rig.wire.sent] == [9018]
    rig.queue(frame(9000), frame(19))
    assert len(rig.wire.sent) == 1
    assert [rig.flags(TX, index) for index in (2, 3)] == [DONE, DONE | ERROR | EOP]
    assert rig.nic.counters.tx_errors == 1
    assert not rig.dma_error()


def test_a_full_ring_without_eop_does_not_hang_the_card(rig):
    rig.queue(*[frame(10)] * 7, eop=False)
    assert rig.peek(TX + HEAD) == 7
    assert rig.flags(TX, 6) == DONE | ERROR
    rig.queue(frame(10))  # still the lost frame
    rig.queue(frame(60, 9))
    assert rig.wire.sent == [frame(60, 9)]


def test_a_runt_is_counted_and_not_sent(rig):
    rig.queue(frame(13))
    rig.queue(b"")
    assert (rig.wire.sent, rig.nic.counters.tx_runts) == ([], 2)
    assert rig.flags(TX, 0) == DONE | EOP


def test_nothing_is_sent_while_disabled_and_the_backlog_goes_out_on_enable(rig):
    rig.poke(CTRL, 0)
    rig.queue(frame(60))
    assert rig.wire.sent == []
    rig.poke(CTRL, 1)
    assert rig.wire.sent == [frame(60)]


def test_a_half_gathered_frame_is_fetched_again_after_a_pause(rig):
    rig.queue(frame(100), eop=False)
    rig.poke(CTRL, 0)
    rig.memory.write(BUFFERS, frame(100, 5))
    rig.poke(CTRL, 1)
    rig.queue(frame(10, 1))
    assert rig.wire.sent == [frame(100, 5) + frame(10, 1)]


# Reception


def test_a_frame_is_stored_with_its_length(rig):
    (address,) = rig.offer(2048)
    rig.wire.arriving.append(frame(1500))
    assert rig.nic.poll() == 1
    assert rig.memory.read(address, 1500) == frame(1500)
    assert rig.get(RX, 0) == (address, 2048, DONE | EOP, 1500, 0)
    assert rig.peek(RX + HEAD) == 1


def test_a_frame_is_spread_over_several_descriptors(rig):
    addresses = rig.offer(1000, 0, 1000, 1000)
    rig.wire.arriving.append(frame(2500))
    assert rig.nic.poll() == 1
    stored = [(rig.flags(RX, index), rig.get(RX, index)[3]) for index in range(4)]
    assert stored == [(DONE, 1000), (DONE, 0), (DONE, 1000), (DONE | EOP, 500)]
    whole = b"".join(rig.memory.read(at, size) for at, (_, size) in zip(addresses, stored))
    assert whole == frame(2500)


def test_the_rx_ring_wraps_around_with_frames_of_two_descriptors(rig):
    sent, got = [], []
    for number in range(30):
        addresses = rig.offer(100, 100)
        sent.append(frame(150, number))
        rig.wire.arriving.append(sent[-1])
        assert rig.nic.poll() == 1
        got.append(rig.memory.read(addresses[0], 100) + rig.memory.read(addresses[1], 50))
    assert got == sent
    assert rig.peek(RX + HEAD) == 60 % rig.size


def test_a_frame_without_room_is_dropped_and_takes_no_descriptor(rig):
    rig.offer(1000)
    rig.wire.arriving.extend([frame(1001), frame(1000)])
    assert rig.nic.poll() == 1
    assert rig.nic.counters.rx_dropped == 1
    assert rig.get(RX, 0)[3] == 1000
    rig.wire.arriving.append(frame(60))
    assert rig.nic.poll() == 0
    assert rig.nic.counters.rx_dropped == 2


def test_frames_that_arrive_while_disabled_or_are_no_frames_are_dropped(rig):
    rig.offer(9500, 9500)
    rig.wire.arriving.extend([b"", frame(13), frame(9019)])
    assert rig.nic.poll() == 0
    rig.poke(CTRL, 0)
    rig.wire.arriving.append(frame(60))
    assert rig.nic.poll() == 0
    assert rig.nic.counters.rx_dropped == 4
    assert rig.peek(RX + HEAD) == 0


def test_poll_takes_no_more_than_its_budget(rig):
    rig.offer(*[100] * 7)
    rig.wire.arriving.extend([frame(60)] * 5)
    assert rig.nic.poll(3) == 3
    assert rig.nic.poll(3) == 2
    assert rig.peek(RX + HEAD) == 5


# DMA faults


def test_a_blocked_fragment_marks_its_descriptor_and_the_card_goes_on(rig):
    rig.unit.blocked.add(BUFFERS >> 12)
    rig.queue(frame(60))
    rig.queue(frame(60, 1))
    assert rig.wire.sent == [frame(60, 1)]
    assert [rig.flags(TX, index) for index in (0, 1)] == [DONE | ERROR | EOP, DONE | EOP]
    assert rig.dma_error()
    assert len(rig.nic.port.faults) == rig.nic.dma_faults == 1


def test_dma_error_is_sticky_until_reset(rig):
    rig.unit.blocked.add(BUFFERS >> 12)
    rig.queue(frame(60))
    rig.poke(STATUS, 0xFFFF_FFFF)
    rig.poke(CTRL, 0)
    assert rig.dma_error()
    rig.poke(CTRL, 2)
    assert not rig.dma_error()


def test_a_blocked_buffer_ends_the_frame_with_an_error(rig):
    _, second, third = rig.offer(100, 100, 100)
    rig.unit.blocked.add(second >> 12)
    rig.wire.arriving.extend([frame(150), frame(80)])
    assert rig.nic.poll() == 1
    assert [rig.flags(RX, index) for index in range(3)] == [DONE, DONE | ERROR | EOP, DONE | EOP]
    assert rig.get(RX, 1)[3] == 0
    assert rig.memory.read(third, 80) == frame(80)
    assert rig.dma_error()
    assert rig.nic.counters.rx_errors == 1


def test_an_unreadable_tx_ring_stands_still_until_the_next_doorbell(rig):
    rig.unit.blocked.add(TX_RING >> 12)
    tail = rig.queue(frame(60))
    assert (rig.wire.sent, rig.peek(TX + HEAD), rig.dma_error()) == ([], 0, 1)
    rig.unit.blocked.clear()
    rig.poke(TX + TAIL, tail)
    assert rig.wire.sent == [frame(60)]


def test_an_unreadable_rx_ring_drops_frames_and_recovers(rig):
    rig.offer(100, 100)
    rig.unit.blocked.add(RX_RING >> 12)
    rig.wire.arriving.append(frame(60))
    assert rig.nic.poll() == 0
    rig.unit.blocked.clear()
    rig.wire.arriving.append(frame(60))
    assert rig.nic.poll() == 1


def test_a_write_back_that_is_blocked_still_moves_the_head():
    rig = Rig()

    def read_only(sid, iova, write):
        if write and iova >> 12 == TX_RING >> 12:
            return Fault("fake", sid, iova, write, 1, "read-only")
        return iova

    rig.unit.translate = read_only
    rig.queue(frame(60))
    rig.queue(frame(60, 1))
    assert rig.wire.sent == [frame(60), frame(60, 1)]
    assert (rig.peek(TX + HEAD), rig.flags(TX, 0), rig.dma_error()) == (2, EOP, 1)


def test_a_ring_over_a_page_boundary_loses_only_what_lies_in_the_blocked_page():
    rig = Rig(log2size=9)
    tail = 0
    for _ in range(260):
        tail = rig.queue(frame(60), ring_doorbell=False)
        rig.nic.tx.tail = tail
        rig.buffers = BUFFERS
    rig.unit.blocked.add((TX_RING >> 12) + 1)
    rig.poke(TX + TAIL, tail)
    assert len(rig.wire.sent) == 256
    assert rig.peek(TX + HEAD) == 256


def test_addresses_beyond_64_bits_are_faults(rig):
    rig.put(TX, 0, (1 << 64) - 8, 60, EOP)
    rig.poke(TX + TAIL, 1)
    assert rig.flags(TX, 0) == DONE | ERROR | EOP
    assert rig.dma_error()


# Interrupts

DOORBELL = 0xFEE0_0000


@pytest.fixture
def msi(rig):
    heard = []
    interrupts = MessageInterrupts()
    interrupts.connect(0x41, lambda: heard.append(rig.peek(IRQ_STATUS)))
    rig.bus.map(DOORBELL, 0x1000, interrupts)
    rig.poke(0x1C, DOORBELL)
    rig.poke(0x24, 0x41)
    return heard


def test_an_enabled_cause_sends_one_message_until_it_is_cleared(rig, msi):
    rig.poke(IRQ_MASK, 3)
    rig.queue(frame(60))
    rig.queue(frame(60))
    assert msi == [2]
    rig.poke(IRQ_STATUS, 2)
    rig.queue(frame(60))
    assert msi == [2, 2]
    rig.offer(100)
    rig.wire.arriving.append(frame(60))
    rig.nic.poll()
    assert msi == [2, 2, 3]


def test_a_masked_cause_is_pending_and_fires_when_unmasked(rig, msi):
    rig.queue(frame(60))
    assert (msi, rig.peek(IRQ_STATUS)) == ([], 2)
    rig.poke(IRQ_MASK, 2)
    assert msi == [2]
    rig.poke(IRQ_MASK, 3)
    assert msi == [2]


def test_no_message_without_an_address(rig):
    rig.poke(IRQ_MASK, 3)
    rig.queue(frame(60))
    assert (rig.nic.interrupts, rig.nic.dma_faults) == (0, 0)


def test_descriptors_are_written_before_the_message_arrives(rig):
    seen = []
    interrupts = MessageInterrupts()
    interrupts.connect(7, lambda: seen.append((rig.flags(TX, 0), rig.peek(TX + HEAD))))
    rig.bus.map(DOORBELL, 0x1000, interrupts)
    rig.poke(0x1C, DOORBELL)
    rig.poke(0x24, 7)
    rig.poke(IRQ_MASK, 2)
    rig.queue(frame(60))
    assert seen == [(DONE | EOP, 1)]


def test_a_blocked_message_is_a_dma_error(rig, msi):
    rig.unit.blocked.add(DOORBELL >> 12)
    rig.poke(IRQ_MASK, 2)
    rig.queue(frame(60))
    assert msi == []
    assert rig.dma_error()


def test_an_interrupt_handler_may_program_the_card(rig):
    def handler():
        rig.poke(IRQ_STATUS, 2)
        if len(rig.wire.sent) < 5:
            rig.queue(frame(60))

    interrupts = MessageInterrupts()
    interrupts.connect(1, handler)
    rig.bus.map(DOORBELL, 0x1000, interrupts)
    rig.poke(0x1C, DOORBELL)
    rig.poke(0x24, 1)
    rig.poke(IRQ_MASK, 2)
    rig.queue(frame(60))
    assert len(rig.wire.sent) == 5


def test_a_card_that_messages_its_own_doorbell_comes_to_rest(rig):
    rig.poke(0x1C, BAR + TX + TAIL)
    rig.poke(0x24, 5)
    rig.poke(IRQ_MASK, 2)
    for index in range(8):
        rig.put(TX, index, BUFFERS, 60, EOP)
    rig.poke(TX + TAIL, 1)
    assert rig.peek(TX + HEAD) == 5


# Snapshots and abuse


def test_restore_brings_back_registers_and_the_half_gathered_frame(rig):
    rig.queue(frame(100), eop=False)
    state = rig.nic.save()
    rig.queue(frame(60, 1))
    rig.unit.blocked.add(rig.buffers >> 12)
    rig.queue(frame(60, 2))
    rig.poke(CTRL, 2)
    rig.nic.restore(state)
    assert rig.nic.port.faults == []
    assert rig.nic.save() == state
    rig.put(TX, 1, BUFFERS, 20, EOP)
    rig.poke(TX + TAIL, 2)
    assert rig.wire.sent[-1] == frame(100) + frame(20)


OFFSETS = st.sampled_from([*range(0, 0x80, 4), 0x41, 0xFFC, 0x1000])
VALUES = st.one_of(
    st.integers(0, 0xFFFF_FFFF), st.integers(0, 8), st.sampled_from([TX_RING, RX_RING, BAR, BAR + 0x40, 0xFFFF_FFFF])
)


@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(st.tuples(OFFSETS, st.sampled_from([1, 2, 4, 8]), VALUES), max_size=25),
    ring=st.binary(min_size=128, max_size=128),
    frames=st.lists(st.binary(max_size=200), max_size=3),
)
def test_no_register_write_and_no_descriptor_makes_the_card_raise(writes, ring, frames):
    rig = Rig()
    rig.memory.write(TX_RING, ring)
    rig.memory.write(RX_RING, ring)
    rig.unit.blocked.add(3)
    for offset, size, value in writes:
        rig.nic.write(offset, size, value)
        rig.wire.arriving.extend(frames)
        rig.nic.poll()
        assert 0 <= rig.nic.read(offset, size) < 1 << 8 * size


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 700), min_size=1, max_size=4), min_size=1, max_size=20),
    buffer_size=st.integers(100, 2048),
)
def test_whatever_goes_round_comes_back_the_same(sizes, buffer_size):
    rig = Rig(log2size=6)
    for fragments in sizes:
        rig.buffers = BUFFERS
        parts = [frame(size, number) for number, size in enumerate(fragments)]
        rig.queue(*parts)
        whole = b"".join(parts)
        if len(whole) < 14:
            assert rig.wire.sent == []
            continue
        assert rig.wire.sent.pop() == whole
        needed = -(-len(whole) // buffer_size)
        first = rig.peek(RX + HEAD)
        addresses = rig.offer(*[buffer_size] * needed)
        rig.wire.arriving.append(whole)
        assert rig.nic.poll() == 1
        written = [rig.get(RX, first + index)[3] for index in range(needed)]
        assert b"".join(rig.memory.read(at, size) for at, size in zip(addresses, written)) == whole
        assert rig.flags(RX, first + needed - 1) == DONE | EOP
