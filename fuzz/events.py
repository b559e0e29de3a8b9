# SPDX-License-Identifier: GPL-2.0-or-later
"""What can happen during an operation besides its answer, as bits: half of coverage, and a part of a crash key."""

from typing import Final

FLUSH: Final = 1
FOLD: Final = 2
SPLIT: Final = 4
RESTART: Final = 8
NO_MEMORY: Final = 16
UNCONFIRMED: Final = 32
FAULT: Final = 64
ATTACH: Final = 128

EVENTS: Final[dict[int, str]] = {
    FLUSH: "flush",
    FOLD: "fold",
    SPLIT: "split",
    RESTART: "restart",
    NO_MEMORY: "no-memory",
    UNCONFIRMED: "unconfirmed",
    FAULT: "fault",
    ATTACH: "attach",
}
"""Hardware was told to forget something; pages were folded into a superpage, or one was split; a preempted call was
issued again; an allocation was made to fail; a flush was; a device's access was blocked; a device was programmed."""


def names(mask: int) -> str:
    """The events of a mask, joined with "+"; "-" for none."""
    return "+".join(name for bit, name in EVENTS.items() if mask & bit) or "-"
