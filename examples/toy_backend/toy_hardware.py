# SPDX-License-Identifier: GPL-2.0-or-later
"""The toy's hardware half: registers and a four-level walk, from the tables in README.md."""

from typing import Any

from machine.iommu.unit import Counters, Fault, Walk, WalkStep
from machine.mmio import SystemBus

ADDRESS = 0x000F_FFFF_FFFF_F000


class ToyUnit:
    """Satisfies :class:`machine.iommu.unit.IommuUnit`.  It caches nothing, so nothing is ever stale."""

    name = "toy0"
    register_size = 0x1000

    def __init__(self, bus: SystemBus) -> None:
        self._memory = bus.memory
        self._registers = bytearray(0x20)
        self.counters = Counters()

    # Registers: TABLE 00h, CONTROL 08h, FAULT_ADDRESS 10h, FAULT_STATUS 18h.

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._registers[offset : offset + size].ljust(size, b"\0"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        data = value.to_bytes(size, "little")
        for place, byte in enumerate(data, offset):
            if place < 0x0C:
                self._registers[place] = byte
            elif place == 0x1B and byte & 0x80:
                self._registers[0x10:0x20] = bytes(16)

    def translate(self, sid: int, iova: int, write: bool) -> int | Fault:
        walk = self.walk(sid, iova, write)
        if walk.maddr is not None:
            return walk.maddr
        self.counters.faults += 1
        status = 1 << 31 | write << 30 | sid
        if not self._registers[0x1B] & 0x80:  # the first blocked request stays until software clears it
            self._registers[0x10:0x18] = (iova & ~0xFFF).to_bytes(8, "little")
            self._registers[0x18:0x1C] = status.to_bytes(4, "little")
        return Fault(self.name, sid, iova, write, 1, str(walk.blocked), (iova & ~0xFFF, status))

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        steps: list[WalkStep] = []

        def blocked(why: str) -> Walk:
            return Walk(sid, iova, write, tuple(steps), None, None, False, False, why)

        if not self._registers[8] & 1:
            return blocked("translation is off")
        table = self.read(0, 8) & ADDRESS
        entry = self._word(table + 8 * sid)
        steps.append(WalkStep("device entry", table + 8 * sid, (entry or 0,), "" if entry else "empty", None, sid))
        if entry is None or not entry & 1 or iova >> 48:
            return blocked("no such address")
        writable = True
        for level in (4, 3, 2, 1):
            index = iova >> 3 + 9 * level & 511
            address = (entry & ADDRESS) + 8 * index
            word = self._word(address)
            steps.append(WalkStep("entry", address, (word or 0,), "present" if word else "empty", level, index))
            if word is None or not word & 1:
                return blocked("not present")
            entry = word
            leaf = level == 1 or (level < 4 and entry & 4)
            if leaf:
                writable = bool(entry & 2)
                if write and not writable:
                    return blocked("not writable")
                size = 1 << 3 + 9 * level
                maddr = entry & ADDRESS & -size | iova & size - 1
                return Walk(sid, iova, write, tuple(steps), maddr, size, True, writable, None)
        return blocked("not present")

    def _word(self, address: int) -> int | None:
        return self._memory.words[address >> 3] if address + 8 <= self._memory.size else None

    def save(self) -> Any:
        return bytes(self._registers), self.counters.faults

    def restore(self, state: Any) -> None:
        self._registers[:], self.counters.faults = state
