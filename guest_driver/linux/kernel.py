# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's global variables, gathered in one object so that a process can run many kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from guest_driver.linux.device import Device
from guest_driver.linux.iommu_core import Iommu
from guest_driver.linux.mutex import Mutex
from guest_driver.linux.page_alloc import PageAllocator
from guest_driver.linux.printk import Printk
from guest_driver.linux.swiotlb import Swiotlb
from guest_driver.port import GuestRam, MmioPort, PciHost


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The kernel parameters that matter here."""

    passthrough: bool = False
    """iommu.passthrough=1: IDENTITY rather than DMA where the driver has no opinion."""
    strict: bool = True
    """iommu.strict=1: unmap invalidates before it returns; 0 asks for deferred flushing where it is possible."""
    forcedac: bool = False
    """iommu.forcedac=1: do not prefer IOVAs below 4 GiB."""


class Stateful(Protocol):
    """Something that a kernel snapshot includes."""

    def save(self) -> Any: ...

    def restore(self, state: Any) -> None: ...


class Kernel:
    """One running guest kernel, before any driver."""

    __slots__ = (
        "cmdline",
        "devices",
        "drivers",
        "iommu",
        "mmio",
        "pages",
        "pci",
        "printk",
        "ram",
        "slab_fault",
        "softirqs",
        "swiotlb",
        "unlocked",
    )

    def __init__(self, ram: GuestRam, pci: PciHost, mmio: MmioPort, cmdline: CommandLine, scatter: bool = True) -> None:
        self.ram = ram
        self.pci = pci
        self.mmio = mmio
        self.cmdline = cmdline
        self.printk = Printk()
        self.pages = PageAllocator(ram, self.printk, scatter=scatter)
        self.swiotlb = Swiotlb(ram, self.pages)
        self.iommu = Iommu(self.printk, cmdline.passthrough, cmdline.strict)
        self.devices: list[Device] = []
        """The PCI bus, in the order in which devices were added."""
        self.drivers: list[Stateful] = []
        """Driver instances with state of their own; they take part in snapshots."""
        self.softirqs: list[Callable[[], object]] = []
        """Work raised by interrupt handlers, run by :meth:`run_softirqs`."""
        self.slab_fault: Callable[[str], bool] | None = None
        """Fault point: called with what a small allocation is for; answering True makes it fail."""
        self.unlocked: Callable[[Mutex], object] | None = None
        """Called with every lock that is released: a moment at which another CPU may run."""

    def kzalloc(self, purpose: str) -> bool:
        """Whether there is memory for a small object of the kernel's own."""
        return self.slab_fault is None or not self.slab_fault(purpose)

    def run_softirqs(self) -> int:
        """Run what interrupt handlers have raised; returns how many pieces of work there were."""
        done = 0
        while self.softirqs:
            self.softirqs.pop(0)()
            done += 1
        return done

    def save(self) -> Any:
        """All kernel state outside guest memory, in time proportional to the number of live objects."""
        return (
            self.printk.save(),
            self.pages.save(),
            list(self.devices),
            [device.save() for device in self.devices],
            self.iommu.save(),
            [(driver, driver.save()) for driver in self.drivers],
            list(self.softirqs),
            self.swiotlb.save(),
        )

    def restore(self, state: Any) -> None:
        """Back to :meth:`save`; objects made since are forgotten, objects freed since live again."""
        printk, pages, devices, device_states, iommu, drivers, softirqs, swiotlb = state
        self.printk.restore(printk)
        self.pages.restore(pages)
        self.devices[:] = devices
        for device, saved in zip(devices, device_states):
            device.restore(saved)
        self.iommu.restore(iommu)
        self.drivers[:] = [driver for driver, _ in drivers]
        for driver, saved in drivers:
            driver.restore(saved)
        self.softirqs[:] = softirqs
        self.swiotlb.restore(swiotlb)
