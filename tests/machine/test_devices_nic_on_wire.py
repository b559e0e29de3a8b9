# SPDX-License-Identifier: GPL-2.0-or-later
"""The card on a real cable: its frames reach the host kernel's network stack and the answers reach its rings."""

import struct
import time

import pytest

from machine.devices.nic import Nic
from machine.dma import DmaFabric
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.network import WireError, open_wire
from machine.network.namespace import why_not
from machine.network.packets import arp, echo, ip, parse_arp, parse_echo
from machine.network.wire import PEER_IP, STATION_IP, STATION_MAC

DESCRIPTOR = struct.Struct("<QHHHH")
LOG2SIZE, SIZE = 6, 64
TX_RING, RX_RING, TX_BUFFERS, RX_BUFFERS, BUFFER = 0x1000, 0x2000, 0x10_0000, 0x20_0000, 0x1000
EOP, DONE = 1, 1 << 15


class Station:
    """The least driver: 4 KiB buffers, frames spread over as many as they need."""

    def __init__(self, wire):
        bus = SystemBus(PhysicalMemory(4 << 20))
        self.memory = bus.memory
        self.nic = Nic(DmaFabric(bus).port(0x18), wire, STATION_MAC)
        for ring, base in ((0x40, TX_RING), (0x60, RX_RING)):
            self.nic.write(ring, 4, base)
            self.nic.write(ring + 8, 4, LOG2SIZE)
        for index in range(SIZE):
            self.memory.write(RX_RING + 16 * index, DESCRIPTOR.pack(RX_BUFFERS + index * BUFFER, BUFFER, 0, 0, 0))
        self.tx_tail = self.rx_next = 0
        self.nic.write(0x04, 4, 1)
        self.nic.write(0x6C, 4, SIZE - 1)

    def send(self, frame):
        for at in range(0, len(frame), BUFFER):
            address = TX_BUFFERS + self.tx_tail * BUFFER
            part = frame[at : at + BUFFER]
            self.memory.write(address, part)
            flags = EOP if at + BUFFER >= len(frame) else 0
            self.memory.write(TX_RING + 16 * self.tx_tail, DESCRIPTOR.pack(address, len(part), flags, 0, 0))
            self.tx_tail = (self.tx_tail + 1) % SIZE
        self.nic.write(0x4C, 4, self.tx_tail)

    def receive(self, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not self.nic.poll(1):
            left = deadline - time.monotonic()
            assert left > 0, "no frame arrived"
            self.nic.wire.wait(left)
        frame = b""
        while True:
            at = RX_RING + 16 * self.rx_next
            address, length, flags, written, _ = DESCRIPTOR.unpack(self.memory.read(at, 16))
            assert flags & DONE
            frame += self.memory.read(address, written)
            self.memory.write(at, DESCRIPTOR.pack(address, length, 0, 0, 0))
            self.nic.write(0x6C, 4, self.rx_next)
            self.rx_next = (self.rx_next + 1) % SIZE
            if flags & EOP:
                return frame

    def expect(self, parse):
        while (answer := parse(self.receive())) is None:
            pass
        return answer


@pytest.fixture(params=["namespace", "tap", "in-process"])
def wire_kind(request):
    if request.param != "in-process" and why_not():
        pytest.skip(why_not())
    return request.param


def plug_in(kind, echo):
    try:
        return Station(open_wire(kind, echo))
    except WireError as error:
        pytest.skip(str(error))


def test_pings_through_the_rings_are_answered(wire_kind):
    station = plug_in(wire_kind, echo=False)
    us, them = ip(STATION_IP), ip(PEER_IP)
    station.send(arp(1, STATION_MAC, us, bytes(6), them))
    peer = station.expect(parse_arp).sender_mac
    for number in range(40):
        payload = bytes([number]) * (56, 8972)[number & 1]
        station.send(echo(8, (STATION_MAC, peer), (us, them), 1, number, payload))
        answer = station.expect(parse_echo)
        assert (answer.kind, answer.sequence, answer.payload) == (0, number, payload)
    assert not station.nic.dma_error
    station.nic.wire.close()


def test_frames_of_any_size_cross_the_cable_and_return(wire_kind):
    station = plug_in(wire_kind, echo=True)
    for size in (14, 60, 61, 1514, 4096, 4097, 8192, 9014, 9018):
        frame = (bytes(range(12)) + b"\x12\x34" + bytes(index * size & 0xFF for index in range(9018)))[:size]
        station.send(frame)
        assert station.receive() == frame
    assert station.nic.wire.lost == 0
    station.nic.wire.close()
