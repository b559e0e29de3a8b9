# SPDX-License-Identifier: GPL-2.0-or-later
"""v4: a sub-op number in a register, one struct per sub-op, and init.

Posted to xen-devel by Teddy Astie (Vates) in "IOMMU subsystem redesign and PV-IOMMU interface", RFC v4 (4 Nov 2024).
Sub-op numbers are an anonymous enum with implicit values.  The sub-ops from 9 on are numbers and structs without
an implementation.
"""

from typing import Final

from abi.declare import (
    IN,
    INOUT,
    OUT,
    PCI_DEVICE,
    CStruct,
    c_struct,
    handle,
    u16,
    u32,
    u64_aligned,
)
from abi.errno import EACCES, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOSPC, EOPNOTSUPP, EPERM
from abi.model import Abi, Constant, Convention, CopyBack, Promise, SubOp, subop, table

CAPABILITIES: Final = c_struct(
    "pv_iommu_capabilities",
    "max_iova_addr" / OUT(u64_aligned) * "highest device address that can be mapped",
    "cap_flags" / OUT(u32) * "IOMMUCAP_*",
    "pgsize_mask" / OUT(u32) * "page sizes that map and unmap take, one bit each",
    "max_pasid" / OUT(u32) * "highest PASID (with IOMMUCAP_pasid)",
    "max_ctx_no" / OUT(u16) * "number of contexts besides the default one; 0 before init",
)

INIT: Final = c_struct(
    "pv_iommu_init",
    "max_ctx_no" / IN(u32) * "number of contexts besides the default one",
    "arena_order" / IN(u32) * "pages set aside for page tables, as a power of two",
)

ALLOC: Final = c_struct(
    "pv_iommu_alloc",
    "ctx_no" / OUT(u16) * "number of the new context",
    "alloc_flags" / IN(u32) * "IOMMU_ALLOC_*",
)

FREE: Final = c_struct(
    "pv_iommu_free",
    "ctx_no" / IN(u16) * "the context to destroy",
    "free_flags" / IN(u32) * "IOMMU_FREE_*",
)

MAP_PAGES: Final = c_struct(
    "pv_iommu_map_pages",
    "ctx_no" / IN(u16) * "the context to map into",
    "gfn" / INOUT(u64_aligned, promised="in") * "first guest frame",
    "dfn" / INOUT(u64_aligned, promised="in") * "first device frame",
    "map_flags" / IN(u32) * "IOMMU_MAP_*",
    "pgsize" / IN(u32) * "bytes per page",
    "nr_pages" / INOUT(u32, promised="in") * "pages to map",
    "mapped" / INOUT(u32, promised="out") * "pages mapped",
)

UNMAP_PAGES: Final = c_struct(
    "pv_iommu_unmap_pages",
    "ctx_no" / IN(u16) * "the context to unmap from",
    "dfn" / INOUT(u64_aligned, promised="in") * "first device frame",
    "pgsize" / IN(u32) * "bytes per page",
    "nr_pages" / INOUT(u32, promised="in") * "pages to unmap",
    "unmapped" / INOUT(u32, promised="out") * "pages unmapped",
)

REATTACH_DEVICE: Final = c_struct(
    "pv_iommu_reattach_device",
    "ctx_no" / IN(u16) * "the context to move the device to",
    "dev" / IN(PCI_DEVICE) * "the device",
    "pasid" / IN(u32) * "its PASID (with IOMMUCAP_pasid)",
)

REMOTE_CMD: Final = c_struct(
    "pv_iommu_remote_cmd",
    "domid" / IN(u16) * "the domain to work on",
    "subop" / IN(u16) * "the sub-op to run on it",
    "arg" / IN(handle("void"), promised="inout") * "that sub-op's struct, in the caller's memory",
)

ALLOC_NESTED: Final = c_struct(
    "pv_iommu_alloc_nested",
    "ctx_no" / OUT(u16) * "number of the new context",
    "pgtable_gfn" / IN(u64_aligned) * "root of the guest's own page table",
    "nested_flags" / IN(u64_aligned) * "flags, none defined",
)

FLUSH_NESTED: Final = c_struct("pv_iommu_flush_nested")

ATTACH_PASID: Final = c_struct(
    "pv_iommu_attach_pasid",
    "ctx_no" / IN(u16) * "the context to attach to",
    "dev" / IN(PCI_DEVICE) * "the device",
    "pasid" / IN(u32) * "the PASID to attach",
)

DETACH_PASID: Final = c_struct(
    "pv_iommu_detach_pasid",
    "dev" / IN(PCI_DEVICE) * "the device",
    "pasid" / IN(u32, marked=False) * "the PASID to detach",
)

STRUCTS: Final[tuple[CStruct, ...]] = (
    CAPABILITIES,
    INIT,
    ALLOC,
    FREE,
    MAP_PAGES,
    UNMAP_PAGES,
    REATTACH_DEVICE,
    REMOTE_CMD,
    ALLOC_NESTED,
    FLUSH_NESTED,
    ATTACH_PASID,
    DETACH_PASID,
)


def caps(one: str) -> tuple[Constant, ...]:
    """The capability bits; ``one`` is how the header writes the 1 that it shifts."""
    rows = (
        ("default_identity", "the default context maps the guest's memory; clear: it blocks all DMA to it"),
        ("cache", "IOMMU_MAP_cache is honoured"),
        ("nested", "alloc_nested and flush_nested are there"),
        ("pasid", "attach_pasid, detach_pasid and reattach_device's pasid are there"),
        ("identity", "IOMMU_ALLOC_identity is honoured"),
    )
    return tuple(
        Constant(f"IOMMUCAP_{name}", 1 << bit, "cap", doc, f"{one} << {bit}") for bit, (name, doc) in enumerate(rows)
    )


FLAGS: Final = (
    Constant("IOMMU_ALLOC_identity", 1, "alloc", "start with the guest's memory mapped 1:1", "1 << 0", "identity"),
    Constant("IOMMU_FREE_reattach_default", 1, "free", "move the devices to the default context first", "1 << 0"),
    Constant("IOMMU_MAP_readable", 1, "map", "devices may read", "1 << 0"),
    Constant("IOMMU_MAP_writeable", 2, "map", "devices may write", "1 << 1"),
    Constant("IOMMU_MAP_cache", 4, "map", "enforce coherent DMA", "1 << 2", "cache"),
)

CONTEXT: Final = (Constant("IOMMU_DEFAULT_CONTEXT", 0, "context", "the context that always exists"),)


def rows(capabilities: CStruct) -> tuple[SubOp, ...]:
    """The sub-op table from v4 on, around one version's capabilities struct."""
    always = CopyBack.ALWAYS
    return (
        subop("noop", 0, "IOMMU_noop", doc="does nothing; tells whether the caller may use PV-IOMMU"),
        subop(
            "query_capabilities",
            1,
            "IOMMU_query_capabilities",
            capabilities,
            copied_in=False,
            copied_back=always,
            doc="limits and features of this guest",
        ),
        subop(
            "init",
            2,
            "IOMMU_init",
            INIT,
            doc="set up the context numbers and the page-table arena, once",
            promises=(Promise("initialized", EACCES, "-EACCESS"),),
        ),
        subop(
            "alloc_context",
            3,
            "IOMMU_alloc_context",
            ALLOC,
            copied_back=always,
            doc="make an empty context",
            promises=(Promise("no-number", ENOSPC, ""),),
        ),
        subop(
            "free_context",
            4,
            "IOMMU_free_context",
            FREE,
            doc="destroy a context",
            promises=(Promise("busy", EBUSY, ""),),
        ),
        subop(
            "reattach_device",
            5,
            "IOMMU_reattach_device",
            REATTACH_DEVICE,
            doc="move a device to another context",
            promises=(Promise("no-device", ENODEV, ""),),
        ),
        subop(
            "map_pages",
            6,
            "IOMMU_map_pages",
            MAP_PAGES,
            copied_back=always,
            doc="map a run of guest frames",
            promises=(Promise("occupied", EINVAL, ""),),
        ),
        subop(
            "unmap_pages",
            7,
            "IOMMU_unmap_pages",
            UNMAP_PAGES,
            copied_back=always,
            doc="unmap a run of device frames",
            promises=(Promise("not-mapped", ENOENT, ""),),
        ),
        subop(
            "remote_cmd",
            8,
            "IOMMU_remote_cmd",
            REMOTE_CMD,
            doc="run a sub-op on another domain",
            promises=(Promise("not-privileged", EPERM, ""),),
        ),
        subop(
            "alloc_nested",
            9,
            "IOMMU_alloc_nested",
            ALLOC_NESTED,
            touched=False,
            implemented=False,
            doc="make a context over a page table that the guest owns",
            needs="nested",
        ),
        subop(
            "flush_nested",
            10,
            "IOMMU_flush_nested",
            FLUSH_NESTED,
            touched=False,
            implemented=False,
            doc="flush the IOTLB after changing such a page table",
            needs="nested",
        ),
        subop(
            "attach_pasid",
            11,
            "IOMMU_attach_pasid",
            ATTACH_PASID,
            touched=False,
            implemented=False,
            doc="attach a device's PASID to a context",
            needs="pasid",
            promises=(
                Promise("pasid-exists", EEXIST, ""),
                Promise("pasid-zero", EINVAL, ""),
                Promise("no-device", ENOENT, ""),
            ),
        ),
        subop(
            "detach_pasid",
            12,
            "IOMMU_detach_pasid",
            DETACH_PASID,
            touched=False,
            implemented=False,
            doc="detach a device's PASID",
            needs="pasid",
            promises=(Promise("no-pasid", ENOENT, ""), Promise("pasid-zero", EINVAL, "")),
        ),
    )


MENTIONS: Final = (
    ("pv_iommu_unmap_pages", "mapped"),
    ("IOMMUCAP_pasid", "reattach_context"),
)
"""Names in the header's comments that the header does not have: from N on, to this day."""

V4: Final = Abi(
    name="v4",
    posted="4 Nov 2024, Teddy Astie, RFC v4",
    convention=Convention.SUBOP,
    hypercall=43,
    subops=table(*rows(CAPABILITIES)),
    constants=(*CONTEXT, *caps("1"), *FLAGS),
    structs=STRUCTS,
    errno_unusable=ENODEV,
    errno_unknown_subop=EOPNOTSUPP,
    max_nr_pages=None,
    enum_tag="",
    aligned_fallback=True,
    mentions=MENTIONS,
    documents_partial=True,
    includes=("xen.h", "physdev.h"),
)
