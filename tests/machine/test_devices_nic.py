# SPDX-License-Identifier: GPL-2.0-or-later
"""The network card's registers and rings against its datasheet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic_rig import BAR, BUFFERS, CTRL, DONE, EOP, ERROR, HEAD, RX, STATUS, TAIL, TX, Rig, frame


@pytest.fixture
def rig():
    return Rig()


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
