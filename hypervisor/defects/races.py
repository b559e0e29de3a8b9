# SPDX-License-Identifier: GPL-2.0-or-later
"""C4 to C6, S7: locks of RFC v4 to v7, one for each context."""

from collections.abc import Callable
from typing import Any, Final

from base.units import Sbdf
from hypervisor.defects.model import V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.locking.guards import Call, Guard, context_lock, p2m_locks
from hypervisor.locking.guards import nothing as no_lock
from hypervisor.locking.locks import PCIDEVS, Lock, Locks
from hypervisor.locking.toolstack import MOVES, owner
from hypervisor.pviommu.result import Result
from hypervisor.xen import Xen

# ------------------------------------------------------------------------------------------ one lock per context


def _got(locks: Locks, domain: Domain, number: int) -> tuple[Lock, ...]:
    """Look context ``number`` up, lock it, and look again; nothing if there is none."""
    assert domain.iommu is not None
    while (context := domain.iommu.get(number)) is not None:
        lock = context_lock(locks, domain, context)
        locks.acquire(lock)
        if domain.iommu.get(number) is context:
            return (lock,)
        locks.release(lock)
    return ()


def _in_context(further: Callable[[Locks, Domain], tuple[Lock, ...]]) -> Guard:
    def guard(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
        held = _got(locks, domain, args[0])
        if held:
            for lock in further(locks, domain):
                locks.acquire(lock)
                held = (lock, *held)
        result = call()
        for lock in held:
            locks.release(lock)
        return result

    return guard


def _reattaching(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
    """The devices, the context that the device leaves, the one that it enters."""
    with locks.holding(locks.of(PCIDEVS)):
        device = domain.devices.get(Sbdf(args[1] << 16 | args[2] << 8 | args[3]))
        if device is None or device.context is None:
            return call()
        with locks.holding(context_lock(locks, domain, device.context)):
            held = _got(locks, domain, args[0])
            result = call()
            for lock in held:
                locks.release(lock)
        return result


def _moving(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """The same between two domains, into a default context."""
    domain: Domain = args[0]
    device: PciDevice = args[1]
    with locks.holding(locks.of(PCIDEVS)):
        held = []
        if device.context is not None:
            held.append(context_lock(locks, owner(xen, device.context), device.context))
        if domain.iommu is not None:
            held.append(context_lock(locks, domain, domain.iommu.default))
        with locks.holding(*held):
            return call()


def one_lock_per_context(seams: Seams) -> None:
    """S7."""
    seams.guards.update(
        init=no_lock,
        reattach_device=_reattaching,
        map_pages=_in_context(p2m_locks),
        unmap_pages=_in_context(lambda locks, domain: ()),
    )
    seams.toolstack.update(dict.fromkeys(MOVES, _moving))
    assert seams.locks


# ---------------------------------------------------------------------------------------------------- what is wrong


def loop_that_does_not_loop(seams: Seams) -> None:
    """C4."""
    contexts = seams.contexts
    locks, failed = seams.locks, contexts.alloc_failed

    def claim(domain: Domain, context: IommuContext) -> None:
        """Lock the context and mark its number as taken, unless somebody else has the lock: then go on regardless."""
        assert domain.iommu is not None
        if locks.try_acquire(context_lock(locks, domain, context)):
            domain.iommu.contexts[context.number] = context

    def claimed(domain: Domain, context: IommuContext) -> None:
        locks.release(context_lock(locks, domain, context))

    def alloc_failed(domain: Domain, number: int) -> None:
        assert domain.iommu is not None
        context = domain.iommu.contexts.pop(number, None)
        failed(domain, number)
        if context is not None:
            claimed(domain, context)

    seams.guards["alloc_context"] = no_lock
    replace(contexts, "claim", claim)
    replace(contexts, "claimed", claimed)
    replace(contexts, "alloc_failed", alloc_failed)


def free_before_devices(seams: Seams) -> None:
    """C5."""

    def freeing(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
        iommu = domain.iommu
        assert iommu is not None
        context = iommu.contexts.get(args[0])
        if context is None:
            return call()
        with locks.holding(context_lock(locks, domain, context)):
            if iommu.contexts.get(args[0]) is not context or not args[1] & seams.xen.abi.free_reattach_default:
                return call()
            with locks.holding(locks.of(PCIDEVS), context_lock(locks, domain, iommu.default)):
                return call()

    seams.guards["free_context"] = freeing
    assert seams.locks


class KeptContexts:
    """The contexts that devices which were taken out think they are in."""

    def __init__(self) -> None:
        self.of: dict[Sbdf, IommuContext] = {}

    def save(self) -> object:
        return dict(self.of)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self.of = dict(state)


def attach_that_jumps_too_far(seams: Seams) -> None:
    """C6."""
    xen = seams.xen
    attach, detach = xen.attach_device, xen.detach_device
    kept = KeptContexts()
    seams.stateful.append(kept)

    def attach_device(domain: Domain, device: PciDevice, number: int = 0) -> int:
        iommu = domain.iommu
        assert iommu is not None
        context = kept.of.get(device.sbdf)
        if context is not None and context is iommu.get(number):
            return 0
        return attach(domain, device, number)

    def detach_device(domain: Domain, device: PciDevice) -> int:
        context = device.context
        error = detach(domain, device)
        if not error and context is not None:
            kept.of[device.sbdf] = context
        return error

    def attaching(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        domain: Domain = args[0]
        assert domain.iommu is not None
        context = domain.iommu.get(args[2] if len(args) > 2 else 0)
        if context is None:
            locks.release(locks.of(PCIDEVS))
            raise XenBug("never reached: a lock that nobody has was released")
        with locks.holding(context_lock(locks, domain, context), locks.of(PCIDEVS)):
            return call()

    replace(xen, "attach_device", attach_device)
    replace(xen, "detach_device", detach_device)
    seams.toolstack["attach_device"] = attaching
    assert seams.locks


DEFECTS: Final = (
    Defect(
        "S7",
        V4_TO_7,
        "every context has its lock, found by number, taken, and looked at again; the set of contexts has none",
        "a move takes pcidevs_lock and then the locks of the contexts, and never that of the domain",
        "catalogue section 3; iommu.c of RFC v7",
        one_lock_per_context,
    ),
    Defect(
        "C4",
        V4_TO_7,
        "alloc_context tries to lock the context that it found and goes on when that fails, without lock and bit; when "
        "it does not fail, the bit is not looked at again",
        "two vCPUs get the same number, or the second one releases a lock that the first one has",
        "catalogue C4; iommu.c of RFC v7",
        loop_that_does_not_loop,
        needs=("S7",),
    ),
    Defect(
        "C5",
        V4_TO_7,
        "free_context takes the context's lock and then pcidevs_lock, reattach_device the other way round",
        "a free with the reattach flag and a move into the same context at the same time: neither ends",
        "catalogue C5; iommu.c of RFC v7",
        free_before_devices,
        needs=("S7",),
    ),
    Defect(
        "C6",
        V4_TO_7,
        "attaching to an unknown context releases pcidevs_lock before it is taken, and detaching leaves the device's "
        "context set",
        "the attach stops the host; a device that was detached and is attached again stays out",
        "catalogue C6; iommu.c of RFC v7",
        attach_that_jumps_too_far,
        needs=("S7",),
    ),
)
