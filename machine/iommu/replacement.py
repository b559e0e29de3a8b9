# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a cache may remember: replacement policies, all of them within what the manuals allow.

A cache may drop any entry at any time, and may keep any entry until a command names it.  Software is correct only
if it works with every policy between those two, so a unit takes one as a value: the most stale shows missing
invalidations, the eager one shows software that leans on what is cached, the random one what lies between.

``None`` in place of a policy is :data:`MOST_STALE`, and costs nothing.
"""

from itertools import islice
from typing import Any, Final, Protocol


class Replacement(Protocol):
    """Decides what goes when something is about to be cached.  One object may serve several caches."""

    def victims(self, size: int) -> tuple[int, ...] | None:
        """Which of ``size`` entries to drop before another is added; ``None``: do not keep the new one either.

        Entries are numbered from 0 in the order in which the cache enumerates them, oldest first as far as the
        cache knows.  Positions are given in descending order.
        """
        ...

    def save(self) -> Any:
        """What :meth:`restore` needs to decide the same again."""
        ...

    def restore(self, state: Any) -> None: ...


def make_room(entries: dict[Any, Any], replacement: Replacement | None) -> bool:
    """Drop from ``entries`` what the policy wants gone before another is added; whether to add it."""
    if replacement is None:
        return True
    victims = replacement.victims(len(entries))
    for position in victims or ():
        del entries[next(islice(entries, position, None))]
    return victims is not None


MOST_STALE: Final[Replacement | None] = None
"""Keep everything until a command drops it, the most hostile cache that the manuals allow."""


class Oldest:
    """Room for ``capacity`` entries; the oldest makes way.  0 keeps nothing."""

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"a cache of {capacity} entries")
        self.capacity: Final = capacity

    def victims(self, size: int) -> tuple[int, ...] | None:
        if size < self.capacity:
            return ()
        return (0,) if self.capacity else None

    def save(self) -> Any:
        return None

    def restore(self, state: Any) -> None:
        pass


class Eager(Oldest):
    """Forgets at the first chance: every request reads the tables as they are now."""

    def __init__(self) -> None:
        super().__init__(0)


class Random:
    """Keeps what is new three times out of four, and forgets one old entry half of the time; by ``seed``.

    The sequence is a 64-bit linear congruential generator (Knuth's MMIX constants), so that a seed means the same
    in every version of Python and the state is one int.
    """

    def __init__(self, seed: int, capacity: int = 1024) -> None:
        if capacity < 1:
            raise ValueError(f"a cache of {capacity} entries")
        self._capacity: Final = capacity
        self._state = seed & _MASK

    def victims(self, size: int) -> tuple[int, ...] | None:
        self._state = state = self._state * 6364136223846793005 + 1442695040888963407 & _MASK
        draw = state >> 32
        if not draw & 3:
            return None
        if size and (size >= self._capacity or draw & 4):
            return ((draw >> 3) % size,)
        return ()

    def save(self) -> Any:
        return self._state

    def restore(self, state: Any) -> None:
        self._state = state


_MASK: Final = (1 << 64) - 1


def parse(text: str) -> Replacement | None:
    """The policy that ``text`` names: ``stale``, ``eager``, ``oldest:N`` or ``random:SEED``; else ``ValueError``."""
    name, _, number = text.partition(":")
    if name == "stale" and not number:
        return MOST_STALE
    if name == "eager" and not number:
        return Eager()
    if name in ("oldest", "random") and number.isdecimal():
        return Oldest(int(number)) if name == "oldest" else Random(int(number))
    raise ValueError(f"{text!r} is no replacement policy; there are: stale, eager, oldest:N, random:SEED")
