# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that a real Xen built, read by our hardware half: every entry walked, every contiguity marker checked.

The tables are read twice from the same RAM: as words, by the few lines of :func:`tables` here, and by our unit, whose
root table register holds what Xen wrote into QEMU's.  Both have to find the same pages with the same permissions, and
nothing where Xen left an entry empty.  Xen's invalidation queue is then executed by our unit from its first descriptor.

Markers (bits 55:52 of a second-level entry): log2 of how many entries from there on, at most as many as the index is
aligned to, are all empty or form one run.  A run consists of leaves whose addresses are in step with their indices, so
that a full one could be a superpage; where the next level has no superpages there are none.  The root has no markers.
"""

import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from machine.iommu.unit import Fault
from machine.iommu.vtd.unit import VtdUnit
from machine.mmio import SystemBus
from oracle.campaign import Limits
from oracle.outcome import Finding, Outcome
from oracle.qemu_pc import IOMMU_BASE
from oracle.vtd_rig import matching_config
from oracle.xen_boot import Case, XenBoot

CASES: Final = (
    Case("pv", "intremap=on,caching-mode=off", "dom0=pv iommu=verbose,force", 48),
    Case("pv-3-levels", "intremap=on,caching-mode=off", "dom0=pv iommu=verbose,force", 39),
    Case("pv-caching-mode", "intremap=on,caching-mode=on", "dom0=pv iommu=verbose,force", 48),
    Case(
        "pv-no-superpages",
        "intremap=on,caching-mode=off",
        "dom0=pv iommu=verbose,force,no-superpages",
        48,
        superpages=False,
    ),
    Case("pvh", "intremap=on,caching-mode=off", "dom0=pvh iommu=verbose,force,no-sharept", 48),
)

OUTPUT: Final = (1 << 52) - (1 << 12)
MARKER: Final = 0xF << 52
R: Final = 1
W: Final = 2
LEAF: Final = 1 << 7
NO_WRITE: Final = 5
NO_READ: Final = 6

_CAP: Final = 0x08
_ECAP: Final = 0x10
_GCMD: Final = 0x18
_RTADDR: Final = 0x20
_FSTS: Final = 0x34
_IQH: Final = 0x80
_IQT: Final = 0x88
_IQA: Final = 0x90
_TE: Final = 1 << 31
_SRTP: Final = 1 << 30
_QIE: Final = 1 << 26
_IQE: Final = 1 << 4

_SHOWN: Final = 8
"""Findings of one kind that are told in full; the others are counted."""


class Entry(NamedTuple):
    """One entry of a second-level table."""

    table: int
    """Number of the frame that holds it."""
    level: int
    """4 to 1."""
    slot: int
    iova: int
    """First address that it covers."""
    word: int

    @property
    def size(self) -> int:
        """Bytes that it covers."""
        return 1 << 3 + 9 * self.level

    @property
    def place(self) -> str:
        return f"entry {self.slot} of the level {self.level} table in frame {self.table:#x}: {self.word:#018x}"


def tables(words: memoryview, root: int, levels: int) -> Iterator[tuple[int, list[Entry]]]:
    """(level, the 512 entries) of every table from the root down; tables that lie outside RAM are left out."""
    pending = [(root, levels, 0)]
    while pending:
        frame, level, iova = pending.pop()
        if (frame + 1) * 512 > len(words):
            continue
        size = 1 << 3 + 9 * level
        content = words[frame * 512 : frame * 512 + 512].tolist()
        entries = [Entry(frame, level, index, iova + index * size, word) for index, word in enumerate(content)]
        yield level, entries
        for entry in entries:
            if entry.word & (R | W) and level > 1 and not entry.word & LEAF:
                pending.append(((entry.word & OUTPUT) >> 12, level - 1, entry.iova))


def markers(entries: list[Entry], runs: bool) -> list[int]:
    """What the marker of each entry of one table has to be.  ``runs``: leaves of this level can become superpages."""
    plain = [entry.word & ~MARKER for entry in entries]
    step = entries[0].size
    leaves = entries[0].level == 1
    order = [0] * 512
    """log2 of the aligned, uniform block that starts at each index, as far as it is known."""
    for bit in range(9):
        half = 1 << bit
        for index in range(0, 512, 2 * half):
            if order[index] != bit or order[index + half] != bit:
                continue
            first, second = plain[index], plain[index + half]
            if not first:
                joined = not second
            else:
                leaf = bool(first & (R | W)) and (leaves or bool(first & LEAF))
                in_step = (first & OUTPUT) // step & 511 == index
                joined = runs and leaf and in_step and second == first + half * step
            if joined:
                order[index] = bit + 1
    return order


class Judge:
    """Our unit on the RAM of a booted Xen, and what it makes of it."""

    def __init__(self, boot: XenBoot, case: Case, outcome: Outcome) -> None:
        self._boot: Final = boot
        self._case: Final = case
        self._outcome: Final = outcome
        self._words: Final = boot.ram.memory.words
        config = matching_config(boot.register(_CAP, 8), boot.register(_ECAP, 8), case.aw_bits)
        bus = SystemBus(boot.ram.memory)
        self._unit: Final = VtdUnit("dmar0", bus, config)
        bus.map(IOMMU_BASE, self._unit.register_size, self._unit)
        self._unit.write(_RTADDR, 8, boot.register(_RTADDR, 8))
        self._unit.write(_GCMD, 4, _SRTP)
        self._unit.write(_GCMD, 4, _TE)

    def judge(self) -> None:
        """All contexts with the tables behind them, then the queue."""
        seen: set[int] = set()
        for sid, low, high in self._contexts():
            levels = (high & 7) + 2
            if low >> 2 & 3 == 2:  # pass-through
                self._translated(sid, 0x1234_5000, R | W, 0x1234_5000, f"context entry of {sid:#06x}, pass-through")
                continue
            root = low >> 12
            first = root not in seen
            seen.add(root)
            for level, entries in tables(self._words, root, levels):
                if first and entries[0].table != root:
                    self._marked(level, entries)
                for entry in entries:
                    if first or entry.word & (R | W):  # other devices with the same tables: what is mapped
                        self._walked(sid, entry)
        if not seen:
            self._differ("context entries", "Xen set up no device with tables", "none found", "at least one")
        self._outcome.counts["tables"] = self._outcome.counts.get("tables", 0) + len(seen)
        self._queue()

    def _contexts(self) -> Iterator[tuple[int, int, int]]:
        """(requester id, low word, high word) of every present context entry."""
        root = self._boot.register(_RTADDR, 8) >> 12
        words = self._words
        for bus in range(256):
            low = words[root * 512 + 2 * bus]
            if not low & 1:
                continue
            table = (low & OUTPUT) >> 12
            for devfn in range(256):
                at = table * 512 + 2 * devfn
                if words[at] & 1:
                    yield bus << 8 | devfn, words[at], words[at + 1]

    def _walked(self, sid: int, entry: Entry) -> None:
        """Our unit at the first and the last page of what ``entry`` covers, if it does not lead to another table."""
        rights = entry.word & (R | W)
        leaf = entry.level == 1 or bool(entry.word & LEAF)
        if rights and not leaf:
            return
        pages = {0, entry.size - 0x1000} if rights else {0}
        for offset in pages:
            output = (entry.word & OUTPUT) + offset if rights else None
            self._translated(sid, entry.iova + offset, rights, output, entry.place)

    def _translated(self, sid: int, iova: int, rights: int, output: int | None, place: str) -> None:
        outcome = self._outcome
        if iova >> 20 == 0xFEE:
            return  # interrupt messages: no tables are looked at
        for need in (R, W):
            outcome.checked += 1
            found = self._unit.translate(sid, iova, need == W)
            if rights & need:
                agreed = found == output
                wanted = f"{output:#x}"
            else:
                agreed = isinstance(found, Fault) and found.code == (NO_WRITE if need == W else NO_READ)
                wanted = "no permission"
            if not agreed:
                shown = str(found) if isinstance(found, Fault) else f"{found:#x}"
                what = f"{'write' if need == W else 'read'} by {sid:#06x} at {iova:#x}, {place}"
                self._differ("translation", what, shown, wanted)
            kind = "passed" if rights & need else "blocked"
            outcome.counts[kind] = outcome.counts.get(kind, 0) + 1

    def _marked(self, level: int, entries: list[Entry]) -> None:
        """Every marker of a table below the root."""
        self._outcome.checked += len(entries)
        self._outcome.counts["markers"] = self._outcome.counts.get("markers", 0) + len(entries)
        runs = self._case.superpages and level < 3
        for entry, wanted in zip(entries, markers(entries, runs)):
            found = entry.word >> 52 & 15
            if found != wanted:
                self._differ("marker", f"level {level}: {entry.place}", f"defined as {wanted}", f"{found}")

    def _queue(self) -> None:
        """Everything that is in Xen's invalidation queue, executed once more."""
        boot, unit = self._boot, self._unit
        base = boot.register(_IQA, 8)
        slots = 256 << (base & 7)
        tail = boot.register(_IQT, 8)
        start = base >> 12 << 9
        used = [slot for slot in range(slots) if any(self._words[start + 2 * slot : start + 2 * slot + 2])]
        unit.write(_IQT, 8, 0)
        unit.write(_IQA, 8, base)
        unit.write(_GCMD, 4, _TE | _QIE)
        stops = [tail] if len(used) * 16 <= tail else [tail, used[-1] * 16]
        for stop in stops:
            unit.write(_IQT, 8, stop)
            if unit.read(_FSTS, 4) & _IQE or unit.read(_IQH, 8) != stop:
                at = unit.read(_IQH, 8) >> 4
                low, high = self._words[start + 2 * at], self._words[start + 2 * at + 1]
                self._differ("descriptor", f"descriptor {at}: {low:#018x} {high:#018x}", "refused", "executed")
                break
        self._outcome.checked += len(used)
        self._outcome.counts["descriptors"] = self._outcome.counts.get("descriptors", 0) + len(used)

    def _differ(self, kind: str, what: str, ours: str, xen: str) -> None:
        findings = self._outcome.findings
        if sum(finding.kind == (kind,) for finding in findings) < _SHOWN:
            difference = (f"{self._case}: {what}", ours, xen)
            findings.append(Finding((kind,), "", 0, 0, (difference,), "", None, ""))
        else:
            counts = self._outcome.counts
            counts[f"further {kind} differences"] = counts.get(f"further {kind} differences", 0) + 1


def run(limits: Limits, progress: Callable[[Outcome], None]) -> Outcome:
    """Boot one case after the other, that of the seed first, until each was booted or the time is up."""
    seed = limits.seed
    outcome = Outcome("xen-tables", seed)
    started = time.monotonic()
    for number in range(len(CASES)):
        if number and time.monotonic() - started > limits.seconds:
            left = ", ".join(CASES[(seed + skipped) % len(CASES)].name for skipped in range(number, len(CASES)))
            outcome.notes.append(f"not booted for want of time: {left}")
            break
        case = CASES[(seed + number) % len(CASES)]
        boot = XenBoot(case, lambda: progress(outcome))
        try:
            reading = time.monotonic()
            outcome.notes.append(f"Xen {boot.version}, {case}")
            Judge(boot, case, outcome).judge()
            outcome.seconds += time.monotonic() - reading
            outcome.machines += 1
        finally:
            boot.close()
        progress(outcome)
    return outcome
