# SPDX-License-Identifier: GPL-2.0-or-later
"""User pages behind I/O addresses: pinned once however many tables show them (iommufd/pages.c).

An :class:`IoptArea` is a range of I/O addresses; it shows a part of an :class:`IoptPages`, a range of one process's
memory, which copies of the area share.  A page is pinned while any domain or access uses it.  What a domain was asked
to map in one piece is unmapped in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from abi.errno import ENOMEM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.defects.iommufd import MAP_ERRNO_LOST
from guest_driver.iommufd.process import MemoryFile, Pinnable, Process
from guest_driver.linux.iommu import IommuDomain
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map, iommu_unmap

if TYPE_CHECKING:
    from guest_driver.iommufd.access import IommufdAccess
    from guest_driver.iommufd.context import IommufdCtx

ACCOUNT_USER: Final = 0
ACCOUNT_MM: Final = 1


class IoptPages:
    """``npages`` pages of a process, or of a file, from ``base``; indices count from there."""

    __slots__ = (
        "account_mode",
        "base",
        "ctx",
        "mm",
        "npages",
        "paddrs",
        "process",
        "source",
        "users",
        "uses",
        "writable",
    )

    def __init__(
        self,
        ctx: IommufdCtx,
        process: Process,
        base: int,
        npages: int,
        writable: bool,
        file: MemoryFile | None = None,
    ) -> None:
        self.ctx: Final = ctx
        self.process = process
        """Whom pinned pages are charged to."""
        self.mm = process.mm
        """The memory that they are charged to, which the process may have left since."""
        self.source: Final[Pinnable] = process.mm if file is None else file
        self.base: Final = base
        self.npages: Final = npages
        self.writable: Final = writable
        self.account_mode = ctx.account_mode
        self.users = 0
        """Areas that show these pages."""
        self.paddrs: dict[int, int] = {}
        """Page index to physical address, for pinned pages."""
        self.uses: dict[int, int] = {}
        """Page index to number of domains and accesses that use it."""

    def get(self, first: int, last: int) -> int:
        """Use pages ``first`` to ``last`` once more, pinning those that were not; 0, or -errno with nothing taken.

        -EFAULT: no such memory, or read-only and wanted for writing; -ENOMEM: over the limit of locked memory.
        """
        pages = self.ctx.kernel.ram.pages
        if last - first >= pages:  # more than there are: how it fails is found out without a list of them all
            ret = self.get(first, first + pages - 1)
            if not ret:
                self.put(first, first + pages - 1)
            return ret or -ENOMEM
        with self.ctx.locks.hold("pages->mutex", self):
            new = [index for index in range(first, last + 1) if index not in self.uses]
            if not self.ctx.kernel.kzalloc("iommufd pfn batch") or not self._charge(len(new)):
                return -ENOMEM
            ret = self._pin(new)
            if ret:
                self._charge(-len(new))
                return ret
            for index in range(first, last + 1):
                self.uses[index] = self.uses.get(index, 0) + 1
            return 0

    def _pin(self, indices: list[int]) -> int:
        """Pin pages, neighbours in one call; 0, or -errno with none of them pinned."""
        done = 0
        while done < len(indices):
            first = indices[done]
            count = 1
            while done + count < len(indices) and indices[done + count] == first + count:
                count += 1
            found = self.source.pin_pages(self.base + (first << PAGE_SHIFT), count, self.writable)
            if isinstance(found, int):
                for undo in indices[:done]:
                    self.source.unpin(self.paddrs.pop(undo))
                return found
            self.paddrs.update(enumerate(found, first))
            done += count
        return 0

    def put(self, first: int, last: int) -> None:
        """Undo one :meth:`get`."""
        with self.ctx.locks.hold("pages->mutex", self):
            gone = 0
            for index in range(first, last + 1):
                self.uses[index] -= 1
                if not self.uses[index]:
                    del self.uses[index]
                    self.source.unpin(self.paddrs.pop(index))
                    gone += 1
            self._charge(-gone)

    @property
    def of_file(self) -> bool:
        return isinstance(self.source, MemoryFile)

    def change_process(self, process: Process) -> int:
        """Charge what is pinned to ``process`` from now on; 0, or -ENOMEM and nothing has changed."""
        before, pinned = (self.process, self.mm), len(self.uses)
        if (process, process.mm) == before:
            return 0
        self.process, self.mm = process, process.mm
        if not self._charge(pinned):
            self.process, self.mm = before
            return -ENOMEM
        self.process, self.mm = before
        self._charge(-pinned)
        self.process, self.mm = process, process.mm
        return 0

    def _charge(self, count: int) -> bool:
        process = self.process
        in_use = process.locked_vm if self.account_mode == ACCOUNT_USER else self.mm.pinned_vm
        if count > 0 and not process.cap_ipc_lock and in_use + count > process.rlimit_memlock:
            return False
        if self.account_mode == ACCOUNT_USER:
            process.locked_vm += count
        else:
            self.mm.pinned_vm += count
        return True


class IoptArea:
    """I/O addresses ``iova`` to ``last``, showing ``pages`` from byte ``offset`` on."""

    __slots__ = (
        "accesses",
        "filled_large",
        "iova",
        "last",
        "locks",
        "offset",
        "pages",
        "prevent_access",
        "prot",
        "runs",
    )

    def __init__(self, iova: int, length: int, pages: IoptPages, offset: int, prot: int) -> None:
        self.iova: Final = iova
        self.last = iova + length - 1
        self.pages: Final = pages
        self.offset: Final = offset
        self.prot: Final = prot
        self.runs: dict[IommuDomain, list[tuple[int, int]]] = {}
        """Per domain, the (iova, bytes) that it was asked to map in one call each, in order."""
        self.accesses: list[IommufdAccess] = []
        """One entry for each pin by an in-kernel user."""
        self.prevent_access = False
        self.locks = 0
        """Hardware queues that live in this area."""
        self.filled_large = False
        """Some domain may have it in pieces bigger than a page."""
        pages.users += 1

    @property
    def length(self) -> int:
        return self.last - self.iova + 1

    def indices(self, iova: int, last: int) -> tuple[int, int]:
        """First and last page index behind a part of the area."""
        start = self.offset + iova - self.iova
        return start >> PAGE_SHIFT, start + last - iova >> PAGE_SHIFT

    def misaligned(self, alignment: int) -> bool:
        return bool((self.iova | self.length | self.offset) & alignment - 1)

    def fill_domain(self, domain: IommuDomain, large: bool) -> int:
        """Map the area in ``domain``; 0, or -errno with nothing mapped and nothing pinned for it."""
        first, last = self.indices(self.iova, self.last)
        ret = self.pages.get(first, last)
        if ret:
            return ret
        done: list[tuple[int, int]] = []
        for iova, paddr, length in self._runs(first, last, large):
            ret = iommu_map(domain, iova, paddr, length, self.prot)
            if ret and self.pages.ctx.release.has(MAP_ERRNO_LOST):
                ret = 0
            if ret:
                self._unmap(domain, done)
                self.pages.put(first, last)
                return ret
            done.append((iova, length))
        self.runs[domain] = done
        self.filled_large = self.filled_large or large
        return 0

    def _runs(self, first: int, last: int, large: bool) -> list[tuple[int, int, int]]:
        """The area as (iova, physical address, bytes), physically contiguous each; single pages unless ``large``."""
        runs: list[tuple[int, int, int]] = []
        iova = self.iova
        skip = self.offset & PAGE_SIZE - 1
        paddrs = self.pages.paddrs
        for index in range(first, last + 1):
            paddr = paddrs[index] + skip
            length = min(PAGE_SIZE - skip, self.last - iova + 1)
            if large and runs and sum(runs[-1][1:]) == paddr:
                runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + length)
            else:
                runs.append((iova, paddr, length))
            iova += length
            skip = 0
        return runs

    def unfill_domain(self, domain: IommuDomain) -> None:
        """Unmap before the pages are let go."""
        runs = self.runs.pop(domain)
        if not self.runs:
            self._compare(domain)
        self._unmap(domain, runs)
        self.pages.put(*self.indices(self.iova, self.last))

    def _compare(self, domain: IommuDomain) -> None:
        """The last table must still say where the pages are: Linux unpins what iova_to_phys answers."""
        iova, skip = self.iova, self.offset & PAGE_SIZE - 1
        for index in range(*self._span()):
            expected = self.pages.paddrs[index] + skip
            got = iommu_iova_to_phys(domain, iova)
            wrong = got != expected
            if self.pages.ctx.printk.warn_on(wrong, f"iova {iova:#x} leads to {got:#x}, pinned was {expected:#x}"):
                return
            iova += PAGE_SIZE - skip
            skip = 0

    def _span(self) -> tuple[int, int]:
        first, last = self.indices(self.iova, self.last)
        return first, last + 1

    def _unmap(self, domain: IommuDomain, runs: list[tuple[int, int]]) -> None:
        printk = self.pages.ctx.printk
        for iova, length in runs:
            done = iommu_unmap(domain, iova, length)
            printk.warn_on(done != length, f"unmap of {length:#x} bytes at {iova:#x} removed {done:#x}")

    def split(self, boundary: int) -> IoptArea:
        """Cut before ``boundary``, which is no place inside a mapped piece; returns the upper part."""
        upper = IoptArea(boundary, self.last - boundary + 1, self.pages, self.offset + boundary - self.iova, self.prot)
        self.last = boundary - 1
        for domain, runs in self.runs.items():
            upper.runs[domain] = [run for run in runs if run[0] >= boundary]
            self.runs[domain] = [run for run in runs if run[0] < boundary]
        return upper
