# SPDX-License-Identifier: GPL-2.0-or-later
"""What a shadow knows about frames: which mappings lead to them, and which are no plain RAM any more."""

from collections.abc import Sequence
from typing import Final

from abi.errno import EIO, EPERM
from fuzz.guest_frames import Frames
from fuzz.intervals import Intervals


class FrameShadow:
    """The frames of one domain, and the mappings that lead to them."""

    def __init__(self, frames: Frames, errno_paged_out: int) -> None:
        self.frames: Final = frames
        self.spaces: dict[int, Intervals] = {}
        """By context: what the guest mapped."""
        self.ending = False
        """Its destruction began."""
        self.kin: Sequence[FrameShadow] = [self]
        """The domains of its machine."""
        self.odd: dict[int, str] = {}
        """Machine frames that the toolstack took away ("gone") or made another kind of page of, whosever they were."""
        self.vague: set[int] = set()
        """Frames that were taken from a domain whose contexts are being torn down: who holds them is not known."""
        self.dying: set[int] = set()
        """Contexts whose free began and was stopped by a flush that hardware did not confirm."""
        self.unsure = False
        """A flush was not confirmed in this program: hardware may still remember anything that was mapped."""
        self._errno_paged_out: Final = errno_paged_out

    def _before_refused(self, mfn: int, count: int, write: bool, result: int, did: int) -> tuple[int, int]:
        """Of ``count`` frames from ``mfn``: how many come before one that may not be mapped, and its errno."""
        for odd in sorted(self.odd):
            if mfn <= odd < mfn + count:
                refused = self._verdict(odd, write, result in (-EPERM, -EIO) and odd - mfn >= did)
                if refused:
                    return odd - mfn, refused
        return count, 0

    def _verdict(self, mfn: int, write: bool, stopped: bool) -> int:
        kind = self.odd[mfn]
        if self.frames.pv and kind == "gone":
            if self.unsure or mfn in self.vague:  # what hardware did not confirm to have forgotten may hold it
                return -EPERM if stopped else 0
            return 0 if self.held(mfn) else -EPERM
        if not self.frames.has(mfn):  # named by its machine frame number: what its domain calls it does not matter
            return -EPERM if write and kind == "pagetable" else 0
        if kind in ("gone", "hole", "paged"):
            return -(self._errno_paged_out if kind == "paged" else self.frames.hole)
        return -EPERM if kind == "foreign" or (write and kind in ("ro", "shared", "pagetable")) else 0

    def count(self, mfn: int, without: Sequence[tuple["FrameShadow", int, range]] = ()) -> int:
        """How many mappings of domains' own contexts lead to ``mfn``, but for those ``without``."""
        return sum(
            not any(domain is of and number == other and mfn - delta in dfns for of, other, dfns in without)
            for domain in self.kin
            for number, space in domain.spaces.items()
            for start, end, delta, _ in space
            if start + delta <= mfn < end + delta
        )

    def held(self, mfn: int, access: int = 3) -> bool:
        """Whether a mapping of domains' own contexts with one of the rights in ``access`` leads to ``mfn``; what is
        left of dying ones, nobody is told."""
        return any(
            start + delta <= mfn < end + delta and rights & access
            for domain in self.kin
            for number, space in domain.spaces.items()
            if number not in domain.dying
            for start, end, delta, rights in space
        )
