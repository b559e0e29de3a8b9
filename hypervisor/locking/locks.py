# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks with Xen's names, their owners, and a check of the order in which they are taken.

Nothing here waits.  A lock that is not to be had is the stepper's business, if there is one (it lets another vCPU
run); without one nobody else will ever run, and the wait is a :class:`XenDeadlock` at once.  A cycle of waiting vCPUs
is one as soon as it closes.

The order is learned as Linux's lockdep learns it: taking B while holding A says "A before B".  The first time that the
opposite follows, there is an :class:`Inversion`, whether or not two vCPUs met in the wrong moment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from hypervisor.errors import XenBug, XenDeadlock


class LockClass(NamedTuple):
    """What locks of one kind have in common."""

    name: str
    """Xen's name of it."""
    rank: int
    """Locks are taken in ascending rank."""
    recursive: bool
    """Whether its owner may take it again."""


PCIDEVS: Final = LockClass("pcidevs_lock", 10, True)
"""The list of PCI devices and who has which: every move of a device."""
DOMAIN: Final = LockClass("hd->lock", 20, False)
"""A domain's set of contexts: numbers, limit, arena."""
CONTEXT: Final = LockClass("ctx->lock", 30, True)
"""A context's table, devices and regions."""
P2M: Final = LockClass("p2m_lock", 40, True)
"""A translated domain's p2m."""
DEFAULT_CONTEXT: Final = LockClass("ctx->lock", 45, True)
"""Context 0 comes after the p2m: changes of the p2m change it as well."""
UNIT: Final = LockClass("iommu->lock", 50, False)
"""A remapping unit's device entries and tags."""
QUEUE: Final = LockClass("register_lock", 60, False)
"""A unit's registers and its queue of invalidations."""
HEAP: Final = LockClass("heap_lock", 70, False)
"""The page allocator."""
CLASSES: Final = (PCIDEVS, DOMAIN, CONTEXT, P2M, DEFAULT_CONTEXT, UNIT, QUEUE, HEAP)
"""In the order in which they are taken; several of one class by domain, then by number."""


class Lock:
    """One lock: of what, and who has it."""

    __slots__ = ("cls", "depth", "name", "owner", "since")

    def __init__(self, cls: LockClass, subject: str) -> None:
        self.cls: Final = cls
        self.name: Final = f"{subject} {cls.name}" if subject else cls.name
        self.owner: object | None = None
        self.depth = 0
        self.since = ""
        """What its owner was doing when it took it."""

    def __repr__(self) -> str:
        return self.name


class Inversion(NamedTuple):
    """Two locks that are taken in both orders."""

    first: str
    then: str
    who: str
    """Who took ``then`` while holding ``first``, and what it was doing."""
    before: str
    """The same of who had taken them the other way round (through others, perhaps)."""

    def __str__(self) -> str:
        return f"{self.who} takes {self.then} while holding {self.first}; {self.before} the other way round"


class Stepper(Protocol):
    """Whoever lets vCPUs take turns."""

    def point(self, kind: str, what: str) -> None:
        """The running vCPU is about to do ``kind`` to ``what``: another may run first."""
        ...

    def block(self, lock: Lock) -> None:
        """The running vCPU cannot go on before ``lock`` is released; returns when it may try again."""
        ...

    def released(self, lock: Lock) -> None:
        """Those who wait for ``lock`` may try again."""
        ...


class Locks:
    """All locks of one host.  ``current`` is who runs: a vCPU, or a name for anybody else."""

    def __init__(self) -> None:
        self.current: object = "toolstack"
        self.stepper: Stepper | None = None
        self.dormant = False
        """Calls take none of them: one runs at a time, and nobody looks."""
        self.debug_build = False
        """Whether Xen's own assertions notice, on the way back to the guest, that a lock is still held."""
        self.inversions: list[Inversion] = []
        self.taken: dict[tuple[str, str], str] = {}
        """(held, then taken) to who did it first."""
        self._locks: dict[tuple[LockClass, str], Lock] = {}
        self._held: dict[object, list[Lock]] = {}
        self._waiting: dict[object, Lock] = {}
        self._doing: dict[object, str] = {}

    def of(self, cls: LockClass, subject: str = "") -> Lock:
        """The lock of that class for ``subject``."""
        lock = self._locks.get((cls, subject))
        if lock is None:
            lock = self._locks[cls, subject] = Lock(cls, subject)
        return lock

    def begin(self, actor: object, doing: str) -> None:
        """``actor`` runs, and ``doing`` is what others read of it."""
        if self.stepper is None:
            self.current = actor
        self._doing[self.current] = doing

    def doing(self, actor: object) -> str:
        """ "d0v1 (map_pages)"."""
        what = self._doing.get(actor)
        return f"{actor} ({what})" if what else f"{actor}"

    # -------------------------------------------------------------------------------------- taking, releasing

    def acquire(self, lock: Lock) -> None:
        if self.stepper is not None:
            self.stepper.point("acquire", lock.name)
        me = self.current
        if lock.owner is me and lock.cls.recursive:
            lock.depth += 1
            return
        while lock.owner is not None:
            self._wait(lock)
        self._own(lock, me)

    def try_acquire(self, lock: Lock) -> bool:
        """Take it if nobody else has it."""
        if self.stepper is not None:
            self.stepper.point("acquire", lock.name)
        me = self.current
        if lock.owner is me and lock.cls.recursive:
            lock.depth += 1
        elif lock.owner is not None:
            return False
        else:
            self._own(lock, me)
        return True

    def release(self, lock: Lock) -> None:
        """:class:`XenBug` for a lock that the caller has not got."""
        me = self.current
        if lock.owner is not me:
            holder = "nobody has" if lock.owner is None else f"{self.doing(lock.owner)} has"
            raise XenBug(f"{self.doing(me)} releases {lock}, which {holder}")
        lock.depth -= 1
        if not lock.depth:
            self._held[me].remove(lock)
            lock.owner = None
            if self.stepper is not None:
                self.stepper.released(lock)
        if self.stepper is not None:
            self.stepper.point("release", lock.name)

    @contextmanager
    def holding(self, *locks: Lock) -> Iterator[None]:
        """Take them in that order, release them in the opposite.  A host that stops releases nothing."""
        for lock in locks:
            self.acquire(lock)
        yield
        for lock in reversed(locks):
            self.release(lock)

    def returns(self, name: str) -> None:
        """The running vCPU goes back to its guest after ``name``."""
        if self.debug_build and (held := self._held.get(self.current)):
            raise XenBug(f"assertion on the preemption count: {name} returns to the guest with {held[0]} held")

    # ----------------------------------------------------------------------------------------------- looking

    def held_by(self, actor: object) -> tuple[Lock, ...]:
        return tuple(self._held.get(actor, ()))

    @property
    def held(self) -> dict[str, str]:
        """Name of every lock that somebody has, to who."""
        return {lock.name: str(lock.owner) for lock in self._locks.values() if lock.owner is not None}

    def forget_order(self) -> None:
        """Start to learn the order anew."""
        self.taken.clear()
        self.inversions.clear()

    def reset(self) -> None:
        """Nobody has anything, as after a restart of the host."""
        for lock in self._locks.values():
            lock.owner, lock.depth = None, 0
        self._held.clear()
        self._waiting.clear()

    def save(self) -> Any:
        return [(lock, lock.owner, lock.depth, lock.since) for lock in self._locks.values() if lock.owner is not None]

    def restore(self, state: Any) -> None:
        self.reset()
        for lock, lock.owner, lock.depth, lock.since in state:
            self._held.setdefault(lock.owner, []).append(lock)

    # ----------------------------------------------------------------------------------------------- private

    def _own(self, lock: Lock, me: object) -> None:
        lock.owner, lock.depth, lock.since = me, 1, self._doing.get(me, "")
        held = self._held.setdefault(me, [])
        for other in held:
            if (other.name, lock.name) not in self.taken:
                self._learn(other.name, lock.name)
        held.append(lock)

    def _learn(self, held: str, then: str) -> None:
        who = self.doing(self.current)
        way = self._way(then, held)
        if way:
            self.inversions.append(Inversion(held, then, who, self.taken[way[0], way[1]]))
        self.taken[held, then] = who

    def _way(self, start: str, goal: str) -> list[str]:
        """Locks from ``start`` to ``goal`` as they were taken one after the other, empty if there is no way."""
        paths = [[start]]
        seen = {start}
        for path in paths:
            if path[-1] == goal:
                return path
            for held, then in self.taken:
                if held == path[-1] and then not in seen:
                    seen.add(then)
                    paths.append([*path, then])
        return []

    def _wait(self, lock: Lock) -> None:
        me = self.current
        self._waiting[me] = lock
        cycle = self.cycle(me)
        if cycle or self.stepper is None:
            raise XenDeadlock("; ".join(cycle or [self._story(me)]), tuple(cycle))
        self.stepper.block(lock)
        del self._waiting[me]

    def cycle(self, actor: object) -> list[str]:
        """One line for every vCPU of the circle of waiting that ``actor`` is in, empty if it is in none."""
        story: list[str] = []
        at = actor
        while (lock := self._waiting.get(at)) is not None and len(story) <= len(self._waiting):
            if lock.owner is None:
                return []  # released: whoever waited has not run since
            story.append(self._story(at))
            at = lock.owner
            if at is actor:
                return story
        return []

    def stuck(self) -> list[str]:
        """One line for every vCPU that waits."""
        return [self._story(actor) for actor in self._waiting]

    def _story(self, actor: object) -> str:
        lock = self._waiting[actor]
        since = f" since {lock.since}" if lock.since else ""
        if lock.owner is actor:
            return f"{self.doing(actor)} waits for {lock}, which it has held itself{since}"
        holds = ", ".join(map(str, self._held.get(actor, ())))
        never = "" if lock.owner in self._waiting else " and never releases"
        return (
            f"{self.doing(actor)} {f'holds {holds} and ' if holds else ''}"
            f"waits for {lock}, which {lock.owner} has held{since}{never}"
        )
