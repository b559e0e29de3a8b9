# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding out where a model's DMA goes.

A write carries a token that exists nowhere else, and memory is looked at afterwards.  A read is told by what it
brings in: the expected places hold tokens for the moment, and the device then writes what it got to its *mailbox*, an
address that always translates.  Whatever a probe overwrote is put back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from oracle.edu import LANDING, Edu, token
from oracle.shared_ram import SharedRam

SIZE: Final = 8
"""Bytes that a probe moves."""
READS: Final = 0xFF
"""Stands for the device in tokens that probes put into memory."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where a device may always write: its DMA address and where that leads."""

    iova: int
    maddr: int


class Landed:
    """What became of one access: the machine address it reached, if any, and whether the unit reported a fault."""

    __slots__ = ("blocked", "maddr", "seen")

    def __init__(self, maddr: int | None, blocked: bool, seen: bool = True) -> None:
        self.maddr = maddr
        self.blocked = blocked
        self.seen = seen
        """``False``: nothing was reported, but where the access went cannot be observed; ``maddr`` is the guess."""


class Prober:
    """Sends one 8-byte access at a time through a model's devices.

    ``status`` are the requests that show whether the unit reported a fault, ``faulted`` reads their answers, and
    ``forget`` makes the model forget a fault that nobody is to see.
    """

    def __init__(
        self, ram: SharedRam, status: Sequence[str], faulted: Callable[[list[int]], bool], forget: Callable[[], None]
    ) -> None:
        self._ram: Final = ram
        self._memory: Final = ram.memory
        self._status: Final = tuple(status)
        self._faulted: Final = faulted
        self._forget: Final = forget
        self._number = 0

    def is_ram(self, maddr: int) -> bool:
        """Whether all of an access at ``maddr`` would be to the shared RAM."""
        return self._ram.start <= maddr <= self._ram.start + self._ram.size - SIZE

    def write(self, edu: Edu, iova: int, expected: Sequence[int]) -> Landed:
        """Write a token at ``iova``; ``expected`` are the addresses to look at first."""
        memory = self._memory
        slot = edu.next_token()
        data = token(edu.index, slot).to_bytes(SIZE, "little")
        places = [maddr for maddr in expected if self.is_ram(maddr)]
        before = [memory.read(maddr, SIZE) for maddr in places]
        blocked = self._faulted(edu.run(edu.transfer(iova, 8 * slot, SIZE, True), self._status))
        found = None
        for maddr, old in zip(places, before):
            if memory.read(maddr, SIZE) == data:
                found = maddr
                memory.write(maddr, old)
        if found is not None or blocked:
            return Landed(found, blocked)
        return self._unexpected(data, places, expected)

    def _unexpected(self, data: bytes, places: Sequence[int], expected: Sequence[int]) -> Landed:
        """Nothing was reported and nothing arrived where it was expected."""
        if len(places) < len(expected):
            return Landed(expected[0], False, seen=False)
        elsewhere = self._ram.find(data)
        for maddr in elsewhere:
            self._memory.write(maddr, bytes(SIZE))
        return Landed(elsewhere[0] if elsewhere else None, False)

    def read(self, edu: Edu, iova: int, expected: Sequence[int], mailbox: Mailbox | None) -> Landed:
        """Read 8 bytes at ``iova``; without a mailbox, or if it cannot be reached, ``seen`` is ``False``."""
        memory = self._memory
        places = [maddr for maddr in expected if self.is_ram(maddr)]
        before = [memory.read(maddr, SIZE) for maddr in places]
        brought: dict[bytes, int] = {}
        for maddr in places:
            self._number += 1
            data = token(READS, self._number & 0xFFFFFF).to_bytes(SIZE, "little")
            brought[data] = maddr
            memory.write(maddr, data)
        blocked = self._faulted(edu.run(edu.transfer(iova, LANDING, SIZE, False), self._status))
        for maddr, old in zip(places, before):
            memory.write(maddr, old)
        if blocked:
            return Landed(None, True)
        if not places or mailbox is None:
            return Landed(expected[0] if expected else None, False, seen=False)
        letter = memory.read(mailbox.maddr, SIZE)
        memory.write(mailbox.maddr, bytes(SIZE))
        lost = self._faulted(edu.run(edu.transfer(mailbox.iova, LANDING, SIZE, True), self._status))
        got = memory.read(mailbox.maddr, SIZE)
        memory.write(mailbox.maddr, letter)
        if lost:
            self._forget()
        if got == bytes(SIZE) and lost:
            return Landed(places[0], False, seen=False)
        return Landed(brought.get(got), False)
