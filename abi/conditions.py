# SPDX-License-Identifier: GPL-2.0-or-later
"""The conditions under which a sub-op refuses, in words.

A contract (:mod:`abi.contract`) lists them per sub-op in the order in which they are tested; the executable
specification (:mod:`abi.semantics`) tests them; documentation, diff and lint print these words.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class FrameKind(Enum):
    """What a guest frame number leads to, as far as mapping it for DMA is concerned."""

    RAM = "the guest's own RAM"
    READ_ONLY = "RAM that the guest may only read"
    SHARED = "RAM shared copy-on-write with other guests"
    PAGED_OUT = "RAM that is paged out"
    MMIO = "device memory that the guest may access"
    MMIO_DENIED = "device memory that the guest may not access"
    FOREIGN = "RAM of another guest"
    XEN = "RAM of the hypervisor"
    HOLE = "nothing"


CONDITIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unreadable": "the argument cannot be read from guest memory",
        "unwritable": "the argument cannot be written back (what was done stays done)",
        "unwritable-first": "the argument could not be written back (tested before anything is done)",
        "unusable": "the caller may not use PV-IOMMU",
        "unknown": "there is no such sub-op",
        "unimplemented": "the number is taken, nothing is behind it",
        "holes": "a byte that belongs to no field is not zero",
        "too-many-contexts": "more contexts are asked for than can be numbered",
        "count-wraps": "the number of contexts, plus one, is 0 in 16 bits",
        "initialized": "PV-IOMMU was initialized before",
        "no-arena": "there is no memory for the context table or the arena",
        "no-number": "every context number is taken, or there are none",
        "no-context-memory": "the IOMMU driver cannot set the context up (no page for its tables)",
        "no-tag": "hardware has no tag left for the context",
        "identity-context": "an identity context is asked for",
        "bad-flags": "a flag bit without a meaning is set",
        "default-context": "the context is the default one",
        "no-context": "there is no such context",
        "busy": "devices are attached and the flag to move them is not set",
        "not-moved": "a device could not be moved out for want of memory (those before it were)",
        "pasid": "a PASID is given",
        "no-device": "the caller has no such device",
        "cut-off": "the device is in that context already but cut off, and hardware still does not confirm",
        "in-place": "the device is in that context already",
        "device-unattached": "the device has never been put into a context",
        "device-lost": "the context that the device is in is gone",
        "target-dying": "the target is being freed",
        "reserved-overlap": "a reserved region of the device overlaps another one in the target",
        "reserved-occupied": "something else is mapped where the device needs its reserved region",
        "no-table-memory": "a page for a table is needed and there is none",
        "entry-changed": "the device's context entry changed under the hypervisor's hands",
        "phantom": "a phantom function of the device could not be moved",
        "move-unconfirmed": "hardware does not confirm that it forgot what the device could reach",
        "unconfirmed": "hardware does not confirm that it forgot what was taken away (what was done stays done)",
        "bad-progress": "the bits of the sub-op register that say how far earlier passes got say what none would say",
        "too-many-pages": "nr_pages is larger than the limit",
        "bad-pgsize": "pgsize is not one of the sizes in pgsize_mask",
        "misaligned": "dfn or gfn is not aligned to pgsize",
        "out-of-range": "the range ends beyond max_iova_addr",
        "no-access": "neither readable nor writeable is set",
        "reserved-dfn": "the device frame lies in a reserved region of a device in the context",
        "frame-paged": "the guest frame is paged out",
        "frame-shared": "the guest frame is shared copy-on-write",
        "frame-hole": "nothing is behind the guest frame number",
        "frame-refused": "the frame is not one that the caller may map",
        "occupied": "something is mapped at the device frame already",
        "not-mapped": "nothing is mapped at the device frame",
        "frame-lost": "the frame that is mapped there has no number in the guest any more",
        "no-split-memory": "a superpage has to be split and there is no page for the table",
        "nested-remote": "remote_cmd inside remote_cmd",
        "not-privileged": "the caller is not the hardware domain",
        "no-domain": "there is no such domain",
        "target-unusable": "the target may not use PV-IOMMU",
        "order": "pages larger than 4 KiB are asked for",
        "pasid-exists": "the device's PASID is attached already",
        "pasid-zero": "the PASID is 0",
        "no-pasid": "the device's PASID is not attached",
        "bad-count": "the count of operations has its top bit set",
        "not-allowed-unmap": "the caller may not map at all",
        "not-allowed": "the caller may not map, the page is not usable, or something is mapped there",
        "iommu-failed": "the IOMMU driver failed",
        "foreign-gone": "the other domain does not exist or has no such frame",
        "foreign-refused": "the other domain is paravirtualized, or the caller itself, or not the caller's to use",
    }
)

USABILITY: Final = MappingProxyType(
    {
        "A": (
            "the caller is not the hardware domain",
            "the IOMMU is off, in passthrough mode, or AMD's",
        ),
        "v1": (
            "the machine has no IOMMU in use",
            "the caller is not the hardware domain",
            "the caller has no IOMMU page tables",
        ),
        "v4": ("the caller has no IOMMU page tables (every domain that has them is allowed)",),
    }
)
"""What "may not use PV-IOMMU" stands for, by the first version that tests it so."""
