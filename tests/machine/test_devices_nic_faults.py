# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card when its DMA is blocked, its interrupts, its snapshots, and software that means harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic_rig import (
    BAR,
    BUFFERS,
    CTRL,
    DONE,
    EOP,
    ERROR,
    HEAD,
    IRQ_MASK,
    IRQ_STATUS,
    RX,
    RX_RING,
    STATUS,
    TAIL,
    TX,
    TX_RING,
    Rig,
    frame,
)

from machine.interrupts import MessageInterrupts
from machine.iommu.unit import Fault


@pytest.fixture
def rig():
    return Rig()


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
