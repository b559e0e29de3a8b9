# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks that posted code leaves held: the next one to take them waits for ever.

Only what goes wrong is modelled: a lock that is taken and released in one step never shows.
"""

from typing import Final

from hypervisor.errors import XenBug, XenDeadlock


class LeakedLocks:
    """Locks by name, with who never released them."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self.debug_build = False
        """Whether Xen's own assertions notice, on the way back to the guest, that a lock is still held."""

    @property
    def held(self) -> dict[str, str]:
        return dict(self._held)

    def leak(self, lock: str, holder: str) -> None:
        """``holder`` returns without releasing ``lock``."""
        if self.debug_build:
            raise XenBug(f"assertion on the preemption count: {holder} returns to the guest with {lock} held")
        self._held[lock] = holder

    def take(self, lock: str, who: str) -> None:
        """``who`` takes the lock and releases it again; :class:`XenDeadlock` if it was leaked."""
        holder = self._held.get(lock)
        if holder is not None:
            raise XenDeadlock(f"{who} waits for {lock}, which {holder} took and never released")

    def save(self) -> object:
        return dict(self._held)

    def restore(self, state: object) -> None:
        assert isinstance(state, dict)
        self._held = dict(state)


DOMAIN: Final = "the domain's IOMMU lock"
UNIT: Final = "the unit's lock"
