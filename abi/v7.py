# SPDX-License-Identifier: GPL-2.0-or-later
"""v5, v6 and v7: v4 with named and numbered commands and the end of the capabilities struct spelled out.

Posted to xen-devel by Teddy Astie (Vates) in "IOMMU subsystem redesign and PV-IOMMU interface", RFC v5 (21 Jan 2025),
RFC v6 (17 Feb 2025) and RFC v7 (20 Nov 2025, the newest).  The public header is the same in all three; trees built
on v7 (xcp-ng's, and Edera's up to E2) keep it.
"""

from typing import Final

from abi.declare import OUT, RESERVED, c_struct, u16, u32, u64_aligned
from abi.errno import ENODEV, EOPNOTSUPP
from abi.model import Abi, Convention, table
from abi.v4 import CONTEXT, FLAGS, MENTIONS, STRUCTS, caps, rows

CAPABILITIES: Final = c_struct(
    "pv_iommu_capabilities",
    "max_iova_addr" / OUT(u64_aligned) * "highest device address that can be mapped",
    "cap_flags" / OUT(u32) * "IOMMUCAP_*",
    "pgsize_mask" / OUT(u32) * "page sizes that map and unmap take, one bit each",
    "max_pasid" / OUT(u32) * "highest PASID (with IOMMUCAP_pasid)",
    "max_ctx_no" / OUT(u16) * "number of contexts besides the default one; 0 before init",
    "pad0" / RESERVED(u16) * "padding",
)

CAPS: Final = caps("1U")
ROWS: Final = rows(CAPABILITIES)
SUBOPS: Final = table(*ROWS)
V7_STRUCTS: Final = (CAPABILITIES, *STRUCTS[1:])


def _version(name: str, posted: str, same_as: str) -> Abi:
    return Abi(
        name=name,
        posted=posted,
        convention=Convention.SUBOP,
        hypercall=43,
        subops=SUBOPS,
        constants=(*CONTEXT, *CAPS, *FLAGS),
        structs=V7_STRUCTS,
        errno_unusable=ENODEV,
        errno_unknown_subop=EOPNOTSUPP,
        max_nr_pages=None,
        enum_tag="pv_iommu_cmd",
        aligned_fallback=True,
        mentions=MENTIONS,
        documents_partial=True,
        includes=("xen.h", "physdev.h"),
        same_as=same_as,
    )


V5: Final = _version("v5", "21 Jan 2025, Teddy Astie, RFC v5", "v7")
V6: Final = _version("v6", "17 Feb 2025, Teddy Astie, RFC v6", "v7")
V7: Final = _version("v7", "20 Nov 2025, Teddy Astie, RFC v7", "")
