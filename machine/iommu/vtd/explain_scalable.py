# SPDX-License-Identifier: GPL-2.0-or-later
"""A translation in scalable mode told step by step: a second reading of the tables, without caches and traces.

Nested, the second-stage entries on the way to each first-stage entry are told before it.
"""

from typing import Final

from machine.iommu.unit import Walk, WalkStep
from machine.iommu.vtd.reasons import (
    FAULT_NAMES,
    FS_ACCESS,
    FS_BEYOND_WIDTH,
    FS_NO_READ,
    FS_NOT_PRESENT,
    FS_RESERVED,
    FS_ROOT_ACCESS,
    FS_ROOT_NO_READ,
    SM_BEYOND_HOST_WIDTH,
    SM_BEYOND_WIDTH,
    SM_INTERRUPT_ADDRESS,
    SM_NO_PASID,
    SM_NO_READ,
    SM_NO_SUPERVISOR,
    SM_NO_WRITE,
    SM_NOT_CANONICAL,
    SM_PASID_TOO_LARGE,
    SM_RID_PASID,
    SM_SUPERVISOR_PAGE,
    SS_ACCESS,
    SS_NOT_PRESENT,
    SS_RESERVED,
    SS_ROOT_ACCESS,
)
from machine.iommu.vtd.registers import DOORBELL_MEGABYTE
from machine.iommu.vtd.scalable_tables import (
    PGTT_FIRST,
    PGTT_NESTED,
    PGTT_PASS_THROUGH,
    PGTT_SECOND,
    AddressSpace,
    DirectoryEntry,
    Pasid0,
    Pasid1,
    ScalableContext0,
    ScalableTables,
)
from machine.iommu.vtd.tables import ADDRESS
from machine.iommu.vtd.walk import OUTPUT, PS, SecondLevel
from machine.memory import PhysicalMemory

KIND_NAMES: Final = {
    PGTT_FIRST: "first stage",
    PGTT_SECOND: "second stage",
    PGTT_NESTED: "nested",
    PGTT_PASS_THROUGH: "pass-through",
}
LEVEL_NAMES: Final = {48: "PML5E", 39: "PML4E", 30: "PDPE", 21: "PDE", 12: "PTE"}
PAGE_NAMES: Final = {12: "4K", 21: "2M", 30: "1G"}


class _Blocked(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class ScalableExplainer:
    """Tells walks of one unit; ``tables`` reads RAM and belongs to the explainer alone."""

    def __init__(
        self,
        memory: PhysicalMemory,
        tables: ScalableTables,
        rules: SecondLevel,
        fs_leaf_reserved: dict[int, int],
        fs_table_reserved: int,
    ) -> None:
        self._memory: Final = memory
        self._tables: Final = tables
        self._rules: Final = rules
        self._fs_leaf_reserved: Final = fs_leaf_reserved
        self._fs_table_reserved: Final = fs_table_reserved

    def walk(self, root_table: int, sid: int, iova: int, write: bool, pasid: int | None) -> Walk:
        """What a DMA access meets with translation enabled in scalable mode."""
        self._tables.root_table = root_table
        steps: list[WalkStep] = []
        try:
            space, supervisor = self._find_space(sid, pasid, steps)
            if space.kind == PGTT_PASS_THROUGH:
                if iova > space.limit:
                    raise _Blocked(SM_BEYOND_HOST_WIDTH)
                maddr, size, readable, writable = iova, None, True, True
            elif space.kind == PGTT_SECOND:
                maddr, size, readable, writable = self._second(space, iova, write, "SS", steps)
            else:
                maddr, size, readable, writable = self._first(space, iova, write, supervisor, steps)
            if maddr >> 20 == DOORBELL_MEGABYTE:
                raise _Blocked(SM_INTERRUPT_ADDRESS)
        except _Blocked as stop:
            return Walk(sid, iova, write, tuple(steps), None, None, False, False, FAULT_NAMES[stop.code])
        return Walk(sid, iova, write, tuple(steps), maddr, size, readable, writable, None)

    def _find_space(self, sid: int, pasid: int | None, steps: list[WalkStep]) -> tuple[AddressSpace, bool]:
        tables = self._tables
        at = tables.root_half_at(sid)
        root = self._tell("scalable root entry", at, 1, sid >> 7, steps)
        if root and root[0] & 1:
            at = (root[0] & ADDRESS) + 32 * (sid & 127)
            self._tell("scalable context entry", at, 4, sid & 127, steps, _requester_meaning)
        requester = tables.requester(sid)
        if requester.code:
            raise _Blocked(requester.code)
        supervisor = False
        if pasid is None:
            pasid, supervisor = requester.rid_pasid, requester.rid_supervisor
            if pasid >= requester.pasids:
                raise _Blocked(SM_RID_PASID)
        elif not requester.with_pasid or pasid >= requester.pasids:
            raise _Blocked(SM_PASID_TOO_LARGE if requester.with_pasid else SM_NO_PASID)
        directory = self._tell("PASID directory entry", requester.directory + 8 * (pasid >> 6), 1, pasid >> 6, steps)
        if directory and directory[0] & 1:
            at = (directory[0] & DirectoryEntry.table.mask) + 64 * (pasid & 63)
            self._tell("PASID table entry", at, 8, pasid & 63, steps, _space_meaning)
        space = tables.address_space(requester, pasid)
        if space.code:
            raise _Blocked(space.code)
        if supervisor and not space.supervisor and space.kind in (PGTT_FIRST, PGTT_NESTED):
            raise _Blocked(SM_NO_SUPERVISOR)
        return space, supervisor

    def _tell(
        self, name: str, maddr: int, count: int, slot: int, steps: list[WalkStep], meaning: object = None
    ) -> tuple[int, ...]:
        words = self._tables.read(maddr, count)
        if words is None:
            steps.append(WalkStep(name, maddr, (), "no RAM here", slot=slot))
            return ()
        if not words[0] & 1:
            text = "not present"
        elif callable(meaning):
            text = meaning(words)
        else:
            text = f"P -> {words[0] & ADDRESS:#x}"
        steps.append(WalkStep(name, maddr, words, text, slot=slot))
        return words

    def _second(
        self, space: AddressSpace, address: int, write: bool, prefix: str, steps: list[WalkStep]
    ) -> tuple[int, int, bool, bool]:
        """(machine address, bytes of the page, readable, writable)."""
        if address > space.limit:
            raise _Blocked(SM_BEYOND_WIDTH)
        table, rights = space.ss_root, 3
        for shift in range(space.ss_shift, 11, -9):
            maddr = table + 8 * (address >> shift & 511)
            name, level, slot = f"{prefix}-{LEVEL_NAMES[shift]}", (shift - 12) // 9 + 1, address >> shift & 511
            if maddr + 8 > self._memory.size:
                steps.append(WalkStep(name, maddr, (), "no RAM here", level, slot))
                raise _Blocked(SS_ROOT_ACCESS if shift == space.ss_shift else SS_ACCESS)
            entry = self._memory.read64(maddr)
            leaf = shift == 12 or bool(entry & PS)
            letters = " ".join(letter for bit, letter in ((1, "R"), (2, "W")) if entry & bit)
            steps.append(WalkStep(name, maddr, (entry,), _meaning(letters, entry, shift, leaf), level, slot))
            if not entry & 3:
                raise _Blocked(SS_NOT_PRESENT)
            rights &= entry
            if not rights & (2 if write else 1):
                raise _Blocked(SM_NO_WRITE if write else SM_NO_READ)
            if entry & (self._rules.leaf_reserved[shift] if leaf else self._rules.table_reserved):
                raise _Blocked(SS_RESERVED)
            table = entry & OUTPUT
            if leaf:
                return table + address % (1 << shift), 1 << shift, bool(rights & 1), bool(rights & 2)
        raise AssertionError("a level-1 entry is always a leaf")

    def _first(
        self, space: AddressSpace, address: int, write: bool, supervisor: bool, steps: list[WalkStep]
    ) -> tuple[int, int, bool, bool]:
        bits = space.fs_shift + 9
        if address not in range(1 << bits - 1) and address not in range((1 << 64) - (1 << bits - 1), 1 << 64):
            raise _Blocked(SM_NOT_CANONICAL)
        table, rights = space.fs_root, 6
        for shift in range(space.fs_shift, 11, -9):
            top, slot, level = shift == space.fs_shift, address >> shift & 511, (shift - 12) // 9 + 1
            name, maddr = f"FS-{LEVEL_NAMES[shift]}", table + 8 * slot
            if space.kind == PGTT_NESTED:
                maddr = self._nested_entry(space, maddr, name, top, steps)
            if maddr + 8 > self._memory.size:
                steps.append(WalkStep(name, maddr, (), "no RAM here", level, slot))
                raise _Blocked(FS_ROOT_ACCESS if top else FS_ACCESS)
            entry = self._memory.read64(maddr)
            leaf = shift == 12 or bool(entry & PS)
            letters = " ".join(name for bit, name in ((0, "P"), (1, "RW"), (2, "US"), (5, "A")) if entry >> bit & 1)
            letters += " D" if leaf and entry & 1 << 6 else ""
            shown = _meaning(letters if entry & 1 else "", entry, shift, leaf)
            steps.append(WalkStep(name, maddr, (entry,), shown, level, slot))
            if not entry & 1:
                raise _Blocked(FS_NOT_PRESENT)
            rights &= entry
            if not rights & 4 and not supervisor:
                raise _Blocked(SM_SUPERVISOR_PAGE)
            writable = bool(rights & 2) or (supervisor and not space.write_protect)
            if write and not writable:
                raise _Blocked(SM_NO_WRITE)
            if entry & (self._fs_leaf_reserved[shift] if leaf else self._fs_table_reserved):
                raise _Blocked(FS_RESERVED)
            table = entry & OUTPUT
            if leaf:
                size = 1 << shift
                output, readable = table & -size | address % size, True
                if space.kind == PGTT_NESTED:
                    if output > space.limit:
                        raise _Blocked(FS_BEYOND_WIDTH)
                    output, behind, readable, also = self._second(space, output, write, "SS", steps)
                    size, writable = min(size, behind), writable and also
                return output, size, readable, writable
        raise AssertionError("a level-1 entry is always a leaf")

    def _nested_entry(self, space: AddressSpace, at: int, name: str, top: bool, steps: list[WalkStep]) -> int:
        if at > space.limit:
            raise _Blocked(FS_BEYOND_WIDTH)
        try:
            return self._second(space, at, False, f"{name} behind SS", steps)[0]
        except _Blocked as stop:
            if stop.code in (SS_NOT_PRESENT, SM_NO_READ):
                raise _Blocked(FS_ROOT_NO_READ if top else FS_NO_READ) from None
            raise


def _requester_meaning(words: tuple[int, ...]) -> str:
    flags = " ".join(
        field.name.upper()
        for field in (ScalableContext0.fpd, ScalableContext0.dte, ScalableContext0.paside)
        if words[0] & field.mask
    )
    entries = 128 << ScalableContext0.pdts.get(words[0])
    return " ".join(
        filter(
            None, ("P", flags, f"directory={words[0] & ADDRESS:#x} ({entries} entries) RID_PASID={words[1] & 0xFFFFF}")
        )
    )


def _space_meaning(words: tuple[int, ...]) -> str:
    kind = Pasid0.pgtt.get(words[0])
    text = f"P PGTT={kind} ({KIND_NAMES.get(kind, 'reserved')}) DID={Pasid1.did.get(words[1])}"
    if kind in (PGTT_SECOND, PGTT_NESTED):
        text += f" AW={Pasid0.aw.get(words[0])} SSPTPTR={words[0] & ADDRESS:#x}"
    if kind in (PGTT_FIRST, PGTT_NESTED):
        text += f" FSPTPTR={words[2] & ADDRESS:#x}"
    return text


def _meaning(letters: str, entry: int, shift: int, leaf: bool) -> str:
    if not letters:
        return "not present"
    what = f"{PAGE_NAMES.get(shift, 'no such')} leaf" if leaf else "table"
    return f"{letters} {what} -> {entry & OUTPUT:#x}"
