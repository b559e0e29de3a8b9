# SPDX-License-Identifier: GPL-2.0-or-later
"""The choices that a generator makes for every operation: which context, which place, which frame, how many pages."""

import random
from typing import Final

from fuzz.domain_generate import DomainMaker, Mapped
from fuzz.numbers import CONTIGUOUS, COUNTS, FAR, PAGES


class Choices:
    """Random choices that know what exists; equal seeds give equal choices."""

    def __init__(self, limited: int | None, seed: int, *, sets_up: bool = True) -> None:
        """``limited``: most pages of one call, ``None`` for no limit; ``sets_up``: as for
        :class:`fuzz.domain_generate.DomainMaker`."""
        self._rng: Final = random.Random(seed)
        self._limited: Final = limited
        self._domains: Final = DomainMaker(self._rng, sets_up=sets_up)
        self._contexts: list[int] = []
        self._mapped: list[Mapped] = []
        """What the calling domain probably mapped, newest last."""
        self._pages = PAGES
        """Of the calling domain."""
        self._base = 0
        self._wild = 0.0
        """How often a number is one of those at which code goes wrong."""

    def _below(self, bound: int) -> int:
        return int(self._rng.random() * bound)

    def _pick(self, values: tuple[int, ...]) -> int:
        return values[int(self._rng.random() * len(values))]

    def _is_wild(self) -> bool:
        return self._wild > 0 and self._rng.random() < self._wild

    def _arg(self) -> tuple[str, int]:
        """Where the struct lies, and whether one of its holes is dirty."""
        if not self._is_wild():
            return "plain", 0
        return self._rng.choice(("split", "readonly", "unmapped", "noncanonical", "plain")), self._below(3)

    def _ctx(self) -> int:
        contexts = self._contexts
        if not contexts or self._is_wild():
            return self._pick((0, 1, 2, 3, 5, 255, 256, 0xFFFE, 0xFFFF))
        if self._rng.random() < 0.6:
            return contexts[0]
        return contexts[int(self._rng.random() * len(contexts))]

    def _somewhere(self) -> int:
        """A device frame that may mean something."""
        draw = self._rng.random()
        if self._mapped and draw < 0.7:
            _, at, pages, _, _ = self._mapped[int(self._rng.random() ** 2 * len(self._mapped)) - 1]
            return at + (self._below(pages + 1) if draw < 0.5 else 0)
        if self._is_wild():
            return self._pick(FAR)
        return self._base + self._pick((0, 0, 1, 2, 3, 7, 8, 255, 256, 511, 512, 513, 516, 768, 1023))

    def _frame(self) -> tuple[str, int]:
        draw = self._rng.random()
        if self._domains.has_guests:
            if draw > 0.85 and self._rng.random() < 0.7:
                return self._domains.page()
            if self._pages < PAGES and draw < 0.85:
                return "ram", self._below(self._pages)
        if draw < 0.45:
            return "ram", self._pick((0, 0, 512, 512, 1, 256, 8, 9, 511))
        if draw < 0.8:
            return "ram", self._below(CONTIGUOUS)
        if draw < 0.95:
            return "ram", self._below(PAGES)
        space = self._rng.choice(("mmio", "rmrr", "rmrr", "xen", "gfn", "gfn") if self._wild else ("mmio", "rmrr"))
        return space, self._pick(FAR) if space == "gfn" else self._below(6 if space == "rmrr" else 600)

    def _count(self) -> int:
        draw = self._rng.random()
        if draw < 0.45:
            return 1
        if draw < 0.8:
            return 1 + self._below(16)
        if self._is_wild():
            return self._pick(COUNTS)
        return (
            self._pick((32, 64, 128, 255, 256, 256))
            if self._limited or draw < 0.95
            else self._pick((512, 512, 513, 600, 1024))
        )
