# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets as fast as they go: the streaming phase of ``pviommu run``.

What a fast driver does, the card's driver does here: bursts with one doorbell, frames in one piece, receive pages that
are posted again with their mapping (page_pool).  Each transmitted page is mapped and unmapped; every byte that comes
back is compared.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from abi.errno import errno_name
from guest_driver.net.flood import EchoFlood
from guest_driver.net.stack import NetStack
from guest_driver.nic import Nic as NicDriver
from machine.network.wire import MTU, PEER_IP, STATION_IP, Wire
from testbed.build import TestBed
from testbed.pump import NoReply, Pump

PACKET_BYTES: Final = 1500
"""The IP packet."""
HEADERS: Final = 28
"""Bytes of IP and ICMP header in it; the rest is compared."""
BURST: Final = 64
RING_LOG2: Final = 8
"""Rings that hold some bursts, so that none is lost while the other side has the processor."""
_IDENT: Final = 0x5346


@dataclass(slots=True)
class StreamReport:
    """What went through the card, and how long it took."""

    packet_bytes: int
    burst: int
    sent: int = 0
    returned: int = 0
    bytes_compared: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Processor time of this process, the host kernel's work on its behalf included."""
    wire_seconds: float = 0.0
    """Of ``seconds``, inside the wire: the host's system calls and network stack, or the peer in this process."""

    @property
    def packets_per_second(self) -> float:
        """Packets that the card moved, sent and received, per second."""
        return (self.sent + self.returned) / self.seconds if self.seconds else 0.0

    @property
    def packets_per_cpu_second(self) -> float:
        """The same per second of processor time: what one core of its own would do."""
        return (self.sent + self.returned) / self.cpu_seconds if self.cpu_seconds else 0.0


class TimedWire:
    """``wire``, with the time that is spent in it."""

    def __init__(self, wire: Wire) -> None:
        self._wire: Final = wire
        self._send: Final = wire.send
        self._receive: Final = wire.receive
        self.seconds = 0.0

    @property
    def lost(self) -> int:
        return self._wire.lost

    @property
    def description(self) -> str:
        return self._wire.description

    def send(self, frame: bytes) -> None:
        started = time.perf_counter()
        self._send(frame)
        self.seconds += time.perf_counter() - started

    def receive(self) -> bytes | None:
        started = time.perf_counter()
        frame = self._receive()
        self.seconds += time.perf_counter() - started
        return frame

    def wait(self, timeout: float) -> bool:
        started = time.perf_counter()
        ready = self._wire.wait(timeout)
        self.seconds += time.perf_counter() - started
        return ready

    def close(self) -> None:
        self._wire.close()


def stream(
    testbed: TestBed,
    nic: NicDriver,
    wire: TimedWire,
    packets: int,
    failures: list[str],
    progress: Callable[[int], None] | None = None,
) -> StreamReport:
    """Send ``packets`` echo requests through ``nic``, plugged into ``wire``, and take the replies back."""
    report = StreamReport(PACKET_BYTES, BURST)
    stack = NetStack(nic, STATION_IP, MTU, head_bytes=MTU)
    flood = EchoFlood(stack, PEER_IP, PACKET_BYTES - HEADERS, _IDENT)
    pump = Pump(testbed.nic, wire)
    pump.restart()
    try:
        _, error = stack.resolve(IPv4Address(PEER_IP).packed, 1 << 30, pump)
        wire.seconds = 0.0
        started, started_cpu = time.perf_counter(), time.process_time()
        while flood.returned < packets and not error:
            ret = flood.burst(min(BURST, packets - flood.sent))
            error = f"an echo request could not be sent ({errno_name(ret)})" if ret else ""
            pump.restart()
            nic.poll()
            while not error and flood.collect():
                pump()
                nic.poll()
                error = flood.errors[0] if flood.errors else ""
            if progress is not None:
                progress(flood.returned)
        report.seconds = time.perf_counter() - started
        report.cpu_seconds = time.process_time() - started_cpu
    except NoReply as missing:
        error = f"{missing}, {flood.outstanding} of {flood.sent} echo requests are unanswered"
    report.wire_seconds = wire.seconds
    report.sent, report.returned, report.bytes_compared = flood.sent, flood.returned, flood.compared
    if error:
        failures.append(f"stream: {error}")
    stack.close()
    return report
