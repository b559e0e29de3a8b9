# SPDX-License-Identifier: GPL-2.0-or-later
"""What the toolstack does to pages of domains, and what it must be told."""

from collections.abc import Iterator

from abi.errno import EBUSY, EINVAL, EIO, ENOMEM
from fuzz.guest_frames import Frames
from fuzz.shadow import Shadow


class Pages:
    """The pages of one target's domains that are no longer what they were at first."""

    def __init__(self) -> None:
        self.odd: dict[int, str] = {}
        """By machine frame: ``gone`` if it was taken away, else what kind of page it was made."""

    def removal(self, shadow: Shadow, gfn: int, result: int, *, excused: bool) -> int:
        """What taking page ``gfn`` away from a domain must answer; ``excused``: something was made to fail."""
        if not shadow.frames.own(gfn):
            return -EINVAL
        mfn = shadow.frames.machine(gfn)
        if self.odd.get(mfn, "pagetable") != "pagetable":
            return -EINVAL
        self.odd.pop(mfn, None)  # unpinned, whatever comes of it
        if result == -ENOMEM and (shadow.starved(1) or excused):
            return -ENOMEM
        if result == -EIO and shadow.unconfirmed():
            return -EIO
        self.odd[mfn] = "gone"
        return 0

    def retyping(self, shadow: Shadow, gfn: int, kind: str, result: int) -> int:
        """What making a ``kind`` of page of page ``gfn`` must answer."""
        mfn = shadow.frames.machine(gfn)
        if self.odd.get(mfn) == "gone" or (kind != "ram" and shadow.frames.pv != (kind == "pagetable")):
            return -EINVAL
        if kind == "pagetable" and (shadow.held(mfn, 2) or (shadow.unsure and result == -EBUSY)):
            return -EBUSY
        if kind == "ram":
            self.odd.pop(mfn, None)
        else:
            self.odd[mfn] = kind
        return 0

    def spans(self, frames: Frames) -> Iterator[tuple[int, int, int, int]]:
        """What context 0 of a guest with these frames maps: (first, end, delta to the machine frame, rights)."""
        delta = 0 if frames.pv else frames.base
        start, end = frames.base, frames.base + frames.size
        for mfn in (*sorted(mfn for mfn, kind in self.odd.items() if kind == "gone" and frames.has(mfn)), end):
            if mfn > start:
                yield start - delta, mfn - delta, delta, 3
            start = mfn + 1
