# SPDX-License-Identifier: GPL-2.0-or-later
"""P-1 and P0: the first prototypes of the context interface, still an array of operations.

Teddy Astie (XCP-ng, Vates), development trees of Feb and Mar 2024; not posted to a list.  P-1 is P0 without
lookup_page.  Hypercall 43, arguments (array, count); one page per operation.
"""

from typing import Final

from abi.declare import IN, INOUT, OUT, PCI_DEVICE, CStruct, c_struct, case, tagged_union, u16, u32, u64
from abi.errno import EINVAL, EPERM
from abi.model import Abi, Constant, Convention, CopyBack, SubOp, subop, table


def _op(*more: object) -> CStruct:
    return c_struct(
        "pv_iommu_op",
        "subop_id" / IN(u16, marked=False) * "number of the sub-op; selects the alternative of the union",
        "ctx_no" / INOUT(u16, promised="") * "context to work on; alloc_context writes the new number here",
        "flags" / IN(u32, marked=False) * "one field for the flags of every sub-op",
        tagged_union(
            "map_page"
            / case(
                "gfn" / IN(u64, marked=False) * "guest frame to map",
                "dfn" / IN(u64, marked=False) * "device frame to map at",
            ),
            "unmap_page" / case("dfn" / IN(u64, marked=False) * "device frame to unmap"),
            "reattach_device" / case("dev" / IN(PCI_DEVICE, marked=False) * "the device to move"),
            *more,
        ),
    )


OP_FIRST: Final = _op()
OP: Final = _op(
    "lookup_page"
    / case(
        "gfn" / OUT(u64, marked=False) * "the guest frame found",
        "dfn" / IN(u64, marked=False) * "device frame to look up",
    )
)

CONSTANTS: Final = (
    Constant("IOMMU_DEFAULT_CONTEXT", 0, "context", "the context that always exists"),
    Constant("IOMMU_CREATE_clone", 1, "create", "alloc_context: start as a copy of the default context", "1 << 0"),
    Constant("IOMMU_OP_readable", 1, "map", "devices may read", "1 << 0"),
    Constant("IOMMU_OP_writeable", 2, "map", "devices may write", "1 << 1"),
)


def _version(name: str, posted: str, declaration: CStruct, lookup: bool) -> Abi:
    def row(canonical: str, number: int, c_name: str, case: str, doc: str) -> SubOp:
        label = f"IOMMUOP_{c_name}" if c_name else ""
        return subop(canonical, number, label, declaration, copied_back=CopyBack.ALWAYS, case=case, doc=doc)

    rows = [
        row("noop", 0, "", "", "does nothing; tells whether the caller may use PV-IOMMU"),
        row("alloc_context", 2, "alloc_context", "", "make an empty context"),
        row("free_context", 3, "free_context", "", "destroy a context"),
        row("reattach_device", 4, "reattach_device", "reattach_device", "move a device to another context"),
        row("map_pages", 5, "map_page", "map_page", "map one guest frame"),
        row("unmap_pages", 6, "unmap_page", "unmap_page", "unmap one device frame"),
        row("lookup_page", 7, "lookup_page", "lookup_page", "the guest frame mapped at a device frame"),
    ]
    return Abi(
        name=name,
        posted=posted,
        convention=Convention.BATCH,
        hypercall=43,
        subops=table(*(r for r in rows if lookup or r.number != 7)),
        constants=CONSTANTS,
        structs=(declaration,),
        errno_unusable=EPERM,
        errno_unknown_subop=EINVAL,
        max_nr_pages=1,
        includes=("xen.h", "physdev.h"),
    )


P_FIRST: Final = _version("P-1", "Feb 2024, Teddy Astie, prototype", OP_FIRST, False)
P0: Final = _version("P0", "Mar 2024, Teddy Astie, prototype", OP, True)
