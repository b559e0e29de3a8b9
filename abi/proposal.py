# SPDX-License-Identifier: GPL-2.0-or-later
"""N: the redesign as a header alone, between v3 and v4.

Teddy Astie (Vates), "[RFC XEN] xen/public: PV-IOMMU interface header proposal", xen-devel, 15 Jul 2024, after the
review of v3.  Numbers are an anonymous enum with implicit values and are not those of v4: there is no init yet, and
lookup_page is still there.  No implementation was posted; what it would answer is only what its comments promise.
"""

from typing import Final

from abi import v4
from abi.declare import IN, OUT, CStruct, c_struct, handle, u16, u64_aligned
from abi.errno import ENODEV, ENOENT, EOPNOTSUPP
from abi.model import Abi, Convention, CopyBack, Promise, SubOp, subop, table

LOOKUP_PAGE: Final = c_struct(
    "pv_iommu_lookup_page",
    "ctx_no" / IN(u16) * "the context to look in",
    "dfn" / IN(u64_aligned) * "device frame to look up",
    "gfn" / OUT(u64_aligned) * "the guest frame found",
)

REMOTE_CMD: Final = c_struct(
    "pv_iommu_remote_cmd",
    "domid" / IN(u16) * "the domain to work on",
    "cmd" / IN(u16) * "the sub-op to run on it",
    "arg" / IN(handle("void"), promised="inout") * "that sub-op's struct, in the caller's memory",
)

_STRUCTS: Final[tuple[CStruct, ...]] = (
    v4.CAPABILITIES,
    v4.ALLOC,
    v4.FREE,
    v4.MAP_PAGES,
    v4.UNMAP_PAGES,
    LOOKUP_PAGE,
    v4.REATTACH_DEVICE,
    REMOTE_CMD,
    v4.ALLOC_NESTED,
    v4.FLUSH_NESTED,
    v4.ATTACH_PASID,
    v4.DETACH_PASID,
)


def _rows() -> tuple[SubOp, ...]:
    """v4's rows less init, with lookup_page, in N's own numbering."""
    rows = {row.name: row for row in v4.rows(v4.CAPABILITIES)}
    rows["lookup_page"] = subop(
        "lookup_page",
        7,
        "IOMMU_lookup_page",
        LOOKUP_PAGE,
        copied_back=CopyBack.ALWAYS,
        doc="the guest frame mapped at a device frame",
        promises=(Promise("not-mapped", ENOENT, ""),),
    )
    rows["remote_cmd"] = subop(
        "remote_cmd",
        8,
        "IOMMU_remote_cmd",
        REMOTE_CMD,
        doc="run a sub-op on another domain",
        promises=rows["remote_cmd"].promises,
    )
    order = ("noop", "query_capabilities", "alloc_context", "free_context", "reattach_device", "map_pages")
    more = ("unmap_pages", "lookup_page", "remote_cmd", "alloc_nested", "flush_nested", "attach_pasid", "detach_pasid")
    return tuple(rows[name].numbered(number) for number, name in enumerate(order + more))


N: Final = Abi(
    name="N",
    posted="15 Jul 2024, Teddy Astie, header proposal only",
    convention=Convention.SUBOP,
    hypercall=43,
    subops=table(*_rows()),
    constants=v4.V4.constants,
    structs=_STRUCTS,
    errno_unusable=ENODEV,
    errno_unknown_subop=EOPNOTSUPP,
    max_nr_pages=None,
    enum_tag="",
    implemented=False,
    mentions=v4.MENTIONS,
    documents_partial=True,
    includes=("stdint.h", "xen.h", "physdev.h"),
)
