# SPDX-License-Identifier: GPL-2.0-or-later
"""The xen-iommu driver: Linux's iommu_ops on top of Xen's iommu_op hypercall.

It follows the posted driver (RFC v3 and the Edera tree) in function names and shape, and what its reviewers asked for
in behaviour: static identity and blocked domains, byte counts that are exactly what the hypervisor did, errors that
reach the caller.  It asks the :class:`~abi.versions.Abi` value and the capabilities what it may use, never a version.

Context numbers: 0 is the default context; one is kept empty for ever to block devices; each paging domain has one.
"""

from collections.abc import Callable
from typing import Any, Final

from abi.errno import EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, errno_name
from abi.versions import DEFAULT_CONTEXT, Abi
from base.units import PAGE_SHIFT, PAGE_SIZE, U32_MAX
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CACHE,
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_DOMAIN_BLOCKED,
    IOMMU_DOMAIN_IDENTITY,
    IOMMU_DOMAIN_UNMANAGED,
    IOMMU_READ,
    IOMMU_RESV_MSI,
    IOMMU_RESV_RESERVED,
    IOMMU_WRITE,
    IommuDevice,
    IommuDomain,
    IommuDomainOps,
    IommuIotlbGather,
    IommuOps,
    IommuResvRegion,
)
from guest_driver.linux.iommu_probe import iommu_device_register, iommu_device_unregister
from guest_driver.linux.kernel import Kernel, Stateful
from guest_driver.linux.page_alloc import GFP_KERNEL
from guest_driver.linux.pci_group import pci_device_group
from guest_driver.port import HypercallPort
from guest_driver.xen_hypercall import IommuOp
from guest_driver.xen_nested import add_nesting
from guest_driver.xen_rdm import reserved_device_memory
from guest_driver.xen_shadow import IovaShadow

XEN_IOMMU_MAX_CONTEXTS: Final = 128
"""Contexts asked for at IOMMU_init."""
XEN_IOMMU_ARENA_ORDERS: Final = (12, 10, 8, 6)
"""log2 of the pages that IOMMU_init sets aside for page tables: the first size that Xen has memory for."""

X86_MSI_WINDOW: Final = (0xFEE00000, 0x100000)
"""Start and length of the addresses that interrupt remapping takes before translation on x86."""

_IOMMU_CLASS: Final = 0x0806
_REQUIRED: Final = (
    "query_capabilities",
    "alloc_context",
    "free_context",
    "reattach_device",
    "map_pages",
    "unmap_pages",
)


class XenIommuDomain(IommuDomain):
    """A Linux domain and the context behind it."""

    __slots__ = ("ctx_no", "enforces_cache", "shadow")

    def __init__(self, ctx_no: int, type: int, ops: IommuDomainOps | None = None) -> None:
        super().__init__(type, ops)
        self.ctx_no = ctx_no
        self.enforces_cache = False
        """Its context makes all DMA coherent (x1-nested)."""
        self.shadow = IovaShadow()

    def save(self) -> Any:
        return super().save(), self.shadow.save(), self.ctx_no, self.enforces_cache

    def restore(self, state: Any) -> None:
        domain, shadow, self.ctx_no, self.enforces_cache = state
        super().restore(domain)
        self.shadow.restore(shadow)


class XenIommu:
    """The driver after :func:`xen_iommu_init`."""

    def __init__(self, kernel: Kernel, port: HypercallPort, op: IommuOp, capabilities: tuple[int, ...]) -> None:
        max_iova_addr, cap_flags, pgsize_mask, max_pasid, max_ctx_no, max_nr_pages = capabilities
        abi = op.abi
        self.kernel: Final = kernel
        self.abi: Final = abi
        self.max_ctx_no: Final = max_ctx_no
        self.max_pasid: Final = max_pasid
        self.max_iova_addr: Final = max_iova_addr or U32_MAX
        """An IOMMU that does not say how far it reaches is trusted with 4 GiB."""
        self.cap_flags: Final = cap_flags
        self.has_cache: Final = self._has("cache")
        self._pv: Final = kernel.ram.xen_pv_domain
        # The frames of a PV guest are scattered: no page of it is bigger than 4 KiB.
        self.pgsize_mask: Final = pgsize_mask
        """Page sizes that the hypervisor takes."""
        self.pgsize_bitmap = pgsize_mask & PAGE_SIZE if self._pv else pgsize_mask
        """Page sizes of domains."""
        self.max_nr_pages: Final = min(max_nr_pages or U32_MAX, abi.max_nr_pages or U32_MAX)
        self.initial_domain = True
        self.static_domains: Final[list[Callable[[], int]]] = [self._make_blocked, self._make_identity]
        """What makes the domains that live as long as the driver, in order; each answers 0 or -errno."""
        self.msi_window: tuple[int, int] | None = X86_MSI_WINDOW
        self.stranded: list[int] = []
        """Contexts that Xen has refused to free; freeing is tried again before the next allocation."""
        self.blocked: XenIommuDomain | None = None
        self.identity: XenIommuDomain | None = None
        self.unit: Final = IommuDevice("xen-iommu")
        self._port: Final = port
        self._op: Final = op
        self.call: Final = op.call
        """(sub-op, fields...) -> (0 or -errno, fields as the hypervisor left them)."""
        self._map_pages: Final = op.bind("map_pages")
        self._unmap_pages: Final = op.bind("unmap_pages")
        self.extensions: Final[dict[str, Any]] = {}
        """For whoever exchanges functions in ``ops`` and ``domain_ops`` and needs state for that."""
        self.stateful: Final[list[Stateful]] = []
        """Such state as snapshots have to include."""
        self.asks_hypervisor: Final = abi.has("lookup_page")
        """iova_to_phys is the hypervisor's answer; domains keep no shadow."""
        self._deferred_flush: Final = abi.has("flush_pages") and self._has("deferred_flush")
        self.flags_of_prot: Final = [self._flags_of(prot) for prot in range(8)]
        self._m2p: dict[int, int] = {}
        self.domain_ops: Final = IommuDomainOps(
            attach_dev=self.xen_iommu_attach_dev,
            map_pages=self.xen_iommu_map_pages,
            unmap_pages=self.xen_iommu_unmap_pages,
            iotlb_sync_map=self.xen_iommu_iotlb_sync_map if self._deferred_flush else None,
            iova_to_phys=self.xen_iommu_iova_to_phys,
            free=self.xen_iommu_free,
        )
        self.ops: Final = IommuOps(
            name="xen-iommu",
            probe_device=self.xen_iommu_probe_device,
            device_group=pci_device_group,
            default_domain_ops=self.domain_ops,
            domain_alloc_paging=self.xen_iommu_domain_alloc_paging,
            capable=self.xen_iommu_capable,
            get_resv_regions=self.xen_iommu_get_resv_regions,
        )
        if abi.has("query_device"):
            add_nesting(self)

    def _has(self, capability: str) -> bool:
        return bool(self.cap_flags & self.abi.caps.get(capability, 0))

    def map_flags(self, prot: int) -> int:
        """map_flags for the protection bits of a mapping."""
        return self.flags_of_prot[prot & 7]

    def _flags_of(self, prot: int) -> int:
        """map_flags for READ, WRITE and CACHE of a mapping."""
        flags = 0
        if prot & IOMMU_READ:
            flags |= self.abi.map_readable
        if prot & IOMMU_WRITE:
            flags |= self.abi.map_writeable
        if prot & IOMMU_CACHE and self.has_cache:
            flags |= self.abi.map_cache
        if self._deferred_flush:
            flags |= self.abi.map_no_flush
        return flags

    # -- contexts

    def alloc_context(self, flags: int = 0) -> int:
        """A new context's number, or -errno (-ENOSPC when all are taken)."""
        self._free_stranded()
        ret, fields = self.call("alloc_context", 0, flags)
        return ret if ret else fields[0]

    def _free_stranded(self) -> None:
        for ctx_no in self.stranded[:]:
            if self.call("free_context", ctx_no, 0)[0] == 0:
                self.stranded.remove(ctx_no)

    def free_context(self, ctx_no: int) -> None:
        """Give a context back; one that Xen refuses to free is remembered, its number is not forgotten."""
        ret, _ = self.call("free_context", ctx_no, 0)
        if ret:
            self.stranded.append(ctx_no)
            self.kernel.printk.warn_on(True, f"xen-iommu: context {ctx_no} cannot be freed ({errno_name(ret)})")

    # -- iommu_ops

    def xen_iommu_probe_device(self, dev: Device) -> IommuDevice | int:
        """Every function but IOMMUs themselves and, outside the initial domain, bridges."""
        if dev.pci.class_code >> 8 == _IOMMU_CLASS or (dev.pci.is_bridge and not self.initial_domain):
            return -ENODEV
        return self.unit

    def xen_iommu_capable(self, dev: Device, cap: int) -> bool:
        """CACHE_COHERENCY as the hypervisor says; unmap flushes, so there is nothing to defer."""
        return cap == IOMMU_CAP_CACHE_COHERENCY and self.has_cache

    def xen_iommu_domain_alloc_paging(self, dev: Device) -> IommuDomain | int:
        """An empty context with its page sizes and aperture, or -errno (-ENOSPC: no context left)."""
        if not self.kernel.kzalloc("iommu domain"):
            return -ENOMEM
        ctx_no = self.alloc_context()
        if ctx_no < 0:
            return ctx_no
        return self.paging_domain(ctx_no)

    def paging_domain(self, ctx_no: int) -> XenIommuDomain:
        """The domain over context ``ctx_no``, complete: the core and iommufd read sizes and aperture at once."""
        domain = XenIommuDomain(ctx_no, IOMMU_DOMAIN_UNMANAGED)
        domain.pgsize_bitmap = self.pgsize_bitmap
        domain.aperture_last = self.max_iova_addr
        domain.force_aperture = True
        return domain

    def xen_iommu_get_resv_regions(self, dev: Device) -> list[IommuResvRegion]:
        """The MSI window, and the device's RMRRs if Xen tells them.

        RMRRs are RESERVED, not DIRECT: Xen keeps them mapped in every context a device enters and refuses to have
        them mapped over, so the guest has to stay out of them and has nothing to map.
        """
        regions = []
        if self.msi_window is not None:
            start, length = self.msi_window
            regions.append(IommuResvRegion(start, length, IOMMU_WRITE, IOMMU_RESV_MSI))
        kernel = self.kernel
        found = reserved_device_memory(self._port, kernel.ram, kernel.pages, dev.pci.sbdf)
        if not isinstance(found, int):
            regions += [
                IommuResvRegion(pfn << PAGE_SHIFT, pages << PAGE_SHIFT, 0, IOMMU_RESV_RESERVED) for pfn, pages in found
            ]
        return regions

    # -- domain ops

    def xen_iommu_attach_dev(self, domain: XenIommuDomain, dev: Device, old: IommuDomain | None) -> int:
        """Move the device to the domain's context; on an error Xen has left it where it was."""
        sbdf = dev.pci.sbdf
        return self.call("reattach_device", domain.ctx_no, sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF, 0)[0]

    def xen_iommu_map_pages(
        self, domain: XenIommuDomain, iova: int, paddr: int, pgsize: int, pgcount: int, prot: int, gfp: int
    ) -> tuple[int, int]:
        """Map in as few hypercalls as frames and limits allow; the byte count is what Xen says it has mapped."""
        if not prot & (IOMMU_READ | IOMMU_WRITE) or iova + pgsize * pgcount - 1 > domain.aperture_last:
            return -EINVAL, 0
        flags = self.flags_of_prot[prot & 7]
        limit = self.max_nr_pages
        frames = pgsize >> PAGE_SHIFT
        gfn, dfn = paddr >> PAGE_SHIFT, iova >> PAGE_SHIFT
        call = self._map_pages
        done = ret = 0
        while done < pgcount:
            count = pgcount - done
            if count > limit:
                count = limit
            first = gfn + done * frames
            if self._pv:
                first, count = self.gfn_run(first, count)
            ret, fields = call(domain.ctx_no, first, dfn + done * frames, flags, pgsize, count, 0)
            mapped = fields[6]
            done += mapped if mapped < count else count
            if ret:
                break
            if not mapped:
                ret = -EIO
                break
        size = done * pgsize
        if size and not self.asks_hypervisor:
            domain.shadow.insert(iova, size, paddr)
        return ret, size

    def gfn_run(self, pfn: int, count: int) -> tuple[int, int]:
        """Machine frame of ``pfn`` and how many of ``count`` pages from there lie in consecutive frames."""
        ram = self.kernel.ram
        if pfn >= ram.pages:
            return pfn, count  # registers of devices: a PV guest numbers them as the machine does
        pfn_to_gfn = ram.pfn_to_gfn
        gfn = pfn_to_gfn(pfn)
        if count == 1:
            return gfn, 1
        run = 1
        last = min(count, ram.pages - pfn)
        while run < last and pfn_to_gfn(pfn + run) == gfn + run:
            run += 1
        return gfn, run

    def xen_iommu_unmap_pages(
        self, domain: XenIommuDomain, iova: int, pgsize: int, pgcount: int, gather: IommuIotlbGather
    ) -> int:
        """Unmap and flush; the bytes that Xen says are gone, 0 if nothing was there."""
        size = self.unmap_range(domain, iova, pgsize, pgcount)
        if size and not self.asks_hypervisor:
            domain.shadow.remove(iova, size)
        return size

    def unmap_range(self, domain: XenIommuDomain, iova: int, pgsize: int, pgcount: int) -> int:
        """The hypercalls of :meth:`xen_iommu_unmap_pages`, without the shadow."""
        limit = self.max_nr_pages
        frames = pgsize >> PAGE_SHIFT
        dfn = iova >> PAGE_SHIFT
        done = 0
        while done < pgcount:
            count = pgcount - done
            if count > limit:
                count = limit
            ret, fields = self._unmap_pages(domain.ctx_no, dfn + done * frames, pgsize, count, 0)
            unmapped = fields[4]
            done += unmapped if unmapped < count else count
            if ret or not unmapped:
                break
        return done * pgsize

    def xen_iommu_iotlb_sync_map(self, domain: XenIommuDomain, iova: int, size: int) -> int:
        """One flush for a whole mapping, made with flushing held back."""
        granule = self.pgsize_bitmap & -self.pgsize_bitmap
        dfn, left = iova >> PAGE_SHIFT, size // granule
        while left:
            count = min(left, self.max_nr_pages)
            ret, _ = self.call("flush_pages", domain.ctx_no, dfn, granule, count)
            if ret:
                return ret
            dfn += count * granule >> PAGE_SHIFT
            left -= count
        return 0

    def xen_iommu_iova_to_phys(self, domain: XenIommuDomain, iova: int) -> int:
        """From the hypervisor where the ABI has lookup_page, else from the shadow; 0 if nothing is mapped."""
        if not self.asks_hypervisor:
            return domain.shadow.lookup(iova) or 0
        ret, fields = self.call("lookup_page", domain.ctx_no, iova >> PAGE_SHIFT, 0)
        if ret:
            return 0
        return self._gfn_to_pfn(fields[2]) << PAGE_SHIFT | iova & (PAGE_SIZE - 1)

    def _gfn_to_pfn(self, gfn: int) -> int:
        """The guest's own number of a frame; frames that are not its RAM keep theirs."""
        if not self._pv:
            return gfn
        ram = self.kernel.ram
        pfn = self._m2p.get(gfn)
        if pfn is None or ram.pfn_to_gfn(pfn) != gfn:
            self._m2p = {ram.pfn_to_gfn(pfn): pfn for pfn in range(ram.pages)}
            pfn = self._m2p.get(gfn, gfn)
        return pfn

    def xen_iommu_free(self, domain: XenIommuDomain) -> None:
        self.free_context(domain.ctx_no)

    # -- going away, snapshots

    def xen_iommu_exit(self) -> None:
        """Unregister, return every device to the default context and every context to Xen."""
        iommu_device_unregister(self.kernel, self.unit)
        self._leave()
        self.kernel.drivers.remove(self)

    def _leave(self) -> None:
        """Undo what comes before the registration; released devices still sit in the context that blocks."""
        for dev in self.kernel.devices:
            if isinstance(self.xen_iommu_probe_device(dev), int):
                continue
            sbdf = dev.pci.sbdf
            ret, _ = self.call("reattach_device", DEFAULT_CONTEXT, sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF, 0)
            if ret:
                self.kernel.printk.err(f"{dev.name}: not back in the default context ({errno_name(ret)})")
        for domain in (self.blocked, self.identity):
            if domain is not None and domain.ctx_no != DEFAULT_CONTEXT:
                self.free_context(domain.ctx_no)
        self._free_stranded()
        self._op.release()

    def _make_static_domains(self) -> int:
        for make in self.static_domains:
            ret = make()
            if ret:
                return ret
        return 0

    def _static_ops(self) -> IommuDomainOps:
        return IommuDomainOps(attach_dev=self.xen_iommu_attach_dev)

    def _make_blocked(self) -> int:
        """Reserve the context that stays empty."""
        ctx_no = self.alloc_context()
        if ctx_no < 0:
            return ctx_no
        self.blocked = XenIommuDomain(ctx_no, IOMMU_DOMAIN_BLOCKED, self._static_ops())
        self.ops.blocked_domain = self.ops.release_domain = self.blocked
        return 0

    def _make_identity(self) -> int:
        """The context that passes everything, if Xen has one or can make one."""
        if self._has("default_identity"):
            ctx_no = DEFAULT_CONTEXT
        elif self._has("identity"):
            ctx_no = self.alloc_context(self.abi.alloc_identity)
            if ctx_no < 0:
                return ctx_no
        else:
            return 0
        self.identity = self.ops.identity_domain = XenIommuDomain(ctx_no, IOMMU_DOMAIN_IDENTITY, self._static_ops())
        return 0

    def save(self) -> Any:
        return list(self.stranded), [part.save() for part in self.stateful]

    def restore(self, state: Any) -> None:
        self.stranded = list(state[0])
        for part, saved in zip(self.stateful, state[1]):
            part.restore(saved)


def _query(op: IommuOp) -> tuple[int, tuple[int, ...]]:
    ret, capabilities = op.call("query_capabilities", 0, 0, 0, 0, 0, 0)
    if ret in (-ENOSYS, -EPERM, -ENODEV, -op.abi.errno_unusable):
        return -ENODEV, ()
    return ret, capabilities


def xen_iommu_init(
    kernel: Kernel,
    port: HypercallPort,
    abi: Abi,
    *,
    initial_domain: bool = True,
    msi_window: tuple[int, int] | None = X86_MSI_WINDOW,
    arena_orders: tuple[int, ...] = XEN_IOMMU_ARENA_ORDERS,
    adjust: Callable[[XenIommu], None] | None = None,
) -> XenIommu | int:
    """Find Xen's PV-IOMMU and register the driver, or -errno with nothing left behind.

    ``adjust`` sees the driver when it is made and not yet registered; it may exchange functions in its tables.

    -ENODEV: this Xen has none, or not for us; -EOPNOTSUPP: it has one without contexts, or an ABI without what the
    driver needs; -ENOMEM; or the error of initialising it, or of the first attach of a device.
    """
    if not all(abi.has(name) for name in _REQUIRED):
        return -EOPNOTSUPP
    pfn = kernel.pages.alloc_pages(GFP_KERNEL)
    if not pfn:
        return -ENOMEM
    op = IommuOp(port, kernel.ram, kernel.pages, abi, pfn)
    ret, capabilities = _query(op)
    if not ret and not capabilities[4] and abi.has("init"):
        init = 0
        for order in arena_orders:
            init, _ = op.call("init", XEN_IOMMU_MAX_CONTEXTS, order)
            if init != -ENOMEM:
                break
        ret, capabilities = _query(op)
        if not ret and not capabilities[4]:
            ret = init
    if not ret and not (capabilities[4] and capabilities[2] & (PAGE_SIZE if kernel.ram.xen_pv_domain else ~0)):
        ret = -EOPNOTSUPP
    if ret:
        op.release()
        return -EOPNOTSUPP if ret == -ENOSPC else ret
    driver = XenIommu(kernel, port, op, capabilities)
    driver.initial_domain = initial_domain
    driver.msi_window = msi_window
    if adjust is not None:
        adjust(driver)
    ret = driver._make_static_domains()
    if not ret:
        ret = iommu_device_register(kernel, driver.unit, driver.ops)
    if ret:
        driver._leave()
        return ret
    kernel.drivers.append(driver)
    kernel.printk.info(
        f"xen-iommu: {driver.max_ctx_no} contexts, page sizes {driver.pgsize_bitmap:#x}, "
        f"IOVAs up to {driver.max_iova_addr:#x}, ABI {abi.name}"
    )
    return driver
