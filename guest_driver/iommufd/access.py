# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel drivers that use an IOAS without an IOMMU: mediated devices (iommufd/device.c, iommufd_access_*)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from abi.errno import EINVAL, ENOENT, ENOMEM, EOVERFLOW, EPERM
from base.units import PAGE_SHIFT, PAGE_SIZE
from guest_driver.iommufd.ioas import Ioas
from guest_driver.iommufd.iova_ranges import ULONG_MAX
from guest_driver.iommufd.objects import IommufdObject
from guest_driver.iommufd.pages import IoptArea

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx


@dataclass(frozen=True, slots=True)
class AccessOps:
    """What the driver offers: ``unmap`` (iova, bytes) must let go of every pin in the range before it returns."""

    needs_pin_pages: bool = False
    unmap: Callable[[int, int], None] | None = None


class IommufdAccess(IommufdObject):
    """One driver's use of an IOAS."""

    __slots__ = ("ioas", "ops", "pins")

    def __init__(self, ctx: IommufdCtx, ops: AccessOps) -> None:
        super().__init__(ctx)
        self.ops: Final = ops
        self.ioas: Ioas | None = None
        self.pins: dict[tuple[int, int], list[tuple[IoptArea, int, int]]] = {}
        """(iova, bytes) of a pin to the areas and page indices that it uses."""

    def attach(self, ioas_id: int) -> int:
        """Use an IOAS; -ENOENT, -EINVAL if attached already, -EADDRINUSE if its areas are not page-aligned."""
        if self.ioas is not None:
            return -EINVAL
        ioas = self.ctx.objects.get(ioas_id, Ioas)
        if ioas is None:
            return -ENOENT
        ioas.iopt.accesses.append(self)
        ret = ioas.iopt.recalculate_alignment()
        if ret:
            ioas.iopt.accesses.remove(self)
            return ret
        ioas.users += 1
        self.ioas = ioas
        return 0

    def detach(self) -> None:
        """Stop using it; the driver is told to let go of everything first."""
        ioas = self.ioas
        if ioas is None:
            return
        if self.pins:
            self.notify_unmap(0, ULONG_MAX)
        self.ctx.printk.warn_on(bool(self.pins), f"{self!r}: detached with pages pinned")
        ioas.iopt.accesses.remove(self)
        ioas.iopt.recalculate_alignment()
        ioas.users -= 1
        self.ioas = None

    def replace(self, ioas_id: int) -> int:
        """Go over to another IOAS; -ENOENT and others leave it where it was."""
        old = self.ioas
        if old is None or self.ctx.objects.get(ioas_id, Ioas) is None:
            return -ENOENT
        if old.id == ioas_id:
            return 0
        self.detach()
        ret = self.attach(ioas_id)
        if ret:
            back = self.attach(old.id)
            self.ctx.printk.warn_on(back != 0, f"{self!r}: cannot go back to its IOAS ({back})")
        return ret

    def notify_unmap(self, iova: int, length: int) -> None:
        if self.ops.unmap is not None:
            self.ops.unmap(iova, length)

    def pin_pages(self, iova: int, length: int, write: bool) -> tuple[int, list[int]]:
        """(0, physical address of each page) or (-errno, []) with nothing pinned.

        -ENOENT: not attached, or a hole; -EPERM: read-only; -EINVAL: no bytes, being unmapped, or pieces that do not
        meet at a page boundary.
        """
        ret, pieces = self._pieces(iova, length, write)
        if ret:
            return ret, []
        taken: list[tuple[IoptArea, int, int]] = []
        out: list[int] = []
        for area, first, last in pieces:
            inner = area is not pieces[-1][0] and (area.offset + last + 1 - area.iova) & PAGE_SIZE - 1
            ret = -EINVAL if inner or (area.offset - area.iova) & PAGE_SIZE - 1 else 0
            span = area.indices(first, last)
            ret = ret or area.pages.get(*span)
            if ret:
                self._release(taken)
                return ret, []
            taken.append((area, *span))
            area.accesses.append(self)
            out += [area.pages.paddrs[index] for index in range(span[0], span[1] + 1)]
        self.pins[iova, length] = taken
        return 0, out

    def lock_pages(self, iova: int, length: int) -> tuple[int, list[int]]:
        """:meth:`pin_pages` for hardware: until :meth:`unlock_pages` the areas cannot be unmapped."""
        ret, pages = self.pin_pages(iova, length, False)
        for area, _, _ in self.pins.get((iova, length), []) if not ret else []:
            area.locks += 1
        return ret, pages

    def unlock_pages(self, iova: int, length: int) -> None:
        for area, _, _ in self.pins[iova, length]:
            area.locks -= 1
        self.unpin_pages(iova, length)

    def unpin_pages(self, iova: int, length: int) -> None:
        taken = self.pins.pop((iova, length), None)
        if not self.ctx.printk.warn_on(taken is None, f"unpin of {iova:#x}, which is not pinned") and taken:
            self._release(taken)

    def _release(self, taken: list[tuple[IoptArea, int, int]]) -> None:
        for area, first, last in taken:
            area.accesses.remove(self)
            area.pages.put(first, last)

    def rw(self, iova: int, data: bytes | None, length: int) -> tuple[int, bytes]:
        """Read (``data`` of ``None``) or write; (0, bytes) or (-errno, b"")."""
        ret, pieces = self._pieces(iova, length, data is not None)
        if ret:
            return ret, b""
        out = bytearray()
        for area, first, last in pieces:
            span = area.indices(first, last)
            ret = area.pages.get(*span)
            if ret:
                return ret, b""
            position = area.offset + first - area.iova
            while first <= last:
                within = position & PAGE_SIZE - 1
                step = min(PAGE_SIZE - within, last - first + 1)
                chunk = None if data is None else data[first - iova : first - iova + step]
                paddr = area.pages.paddrs[position >> PAGE_SHIFT]
                out += area.pages.source.access(paddr, within, chunk, step)
                first += step
                position += step
            area.pages.put(*span)
        return 0, bytes(out)

    def _pieces(self, iova: int, length: int, write: bool) -> tuple[int, list[tuple[IoptArea, int, int]]]:
        if not length:
            return -EINVAL, []
        if iova + length - 1 > ULONG_MAX:
            return -EOVERFLOW, []
        if self.ioas is None:
            return -ENOENT, []
        pieces = self.ioas.iopt.contiguous(iova, length)
        if pieces is None:
            return -ENOENT, []
        if any(area.prevent_access for area, _, _ in pieces):
            return -EINVAL, []
        if write and not all(area.pages.writable for area, _, _ in pieces):
            return -EPERM, []
        return 0, pieces

    def destroy(self) -> None:
        self.detach()
        self.ctx.put()


def iommufd_access_create(ctx: IommufdCtx, ops: AccessOps) -> IommufdAccess | int:
    """A driver's access; -EINVAL if it wants to pin pages but cannot be told to let go, -ENOMEM."""
    if ops.needs_pin_pages and ops.unmap is None:
        return -EINVAL
    access = IommufdAccess(ctx, ops)
    ret = ctx.objects.alloc(access)
    if ret:
        return ret
    ctx.refs += 1
    access.users += 1
    ctx.objects.finalize(access)
    return access


def internal_access(ctx: IommufdCtx, ioas: Ioas) -> IommufdAccess | int:
    """An access of iommufd's own, without an id; -ENOMEM, or the error of raising the IOAS's alignment."""
    if not ctx.kernel.kzalloc("iommufd_access"):
        return -ENOMEM
    access = IommufdAccess(ctx, AccessOps())
    ret = access.attach(ioas.id)
    return ret or access


def iommufd_access_destroy(access: IommufdAccess) -> None:
    access.users -= 1
    access.ctx.objects.destroy(access)
