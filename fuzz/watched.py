# SPDX-License-Identifier: GPL-2.0-or-later
"""A hypervisor that is watched at work: what happened during an operation, and what a program made go wrong in it.

Allocations, flushes and the programming of devices pass by here on their way; nothing in the hypervisor knows of it.
"""

from collections.abc import Callable
from typing import Any, Final

from abi.errno import EIO
from fuzz import events
from hypervisor.domain import Vcpu
from hypervisor.iommu.context import IommuContext, PciDevice
from hypervisor.iommu.pool import Arena
from hypervisor.pagetable.radix import Changes
from hypervisor.xen import Xen


class Watched:
    """What is known of one hypervisor's work since :attr:`events` were last cleared."""

    def __init__(self, xen: Xen) -> None:
        self.xen: Final = xen
        self._fail_in = 0
        self._flush_fails_in = 0
        self._pattern = 0
        self._bit = 0
        self.events = 0
        """What happened (a mask of :mod:`fuzz.events`) since this was last cleared."""
        self.passes: list[int] = []
        """How far each preempted pass of a call says that it got, since this was last cleared."""
        self.too_early = ""
        """What was let go before hardware had confirmed, since this was last cleared."""
        self.watch_flush: Callable[[IommuContext, int, int], str] = lambda context, dfn, pages: ""
        """Told of every flush, before it happens, with context and device frames; what was let go too early."""
        self.watch_shortage: Callable[[], None] = lambda: None
        """Told of every allocation that finds nothing."""
        self._splits: dict[IommuContext, int] = {}

    def _watch(self) -> None:
        """Stand in the way, for as long as the hypervisor lives."""
        self._interpose(self.xen.frames)
        self._interpose_flush("flush")
        self._interpose_flush("flush_all")
        self._interpose_attach()
        self.xen.rescheduled = self._rescheduled

    def _forget(self) -> None:
        """A program begins: nothing is planned, nothing happened."""
        self._fail_in = self._flush_fails_in = self._pattern = self._bit = 0
        self.xen.preempt = None
        self.events = 0
        self.passes.clear()
        self.too_early = ""
        self._splits.clear()

    @property
    def failed(self) -> bool:
        """Whether an allocation was made to fail since :attr:`events` were last cleared."""
        return bool(self.events & events.NO_MEMORY)

    def _note(self, happened: int) -> None:
        self.events |= happened

    def _rescheduled(self, vcpu: Vcpu) -> None:
        self.events |= events.RESTART
        self.passes.append(next(iter(vcpu.restart), 0))

    @property
    def pattern(self) -> int:
        """Whether the vCPU is wanted elsewhere, bit by bit (:meth:`preempt`); 0: never."""
        return self._pattern

    @property
    def always_wanted(self) -> bool:
        """Whether the vCPU is wanted elsewhere whenever the hypervisor asks."""
        return self._pattern > 0 and not self._pattern & self._pattern + 1

    def fail(self, allocation: int, flush: int) -> None:
        """The ``allocation``-th page or block that is asked for from now on is not to be had, the ``flush``-th flush is
        not confirmed; 0: all are again."""
        self._fail_in, self._flush_fails_in = allocation, flush

    @property
    def armed(self) -> bool:
        """Whether an allocation or a flush is still to fail (:meth:`fail`)."""
        return bool(self._fail_in or self._flush_fails_in)

    def preempt(self, pattern: int) -> None:
        """Wherever the hypervisor asks whether the vCPU is wanted elsewhere, the next bit of the pattern says so."""
        self._pattern, self._bit = pattern, 0
        if not pattern:
            self.xen.preempt = None
            return
        length = pattern.bit_length()

        def wanted(vcpu: object) -> bool:
            bit = self._bit % length
            self._bit += 1
            return bool(pattern >> bit & 1)

        self.xen.preempt = wanted

    # ----------------------------------------------------------------------------------------------- in the way

    def _interpose(self, pool: object) -> None:
        """Let every allocation from ``pool`` pass by the plan."""
        if "allocate" in vars(pool):
            return
        genuine: Callable[..., int | None] = pool.allocate  # type: ignore[attr-defined]

        def allocate(*args: int) -> int | None:
            if self._fail_in:
                self._fail_in -= 1
                if not self._fail_in:
                    self.events |= events.NO_MEMORY
                    self.watch_shortage()
                    return None
            found = genuine(*args)
            if found is None:
                self.watch_shortage()
            return found

        setattr(pool, "allocate", allocate)  # noqa: B010 -- on the instance, so that the class stays what it is

    def _interpose_flush(self, name: str) -> None:
        """Let every flush of the backend pass by the plan; one that is to fail reaches no hardware."""
        backend = self.xen.backend
        genuine: Callable[..., int] = getattr(backend, name)

        def flush(context: IommuContext, *what: Any) -> int:
            self.events |= events.FLUSH
            if what:
                if what[2].folded:
                    self.events |= events.FOLD
                if not self.too_early and (context.number or what[2].tables):
                    dfn, pages, changes = what
                    self.too_early = self._let_go_before(context, changes) or self.watch_flush(context, dfn, pages)
            table = context.table
            if table is not None and table.splits != self._splits.get(context, 0):
                self._splits[context] = table.splits
                self.events |= events.SPLIT
            if self._flush_fails_in:
                self._flush_fails_in -= 1
                if not self._flush_fails_in:
                    self.events |= events.UNCONFIRMED
                    return -EIO
            return genuine(context, *what)

        setattr(backend, name, flush)

    def _let_go_before(self, context: IommuContext, changes: Changes) -> str:
        """Which table of ``changes`` was given up before the flush that is about to happen, "" for nothing."""
        pool = context.pool
        if isinstance(pool, Arena):
            free = [table for table in changes.tables if not pool.holds(table)]
            if free:
                return f"the table at frame {free[0]:#x}"
        return ""

    def _interpose_attach(self) -> None:
        """Note that a device is programmed."""
        backend = self.xen.backend
        genuine = backend.attach

        def attach(device: PciDevice, context: IommuContext) -> int:
            self.events |= events.ATTACH
            return genuine(device, context)

        setattr(backend, "attach", attach)  # noqa: B010 -- as above
