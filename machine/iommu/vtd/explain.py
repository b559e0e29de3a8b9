# SPDX-License-Identifier: GPL-2.0-or-later
"""A translation told step by step, for people: every entry that decides it, where it lies and what it says.

This is a second reading of the tables, written for clarity.  It uses no cache and leaves no trace; a property
test holds it against the fast path.  It reads RAM, also where the unit itself reads past caches or write buffers.
"""

from functools import lru_cache
from typing import Final

from machine.iommu.unit import Walk, WalkStep
from machine.iommu.vtd.reasons import (
    BEYOND_WIDTH,
    CONTEXT_INVALID,
    ENTRY_ACCESS,
    ENTRY_RESERVED,
    FAULT_NAMES,
    INTERRUPT_ADDRESS,
    NO_READ,
    NO_WRITE,
)
from machine.iommu.vtd.tables import ADDRESS, ContextHigh, ContextLow, ContextTables, RootLow
from machine.iommu.vtd.walk import DOORBELL_FIRST, DOORBELL_LAST, OUTPUT, PS, SNP, SecondLevel
from machine.memory import PhysicalMemory

LEVEL_NAMES: Final = {39: "SL-PML4E", 30: "SL-PDPE", 21: "SL-PDE", 12: "SL-PTE"}
PAGE_NAMES: Final = {12: "4K", 21: "2M", 30: "1G"}
TYPE_NAMES: Final = ("second level", "device TLB", "pass-through", "reserved")
NO_RAM: Final = "no RAM here"


class Explainer:
    """Tells walks of one unit's tables; ``tables`` reads RAM and belongs to the explainer alone."""

    def __init__(self, memory: PhysicalMemory, tables: ContextTables, second_level: SecondLevel) -> None:
        self._memory: Final = memory
        self._tables: Final = tables
        self._second_level: Final = second_level

    def walk(self, root_table: int, sid: int, iova: int, write: bool) -> Walk:
        """What a DMA access by ``sid`` meets with translation enabled and the root table at ``root_table``."""
        self._tables.root_table = root_table
        steps: list[WalkStep] = []
        context = self._tables.fetch(sid)
        self._tell_context(sid, steps)
        if context.code:
            return _blocked(sid, iova, write, steps, context.code)
        if iova <= context.through:
            return Walk(sid, iova, write, tuple(steps), iova, None, True, True, None)
        if iova > context.limit:
            return _blocked(sid, iova, write, steps, BEYOND_WIDTH)
        return self._tell_levels(sid, iova, write, steps, context.root, context.shift)

    def _tell_context(self, sid: int, steps: list[WalkStep]) -> None:
        tables = self._tables
        maddr, bus, devfn = tables.root_entry_at(sid), sid >> 8 & 0xFF, sid & 0xFF
        root = tables.read(maddr)
        if root is None:
            steps.append(WalkStep("root entry", maddr, (), NO_RAM, slot=bus))
            return
        low, high = root
        present = bool(low & RootLow.p.mask)
        meaning = f"P CTP={low & ADDRESS:#x}" if present else "not present"
        meaning += _stray(present and low & tables.root_reserved, present and high)
        steps.append(WalkStep("root entry", maddr, root, meaning, slot=bus))
        if not present or low & tables.root_reserved or high:
            return
        maddr = (low & ADDRESS) + 16 * devfn
        entry = tables.read(maddr)
        if entry is None:
            steps.append(WalkStep("context entry", maddr, (), NO_RAM, slot=devfn))
            return
        steps.append(WalkStep("context entry", maddr, entry, self._context_meaning(*entry), slot=devfn))

    def _context_meaning(self, low: int, high: int) -> str:
        fpd = " FPD" if low & ContextLow.fpd.mask else ""
        if not low & ContextLow.p.mask:
            return "not present" + fpd
        kind, aw = ContextLow.tt.get(low), ContextHigh.aw.get(high)
        width = self._tables.widths.get(aw)
        words = [f"P{fpd} TT={kind} ({TYPE_NAMES[kind]})"]
        words.append(f"AW={aw} ({width}-bit)" if width else f"AW={aw} (not supported)")
        words.append(f"DID={ContextHigh.did.get(high)}")
        if TYPE_NAMES[kind] != "pass-through":
            words.append(f"SLPTPTR={low & ADDRESS:#x}")
            pointer = low & self._tables.pointer_reserved
        else:
            pointer = 0
        stray = _stray(low & self._tables.context_reserved_low | pointer, high & self._tables.context_reserved_high)
        return " ".join(words) + stray

    def _tell_levels(self, sid: int, iova: int, write: bool, steps: list[WalkStep], root: int, top: int) -> Walk:
        rules = self._second_level
        readable = writable = True
        table = root
        for shift in range(top, 11, -9):
            slot = iova >> shift & 511
            maddr, level = table + 8 * slot, (shift - 12) // 9 + 1
            name = LEVEL_NAMES[shift]
            if maddr + 8 > self._memory.size:
                steps.append(WalkStep(name, maddr, (), NO_RAM, level, slot))
                code = CONTEXT_INVALID if shift == top else ENTRY_ACCESS
                return _blocked(sid, iova, write, steps, code)
            entry = self._memory.read64(maddr)
            leaf = shift == 12 or bool(entry & PS)
            reserved = entry & (rules.leaf_reserved[shift] if leaf else rules.table_reserved)
            steps.append(WalkStep(name, maddr, (entry,), _entry_meaning(entry, shift, leaf, reserved), level, slot))
            readable, writable = readable and bool(entry & 1), writable and bool(entry & 2)
            if not (writable if write else readable):
                return _blocked(sid, iova, write, steps, NO_WRITE if write else NO_READ)
            if reserved:
                return _blocked(sid, iova, write, steps, ENTRY_RESERVED)
            table = entry & OUTPUT
            if leaf:
                size = 1 << shift
                output = table + iova % size
                if DOORBELL_FIRST <= output <= DOORBELL_LAST:
                    return _blocked(sid, iova, write, steps, INTERRUPT_ADDRESS)
                return Walk(sid, iova, write, tuple(steps), output, size, readable, writable, None)
        raise AssertionError("a level-1 entry is always a leaf")


@lru_cache(4096)
def _entry_meaning(entry: int, shift: int, leaf: bool, reserved: int) -> str:
    rights = " ".join(letter for bit, letter in ((1, "R"), (2, "W")) if entry & bit)
    if not rights:
        return "not present"
    if leaf:
        what = f"{PAGE_NAMES.get(shift, 'no such')} leaf -> {entry & OUTPUT:#x}"
    else:
        what = f"table -> {entry & OUTPUT:#x}"
    snoop = " SNP" if entry & SNP and not reserved & SNP else ""
    return f"{rights} {what}{snoop}{_stray(reserved)}"


def _stray(*words: int) -> str:
    """The reserved bits that are set, low word first."""
    return f", reserved bits {' '.join(f'{word:#x}' for word in words)}" if any(words) else ""


def _blocked(sid: int, iova: int, write: bool, steps: list[WalkStep], code: int) -> Walk:
    return Walk(sid, iova, write, tuple(steps), None, None, False, False, FAULT_NAMES[code])
