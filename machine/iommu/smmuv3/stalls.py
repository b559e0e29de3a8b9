# SPDX-License-Identifier: GPL-2.0-or-later
"""Transactions that wait for software's decision (IHI 0070, 3.12.2, 4.7.1, 4.7.2, 7.2.1).

A device that is told of a stalled fault must wait: :attr:`Stalls.listener` is called with the outcome when
software resumed or terminated the transaction.  A stall whose record cannot be written, because the Event queue is
not writable or IDR5.STALL_MAX transactions wait already, is held without a record and tried again, as though it
had just arrived, when that has changed.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, cast

from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import STALL, EventQueue, EventWord1, Record
from machine.iommu.smmuv3.invalidation import CERROR_ILL, HandlerTable
from machine.iommu.unit import Fault

_SSEC: Final = 1 << 10
_RETRY: Final = 1 << 12
"""CMD_RESUME.Ac."""


class Stalled(NamedTuple):
    """A transaction that waits."""

    sid: int
    iova: int
    write: bool
    pasid: int | None


class Outcome(NamedTuple):
    """How a stall ended."""

    request: Stalled
    result: int | Fault | None
    """Where a retried access goes, or its new fault (which may be another stall); ``None``: aborted."""


Retry = Callable[[int, int, bool, "int | None"], "int | Fault"]


class Stalls:
    """The stalled transactions of one unit."""

    def __init__(self, config: Smmuv3Config, events: EventQueue) -> None:
        self._limit: Final = config.stall_max
        self._events: Final = events
        self._waiting: Final[dict[int, Stalled]] = {}
        self._unrecorded: Final[list[Stalled]] = []
        self._next = 0
        self._retry: Retry | None = None
        self.listener: Callable[[Outcome], None] | None = None
        """Called with every outcome, from within the register write that led to it."""

    def connect(self, retry: Retry) -> None:
        """``retry`` translates a request anew."""
        self._retry = retry

    @property
    def waiting(self) -> dict[int, Stalled]:
        """Recorded stalls by STAG."""
        return dict(self._waiting)

    @property
    def unrecorded(self) -> tuple[Stalled, ...]:
        """Stalls that software cannot know of yet, oldest first."""
        return tuple(self._unrecorded)

    def hold(self, sid: int, iova: int, write: bool, pasid: int | None, record: Record) -> tuple[int, ...]:
        """Stall a transaction; the record as it was written with its STAG, empty if it could not be."""
        request = Stalled(sid, iova, write, pasid)
        if len(self._waiting) < self._limit:
            tag = self._next
            while tag in self._waiting:
                tag = tag + 1 & EventWord1.stag.mask
            stalled = (record[0], record[1] | STALL | tag, record[2], record[3])
            if self._events.write(stalled, keeps=True):
                self._next = tag + 1 & EventWord1.stag.mask
                self._waiting[tag] = request
                return stalled
        self._unrecorded.append(request)
        return ()

    def commands(self) -> HandlerTable:
        """CMD_RESUME and CMD_STALL_TERM."""
        return {0x44: ("CMD_RESUME", self._resume), 0x45: ("CMD_STALL_TERM", self._stall_term)}

    def _resume(self, low: int, high: int) -> int:
        if low & _SSEC:
            return CERROR_ILL
        self.resume(low >> 32, high & EventWord1.stag.mask, bool(low & _RETRY))
        return 0

    def _stall_term(self, low: int, high: int) -> int:
        if low & _SSEC:
            return CERROR_ILL
        self.terminate(low >> 32)
        return 0

    def resume(self, sid: int, tag: int, retry: bool) -> None:
        """CMD_RESUME; nothing happens unless ``tag`` is a stall of ``sid``.  Termination aborts (TERM_MODEL is 1)."""
        request = self._waiting.get(tag)
        if request is None or request.sid != sid:
            return
        del self._waiting[tag]
        self._finish(request, retry)
        self.settle()

    def terminate(self, sid: int | None = None) -> None:
        """CMD_STALL_TERM: abort every stall of ``sid``; ``None``: of all streams, as clearing SMMUEN does."""
        doomed = [tag for tag, request in self._waiting.items() if sid in (None, request.sid)]
        requests = [self._waiting.pop(tag) for tag in doomed]
        requests += [request for request in self._unrecorded if sid in (None, request.sid)]
        self._unrecorded[:] = [request for request in self._unrecorded if sid not in (None, request.sid)]
        for request in requests:
            self._finish(request, False)
        if sid is not None:
            self.settle()

    def settle(self) -> None:
        """Try again what could not be recorded: the queue may be writable now, or a place free."""
        if not self._unrecorded:
            return
        for _ in range(len(self._unrecorded)):
            if len(self._waiting) >= self._limit or not self._unrecorded or not self._events.writable():
                return
            self._finish(self._unrecorded.pop(0), True)

    def save(self) -> object:
        return (dict(self._waiting), list(self._unrecorded), self._next)

    def restore(self, state: object) -> None:
        waiting, unrecorded, self._next = cast("tuple[dict[int, Stalled], list[Stalled], int]", state)
        self._waiting.clear()
        self._waiting.update(waiting)
        self._unrecorded[:] = unrecorded

    def _finish(self, request: Stalled, retry: bool) -> None:
        result = self._retry(*request) if retry and self._retry is not None else None
        if self.listener is not None:
            self.listener(Outcome(request, result))
