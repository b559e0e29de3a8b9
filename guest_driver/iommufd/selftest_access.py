# SPDX-License-Identifier: GPL-2.0-or-later
"""Test commands about accesses: a mediated device's use of an IOAS, by a descriptor (iommufd/selftest.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from abi.errno import EFAULT, EINVAL, ENOENT, ENOMEM, EOPNOTSUPP
from base.units import PAGE_SIZE
from guest_driver.iommufd.access import AccessOps, IommufdAccess, iommufd_access_create, iommufd_access_destroy
from guest_driver.iommufd.context import IommufdCtx
from guest_driver.iommufd.process import AddressSpace, ReadableFile
from guest_driver.linux.errno import EBADE

if TYPE_CHECKING:
    from guest_driver.iommufd.selftest import TestCmd

_NEEDS_PIN_PAGES: Final = 1
_WRITE: Final = 1
_SYZ: Final = 1 << 16
_SLOW_PATH: Final = 4
_MOST: Final = 16 << 20


class AccessFile(ReadableFile):
    """The descriptor of an access; the pins that a program made have numbers."""

    def __init__(self) -> None:
        self._access: IommufdAccess | None = None
        self.items: dict[int, tuple[int, int]] = {}
        """Number to (iova, bytes)."""
        self.next_id = 1

    def create(self, ctx: IommufdCtx, pins: bool) -> int:
        made = iommufd_access_create(ctx, AccessOps(pins, self._unmap if pins else None))
        if isinstance(made, int):
            return made
        self._access = made
        return 0

    @property
    def access(self) -> IommufdAccess:
        assert self._access is not None
        return self._access

    def _unmap(self, iova: int, length: int) -> None:
        """Let go of every pin in the range."""
        for number, (at, size) in list(self.items.items()):
            if at < iova + length and iova < at + size:
                del self.items[number]
                self.access.unpin_pages(at, size)

    def read(self, mm: AddressSpace, address: int, count: int) -> int:
        return -EINVAL

    def write(self, mm: AddressSpace, address: int, count: int) -> int:
        return -EINVAL

    def readable(self) -> bool:
        return False

    def release(self) -> None:
        self._unmap(0, 1 << 64)
        iommufd_access_destroy(self.access)


def create(cmd: TestCmd) -> int:
    """An access attached to the IOAS ``id``, with a descriptor."""
    if cmd["flags"] & ~_NEEDS_PIN_PAGES:
        return -EOPNOTSUPP
    files = cmd.process.files
    fd = files.reserve()
    if fd < 0:
        return fd
    file = AccessFile()
    ret = file.create(cmd.ctx, bool(cmd["flags"] & _NEEDS_PIN_PAGES))
    if ret:
        files.unreserve(fd)
        return ret
    ret = file.access.attach(cmd.id)
    if not ret:
        cmd["out_access_fd"] = fd
        ret = cmd.respond()
    if ret:
        file.release()
        files.unreserve(fd)
        return ret
    files.install(fd, file)
    return 0


def _file(cmd: TestCmd) -> AccessFile | None:
    file = cmd.process.files.get(cmd.id)
    return file if isinstance(file, AccessFile) and file.access.ctx is cmd.ctx else None


def destroy_pages(cmd: TestCmd) -> int:
    file = _file(cmd)
    item = None if file is None else file.items.pop(cmd["access_pages_id"], None)
    if file is None or item is None:
        return -ENOENT
    file.access.unpin_pages(*item)
    return 0


def pages(cmd: TestCmd) -> int:
    """Pin a range, and compare the pages with those behind an address of the caller's (-EBADE)."""
    flags, iova, length = cmd["flags"], cmd["iova"], cmd["length"]
    if length > _MOST:
        return -ENOMEM
    if flags & ~(_WRITE | _SYZ):
        return -EOPNOTSUPP
    file = _file(cmd)
    if file is None:
        return -ENOENT
    if not file.access.ops.needs_pin_pages:
        return -EOPNOTSUPP
    ret, paddrs = file.access.pin_pages(iova, length, bool(flags & _WRITE))
    if ret:
        return ret
    if not flags & _SYZ:
        first = cmd["uptr"] - (iova & PAGE_SIZE - 1)
        for number, paddr in enumerate(paddrs):
            if cmd.process.mm.phys((first & -PAGE_SIZE) + number * PAGE_SIZE) != paddr:
                ret = -EBADE
                break
    item = file.next_id
    cmd["out_access_pages_id"] = item
    ret = ret or cmd.respond()
    if ret:
        file.access.unpin_pages(iova, length)
        return ret
    file.next_id += 1
    file.items[item] = (iova, length)
    return 0


def rw(cmd: TestCmd) -> int:
    """Read or write through the IOAS, from or to the caller's buffer."""
    flags, length = cmd["flags"], cmd["length"]
    if flags & ~(_WRITE | _SLOW_PATH):
        return -EOPNOTSUPP
    if length > _MOST:
        return -ENOMEM
    file = _file(cmd)
    if file is None:
        return -ENOENT
    data = None
    if flags & _WRITE:
        data = cmd.process.mm.read(cmd["uptr"], length)
        if data is None:
            return -EFAULT
    ret, out = file.access.rw(cmd["iova"], data, length)
    if not ret and data is None and not cmd.process.mm.write(cmd["uptr"], out):
        ret = -EFAULT
    return ret


def replace_ioas(cmd: TestCmd) -> int:
    file = _file(cmd)
    return -ENOENT if file is None else file.access.replace(cmd["ioas_id"])
