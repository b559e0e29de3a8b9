# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot a guest kernel: enumerate PCI, look for Xen's PV-IOMMU, put every device under it."""

from collections.abc import Callable
from typing import Any, Final

from abi.errno import errno_name
from abi.versions import Abi
from base.units import Sbdf
from guest_driver.linux.device import Device
from guest_driver.linux.dma import (
    dma_alloc_coherent,
    dma_free_coherent,
    dma_map_page,
    dma_map_resource,
    dma_map_sg,
    dma_map_single,
    dma_mapping_error,
    dma_set_mask_and_coherent,
    dma_unmap_page,
    dma_unmap_resource,
    dma_unmap_sg,
    dma_unmap_single,
)
from guest_driver.linux.iommu_core import Iommu
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.port import GuestRam, HypercallPort, MmioPort, PciHost
from guest_driver.xen_iommu import X86_MSI_WINDOW, XenIommu, xen_iommu_init

DriverInit = Callable[..., XenIommu | int]
"""What starts a driver: called like :func:`guest_driver.xen_iommu.xen_iommu_init`."""


class DmaApi:
    """The DMA API's functions in one place; each takes the device first."""

    map_page = staticmethod(dma_map_page)
    unmap_page = staticmethod(dma_unmap_page)
    map_single = staticmethod(dma_map_single)
    unmap_single = staticmethod(dma_unmap_single)
    map_sg = staticmethod(dma_map_sg)
    unmap_sg = staticmethod(dma_unmap_sg)
    map_resource = staticmethod(dma_map_resource)
    unmap_resource = staticmethod(dma_unmap_resource)
    alloc_coherent = staticmethod(dma_alloc_coherent)
    free_coherent = staticmethod(dma_free_coherent)
    mapping_error = staticmethod(dma_mapping_error)
    set_mask_and_coherent = staticmethod(dma_set_mask_and_coherent)


class GuestKernel:
    """A booted guest.

    ``xen`` is the xen-iommu driver, or ``None`` with the reason in ``xen_errno`` (the devices then do DMA without
    an IOMMU of the guest's own).
    """

    def __init__(self, kernel: Kernel, xen: XenIommu | int) -> None:
        self.kernel: Final = kernel
        self.xen: XenIommu | None = None if isinstance(xen, int) else xen
        self.xen_errno: Final = xen if isinstance(xen, int) else 0
        self.dma: Final = DmaApi()

    @property
    def iommu(self) -> Iommu:
        """Groups and live domains."""
        return self.kernel.iommu

    @property
    def devices(self) -> dict[Sbdf, Device]:
        return {dev.pci.sbdf: dev for dev in self.kernel.devices}

    @property
    def log(self) -> list[str]:
        """Kernel log lines, oldest first."""
        return self.kernel.printk.lines

    @property
    def warnings(self) -> int:
        """Number of WARNs logged so far; 0 in a kernel whose parts keep their promises."""
        return self.kernel.printk.warnings

    def leaks(self) -> dict[str, int]:
        """What is still held, by kind: pages of guest memory, domains, IOVA ranges, contexts that Xen refused to free.

        Doorbells stay mapped as long as their domain lives and are not counted.
        """
        iovas = 0
        for domain in self.kernel.iommu.domains:
            if domain.cookie is not None and domain.cookie.iovad is not None:
                doorbells = sum(paddr != iova for paddr, iova, _ in domain.cookie.msi_pages)
                iovas += len(domain.cookie.iovad.live_ranges()) - doorbells
        return {
            "pages": self.kernel.pages.allocated,
            "domains": len(self.kernel.iommu.domains),
            "iovas": iovas,
            "contexts": len(self.xen.stranded) if self.xen is not None else 0,
        }

    def shutdown(self) -> None:
        """Unload the IOMMU driver; drivers of devices must have been removed before."""
        if self.xen is not None:
            self.xen.xen_iommu_exit()
            self.xen = None

    def save(self) -> Any:
        """A snapshot of all kernel state outside guest memory and hypervisor."""
        return self.xen, self.kernel.save()

    def restore(self, state: Any) -> None:
        """Back to a snapshot; the owner of guest memory and hypervisor takes those back to the same moment."""
        self.xen = state[0]
        self.kernel.restore(state[1])


def boot(
    hypercall: HypercallPort,
    ram: GuestRam,
    pci: PciHost,
    mmio: MmioPort,
    abi: Abi,
    *,
    cmdline: CommandLine | None = None,
    initial_domain: bool = True,
    msi_window: tuple[int, int] | None = X86_MSI_WINDOW,
    scatter: bool = True,
    before_probe: Callable[[Kernel], None] | None = None,
    init: DriverInit = xen_iommu_init,
) -> GuestKernel:
    """A guest kernel with its devices probed.

    ``initial_domain``: dom0, which also claims bridges.  ``msi_window``: (start, length) of addresses that bypass
    translation for interrupts, ``None`` on machines that translate doorbells.  ``scatter``: hand out guest pages
    far apart.  ``before_probe`` sees the kernel when PCI is enumerated and no IOMMU is registered yet.  ``init`` starts
    the IOMMU driver; :mod:`guest_driver.drivers` has others than the reference.
    """
    kernel = Kernel(ram, pci, mmio, cmdline or CommandLine(), scatter=scatter)
    kernel.devices.extend(Device(kernel, info) for info in pci.devices())
    if before_probe is not None:
        before_probe(kernel)
    xen = init(kernel, hypercall, abi, initial_domain=initial_domain, msi_window=msi_window)
    if isinstance(xen, int):
        kernel.printk.err(f"xen-iommu: not available ({errno_name(xen)})")
    return GuestKernel(kernel, xen)
