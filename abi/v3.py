# SPDX-License-Identifier: GPL-2.0-or-later
"""H0, v1, v2 and v3: one pointer to a 32-byte tagged union.

Posted to xen-devel by Teddy Astie (Vates) as a header and design document alone (H0, 23 Apr 2024) and in "IOMMU
subsystem redesign and PV-IOMMU interface", RFC v1 (13 Jun 2024), RFC v2 (26 Jun 2024) and RFC v3 (11 Jul 2024).
The declaration is the same in all four.  Number 0 has no name in the header, and the value that free_context
accepts as "move the devices to the default context" is defined inside Xen only.
"""

from typing import Final

from abi.declare import IN, INOUT, OUT, PCI_DEVICE, c_struct, case, tagged_union, u16, u32, u64
from abi.errno import EINVAL, EPERM
from abi.model import Abi, Constant, Convention, CopyBack, SubOp, subop, table

OP: Final = c_struct(
    "pv_iommu_op",
    "subop_id" / IN(u16, marked=False) * "number of the sub-op; selects the alternative of the union",
    "ctx_no" / INOUT(u16, promised="") * "context to work on; alloc_context writes the new number here",
    "flags" / IN(u32, marked=False) * "one field for the flags of every sub-op",
    tagged_union(
        "map_pages"
        / case(
            "gfn" / IN(u64, marked=False) * "first guest frame",
            "dfn" / IN(u64, marked=False) * "first device frame",
            "nr_pages" / IN(u32, marked=False) * "pages to map, at most 256",
            "mapped" / OUT(u32, marked=False) * "pages mapped",
        ),
        "unmap_pages"
        / case(
            "dfn" / IN(u64, marked=False) * "first device frame",
            "nr_pages" / IN(u32, marked=False) * "pages to unmap, at most 256",
            "unmapped" / OUT(u32, marked=False) * "pages unmapped",
        ),
        "reattach_device" / case("dev" / IN(PCI_DEVICE, marked=False) * "the device to move"),
        "lookup_page"
        / case(
            "gfn" / OUT(u64, marked=False) * "the guest frame found",
            "dfn" / IN(u64, marked=False) * "device frame to look up",
        ),
        "cap"
        / case(
            "max_ctx_no" / OUT(u16, marked=False) * "number of contexts besides the default one",
            "max_nr_pages" / OUT(u32, marked=False) * "pages per map or unmap call",
            "max_iova_addr" / OUT(u64, marked=False) * "highest usable device address",
        ),
    ),
)

CONSTANTS: Final = (
    Constant("IOMMU_DEFAULT_CONTEXT", 0, "context", "the context that always exists"),
    Constant("IOMMU_CREATE_clone", 1, "create", "alloc_context: start as a copy of the default context", "1 << 0"),
    Constant("IOMMU_OP_readable", 1, "map", "devices may read", "1 << 0"),
    Constant("IOMMU_OP_writeable", 2, "map", "devices may write", "1 << 1"),
    Constant(
        "IOMMU_TEARDOWN_REATTACH_DEFAULT",
        1,
        "free",
        "free_context: move the devices to the default context first (accepted, not in the public header)",
        "1 << 0",
    ),
)

PRIVATE: Final = frozenset({"IOMMU_TEARDOWN_REATTACH_DEFAULT"})
"""Constants that guests can use but the public header does not define."""


def _row(name: str, number: int, case: str, doc: str) -> SubOp:
    c_name = "" if number == 0 else f"IOMMUOP_{name}"
    return subop(name, number, c_name, OP, copied_back=CopyBack.ALWAYS, case=case, doc=doc)


SUBOPS: Final = table(
    _row("noop", 0, "", "does nothing; tells whether the caller may use PV-IOMMU"),
    _row("query_capabilities", 1, "cap", "limits of this guest"),
    _row("alloc_context", 2, "", "make an empty context"),
    _row("free_context", 3, "", "destroy a context"),
    _row("reattach_device", 4, "reattach_device", "move a device to another context"),
    _row("map_pages", 5, "map_pages", "map a run of guest frames"),
    _row("unmap_pages", 6, "unmap_pages", "unmap a run of device frames"),
    _row("lookup_page", 7, "lookup_page", "the guest frame mapped at a device frame"),
)


def _version(name: str, posted: str, same_as: str, implemented: bool = True) -> Abi:
    return Abi(
        name=name,
        posted=posted,
        convention=Convention.UNION,
        hypercall=43,
        subops=SUBOPS,
        constants=CONSTANTS,
        structs=(OP,),
        errno_unusable=EPERM,
        errno_unknown_subop=EINVAL,
        max_nr_pages=256,
        includes=("xen.h", "physdev.h"),
        same_as=same_as,
        implemented=implemented,
        private=PRIVATE,
    )


H0: Final = _version("H0", "23 Apr 2024, Teddy Astie, header and design document only", "v3", False)
V1: Final = _version("v1", "13 Jun 2024, Teddy Astie, RFC v1", "v3")
V2: Final = _version("v2", "26 Jun 2024, Teddy Astie, RFC v2", "v3")
V3: Final = _version("v3", "11 Jul 2024, Teddy Astie, RFC v3", "")
