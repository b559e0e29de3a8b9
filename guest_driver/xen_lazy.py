# SPDX-License-Identifier: GPL-2.0-or-later
"""Unmaps that wait for the flush: what a DMA-FQ domain needs of a driver whose hypercall flushes by itself.

No posted ABI has an unmap without a flush, so deferring invalidations alone gains nothing, and the reference driver
says DEFERRED_FLUSH is false.  What can be put off is the hypercall: dma-iommu gives no IOVA of a DMA-FQ domain out
again before flush_iotlb_all has returned, and IOVAs that were handed out one after the other lie side by side, so that
a queue's worth of unmaps becomes a few calls.  (virtio-iommu queues its unmap requests in the same place.)

The price is that of every lazy mode, and one more: a device reaches a buffer until the flush, and an unmap that the
hypervisor refuses is found out when its caller is gone, so it can only be a WARN.  Other domains stay strict.
"""

from typing import Any, Final

from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CAP_DEFERRED_FLUSH,
    IOMMU_DOMAIN_DMA_FQ,
    IommuIotlbGather,
)
from guest_driver.xen_iommu import XenIommu, XenIommuDomain


class QueuedUnmaps:
    """The unmaps of ``driver`` that wait, by domain: [first iova, end, page size], neighbours joined."""

    def __init__(self, driver: XenIommu) -> None:
        self._driver: Final = driver
        self._capable: Final = driver.xen_iommu_capable
        self._unmap: Final = driver.xen_iommu_unmap_pages
        self._free: Final = driver.xen_iommu_free
        self._waiting: dict[XenIommuDomain, list[list[int]]] = {}

    def capable(self, dev: Device, cap: int) -> bool:
        return cap == IOMMU_CAP_DEFERRED_FLUSH or self._capable(dev, cap)

    def unmap_pages(
        self, domain: XenIommuDomain, iova: int, pgsize: int, pgcount: int, gather: IommuIotlbGather
    ) -> int:
        """Forget the mapping and leave it to the flush; the bytes that were mapped from ``iova`` on."""
        if domain.type != IOMMU_DOMAIN_DMA_FQ:
            return self._unmap(domain, iova, pgsize, pgcount, gather)
        size = domain.shadow.covered(iova, pgsize * pgcount)
        if not size:
            return 0
        domain.shadow.remove(iova, size)
        waiting = self._waiting.setdefault(domain, [])
        last = waiting[-1] if waiting else None
        if last is not None and last[2] == pgsize and iova + size == last[0]:
            last[0] = iova
        elif last is not None and last[2] == pgsize and iova == last[1]:
            last[1] += size
        else:
            waiting.append([iova, iova + size, pgsize])
        return size

    def flush_iotlb_all(self, domain: XenIommuDomain) -> None:
        """Carry out what waits; the hypercalls flush.  What stays mapped all the same is a WARN."""
        driver = self._driver
        for first, end, pgsize in self._waiting.pop(domain, ()):
            done = driver.unmap_range(domain, first, pgsize, (end - first) // pgsize)
            driver.kernel.printk.warn_on(
                done < end - first,
                f"xen-iommu: context {domain.ctx_no}: {end - first - done:#x} bytes from {first + done:#x} stay mapped",
            )

    def free(self, domain: XenIommuDomain) -> None:
        """The context goes with everything in it."""
        self._waiting.pop(domain, None)
        self._free(domain)

    def save(self) -> Any:
        return {domain: [run[:] for run in waiting] for domain, waiting in self._waiting.items()}

    def restore(self, state: Any) -> None:
        self._waiting = {domain: [run[:] for run in waiting] for domain, waiting in state.items()}


def queue_unmaps(driver: XenIommu) -> None:
    """Let ``driver`` offer deferred flushing, where the guest's own shadow says what is mapped (v4 on)."""
    if driver.asks_hypervisor:
        return
    queued = QueuedUnmaps(driver)
    driver.stateful.append(queued)
    driver.ops.capable = queued.capable
    driver.domain_ops.unmap_pages = queued.unmap_pages
    driver.domain_ops.flush_iotlb_all = queued.flush_iotlb_all
    driver.domain_ops.free = queued.free
