# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to hold at hypercall level: the oracle's clauses, each with its prose."""

from typing import Final

from testbed.invariants import INVARIANTS

CLAUSES: Final[dict[str, str]] = {
    "answer": "A call's result is what the contract says.",
    "written-back": "A call's struct reads afterwards as the contract says, every byte of it.",
    "short-of-memory": "-ENOMEM is answered only when there was no page for a table, not even one that the call itself "
    "had no more use for.",
    "confirmed": "A map or unmap whose flush hardware did not confirm answers -EIO.",
    "let-go": "References and tables are let go after hardware has confirmed to have forgotten them, not before.",
    "yields": "A long call lets others run when the vCPU is wanted elsewhere, and gets on with its work in between.",
    "idle": "Hardware is told nothing when nothing changed that it could remember.",
    "device-reach": "A device reaches what the guest mapped for it, with those rights, and nothing else, whatever the "
    "IOTLB may still remember; after an unconfirmed flush, also what it remembers, if nobody else can have it.",
    "tree": "The tables that hardware walks map exactly the pages that the guest mapped.",
    "superpage": "Aligned pages of a superpage that lead to aligned frames in a row, alike, are one superpage.",
    "guest-memory": "Of the guests' memory nothing changes but what a call names: a byte behind a struct, another page "
    "and another guest are as they were.",
    "firmware": "Frames that firmware keeps stay firmware's.",
    "toolstack": "What the toolstack does to pages, devices and domains succeeds exactly if it can be done.",
    "quarantine": "A device that no domain has reaches nothing but what firmware reserved for it; one that was taken "
    "out of the machine reaches nothing.",
    "left-over": "Of a domain that was destroyed nothing is left but pages that others still hold: no device, no "
    "context, no arena. A quarantine that its device has left goes too.",
    "xen-bug": "No call stops the hypervisor.",
    "hang": "Every call ends.",
    "exception": "No call makes the emulator raise.",
    "specified": "The quick judge and the executable specification say the same.",
    "same-answer": "Two machines that mean the same answer a call alike.",
    "same-reach": "Two machines that mean the same let devices reach the same.",
    **{f"invariant:{name}": (function.__doc__ or "").strip() for name, function in INVARIANTS.items()},
}
"""Name to prose."""
