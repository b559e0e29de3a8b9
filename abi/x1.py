# SPDX-License-Identifier: GPL-2.0-or-later
"""x1-nested: an experiment of this project's own, on top of v7.  Nobody has posted it.

Posted headers reserve numbers 9 to 12 for page tables that a guest owns and for PASIDs, with structs and comments, and
no implementation.  This gives alloc_nested and flush_nested a meaning, in the layouts that were posted where there is
one, and adds what they cannot do without:

* ``query_device``: what the unit in front of a *device* can do.  Capability bits speak for a whole machine, whose units
  may differ.
* ``attach_pasid`` and ``detach_pasid``, as their comments promise;
* ``next_fault``: faults of the guest's own stage, which nobody else can act on.
* ``IOMMU_ALLOC_cache``: every mapping of a context enforces coherent DMA, settled before the first one.
"""

from enum import IntEnum
from typing import Final

from abi.declare import IN, INOUT, OUT, PCI_DEVICE, c_struct, handle, u16, u32, u64_aligned
from abi.errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP
from abi.model import Abi, Constant, Convention, CopyBack, Promise, subop, table
from abi.v4 import CONTEXT, FLAGS, MENTIONS
from abi.v7 import CAPS, ROWS, V7_STRUCTS
from base.bits import Layout, bits


class NestedFormat(IntEnum):
    """What kind of table the guest owns: field ``format`` of ``nested_flags``."""

    SMMUV3_CD = 1
    """A table of SMMUv3 context descriptors."""
    VTD_FIRST_STAGE = 2
    """A first-stage tree of VT-d."""


class NestedFlags(Layout):
    """``nested_flags`` of alloc_nested.  The SMMUv3 fields are those of a stream table entry."""

    s1cdmax = bits(20, 16, "log2 of the number of context descriptors")
    s1dss = bits(9, 8, "what requests without a PASID meet: 0 abort, 1 bypass, 2 descriptor 0")
    s1fmt = bits(5, 4, "0 linear, 1 and 2 two levels with leaves of 4 KiB and 64 KiB")
    format = bits(3, 0, "NestedFormat")


ALLOC_NESTED: Final = c_struct(
    "pv_iommu_alloc_nested",
    "ctx_no" / INOUT(u16) * "in: the context that translates what the table says; out: the new context",
    "pgtable_gfn" / IN(u64_aligned) * "frame of the guest's table, as that context numbers it",
    "nested_flags" / IN(u64_aligned) * "format of the table",
)

FLUSH_NESTED: Final = c_struct(
    "pv_iommu_flush_nested",
    "ctx_no" / IN(u16) * "the nested context",
    "nr_commands" / IN(u32) * "invalidations to carry out, in order",
    "commands" / IN(handle("uint64_t")) * "two 64-bit words each, as the hardware defines them",
    "done" / OUT(u32) * "how many were carried out, on an error too",
)

QUERY_DEVICE: Final = c_struct(
    "pv_iommu_query_device",
    "dev" / IN(PCI_DEVICE) * "one of the caller's devices",
    "dev_flags" / OUT(u32) * "IOMMU_DEV_*",
    "nested_format" / OUT(u32) * "the table that alloc_nested takes for it, 0 for none",
    "pasid_bits" / OUT(u32) * "width of the PASIDs that the unit takes",
    "info0" / OUT(u32) * "registers of the unit that describe its first stage:",
    "info1" / OUT(u32) * "SMMUv3: IDR0, IDR1,",
    "info2" / OUT(u32) * "IDR3,",
    "info3" / OUT(u32) * "IDR5",
)

NEXT_FAULT: Final = c_struct(
    "pv_iommu_next_fault",
    "dev" / OUT(PCI_DEVICE) * "whose request was refused",
    "fault_flags" / OUT(u32) * "IOMMU_FAULT_*",
    "pasid" / OUT(u32) * "its PASID, with IOMMU_FAULT_pasid",
    "code" / OUT(u32) * "the hardware's number of the reason",
    "address" / OUT(u64_aligned) * "the address that the device used",
    "lost" / OUT(u32) * "faults that were dropped before this one",
)

FAULTS_KEPT: Final = 64
"""Faults that wait for a guest; later ones are counted and dropped."""
MOST_COMMANDS: Final = 256
"""Commands of one flush_nested."""

_NESTED = (
    subop(
        "alloc_nested",
        9,
        "IOMMU_alloc_nested",
        ALLOC_NESTED,
        copied_back=CopyBack.ALWAYS,
        doc="make a context over a table that the guest owns",
        needs="nested",
        promises=(Promise("bad-table", EINVAL, ""),),
    ),
    subop(
        "flush_nested",
        10,
        "IOMMU_flush_nested",
        FLUSH_NESTED,
        copied_back=CopyBack.ALWAYS,
        doc="make hardware forget what such a table said",
        needs="nested",
    ),
)

_PASIDS = tuple(
    subop(row.name, row.number, row.c_name, row.declaration, doc=row.doc, needs=row.needs, promises=row.promises)
    for row in ROWS
    if row.number in (11, 12)
)

X1: Final = Abi(
    name="x1-nested",
    posted="experimental, not posted: v7 with nested tables",
    convention=Convention.SUBOP,
    hypercall=43,
    subops=table(
        *(row for row in ROWS if row.number < 9),
        *_NESTED,
        *_PASIDS,
        subop(
            "query_device",
            14,
            "IOMMU_query_device",
            QUERY_DEVICE,
            copied_back=CopyBack.ALWAYS,
            doc="what the unit in front of a device can do",
            promises=(Promise("no-device", ENODEV, ""),),
        ),
        subop(
            "next_fault",
            15,
            "IOMMU_next_fault",
            NEXT_FAULT,
            copied_in=False,
            copied_back=CopyBack.ALWAYS,
            doc="the oldest fault of the guest's own stage",
            needs="nested",
            promises=(Promise("no-fault", ENOENT, ""),),
        ),
    ),
    constants=(
        *CONTEXT,
        *CAPS,
        *FLAGS,
        Constant("IOMMU_ALLOC_cache", 1 << 1, "alloc", "every mapping enforces coherent DMA", "1 << 1"),
        Constant("IOMMU_DEV_enforce_cache", 1 << 0, "device", "may enter contexts with IOMMU_ALLOC_cache", "1 << 0"),
        Constant("IOMMU_DEV_nested", 1 << 1, "device", "may enter nested contexts", "1 << 1"),
        Constant("IOMMU_FAULT_read", 1 << 0, "fault", "the request was a read", "1 << 0"),
        Constant("IOMMU_FAULT_pasid", 1 << 1, "fault", "it carried a PASID", "1 << 1"),
    ),
    structs=(*V7_STRUCTS[:8], ALLOC_NESTED, FLUSH_NESTED, *V7_STRUCTS[10:], QUERY_DEVICE, NEXT_FAULT),
    errno_unusable=ENODEV,
    errno_unknown_subop=EOPNOTSUPP,
    max_nr_pages=None,
    enum_tag="pv_iommu_cmd",
    aligned_fallback=True,
    mentions=MENTIONS,
    documents_partial=True,
    includes=("xen.h", "physdev.h"),
)
