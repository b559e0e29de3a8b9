# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of a hardware half: what DMA, the test bed and the reports may ask of any IOMMU.

A unit is a register block plus :meth:`IommuUnit.translate`.  Translation answers with a machine address or with
a :class:`Fault` that the unit has already recorded (event queue, fault registers, interrupt) the way its
manual says.  It never raises, whatever bytes software left in tables, queues and registers.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from machine.mmio import Registers


class Fault(NamedTuple):
    """A request that the unit blocked.

    ``code`` and ``name`` are the manual's fault reason; ``record`` is the fault record or event as 64-bit
    words exactly as hardware wrote it, empty when the manual says that nothing is recorded.
    """

    unit: str
    sid: int
    iova: int
    write: bool
    code: int
    name: str
    record: tuple[int, ...] = ()
    pasid: int | None = None

    def __str__(self) -> str:
        kind = "write" if self.write else "read"
        who = f"{self.sid >> 8:02x}:{self.sid >> 3 & 31:02x}.{self.sid & 7:x}"
        return f"{self.unit}: DMA {kind} by {who} at {self.iova:#x}: {self.name} ({self.code:#x})"


class WalkStep(NamedTuple):
    """One structure that a walk looked at: where it lies, the raw words, and what they say."""

    name: str
    """What it is in the manual's terms: "root entry", "STE", "SL-PDPE", "stage-2 descriptor"."""
    maddr: int
    words: tuple[int, ...]
    meaning: str
    level: int | None = None
    slot: int | None = None
    """Index of the entry in its table."""


@dataclass(frozen=True, slots=True)
class Walk:
    """A translation explained: the steps in order, and where it ends."""

    sid: int
    iova: int
    write: bool
    steps: tuple[WalkStep, ...]
    maddr: int | None
    """Output address, or ``None`` if the request is blocked."""
    page_size: int | None
    """Bytes that the leaf covers; ``None`` when blocked or not translated (bypass, pass-through)."""
    readable: bool
    writable: bool
    blocked: str | None
    """The manual's name of the fault, ``None`` if the request passes."""


@dataclass(slots=True)
class Counters:
    """What a unit has done since it was made or last restored."""

    iotlb_hits: int = 0
    iotlb_misses: int = 0
    config_hits: int = 0
    config_misses: int = 0
    faults: int = 0
    commands: dict[str, int] = field(default_factory=dict)
    """Invalidation descriptors or commands executed, by the manual's name."""

    def clear(self) -> None:
        self.iotlb_hits = self.iotlb_misses = 0
        self.config_hits = self.config_misses = self.faults = 0
        self.commands.clear()


class IommuUnit(Registers, Protocol):
    """One IOMMU.  ``read``/``write`` are its registers, from the start of its register block."""

    @property
    def name(self) -> str: ...

    @property
    def register_size(self) -> int:
        """Bytes of its register block (a multiple of 4 KiB)."""
        ...

    @property
    def counters(self) -> Counters: ...

    def translate(self, sid: int, iova: int, write: bool, pasid: int | None = None) -> int | Fault:
        """Translate one access that does not cross a 4 KiB boundary.

        ``sid``: requester id (bus << 8 | devfn) or stream id; ``iova``: the address as the device issued it;
        ``pasid``: the process address space id (substream id) of a request that carries one.
        Fills and uses the caches, records faults.  Returns the machine address, or the fault.
        """
        ...

    def walk(self, sid: int, iova: int, write: bool = False) -> Walk:
        """The same decision explained from memory as it is now: no cache used or filled, nothing recorded."""
        ...

    def save(self) -> Any:
        """Everything that :meth:`restore` needs to bring registers, queues' state and caches back."""
        ...

    def restore(self, state: Any) -> None: ...
