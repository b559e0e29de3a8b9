# SPDX-License-Identifier: GPL-2.0-or-later
"""What every DMA master has: a BAR of 32-bit registers, a port into memory, message interrupts.

A device may aim its own DMA at its own registers, or at those of a device that aims back.  On the bus such a
write is posted and arrives after the access that caused it; here it waits until the operation under way has
finished, so devices never run inside themselves.  A pair of devices that feed each other would never come to
rest: after :data:`SETTLE_LIMIT` such writes the rest waits for the next access or :meth:`BusMaster.kick`.
"""

from collections import deque
from typing import Any, Final

from base.units import U32_MAX
from machine.dma import DmaPort
from machine.mmio import SystemBus

BAR_SIZE: Final = 0x1000
SETTLE_LIMIT: Final = 64
"""Posted register writes that one access may carry out before the device comes to rest."""
POSTED_LIMIT: Final = 4096
"""Posted register writes that may wait; more are dropped and counted."""
_ADDRESS_END: Final = 1 << 64


class BusMaster:
    """A function with one BAR.  Subclasses give ``_load``, ``_store`` and, for late work, ``_work``."""

    def __init__(self, port: DmaPort) -> None:
        self.port = port
        self.dma_faults = 0
        """DMA requests of this device that were blocked."""
        self.interrupts = 0
        """Messages that reached the bus; those that were blocked count as faults."""
        self.posted_dropped = 0
        self._msi_address = 0
        self._msi_data = 0
        self._busy = False
        self._posted: deque[tuple[int, int]] = deque()

    def attach(self, bus: SystemBus, base: int) -> None:
        """Let the BAR's 4 KiB answer at machine address ``base``."""
        bus.map(base, BAR_SIZE, self)

    # Registers: 4-byte accesses; 8 bytes are two of them, low half first; narrower reads give the part asked
    # for, narrower or unaligned writes are dropped.

    def read(self, offset: int, size: int) -> int:
        if size == 4 and not offset & 3:
            return self._load(offset)
        word = offset & ~3
        value = self._load(word) | self._load(word + 4) << 32 | self._load(word + 8) << 64
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset & 3 or size not in (4, 8):
            return
        words = [(offset, value & U32_MAX)]
        if size == 8:
            words.append((offset + 4, value >> 32 & U32_MAX))
        if len(self._posted) + len(words) > POSTED_LIMIT:
            self.posted_dropped += len(words)
        else:
            self._posted.extend(words)
        if not self._busy:
            self._settle()

    def kick(self) -> None:
        """Carry on with posted register writes and unfinished work, if any wait."""
        if not self._busy:
            self._settle()

    def _settle(self) -> None:
        self._busy = True
        try:
            for _ in range(SETTLE_LIMIT):
                if not self._posted:
                    break
                offset, value = self._posted.popleft()
                self._store(offset, value)
        finally:
            self._busy = False

    def _load(self, offset: int) -> int:
        """The 32-bit register at ``offset`` (a multiple of 4, possibly past the BAR's last register)."""
        raise NotImplementedError

    def _store(self, offset: int, value: int) -> None:
        """Write the 32-bit register at ``offset`` (a multiple of 4)."""
        raise NotImplementedError

    # DMA.  A request that would run past the last 64-bit address never leaves the device; it counts as a fault.

    def _dma_read(self, iova: int, length: int) -> bytes | None:
        """``length`` bytes, or ``None`` when the request was blocked (and counted)."""
        if iova + length <= _ADDRESS_END:
            data = self.port.read(iova, length)
            if isinstance(data, bytes):
                return data
        self.dma_faults += 1
        return None

    def _dma_write(self, iova: int, data: bytes) -> bool:
        """Whether ``data`` arrived whole; counted if not."""
        if iova + len(data) <= _ADDRESS_END and self.port.write(iova, data) is None:
            return True
        self.dma_faults += 1
        return False

    def _send_message(self) -> bool:
        """Raise the message interrupt, if software gave it an address; ``False`` when it was blocked."""
        if not self._msi_address:
            return True
        if not self._dma_write(self._msi_address, self._msi_data.to_bytes(4, "little")):
            return False
        self.interrupts += 1
        return True

    # Snapshots.  The wire or bus beyond the device is not part of it.

    def _save_bus_master(self) -> Any:
        return (
            self.dma_faults,
            self.interrupts,
            self.posted_dropped,
            self._msi_address,
            self._msi_data,
            tuple(self._posted),
            tuple(self.port.faults),
        )

    def _restore_bus_master(self, state: Any) -> None:
        self.dma_faults, self.interrupts, self.posted_dropped = state[:3]
        self._msi_address, self._msi_data = state[3:5]
        self._posted = deque(state[5])
        self.port.faults[:] = state[6]
