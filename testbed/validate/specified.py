# SPDX-License-Identifier: GPL-2.0-or-later
"""How the reference driver degrades on posted hypervisors.

A driver cannot mend the hypervisor under it.  What it owes is to go on where that is possible, to tell the truth about
what did not happen, and to lose nothing of its own.  For each fault of a posted hypervisor that the driver meets
in its life, and each property that does not hold because of it, this is what happens and why nothing better can.
Whatever else does not hold is a finding.
"""

from typing import Final

SPECIFIED: Final[dict[tuple[str, str], str]] = {
    ("A2", "leak"): "init took a context that the driver was never told of; it cannot give it back and has one less",
    ("R6", "13"): "the 0 is believed; a bridge does no DMA of its own, and other devices are where they should be",
    ("B1", "xen"): "the caller gets -ENOSPC; that the lock is still held, no driver can know before the next hypercall",
    ("D2", "xen"): "only a caller that maps up to a reserved region gets there: the DMA API keeps out of them",
    **dict.fromkeys(
        [("D2", "6"), ("D2", "expect"), ("D3", "6"), ("D3", "expect")],
        "the hypervisor counts pages of the region as unmapped, and is believed; the DMA API keeps out of regions",
    ),
    ("D6", "xen"): "only a caller that looks a reserved region up gets there: the DMA API keeps out of them",
    ("D4", "5"): "the page behind a reserved region is mapped without a word; the driver answers for what it mapped",
    ("D4", "39"): "the page behind a reserved region stays: the driver never mapped it",
    ("T3", "expect"): "the 0 is believed; what is mapped there fails, and its errno reaches the caller",
}
"""(id in :mod:`hypervisor.defects.catalogue`, property) to a sentence."""


def specified(defects: list[str], invariant: str) -> str:
    """What is said about ``defects`` breaking ``invariant``; "" if nothing is."""
    return next((SPECIFIED[name, invariant] for name in defects if (name, invariant) in SPECIFIED), "")
