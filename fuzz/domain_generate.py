# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of random programs that is about several domains: who calls, and what the toolstack does.

Most programs are dom0's alone and stay as quick as they are; :data:`SHARE` of them have guests.
"""

import random
from dataclasses import dataclass, field
from typing import Final

from fuzz.numbers import DEVICES, PAGES
from fuzz.verbs import MOST_DOMAINS, Op

SHARE: Final = 0.07
"""Of the programs, how many have guests."""
WEIGHTS: Final = {
    "as": 4,
    "create_domain": 1.2,
    "destroy_domain": 1,
    "assign": 3,
    "deassign": 1,
    "add_device": 0.7,
    "remove_device": 0.7,
}

_ASKED: Final[tuple[Op, ...]] = (
    ("noop", "plain", 0),
    ("query", "plain", 0),
    ("alloc", 0, "plain", 0),
    ("map", 1, ("ram", 9), 0x10, 1, 3, 0x1000, "plain", 0),
    ("free", 1, 1, "plain", 0),
)
"""What is tried on behalf of a domain that has no IOMMU, or whose end has begun."""

Mapped = tuple[int, int, int, tuple[str, int], int]
"""(context, dfn, pages, frame, access)."""


@dataclass(slots=True)
class Known:
    """What a generator knows of a domain."""

    pages: int = PAGES
    arena: int | None = None
    """log2 of the pages that it may reserve, for a guest that has not set PV-IOMMU up."""
    contexts: list[int] = field(default_factory=list)
    mapped: list[Mapped] = field(default_factory=list)
    """What was probably mapped, newest last."""


class DomainMaker:
    """Operations about domains; what is known of each."""

    def __init__(self, rng: random.Random, *, sets_up: bool) -> None:
        """``sets_up``: the interface has init and remote_cmd."""
        self._rng: Final = rng
        self._sets_up: Final = sets_up
        self.known: Final[dict[int, Known]] = {}
        self.caller = 0
        self._ended: list[int] = []
        self._owners: dict[str, int] = {}

    def begin(self) -> None:
        """A program begins, dom0's alone."""
        self.known.clear()
        self.known[0] = Known()
        self.caller = 0
        self._ended = []
        self._owners = dict.fromkeys(DEVICES, 0)

    @property
    def here(self) -> Known:
        """The domain that calls."""
        return self.known[self.caller]

    @property
    def has_guests(self) -> bool:
        return len(self.known) > 1

    def any(self) -> int:
        """A domain that is there, that was, or (seldom) never was."""
        rng = self._rng
        draw = rng.random()
        if draw < 0.15 and self._ended:
            return rng.choice(self._ended)
        return rng.randrange(MOST_DOMAINS) if draw > 0.97 else rng.choice(tuple(self.known))

    def page(self) -> tuple[str, int]:
        """A page of some domain's, by its number."""
        number = self._rng.choice(tuple(self.known))
        return f"d{number}", 8 + self._rng.randrange(self.known[number].pages - 8)

    def make(self, verb: str) -> list[Op]:
        """Operations in their order; the first is ``verb``, or what has to come before it."""
        rng = self._rng
        if verb == "create_domain" or not self.has_guests:
            return self._create()
        if verb == "as":
            return self._as()
        if verb == "destroy_domain":
            return self._destroy()
        device = rng.choice(DEVICES)
        if verb == "assign":
            self._owners[device] = number = self.any()
            return [("assign", device, number)]
        if verb == "deassign":
            return [("deassign", device, self._owners[device] if rng.random() < 0.9 else self.any())]
        if verb == "add_device":
            return [(verb, device, rng.choice((0, 0, 1, 2, 9)))]
        back = [("add_device", device, rng.choice((0, 0, 1, 9)))] if rng.random() < 0.4 else []
        again = [("assign", device, self.any())] if rng.random() < 0.3 else []
        return [(verb, device), *back, *again]

    def _create(self) -> list[Op]:
        rng = self._rng
        free = [number for number in range(1, MOST_DOMAINS) if number not in self.known]
        number = rng.choice(free) if free and rng.random() < 0.95 else rng.randrange(MOST_DOMAINS)
        pages, arena = rng.choice((16, 64, 64, 512, 512)), rng.choice((2, 4, 4, 6))
        iommu = "no" if rng.random() < 0.2 else "yes"
        ops: list[Op] = [("create_domain", number, pages, rng.choice(("hvm", "hvm", "pv")), arena, iommu)]
        if rng.random() < 0.1:
            ops.insert(0, ("fail", 1 + rng.randrange(8), rng.choice((0, 0, 1))))
        if number and number in free:
            self.known[number] = Known(pages, arena)
            if rng.random() < 0.7:
                device = rng.choice(DEVICES)
                self._owners[device] = number
                ops.append(("assign", device, number))
            if iommu == "no":
                ops += self._ask(number)
        return ops

    def _as(self) -> list[Op]:
        rng = self._rng
        self.caller = rng.choice(tuple(self.known))
        here = self.here
        ops: list[Op] = [("as", self.caller)]
        if here.arena is not None and self._sets_up:
            if rng.random() < 0.25:
                ops.append(("init", 4, here.arena + rng.choice((1, 2)), "plain", 0))
            ops.append(("init", rng.choice((2, 4)), rng.choice((here.arena, here.arena, 2)), "plain", 0))
            ops.append(("alloc", 0, "plain", 0))
            here.arena = None
            here.contexts.append(1)
        return ops

    def _destroy(self) -> list[Op]:
        rng = self._rng
        guests = [number for number in self.known if number]
        return self.end(rng.choice(self._ended) if self._ended and rng.random() < 0.3 else rng.choice(guests))

    def end(self, number: int) -> list[Op]:
        """The end of a guest, or another try at it."""
        rng = self._rng
        ops: list[Op] = [("destroy_domain", number, rng.choice((0, 0, 1, 1, 2, 3)))]
        known = self.known.pop(number, None)
        if known is not None:
            self._ended.append(number)
            if rng.random() < 0.25:
                ops.insert(0, ("fail", 0, 1 + rng.randrange(2)))
            if known.contexts and known.pages >= 512 and rng.random() < 0.5:
                ops[:0] = self._many_pages(number, known.contexts[0])
                self.caller = 0
            if self.caller == number:
                self.caller = 0
        return ops + self._ask(number)

    def _ask(self, number: int) -> list[Op]:
        """Sometimes a call on behalf of a domain for which there should be none."""
        rng = self._rng
        return [("remote", number), rng.choice(_ASKED)] if self._sets_up and rng.random() < 0.6 else []

    def _many_pages(self, number: int, context: int) -> list[Op]:
        """More than what one pass of the domain's end takes away."""
        at = self._rng.choice((1, 0x1001))
        maps = [("map", context, ("ram", 8), at + 600 * k, 500, 3, 0x1000, "plain", 0) for k in range(5)]
        return [("as", number), *maps]
