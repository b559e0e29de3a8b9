# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault reasons (VT-d specification 7.1.3, and the table of conditions in its appendix): numbers and names.

Legacy mode uses 01h to 0Eh.  Scalable mode has reasons of its own, one block of eight per structure, for the same
mistakes and for those that only it knows.
"""

from typing import Final

ROOT_NOT_PRESENT: Final = 0x1
CONTEXT_NOT_PRESENT: Final = 0x2
CONTEXT_INVALID: Final = 0x3
BEYOND_WIDTH: Final = 0x4
NO_WRITE: Final = 0x5
NO_READ: Final = 0x6
ENTRY_ACCESS: Final = 0x7
ROOT_ACCESS: Final = 0x8
CONTEXT_ACCESS: Final = 0x9
ROOT_RESERVED: Final = 0xA
CONTEXT_RESERVED: Final = 0xB
ENTRY_RESERVED: Final = 0xC
BLOCKED_BY_TYPE: Final = 0xD
INTERRUPT_ADDRESS: Final = 0xE

SM_TABLE_MODE: Final = 0x30
SM_LEGACY_WITH_PASID: Final = 0x31
SM_ROOT_ACCESS: Final = 0x38
SM_ROOT_NOT_PRESENT: Final = 0x39
SM_ROOT_RESERVED: Final = 0x3A
SM_CONTEXT_ACCESS: Final = 0x40
SM_CONTEXT_NOT_PRESENT: Final = 0x41
SM_CONTEXT_RESERVED: Final = 0x42
SM_CONTEXT_INVALID: Final = 0x43
SM_NO_DEVICE_TLB: Final = 0x44
SM_NO_PASID: Final = 0x45
SM_PASID_TOO_LARGE: Final = 0x46
SM_RID_PASID: Final = 0x48
SM_DIRECTORY_ACCESS: Final = 0x50
SM_DIRECTORY_NOT_PRESENT: Final = 0x51
SM_DIRECTORY_RESERVED: Final = 0x52
SM_PASID_ACCESS: Final = 0x58
SM_PASID_NOT_PRESENT: Final = 0x59
SM_PASID_RESERVED: Final = 0x5A
SM_PASID_INVALID: Final = 0x5B
SM_NO_SUPERVISOR: Final = 0x5D
FS_ACCESS: Final = 0x70
FS_NOT_PRESENT: Final = 0x71
FS_RESERVED: Final = 0x72
FS_ROOT_ACCESS: Final = 0x73
FS_BEYOND_WIDTH: Final = 0x74
FS_ROOT_NO_READ: Final = 0x75
FS_NO_READ: Final = 0x76
FS_NO_WRITE: Final = 0x77
SS_ACCESS: Final = 0x78
SS_NOT_PRESENT: Final = 0x79
SS_RESERVED: Final = 0x7A
SS_ROOT_ACCESS: Final = 0x7B
SS_UPDATE: Final = 0x7C
SM_NOT_CANONICAL: Final = 0x80
SM_SUPERVISOR_PAGE: Final = 0x81
SM_BEYOND_HOST_WIDTH: Final = 0x83
SM_BEYOND_WIDTH: Final = 0x84
SM_NO_WRITE: Final = 0x85
SM_NO_READ: Final = 0x86
SM_INTERRUPT_ADDRESS: Final = 0x87
FS_UPDATE: Final = 0x90

FAULT_NAMES: Final = {
    ROOT_NOT_PRESENT: "root entry not present",
    CONTEXT_NOT_PRESENT: "context entry not present",
    CONTEXT_INVALID: "invalid context entry",
    BEYOND_WIDTH: "address beyond the input width",
    NO_WRITE: "no write permission",
    NO_READ: "no read permission",
    ENTRY_ACCESS: "cannot read second-level entry",
    ROOT_ACCESS: "cannot read root entry",
    CONTEXT_ACCESS: "cannot read context entry",
    ROOT_RESERVED: "reserved bit in root entry",
    CONTEXT_RESERVED: "reserved bit in context entry",
    ENTRY_RESERVED: "reserved bit in second-level entry",
    BLOCKED_BY_TYPE: "request blocked by translation type",
    INTERRUPT_ADDRESS: "interrupt address range",
    SM_TABLE_MODE: "reserved translation table mode",
    SM_LEGACY_WITH_PASID: "request with PASID in legacy mode",
    SM_ROOT_ACCESS: "cannot read scalable root entry",
    SM_ROOT_NOT_PRESENT: "scalable root entry not present",
    SM_ROOT_RESERVED: "reserved bit in scalable root entry",
    SM_CONTEXT_ACCESS: "cannot read scalable context entry",
    SM_CONTEXT_NOT_PRESENT: "scalable context entry not present",
    SM_CONTEXT_RESERVED: "reserved bit in scalable context entry",
    SM_CONTEXT_INVALID: "invalid scalable context entry",
    SM_NO_DEVICE_TLB: "device TLB not enabled in context entry",
    SM_NO_PASID: "PASID not enabled in context entry",
    SM_PASID_TOO_LARGE: "PASID beyond the directory",
    SM_RID_PASID: "RID_PASID beyond the directory",
    SM_DIRECTORY_ACCESS: "cannot read PASID directory entry",
    SM_DIRECTORY_NOT_PRESENT: "PASID directory entry not present",
    SM_DIRECTORY_RESERVED: "reserved bit in PASID directory entry",
    SM_PASID_ACCESS: "cannot read PASID table entry",
    SM_PASID_NOT_PRESENT: "PASID table entry not present",
    SM_PASID_RESERVED: "reserved bit in PASID table entry",
    SM_PASID_INVALID: "invalid PASID table entry",
    SM_NO_SUPERVISOR: "supervisor request without SRE",
    FS_ACCESS: "cannot read first-stage entry",
    FS_NOT_PRESENT: "first-stage entry not present",
    FS_RESERVED: "reserved bit in first-stage entry",
    FS_ROOT_ACCESS: "cannot read top first-stage entry",
    FS_BEYOND_WIDTH: "first-stage address beyond the second stage's width",
    FS_ROOT_NO_READ: "second stage denies reading the top first-stage entry",
    FS_NO_READ: "second stage denies reading a first-stage entry",
    FS_NO_WRITE: "second stage denies updating a first-stage entry",
    SS_ACCESS: "cannot read second-stage entry",
    SS_NOT_PRESENT: "second-stage entry not present",
    SS_RESERVED: "reserved bit in second-stage entry",
    SS_ROOT_ACCESS: "cannot read top second-stage entry",
    SS_UPDATE: "accessed or dirty bit of a second-stage entry outside the coherent domain",
    SM_NOT_CANONICAL: "address not canonical",
    SM_SUPERVISOR_PAGE: "user request to a supervisor page",
    SM_BEYOND_HOST_WIDTH: "address beyond the width that passes through",
    SM_BEYOND_WIDTH: "address beyond the second stage's width",
    SM_NO_WRITE: "no write permission (scalable mode)",
    SM_NO_READ: "no read permission (scalable mode)",
    SM_INTERRUPT_ADDRESS: "interrupt address range (scalable mode)",
    FS_UPDATE: "accessed or dirty bit of a first-stage entry outside the coherent domain",
}

UNQUALIFIED: Final = frozenset(
    (
        ROOT_NOT_PRESENT,
        ROOT_ACCESS,
        CONTEXT_ACCESS,
        ROOT_RESERVED,
        SM_TABLE_MODE,
        SM_LEGACY_WITH_PASID,
        SM_ROOT_ACCESS,
        SM_ROOT_NOT_PRESENT,
        SM_ROOT_RESERVED,
        SM_CONTEXT_ACCESS,
    )
)
"""Reasons found before a context entry was read, so that no FPD can silence them."""
