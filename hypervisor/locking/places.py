# SPDX-License-Identifier: GPL-2.0-or-later
"""Named places in a hypervisor's work where another vCPU may run, and where something may be made to fail.

Each is a method of one of the hypervisor's parts.  :meth:`Places.install` puts a wrapper in its place and
:meth:`Places.remove` takes it out again; without wrappers there is no place, and nothing is paid for it.

| kind | before | what may fail there |
|---|---|---|
| ``acquire`` ``release`` | a lock is taken, after it was released | |
| ``copy-in`` ``copy-out`` | bytes are read from, or reserved in, the guest's memory | the copy: -EFAULT |
| ``arena`` ``heap`` | a page of an arena, frames from the domheap | the allocation |
| ``xenheap`` | a small object of Xen's own | the allocation |
| ``tag`` | a VT-d domain id or an SMMU VMID | the allocation |
| ``flush`` | hardware is told what the tables no longer say | |
| ``confirm`` | an invalidation is queued and waited for | hardware does not do it: -EIO |
| ``pass`` | a preempted call is issued again | |

A destination that was found writable is held until the answer is stored there: that store cannot fail.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from abi.errno import EIO
from hypervisor.domain import Domain, Vcpu
from hypervisor.guest_access import GuestMemory
from hypervisor.iommu.context import IommuContext
from hypervisor.iommu.pool import Arena
from hypervisor.locking.locks import HEAP, QUEUE, UNIT, Lock, Locks

if TYPE_CHECKING:
    from hypervisor.xen import Xen

FAULTS: Final = ("copy-in", "copy-out", "arena", "heap", "xenheap", "tag", "confirm")
"""Kinds of places where something can fail."""
KINDS: Final = ("acquire", "release", "flush", "pass", *FAULTS)

_UNIT_STEPS: Final = ("write_context", "take_did", "give_did", "take_vmid", "free_vmid")
_STREAM_STEPS: Final = ("prepare", "install", "block", "publish")
_TAG_STEPS: Final = {"take_did": -1, "take_vmid": None}
"""What takes a tag, and its answer when there is none."""


class Plan(Protocol):
    """Decides what fails."""

    def fails(self, kind: str) -> bool:
        """Whether this visit of a place of that kind is to fail."""
        ...


class Places:
    """The places of one hypervisor, visited once they are installed."""

    def __init__(self, xen: "Xen", locks: Locks, *, locks_unused: bool = False) -> None:
        """``locks_unused``: nobody uses the locks once the places are gone."""
        self.xen: Final = xen
        self.locks: Final = locks
        self._locks_unused: Final = locks_unused
        self.plan: Plan | None = None
        self._undo: list[tuple[Any, str, bool, Any]] = []
        self._reserved: set[tuple[int, int, int]] = set()

    def visit(self, kind: str, what: str) -> bool:
        """Something is about to happen: let others run first, and say whether it is to fail."""
        if self.locks.stepper is not None:
            self.locks.stepper.point(kind, what)
        return self.plan is not None and self.plan.fails(kind)

    # ------------------------------------------------------------------------------------- putting in place

    def install(self) -> None:
        """Make all places visible, those of arenas and guests that are yet to come included."""
        if self._undo:
            return
        xen, backend = self.xen, self.xen.backend
        self._put(xen.frames, "allocate", self._allocate_frames)
        self._put(xen, "xmalloc", self._allocate_object)
        self._put(xen, "new_arena", self._new_arena)
        self._put(xen, "add_vcpu", self._add_vcpu)
        self._put(backend, "flush", self._flush)
        self._put(backend, "flush_all", self._flush_all)
        for unit in getattr(backend, "units", ()):
            self._units_places(unit)
        for domain in xen.domains.values():
            if domain.iommu is not None and domain.iommu.arena is not None:
                self._adopt_arena(domain.iommu.arena, f"d{domain.domid}")
            for vcpu in domain.vcpus:
                self._adopt_memory(vcpu)
        self._put(xen, "rescheduled", self._pass)

    def remove(self) -> None:
        """Everything as it was before :meth:`install`."""
        while self._undo:
            part, name, own, before = self._undo.pop()
            if own:
                setattr(part, name, before)
            else:
                delattr(part, name)
        self._reserved.clear()
        self.locks.dormant = self._locks_unused

    def _put(self, part: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        if not hasattr(part, name):
            return
        own = name in vars(part)
        genuine = getattr(part, name)
        self._undo.append((part, name, own, genuine))
        setattr(part, name, wrap(genuine))

    def _units_places(self, unit: Any) -> None:
        lock = self.locks.of(UNIT, f"unit {unit.index}")
        queue_lock = self.locks.of(QUEUE, f"unit {unit.index}")
        for step in _UNIT_STEPS:
            self._put(unit, step, partial(self._unit_step, lock, step))
        if hasattr(unit, "streams"):
            for step in _STREAM_STEPS:
                self._put(unit.streams, step, partial(self._unit_step, lock, step))
        self._put(unit, "flush_write_buffer", partial(self._queued, queue_lock))
        if hasattr(unit, "queue"):
            self._put(unit.queue, "submit", partial(self._queued, queue_lock))
        if hasattr(unit, "commands"):
            for step in ("run_one", "run"):
                self._put(unit.commands, step, partial(self._queued, queue_lock))

    def _adopt_arena(self, arena: Arena, of: str) -> None:
        def wrap(genuine: Callable[[], int | None]) -> Callable[[], int | None]:
            return lambda: None if self.visit("arena", of) else genuine()

        self._put(arena, "allocate", wrap)

    def _adopt_memory(self, vcpu: Vcpu) -> None:
        memory = vcpu.memory
        if any(part is memory for part, _, _, _ in self._undo):
            return  # another vCPU has the same
        of, key = f"d{vcpu.domain.domid}", id(memory)
        self._put(memory, "window", lambda genuine: lambda address, length: None)
        self._put(memory, "read", lambda genuine: self._copy_in(genuine, of))
        self._put(memory, "writable", lambda genuine: self._reserve(genuine, of, key))
        self._put(memory, "write", lambda genuine: self._copy_out(genuine, of, key))

    # -------------------------------------------------------------------------------------------- the places

    def _allocate_frames(self, genuine: Callable[..., int | None]) -> Callable[..., int | None]:
        lock = self.locks.of(HEAP)

        def allocate(owner: int, order: int = 0) -> int | None:
            if self.visit("heap", f"order {order}"):
                return None
            with self.locks.holding(lock):
                return genuine(owner, order)

        return allocate

    def _allocate_object(self, genuine: Callable[[str], bool]) -> Callable[[str], bool]:
        return lambda what: not self.visit("xenheap", what) and genuine(what)

    def _new_arena(self, genuine: Callable[..., Arena | None]) -> Callable[..., Arena | None]:
        def new_arena(domain: Domain, base: int, pages: int) -> Arena | None:
            arena = genuine(domain, base, pages)
            if arena is not None:
                self._adopt_arena(arena, f"d{domain.domid}")
            return arena

        return new_arena

    def _add_vcpu(self, genuine: Callable[[Domain, GuestMemory], Vcpu]) -> Callable[[Domain, GuestMemory], Vcpu]:
        def add_vcpu(domain: Domain, memory: GuestMemory) -> Vcpu:
            vcpu = genuine(domain, memory)
            self._adopt_memory(vcpu)
            return vcpu

        return add_vcpu

    def _unit_step(self, lock: Lock, step: str, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def under_lock(*args: Any) -> Any:
            if lock.owner is self.locks.current:  # one step of a unit calls another
                return genuine(*args)
            if step in _TAG_STEPS and self.visit("tag", lock.name):
                return _TAG_STEPS[step]
            with self.locks.holding(lock):
                return genuine(*args)

        return under_lock

    def _queued(self, lock: Lock, genuine: Callable[..., int]) -> Callable[..., int]:
        def submit(*args: Any) -> int:
            if lock.owner is self.locks.current:
                return genuine(*args)
            with self.locks.holding(lock):
                return -EIO if self.visit("confirm", lock.name) else genuine(*args)

        return submit

    def _flush(self, genuine: Callable[..., int]) -> Callable[..., int]:
        def flush(context: IommuContext, dfn: int, pages: int, changes: Any) -> int:
            self.visit("flush", f"context {context.number}: dfn {dfn:#x}+{pages:#x}")
            return genuine(context, dfn, pages, changes)

        return flush

    def _flush_all(self, genuine: Callable[[IommuContext], int]) -> Callable[[IommuContext], int]:
        def flush_all(context: IommuContext) -> int:
            self.visit("flush", f"context {context.number}: everything")
            return genuine(context)

        return flush_all

    def _copy_in(self, genuine: Callable[[int, int], bytes | None], of: str) -> Callable[[int, int], bytes | None]:
        return lambda address, length: None if self.visit("copy-in", of) else genuine(address, length)

    def _reserve(self, genuine: Callable[[int, int], bool], of: str, key: int) -> Callable[[int, int], bool]:
        def writable(address: int, length: int) -> bool:
            if self.visit("copy-out", of) or not genuine(address, length):
                return False
            self._reserved.add((key, address, length))
            return True

        return writable

    def _copy_out(
        self, genuine: Callable[[int, bytes | bytearray], bool], of: str, key: int
    ) -> Callable[[int, bytes | bytearray], bool]:
        def write(address: int, data: bytes | bytearray) -> bool:
            place = (key, address, len(data))
            if place in self._reserved:
                self._reserved.discard(place)
            elif self.visit("copy-out", of):
                return False
            return genuine(address, data)

        return write

    def _pass(self, genuine: Callable[[Vcpu], None] | None) -> Callable[[Vcpu], None]:
        def rescheduled(vcpu: Vcpu) -> None:
            self.visit("pass", f"d{vcpu.domain.domid}v{vcpu.number}")
            if genuine is not None:
                genuine(vcpu)

        return rescheduled
