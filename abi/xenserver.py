# SPDX-License-Identifier: GPL-2.0-or-later
"""A-old and A-new: XenServer's interface, an array of tagged operations with a status in each.

Malcolm Crossley (Citrix), design drafts A (10 Apr 2014), B (12 Jun 2015) and C (26 Jun 2015) on xen-devel, shipped in
XenServer's patch queue: the text with explicit foreign maps (A-old) and the one that marks pages and uses a window of
premapped frames instead (A-new, which drops map_foreign_page).  Hypercall 56, arguments (array, count).

The alternative of map_foreign_page is taken to be that of lookup_foreign_page: the code uses the same four fields,
the posted header with it was not seen.  A-old has two more flag bits, for its machine-to-bus table, whose values were
not seen either.
"""

from typing import Final

from abi.declare import IN, INOUT, OUT, CStruct, c_struct, case, domid, s32, tagged_union, u16, u64
from abi.errno import ENODEV, ENOSYS
from abi.model import Abi, Constant, Convention, CopyBack, SubOp, subop, table


def _foreign(name: str, bfn: object) -> object:
    return name / case(
        bfn,
        "gfn" / IN(u64, marked=False) * "frame of the other domain",
        "domid" / IN(domid, marked=False) * "the other domain",
        "ioserver" / IN(u16, marked=False) * "the I/O server that asks",
    )


def _op(*foreign: object) -> CStruct:
    return c_struct(
        "pv_iommu_op",
        "subop_id" / IN(u16, marked=False) * "number of the operation; selects the alternative of the union",
        "flags" / INOUT(u16, promised="") * "one field for the flags of every operation",
        "status" / OUT(s32, marked=False) * "0 or the negative errno of this operation",
        "u"
        / tagged_union(
            "query_caps" / case("offset" / OUT(u64, marked=False) * "frames between machine and bus numbers"),
            "map_page"
            / case(
                "bfn" / IN(u64, marked=False) * "bus frame to map at",
                "gfn" / IN(u64, marked=False) * "guest frame to map",
            ),
            "unmap_page" / case("bfn" / IN(u64, marked=False) * "bus frame to unmap"),
            *foreign,
        ),
    )


_LOOKUP: Final = (
    _foreign("lookup_foreign_page", "bfn" / OUT(u64, marked=False) * "bus frame found"),
    "unmap_foreign_page"
    / case(
        "bfn" / IN(u64, marked=False) * "bus frame to give back",
        "ioserver" / IN(u16, marked=False) * "the I/O server that had it",
    ),
)

OP_OLD: Final = _op(
    _foreign("map_foreign_page", "bfn" / IN(u64, marked=False) * "bus frame to map at"),
    *_LOOKUP,
)
OP_NEW: Final = _op(*_LOOKUP)

CONSTANTS: Final = (
    Constant("IOMMU_page_order", 0xF1 << 10, "map", "order of the pages; only 0 is taken", "0xf1 << 10"),
    Constant("IOMMU_QUERY_map_cap", 1, "query", "the caller may map", "1 << 0"),
    Constant("IOMMU_QUERY_map_all_mfns", 2, "query", "the caller may map any machine frame", "1 << 1"),
    Constant("IOMMU_OP_readable", 1, "map", "devices may read", "1 << 0"),
    Constant("IOMMU_OP_writeable", 2, "map", "devices may write", "1 << 1"),
    Constant("IOMMU_MAP_OP_no_ref_cnt", 4, "map", "map without taking a reference to the page", "1 << 2"),
)


def _row(name: str, number: int, declaration: CStruct, doc: str) -> SubOp:
    return subop(name, number, f"IOMMUOP_{name}", declaration, copied_back=CopyBack.STATUS, case=name, doc=doc)


def _version(name: str, posted: str, declaration: CStruct, maps_foreign: bool) -> Abi:
    rows = [
        _row("query_caps", 1, declaration, "may the caller map, and at what offset are the premapped frames"),
        _row("map_page", 2, declaration, "map a frame of the caller"),
        _row("unmap_page", 3, declaration, "unmap a bus frame"),
        _row("map_foreign_page", 4, declaration, "map a frame of another domain"),
        _row("lookup_foreign_page", 5, declaration, "the bus frame of another domain's frame"),
        _row("unmap_foreign_page", 6, declaration, "give a foreign bus frame back"),
    ]
    return Abi(
        name=name,
        posted=posted,
        convention=Convention.BATCH,
        hypercall=56,
        subops=table(*(row for row in rows if maps_foreign or row.number != 4)),
        constants=CONSTANTS,
        structs=(declaration,),
        errno_unusable=ENOSYS,
        errno_unknown_subop=ENODEV,
        max_nr_pages=1,
        includes=("xen.h",),
    )


A_OLD: Final = _version("A-old", "2014-2016, Malcolm Crossley, XenServer patch queue", OP_OLD, True)
A_NEW: Final = _version("A-new", "2016-2025, XenServer patch queue, reworked foreign maps", OP_NEW, False)
