# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract between the IOMMU core and a driver (include/linux/iommu.h).

A driver fills an :class:`IommuOps` and an :class:`IommuDomainOps`, the kernel's tables of function pointers, where
``None`` means what a NULL pointer means there.  Functions answer 0 or a byte count, or -errno; they do not raise.
Where C fills an out parameter, the function returns a tuple; where C returns ERR_PTR, it returns a negative int.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from guest_driver.linux.device import Device
    from guest_driver.linux.dma_cookie import IommuDmaCookie
    from guest_driver.linux.io_pgfault import IopfFault, IopfGroup
    from guest_driver.linux.iommu_core import Iommu
    from guest_driver.linux.iommu_group import IommuGroup
    from guest_driver.sva.mm import MmStruct

# Protection bits of a mapping.
IOMMU_READ: Final = 1
IOMMU_WRITE: Final = 2
IOMMU_CACHE: Final = 4
IOMMU_NOEXEC: Final = 8
IOMMU_MMIO: Final = 16
IOMMU_PRIV: Final = 32

# Domain types are sets of these bits; BLOCKED is the empty set, so a driver that forgets the type blocks.
IOMMU_DOMAIN_PAGING_BIT: Final = 1
IOMMU_DOMAIN_DMA_API_BIT: Final = 2
IOMMU_DOMAIN_PT_BIT: Final = 4
IOMMU_DOMAIN_DMA_FQ_BIT: Final = 8

IOMMU_DOMAIN_BLOCKED: Final = 0
IOMMU_DOMAIN_UNMANAGED: Final = 1
IOMMU_DOMAIN_DMA: Final = 3
IOMMU_DOMAIN_IDENTITY: Final = 4
IOMMU_DOMAIN_DMA_FQ: Final = 11
IOMMU_DOMAIN_SVA: Final = 16
IOMMU_DOMAIN_NESTED: Final = 64

# Capabilities that ops.capable answers for.
IOMMU_CAP_CACHE_COHERENCY: Final = 0
IOMMU_CAP_NOEXEC: Final = 1
IOMMU_CAP_PRE_BOOT_PROTECTION: Final = 2
IOMMU_CAP_ENFORCE_CACHE_COHERENCY: Final = 3
IOMMU_CAP_DEFERRED_FLUSH: Final = 4
IOMMU_CAP_DIRTY_TRACKING: Final = 5

# Reserved region types.
IOMMU_RESV_DIRECT: Final = 0
IOMMU_RESV_DIRECT_RELAXABLE: Final = 1
IOMMU_RESV_RESERVED: Final = 2
IOMMU_RESV_MSI: Final = 3
IOMMU_RESV_SW_MSI: Final = 4

RESV_TYPE_NAMES: Final = {
    IOMMU_RESV_DIRECT: "direct",
    IOMMU_RESV_DIRECT_RELAXABLE: "direct-relaxable",
    IOMMU_RESV_RESERVED: "reserved",
    IOMMU_RESV_MSI: "msi",
    IOMMU_RESV_SW_MSI: "msi",
}
"""What sysfs prints."""

IOMMU_NO_PASID: Final = 0


@dataclass(frozen=True, slots=True)
class IommuResvRegion:
    """``length`` bytes from ``start`` that the IOVA space of a device must not be used for freely."""

    start: int
    length: int
    prot: int
    type: int

    @property
    def last(self) -> int:
        return self.start + self.length - 1


class IommuIotlbGather:
    """The range that an unmap has to invalidate before its pages may be reused; ``last`` is inclusive."""

    __slots__ = ("last", "pgsize", "start")

    def __init__(self) -> None:
        self.start = ~0
        self.last = 0
        self.pgsize = 0

    def is_empty(self) -> bool:
        return not self.pgsize

    def add_range(self, iova: int, size: int, pgsize: int) -> None:
        """Grow to cover ``size`` bytes from ``iova``, unmapped in pages of ``pgsize``."""
        last = iova + size - 1
        if not self.pgsize:
            self.start, self.last, self.pgsize = iova, last, pgsize
            return
        self.start = min(self.start, iova)
        self.last = max(self.last, last)
        self.pgsize = min(self.pgsize, pgsize)


@dataclass(slots=True)
class IommuDomainOps:
    """What one kind of domain can do.  The domain argument is declared by the driver as its own class."""

    attach_dev: Callable[[Any, Device, IommuDomain | None], int]
    """(domain, dev, old): 0, or -errno with the old attachment still in force; -EINVAL: will never fit."""
    map_pages: Callable[[Any, int, int, int, int, int, int], tuple[int, int]] | None = None
    """(domain, iova, paddr, pgsize, pgcount, prot, gfp) -> (0 or -errno, bytes really mapped, also on error)."""
    unmap_pages: Callable[[Any, int, int, int, IommuIotlbGather], int] | None = None
    """(domain, iova, pgsize, pgcount, gather) -> bytes unmapped from iova on; 0 if nothing was there."""
    iotlb_sync_map: Callable[[Any, int, int], int] | None = None
    """(domain, iova, size): once after a whole mapping."""
    iotlb_sync: Callable[[Any, IommuIotlbGather], None] | None = None
    flush_iotlb_all: Callable[[Any], None] | None = None
    iova_to_phys: Callable[[Any, int], int] | None = None
    """(domain, iova) -> physical address with the offset in the page, 0 if nothing is mapped."""
    set_dev_pasid: Callable[[Any, Device, int, IommuDomain | None], int] | None = None
    enforce_cache_coherency: Callable[[Any], bool] | None = None
    set_dirty_tracking: Callable[[Any, bool], int] | None = None
    """(domain, enable): 0 or -errno; only domains that were allocated for it have this."""
    read_and_clear_dirty: Callable[[Any, int, int, bool], list[tuple[int, int]] | int] | None = None
    """(domain, iova, size, keep) -> (iova, bytes) of pages written since the last reading that did not keep."""
    cache_invalidate_user: Callable[[Any, int, list[bytes]], tuple[int, int]] | None = None
    """(nested domain, data type, entries) -> (0 or -errno, entries done)."""
    free: Callable[[Any], None] | None = None


@dataclass(slots=True)
class ViommuOps:
    """What a driver does for one type of vIOMMU; the arguments are iommufd's objects (struct iommufd_viommu_ops)."""

    alloc_domain_nested: Callable[[Any, int, int, bytes], IommuDomain | int] | None = None
    """(viommu, flags, data type, data)."""
    cache_invalidate: Callable[[Any, int, list[bytes]], tuple[int, int]] | None = None
    """(viommu, data type, entries) -> (0 or -errno, entries done)."""
    hw_queue_types: tuple[int, ...] = ()
    hw_queue_init: Callable[[Any, int], int] | None = None
    """(hw queue, physical address): 0 or -errno."""
    hw_queue_destroy: Callable[[Any], None] | None = None
    destroy: Callable[[Any], None] | None = None


class IommuDomain:
    """An I/O address space.  Drivers derive their own from it."""

    __slots__ = (
        "__weakref__",
        "aperture_last",
        "aperture_start",
        "cookie",
        "force_aperture",
        "iommu",
        "iopf_handler",
        "ops",
        "owner",
        "pgsize_bitmap",
        "type",
    )

    def __init__(self, type: int = IOMMU_DOMAIN_BLOCKED, ops: IommuDomainOps | None = None) -> None:
        self.type = type
        self.ops: IommuDomainOps = ops  # type: ignore[assignment]  # the core fills in default_domain_ops
        self.owner: IommuOps | None = None
        self.iommu: Iommu = None  # type: ignore[assignment]  # set by the core before first use
        self.pgsize_bitmap = 0
        self.aperture_start = 0
        self.aperture_last = (1 << 64) - 1
        self.force_aperture = False
        self.cookie: IommuDmaCookie | None = None
        self.iopf_handler: Callable[[IopfGroup], int] | None = None
        """Takes groups of page requests; ``None`` answers them INVALID."""

    def save(self) -> Any:
        """State that :meth:`restore` brings back; derived classes extend both."""
        cookie = self.cookie
        return self.type, cookie, None if cookie is None else cookie.save()

    def restore(self, state: Any) -> None:
        self.type, self.cookie, saved = state
        if self.cookie is not None:
            self.cookie.restore(saved)


@dataclass(slots=True, eq=False)
class IommuOps:
    """A driver, as the core sees it."""

    name: str
    probe_device: Callable[[Device], IommuDevice | int]
    """The unit that covers the device, or -ENODEV to decline."""
    device_group: Callable[[Device], IommuGroup | int]
    default_domain_ops: IommuDomainOps
    """For the domains that domain_alloc_paging makes."""
    domain_alloc: Callable[[int], IommuDomain | None] | None = None
    """Up to Linux 6.6: a domain of any type, which the core writes into it; ``None`` (NULL) for failure.  Static
    domains and domain_alloc_paging go before it."""
    domain_alloc_paging: Callable[[Device], IommuDomain | int] | None = None
    domain_alloc_paging_flags: Callable[[Device, int], IommuDomain | int] | None = None
    """(dev, the uAPI's IOMMU_HWPT_ALLOC_* bits): a paging domain on user space's behalf."""
    domain_alloc_nested: Callable[[Device, IommuDomain, int, int, bytes], IommuDomain | int] | None = None
    """(dev, parent, flags, data type, data): a domain whose first stage user space owns."""
    domain_alloc_sva: Callable[[Device, MmStruct], IommuDomain | int] | None = None
    """A domain over the page tables of a process."""
    hw_info: Callable[[Device], tuple[int, bytes] | int] | None = None
    """(data type, data) for user space."""
    viommu_types: dict[int, Callable[[Any, bytearray | None], ViommuOps | int]] = field(default_factory=dict)
    """vIOMMU type to (viommu, user data, which may be changed) -> what the driver does for it, or -errno."""
    page_response: Callable[[Device, IopfFault, int], None] | None = None
    """(dev, last request of a group, code): the answer to page requests."""
    user_pasid_table: bool = False
    """A nested table brings PASIDs that only user space knows."""
    capable: Callable[[Device, int], bool] | None = None
    release_device: Callable[[Device], None] | None = None
    get_resv_regions: Callable[[Device], list[IommuResvRegion]] | None = None
    def_domain_type: Callable[[Device], int] | None = None
    """IOMMU_DOMAIN_IDENTITY, IOMMU_DOMAIN_DMA, or 0 for no opinion."""
    is_attach_deferred: Callable[[Device], bool] | None = None
    identity_domain: IommuDomain | None = None
    blocked_domain: IommuDomain | None = None
    release_domain: IommuDomain | None = None
    default_domain: IommuDomain | None = None
    """Set only by drivers whose default domain is not negotiable."""

    def static_domains(self) -> list[IommuDomain]:
        found = (self.identity_domain, self.blocked_domain, self.release_domain, self.default_domain)
        return list(dict.fromkeys(domain for domain in found if domain is not None))


class IommuDevice:
    """One registered IOMMU."""

    __slots__ = ("max_pasids", "name", "ops")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ops: IommuOps = None  # type: ignore[assignment]  # set by iommu_device_register
        self.max_pasids = 0
