# SPDX-License-Identifier: GPL-2.0-or-later
"""Where posted hypervisors depart from the executable specification, as far as a guest can see it.

:mod:`abi.semantics` says what a call does while the hypervisor keeps its own state in order.  These are the ways in
which the postings did not: the sub-op, the versions in which the text was read, and what the guest meets instead.
Letters and numbers are those of the defect catalogue that the hypervisor's profiles use.
"""

from dataclasses import dataclass
from typing import Final

_ALL: Final = ("v1", "v2", "v3", "v4", "v5", "v6", "v7")
_EARLY: Final = _ALL[:3]
_LATE: Final = _ALL[3:]


@dataclass(frozen=True, slots=True)
class Deviation:
    """One departure."""

    name: str
    versions: tuple[str, ...]
    subop: str
    """Canonical name, "" for all."""
    instead: str
    """What happens instead."""

    @property
    def place(self) -> str:
        return f"{self.subop or 'every sub-op'} ({self.name})"


DEVIATIONS: Final = (
    Deviation("A4", _LATE, "query_capabilities", "two bytes of the answer are what the hypervisor's stack held"),
    Deviation("A7", _LATE, "", "a 32-bit guest's structs are read with the 64-bit layout; there is no compat handler"),
    Deviation("B1", _EARLY, "alloc_context", "after -ENOSPC the next call that takes the domain's lock never returns"),
    Deviation("B2", _EARLY, "free_context", "after -ENOENT the next call that takes the domain's lock never returns"),
    Deviation(
        "C1",
        _ALL,
        "free_context",
        "with the flag and a device attached, the first device is moved and the call never returns",
    ),
    Deviation("C3", _ALL, "alloc_context", "after -ENOMEM the number stays taken and the next context counts as free"),
    Deviation("C4", _LATE, "alloc_context", "two calls at the same time can get the same number"),
    Deviation("C5", _LATE, "free_context", "with a reattach_device at the same time, both can wait for ever"),
    Deviation(
        "D4",
        ("v7",),
        "reattach_device",
        "one page behind each reserved region is mapped as well, and is not protected as part of it",
    ),
    Deviation("D6", _EARLY, "lookup_page", "the hypervisor stops if the frame found no longer belongs to the guest"),
    Deviation("F1", _EARLY, "map_pages", "after -ENOMEM the page's reference is kept for ever"),
    Deviation("F4", ("v7",), "map_pages", "after -EPERM for a frame of another owner, a guest with a p2m hangs"),
    Deviation("F5", ("v7",), "map_pages", "a frame without an owner is mapped, and a reference never taken is dropped"),
    Deviation("F6", _ALL, "unmap_pages", "the page may be in new hands while a device still reaches it"),
    Deviation("G3", _LATE[1:], "alloc_context", "when an IOMMU has no domain id left, memory behind a bitmap is used"),
    Deviation(
        "H5",
        _LATE,
        "remote_cmd",
        "the target's right to PV-IOMMU is not tested; if it has no IOMMU page tables, every inner sub-op that reaches "
        "the IOMMU driver stops the hypervisor (noop, those refused before that, and alloc_context, for want of "
        "contexts, do not)",
    ),
    Deviation("H8", _ALL, "map_pages", "a mapping to machine frame 0 is never found again"),
    Deviation("R1", _EARLY, "unmap_pages", "in context 0, a frame without a page behind it stops the hypervisor"),
    Deviation("R3", _EARLY, "map_pages", "a call that begins at the highest device frame is not flushed, and says 0"),
    Deviation("R6", _EARLY, "reattach_device", "a bridge is in no context's list: a context in use can be freed"),
    Deviation(
        "T1", _ALL, "free_context", "a context with a superpage in it is never done with, or stops the hypervisor"
    ),
    Deviation(
        "T3",
        _ALL,
        "alloc_context",
        "answers 0 without a page for the root: map answers -ENOMEM, free reads machine frame 0",
    ),
    Deviation("T4", _LATE, "init", "arena_order 0 is taken, and the hypervisor stops at the first page wanted"),
    Deviation(
        "T5", _ALL, "free_context", "the root page is not given back: the arena runs dry by alloc and free alone"
    ),
)


def deviations_of(version: str) -> tuple[Deviation, ...]:
    """The departures of one posted version."""
    return tuple(d for d in DEVIATIONS if version in d.versions)
