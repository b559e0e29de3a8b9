# SPDX-License-Identifier: GPL-2.0-or-later
"""A network card: two descriptor rings in memory, message interrupts, a cable.

BAR0, 4 KiB, 32-bit registers, little-endian:

======  ============  ===================================================================================
offset  register
======  ============  ===================================================================================
0x00    ID            RO 0x4E494331 ("NIC1")
0x04    CTRL          bit 0 ENABLE, bit 1 RESET (self-clearing)
0x08    STATUS        RO, bit 0 LINK, bit 1 DMA_ERROR (sticky until RESET)
0x0C    MAC_LO        RO, MAC bytes 0-3
0x10    MAC_HI        RO, MAC bytes 4-5
0x14    IRQ_MASK      bit 0 RX, bit 1 TX (1 = enabled)
0x18    IRQ_STATUS    same bits, write 1 to clear
0x1C    MSI_ADDR_LO
0x20    MSI_ADDR_HI
0x24    MSI_DATA      a cause that rises in IRQ_STATUS & IRQ_MASK does a 4-byte DMA write of MSI_DATA to MSI_ADDR
                      when MSI_ADDR != 0
0x40    TX_BASE_LO    } base and size of a ring change only while ENABLE = 0
0x44    TX_BASE_HI    }
0x48    TX_LOG2SIZE   }
0x4C    TX_TAIL       the driver's producer index; writing it is the doorbell
0x50    TX_HEAD       RO, the device's consumer index
0x60    RX_BASE_LO    RX_BASE_HI 0x64, RX_LOG2SIZE 0x68, RX_TAIL 0x6C, RX_HEAD 0x70: the same for receiving
======  ============  ===================================================================================

Indices run modulo the ring's size; a ring is empty when head == tail, so at most size - 1 descriptors are
outstanding.  A descriptor is 16 bytes in both rings:

======  =======  ========================================================================================
offset  field
======  =======  ========================================================================================
0       u64      address
8       u16      length
10      u16      flags: bit 0 EOP, last fragment of the frame (TX: by the driver, RX: by the device); bit 14 ERROR,
                 DMA fault or overrun; bit 15 DONE, the device has finished with the descriptor
12      u16      written: bytes stored (RX)
14      u16      reserved
======  =======  ========================================================================================

TX: the device gathers fragments up to EOP, transmits, marks each DONE.  RX: a frame may be spread over several
descriptors, each up to its length, EOP on the last and DONE on each; without room it is dropped and counted.
A blocked DMA request sets STATUS.DMA_ERROR, marks the descriptor ERROR if that is possible, and the device goes
on.  Frames are at most 9018 bytes.

What the above leaves open is decided here:

* TX_LOG2SIZE and RX_LOG2SIZE above 15 read back as 15.  RESET zeroes every register but ID, MAC and LINK.
* Clearing ENABLE stops the rings where they are: heads and tails stay, a half-gathered frame is fetched again from
  TX_HEAD.  While ENABLE = 0, frames that arrive are dropped and counted.
* A ring whose descriptors cannot be read stands still until the next doorbell (TX) or frame (RX).
* A TX frame with a fragment that faults or passes 9018 bytes is not sent; that fragment gets ERROR, all get DONE.
  A full ring without EOP is an overrun: its last descriptor gets ERROR, and what follows up to the next EOP
  belongs to the same lost frame.  A frame without a whole Ethernet header (14 bytes) is counted and not sent.
* An RX buffer that faults gets EOP, ERROR and DONE, written = 0; the rest of the frame is lost.
* RX flags are overwritten; TX flags keep what the driver set, except DONE and ERROR.
"""

from collections import deque
from typing import Any, Final

from base.units import Sbdf
from machine.devices.bus_master import BAR_SIZE, BusMaster
from machine.devices.nic_counters import NicCounters
from machine.devices.nic_ring import DESCRIPTOR, DESCRIPTOR_SIZE, FLAG_DONE, FLAG_EOP, FLAG_ERROR, Ring
from machine.dma import DmaPort
from machine.network.wire import Wire
from machine.pci import Bar, PciFunction

ID: Final = 0x4E494331
MAX_FRAME: Final = 9018
_HEADER: Final = 14

CTRL_ENABLE: Final = 1 << 0
CTRL_RESET: Final = 1 << 1
STATUS_LINK: Final = 1 << 0
STATUS_DMA_ERROR: Final = 1 << 1
IRQ_RX: Final = 1 << 0
IRQ_TX: Final = 1 << 1

_TX_BATCH: Final = 64
_RX_BATCH: Final = 16
_pack: Final = DESCRIPTOR.pack
_Descriptor = tuple[int, int, int, int, int]


class Nic(BusMaster):
    """The card.  ``wire`` may be exchanged at any time; ``None`` is an unplugged cable."""

    def __init__(self, port: DmaPort, wire: Wire | None, mac: bytes) -> None:
        super().__init__(port)
        if len(mac) != 6:
            raise ValueError(f"a MAC address has 6 bytes, not {len(mac)}")
        self.mac: Final = mac
        self.wire = wire
        self.counters: Final = NicCounters()
        self.tx: Final = Ring()
        self.rx: Final = Ring()
        self.enabled = False
        self.dma_error = False
        self.irq_mask = 0
        self.irq_status = 0
        # The frame being gathered, and the write-backs that its descriptors will get, from TX_HEAD on.
        self._parts: list[bytes] = []
        self._gathered = 0
        self._images: list[bytes] = []
        self._broken = False

    @staticmethod
    def pci_function(sbdf: Sbdf, bar_base: int) -> PciFunction:
        """The card as enumeration finds it."""
        return PciFunction(sbdf, class_code=0x020000, device_id=0x4E49, bars=(Bar(bar_base, BAR_SIZE),))

    # Registers

    def _load(self, offset: int) -> int:
        tx, rx = self.tx, self.rx
        match offset:
            case 0x00:
                return ID
            case 0x04:
                return CTRL_ENABLE if self.enabled else 0
            case 0x08:
                return (STATUS_LINK if self.wire else 0) | (STATUS_DMA_ERROR if self.dma_error else 0)
            case 0x0C:
                return int.from_bytes(self.mac[:4], "little")
            case 0x10:
                return int.from_bytes(self.mac[4:], "little")
            case 0x14:
                return self.irq_mask
            case 0x18:
                return self.irq_status
            case 0x1C:
                return self._msi_address & 0xFFFF_FFFF
            case 0x20:
                return self._msi_address >> 32
            case 0x24:
                return self._msi_data
            case 0x40 | 0x60:
                return (tx if offset < 0x60 else rx).base & 0xFFFF_FFFF
            case 0x44 | 0x64:
                return (tx if offset < 0x60 else rx).base >> 32
            case 0x48 | 0x68:
                return (tx if offset < 0x60 else rx).log2size
            case 0x4C | 0x6C:
                return (tx if offset < 0x60 else rx).tail
            case 0x50 | 0x70:
                return (tx if offset < 0x60 else rx).head
        return 0

    def _store(self, offset: int, value: int) -> None:
        ring = self.tx if offset < 0x60 else self.rx
        match offset:
            case 0x4C:
                ring.tail = value & (1 << ring.log2size) - 1
                self._transmit()
            case 0x6C:
                ring.tail = value & (1 << ring.log2size) - 1
            case 0x04:
                self._control(value)
            case 0x14:
                rising = value & 3 & ~self.irq_mask & self.irq_status
                self.irq_mask = value & 3
                self._interrupt(rising)
            case 0x18:
                self.irq_status &= ~value
            case 0x1C:
                self._msi_address = self._msi_address >> 32 << 32 | value
            case 0x20:
                self._msi_address = self._msi_address & 0xFFFF_FFFF | value << 32
            case 0x24:
                self._msi_data = value
            case 0x40 | 0x60 if not self.enabled:
                ring.base = ring.base >> 32 << 32 | value
            case 0x44 | 0x64 if not self.enabled:
                ring.base = ring.base & 0xFFFF_FFFF | value << 32
            case 0x48 | 0x68 if not self.enabled:
                ring.resize(value)

    def _control(self, value: int) -> None:
        if value & CTRL_RESET:
            self.enabled = self.dma_error = False
            self.irq_mask = self.irq_status = self._msi_address = self._msi_data = 0
            self.tx.clear()
            self.rx.clear()
            self._forget_gathered()
        if not value & CTRL_ENABLE:
            self.enabled = False
            self._forget_gathered()
        elif not self.enabled:
            self.enabled = True
            self._transmit()

    # Interrupts

    def _raise_cause(self, cause: int) -> None:
        rising = cause & ~self.irq_status & self.irq_mask
        self.irq_status |= cause
        self._interrupt(rising)

    def _interrupt(self, rising: int) -> None:
        for cause in (IRQ_RX, IRQ_TX):
            if rising & cause and not self._send_message():
                self.dma_error = True

    # Transmission

    def _forget_gathered(self) -> None:
        self._parts.clear()
        self._images.clear()
        self._gathered = 0
        self._broken = False

    def _transmit(self) -> None:
        """Everything up to TX_TAIL that ends in a whole frame."""
        ring = self.tx
        if not self.enabled:
            return
        mask = (1 << ring.log2size) - 1
        finished = False
        while True:
            index = ring.head + len(self._images) & mask
            count = ring.tail - index & mask
            if not count:
                break
            count = ring.span(index, min(count, _TX_BATCH))
            raw = self._dma_read(ring.base + index * DESCRIPTOR_SIZE, count * DESCRIPTOR_SIZE)
            if raw is None:
                self.dma_error = True
                break
            done = self._gather(raw)
            if len(self._images) == mask and not done:
                self._overrun()
                done = mask
            if done:
                self._write_back(ring, self._images[:done])
                del self._images[:done]
                finished = True
        if finished:
            self._raise_cause(IRQ_TX)

    def _gather(self, raw: bytes) -> int:
        """Work through descriptors; how many of the pending write-backs belong to frames that are over."""
        images, counters = self._images, self.counters
        done = 0
        for address, length, flags, written, reserved in DESCRIPTOR.iter_unpack(raw):
            flags = flags & ~FLAG_ERROR | FLAG_DONE
            if not self._broken:
                if self._gathered + length > MAX_FRAME:
                    self._broken = True
                    flags |= FLAG_ERROR
                else:
                    part = self._dma_read(address, length) if length else b""
                    if part is None:
                        self.dma_error = self._broken = True
                        flags |= FLAG_ERROR
                    else:
                        self._parts.append(part)
                        self._gathered += length
            images.append(_pack(address, length, flags, written, reserved))
            if flags & FLAG_EOP:
                if self._broken:
                    counters.tx_errors += 1
                else:
                    self._send(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
                self._parts.clear()
                self._gathered = 0
                self._broken = False
                done = len(images)
        return done

    def _overrun(self) -> None:
        address, length, flags, written, reserved = DESCRIPTOR.unpack(self._images[-1])
        self._images[-1] = _pack(address, length, flags | FLAG_ERROR, written, reserved)
        self._parts.clear()
        self._gathered = 0
        self._broken = True

    def _send(self, frame: bytes) -> None:
        counters = self.counters
        if len(frame) < _HEADER:
            counters.tx_runts += 1
        elif self.wire is None:
            counters.tx_no_link += 1
        else:
            self.wire.send(frame)
            counters.tx_frames += 1
            counters.tx_bytes += len(frame)

    def _write_back(self, ring: Ring, images: list[bytes]) -> None:
        """Store finished descriptors from the ring's head on and move the head past them."""
        mask = (1 << ring.log2size) - 1
        at = 0
        while at < len(images):
            count = ring.span(ring.head, len(images) - at)
            if not self._dma_write(ring.base + ring.head * DESCRIPTOR_SIZE, b"".join(images[at : at + count])):
                self.dma_error = True
            at += count
            ring.head = ring.head + count & mask

    # Reception

    def poll(self, budget: int = 64) -> int:
        """Take up to ``budget`` frames from the wire; returns how many reached memory whole."""
        if self._busy:
            return 0
        self._busy = True
        try:
            stored = self._receive(budget)
        finally:
            self._busy = False
        if self._posted:
            self._settle()
        return stored

    def _receive(self, budget: int) -> int:
        wire, counters = self.wire, self.counters
        if wire is None:
            return 0
        stored = 0
        ready: deque[_Descriptor] = deque()
        images: list[bytes] = []
        for _ in range(budget):
            frame = wire.receive()
            if frame is None:
                break
            wanted = self.enabled and _HEADER <= len(frame) <= MAX_FRAME
            if not (wanted and self._make_room(ready, len(images), len(frame))):
                counters.rx_dropped += 1
            elif self._store_frame(frame, ready, images):
                stored += 1
                counters.rx_frames += 1
                counters.rx_bytes += len(frame)
            else:
                counters.rx_errors += 1
        if images:
            self._write_back(self.rx, images)
            self._raise_cause(IRQ_RX)
        return stored

    def _make_room(self, ready: deque[_Descriptor], used: int, need: int) -> bool:
        """Fetch descriptors until ``ready`` holds ``need`` bytes of buffer; ``False`` if the ring has less."""
        if ready and ready[0][1] >= need:
            return True
        ring = self.rx
        mask = (1 << ring.log2size) - 1
        room = sum(descriptor[1] for descriptor in ready)
        while room < need:
            index = ring.head + used + len(ready) & mask
            count = ring.tail - index & mask
            if not count:
                return False
            count = ring.span(index, min(count, _RX_BATCH))
            raw = self._dma_read(ring.base + index * DESCRIPTOR_SIZE, count * DESCRIPTOR_SIZE)
            if raw is None:
                self.dma_error = True
                return False
            fresh = list(DESCRIPTOR.iter_unpack(raw))
            ready.extend(fresh)
            room += sum(descriptor[1] for descriptor in fresh)
        return True

    def _store_frame(self, frame: bytes, ready: deque[_Descriptor], images: list[bytes]) -> bool:
        """Spread ``frame`` over descriptors from ``ready``, which has room; whether all of it was stored."""
        at = 0
        while True:
            address, length, _, _, reserved = ready.popleft()
            part = frame if length >= len(frame) and not at else frame[at : at + length]
            if part and not self._dma_write(address, part):
                self.dma_error = True
                images.append(_pack(address, length, FLAG_DONE | FLAG_ERROR | FLAG_EOP, 0, reserved))
                return False
            at += len(part)
            last = at == len(frame)
            images.append(_pack(address, length, FLAG_DONE | last, len(part), reserved))
            if last:
                return True

    # Snapshots

    def save(self) -> Any:
        """Registers, counters and the half-gathered frame; not what is on the wire."""
        return (
            self._save_bus_master(),
            self.counters.save(),
            self.tx.save(),
            self.rx.save(),
            (self.enabled, self.dma_error, self.irq_mask, self.irq_status),
            (tuple(self._parts), tuple(self._images), self._gathered, self._broken),
        )

    def restore(self, state: Any) -> None:
        bus_master, counters, tx, rx, registers, gathering = state
        self._restore_bus_master(bus_master)
        self.counters.restore(counters)
        self.tx.restore(tx)
        self.rx.restore(rx)
        self.enabled, self.dma_error, self.irq_mask, self.irq_status = registers
        self._parts, self._images = list(gathering[0]), list(gathering[1])
        self._gathered, self._broken = gathering[2:]
