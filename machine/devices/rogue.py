# SPDX-License-Identifier: GPL-2.0-or-later
"""An adversary on the bus: a device whose firmware does what no driver asked for.

It issues any request under any requester id, remembers addresses that were once good and comes back to them
after software took them away, and holds writes back to let them go late.  What it got, and which faults stopped
it, come back as values; the property tests ask that it never got what was not mapped for it.

BAR0, 4 KiB, 32-bit registers, little-endian, all read-only: 0x00 ID 0x524F4731 ("ROG1"), 0x04 ATTEMPTS,
0x08 REACHED (attempts that no unit blocked), 0x0C BLOCKED; the counts run modulo 2^32.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from base.units import PAGE_SIZE, U32_MAX, U64_MAX, Sbdf
from machine.devices.bus_master import BAR_SIZE, BusMaster
from machine.dma import DmaPort
from machine.iommu.unit import Fault
from machine.pci import Bar, PciFunction

ID: Final = 0x524F4731


class Attempt(NamedTuple):
    """One request and what came of it."""

    sbdf: int
    """The requester id it went out under."""
    iova: int
    write: bool
    length: int
    data: bytes | None
    """What a read returned, or what a write stored; ``None`` when blocked."""
    fault: Fault | None

    @property
    def reached(self) -> bool:
        return self.fault is None


class Rogue(BusMaster):
    """The adversary.  ``peek`` and ``poke`` are its DMA; ``read`` and ``write`` are its registers, as ever."""

    def __init__(self, port: DmaPort) -> None:
        super().__init__(port)
        self.attempts = 0
        self.reached = 0
        self._remembered: dict[tuple[int, int], int] = {}
        self._held: list[tuple[int, int, bytes]] = []

    @staticmethod
    def pci_function(sbdf: Sbdf, bar_base: int) -> PciFunction:
        """The adversary as enumeration finds it: it claims to be a coprocessor."""
        return PciFunction(sbdf, class_code=0x0B4000, device_id=0x524F, bars=(Bar(bar_base, BAR_SIZE),))

    def _load(self, offset: int) -> int:
        match offset:
            case 0x00:
                return ID
            case 0x04:
                return self.attempts & U32_MAX
            case 0x08:
                return self.reached & U32_MAX
            case 0x0C:
                return self.dma_faults & U32_MAX
        return 0

    def _store(self, offset: int, value: int) -> None:
        """Every register is read-only."""

    # Requests.  ``as_sbdf`` spoofs another function's requester id.

    def peek(self, iova: int, length: int = 8, as_sbdf: int | None = None) -> Attempt:
        """Read ``length`` bytes at ``iova``; what is reached is remembered."""
        port = self.port if as_sbdf is None else self.port.fabric.port(as_sbdf)
        answer = port.read(_clip(iova, length), length)
        if isinstance(answer, bytes):
            return self._note(Attempt(port.sbdf, iova, False, length, answer, None))
        return self._note(Attempt(port.sbdf, iova, False, length, None, answer))

    def poke(self, iova: int, data: bytes, as_sbdf: int | None = None) -> Attempt:
        """Write ``data`` at ``iova``; what is reached is remembered."""
        port = self.port if as_sbdf is None else self.port.fabric.port(as_sbdf)
        fault = port.write(_clip(iova, len(data)), data)
        return self._note(Attempt(port.sbdf, iova, True, len(data), None if fault else data, fault))

    def sweep(
        self,
        first: int,
        last: int,
        stride: int = PAGE_SIZE,
        data: bytes | None = None,
        length: int = 8,
        as_sbdf: int | None = None,
    ) -> list[Attempt]:
        """Read ``length`` bytes, or write ``data``, every ``stride`` bytes from ``first`` to ``last`` inclusive."""
        if stride <= 0:
            raise ValueError(f"a sweep needs a positive stride, not {stride}")
        addresses = range(first, last + 1, stride)
        if data is None:
            return [self.peek(iova, length, as_sbdf) for iova in addresses]
        return [self.poke(iova, data, as_sbdf) for iova in addresses]

    def spoof(self, victims: Iterable[int], iova: int, data: bytes | None = None, length: int = 8) -> list[Attempt]:
        """One request for ``iova`` under each of the ids ``victims``."""
        if data is None:
            return [self.peek(iova, length, victim) for victim in victims]
        return [self.poke(iova, data, victim) for victim in victims]

    # Late DMA

    def remember(self, iova: int, length: int = 8, as_sbdf: int | None = None) -> None:
        """Keep an address (say, one that a driver handed to another device) for :meth:`replay`."""
        self._remembered[self.port.sbdf if as_sbdf is None else as_sbdf, iova] = length

    @property
    def remembered(self) -> tuple[tuple[int, int, int], ...]:
        """(requester id, iova, length) of every address it knows, oldest first."""
        return tuple((sbdf, iova, length) for (sbdf, iova), length in self._remembered.items())

    def replay(self, data: bytes | None = None) -> list[Attempt]:
        """Come back to every remembered address: read it, or write ``data`` over it."""
        if data is None:
            return [self.peek(iova, length, sbdf) for sbdf, iova, length in self.remembered]
        return [self.poke(iova, data, sbdf) for sbdf, iova, _ in self.remembered]

    def hold(self, iova: int, data: bytes, as_sbdf: int | None = None) -> None:
        """Accept a write now and keep it back until :meth:`release`."""
        self._held.append((self.port.sbdf if as_sbdf is None else as_sbdf, iova, data))

    def release(self) -> list[Attempt]:
        """Let the held writes go, in order."""
        held, self._held = self._held, []
        return [self.poke(iova, data, sbdf) for sbdf, iova, data in held]

    def forget(self) -> None:
        """Drop remembered addresses and held writes."""
        self._remembered.clear()
        self._held.clear()

    def _note(self, attempt: Attempt) -> Attempt:
        self.attempts += 1
        if attempt.fault is None:
            self.reached += 1
            self._remembered[attempt.sbdf, attempt.iova] = attempt.length
        else:
            self.dma_faults += 1
        return attempt

    # Snapshots

    def save(self) -> Any:
        """Counts, remembered addresses and held writes."""
        return (
            self._save_bus_master(),
            (self.attempts, self.reached),
            dict(self._remembered),
            tuple(self._held),
        )

    def restore(self, state: Any) -> None:
        bus_master, counts, remembered, held = state
        self._restore_bus_master(bus_master)
        self.attempts, self.reached = counts
        self._remembered = dict(remembered)
        self._held = list(held)


def _clip(iova: int, length: int) -> int:
    """``iova`` moved back, if need be, so that a request of ``length`` bytes ends within 64 bits."""
    return max(0, min(iova & U64_MAX, U64_MAX + 1 - length))
