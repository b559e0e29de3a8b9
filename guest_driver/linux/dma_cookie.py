# SPDX-License-Identifier: GPL-2.0-or-later
"""What dma-iommu hangs on a domain: IOVA allocator, MSI doorbells, flush queue (struct iommu_dma_cookie)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from abi.errno import EEXIST, EINVAL
from guest_driver.linux.iommu import IOMMU_DOMAIN_UNMANAGED, IommuDomain
from guest_driver.linux.iova import IovaDomain

if TYPE_CHECKING:
    from guest_driver.linux.flush_queue import FlushQueue


class IommuDmaCookie:
    """``iovad`` is there once a device has set the domain up; without one, IOVAs for doorbells count up from
    ``msi_iova`` (a domain whose other addresses somebody else manages)."""

    __slots__ = ("fq", "iovad", "msi_iova", "msi_pages", "reserved_for")

    def __init__(self, msi_iova: int | None = None) -> None:
        self.iovad: IovaDomain | None = None
        self.fq: FlushQueue | None = None
        self.msi_iova = msi_iova
        self.msi_pages: list[tuple[int, int, int]] = []
        """(physical address, IOVA, bytes) of doorbells that devices of this domain can write to."""
        self.reserved_for: set[int] = set()
        """SBDFs whose reserved regions the allocator keeps free."""

    def put(self) -> None:
        """The domain is going: whatever is still queued for a flush is dropped with it."""
        self.fq = None
        self.iovad = None

    def save(self) -> Any:
        return (
            self.iovad,
            None if self.iovad is None else self.iovad.save(),
            self.fq,
            None if self.fq is None else self.fq.save(),
            self.msi_iova,
            list(self.msi_pages),
            set(self.reserved_for),
        )

    def restore(self, state: Any) -> None:
        self.iovad, iovas, self.fq, queue, self.msi_iova, pages, reserved_for = state
        if self.iovad is not None:
            self.iovad.restore(iovas)
        if self.fq is not None:
            self.fq.restore(queue)
        self.msi_pages = list(pages)
        self.reserved_for = set(reserved_for)


def iommu_get_dma_cookie(domain: IommuDomain) -> int:
    """Prepare ``domain`` for the DMA API; -EEXIST if it has a cookie."""
    if domain.cookie is not None:
        return -EEXIST
    domain.cookie = IommuDmaCookie()
    return 0


def iommu_get_msi_cookie(domain: IommuDomain, base: int) -> int:
    """Let doorbells be mapped from IOVA ``base`` up; -EINVAL unless UNMANAGED, -EEXIST if it has a cookie."""
    if domain.type != IOMMU_DOMAIN_UNMANAGED:
        return -EINVAL
    if domain.cookie is not None:
        return -EEXIST
    domain.cookie = IommuDmaCookie(base)
    return 0
