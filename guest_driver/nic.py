# SPDX-License-Identifier: GPL-2.0-or-later
"""A netdev driver for the test NIC, the way Linux drivers are written: all memory that the device touches goes
through the DMA API, descriptor rings are coherent, buffers are mapped for as long as the device has them.

Completion is by message interrupt where the machine has them, else by polling.  With interrupts a poll happens only
after one has arrived, so that a doorbell which does not get through shows as a dead network, as on a real machine.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from abi.errno import EBUSY, EINVAL, EIO, ENODEV, ENOMEM, errno_name
from base.units import U32_MAX
from guest_driver.linux.dd import device_driver_attach, device_release_driver
from guest_driver.linux.device import Device, dma_bit_mask
from guest_driver.linux.dma import (
    CoherentBuffer,
    dma_alloc_coherent,
    dma_free_coherent,
    dma_map_page,
    dma_map_sgtable,
    dma_mapping_error,
    dma_set_mask_and_coherent,
    dma_unmap_page,
    dma_unmap_sg,
)
from guest_driver.linux.dma_iommu import DMA_FROM_DEVICE, DMA_TO_DEVICE
from guest_driver.linux.dma_msi import iommu_dma_prepare_msi
from guest_driver.linux.kernel import Kernel
from guest_driver.linux.page_alloc import GFP_ATOMIC
from guest_driver.linux.scatterlist import Scatterlist
from guest_driver.net.skb import Skb
from guest_driver.nic_registers import (
    BASE_HI,
    BASE_LO,
    CTRL,
    CTRL_ENABLE,
    CTRL_RESET,
    DESCRIPTOR,
    DONE,
    EOP,
    ERROR,
    ID,
    IRQ_MASK,
    IRQ_RX,
    IRQ_STATUS,
    IRQ_TX,
    LOG2SIZE,
    MAC_HI,
    MAC_LO,
    MSI_ADDR_HI,
    MSI_ADDR_LO,
    MSI_DATA,
    NIC_ID,
    RX_RING,
    STATUS,
    STATUS_DMA_ERROR,
    STATUS_LINK,
    TAIL,
    TX_RING,
)

_BAR_BYTES: Final = 4096
_RX_OFFSET: Final = 64
_MAX_SEGMENT: Final = 32768
_READ_AHEAD: Final = 16
"""Descriptors that are read at once while completing."""


class NicCounters:
    """What ``ip -s link`` would show."""

    __slots__ = ("interrupts", "rx_dropped", "rx_errors", "rx_packets", "tx_dropped", "tx_errors", "tx_packets")

    def __init__(self) -> None:
        self.interrupts = self.rx_dropped = self.rx_errors = self.rx_packets = 0
        self.tx_dropped = self.tx_errors = self.tx_packets = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


class Nic:
    """One port, from :func:`nic_probe` to :meth:`remove`.

    ``rx_handler`` gets every received frame as bytes, in softirq context.
    """

    def __init__(
        self, kernel: Kernel, dev: Device, base: int, ring_log2: int, rx_buffer: int, use_sg: bool, recycle: bool
    ) -> None:
        self.kernel: Final = kernel
        self.dev: Final = dev
        self.mac = b"\0" * 6
        self.rx_handler: Callable[[bytes], None] | None = None
        self.counters = NicCounters()
        self.use_sg: Final = use_sg
        """Map transmit buffers with dma_map_sg rather than piece by piece."""
        self.recycle: Final = recycle
        """Post a received page again, mapped as it is (page_pool with PP_FLAG_DMA_MAP): no hypercall per frame, and the
        device can still write to the page while the frame is being copied out."""
        self.up = False
        self.irq: tuple[int, int] | None = None
        """(doorbell address as the device must write it, data); ``None`` while polling."""
        self._irq_vector: tuple[int, int] | None = None
        self._base: Final = base
        self._log2: Final = ring_log2
        self._mask: Final = (1 << ring_log2) - 1
        self._rx_buffer: Final = rx_buffer
        self._tx_ring: CoherentBuffer | None = None
        self._rx_ring: CoherentBuffer | None = None
        self._tx_tail = self._tx_clean = self._rx_tail = self._rx_clean = 0
        self._tx_slots: dict[int, tuple[Skb, list[tuple[int, int]], list[Scatterlist] | None]] = {}
        """By index of a frame's last descriptor: the frame and how to unmap it."""
        self._rx_slots: dict[int, tuple[int, int]] = {}
        """By descriptor: (pfn, DMA address)."""
        self._rx_parts: list[bytes] = []
        self._napi_scheduled = False

    # -- registers

    def _read(self, register: int) -> int:
        return self.kernel.mmio.readl(self._base + register)

    def _write(self, register: int, value: int) -> None:
        self.kernel.mmio.writel(self._base + register, value)

    @property
    def link(self) -> bool:
        return bool(self._read(STATUS) & STATUS_LINK)

    @property
    def dma_error(self) -> bool:
        """The device has had an access refused since the last reset."""
        return bool(self._read(STATUS) & STATUS_DMA_ERROR)

    # -- up and down

    def ndo_open(self) -> int:
        """Bring the interface up: rings, receive buffers, interrupt; -errno with everything undone."""
        if self.up:
            return -EBUSY
        self._write(CTRL, CTRL_RESET)
        size = DESCRIPTOR.size << self._log2
        self._tx_ring = dma_alloc_coherent(self.dev, size)
        self._rx_ring = dma_alloc_coherent(self.dev, size) if self._tx_ring is not None else None
        if self._tx_ring is None or self._rx_ring is None:
            self._free_rings()
            return -ENOMEM
        self._tx_tail = self._tx_clean = self._rx_tail = self._rx_clean = 0
        self._rx_parts = []
        self._setup_irq()
        for ring, buffer in ((TX_RING, self._tx_ring), (RX_RING, self._rx_ring)):
            self._write(ring + BASE_LO, buffer.dma_addr & U32_MAX)
            self._write(ring + BASE_HI, buffer.dma_addr >> 32)
            self._write(ring + LOG2SIZE, self._log2)
        if not self._rx_refill():
            self._free_rings()
            return -ENOMEM
        self.up = True
        self._write(IRQ_MASK, IRQ_RX | IRQ_TX if self.irq is not None else 0)
        self._write(CTRL, CTRL_ENABLE)
        self._write(RX_RING + TAIL, self._rx_tail)
        return 0

    def ndo_stop(self) -> None:
        """Take the interface down: the device is quiet before its memory goes."""
        if not self.up:
            return
        self._write(IRQ_MASK, 0)
        self._write(CTRL, 0)
        self._write(CTRL, CTRL_RESET)
        self.up = False
        for skb, pieces, entries in self._tx_slots.values():
            self._unmap_tx(pieces, entries)
            skb.free()
        self._tx_slots = {}
        for pfn, address in self._rx_slots.values():
            dma_unmap_page(self.dev, address, self._rx_buffer, DMA_FROM_DEVICE)
            self.kernel.pages.free_pages(pfn)
        self._rx_slots = {}
        self._free_rings()

    def remove(self) -> None:
        """The driver lets go of the device."""
        self.ndo_stop()
        self.kernel.drivers.remove(self)
        device_release_driver(self.dev)

    def _free_rings(self) -> None:
        for ring in (self._tx_ring, self._rx_ring):
            if ring is not None:
                dma_free_coherent(ring)
        self._tx_ring = self._rx_ring = None

    def _setup_irq(self) -> None:
        """Program the message interrupt; without one, or without a way to its doorbell, the rings are polled."""
        if self._irq_vector is None:
            self._irq_vector = self.kernel.pci.request_irq(self._irq_handler)
        if self._irq_vector is None:
            return
        address, data = self._irq_vector
        ret, doorbell = iommu_dma_prepare_msi(self.dev, address)
        if ret:
            self.kernel.printk.err(f"{self.dev.name}: doorbell cannot be mapped ({errno_name(ret)}), polling")
            return
        self.irq = (doorbell, data)
        self._write(MSI_ADDR_LO, doorbell & U32_MAX)
        self._write(MSI_ADDR_HI, doorbell >> 32)
        self._write(MSI_DATA, data)

    # -- transmit

    def ndo_start_xmit(self, skb: Skb, more: bool = False) -> int:
        """Queue a frame; 0 and it belongs to the driver, or -errno and it stays the caller's.

        ``more``: another frame follows at once (netdev_xmit_more), so the doorbell can wait; :meth:`kick` rings it.
        -EBUSY: the ring is full; -EIO: the interface is down; -ENOMEM: the frame could not be mapped.
        """
        ring = self._tx_ring
        if not self.up or ring is None:
            return -EIO
        free = self._mask - (self._tx_tail - self._tx_clean & self._mask)
        if len(skb.frags) > free:
            self._tx_complete()
            free = self._mask - (self._tx_tail - self._tx_clean & self._mask)
            if len(skb.frags) > free:
                return -EBUSY
        entries: list[Scatterlist] | None = None
        if self.use_sg:
            entries = [Scatterlist((pfn << 12) + offset, length) for pfn, offset, length in skb.frags]
            count = dma_map_sgtable(self.dev, entries, DMA_TO_DEVICE)
            pieces = [(entry.dma_address, entry.dma_length) for entry in entries[: max(count, 0)]]
            failed = count <= 0
        else:
            pieces = []
            for pfn, offset, length in skb.frags:
                address = dma_map_page(self.dev, pfn, offset, length, DMA_TO_DEVICE)
                if dma_mapping_error(self.dev, address):
                    break
                pieces.append((address, length))
            failed = len(pieces) < len(skb.frags)
            if failed:
                self._unmap_tx(pieces, None)
        if failed:
            self.counters.tx_dropped += 1
            return -ENOMEM
        tail = self._tx_tail
        for number, (address, length) in enumerate(pieces):
            flags = EOP if number == len(pieces) - 1 else 0
            ring.write(tail * DESCRIPTOR.size, DESCRIPTOR.pack(address, length, flags, 0, 0))
            last, tail = tail, tail + 1 & self._mask
        self._tx_slots[last] = (skb, pieces, entries)
        self._tx_tail = tail
        if not more:
            self.kick()
        return 0

    def kick(self) -> None:
        """Ring the doorbell for all frames that are queued."""
        self._write(TX_RING + TAIL, self._tx_tail)

    def _unmap_tx(self, pieces: list[tuple[int, int]], entries: list[Scatterlist] | None) -> None:
        if entries is not None:
            dma_unmap_sg(self.dev, entries, DMA_TO_DEVICE)
            return
        for address, length in pieces:
            dma_unmap_page(self.dev, address, length, DMA_TO_DEVICE)

    def _tx_complete(self) -> int:
        """Unmap and free what the device has sent; the number of frames."""
        ring = self._tx_ring
        done = 0
        if ring is None:
            return done
        clean, error = self._tx_clean, False
        # A frame is done when its last descriptor is; the device reports on each of them.
        for _, _, flags, _, _ in _descriptors(ring, clean, self._tx_tail, self._mask):
            if not flags & DONE:
                break
            error = error or bool(flags & ERROR)
            slot = self._tx_slots.pop(clean, None)
            clean = clean + 1 & self._mask
            if slot is None:
                continue
            skb, pieces, entries = slot
            self._tx_clean = clean
            self._unmap_tx(pieces, entries)
            skb.free()
            if error:
                self.counters.tx_errors += 1
            else:
                self.counters.tx_packets += 1
            error = False
            done += 1
        return done

    # -- receive

    def _rx_refill(self) -> int:
        """Post buffers until the ring is full or memory runs out; the number of buffers the device has."""
        ring = self._rx_ring
        assert ring is not None
        while len(self._rx_slots) < self._mask:
            pfn = self.kernel.pages.alloc_pages(GFP_ATOMIC)
            if not pfn:
                break
            address = dma_map_page(self.dev, pfn, _RX_OFFSET, self._rx_buffer, DMA_FROM_DEVICE)
            if dma_mapping_error(self.dev, address):
                self.kernel.pages.free_pages(pfn)
                break
            self._rx_post(pfn, address)
        return len(self._rx_slots)

    def _rx_post(self, pfn: int, address: int) -> None:
        """Give the device a mapped page; the doorbell is rung later."""
        ring, tail = self._rx_ring, self._rx_tail
        assert ring is not None
        ring.write(tail * DESCRIPTOR.size, DESCRIPTOR.pack(address, self._rx_buffer, 0, 0, 0))
        self._rx_slots[tail] = (pfn, address)
        self._rx_tail = tail + 1 & self._mask

    def _rx_receive(self) -> int:
        """Hand completed frames up; the number of frames."""
        ring = self._rx_ring
        if ring is None:
            return 0
        frames = 0
        posted = self._rx_tail
        read = self.kernel.ram.read
        for _, _, flags, written, _ in _descriptors(ring, self._rx_clean, posted, self._mask):
            if not flags & DONE:
                break
            index = self._rx_clean
            slot = self._rx_slots.pop(index, None)
            if slot is None:
                break  # whoever got the last frame has taken the interface down
            pfn, address = slot
            self._rx_clean = index + 1 & self._mask
            if not self.recycle:
                dma_unmap_page(self.dev, address, self._rx_buffer, DMA_FROM_DEVICE)
            self._rx_parts.append(read((pfn << 12) + _RX_OFFSET, min(written, self._rx_buffer)))
            if self.recycle:
                self._rx_post(pfn, address)
            else:
                self.kernel.pages.free_pages(pfn)
            if flags & ERROR:
                self.counters.rx_errors += 1
                self._rx_parts = []
            elif flags & EOP:
                frame, self._rx_parts = b"".join(self._rx_parts), []
                self.counters.rx_packets += 1
                frames += 1
                if self.rx_handler is not None:
                    self.rx_handler(frame)
        if self.up:
            self._rx_refill()
            if self._rx_tail != posted:
                self._write(RX_RING + TAIL, self._rx_tail)
        return frames

    # -- completion

    def _irq_handler(self) -> None:
        """Acknowledge, and leave the work to the softirq."""
        self.counters.interrupts += 1
        if not self.up:
            return
        causes = self._read(IRQ_STATUS)
        self._write(IRQ_STATUS, causes)
        if causes and not self._napi_scheduled:
            self._napi_scheduled = True
            self.kernel.softirqs.append(self.napi_poll)

    def napi_poll(self) -> int:
        """Complete what the device has finished; the number of frames sent and received."""
        self._napi_scheduled = False
        if not self.up:
            return 0
        return self._tx_complete() + self._rx_receive()

    def poll(self) -> int:
        """What the idle loop does for this interface: softirqs if it has an interrupt, else look at the rings."""
        if self.irq is not None:
            return self.kernel.run_softirqs()
        return self.napi_poll()

    # -- snapshots

    def save(self) -> Any:
        return (
            (self.up, self.irq, self._irq_vector, self.rx_handler),
            self.counters.as_dict(),
            (self._tx_ring, self._rx_ring),
            (self._tx_tail, self._tx_clean, self._rx_tail, self._rx_clean),
            {index: (skb, list(skb.frags), *rest) for index, (skb, *rest) in self._tx_slots.items()},
            dict(self._rx_slots),
            list(self._rx_parts),
            self._napi_scheduled,
        )

    def restore(self, state: Any) -> None:
        settings, counters, rings, indices, tx_slots, rx_slots, parts, scheduled = state
        self.up, self.irq, self._irq_vector, self.rx_handler = settings
        for name, value in counters.items():
            setattr(self.counters, name, value)
        self._tx_ring, self._rx_ring = rings
        self._tx_tail, self._tx_clean, self._rx_tail, self._rx_clean = indices
        self._tx_slots = {}
        for index, (skb, frags, pieces, entries) in tx_slots.items():
            skb.frags = list(frags)
            self._tx_slots[index] = (skb, pieces, entries)
        self._rx_slots = dict(rx_slots)
        self._rx_parts = list(parts)
        self._napi_scheduled = scheduled


def _descriptors(ring: CoherentBuffer, first: int, end: int, mask: int) -> Iterator[tuple[int, ...]]:
    """The descriptors from ``first`` up to ``end`` as they are when their stretch of the ring is reached."""
    while first != end:
        count = min((end if end > first else mask + 1) - first, _READ_AHEAD)
        yield from DESCRIPTOR.iter_unpack(ring.read(first * DESCRIPTOR.size, count * DESCRIPTOR.size))
        first = first + count & mask


def nic_probe(
    kernel: Kernel,
    dev: Device,
    *,
    ring_log2: int = 6,
    rx_buffer: int = 2048,
    use_sg: bool = False,
    recycle: bool = False,
) -> Nic | int:
    """Bind the driver to ``dev``; -errno with nothing left behind.

    ``ring_log2``: log2 of the descriptors in each ring; ``rx_buffer``: bytes of a receive buffer (a frame may use
    several), up to a page less 64; ``recycle``: see :class:`Nic`.
    -ENODEV: no such NIC at its first BAR; -EINVAL: impossible sizes; -EBUSY or
    -EPROBE_DEFER: the device belongs to somebody else.
    """
    if not 1 <= ring_log2 <= 12 or not 64 <= rx_buffer <= 4096 - _RX_OFFSET:
        return -EINVAL
    if not dev.pci.bars or dev.pci.bars[0][1] < _BAR_BYTES:
        return -ENODEV
    ret = device_driver_attach(dev, "nic1")
    if ret:
        return ret
    nic = Nic(kernel, dev, dev.pci.bars[0][0], ring_log2, rx_buffer, use_sg, recycle)
    ret = 0 if nic._read(ID) == NIC_ID else -ENODEV
    if not ret:
        ret = dma_set_mask_and_coherent(dev, dma_bit_mask(64))
    if ret:
        device_release_driver(dev)
        return ret
    dev.max_seg_size = _MAX_SEGMENT
    nic.mac = struct.pack("<IH", nic._read(MAC_LO), nic._read(MAC_HI) & 0xFFFF)
    kernel.drivers.append(nic)
    return nic
