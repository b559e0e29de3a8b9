# SPDX-License-Identifier: GPL-2.0-or-later
"""The locks that calls of the toolstack hold: moves of devices, and pages that are taken away."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.locking.guards import context_lock, domain_lock, in_order, p2m_locks
from hypervisor.locking.locks import PCIDEVS, Lock, Locks

if TYPE_CHECKING:
    from hypervisor.xen import Xen


def _remove_page(locks: Locks, xen: "Xen", args: tuple[Any, ...]) -> list[Lock]:
    domain: Domain = args[0]
    held = list(p2m_locks(locks, domain))
    if domain.iommu is not None:
        held.append(context_lock(locks, domain, domain.iommu.default))
    return in_order(held)


def _assign_device(locks: Locks, xen: "Xen", args: tuple[Any, ...]) -> list[Lock]:
    domain: Domain = args[0]
    device: PciDevice = args[1]
    assert domain.iommu is not None
    owners = [(domain, domain.iommu.default)]
    if device.context is not None:
        owners.extend((owner, device.context) for owner in xen.domains.values() if owns(owner, device.context))
    held = [locks.of(PCIDEVS)]
    held.extend(domain_lock(locks, owner) for owner, _ in owners)
    held.extend(context_lock(locks, owner, context) for owner, context in owners)
    return in_order(held)


def owns(domain: Domain, context: IommuContext) -> bool:
    """Whether the context is one of the domain's."""
    return domain.iommu is not None and domain.iommu.get(context.number) is context


TOOLSTACK: Final[dict[str, Callable[[Locks, "Xen", tuple[Any, ...]], list[Lock]]]] = {
    "remove_page": _remove_page,
    "assign_device": _assign_device,
}
"""By method of the hypervisor: the locks that a call with these arguments takes, in order."""


def guard_toolstack(xen: "Xen", locks: Locks) -> None:
    """Let the methods of :data:`TOOLSTACK` hold their locks."""
    for name, take in TOOLSTACK.items():
        setattr(xen, name, _guarded(xen, locks, name, take, getattr(xen, name)))


def _guarded(
    xen: "Xen",
    locks: Locks,
    name: str,
    take: Callable[[Locks, "Xen", tuple[Any, ...]], list[Lock]],
    genuine: Callable[..., Any],
) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        locks.begin(locks.current, name)
        with locks.holding(*take(locks, xen, args)):
            return genuine(*args)

    return call
