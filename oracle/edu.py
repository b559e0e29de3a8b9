# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's ``edu`` device (QEMU: docs/specs/edu.rst) as a DMA engine whose every transfer can be recognised.

The device has a buffer of 4 KiB that only its own DMA can fill or empty, and it starts a transfer 100 ms of virtual
time after it was told to.  With QEMU's instruction counter and a processor that sleeps, virtual time jumps straight to
that moment, so the transfer is done as fast as it can be polled for.

While the buffer is filled the IOMMU must let DMA through.  Its lower part then holds *tokens*, 8-byte values found
nowhere else in memory: a write of one shows where it went.  The upper part takes what reads bring in.
"""

import os
from collections.abc import Callable, Sequence
from typing import Final

from machine.memory import PhysicalMemory
from oracle import qtest
from oracle.process import ModelDied
from oracle.qtest import Qtest

SCRATCH: Final = 0x10_0000
"""Where in RAM tokens lie while a buffer is filled."""
BUFFER: Final = 0x40000
"""Where the device's own buffer begins, as DMA addresses of the device."""
BUFFER_SIZE: Final = 4096
TOKENS: Final = 480
"""Tokens in the buffer, 8 bytes each."""
LANDING: Final = 8 * TOKENS
"""Offset in the buffer at which reads put what they bring in."""

_SOURCE: Final = 0x80
_DESTINATION: Final = 0x88
_COUNT: Final = 0x90
_COMMAND: Final = 0x98
_RUN: Final = 1
_TO_DEVICE: Final = 1
_TO_MEMORY: Final = 3

EDU_ID: Final = 0x11E8_1234
"""Device and vendor id in configuration space."""


def token(device: int, number: int) -> bytes:
    """The 8 bytes in slot ``number`` of device ``device``; the first four suffice to tell it from all others.

    They are odd at both ends, so that no table entry equals them.
    """
    low = (device & 0x7F) << 25 | (number & 0x1FF) << 16 | 0x5A01
    return (0xD0A7_C3E1 << 32 | low).to_bytes(8, "little")


class Edu:
    """The device number ``index`` with its registers at ``bar``."""

    def __init__(self, connection: Qtest, index: int, bar: int) -> None:
        self._ask: Final = connection.ask
        self._send: Final = connection.send
        self.index: Final = index
        self._bar: Final = bar
        self._busy: Final = qtest.read(bar + _COMMAND, 4)
        self._next = 0

    def tokens(self) -> bytes:
        """This device's tokens as :meth:`load` expects them in memory."""
        return b"".join(token(self.index, number) for number in range(TOKENS))

    def load(self, scratch: int) -> None:
        """Fill the token part of the buffer from machine address ``scratch``; DMA must not be translated now."""
        self.run(self.transfer(scratch, 0, 8 * TOKENS, False))

    def next_token(self) -> int:
        """Slot of the token to write next."""
        self._next = (self._next + 1) % TOKENS
        return self._next

    def transfer(self, address: int, offset: int, length: int, to_memory: bool) -> list[str]:
        """The requests that start a transfer between DMA address ``address`` and ``offset`` in the buffer."""
        bar = self._bar
        local = BUFFER + offset
        source, destination = (local, address) if to_memory else (address, local)
        return [
            qtest.write(bar + _SOURCE, 8, source),
            qtest.write(bar + _DESTINATION, 8, destination),
            qtest.write(bar + _COUNT, 8, length),
            qtest.write(bar + _COMMAND, 8, _TO_MEMORY if to_memory else _TO_DEVICE),
        ]

    @property
    def busy(self) -> str:
        """The request whose answer has bit 0 set while a transfer is under way."""
        return self._busy

    def run(self, start: Sequence[str], then: Sequence[str] = ()) -> list[int]:
        """Start a transfer, wait for its end; the answers to the requests ``then``, taken after the end."""
        self._send(start)
        requests = [self._busy, *then]
        while True:
            os.sched_yield()  # to QEMU's thread that moves virtual time on
            answers = self._ask(requests)
            if not answers[0] & _RUN:
                return answers[1:]


ConfigSpace = Callable[[int, int, int | None], int]
"""Read (value ``None``) or write 32 bits of configuration space: requester id, offset, value."""


def plug_in(connection: Qtest, config: ConfigSpace, memory: PhysicalMemory, sid: int, index: int, bar: int) -> Edu:
    """Give the device at ``sid`` its registers at ``bar`` and the right to issue DMA, and fill its buffer.

    The page at the start of what the model calls RAM is used for a moment; :class:`ModelDied` if no edu is there.
    """
    found = config(sid, 0x00, None)
    if found != EDU_ID:
        raise ModelDied(f"expected an edu device, configuration space says {found:#x}")
    config(sid, 0x10, bar)
    config(sid, 0x04, 6)  # memory space, bus master
    edu = Edu(connection, index, bar)
    scratch = connection.ram_start + SCRATCH
    content = edu.tokens()
    memory.write(scratch, content)
    edu.load(scratch)
    memory.write(scratch, bytes(len(content)))
    return edu


def run_together(connection: Qtest, devices: Sequence[Edu], start: Sequence[str], then: Sequence[str]) -> list[int]:
    """Start a transfer on each of several devices, wait until all are done; the answers to ``then``."""
    connection.send(start)
    requests = [*(device.busy for device in devices), *then]
    count = len(devices)
    while True:
        os.sched_yield()
        answers = connection.ask(requests)
        if not any(answer & _RUN for answer in answers[:count]):
            return answers[count:]
