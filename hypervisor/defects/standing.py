# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of posted code (S1 to S3): no faults in themselves, but what other entries do depends on them."""

from typing import Final

from hypervisor.defects.model import V1_TO_3, V1_TO_7, Defect
from hypervisor.defects.posted_table import PostedPageTable
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain
from hypervisor.iommu.context import IommuContext
from hypervisor.pagetable.radix import Changes
from hypervisor.vtd.driver import VtdBackend

FIRST_PSEUDO_ID: Final = 0x8000


def posted_tables(seams: Seams) -> None:
    """S1."""
    xen, loop = seams.xen, seams.loop
    replace(xen.backend, "page_table", PostedPageTable)
    loop.mark = 0
    loop.flushes_additions = True

    def tear_down_without_flush(domain: Domain, context: IommuContext, changes: Changes) -> int:
        if context.number:  # the default one's leaves never held references
            loop.drop(domain, changes)
        for table in changes.tables:
            context.pool.free(table)
        return 0

    replace(xen, "finish_teardown_pass", tear_down_without_flush)


class PseudoIds:
    """Domain ids of contexts other than the default ones: the next free one from 0x8000 on, then from the start."""

    def __init__(self) -> None:
        self.used: set[int] = set()
        self.next = 0
        self.default_context = True

    def take(self) -> int:
        span = 0x10000 - FIRST_PSEUDO_ID - 1
        for step in range(span):
            number = (self.next + step) % span
            if number not in self.used:
                self.used.add(number)
                self.next = number + 1
                return FIRST_PSEUDO_ID + number
        return -1

    def save(self) -> object:
        return (set(self.used), self.next)

    def restore(self, state: object) -> None:
        used, self.next = state  # type: ignore[misc]
        self.used = set(used)  # type: ignore[has-type]


def next_fit_ids(seams: Seams) -> None:
    """S2."""
    backend = seams.xen.backend
    if not isinstance(backend, VtdBackend):
        return
    for unit in backend.units:
        ids = PseudoIds()
        seams.stateful.append(ids)
        lowest, give = unit.take_did, unit.give_did

        def take_did(ids: PseudoIds = ids, lowest: "object" = lowest) -> int:
            return lowest() if ids.default_context else ids.take()  # type: ignore[operator]

        def give_did(did: int, ids: PseudoIds = ids, give: "object" = give) -> None:
            if did >= FIRST_PSEUDO_ID:
                ids.used.discard(did - FIRST_PSEUDO_ID)
            else:
                give(did)  # type: ignore[operator]

        replace(unit, "take_did", take_did)
        replace(unit, "give_did", give_did)
        _tell(backend, ids)


def _tell(backend: VtdBackend, ids: PseudoIds) -> None:
    """Let ``ids`` know whose turn it is."""
    init = backend.context_init

    def context_init(context: IommuContext) -> int:
        ids.default_context = context.number == 0
        return init(context)

    replace(backend, "context_init", context_init)


def act_before_writing_back(seams: Seams) -> None:
    """S3."""
    seams.entry.acts_first = True


DEFECTS: Final = (
    Defect(
        "S1",
        V1_TO_7,
        "superpages come and go by themselves, and each takes or returns an arena page",
        "unmap in the middle of a superpage fails with -ENOMEM when the arena is full; free flushes nothing",
        "catalogue section 4; golden records arena3-*, onegig, sys",
        posted_tables,
    ),
    Defect(
        "S2",
        V1_TO_3,
        "contexts take domain ids from 0x8000 on, a freed one not before all others were used",
        "domain ids in the invalidation descriptors and context entries",
        "golden record destr-did",
        next_fit_ids,
        backends=("vtd",),
    ),
    Defect(
        "S3",
        V1_TO_7,
        "a call whose answer cannot be written back is carried out, and then answers -EFAULT",
        "alloc_context with a read-only struct: -EFAULT, and a context is lost",
        "catalogue section 2; golden record sys, last calls",
        act_before_writing_back,
    ),
)
