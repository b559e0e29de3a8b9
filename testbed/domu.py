# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest domains: what a toolstack does to build one, give it memory and pass devices through to it."""

from typing import Final

from base.units import PAGE_SHIFT, DomId, make_sbdf
from hypervisor.domain import Domain
from hypervisor.guest_access import LinearMemory
from hypervisor.xen import Xen
from machine.memory import PhysicalMemory
from testbed.config import DomU
from testbed.ports import DomainRam

_ORDER: Final = 9
"""Memory is given in pieces of 2 MiB."""


def add_domu(xen: Xen, memory: PhysicalMemory, domid: DomId, config: DomU, rams: dict[int, DomainRam]) -> Domain:
    """Build a guest domain; its RAM joins ``rams``.  ``ValueError`` without memory, or for a device that is not
    there."""
    pages = config.ram >> PAGE_SHIFT
    domain = xen.create_domain(domid, p2m_frames=pages, arena_pages=config.arena_pages)
    mfns: list[int] = []
    for gfn in range(0, pages, 1 << _ORDER):
        mfn = xen.frames.allocate(domid, _ORDER)
        if mfn is None:
            raise ValueError(f"no memory for domain {domid}: page {gfn:#x} of {pages:#x}")
        domain.p2m.set(gfn, mfn, 1 << _ORDER)
        xen.map_default(domain, gfn, mfn, 1 << _ORDER)
        mfns.extend(range(mfn, mfn + (1 << _ORDER)))
    linear = LinearMemory(memory, domain.translation, pages, None, reserved=False)
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
