# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects with ids: reserved first, published when complete, destroyed when nothing uses them (iommufd/main.c).

``users`` counts the table of ids (1) and every other object that needs this one; ``wait_cnt`` counts short uses
within a call.  An id that is reserved but not published cannot be found, so a caller never sees half an object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from abi.errno import EBUSY, ENOENT, ENOMEM

if TYPE_CHECKING:
    from guest_driver.iommufd.context import IommufdCtx


class IommufdObject:
    """struct iommufd_object.  Kinds derive from it."""

    __slots__ = ("ctx", "id", "users", "wait_cnt")

    def __init__(self, ctx: IommufdCtx) -> None:
        self.ctx = ctx
        self.id = 0
        self.users = 1
        self.wait_cnt = 1

    def destroy(self) -> None:
        """Give up what the object holds.  Called once, when nothing uses it."""

    def abort(self) -> None:
        """Give up what an unfinished object holds; by default the same as :meth:`destroy`."""
        self.destroy()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


Kind = TypeVar("Kind", bound=IommufdObject)


class ObjectTable:
    """The xarray of a context.  Ids start at 1; the lowest free one is used."""

    __slots__ = ("_ctx", "_entries", "_tombs")

    def __init__(self, ctx: IommufdCtx) -> None:
        self._ctx = ctx
        self._entries: dict[int, IommufdObject | None] = {}
        self._tombs: set[int] = set()

    def alloc(self, obj: IommufdObject) -> int:
        """Reserve an id for ``obj``; 0 or -ENOMEM."""
        if not self._ctx.kernel.kzalloc(f"iommufd {type(obj).__name__}"):
            return -ENOMEM
        number = 1
        while number in self._entries or number in self._tombs:
            number += 1
        self._entries[number] = None
        obj.id = number
        return 0

    def finalize(self, obj: IommufdObject) -> None:
        """Publish: from now on the id can be used."""
        self._ctx.printk.warn_on(self._entries.get(obj.id, obj) is not None, f"{obj!r} finalized twice")
        self._entries[obj.id] = obj

    def abort(self, obj: IommufdObject) -> None:
        """Forget a reserved id; the object was never visible."""
        wrong = self._entries.get(obj.id, obj) is not None
        self._ctx.printk.warn_on(wrong, f"{obj!r} aborted but never reserved, or published already")
        self._entries.pop(obj.id, None)

    def abort_and_destroy(self, obj: IommufdObject) -> None:
        obj.abort()
        self.abort(obj)

    def get(self, number: int, kind: type[Kind]) -> Kind | None:
        """The published object with that id if it is of ``kind``."""
        obj = self._entries.get(number)
        return obj if isinstance(obj, kind) else None

    def remove(self, number: int) -> int:
        """Destroy by id: -ENOENT if there is no such object, -EBUSY while anything uses it."""
        obj = self._entries.get(number)
        if obj is None:
            return -ENOENT
        if obj.users != 1:
            return -EBUSY
        self.destroy(obj)
        return 0

    def destroy(self, obj: IommufdObject) -> None:
        """Destroy an object that only the table still uses."""
        self._ctx.printk.warn_on(obj.users != 1, f"{obj!r} destroyed with {obj.users - 1} users")
        obj.users = 0
        self._entries.pop(obj.id, None)
        obj.destroy()

    def tombstone(self, obj: IommufdObject) -> None:
        """Destroy an object that user space has not; its id is not found any more, and not used again either."""
        self.destroy(obj)
        self._tombs.add(obj.id)

    def put_and_try_destroy(self, obj: IommufdObject) -> None:
        """Drop one use; with the last one the object goes (automatic page tables)."""
        obj.users -= 1
        if obj.users == 1 and self._entries.get(obj.id) is obj:
            self.destroy(obj)

    def destroy_all(self) -> None:
        """Leaf first, in as many rounds as it takes; what cannot go is a WARN."""
        while self._entries:
            going = [obj for obj in self._entries.values() if obj is not None and obj.users == 1]
            if self._ctx.printk.warn_on(not going, f"objects that hold each other: {self._entries}"):
                return
            for obj in going:
                if obj.users == 1 and self._entries.get(obj.id) is obj:
                    self.destroy(obj)

    def __iter__(self) -> Iterator[IommufdObject]:
        return iter([obj for obj in self._entries.values() if obj is not None])

    def __len__(self) -> int:
        """Ids in use, reserved ones included."""
        return len(self._entries)
