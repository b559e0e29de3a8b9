# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults in the life of domains and contexts."""

from typing import Any, Final

from abi.errno import errno_name
from abi.versions import DEFAULT_CONTEXT
from guest_driver.defects.model import Defect
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_DOMAIN_BLOCKED, IOMMU_DOMAIN_IDENTITY, IommuDomain, IommuDomainOps
from guest_driver.linux.oops import KernelOops, NullTable
from guest_driver.xen_iommu import XenIommu, XenIommuDomain


def _unchecked_kzalloc(driver: XenIommu) -> None:
    def domain_alloc_paging(dev: Device) -> IommuDomain | int:
        ctx_no = driver.alloc_context()
        if ctx_no < 0:
            return ctx_no
        if not driver.kernel.kzalloc("iommu domain"):
            raise KernelOops("unable to handle kernel NULL pointer dereference: a domain that could not be allocated")
        return driver.paging_domain(ctx_no)

    driver.ops.domain_alloc_paging = domain_alloc_paging


def _no_blocked_domain(driver: XenIommu) -> None:
    makers = driver.static_domains
    makers[:] = [make for make in makers if make.__name__ != "_make_blocked"]


def _allocates_by_type(driver: XenIommu) -> None:
    """domain_alloc(type): the default context for IDENTITY, a context of its own for everything else."""
    _no_blocked_domain(driver)
    paging = driver.ops.domain_alloc_paging
    assert paging is not None

    def domain_alloc(type: int) -> IommuDomain | None:
        if type & IOMMU_DOMAIN_IDENTITY:
            return XenIommuDomain(DEFAULT_CONTEXT, type, IommuDomainOps(attach_dev=driver.xen_iommu_attach_dev))
        domain = paging(None)  # type: ignore[arg-type]  # the old op is not told the device, and ours does not ask
        return None if isinstance(domain, int) else domain

    driver.ops.domain_alloc = domain_alloc
    driver.ops.domain_alloc_paging = None


def _after_identity(driver: XenIommu, change: Any) -> None:
    """Change the static identity domain as soon as it is there."""

    def finish() -> int:
        if driver.identity is not None:
            change(driver.identity)
        return 0

    driver.static_domains.append(finish)


def _identity_without_type(driver: XenIommu) -> None:
    def forget_type(identity: XenIommuDomain) -> None:
        identity.type = IOMMU_DOMAIN_BLOCKED

    _after_identity(driver, forget_type)


def _identity_without_ops(driver: XenIommu) -> None:
    def forget_ops(identity: Any) -> None:
        identity.type = IOMMU_DOMAIN_BLOCKED
        identity.ops = NullTable()

    _after_identity(driver, forget_ops)


def _free_forgets(driver: XenIommu) -> None:
    def free(domain: XenIommuDomain) -> None:
        ret, _ = driver.call("free_context", domain.ctx_no, 0)
        if ret:
            driver.kernel.printk.err(f"xen-iommu: context {domain.ctx_no} destruction failure ({errno_name(ret)})")

    driver.domain_ops.free = free


DOMAINS: Final = (
    Defect(
        id="K1",
        versions=("rfc-v1", "rfc-v2"),
        title="the domain's kzalloc is not checked",
        seen="without memory for the struct: NULL dereference, and the context is leaked",
        source="reading of RFC v1 and v2; RFC v3 checks",
        build=_unchecked_kzalloc,
    ),
    Defect(
        id="K2",
        versions=("rfc-v1",),
        title="domain_alloc looks for the IDENTITY bit only, so a BLOCKED domain is an ordinary paging context",
        seen="a DMA-ownership claim takes a context, and fails when all are taken, whatever the reason with -ENOMEM",
        source="Jason Gunthorpe on RFC v1: static domains and domain_alloc_paging instead of domain_alloc(type)",
        build=_allocates_by_type,
    ),
    Defect(
        id="L1.2-7",
        versions=("rfc-v2", "rfc-v3", "edera"),
        title="there is no blocked domain, so the core blocks with an empty paging domain",
        seen="a DMA-ownership claim takes a context, and fails with -ENOSPC when all are taken",
        source="Jason Gunthorpe on RFC v1 and v2: BLOCKED behaviour for release and ownership",
        build=_no_blocked_domain,
    ),
    Defect(
        id="K6",
        versions=("rfc-v2",),
        title="the static identity domain has no type, which means BLOCKED",
        seen="with iommu.passthrough=1 the default domain says it blocks, and iova_to_phys answers 0",
        source="Robin Murphy on RFC v2: name the identity domain properly",
        build=_identity_without_type,
    ),
    Defect(
        id="L1.2-6",
        also=("K6", "L8.7"),
        versions=("rfc-v3",),
        title="the static identity domain has neither type nor ops",
        seen="iommu.passthrough=1, or a device that leaves: NULL dereference",
        source="the later Edera commit says so and fixes it",
        build=_identity_without_ops,
    ),
    Defect(
        id="L1.2-8",
        also=("K12",),
        versions=("rfc-v1", "rfc-v2", "rfc-v3", "edera"),
        title="a free_context that fails is logged, and the number is forgotten",
        seen="one refused free_context, and that context is never given back",
        source="reading of every posted driver",
        build=_free_forgets,
    ),
)
