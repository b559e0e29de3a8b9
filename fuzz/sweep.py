# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine's invariants as a sweep: whole-array comparisons first, the invariants themselves where those fail."""

from collections.abc import Collection
from typing import Final, NamedTuple

from testbed.invariants import INVARIANTS, View

COUNTED: Final = ("references", "writable_references")
COSTLY: Final = ("hardware_walks_what_contexts_say", "no_reach_into_others", "free_frames")
"""Left out of a sweep that is not full: what they would see, most other clauses see too."""


class Broken(NamedTuple):
    """A clause that does not hold."""

    clause: str
    what: str

    def __str__(self) -> str:
        return f"{self.clause}: {self.what}"


def sweep(view: View, full: bool = True, overlooked: Collection[str] = frozenset()) -> Broken | None:
    """The first invariant that does not hold and is not ``overlooked``."""
    counted = counts_are_right(view)
    for name, holds in INVARIANTS.items():
        if (counted and name in COUNTED) or (not full and name in COSTLY):
            continue
        if f"invariant:{name}" in overlooked:
            continue
        for what in holds(view):
            return Broken(f"invariant:{name}", what)
    return None


def counts_are_right(view: View) -> bool:
    """Whether every frame has the references that its owner and mappings account for."""
    frames = view.frames
    if view.xen.kept:
        return False
    pv = any(domain.pv for domain in view.xen.domains.values())
    held = list(frames.allocated)
    for domain, _, leaf in view.leaves():
        if leaf.referenced and leaf.mfn + leaf.pages <= frames.frames:
            amount = (1 << 32 | 1) if pv and leaf.writable and domain.pv else 1
            run = slice(leaf.mfn, leaf.mfn + leaf.pages)
            held[run] = [count + amount for count in held[run]]
    return held == frames.refs.tolist()
