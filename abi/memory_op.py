# SPDX-License-Identifier: GPL-2.0-or-later
"""``XENMEM_reserved_device_memory_map``: how a guest learns which device frames are taken.

Sub-op 27 of the memory_op hypercall (12), from Xen's public/memory.h, where it is among what only Xen and its tools
may use.  Not part of any PV-IOMMU version, but every Linux driver posted with one depends on it.

What it does (xen/common/memory.c): -EINVAL for a resumed call, -EFAULT for an unreadable struct or buffer, -EINVAL for
an unknown flag, then as many entries as fit are written, filtered by device unless XENMEM_RDM_ALL is set; too few slots
are -ENOBUFS (the header's comment says -ERANGE).  ``nr_entries`` is always rewritten with the number needed.
"""

from typing import Final

from abi.declare import IN, INOUT, OUT, PCI_DEVICE, c_struct, case, handle, pfn, tagged_union, u32, ulong
from abi.errno import ENOBUFS, ERANGE
from abi.model import Constant, CopyBack, SubOp, subop

MEMORY_OP: Final = 12
XENMEM_RESERVED_DEVICE_MEMORY_MAP: Final = 27
XENMEM_RDM_ALL: Final = 1

ENTRY: Final = c_struct(
    "xen_reserved_device_memory",
    "start_pfn" / OUT(pfn) * "first page of the range",
    "nr_pages" / OUT(ulong) * "its length in pages",
)

MAP: Final = c_struct(
    "xen_reserved_device_memory_map",
    "flags" / IN(u32) * "XENMEM_RDM_ALL",
    "nr_entries" / INOUT(u32) * "slots in the buffer; entries needed",
    "buffer" / IN(handle("xen_reserved_device_memory_t")) * "where the entries go",
    "dev"
    / tagged_union("pci" / IN(case(*PCI_DEVICE.subcons, tag=PCI_DEVICE.tag)) * "the device whose ranges are wanted"),
)

CONSTANTS: Final = (
    Constant("XENMEM_reserved_device_memory_map", XENMEM_RESERVED_DEVICE_MEMORY_MAP, "subop", "sub-op of memory_op"),
    Constant("XENMEM_RDM_ALL", XENMEM_RDM_ALL, "map", "every device's ranges; dev is ignored"),
)
STRUCTS: Final = (ENTRY, MAP)
SUBOP: Final[SubOp] = subop(
    "reserved_device_memory_map",
    XENMEM_RESERVED_DEVICE_MEMORY_MAP,
    "XENMEM_reserved_device_memory_map",
    MAP,
    copied_back=CopyBack.ALWAYS,
    case="pci",
    doc="sub-op of memory_op: which device frames firmware has reserved",
)

PROMISES: Final = ((ERANGE, ENOBUFS),)
"""(promised by the comment, given) for too few slots."""
