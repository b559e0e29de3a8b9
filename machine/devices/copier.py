# SPDX-License-Identifier: GPL-2.0-or-later
"""A scatter-gather copier: the plainest DMA master, memory to memory, no wire and no ring.

BAR0, 4 KiB, 32-bit registers, little-endian:

======  ============  ===================================================================================
offset  register
======  ============  ===================================================================================
0x00    ID            RO 0x43505931 ("CPY1")
0x04    CTRL          bit 0 STEPPED: work only when the device is stepped from outside (an interleaving aid);
                      bit 1 RESET (self-clearing): stops, and zeroes every register but ID
0x08    STATUS        RO, bit 0 BUSY, bit 1 DONE (the list ended without error), bit 2 ERROR
0x0C    ERROR_CODE    RO, 0 none, 1 descriptor not readable, 2 source not readable, 3 destination not writable,
                      4 descriptor invalid
0x10    ERROR_INDEX   RO, index of the descriptor at which ERROR was set
0x14    COMPLETED     RO, descriptors finished since the doorbell
0x18    LIST_LO       iova of the descriptor list
0x1C    LIST_HI
0x20    COUNT         descriptors in the list
0x24    DOORBELL      WO, any write starts the list; ignored while BUSY
0x28    MSI_ADDR_LO
0x2C    MSI_ADDR_HI
0x30    MSI_DATA      4-byte DMA write of MSI_DATA to MSI_ADDR when MSI_ADDR != 0: at the end of the list or at an
                      error, and after each descriptor that asks for it
0x34    MSI_LOST      RO, messages that were blocked
======  ============  ===================================================================================

LIST, COUNT and MSI registers are latched by the doorbell where the list is concerned: changing LIST or COUNT while
BUSY has no effect on the list under way.

A descriptor is 24 bytes: u64 source iova, u64 destination iova, u32 length (0 to 0x10000 bytes), u32 flags (bit 0
INTERRUPT: raise the message when this one is finished; bit 1 LAST: the list ends here whatever COUNT says; other
bits must be 0).  Bytes are copied upwards in pieces that end at the source's and the destination's 4 KiB
boundaries.  At a fault the device stops: what it copied before stays copied, nothing after it is touched.
"""

from struct import Struct
from typing import Any, Final

from base.units import PAGE_SIZE, Sbdf
from machine.devices.bus_master import BAR_SIZE, BusMaster
from machine.dma import DmaPort
from machine.pci import Bar, PciFunction

ID: Final = 0x43505931
CTRL_STEPPED: Final = 1 << 0
CTRL_RESET: Final = 1 << 1
STATUS_BUSY: Final = 1 << 0
STATUS_DONE: Final = 1 << 1
STATUS_ERROR: Final = 1 << 2
ERROR_NONE: Final = 0
ERROR_FETCH: Final = 1
ERROR_SOURCE: Final = 2
ERROR_DESTINATION: Final = 3
ERROR_INVALID: Final = 4
FLAG_INTERRUPT: Final = 1 << 0
FLAG_LAST: Final = 1 << 1
MAX_LENGTH: Final = 0x10000
MAX_COUNT: Final = 0x1000
"""Lists may be longer; COUNT above this is cut to it."""

DESCRIPTOR: Final = Struct("<QQII")
_BATCH: Final = 64


def pack_descriptor(source: int, destination: int, length: int, flags: int = 0) -> bytes:
    """The 24 bytes of one descriptor."""
    return DESCRIPTOR.pack(source, destination, length, flags)


class Copier(BusMaster):
    """The device; see the datasheet above."""

    def __init__(self, port: DmaPort) -> None:
        super().__init__(port)
        self.lists = 0
        """Lists started since power-on."""
        self.bytes_copied = 0
        self._reset()

    def _reset(self) -> None:
        self._msi_address = self._msi_data = 0
        self.stepped = False
        self.list_base = self.count = 0
        self.status = self.error_code = self.error_index = self.completed = self.msi_lost = 0
        self._base = self._end = 0

    @staticmethod
    def pci_function(sbdf: Sbdf, bar_base: int) -> PciFunction:
        """The copier as enumeration finds it."""
        return PciFunction(sbdf, class_code=0x088000, device_id=0x4350, bars=(Bar(bar_base, BAR_SIZE),))

    # Registers

    def _load(self, offset: int) -> int:
        match offset:
            case 0x00:
                return ID
            case 0x04:
                return CTRL_STEPPED if self.stepped else 0
            case 0x08:
                return self.status
            case 0x0C:
                return self.error_code
            case 0x10:
                return self.error_index
            case 0x14:
                return self.completed
            case 0x18:
                return self.list_base & 0xFFFF_FFFF
            case 0x1C:
                return self.list_base >> 32
            case 0x20:
                return self.count
            case 0x28:
                return self._msi_address & 0xFFFF_FFFF
            case 0x2C:
                return self._msi_address >> 32
            case 0x30:
                return self._msi_data
            case 0x34:
                return self.msi_lost
        return 0

    def _store(self, offset: int, value: int) -> None:
        match offset:
            case 0x04:
                if value & CTRL_RESET:
                    self._reset()
                self.stepped = bool(value & CTRL_STEPPED)
                if not self.stepped:
                    self._run(None)
            case 0x18:
                self.list_base = self.list_base >> 32 << 32 | value
            case 0x1C:
                self.list_base = self.list_base & 0xFFFF_FFFF | value << 32
            case 0x20:
                self.count = min(value, MAX_COUNT)
            case 0x24 if not self.status & STATUS_BUSY:
                self._start()
            case 0x28:
                self._msi_address = self._msi_address >> 32 << 32 | value
            case 0x2C:
                self._msi_address = self._msi_address & 0xFFFF_FFFF | value << 32
            case 0x30:
                self._msi_data = value

    def _start(self) -> None:
        self.lists += 1
        self.status = STATUS_BUSY
        self.error_code = self.error_index = self.completed = 0
        self._base, self._end = self.list_base, self.count
        if not self.stepped:
            self._run(None)

    # Work

    def step(self, descriptors: int = 1) -> bool:
        """Work through up to ``descriptors`` more; whether the list is still under way."""
        if not self._busy:
            self._busy = True
            try:
                self._run(descriptors)
            finally:
                self._busy = False
            self.kick()
        return bool(self.status & STATUS_BUSY)

    def _run(self, limit: int | None) -> None:
        end = self._end if limit is None else min(self._end, self.completed + limit)
        while self.status & STATUS_BUSY and self.completed < end:
            count = min(_BATCH, end - self.completed)
            self._run_batch(count)
        if self.status & STATUS_BUSY and self.completed >= self._end:
            self._finish(STATUS_DONE)

    def _run_batch(self, count: int) -> None:
        at = self._base + self.completed * DESCRIPTOR.size
        # Descriptors that share a page are fetched together; one that straddles two pages is fetched alone.
        count = max(1, min(count, (PAGE_SIZE - (at & PAGE_SIZE - 1)) // DESCRIPTOR.size))
        raw = self._dma_read(at, count * DESCRIPTOR.size)
        if raw is None:
            return self._fail(ERROR_FETCH)
        for source, destination, length, flags in DESCRIPTOR.iter_unpack(raw):
            if length > MAX_LENGTH or flags & ~(FLAG_INTERRUPT | FLAG_LAST):
                return self._fail(ERROR_INVALID)
            error = self._copy(source, destination, length)
            if error:
                return self._fail(error)
            self.completed += 1
            if flags & FLAG_INTERRUPT:
                self._message()
            if flags & FLAG_LAST:
                return self._finish(STATUS_DONE)

    def _copy(self, source: int, destination: int, length: int) -> int:
        while length:
            size = min(length, PAGE_SIZE - (source & PAGE_SIZE - 1), PAGE_SIZE - (destination & PAGE_SIZE - 1))
            data = self._dma_read(source, size)
            if data is None:
                return ERROR_SOURCE
            if not self._dma_write(destination, data):
                return ERROR_DESTINATION
            self.bytes_copied += size
            source += size
            destination += size
            length -= size
        return ERROR_NONE

    def _fail(self, code: int) -> None:
        self.error_code, self.error_index = code, self.completed
        self._finish(STATUS_ERROR)

    def _finish(self, status: int) -> None:
        self.status = status
        self._message()

    def _message(self) -> None:
        if not self._send_message():
            self.msi_lost += 1

    # Snapshots

    def save(self) -> Any:
        """Everything, including a list under way."""
        return (
            self._save_bus_master(),
            (self.lists, self.bytes_copied, self.stepped, self.list_base, self.count),
            (self.status, self.error_code, self.error_index, self.completed, self.msi_lost),
            (self._base, self._end),
        )

    def restore(self, state: Any) -> None:
        bus_master, registers, progress, latched = state
        self._restore_bus_master(bus_master)
        self.lists, self.bytes_copied, self.stepped, self.list_base, self.count = registers
        self.status, self.error_code, self.error_index, self.completed, self.msi_lost = progress
        self._base, self._end = latched
