# SPDX-License-Identifier: GPL-2.0-or-later
"""A: what is accepted and what is answered."""

import dataclasses
from typing import Final

from abi.errno import ENOENT
from base.units import U32_MAX
from hypervisor.defects.copying import PostedSubopEntry
from hypervisor.defects.model import V1_TO_3, V4_TO_7, Defect
from hypervisor.defects.seams import Seams, replace
from hypervisor.domain import Domain, Vcpu
from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext
from hypervisor.pviommu.result import RESTART, Result
from hypervisor.xen import Xen

_READ_WRITE: Final = 3


def default_context_accepted(seams: Seams) -> None:
    """A1."""
    loop, frames = seams.loop, seams.xen.frames

    def find(domain: Domain, number: int) -> IommuContext | None:
        assert domain.iommu is not None
        return domain.iommu.get(number)

    def unreferenced(mfn: int, count: int) -> None:
        if mfn + count <= frames.frames:
            frames.put(mfn, count, loop.reference_kind(False))

    replace(loop, "find", find)
    replace(loop, "unreferenced", unreferenced)


def init_goes_on_into_alloc(seams: Seams) -> None:
    """A2."""
    entry, subops = seams.entry, seams.xen.abi.by_name
    if isinstance(entry, PostedSubopEntry):
        entry.goes_on[subops["init"].number] = subops["alloc_context"].number


def count_is_truncated(seams: Seams) -> None:
    """A3."""
    init = seams.rows["init"].handler

    def truncating(xen: Xen, vcpu: Vcpu, domain: Domain, args: tuple[int, ...], start: int) -> Result:
        wanted, order = args
        if wanted == U32_MAX:
            return init(xen, vcpu, domain, args, start)
        with_default = wanted + 1 & 0xFFFF
        if not with_default:
            raise XenBug("BUG_ON in IOMMU_init: the number of contexts is 0 in 16 bits")
        return init(xen, vcpu, domain, (with_default - 1, order), start)

    seams.replace_handler("init", truncating)


def stack_in_the_answer(seams: Seams) -> None:
    """A4."""
    entry = seams.entry
    entry.stack = b"\xc5\x2d\x04\x82"


def page_size_ignored(seams: Seams) -> None:
    """A5."""
    replace(seams.loop, "unit", lambda pgsize: 1)


def unknown_bits_ignored(seams: Seams) -> None:
    """A6."""
    seams.entry.ignores_holes = True
    loop, contexts = seams.loop, seams.contexts
    abi = seams.xen.abi
    rights = abi.map_readable | abi.map_writeable
    permission = loop.permission
    replace(loop, "permission", lambda flags: permission(flags & rights))
    replace(contexts, "alloc_flags", lambda flags: 0)
    replace(contexts, "free_flags", lambda flags: True)
    replace(contexts, "ignores_pasid", lambda: True)


def no_layout_for_32_bits(seams: Seams) -> None:
    """A7."""
    xen = seams.xen
    replace(xen, "narrow_entry", lambda: xen.entry)


def no_device_is_enoent(seams: Seams) -> None:
    """A8."""
    seams.contexts.errno_no_device = ENOENT


def count_is_added(seams: Seams) -> None:
    """A9."""
    loop, xen, entry = seams.loop, seams.xen, seams.entry
    if not isinstance(entry, PostedSubopEntry):
        return

    def pauses(vcpu: Vcpu, index: int) -> bool:
        return loop.looks_up(index) and xen.preempt is not None and xen.preempt(vcpu)

    def go_on_later(vcpu: Vcpu, struct: tuple[int, ...]) -> Result:
        vcpu.restart = (0,)
        entry.rest[vcpu] = struct
        return RESTART, ()

    replace(loop, "count", lambda done, given: given + done & U32_MAX)
    replace(loop, "untouched", lambda given: given)
    replace(loop, "pauses", pauses)
    replace(loop, "go_on_later", go_on_later)


def early_errors_leave_the_count(seams: Seams) -> None:
    """A10."""
    replace(seams.loop, "untouched", lambda given: given)


def option_without_effect(seams: Seams) -> None:
    """B5."""
    replace(seams.xen, "options", dataclasses.replace(seams.xen.options, contexts=None))


DEFECTS: Final = (
    Defect(
        "B5",
        V1_TO_3,
        "dom0-iommu=nb-ctx= is read and has no effect",
        "with nb-ctx=3 query_capabilities says 255 contexts",
        "catalogue B5",
        option_without_effect,
        subops=("lookup_page",),
    ),
    Defect(
        "A1",
        V1_TO_3,
        "the default context is accepted by map, unmap and lookup",
        "unmap in context 0 answers 0, and drops a reference that was never taken",
        "catalogue A1; golden record destr-unmap_ctx0",
        default_context_accepted,
    ),
    Defect(
        "A2",
        V4_TO_7,
        "IOMMU_init goes on into alloc_context on the same struct",
        "init answers what alloc answers: context 1 is taken and max_ctx_no reads 1; a second init answers 0",
        "catalogue A2",
        init_goes_on_into_alloc,
        needs=("A6",),
        subops=("init",),
    ),
    Defect(
        "A3",
        V4_TO_7,
        "IOMMU_init keeps the number of contexts, plus one, in 16 bits",
        "max_ctx_no 0xffff stops the host; 0x10000 is 0 contexts for ever",
        "catalogue A3",
        count_is_truncated,
        subops=("init",),
    ),
    Defect(
        "A4",
        V4_TO_7,
        "query_capabilities copies bytes of the hypervisor's stack to the guest",
        "the padding of the struct is not zero",
        "catalogue A4",
        stack_in_the_answer,
        subops=("init",),
    ),
    Defect(
        "A5",
        V4_TO_7,
        "pgsize is ignored: pages are 4 KiB, whatever the guest asked for",
        "mapping one 2 MiB page answers 0 and mapped 1; its second 4 KiB page is not mapped",
        "catalogue A5",
        page_size_ignored,
        needs=("S1",),
    ),
    Defect(
        "A6",
        V1_TO_3 + V4_TO_7,
        "reserved bits and holes are not looked at, and flags without their capability are ignored",
        "any of them set: the call answers 0 and does something else than was asked for",
        "catalogue A6; golden record sys",
        unknown_bits_ignored,
    ),
    Defect(
        "A7",
        V4_TO_7,
        "a 32-bit caller's structs are read with the 64-bit layout",
        "map_pages of a 32-bit guest takes its dfn for the gfn and the flags for the dfn, and writes behind the struct",
        "catalogue A7 and 1.4",
        no_layout_for_32_bits,
        subops=("init",),
    ),
    Defect(
        "A8",
        ("v1", "v2", "v3", "v4", "v5", "v6"),
        "reattach_device of a device that the domain does not have answers -ENOENT, the header says -ENODEV",
        "reattach of an unknown device",
        "catalogue A8 and 2.5; golden record sys",
        no_device_is_enoent,
    ),
    Defect(
        "A9",
        V4_TO_7,
        "counts are added to what the guest's struct holds, and a preempted call moves its inputs on",
        "mapped = 7 comes back as 7 more than was mapped; a preempted call's gfn, dfn, nr_pages are its last pass's",
        "catalogue A9",
        count_is_added,
        subops=("init",),
    ),
    Defect(
        "A10",
        V1_TO_3,
        "a call that is refused early copies the guest's own mapped or unmapped back",
        "-E2BIG with mapped = 9 leaves 9",
        "catalogue A10; golden record sys",
        early_errors_leave_the_count,
        subops=("lookup_page",),
    ),
)
