# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests' memory outside of what calls name: nothing of it changes, whoever calls.

RAM's journal has what every frame held before it first changed in a program, so a look at the end costs what was
changed.  Nothing but the hypervisor's hands and the callers' own arguments writes to guests' pages here: devices are
asked what they reach, and move nothing.  Structs end where their window ends (:mod:`fuzz.toolstack`), so that a byte
written behind one, however short, is a byte outside.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from base.units import PAGE_SHIFT, PAGE_SIZE
from fuzz.toolstack import WINDOWS

if TYPE_CHECKING:
    from fuzz.target import Target


class GuestMemory:
    """What the guests of one target had in their pages when they got them."""

    def __init__(self, target: "Target") -> None:
        self._target: Final = target
        self._at_birth: Final[dict[int, bytes]] = {}
        """Contents of frames that had changed before their domain got them."""

    def reset(self) -> None:
        """A program begins."""
        self._at_birth.clear()

    def received(self, mfns: Iterable[int]) -> None:
        """A new domain has these frames, as they are."""
        memory = self._target.memory
        for mfn in mfns:
            if memory.touched[mfn]:
                self._at_birth[mfn] = memory.read(mfn << PAGE_SHIFT, PAGE_SIZE)

    def changes(self) -> Iterator[str]:
        """Where the memory of a guest that makes calls is not as it has to be."""
        target = self._target
        if target.pointed:
            return
        owner, callers = target.xen.frames.owner, target.toolstack.callers
        for mfn, before in target.memory.journal():
            caller = callers.get(owner[mfn])
            if caller is None:
                continue
            before = self._at_birth.get(mfn, before)
            now = target.memory.read(mfn << PAGE_SHIFT, PAGE_SIZE)
            if now == before:
                continue
            windows = next((windows for page, windows in WINDOWS.items() if caller.mfns[page] == mfn), ())
            at = _first_outside(before, now, windows)
            if at is not None:
                where = f"byte {at:#x} of frame {mfn:#x} of domain {caller.domid}"
                yield f"{where} is {now[at]:#04x}, it was {before[at]:#04x}"


def _first_outside(before: bytes, now: bytes, windows: Iterable[tuple[int, int]]) -> int | None:
    """Offset of the first byte outside of ``windows``, [start, end) in order, that differs."""
    at = 0
    for start, end in (*windows, (PAGE_SIZE, PAGE_SIZE)):
        if before[at:start] != now[at:start]:
            return next(k for k in range(at, start) if before[k] != now[k])
        at = end
    return None
