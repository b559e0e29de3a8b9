# SPDX-License-Identifier: GPL-2.0-or-later
"""Destroying a domain: devices into quarantine, contexts, arena, memory, in this order, in passes.

From the first pass on the domain is *dying*: it can use PV-IOMMU no more, nor can ``remote_cmd`` on its behalf.  Every
pass can be the last for a while (a toolstack calls again), and what fails can be tried again: nothing is given up
before hardware has confirmed that it does not reach it.  Frames that somebody else still refers to stay, and with them
the domain as a shadow of itself, until :meth:`Xen.destroy_domain` finds them gone.
"""

from typing import TYPE_CHECKING

from hypervisor.domain import Domain
from hypervisor.frames import REF
from hypervisor.iommu.context import IommuContext
from hypervisor.p2m import P2m
from hypervisor.pviommu.contexts import tear_down_some
from hypervisor.pviommu.result import RESTART

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def relinquish(xen: "Xen", domain: Domain) -> int:
    """One pass: :data:`RESTART` if there is more to do, an errno, or 0 once nothing is left to be done."""
    xen.begin_dying(domain)
    error = xen.deassign_devices(domain) or xen.relinquish_contexts(domain) or xen.relinquish_default(domain)
    if error:
        return error
    _relinquish_memory(xen, domain)
    return 0


def begin_dying(domain: Domain) -> None:
    domain.dying = True
    if domain.iommu is not None:
        domain.iommu.allowed = False


def relinquish_contexts(xen: "Xen", domain: Domain) -> int:
    """Tear the domain's own contexts down, and give the arena back."""
    iommu = domain.iommu
    if iommu is None:
        return 0
    for context in sorted(iommu.contexts.values(), key=lambda context: context.parent is None):  # nested ones first
        error = _relinquish_context(xen, domain, context)
        if error:
            return error
        del iommu.contexts[context.number]
    iommu.limit = 0
    if iommu.arena is not None:
        xen.frames.put(iommu.arena.base, iommu.arena.pages, REF)
        iommu.arena = None
    return 0


def relinquish_default(xen: "Xen", domain: Domain) -> int:
    """Tear the default context down, once."""
    iommu = domain.iommu
    return 0 if iommu is None or iommu.default.hw is None else _relinquish_context(xen, domain, iommu.default)


def _relinquish_context(xen: "Xen", domain: Domain, context: IommuContext) -> int:
    context.dying = True
    empty, error = tear_down_some(xen, domain, context)
    if not error and not empty:
        return RESTART
    return error or xen.forget_context(context)


def _relinquish_memory(xen: "Xen", domain: Domain) -> None:
    """Drop the domain's own references on its frames."""
    frames = xen.frames
    if isinstance(domain.translation, P2m):
        domain.translation.clear(0, domain.translation.size)
    for mfn in frames.of(domain.domid):
        frames.disown(mfn)
