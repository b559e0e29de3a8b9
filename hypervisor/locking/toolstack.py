# SPDX-License-Identifier: GPL-2.0-or-later
"""The locks that calls of the toolstack hold: moves of devices, pages that are taken away, domains that end.

What a call is made of takes its own locks: ``destroy_domain`` holds nothing while it goes from one step to the next.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.locking.guards import context_lock, domain_lock, in_order, p2m_locks
from hypervisor.locking.locks import PCIDEVS, Lock, Locks

if TYPE_CHECKING:
    from hypervisor.xen import Xen

Guard = Callable[[Locks, "Xen", tuple[Any, ...], Callable[[], Any]], Any]
"""Runs a method of the hypervisor, given its arguments, with the locks that it needs."""


def taking_a_page(locks: Locks, xen: "Xen", args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """Out of the p2m, and out of context 0."""
    domain: Domain = args[0]
    held = list(p2m_locks(locks, domain))
    if domain.iommu is not None:
        held.append(context_lock(locks, domain, domain.iommu.default))
    with locks.holding(*in_order(held)):
        return call()


def moving_a_device(locks: Locks, xen: "Xen", args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """From a context of one domain to one of another, either of which may be dom_io."""
    domain: Domain = args[0]
    device: PciDevice = args[1]
    with locks.holding(locks.of(PCIDEVS)):
        others = [domain] if xen.quarantined is None else [domain, xen.quarantined]
        touched = [(other, other.iommu.default) for other in others if other.iommu is not None]
        named = domain.iommu.get(args[2]) if domain.iommu is not None and len(args) > 2 else None
        if named is not None:
            touched.append((domain, named))
        if device.context is not None:
            source = owner(xen, device.context)
            touched.extend((source, context) for context in (device.context, *device.pasids.values()))
            touched.extend([(of, context.stage2) for of, context in touched])
        domains = in_order(domain_lock(locks, of) for of, _ in touched)
        contexts = in_order(context_lock(locks, of, context) for of, context in touched)
        with locks.holding(*domains, *contexts):
            return call()


def looking_for_devices(locks: Locks, xen: "Xen", args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """Who has which stays as it is from the look until the moves that follow from it are done, as in Xen's
    ``pci_remove_device`` and ``pci_release_devices``."""
    with locks.holding(locks.of(PCIDEVS)):
        return call()


def ending_contexts(locks: Locks, xen: "Xen", args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """All contexts of a domain."""
    domain: Domain = args[0]
    with locks.holding(domain_lock(locks, domain), *in_order(_contexts(locks, domain))):
        return call()


def _contexts(locks: Locks, domain: Domain) -> Iterator[Lock]:
    if domain.iommu is not None:
        for context in (domain.iommu.default, *domain.iommu.contexts.values()):
            yield context_lock(locks, domain, context)


def owner(xen: "Xen", context: IommuContext) -> Domain:
    """The domain that the context belongs to."""
    for domain in xen.all_domains():
        if domain.iommu is not None and domain.iommu.get(context.number) is context:
            return domain
    raise ValueError(f"{context} is no domain's")


MOVES: Final = ("attach_device", "detach_device", "assign_device", "deassign_device")
"""What moves devices."""
LOOKS: Final = ("remove_device", "deassign_devices")
"""What looks for devices that have to be moved."""
TOOLSTACK: Final[dict[str, Guard]] = {
    "remove_page": taking_a_page,
    **dict.fromkeys(MOVES, moving_a_device),
    **dict.fromkeys(LOOKS, looking_for_devices),
    "relinquish_contexts": ending_contexts,
    "relinquish_default": ending_contexts,
}
"""By method of the hypervisor."""


def guard_toolstack(xen: "Xen", locks: Locks, guards: Mapping[str, Guard]) -> None:
    """Let the methods of ``guards`` hold their locks."""
    for name, guard in guards.items():
        setattr(xen, name, _guarded(xen, locks, name, guard, getattr(xen, name)))


def _guarded(xen: "Xen", locks: Locks, name: str, guard: Guard, genuine: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if locks.dormant:
            return genuine(*args)
        locks.begin(locks.current, name)
        return guard(locks, xen, args, lambda: genuine(*args))

    return call
