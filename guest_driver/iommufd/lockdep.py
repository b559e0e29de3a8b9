# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which iommufd's locks nest, stated once and checked at every acquisition.

ioas->mutex, then igroup->lock, then the I/O page table's domains_rwsem, then iova_rwsem, then pages->mutex.  Nothing
runs in parallel here; taking a lock of an earlier rank while holding a later one is a WARN all the same, because on
the real thing another thread would do it the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from guest_driver.linux.printk import Printk

ORDER: Final = ("ioas->mutex", "igroup->lock", "domains_rwsem", "iova_rwsem", "pages->mutex")
"""Outermost first."""
_RANK: Final = {name: rank for rank, name in enumerate(ORDER)}


class Lockdep:
    """The locks that the current thread holds."""

    __slots__ = ("_printk", "held")

    def __init__(self, printk: Printk) -> None:
        self._printk = printk
        self.held: list[tuple[str, object]] = []

    @contextmanager
    def hold(self, name: str, instance: object) -> Iterator[None]:
        """Hold lock ``name`` of ``instance`` for the block."""
        for other, owner in self.held:
            wrong = _RANK[other] > _RANK[name] or (other == name and owner is instance)
            self._printk.warn_on(wrong, f"{name} taken while holding {other}")
        self.held.append((name, instance))
        try:
            yield
        finally:
            self.held.pop()

    def assert_held(self, name: str, instance: object) -> None:
        missing = not any(other == name and owner is instance for other, owner in self.held)
        self._printk.warn_on(missing, f"{name} must be held here")
