# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's doors (:mod:`guest_driver.port`), opened onto the emulated machine and hypervisor."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.port import PciInfo
from hypervisor.domain import Vcpu
from hypervisor.guest_access import DIRECT_MAP
from hypervisor.xen import Xen
from machine.interrupts import MessageInterrupts
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciFunction, PciTopology, PortType

FIRST_GUEST_VECTOR: Final = 0x30


class XenHypercalls:
    """One vCPU's hypercall instruction."""

    def __init__(self, xen: Xen, vcpu: Vcpu) -> None:
        self.hypercall: Final[Callable[..., int]] = partial(xen.hypercall, vcpu)


class DomainRam:
    """A domain's RAM as its own CPUs see it: page ``n`` is machine frame ``mfns[n]``."""

    def __init__(self, memory: PhysicalMemory, mfns: list[int], pv: bool) -> None:
        self._memory: Final = memory
        self._bytes: Final = memory.bytes
        self._touched: Final = memory.touched
        self.mfns: Final = mfns
        self.pages: int = len(mfns)
        self.xen_pv_domain: bool = pv

    def read(self, paddr: int, length: int) -> bytes:
        offset = paddr & PAGE_SIZE - 1
        if offset + length <= PAGE_SIZE:
            start = self.mfns[paddr >> PAGE_SHIFT] << PAGE_SHIFT | offset
            return self._bytes[start : start + length].tobytes()
        parts = []
        while length > 0:
            offset = paddr & PAGE_SIZE - 1
            size = min(length, PAGE_SIZE - offset)
            parts.append(self._memory.read(self.mfns[paddr >> PAGE_SHIFT] << PAGE_SHIFT | offset, size))
            paddr, length = paddr + size, length - size
        return b"".join(parts)

    def write(self, paddr: int, data: bytes) -> None:
        offset = paddr & PAGE_SIZE - 1
        if offset + len(data) <= PAGE_SIZE:
            mfn = self.mfns[paddr >> PAGE_SHIFT]
            if not self._touched[mfn]:
                self._memory.touch(mfn)
            start = mfn << PAGE_SHIFT | offset
            self._bytes[start : start + len(data)] = data
            return
        done = 0
        while done < len(data):
            offset = paddr + done & PAGE_SIZE - 1
            size = min(len(data) - done, PAGE_SIZE - offset)
            mfn = self.mfns[paddr + done >> PAGE_SHIFT]
            self._memory.write(mfn << PAGE_SHIFT | offset, data[done : done + size])
            done += size

    def window(self, paddr: int, length: int) -> memoryview:
        """The bytes themselves, within one page; whoever writes to them touches the frame first."""
        start = self.mfns[paddr >> PAGE_SHIFT] << PAGE_SHIFT | paddr & PAGE_SIZE - 1
        return self._bytes[start : start + length]

    def linear(self, paddr: int) -> int:
        return DIRECT_MAP + paddr

    def pfn_to_gfn(self, pfn: int) -> int:
        return self.mfns[pfn] if self.xen_pv_domain else pfn


class BusMmio:
    """Device registers, reached over the system bus."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus: Final = bus

    def readl(self, address: int) -> int:
        return self._bus.read32(address)

    def writel(self, address: int, value: int) -> None:
        self._bus.write32(address, value)


class MachinePci:
    """PCI enumeration by the hardware domain, and its message interrupts."""

    def __init__(self, pci: PciTopology, interrupts: MessageInterrupts, doorbell: int) -> None:
        self._pci: Final = pci
        self._interrupts: Final = interrupts
        self._doorbell: Final = doorbell
        self._next_vector = FIRST_GUEST_VECTOR

    def devices(self) -> Sequence[PciInfo]:
        return [_info(function) for _, function in sorted(self._pci.functions.items())]

    def request_irq(self, handler: Callable[[], None]) -> tuple[int, int] | None:
        vector = self._next_vector
        self._next_vector += 1
        self._interrupts.connect(vector, handler)
        return self._doorbell, vector

    def save(self) -> int:
        return self._next_vector

    def restore(self, state: int) -> None:
        self._next_vector = state


def _info(function: PciFunction) -> PciInfo:
    return PciInfo(
        sbdf=function.sbdf,
        class_code=function.class_code,
        vendor_id=function.vendor_id,
        device_id=function.device_id,
        is_bridge=function.secondary_bus is not None,
        is_pcie=function.port_type is not PortType.CONVENTIONAL,
        pcie_to_pci=function.port_type is PortType.PCIE_TO_PCI_BRIDGE,
        secondary_bus=function.secondary_bus,
        bars=tuple((bar.base, bar.length) for bar in function.bars),
        acs=function.acs,
        multifunction=function.multifunction,
    )
