# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest domains: what a toolstack does to build one, give it memory and pass devices through to it."""

from typing import Final, NamedTuple

from base.units import PAGE_SHIFT, DomId, make_sbdf
from hypervisor.domain import Domain
from hypervisor.guest_access import LinearMemory
from hypervisor.xen import Xen
from machine.memory import PhysicalMemory
from testbed.config import DomU
from testbed.ports import DomainRam

_ORDER: Final = 9
"""Memory is given in pieces of 2 MiB."""


class BuiltDomain(NamedTuple):
    """A guest domain with memory, and without devices and vCPUs."""

    domain: Domain
    mfns: list[int]
    """Machine frame of each page of its RAM."""
    linear: LinearMemory
    """Where its hypercalls' pointers lead."""


def build_domain(
    xen: Xen,
    memory: PhysicalMemory,
    domid: DomId,
    pages: int,
    order: int,
    *,
    pv: bool = False,
    iommu: bool = True,
    arena_pages: int | None = None,
) -> BuiltDomain:
    """A guest domain with ``pages`` pages of RAM in pieces of 2^``order``, all of it in its default context.

    ``ValueError`` without memory, or for an id that is taken; nothing is left of the domain then, unless hardware does
    not confirm that it forgot it: it is dying, and can be destroyed again.
    """
    domain = xen.create_domain(domid, pv=pv, p2m_frames=pages, iommu=iommu, arena_pages=arena_pages)
    mfns: list[int] = []
    try:
        for gfn in range(0, pages, 1 << order):
            mfn = xen.frames.allocate(domid, order)
            if mfn is None:
                raise ValueError(f"no memory for domain {domid}: page {gfn:#x} of {pages:#x}")
            if not pv:
                domain.p2m.set(gfn, mfn, 1 << order)
            mfns.extend(range(mfn, mfn + (1 << order)))
            if iommu:
                xen.map_default(domain, mfn if pv else gfn, mfn, 1 << order)
    except ValueError:
        xen.destroy_domain(domain)
        raise
    return BuiltDomain(domain, mfns, LinearMemory(memory, domain.translation, pages, mfns if pv else None, reserved=pv))


def add_domu(xen: Xen, memory: PhysicalMemory, domid: DomId, config: DomU, rams: dict[int, DomainRam]) -> Domain:
    """Build a guest domain; its RAM joins ``rams``.  ``ValueError`` without memory, or for a device that is not
    there."""
    pages = config.ram >> PAGE_SHIFT
    domain, mfns, linear = build_domain(xen, memory, domid, pages, _ORDER, arena_pages=config.arena_pages)
    for _ in range(config.vcpus):
        xen.add_vcpu(domain, linear)
    hardware = next(other for other in xen.domains.values() if other.hardware)
    for slot, sbdf in enumerate(config.devices, 1):
        device = hardware.devices.get(sbdf)
        if device is None:
            raise ValueError(f"the hardware domain has no device {sbdf:#x} to pass through")
        error = xen.assign_device(domain, device)
        if error:
            raise ValueError(f"{device.function} could not be given to domain {domid} ({error})")
        if config.vpci:
            domain.vpci[make_sbdf(0, 0, slot, 0)] = sbdf
    rams[domid] = DomainRam(memory, mfns, False)
    return domain
