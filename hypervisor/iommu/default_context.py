# SPDX-License-Identifier: GPL-2.0-or-later
"""Context 0, which is Xen's: what a domain's memory looks like to its devices unless the guest says otherwise."""

from typing import TYPE_CHECKING

from abi.errno import EINVAL
from hypervisor.domain import Domain
from hypervisor.p2m import RAM_RW
from hypervisor.pagetable.radix import Changes

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def untranslated(xen: "Xen") -> bool:
    """Whether the hardware domain's default context lets requests through as they are: the command line asks for it,
    and the units can.  ``ValueError`` if it may not be done without."""
    if not xen.options.untranslated or xen.backend.passes_through:
        return xen.options.untranslated
    if xen.options.none:
        raise ValueError("dom0-iommu=none: a unit of this machine cannot let requests through untranslated")
    xen.log("dom0-iommu=passthrough is ignored: a unit cannot let requests through untranslated")
    return False


def map_default(xen: "Xen", domain: Domain, dfn: int, mfn: int, count: int) -> None:
    """Let the domain's devices in context 0 reach ``count`` frames from ``mfn`` at ``dfn`` (boot-time)."""
    assert domain.iommu is not None
    context = domain.iommu.default
    assert context.table is not None
    changes = Changes()
    fmt = context.table.format
    done, error = context.table.map(dfn, mfn, count, fmt.permission[3], changes)
    error = xen.finish_pass(domain, context, dfn, max(done, 1), changes) or error
    if error:
        raise ValueError(f"default context of domain {domain.domid}: dfn {dfn + done:#x} ({error})")


def unmap_default(xen: "Xen", domain: Domain, dfn: int, count: int) -> int:
    """The reverse; 0 or the errno that stopped it."""
    assert domain.iommu is not None
    context = domain.iommu.default
    assert context.table is not None
    changes = Changes()
    done, error = context.table.unmap(dfn, count, changes)
    return xen.finish_pass(domain, context, dfn, max(done, 1), changes) or error


def remove_page(xen: "Xen", domain: Domain, gfn: int) -> int:
    """Take a RAM page away from a domain (balloon, decrease_reservation): out of its p2m and of context 0, and its
    owner's reference dropped.  The frame is free once no device mapping holds it.  -EINVAL if not RAM of the domain's
    own; -EIO, and it stays the domain's, while hardware does not confirm."""
    mfn, kind, _ = domain.translation.run(gfn, 1)
    frames = xen.frames
    if kind != RAM_RW or mfn >= frames.frames or frames.owner[mfn] != domain.domid or not frames.allocated[mfn]:
        return -EINVAL
    if domain.iommu is not None:
        table = domain.iommu.default.table
        if table is not None and table.lookup(gfn) is not None:
            error = xen.unmap_default(domain, gfn, 1)
        else:  # an earlier attempt may have taken it out of the table without hardware confirming
            error = xen.settle(domain.iommu.default)
        if error:
            return error
    if not domain.pv:
        domain.p2m.clear(gfn)
    frames.disown(mfn)
    return 0
