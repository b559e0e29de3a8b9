# SPDX-License-Identifier: GPL-2.0-or-later
"""B: locks that are not released."""

from typing import Final

from hypervisor.defects.locks import DOMAIN
from hypervisor.defects.model import V1_TO_3, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain


def _locks(seams: Seams) -> None:
    """Let every sub-op that takes the domain's lock notice whether it is free."""

    def lock(domain: Domain, who: str) -> None:
        seams.locks.take(f"d{domain.domid}: {DOMAIN}", who)

    replace(seams.loop, "lock", lock)
    replace(seams.contexts, "lock", lock)


def _leaves(seams: Seams, step: str, holder: str) -> None:
    _locks(seams)
    replace(seams.contexts, step, lambda domain: seams.locks.leak(f"d{domain.domid}: {DOMAIN}", holder))


def alloc_keeps_the_lock(seams: Seams) -> None:
    """B1."""
    _leaves(seams, "no_number", "alloc_context, which answered -ENOSPC,")


def free_keeps_the_lock(seams: Seams) -> None:
    """B2."""
    _leaves(seams, "unknown_on_free", "free_context, which answered -ENOENT,")


DEFECTS: Final = (
    Defect(
        "B1",
        V1_TO_3,
        "alloc_context answers -ENOSPC with the domain's IOMMU lock held",
        "after all contexts are taken, the next call that needs the lock never returns",
        "catalogue B1; golden record destr-exhaust",
        alloc_keeps_the_lock,
    ),
    Defect(
        "B2",
        V1_TO_3,
        "free_context of an unknown context answers -ENOENT with the domain's IOMMU lock held",
        "the next call that needs the lock never returns",
        "catalogue B2; golden records destr-freeunknown, destr-free65535",
        free_keeps_the_lock,
    ),
)
