# SPDX-License-Identifier: GPL-2.0-or-later
"""What the xen-iommu driver can do where Xen offers it (x1-nested): settle coherency, nest tables of user space.

Coherency is a property of a context from its making.  The core makes a domain first and says then that it has to
enforce coherency, so the domain's context is exchanged for another one, which works while nothing is mapped and
nobody is attached: once settled, never changed.

Nested tables of user space go over a paging domain: SMMUv3 context descriptors (data type 2: the first two words of a
stream table entry) or x86-64 tables (data type 1).  SMMUv3 invalidations are the unit's own commands; through a vIOMMU
they name virtual stream ids.  PASIDs have domains of their own where Xen has contexts for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from abi.errno import EINVAL, EIO, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP
from abi.x1 import MOST_COMMANDS, NestedFlags, NestedFormat
from base.units import PAGE_SHIFT, Sbdf
from guest_driver import xen_nested_vtd
from guest_driver.arm_smmu_v3.layouts import (
    CFG_BYPASS,
    CFG_S1,
    CMD_CFGI_CD,
    CMD_CFGI_CD_ALL,
    Config,
    Ste0,
    Ste1,
)
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import (
    IOMMU_CAP_ENFORCE_CACHE_COHERENCY,
    IOMMU_DOMAIN_NESTED,
    IommuDomain,
    IommuDomainOps,
    ViommuOps,
)
from guest_driver.linux.page_alloc import GFP_KERNEL

if TYPE_CHECKING:
    from guest_driver.iommufd.viommu import Viommu
    from guest_driver.xen_iommu import XenIommu, XenIommuDomain

HWPT_ALLOC_NEST_PARENT: Final = 1
HWPT_ALLOC_PASID: Final = 8
HWPT_DATA_ARM_SMMUV3: Final = 2
HW_INFO_ARM_SMMUV3: Final = 2
VIOMMU_TYPE_ARM_SMMUV3: Final = 1
VEVENTQ_TYPE_ARM_SMMUV3: Final = 1
INVALIDATE_DATA_ARM_SMMUV3: Final = 1
_DATA_TYPES: Final[dict[int, int]] = {
    NestedFormat.SMMUV3_CD: HWPT_DATA_ARM_SMMUV3,
    NestedFormat.VTD_FIRST_STAGE: xen_nested_vtd.HWPT_DATA_VTD_S1,
}
_ENTRY: Final = 16
"""Bytes of a command, and of the user's stream table entry."""
_STE0: Final = Ste0.v.mask | Ste0.cfg.mask | Ste0.s1fmt.mask | Ste0.s1contextptr.mask | Ste0.s1cdmax.mask
_STE1: Final = Ste1.s1dss.mask | Ste1.s1cir.mask | Ste1.s1cor.mask | Ste1.s1csh.mask
_ABORTS: Final = -1


class XenNestedDomain(IommuDomain):
    """User space's table over ``parent``; ``ctx_no`` is where its devices go, :data:`_ABORTS` for the empty context."""

    __slots__ = ("ctx_no", "parent")

    def __init__(self, parent: XenIommuDomain, ctx_no: int, ops: IommuDomainOps) -> None:
        super().__init__(IOMMU_DOMAIN_NESTED, ops)
        self.parent: Final = parent
        self.ctx_no = ctx_no

    @property
    def nested(self) -> bool:
        """It has a context of its own."""
        return self.ctx_no not in (_ABORTS, self.parent.ctx_no)


class XenNesting:
    """Added to a driver whose hypervisor has it."""

    def __init__(self, driver: XenIommu) -> None:
        self._driver: Final = driver
        self._nested_ops: Final = IommuDomainOps(
            attach_dev=self.attach_dev_nested,
            cache_invalidate_user=self.cache_invalidate_user,
            set_dev_pasid=self.set_dev_pasid if driver._has("pasid") else None,
            free=self.domain_nested_free,
        )

    def query(self, dev: Device) -> tuple[int, ...]:
        """Flags, table format, PASID bits and four registers of the unit in front of ``dev``; zeros without one."""
        ret, fields = self._driver.call("query_device", *_parts(dev.pci.sbdf), *(0,) * 7)
        return (0,) * 7 if ret else fields[3:]

    # -- coherency

    def capable(self, dev: Device, cap: int) -> bool:
        if cap == IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
            return bool(self.query(dev)[0] & self._driver.abi.value_of["IOMMU_DEV_enforce_cache"])
        return self._driver.xen_iommu_capable(dev, cap)

    def enforce_cache_coherency(self, domain: XenIommuDomain) -> bool:
        """Exchange the domain's context for one that enforces; no later than the first map and attach."""
        driver = self._driver
        if domain.enforces_cache:
            return True
        if not domain.shadow.empty:
            return False
        ctx_no = driver.alloc_context(driver.abi.alloc_cache)
        if ctx_no < 0:
            return False
        ret, _ = driver.call("free_context", domain.ctx_no, 0)
        if ret:  # a device is in it
            driver.free_context(ctx_no)
            return False
        domain.ctx_no, domain.enforces_cache = ctx_no, True
        return True

    # -- nested domains

    def domain_alloc_paging_flags(self, dev: Device, flags: int) -> IommuDomain | int:
        """A paging domain; it may be a parent where the device's unit takes nested tables."""
        known = HWPT_ALLOC_NEST_PARENT if self.query(dev)[1] else 0
        if self._driver._has("pasid"):
            known |= HWPT_ALLOC_PASID
        if flags & ~known:
            return -EOPNOTSUPP
        return self._driver.xen_iommu_domain_alloc_paging(dev)

    def domain_alloc_nested(
        self, dev: Device, parent: IommuDomain, flags: int, data_type: int, data: bytes
    ) -> IommuDomain | int:
        """-EOPNOTSUPP for another data type than the unit's, -EINVAL for a parent of another kind, -EIO for an entry
        that is not user space's to make, and what Xen answers."""
        from guest_driver.xen_iommu import XenIommuDomain

        form = self.query(dev)[1]
        if data_type != _DATA_TYPES.get(form) or flags & ~HWPT_ALLOC_PASID:
            return -EOPNOTSUPP
        if not isinstance(parent, XenIommuDomain):
            return -EINVAL
        if form == NestedFormat.VTD_FIRST_STAGE:
            found = xen_nested_vtd.table_of(data)
            return found if isinstance(found, int) else self._make_nested(parent, *found)
        return self._over_descriptors(parent, data)

    def _over_descriptors(self, parent: XenIommuDomain, data: bytes) -> IommuDomain | int:
        if len(data) < _ENTRY:
            return -EINVAL
        low, high = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        cfg = Ste0.cfg.get(low)
        if low & Ste0.v.mask == 0:
            cfg = 0
        elif low & ~_STE0 or high & ~_STE1 or cfg not in (0, CFG_BYPASS, CFG_S1):
            return -EIO
        if cfg != CFG_S1:
            if not self._driver.kernel.kzalloc("nested domain"):
                return -ENOMEM
            return XenNestedDomain(parent, parent.ctx_no if cfg == CFG_BYPASS else _ABORTS, self._nested_ops)
        table_flags = NestedFlags.pack(
            format=NestedFormat.SMMUV3_CD,
            s1fmt=Ste0.s1fmt.get(low),
            s1dss=Ste1.s1dss.get(high),
            s1cdmax=Ste0.s1cdmax.get(low),
        )
        return self._make_nested(parent, low & Ste0.s1contextptr.mask, table_flags)

    def _make_nested(self, parent: XenIommuDomain, address: int, table_flags: int) -> IommuDomain | int:
        if address & (1 << PAGE_SHIFT) - 1:
            return -EINVAL  # Xen takes tables by their frame
        if not self._driver.kernel.kzalloc("nested domain"):
            return -ENOMEM
        ret, fields = self._driver.call("alloc_nested", parent.ctx_no, address >> PAGE_SHIFT, table_flags)
        return ret or XenNestedDomain(parent, fields[0], self._nested_ops)

    def domain_nested_free(self, domain: XenNestedDomain) -> None:
        if domain.nested:
            self._driver.free_context(domain.ctx_no)

    def attach_dev_nested(self, domain: XenNestedDomain, dev: Device, old: IommuDomain | None) -> int:
        blocked = self._driver.blocked
        ctx_no = domain.ctx_no
        if ctx_no == _ABORTS:
            if blocked is None:
                return -ENODEV
            ctx_no = blocked.ctx_no
        return self._driver.call("reattach_device", ctx_no, *_parts(dev.pci.sbdf), 0)[0]

    def cache_invalidate_user(self, domain: XenNestedDomain, data_type: int, entries: list[bytes]) -> tuple[int, int]:
        """SMMUv3 commands name devices by their real stream ids here."""
        if data_type == xen_nested_vtd.INVALIDATE_DATA_VTD_S1:
            for done, entry in enumerate(entries):
                commands = xen_nested_vtd.commands_of(entry)
                ret = commands if isinstance(commands, int) else self.flush(domain.ctx_no, commands)[0]
                if ret:
                    return ret, done
            return 0, len(entries)
        if data_type != INVALIDATE_DATA_ARM_SMMUV3 or any(len(entry) < _ENTRY for entry in entries):
            return -EINVAL, 0
        return self.flush(domain.ctx_no, entries) if domain.nested else (0, len(entries))

    def flush(self, ctx_no: int, entries: list[bytes]) -> tuple[int, int]:
        """(0 or -errno, entries done) of commands for a nested context."""
        kernel = self._driver.kernel
        pfn = kernel.pages.alloc_pages(GFP_KERNEL)
        if not pfn:
            return -ENOMEM, 0
        done = ret = 0
        while done < len(entries) and not ret:
            some = entries[done : done + MOST_COMMANDS]
            kernel.ram.write(pfn << PAGE_SHIFT, b"".join(entry[:_ENTRY] for entry in some))
            ret, fields = self._driver.call("flush_nested", ctx_no, len(some), kernel.ram.linear(pfn << PAGE_SHIFT), 0)
            done += fields[3]
        kernel.pages.free_pages(pfn)
        return ret, done

    def hw_info(self, dev: Device) -> tuple[int, bytes] | int:
        """struct iommu_hw_info_arm_smmuv3 (flags, reserved, IDR0 to IDR5, IIDR, AIDR) or iommu_hw_info_vtd."""
        _, form, _, idr0, idr1, idr3, idr5 = self.query(dev)
        if form == NestedFormat.VTD_FIRST_STAGE:
            return xen_nested_vtd.HW_INFO_INTEL_VTD, xen_nested_vtd.hardware_information((idr0, idr1, idr3, idr5))
        if form != NestedFormat.SMMUV3_CD:
            return 0, b""
        words = (0, 0, idr0, idr1, 0, idr3, 0, idr5, 0, 0)
        return HW_INFO_ARM_SMMUV3, b"".join(word.to_bytes(4, "little") for word in words)

    # -- PASIDs

    def set_dev_pasid(self, domain: Any, dev: Device, pasid: int, old: IommuDomain | None) -> int:
        """The PASID's requests go through ``domain``, from ``old`` if it has been attached before."""
        call = self._driver.call
        if old is None:
            return call("attach_pasid", domain.ctx_no, *_parts(dev.pci.sbdf), pasid)[0]
        return call("reattach_device", domain.ctx_no, *_parts(dev.pci.sbdf), pasid)[0]

    def blocking_set_dev_pasid(self, domain: Any, dev: Device, pasid: int, old: IommuDomain | None) -> int:
        ret, _ = self._driver.call("detach_pasid", *_parts(dev.pci.sbdf), pasid)
        return 0 if ret == -ENOENT else ret

    # -- vIOMMU

    def viommu_init(self, viommu: Viommu, data: bytearray | None) -> ViommuOps | int:
        """A virtual SMMU; -EOPNOTSUPP where the units are not of that kind."""
        devices = [dev for dev in self._driver.kernel.devices if dev.iommu is not None]
        if not any(self.query(dev)[1] == NestedFormat.SMMUV3_CD for dev in devices):
            return -EOPNOTSUPP
        made = XenViommu(self, self._driver)
        viommu.priv = made
        return ViommuOps(alloc_domain_nested=made.alloc_domain_nested, cache_invalidate=made.cache_invalidate)


class XenViommu:
    """A virtual SMMU over one parent: all nested domains that were made through it share TLB tags."""

    def __init__(self, nesting: XenNesting, driver: XenIommu) -> None:
        self._nesting: Final = nesting
        self._driver: Final = driver
        self._domains: Final[list[XenNestedDomain]] = []

    def alloc_domain_nested(self, viommu: Viommu, flags: int, data_type: int, data: bytes) -> IommuDomain | int:
        dev = self._driver.kernel.devices[0]
        made = self._nesting.domain_alloc_nested(dev, viommu.hwpt.domain, flags, data_type, data)
        if isinstance(made, XenNestedDomain):
            self._domains.append(made)
        return made

    def cache_invalidate(self, viommu: Viommu, data_type: int, entries: list[bytes]) -> tuple[int, int]:
        """Virtual stream ids become real ones; TLB commands reach every nested table with a device in it."""
        if data_type != INVALIDATE_DATA_ARM_SMMUV3 or any(len(entry) < _ENTRY for entry in entries):
            return -EINVAL, 0
        live = [domain for domain in self._domains if domain.nested and domain in self._driver.kernel.iommu.domains]
        for done, entry in enumerate(entries):
            word = int.from_bytes(entry[:8], "little")
            targets = live
            if word & 0xFF in (CMD_CFGI_CD, CMD_CFGI_CD_ALL):
                vdevice = viommu.vdevices.get(Config.sid.get(word))
                if vdevice is None or vdevice.idev is None:
                    return -EIO, done
                dev = vdevice.idev.dev
                word = word & ~Config.sid.mask | Config.sid.put(dev.pci.sbdf & 0xFFFF)
                targets = [d for d in live if dev.iommu_group is not None and dev.iommu_group.domain is d]
            for domain in targets:
                ret, _ = self._nesting.flush(domain.ctx_no, [word.to_bytes(8, "little") + entry[8:16]])
                if ret:
                    return -EIO if ret == -EINVAL else ret, done
        return 0, len(entries)


def deliver_faults(driver: XenIommu, viommu: Viommu) -> int:
    """Give the vIOMMU's event queue what Xen has for this guest; how many records were delivered.

    A record is the unit's own event with the virtual stream id (struct iommu_vevent_arm_smmuv3): four words.
    """
    abi, delivered = driver.abi, 0
    while True:
        ret, fields = driver.call("next_fault", *(0,) * 8)
        if ret:
            return delivered
        segment, bus, devfn, flags, pasid, code, address, _ = fields
        sbdf = Sbdf(segment << 16 | bus << 8 | devfn)
        vdevice = next(
            (v for v in viommu.vdevices.values() if v.idev is not None and v.idev.dev.pci.sbdf == sbdf), None
        )
        if vdevice is None:
            continue
        with_pasid = flags & abi.value_of["IOMMU_FAULT_pasid"]
        word0 = code | (pasid << 12 | 1 << 11 if with_pasid else 0) | vdevice.virt_id << 32
        word1 = 1 << 35 if flags & abi.value_of["IOMMU_FAULT_read"] else 0
        record = b"".join(word.to_bytes(8, "little") for word in (word0, word1, address, 0))
        delivered += not viommu.report_event(VEVENTQ_TYPE_ARM_SMMUV3, record)


def _parts(sbdf: int) -> tuple[int, int, int]:
    return sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF


def add_nesting(driver: XenIommu) -> None:
    """Extend the tables of ``driver``; the hypervisor has query_device."""
    nesting = XenNesting(driver)
    ops: Any = driver.ops
    ops.capable = nesting.capable
    ops.hw_info = nesting.hw_info
    ops.domain_alloc_paging_flags = nesting.domain_alloc_paging_flags
    driver.domain_ops.enforce_cache_coherency = nesting.enforce_cache_coherency
    if driver._has("pasid"):
        driver.unit.max_pasids = driver.max_pasid + 1
        driver.domain_ops.set_dev_pasid = nesting.set_dev_pasid

        def blocked_has_pasids() -> int:
            assert driver.blocked is not None
            driver.blocked.ops.set_dev_pasid = nesting.blocking_set_dev_pasid
            return 0

        driver.static_domains.insert(1, blocked_has_pasids)  # after the one that makes it
    if driver._has("nested"):
        ops.domain_alloc_nested = nesting.domain_alloc_nested
        ops.viommu_types[VIOMMU_TYPE_ARM_SMMUV3] = nesting.viommu_init
        ops.user_pasid_table = True
