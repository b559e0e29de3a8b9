# SPDX-License-Identifier: GPL-2.0-or-later
"""The event queue: faults as the unit recorded them (IHI 0070, 3.5, 7.2, 7.3)."""

from typing import Final

from hypervisor.iommu.backend import FaultReport
from hypervisor.smmuv3 import layouts as hw
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

EVENT_WORDS: Final = 4


class EventQueue:
    """2^``log2size`` records in the frames from ``frame`` on, of the unit numbered ``unit``."""

    def __init__(self, memory: PhysicalMemory, bus: SystemBus, base: int, frame: int, log2size: int, unit: int) -> None:
        self.base_register: Final = hw.QueueBase.pack(allocate=1, log2size=log2size) | frame << 12
        self._memory: Final = memory
        self._bus: Final = bus
        self._prod_register: Final = base + hw.EVENTQ_PROD
        self._cons_register: Final = base + hw.EVENTQ_CONS
        self._start: Final = frame << 9
        self._index_mask: Final = (1 << log2size) - 1
        self._wrap_mask: Final = (2 << log2size) - 1
        self._unit: Final = unit
        self._cons = 0
        """Index with wrap bit, and the acknowledged overflow flag, as last written."""
        self.overflows = 0
        """How often the unit had to drop events because the queue was full."""

    def forget(self) -> None:
        """Start from an empty queue, as after a reset of the registers."""
        self._cons = 0

    def take(self) -> list[FaultReport]:
        """Every event since the last call, oldest first; their slots go back to the unit."""
        prod = self._bus.load(self._prod_register, 4)
        if prod == self._cons:
            return []
        if (prod ^ self._cons) & hw.OVERFLOW:
            self.overflows += 1
        reports = []
        words = self._memory.words
        index = self._cons & self._wrap_mask
        pending = (prod - index) & self._wrap_mask
        for _ in range(min(pending, self._index_mask + 1)):
            word = self._start + EVENT_WORDS * (index & self._index_mask)
            reports.append(decode(self._unit, tuple(words[word : word + EVENT_WORDS].tolist())))
            index = index + 1 & self._wrap_mask
        self._cons = prod & (hw.OVERFLOW | self._wrap_mask)
        self._bus.store(self._cons_register, 4, self._cons)
        return reports

    def save(self) -> object:
        return (self._cons, self.overflows)

    def restore(self, state: object) -> None:
        self._cons, self.overflows = state  # type: ignore[misc]


def decode(unit: int, record: tuple[int, ...]) -> FaultReport:
    """An event's four words as a report; ``iova`` is 0 for events that carry no address."""
    code = hw.Event0.code.get(record[0])
    addressed = code in hw.EVENTS_WITH_ADDRESS
    return FaultReport(
        unit=unit,
        sid=hw.Event0.sid.get(record[0]),
        iova=record[2] if addressed else 0,
        write=addressed and not hw.Event1.rnw.get(record[1]),
        code=code,
        name=hw.EVENT_NAMES.get(code, f"event {code:#04x}"),
        record=record,
    )
