# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks of code that runs on one thread: who holds what is checked, and letting go is a place where others may run.

``Kernel.unlocked`` is that place.  A test that wants to know what another CPU could have seen, or done, between two
critical sections puts a function there; nothing is there otherwise.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from guest_driver.linux.kernel import Kernel


class Mutex:
    """One lock; taking it twice, or needing it without holding it, is a WARN."""

    __slots__ = ("_kernel", "held", "name")

    def __init__(self, name: str, kernel: Kernel) -> None:
        self.name: Final = name
        self._kernel: Final = kernel
        self.held = False

    def __enter__(self) -> None:
        self._kernel.printk.warn_on(self.held, f"{self.name} taken twice")
        self.held = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held = False
        if self._kernel.unlocked is not None:
            self._kernel.unlocked(self)

    def assert_held(self) -> None:
        """lockdep_assert_held."""
        self._kernel.printk.warn_on(not self.held, f"{self.name} must be held here")
