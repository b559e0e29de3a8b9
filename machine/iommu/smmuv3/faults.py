# SPDX-License-Identifier: GPL-2.0-or-later
"""From the place where a translation stopped to what software sees of it (IHI 0070, 3.12, 5.5 and 7.3).

Configuration errors and external aborts are always recorded and abort.  The four translation-related faults do what
the stage that found them is configured to do: silently abort, abort with a record, or stall, which is always
recorded.
"""

from typing import Final

from base.units import U64_MAX
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.events import (
    C_BAD_CD,
    C_BAD_STREAMID,
    EVENT_NAMES,
    F_TLB_CONFLICT,
    F_WALK_EABT,
    FETCH_ADDRESS_BITS,
    IPA_BITS,
    READ,
    STAGE_2,
    EventQueue,
    Record,
    configuration_event,
    who,
)
from machine.iommu.smmuv3.registers import CR2, GBPA, GBPA_ABORT, RECINVSID, RegisterFile
from machine.iommu.smmuv3.stalls import Stalls
from machine.iommu.smmuv3.ste import Stream
from machine.iommu.smmuv3.walk import Stop
from machine.iommu.unit import Counters, Fault

ABORTED_BY_STE: Final = "STE.Config=abort"
ABORTED_BY_GBPA: Final = "GBPA.ABORT"
BEYOND_OAS: Final = "address beyond OAS"
"""Names of the three ways to be blocked without an event; their ``code`` is 0."""


def blocked_while_disabled(words: dict[int, int], config: Smmuv3Config, iova: int) -> str | None:
    """SMMUEN is 0 (6.3.14 and 3.4): bypass, which is ``None``, or a silent abort."""
    if words[GBPA] & GBPA_ABORT:
        return ABORTED_BY_GBPA
    return BEYOND_OAS if iova >> config.oas else None


class FaultRecorder:
    """Writes the records of one unit and makes the faults that devices see."""

    def __init__(
        self, name: str, registers: RegisterFile, events: EventQueue, stalls: Stalls, counters: Counters
    ) -> None:
        self._name: Final = name
        self._words: Final = registers.words
        self._events: Final = events
        self._stalls: Final = stalls
        self._counters: Final = counters

    def silent(self, sid: int, iova: int, write: bool, pasid: int | None, name: str) -> Fault:
        """An abort without event."""
        return self.fault(sid, iova, write, pasid, 0, None, name)

    def configuration(
        self, sid: int, iova: int, write: bool, pasid: int | None, number: int, fetch: int = 0, index: int | None = None
    ) -> Fault:
        """C_BAD_STREAMID to C_BAD_CD; ``index`` is the CD that was looked for if ``pasid`` does not say so."""
        record: Record | None = configuration_event(number, sid, fetch, pasid if index is None else index)
        if number == C_BAD_STREAMID and not self._words[CR2] & RECINVSID:
            record = None
        return self.fault(sid, iova, write, pasid, number, record)

    def stopped(
        self, sid: int, iova: int, write: bool, pasid: int | None, stream: Stream, stop: Stop, ipa: int | None = None
    ) -> Fault:
        """Whatever ``stop`` is: an error of configuration or a fault of translation; ``ipa`` if it does not know."""
        number = stop.number
        if number <= C_BAD_CD:
            return self.configuration(sid, iova, write, pasid, number, stop.fetch, stop.ssid)
        address = iova & U64_MAX
        details = stop.details | (stream.write_attributes if write else READ | stream.read_attributes)
        word0 = who(number, sid, pasid)
        if stop.stage2:
            details |= STAGE_2
        if number == F_WALK_EABT:
            record = (word0, details, address, stop.fetch & FETCH_ADDRESS_BITS)
            return self.fault(sid, iova, write, pasid, number, record)
        record = (word0, details, address, (stop.ipa if ipa is None else ipa) & IPA_BITS if stop.stage2 else 0)
        if number == F_TLB_CONFLICT:
            return self.fault(sid, iova, write, pasid, number, record)
        if stop.stage2:
            assert stream.stage2 is not None
            records, stalls = stream.stage2.controls[:2]
        else:
            records, stalls = stop.records, stop.stalls
        if stalls:
            self._counters.faults += 1
            written = self._stalls.hold(sid, iova, write, pasid, record)
            return Fault(self._name, sid, iova, write, number, EVENT_NAMES[number], written, pasid)
        return self.fault(sid, iova, write, pasid, number, record if records else None)

    def fault(
        self,
        sid: int,
        iova: int,
        write: bool,
        pasid: int | None,
        number: int,
        record: Record | None,
        name: str | None = None,
    ) -> Fault:
        """Count the fault and deliver its record if there is one."""
        self._counters.faults += 1
        written = record if record is not None and self._events.write(record) else ()
        return Fault(self._name, sid, iova, write, number, name or EVENT_NAMES[number], written, pasid)
