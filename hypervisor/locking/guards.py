# SPDX-License-Identifier: GPL-2.0-or-later
"""Which locks every sub-op, and every call of the toolstack, holds: a table, like the sub-op table itself.

A guard takes the locks, runs one pass of the handler, and releases them; a preempted call holds nothing between two
passes.  The order is that of :data:`hypervisor.locking.locks.CLASSES`, and within a class by domain and number:

    pcidevs_lock, hd->lock, ctx->lock of contexts other than 0, p2m_lock, ctx->lock of context 0,
    then what drivers and the page allocator take for themselves

A context is looked up with its domain's lock held, which is let go once the context's own is held: so one that is being
worked on is not freed, and a free that waits for it finds it as it was left.  ``map_pages`` holds the p2m lock for a
pass, so that no frame changes hands between the look into the p2m and the reference; ``remove_page`` takes it before
context 0's.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from base.units import Sbdf
from hypervisor.domain import Domain, Vcpu
from hypervisor.iommu.context import IommuContext
from hypervisor.locking.locks import CONTEXT, DEFAULT_CONTEXT, DOMAIN, P2M, PCIDEVS, Lock, Locks
from hypervisor.pviommu.result import Result
from hypervisor.pviommu.table import Handler

if TYPE_CHECKING:
    from hypervisor.xen import Xen

Call = Callable[[], Result]
Guard = Callable[[Locks, Domain, tuple[int, ...], Call], Result]
"""Runs a pass of a sub-op on a domain, given its canonical arguments, with the locks that it needs."""


def domain_lock(locks: Locks, domain: Domain) -> Lock:
    return locks.of(DOMAIN, f"d{domain.domid}")


def context_lock(locks: Locks, domain: Domain, context: IommuContext) -> Lock:
    cls = CONTEXT if context.number else DEFAULT_CONTEXT
    return locks.of(cls, f"d{domain.domid} context {context.number}")


def p2m_locks(locks: Locks, domain: Domain) -> tuple[Lock, ...]:
    """The lock of a translated domain's p2m; a PV domain has none."""
    return () if domain.pv else (locks.of(P2M, f"d{domain.domid}"),)


def in_order(locks: Iterable[Lock]) -> list[Lock]:
    """Each once, in the order in which they are to be taken."""
    return sorted(set(locks), key=lambda lock: (lock.cls.rank, lock.name))


def nothing(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """A sub-op that changes nothing, or that leaves it to another."""
    return call()


def the_domain(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The set of contexts changes."""
    lock = domain_lock(locks, domain)
    locks.acquire(lock)
    result = call()
    locks.release(lock)
    return result


def the_domain_and_a_parent(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The set of contexts changes, and the context that the first argument names must keep what it maps."""
    assert domain.iommu is not None
    with locks.holding(domain_lock(locks, domain)):
        parent = domain.iommu.get(args[0])
        with locks.holding(*(() if parent is None else (context_lock(locks, domain, parent),))):
            return call()


def the_devices(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """No device moves."""
    with locks.holding(locks.of(PCIDEVS)):
        return call()


def one_context(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The context that the first argument names; nothing if there is none."""
    return _in_context(locks, domain, args[0], (), call)


def one_context_and_p2m(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The same, and the frames that are looked up have to stay the guest's until they are referenced."""
    return _in_context(locks, domain, args[0], p2m_locks(locks, domain), call)


def _in_context(locks: Locks, domain: Domain, number: int, further: tuple[Lock, ...], call: Call) -> Result:
    outer = domain_lock(locks, domain)
    locks.acquire(outer)
    assert domain.iommu is not None
    context = domain.iommu.get(number)
    if context is None:
        result = call()
        locks.release(outer)
        return result
    held = in_order((context_lock(locks, domain, context), *further))
    for lock in held:
        locks.acquire(lock)
    locks.release(outer)
    result = call()
    for lock in reversed(held):
        locks.release(lock)
    return result


def freeing(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The context goes away, its devices go back to context 0."""
    return _moving(locks, domain, args[0], (), call)


def moving_a_device(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """A device, or one of its PASIDs, goes from the context where it is to the one that is named."""
    return _moving(locks, domain, args[0], args[1:4], call)


def taking_a_pasid(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """A PASID of a device leaves its context."""
    return _moving(locks, domain, 0, args[0:3], call)


def _moving(locks: Locks, domain: Domain, number: int, where: tuple[int, ...], call: Call) -> Result:
    """Context ``number``, context 0, and those of the device at ``where`` (segment, bus, devfn; nothing: no device)."""
    with locks.holding(locks.of(PCIDEVS), domain_lock(locks, domain)):
        assert domain.iommu is not None
        touched = [domain.iommu.default]
        named = domain.iommu.get(number)
        if named is not None:
            touched.append(named)
        device = domain.devices.get(Sbdf(where[0] << 16 | where[1] << 8 | where[2])) if where else None
        if device is not None:
            touched.extend(device.pasids.values())
            if device.context is not None:
                touched.append(device.context)
        touched.extend([context.stage2 for context in touched])
        with locks.holding(*in_order(context_lock(locks, domain, context) for context in touched)):
            return call()


GUARDS: Final[dict[str, Guard]] = {
    "noop": nothing,
    "query_capabilities": nothing,
    "init": the_domain,
    "alloc_context": the_domain,
    "free_context": freeing,
    "reattach_device": moving_a_device,
    "map_pages": one_context_and_p2m,
    "unmap_pages": one_context,
    "lookup_page": one_context,
    "flush_pages": one_context,
    "remote_cmd": nothing,
    "alloc_nested": the_domain_and_a_parent,
    "flush_nested": one_context,
    "attach_pasid": moving_a_device,
    "detach_pasid": taking_a_pasid,
    "query_device": the_devices,
    "next_fault": the_domain,
}
"""By sub-op; a test holds it against the sub-op table."""


def guarded(name: str, handler: Handler, guard: Guard, locks: Locks) -> Handler:
    """``handler`` with its locks."""

    def enter(xen: "Xen", vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        if locks.dormant:
            return handler(xen, vcpu, domain, args, start)
        locks.begin(vcpu, name)
        result = guard(locks, domain, args, lambda: handler(xen, vcpu, domain, args, start))
        locks.returns(name)
        return result

    return enter
