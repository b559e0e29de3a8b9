# SPDX-License-Identifier: GPL-2.0-or-later
"""Every machine frame's owner, use and reference count, and the heap they are allocated from.

The counts live in one word a frame: general references in the low half, writable type references in the high
half (Xen's ``count_info`` and ``type_info``), so that taking both for a run of frames is one pass.  A frame
whose general count falls to zero is free again; that is why a device mapping holds a reference.
"""

from array import array
from collections.abc import Iterator
from typing import Final

from base.units import DomId, Mfn
from hypervisor.errors import XenBug
from hypervisor.words import LONGEST, lowered, raised

DOMID_IO: Final = DomId(0x7FF1)
DOMID_XEN: Final = DomId(0x7FF2)
DOMID_NONE: Final = DomId(0x7FF4)
"""Owner of a free frame."""

REF: Final = 1
"""One general reference."""
WRITABLE_REF: Final = 1 << 32 | REF
"""A general reference together with a writable type reference."""
_COUNT_MASK: Final = (1 << 32) - 1


class FrameTable:
    """``frames`` frames of RAM, all free at first."""

    def __init__(self, frames: int) -> None:
        self.frames: Final = frames
        self.owner: Final = array("H", [DOMID_NONE]) * frames
        self.refs: Final = array("Q", [0]) * frames
        self.pagetable: Final = bytearray(frames)
        """1 for a frame that a PV guest uses as a page table: it never gets a writable type reference."""
        self.allocated: Final = bytearray(frames)
        """1 while a frame's owner holds it in its own right, not only through a device mapping."""
        self._next = 0
        self._free: list[int] = []
        self.freed = 0
        """Frames that went back to the heap so far."""

    def allocate(self, owner: DomId, order: int = 0) -> Mfn | None:
        """2^``order`` contiguous, aligned frames for ``owner`` with one reference each; ``None`` if there are none."""
        count = 1 << order
        if not order and self._free:
            mfn = self._free.pop()
        else:
            mfn = (self._next + count - 1) // count * count
            if mfn + count > self.frames:
                return self._reuse(owner, count)
            self._free.extend(range(mfn - 1, self._next - 1, -1))
            self._next = mfn + count
        return self._give(owner, mfn, count)

    def allocate_at(self, owner: DomId, mfn: int, count: int) -> None:
        """Take ``count`` particular frames, which must be beyond everything allocated so far (boot-time layout)."""
        if mfn < self._next or mfn + count > self.frames:
            raise ValueError(f"frames {mfn:#x}+{count:#x} are taken or beyond RAM")
        self._free.extend(range(mfn - 1, self._next - 1, -1))
        self._next = mfn + count
        self._give(owner, mfn, count)

    def get(self, mfn: int, count: int, ref: int) -> None:
        """Take ``ref`` (:data:`REF` or :data:`WRITABLE_REF`) on each of ``count`` frames from ``mfn``."""
        refs = self.refs
        if count == 1:
            refs[mfn] += ref
            return
        run = refs[mfn : mfn + count]
        if run == array("Q", [run[0]]) * count:  # as is usual: all are held alike
            refs[mfn : mfn + count] = array("Q", [run[0] + ref]) * count
        else:
            for at in range(0, count, LONGEST):
                part = run[at : at + LONGEST]
                refs[mfn + at : mfn + at + len(part)] = array("Q", raised(part.tobytes(), ref))

    def put(self, mfn: int, count: int, ref: int) -> None:
        """Drop what :meth:`get` took.  Dropping what nobody holds is a :class:`XenBug`."""
        refs = self.refs
        left = refs[mfn] - ref
        lasting = left & _COUNT_MASK if left > 0 else 0
        if count == 1:
            if lasting:
                refs[mfn] = left
            else:
                self._last_reference(mfn, left)
            return
        run = refs[mfn : mfn + count]
        if lasting and run == array("Q", [left + ref]) * count:
            refs[mfn : mfn + count] = array("Q", [left]) * count
            return
        for at in range(0, count, LONGEST):
            part = run[at : at + LONGEST]
            counts = lowered(part.tobytes(), ref & _COUNT_MASK, ref >> 32)
            if counts is not None:  # nobody drops the last one
                refs[mfn + at : mfn + at + len(part)] = array("Q", counts)
            else:
                for other in range(mfn + at, mfn + at + len(part)):
                    self.put(other, 1, ref)

    def disown(self, mfn: int) -> bool:
        """Drop the reference with which ``mfn`` was allocated; ``False`` if that happened before."""
        if not self.allocated[mfn]:
            return False
        self.allocated[mfn] = 0
        self.put(mfn, 1, REF)
        return True

    def count(self, mfn: int) -> int:
        """General references that ``mfn`` holds."""
        return self.refs[mfn] & _COUNT_MASK

    def writable_count(self, mfn: int) -> int:
        """Writable type references that ``mfn`` holds."""
        return self.refs[mfn] >> 32

    def of(self, owner: int) -> Iterator[int]:
        """The frames that ``owner`` owns, from the lowest up; they may be given up on the way."""
        mfn = -1
        while True:
            try:
                mfn = self.owner.index(owner, mfn + 1)
            except ValueError:
                return
            yield mfn

    def has_pagetable(self, mfn: int, count: int) -> bool:
        """Whether any of ``count`` frames from ``mfn`` is a PV page table."""
        return self.pagetable.find(1, mfn, mfn + count) >= 0

    def save(self) -> object:
        flags = bytes(self.pagetable), bytes(self.allocated)
        return (self.owner[:], self.refs[:], *flags, self._next, self._free[:], self.freed)

    def restore(self, state: object) -> None:
        owner, refs, pagetable, allocated, self._next, free, self.freed = state  # type: ignore[misc]
        self.owner[:] = owner  # type: ignore[has-type]
        self.refs[:] = refs  # type: ignore[has-type]
        self.pagetable[:] = pagetable  # type: ignore[has-type]
        self.allocated[:] = allocated  # type: ignore[has-type]
        self._free = free[:]  # type: ignore[has-type]

    def _give(self, owner: DomId, mfn: int, count: int) -> Mfn:
        if count == 1:
            self.owner[mfn] = owner
            self.refs[mfn] = REF
        else:
            self.owner[mfn : mfn + count] = array("H", [owner]) * count
            self.refs[mfn : mfn + count] = array("Q", [REF]) * count
        self.allocated[mfn : mfn + count] = b"\x01" * count
        return Mfn(mfn)

    def _reuse(self, owner: DomId, count: int) -> Mfn | None:
        """Look for free frames that happen to form an aligned block, whether or not they were ever handed out."""
        self._free.extend(range(self.frames - 1, self._next - 1, -1))
        self._next = self.frames
        free = set(self._free)
        for mfn in sorted(free):
            if mfn % count == 0 and all(mfn + k in free for k in range(count)):
                taken = set(range(mfn, mfn + count))
                self._free = [frame for frame in self._free if frame not in taken]
                return self._give(owner, mfn, count)
        return None

    def _last_reference(self, mfn: int, left: int) -> None:
        if left:
            raise XenBug(f"frame {mfn:#x}: a reference was dropped that nobody held")
        self.refs[mfn] = 0
        self.owner[mfn] = DOMID_NONE
        self.pagetable[mfn] = self.allocated[mfn] = 0
        self._free.append(mfn)
        self.freed += 1
