# SPDX-License-Identifier: GPL-2.0-or-later
"""Which commands make a unit forget pages of a context (IHI 0070, 4.4): by range where IDR3.RIL allows, else page by
page, and the whole VMID when that would take too many.
"""

from dataclasses import dataclass
from typing import Final

from hypervisor.smmuv3 import layouts as hw
from hypervisor.smmuv3.queue import CommandQueue

MAX_PAGE_COMMANDS: Final = 16
"""Longest flush, in commands, that names its pages; beyond it the whole VMID goes."""
LEAF: Final = hw.TlbiAddress.leaf.mask
_GRANULE_4K: Final = hw.TlbiAddress.pack(tg=1)
_SCALE: Final = hw.Tlbi.scale.lsb
_NUM: Final = hw.Tlbi.num.lsb
_PAGE: Final = hw.Tlbi.pack(op=hw.CMD_TLBI_S2_IPA)
ALL: Final = hw.Tlbi.pack(op=hw.CMD_TLBI_S12_VMALL)


@dataclass(frozen=True, slots=True)
class Use:
    """How a context is flushed on a unit that uses it: words of commands that carry its VMID."""

    queue: CommandQueue
    page: int
    everything: int
    ranges: bool


def use_of(queue: CommandQueue, vmid: int, ranges: bool) -> Use:
    """The words for ``vmid`` on the unit behind ``queue``."""
    tag = hw.Tlbi.vmid.put(vmid)
    return Use(queue, _PAGE | tag, ALL | tag, ranges)


def range_commands(use: Use, dfn: int, pages: int, leaf: int) -> list[int]:
    """Commands that invalidate ``pages`` pages from ``dfn``: by range, page by page, or the whole VMID."""
    commands: list[int] = []
    if use.ranges:
        while pages and len(commands) < 2 * MAX_PAGE_COMMANDS:
            scale = min((pages & -pages).bit_length() - 1, 31)
            number = pages >> scale & 31
            step = number << scale
            if step == 1:  # a range of one page cannot be written down
                commands += (use.page, dfn << 12 | leaf)
            else:
                word = use.page | scale << _SCALE | number - 1 << _NUM
                commands += (word, dfn << 12 | _GRANULE_4K | leaf)
            dfn += step
            pages -= step
        if not pages:
            return commands
    elif pages <= MAX_PAGE_COMMANDS:
        for page in range(dfn, dfn + pages):
            commands += (use.page, page << 12 | leaf)
        return commands
    return [use.everything, 0]
