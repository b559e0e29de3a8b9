# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding out where a model's DMA goes.

A write carries a token that exists nowhere else, and memory is looked at afterwards.  A read is told by what it
brings in: the expected places hold tokens for the moment, and the device then writes what it got to its *mailbox*, an
address that always translates.  Whatever a probe overwrote is put back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from oracle.edu import LANDING, Edu, run_together, token
from oracle.qtest import Qtest
from oracle.shared_ram import SharedRam

READS: Final = 0x7F
"""Stands for the device in tokens that probes put into memory."""


_EMPTY: Final = token(READS, 0)


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where a device may always write: its DMA address and where that leads."""

    iova: int
    maddr: int


class Landed:
    """What became of one access: the machine address it reached, if any, and how the unit reported a fault."""

    __slots__ = ("maddr", "seen", "status")

    def __init__(self, maddr: int | None, status: list[int] | None, seen: bool = True) -> None:
        self.maddr = maddr
        self.status = status
        """What the unit's registers said after it, if they reported a fault."""
        self.seen = seen
        """``False``: nothing was reported, but where the access went cannot be observed; ``maddr`` is the guess."""


class Prober:
    """Sends one access of ``size`` bytes (4 or 8) at a time through a model's devices.

    ``status`` are the requests that show whether the unit reported a fault, ``faulted`` reads their answers, and
    ``forget`` makes the model forget a fault that nobody is to see.
    """

    def __init__(
        self,
        connection: Qtest,
        ram: SharedRam,
        status: Sequence[str],
        faulted: Callable[[list[int]], bool],
        forget: Callable[[], None],
        size: int = 8,
    ) -> None:
        self._connection: Final = connection
        self._ram: Final = ram
        self._memory: Final = ram.memory
        self._status: Final = tuple(status)
        self._faulted: Final = faulted
        self._forget: Final = forget
        self._number = 0
        self._size: Final = size

    def is_ram(self, maddr: int) -> bool:
        """Whether all of an access at ``maddr`` would be to the shared RAM."""
        return self._ram.start <= maddr <= self._ram.start + self._ram.size - self._size

    def write(self, edu: Edu, iova: int, expected: Sequence[int], guesses: Sequence[int] = ()) -> Landed:
        """Write a token at ``iova``; ``expected`` and ``guesses`` are the addresses to look at first."""
        memory = self._memory
        slot = edu.next_token()
        data = token(edu.index, slot)[: self._size]
        places = [maddr for maddr in (*expected, *guesses) if self.is_ram(maddr)]
        before = [memory.read(maddr, self._size) for maddr in places]
        status = edu.run(edu.transfer(iova, 8 * slot, self._size, True), self._status)
        blocked = self._faulted(status)
        found = None
        for maddr, old in zip(places, before):
            if memory.read(maddr, self._size) == data:
                found = maddr
                memory.write(maddr, old)
        if found is not None or blocked:
            return Landed(found, status if blocked else None)
        return self._beyond_ram(expected) or self._unexpected(data)

    def _beyond_ram(self, expected: Sequence[int]) -> Landed | None:
        """Nothing was reported and nothing arrived in RAM where it was expected: so it went where nobody sees it."""
        beyond = next((maddr for maddr in expected if not self.is_ram(maddr)), None)
        return None if beyond is None else Landed(beyond, None, seen=False)

    def _unexpected(self, data: bytes) -> Landed:
        """Where else in RAM a token arrived, if anywhere."""
        elsewhere = self._ram.find(data)
        for maddr in elsewhere:
            self._memory.write(maddr, bytes(self._size))
        return Landed(elsewhere[0] if elsewhere else None, None)

    def read(
        self, edu: Edu, iova: int, expected: Sequence[int], guesses: Sequence[int], mailbox: Mailbox | None
    ) -> Landed:
        """Read at ``iova``; without a mailbox, or if it cannot be reached, ``seen`` is ``False``.

        Only what lies in ``expected`` or ``guesses`` is recognised; ``expected`` is believed when nothing can be seen.
        """
        memory = self._memory
        places = [maddr for maddr in (*expected, *guesses) if self.is_ram(maddr)]
        before = [memory.read(maddr, self._size) for maddr in places]
        brought: dict[bytes, int] = {}
        for maddr in places:
            self._number = self._number % 0x1FF + 1
            data = token(READS, self._number)[: self._size]
            brought[data] = maddr
            memory.write(maddr, data)
        status = edu.run(edu.transfer(iova, LANDING, self._size, False), self._status)
        for maddr, old in zip(places, before):
            memory.write(maddr, old)
        if self._faulted(status):
            return Landed(None, status)
        believed = Landed(expected[0] if expected else None, None, seen=False)
        if not places or mailbox is None:
            return believed
        letter = memory.read(mailbox.maddr, self._size)
        memory.write(mailbox.maddr, _EMPTY[: self._size])
        lost = self._faulted(edu.run(edu.transfer(mailbox.iova, LANDING, self._size, True), self._status))
        got = memory.read(mailbox.maddr, self._size)
        memory.write(mailbox.maddr, letter)
        if lost:
            self._forget()
        if got == _EMPTY[: self._size]:
            return believed  # the mailbox is out of reach: by a fault, or because it translates otherwise now
        found = brought.get(got)
        if found is None:
            return self._beyond_ram(expected) or Landed(None, None)
        return Landed(found, None)

    def together(self, accesses: Sequence[tuple[Edu, int, bool, int, Mailbox]]) -> list[bool] | None:
        """Several accesses at the same moment: (device, address, write, expected place, mailbox), each device once.

        Whether each arrived; ``None`` if the unit reported a fault, which says nothing about the single accesses.  The
        expected places are RAM and no two of them overlap.
        """
        memory = self._memory
        before = [memory.read(place, self._size) for _, _, _, place, _ in accesses]
        data = []
        start: list[str] = []
        for edu, iova, write, place, _ in accesses:
            if write:
                slot = edu.next_token()
                data.append(token(edu.index, slot)[: self._size])
                start += edu.transfer(iova, 8 * slot, self._size, True)
            else:
                self._number = self._number % 0x1FF + 1
                data.append(token(READS, self._number)[: self._size])
                memory.write(place, data[-1])
                start += edu.transfer(iova, LANDING, self._size, False)
        devices = [edu for edu, _, _, _, _ in accesses]
        faulted = self._faulted(run_together(self._connection, devices, start, self._status))
        arrived = [memory.read(place, self._size) == value for (_, _, _, place, _), value in zip(accesses, data)]
        for (_, _, _, place, _), old in zip(accesses, before):
            memory.write(place, old)
        if not faulted:
            faulted = self._deliver(accesses, data, arrived)
        if faulted:
            self._forget()
            return None
        return arrived

    def _deliver(
        self, accesses: Sequence[tuple[Edu, int, bool, int, Mailbox]], data: Sequence[bytes], arrived: list[bool]
    ) -> bool:
        """Let every device that read write what it got to its mailbox; whether the unit reported a fault."""
        memory = self._memory
        readers = [at for at, access in enumerate(accesses) if not access[2]]
        if not readers:
            return False
        letters = [memory.read(accesses[at][4].maddr, self._size) for at in readers]
        start: list[str] = []
        for at in readers:
            edu, _, _, _, mailbox = accesses[at]
            start += edu.transfer(mailbox.iova, LANDING, self._size, True)
        devices = [accesses[at][0] for at in readers]
        status = run_together(self._connection, devices, start, self._status)
        for at, letter in zip(readers, letters):
            maddr = accesses[at][4].maddr
            arrived[at] = memory.read(maddr, self._size) == data[at]
            memory.write(maddr, letter)
        return self._faulted(status)
