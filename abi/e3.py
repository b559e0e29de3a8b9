# SPDX-License-Identifier: GPL-2.0-or-later
"""E3: v7 with a flush that the guest may put off.

Edera's tree, 2026, header and Linux driver; the hypervisor's side was not seen, so the error codes of flush_pages are
unknown.  (E1 is v7's header unchanged; E2 changes the hypervisor only: init no longer falls through, and
reattach_device takes the guest's own PCI addresses.)
"""

from typing import Final

from abi.declare import IN, c_struct, u16, u32, u64_aligned
from abi.errno import ENODEV, EOPNOTSUPP
from abi.model import Abi, Constant, Convention, subop, table
from abi.v4 import CONTEXT, FLAGS, MENTIONS
from abi.v7 import CAPS, ROWS, V7_STRUCTS

FLUSH_PAGES: Final = c_struct(
    "pv_iommu_flush_pages",
    "ctx_no" / IN(u16) * "the context to flush",
    "dfn" / IN(u64_aligned) * "first device frame",
    "pgsize" / IN(u32) * "bytes per page",
    "nr_pages" / IN(u32) * "pages to flush",
)

E3: Final = Abi(
    name="E3",
    posted="2026, Edera, header and Linux driver",
    convention=Convention.SUBOP,
    hypercall=43,
    subops=table(
        *ROWS,
        subop(
            "flush_pages",
            13,
            "IOMMU_flush_pages",
            FLUSH_PAGES,
            doc="flush what was mapped with IOMMU_MAP_no_flush",
            needs="deferred_flush",
        ),
    ),
    constants=(
        *CONTEXT,
        *CAPS,
        Constant("IOMMUCAP_deferred_flush", 1 << 5, "cap", "IOMMU_MAP_no_flush and flush_pages are there", "1U << 5"),
        *FLAGS,
        Constant("IOMMU_MAP_no_flush", 8, "map", "the caller flushes before use", "1 << 3", "deferred_flush"),
    ),
    structs=(*V7_STRUCTS, FLUSH_PAGES),
    errno_unusable=ENODEV,
    errno_unknown_subop=EOPNOTSUPP,
    max_nr_pages=None,
    enum_tag="pv_iommu_cmd",
    aligned_fallback=True,
    mentions=MENTIONS,
    documents_partial=True,
    includes=("xen.h", "physdev.h"),
)
