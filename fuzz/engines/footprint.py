# SPDX-License-Identifier: GPL-2.0-or-later
"""What each step of a run may have to do with those of other vCPUs: which locks it held, what it looked at without any,
and whether it changed something without any.

A look without a lock is written as the locks that guard what is looked at: whoever changes it holds one of them.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from fuzz.concurrent import Concurrent
from fuzz.target import SUBOPS
from hypervisor.locking.locks import CLASSES, CONTEXT, DOMAIN, QUEUE, UNIT
from testbed.schedule import Point, Schedule

_TAKES: Final = ("acquire", "blocked")
"""Kinds of points behind which their lock is taken."""
_HAD: Final = ("release", "blocked")
"""Kinds of points before which their lock was let go, or asked for."""
_IOTLB: Final = "IOTLB"
"""Stands for a lock that all accesses of devices hold: each may leave something for the next."""
_LOOKS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(SUBOPS.values(), frozenset[str]()),
    "query_capabilities": frozenset((DOMAIN.name,)),
    "dma": frozenset((CONTEXT.name, UNIT.name, QUEUE.name)),
}
"""By item: what guards what it looks at without a lock.  All that sub-ops look at so, but for ``query_capabilities``,
is whether their domain may call at all, which no lock guards: a step that changes it is an open one.  A device's access
goes by its unit's entries, a context's table, and what invalidations have left."""
_EVERYTHING: Final = frozenset(cls.name for cls in CLASSES)
"""What guards what any other item looks at."""


class Step(NamedTuple):
    """What a vCPU did from one point to the next."""

    vcpu: int
    locks: frozenset[str]
    """Those that it held or took or let go."""
    looks: frozenset[str]
    """Names of the classes of locks that guard what it looked at without holding any."""
    open: bool
    """It changed something without holding any lock: it depends on everything."""

    def depends_on(self, other: "Step") -> bool:
        """Whether the order of the two may matter."""
        return (
            self.open
            or other.open
            or not self.locks.isdisjoint(other.locks)
            or not self.looks.isdisjoint(map(_class_of, other.locks))
            or not other.looks.isdisjoint(map(_class_of, self.locks))
        )


def _class_of(lock: str) -> str:
    return lock.rpartition(" ")[2]


class Footprints:
    """Follows a schedule and keeps what each step did."""

    def __init__(self, concurrent: Concurrent, schedule: Schedule) -> None:
        self._bed: Final = concurrent.bed
        self._vcpus: Final = concurrent.vcpus
        self._schedule: Final = schedule
        self.steps: Final[list[Step]] = []
        self._at: dict[int, Point] = {}
        """Where each vCPU is."""
        self._item: dict[int, str] = {}
        """What each is doing."""
        self._begun: tuple[int, frozenset[str], int] | None = None

    def choose(self, point: Point, runnable: Sequence[int]) -> int:
        self._at[point.vcpu] = point
        if point.kind == "call":
            self._item[point.vcpu] = point.what
        self.finish()
        chosen = self._schedule.choose(point, runnable)
        held = self._locks(chosen, _TAKES)
        self._begun = (chosen, held, 0 if held else self._digest())
        return chosen

    def finish(self) -> None:
        """The step that was under way is over."""
        if self._begun is None:
            return
        vcpu, before, digest = self._begun
        self._begun = None
        item = self._item.get(vcpu, "")
        locks = before | self._locks(vcpu, _HAD)
        looks = _LOOKS.get(item, _EVERYTHING) if not before else frozenset()
        changed = not before and digest != self._digest()
        self.steps.append(Step(vcpu, locks | {_IOTLB} if item == "dma" else locks, looks, changed))

    def _locks(self, vcpu: int, kinds: Sequence[str]) -> frozenset[str]:
        """What the vCPU holds, and the lock of its point, if that is of one of ``kinds``."""
        locks = self._bed.xen.locks
        assert locks is not None
        held = {lock.name for lock in locks.held_by(self._vcpus[vcpu])}
        point = self._at.get(vcpu)
        return frozenset(held | {point.what} if point is not None and point.kind in kinds else held)

    def _digest(self) -> int:
        """Of what calls change: references, contexts, devices, tables in use, whether a domain may make calls."""
        frames = self._bed.xen.frames
        domains = []
        for domain in self._bed.xen.all_domains():
            where = tuple(device.context.number if device.context else -1 for device in domain.devices.values())
            iommu = domain.iommu
            state: tuple[object, ...] = (domain.domid, domain.dying, where)
            if iommu is not None:
                used = iommu.arena.used if iommu.arena is not None else 0
                state = (*state, tuple(iommu.contexts), used, iommu.initialised, iommu.allowed)
            domains.append(state)
        return hash((frames.refs.tobytes(), bytes(frames.pagetable), tuple(domains)))
