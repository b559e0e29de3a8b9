# SPDX-License-Identifier: GPL-2.0-or-later
"""B: locks of RFC v1 to v3, one for each domain, that are not released or taken in no order; and v7's of the p2m."""

from collections.abc import Callable
from typing import Any, Final

from abi.errno import ENODEV, ENOENT, ENOSPC, EPERM
from hypervisor.defects.model import V1_TO_3, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.errors import XenBug
from hypervisor.iommu.context import PciDevice
from hypervisor.locking.guards import Call, Guard, domain_lock, in_order, p2m_locks
from hypervisor.locking.locks import PCIDEVS, Lock, Locks
from hypervisor.locking.toolstack import MOVES, owner
from hypervisor.locking.toolstack import Guard as ToolstackGuard
from hypervisor.p2m import IS_RAM
from hypervisor.pviommu.result import Result
from hypervisor.xen import Xen

# ------------------------------------------------------------------------------------------- one lock per domain


Refused = Callable[[Domain, tuple[int, ...]], bool]
"""Whether a request is refused before any lock is taken."""


def _whole_domain(
    further: Callable[[Locks, Domain], tuple[Lock, ...]], refused: Refused, keeps_after: int | None = None
) -> Guard:
    """Hold the domain's lock all along, and what ``further`` names inside it.  ``keeps_after``: an answer after which
    the domain's lock is not released."""

    def guard(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
        if refused(domain, args):
            return call()
        lock = domain_lock(locks, domain)
        locks.acquire(lock)
        with locks.holding(*further(locks, domain)):
            result = call()
        if result[0] != keeps_after:
            locks.release(lock)
        return result

    return guard


def _nothing_more(locks: Locks, domain: Domain) -> tuple[Lock, ...]:
    return ()


def _devices_inside(locks: Locks, domain: Domain) -> tuple[Lock, ...]:
    return (locks.of(PCIDEVS),)


def one_lock_per_domain(seams: Seams) -> None:
    """S6."""
    xen, loop = seams.xen, seams.loop

    def too_many(domain: Domain, args: tuple[int, ...]) -> bool:
        return args[-2] > xen.max_nr_pages or unknown(domain, args)

    def unknown(domain: Domain, args: tuple[int, ...]) -> bool:
        return loop.find(domain, args[0]) is None

    def no_device(domain: Domain, args: tuple[int, ...]) -> bool:
        return xen.find_device(domain, args[1] << 16 | args[2] << 8 | args[3]) is None

    seams.guards.update(
        alloc_context=_whole_domain(_nothing_more, _never),
        free_context=_whole_domain(_devices_inside, _default_context),
        reattach_device=_whole_domain(_devices_inside, no_device),
        map_pages=_whole_domain(p2m_locks, too_many),
        unmap_pages=_whole_domain(_nothing_more, too_many),
        lookup_page=_whole_domain(_nothing_more, unknown),
    )
    seams.toolstack.update(dict.fromkeys(MOVES, _between_domains(ordered=True)))
    seams.toolstack["remove_device"] = _whoever_has_it
    seams.toolstack["deassign_devices"] = _device_by_device
    seams.toolstack["remove_page"] = _page
    seams.toolstack["relinquish_contexts"] = seams.toolstack["relinquish_default"] = _domain_ends
    assert seams.locks


def _never(domain: Domain, args: tuple[int, ...]) -> bool:
    return False


def _default_context(domain: Domain, args: tuple[int, ...]) -> bool:
    return args[0] == 0


def _between_domains(*, ordered: bool) -> ToolstackGuard:
    """The locks of the domains that a device comes from and goes to, then that of the devices."""

    def guard(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        domain, device = args[0], args[1]
        source = domain if device.context is None else owner(xen, device.context)
        held = [domain_lock(locks, source)]
        if source is not domain:
            held.append(domain_lock(locks, domain))
        with locks.holding(*(in_order(held) if ordered else held), locks.of(PCIDEVS)):
            return call()

    return guard


def _whoever_has_it(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """The lock of whose device it is comes first: so the look is another one once the device has gone elsewhere."""
    while True:
        error = call()
        if error != -ENODEV or not any(args[0] in domain.devices.values() for domain in xen.all_domains()):
            return error


def _device_by_device(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    """Each move takes its locks; an end that finds a device gone meanwhile is tried again."""
    return call()


def _page(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    domain: Domain = args[0]
    with locks.holding(domain_lock(locks, domain), *p2m_locks(locks, domain)):
        return call()


def _domain_ends(locks: Locks, xen: Xen, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
    with locks.holding(domain_lock(locks, args[0])):
        return call()


# ----------------------------------------------------------------------------------------------- not released


def alloc_keeps_the_lock(seams: Seams) -> None:
    """B1."""
    seams.guards["alloc_context"] = _whole_domain(_nothing_more, _never, -ENOSPC)


def free_keeps_the_lock(seams: Seams) -> None:
    """B2."""
    seams.guards["free_context"] = _whole_domain(_devices_inside, _default_context, -ENOENT)


def domain_that_is_not_there(seams: Seams) -> None:
    """B3."""
    xen = seams.xen
    assign = xen.assign_device

    def assign_device(domain: Domain, device: PciDevice) -> int:
        if device.context is None:
            raise XenBug("fatal page fault: a device that no domain has is moved, and the lock of no domain is taken")
        return assign(domain, device)

    replace(xen, "assign_device", assign_device)


def locks_in_the_order_of_arguments(seams: Seams) -> None:
    """B4."""
    seams.toolstack.update(dict.fromkeys(MOVES, _between_domains(ordered=False)))


def p2m_stays_locked(seams: Seams) -> None:
    """F4."""
    loop, guard = seams.loop, seams.guards["map_pages"]
    frame = loop.frame
    foreign: list[Domain] = []

    def looked_up(domain: Domain, gfn: int, write: bool) -> tuple[int, int, int]:
        answer: tuple[int, int, int] = frame(domain, gfn, write)
        if answer[2] == -EPERM and not domain.pv and IS_RAM[domain.translation.run(gfn, 1)[1]]:
            foreign.append(domain)
        return answer

    def keeping(locks: Locks, domain: Domain, args: tuple[int, ...], call: Call) -> Result:
        def noted() -> Result:
            foreign.clear()
            result = call()
            if foreign:
                locks.acquire(*p2m_locks(locks, domain))  # once more than it is released
            return result

        return guard(locks, domain, args, noted)

    replace(loop, "frame", looked_up)
    seams.guards["map_pages"] = keeping
    assert seams.locks


P2M_STAYS_LOCKED: Final = Defect(
    "F4",
    ("v7",),
    "map_pages of another domain's frame answers -EPERM with the caller's p2m locked",
    "the next call of another vCPU that needs the p2m never returns",
    "catalogue F4",
    p2m_stays_locked,
)
"""F4: applied after what else decides about a frame, and after whose locks guard map_pages."""

DEFECTS: Final = (
    Defect(
        "S6",
        V1_TO_3,
        "one lock per domain guards its contexts, tables and devices, and is taken before pcidevs_lock and p2m_lock",
        "no two calls for one domain are ever at work at the same time",
        "catalogue sections 2.6 and 3; context.c of RFC v2",
        one_lock_per_domain,
    ),
    Defect(
        "B1",
        V1_TO_3,
        "alloc_context answers -ENOSPC with the domain's IOMMU lock held",
        "after all contexts are taken, the next call that needs the lock never returns",
        "catalogue B1; golden record destr-exhaust",
        alloc_keeps_the_lock,
        needs=("S6",),
    ),
    Defect(
        "B2",
        V1_TO_3,
        "free_context of an unknown context answers -ENOENT with the domain's IOMMU lock held",
        "the next call that needs the lock never returns",
        "catalogue B2; golden records destr-freeunknown, destr-free65535",
        free_keeps_the_lock,
        needs=("S6",),
    ),
    Defect(
        "B3",
        V1_TO_3,
        "a move of a device that no domain has takes the lock of no domain, and pcidevs_lock twice for one release",
        "assigning a device that was detached before stops the host",
        "catalogue B3",
        domain_that_is_not_there,
    ),
    Defect(
        "B4",
        V1_TO_3,
        "moving a device takes the locks of the domains that it leaves and enters, in this order",
        "two devices that change places between two domains at the same time: neither move ends",
        "catalogue B4",
        locks_in_the_order_of_arguments,
        needs=("S6",),
    ),
)
