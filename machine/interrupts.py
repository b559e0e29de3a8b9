# SPDX-License-Identifier: GPL-2.0-or-later
"""Message-signalled interrupts: a 32-bit write to a doorbell, delivered to whoever listens for its data.

On x86 the doorbell is the window 0xFEE0_0000..0xFEEF_FFFF, on Arm the translation register of a GIC ITS.
"""

from collections.abc import Callable
from typing import Final, cast

X86_DOORBELL_BASE: Final = 0xFEE0_0000
X86_DOORBELL_SIZE: Final = 0x10_0000
ITS_DOORBELL_PAGE: Final = 0x0_E009_0000
"""Machine address of the page that holds GITS_TRANSLATER in this machine's memory map."""
ITS_DOORBELL_OFFSET: Final = 0x40


class MessageInterrupts:
    """A register block whose 4-byte writes are interrupts; reads give zero."""

    def __init__(self) -> None:
        self.delivered = 0
        self.spurious = 0
        self._handlers: Final[dict[int, Callable[[], None]]] = {}

    def connect(self, data: int, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever a message carrying ``data`` arrives."""
        self._handlers[data] = handler

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        handler = self._handlers.get(value) if size == 4 else None
        if handler is None:
            self.spurious += 1
            return
        self.delivered += 1
        handler()

    def save(self) -> object:
        """Counts and connections, for :meth:`restore`."""
        return (self.delivered, self.spurious, dict(self._handlers))

    def restore(self, state: object) -> None:
        self.delivered, self.spurious, handlers = cast("tuple[int, int, dict[int, Callable[[], None]]]", state)
        self._handlers.clear()
        self._handlers.update(handlers)
