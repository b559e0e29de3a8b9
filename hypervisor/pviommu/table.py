# SPDX-License-Identifier: GPL-2.0-or-later
"""The sub-op table: one row for every sub-op that any version of the interface names.

What is not written here does not exist for the dispatcher; a test holds the table against every ABI version.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from abi.errno import EINVAL, ENOENT, EPERM
from hypervisor.domain import Domain, Vcpu
from hypervisor.pviommu import contexts, mappings, nested, pasids
from hypervisor.pviommu.result import Result

if TYPE_CHECKING:
    from hypervisor.xen import Xen

Handler = Callable[["Xen", Vcpu, Domain, tuple[int, ...], int], Result]


class Row(NamedTuple):
    """How one sub-op is handled.

    ``handler`` gets the hypervisor, the calling vCPU, the domain to act on, the canonical arguments and the progress
    that an earlier pass of the same call noted (0 in the first).
    """

    handler: Handler
    resumes: bool = False
    """Whether a preempted call says in its re-issue how far it got."""
    remote: bool = True
    """Whether ``remote_cmd`` may carry it."""


def noop(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    return 0, ()


def remote_cmd(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
    """Run a sub-op on another domain, with the argument in the caller's memory.

    -EPERM unless the caller is the hardware domain, -ENOENT for an unknown domain, -EINVAL when nested; the target
    has to be able to use PV-IOMMU itself (the version's "unusable" errno otherwise).
    """
    domid, subop, arg = args
    if not domain.hardware:
        return -EPERM, ()
    target = xen.domains.get(domid)
    if target is None:
        return -ENOENT, ()
    inner = xen.abi.subops.get(subop)
    if inner is None:
        return -xen.abi.errno_unknown_subop, ()
    if inner.implemented and not ROWS[inner.name].remote:
        return -EINVAL, ()
    if target.iommu is None or not target.iommu.allowed:
        return -xen.abi.errno_unusable, ()
    return xen.entry_of(vcpu).enter(xen, vcpu, (subop | start, arg), target), ()


ROWS: Final[dict[str, Row]] = {
    "noop": Row(noop),
    "query_capabilities": Row(contexts.query_capabilities),
    "init": Row(contexts.init),
    "alloc_context": Row(contexts.alloc_context),
    "free_context": Row(contexts.free_context),
    "reattach_device": Row(contexts.reattach_device),
    "map_pages": Row(mappings.map_pages, resumes=True),
    "unmap_pages": Row(mappings.unmap_pages, resumes=True),
    "flush_pages": Row(mappings.flush_pages),
    "lookup_page": Row(mappings.lookup_page),
    "alloc_nested": Row(nested.alloc_nested),
    "flush_nested": Row(nested.flush_nested),
    "attach_pasid": Row(pasids.attach_pasid),
    "detach_pasid": Row(pasids.detach_pasid),
    "query_device": Row(nested.query_device),
    "next_fault": Row(nested.next_fault),
    "remote_cmd": Row(remote_cmd, resumes=True, remote=False),
}
