# SPDX-License-Identifier: GPL-2.0-or-later
"""Deferred invalidation: unmapped IOVAs wait here until a flush of the whole domain (drivers/iommu/dma-iommu.c).

An entry is stamped with the number of flushes *started* when it was queued; its IOVA goes back to the allocator only
once more flushes than that have *finished*, so none is reused before a flush that began after its unmap.
"""

from collections.abc import Callable
from typing import Any, Final

from guest_driver.linux.iova import IovaDomain

IOVA_FQ_SIZE: Final = 256


class FlushQueue:
    """One ring of ``size`` entries.  ``flush`` invalidates the whole domain (ops.flush_iotlb_all)."""

    __slots__ = ("_entries", "_finished", "_flush", "_iovad", "_started", "size")

    def __init__(self, iovad: IovaDomain, flush: Callable[[], None], size: int = IOVA_FQ_SIZE) -> None:
        self._iovad = iovad
        self._flush = flush
        self.size = size
        self._entries: list[tuple[int, int, int]] = []
        self._started = 0
        self._finished = 0

    def queue_iova(self, pfn: int, pages: int) -> None:
        """``pages`` pages from ``pfn`` were unmapped and may be reused after the next flush."""
        self._free_flushed()
        if len(self._entries) >= self.size - 1:
            self._flush_iotlb()
            self._free_flushed()
        self._entries.append((pfn, pages, self._started))

    def timeout(self) -> None:
        """The queue's timer: flush what waits."""
        if self._entries:
            self._flush_iotlb()
            self._free_flushed()

    def waiting(self) -> list[tuple[int, int]]:
        """(first pfn, pages) of every range that is not flushed yet, oldest first."""
        return [(pfn, pages) for pfn, pages, _ in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def _flush_iotlb(self) -> None:
        self._started += 1
        self._flush()
        self._finished += 1

    def _free_flushed(self) -> None:
        done = 0
        entries = self._entries
        while done < len(entries) and entries[done][2] < self._finished:
            pfn, pages, _ = entries[done]
            self._iovad.free_iova_fast(pfn, pages)
            done += 1
        del entries[:done]

    def save(self) -> Any:
        return list(self._entries), self._started, self._finished

    def restore(self, state: Any) -> None:
        entries, self._started, self._finished = state
        self._entries = list(entries)
