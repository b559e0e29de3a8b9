# SPDX-License-Identifier: GPL-2.0-or-later
"""C9, C10, F8, G7, H5: domains that are not the hardware domain, that have no IOMMU, or that end."""

from collections.abc import Iterable
from typing import Final

from abi.errno import EINVAL, ENODEV, ENOENT, ENOSPC
from hypervisor.defects.model import V1_TO_7, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.moves import move_device
from hypervisor.pagetable.radix import Changes
from hypervisor.pviommu.result import Result
from hypervisor.xen import Xen


def contexts_outlive_their_domain(seams: Seams) -> None:
    """C9."""
    replace(seams.xen, "relinquish_contexts", lambda domain: 0)


def arena_is_not_accounted(seams: Seams) -> None:
    """C10."""
    xen = seams.xen
    create = xen.create_domain

    def create_domain(
        domid: int,
        *,
        hardware: bool = False,
        pv: bool = False,
        p2m_frames: int = 0,
        iommu: bool = True,
        mmio: Iterable[tuple[int, int]] = (),
        arena_pages: int | None = None,
    ) -> Domain:
        granted = xen.frames.frames
        return create(
            domid, hardware=hardware, pv=pv, p2m_frames=p2m_frames, iommu=iommu, mmio=mmio, arena_pages=granted
        )

    replace(xen, "create_domain", create_domain)


def dying_domains_map(seams: Seams) -> None:
    """F8."""
    loop = seams.loop
    enter = loop.enter

    def nothing_is_entered(
        domain: Domain, context: IommuContext, at: int, mfn: int, bits: int, changes: Changes
    ) -> int:
        result: int = 0 if domain.dying else enter(domain, context, at, mfn, bits, changes)
        return result

    def begin_dying(domain: Domain) -> None:
        domain.dying = True

    replace(loop, "enter", nothing_is_entered)
    replace(seams.xen, "begin_dying", begin_dying)


def no_contexts_for_quarantine(seams: Seams) -> None:
    """G7."""
    xen = seams.xen
    xen.quarantine_contexts = 0

    def quarantine(device: PciDevice) -> int:
        """Only the end of a domain settles for dom_io's context 0."""
        if not any(domain.dying and domain.devices.get(device.sbdf) is device for domain in xen.domains.values()):
            return -ENOSPC
        iommu = xen.dom_io().iommu
        assert iommu is not None
        return move_device(xen, xen.dom_io(), device, iommu.default)

    replace(xen, "quarantine", quarantine)


_WITHOUT_CONTEXTS: Final = {
    "noop": 0,
    "alloc_context": -ENOSPC,
    "free_context": -ENOENT,
    "reattach_device": -ENODEV,
    "map_pages": -EINVAL,
    "unmap_pages": -EINVAL,
}
"""What a sub-op answers before it comes to the IOMMU driver that is not there."""


def target_is_not_checked(seams: Seams) -> None:
    """H5."""
    remote = seams.rows["remote_cmd"].handler

    def remote_cmd(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        domid, number, _ = args
        target, inner = xen.domains.get(domid), xen.abi.subops.get(number)
        if not domain.hardware or target is None or target.iommu is not None or inner is None or not inner.implemented:
            return remote(xen, vcpu, domain, args, start)
        answer = _WITHOUT_CONTEXTS.get(inner.name)
        if answer is None:
            raise XenBug(f"fatal page fault: {inner.name} on d{domid}, which has no IOMMU, calls a driver through NULL")
        return answer, ()

    seams.replace_handler("remote_cmd", remote_cmd)


DEFECTS: Final = (
    Defect(
        "C9",
        V4_TO_7,
        "a domain's contexts outlive it: v4 and v5 miss the last number, v6 and v7 tear none down",
        "after the domain is destroyed its arena is in use, and pages that were mapped keep their references",
        "catalogue C9",
        contexts_outlive_their_domain,
    ),
    Defect(
        "C10",
        V4_TO_7,
        "any domain with an IOMMU may reserve an arena of any size, which is not accounted to it",
        "IOMMU_init of a guest domain with arena order 11 takes 8 MiB of Xen's memory",
        "catalogue C10",
        arena_is_not_accounted,
        subops=("init",),
    ),
    Defect(
        "F8",
        V4_TO_7,
        "map_pages for a dying domain counts and references pages that it does not map",
        "map_pages through remote_cmd answers 0; nothing is mapped, and the page has one reference more",
        "catalogue F8",
        dying_domains_map,
    ),
    Defect(
        "G7",
        V1_TO_7,
        "dom_io has no contexts for devices in quarantine",
        "taking a device away from a guest answers -ENOSPC, and the guest's memory stays in the device's reach",
        "catalogue G7",
        no_contexts_for_quarantine,
    ),
    Defect(
        "H5",
        V4_TO_7,
        "remote_cmd does not look whether its target has an IOMMU",
        "query_capabilities on behalf of a domain without one stops the host",
        "catalogue H5",
        target_is_not_checked,
        subops=("remote_cmd",),
    ),
)
