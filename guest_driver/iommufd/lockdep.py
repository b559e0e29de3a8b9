# SPDX-License-Identifier: GPL-2.0-or-later
"""The order in which iommufd's locks nest, stated once and checked at every acquisition.

ioas->mutex, then igroup->lock, then the I/O page table's domains_rwsem, then iova_rwsem, then pages->mutex.  Nothing
runs in parallel here; taking a lock of an earlier rank while holding a later one is a WARN all the same, because on
the real thing another thread would do it the other way round.
"""

from __future__ import annotations

from typing import Final

from guest_driver.linux.printk import Printk

ORDER: Final = ("ioas->mutex", "igroup->lock", "domains_rwsem", "iova_rwsem", "pages->mutex")
"""Outermost first."""
_RANK: Final = {name: rank for rank, name in enumerate(ORDER)}


class _Hold:
    """A lock for the length of a block; a class, because every ioctl passes through several."""

    __slots__ = ("_instance", "_lockdep", "_name")

    def __init__(self, lockdep: Lockdep, name: str, instance: object) -> None:
        self._lockdep = lockdep
        self._name = name
        self._instance = instance

    def __enter__(self) -> None:
        held = self._lockdep.held
        if held:
            self._lockdep.check(self._name, self._instance)
        held.append((self._name, self._instance))

    def __exit__(self, *error: object) -> None:
        self._lockdep.held.pop()


class Lockdep:
    """The locks that the current thread holds."""

    __slots__ = ("_printk", "held")

    def __init__(self, printk: Printk) -> None:
        self._printk = printk
        self.held: list[tuple[str, object]] = []

    def hold(self, name: str, instance: object) -> _Hold:
        """Hold lock ``name`` of ``instance`` for the block."""
        return _Hold(self, name, instance)

    def check(self, name: str, instance: object) -> None:
        """WARN if ``name`` must not be taken with what is held."""
        rank = _RANK[name]
        for other, owner in self.held:
            wrong = _RANK[other] > rank or (other == name and owner is instance)
            self._printk.warn_on(wrong, f"{name} taken while holding {other}")

    def assert_held(self, name: str, instance: object) -> None:
        missing = not any(other == name and owner is instance for other, owner in self.held)
        self._printk.warn_on(missing, f"{name} must be held here")
