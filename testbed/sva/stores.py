# SPDX-License-Identifier: GPL-2.0-or-later
"""What hardware can see of a 64-byte entry while software changes it.

Software stores 64-bit words and, now and then, waits until the unit has fetched anew.  Between two such waits a fetch
may take each word before or after its store, whatever the order of the stores: the unit reads an entry in pieces, and
the last piece first if it likes.  So all subsets of the stores of a round are possible sights, the prefixes among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from guest_driver.port import GuestRam

WORDS: Final = 8
ENTRY_BYTES: Final = 64
Entry = tuple[int, ...]
SYNC: Final = "sync"


class Store(NamedTuple):
    """One 64-bit store to an entry."""

    address: int
    """Of the entry."""
    word: int
    before: int
    after: int


Event = Store | str
"""A store, or :data:`SYNC`."""


class StoreLog:
    """Guest memory that notes 64-bit stores.  ``after`` is called with each of them when it has happened."""

    def __init__(self, ram: GuestRam) -> None:
        self._ram: Final = ram
        self.pages = ram.pages
        self.xen_pv_domain = ram.xen_pv_domain
        self.linear: Final = ram.linear
        self.pfn_to_gfn: Final = ram.pfn_to_gfn
        self.read: Final = ram.read
        self.events: list[Event] = []
        self.after: Callable[[Store], None] | None = None

    def write(self, paddr: int, data: bytes) -> None:
        if len(data) != 8 or paddr & 7:
            self._ram.write(paddr, data)
            return
        before = int.from_bytes(self._ram.read(paddr, 8), "little")
        self._ram.write(paddr, data)
        entry = paddr & -ENTRY_BYTES
        store = Store(entry, (paddr - entry) >> 3, before, int.from_bytes(data, "little"))
        self.events.append(store)
        if self.after is not None:
            self.after(store)

    def sync(self) -> None:
        """Hardware was told to forget, and did."""
        self.events.append(SYNC)

    def entry(self, address: int) -> Entry:
        raw = self.read(address, ENTRY_BYTES)
        return tuple(int.from_bytes(raw[8 * k : 8 * k + 8], "little") for k in range(WORDS))


def rounds(events: Sequence[Event], address: int) -> list[list[Store]]:
    """The stores to the entry at ``address``, split where hardware was waited for; no empty rounds."""
    found: list[list[Store]] = [[]]
    for event in events:
        if not isinstance(event, Store):
            found.append([])
        elif event.address == address:
            found[-1].append(event)
    return [stores for stores in found if stores]


def before(events: Sequence[Event], address: int, now: Entry) -> Entry:
    """What the entry was before ``events``, given what it is now."""
    words = list(now)
    for event in reversed(events):
        if isinstance(event, Store) and event.address == address:
            words[event.word] = event.before
    return tuple(words)


def sights(old: Entry, stored: Sequence[Sequence[Store]]) -> Iterator[Entry]:
    """Every entry that a fetch may have read while the rounds ``stored`` went over ``old``, with repetitions."""
    base = list(old)
    yield tuple(base)
    for stores in stored:
        for subset in range(1, 1 << len(stores)):
            words = base[:]
            for k, store in enumerate(stores):
                if subset >> k & 1:
                    words[store.word] = store.after
            yield tuple(words)
        for store in stores:
            base[store.word] = store.after


def prefixes(old: Entry, stored: Sequence[Sequence[Store]]) -> Iterator[Entry]:
    """What memory holds after each single store."""
    words = list(old)
    yield tuple(words)
    for stores in stored:
        for store in stores:
            words[store.word] = store.after
            yield tuple(words)
