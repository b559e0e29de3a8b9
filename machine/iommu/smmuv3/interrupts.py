# SPDX-License-Identifier: GPL-2.0-or-later
"""Global errors and interrupts (IHI 0070, 3.18 and 7.5).

An error is active while its bit of GERROR differs from the one in GERRORN: hardware toggles the first to
raise it, software the second to acknowledge it.  Interrupts are edges: a wired output pulses and, where an
address is configured, a 32-bit message is written.  A message to an address where nothing answers raises the
global error of its source.
"""

from collections.abc import Callable
from typing import Final

from machine.iommu.smmuv3.registers import (
    GERROR,
    GERROR_IRQ_CFG0,
    GERROR_IRQ_CFG1,
    GERROR_IRQEN,
    GERRORN,
    IRQ_CTRL,
    RegisterFile,
)
from machine.mmio import SystemBus

CMDQ_ERR: Final = 1 << 0
EVENTQ_ABT_ERR: Final = 1 << 2
PRIQ_ABT_ERR: Final = 1 << 3
MSI_CMDQ_ABT_ERR: Final = 1 << 4
MSI_EVENTQ_ABT_ERR: Final = 1 << 5
MSI_PRIQ_ABT_ERR: Final = 1 << 6
MSI_GERROR_ABT_ERR: Final = 1 << 7

Wire = Callable[[str], None]
"""Called with the name of the output that pulses: ``eventq``, ``priq``, ``gerror``, ``cmdq-sync`` or ``sev``."""


class Interrupts:
    """The unit's interrupt outputs and its global error register."""

    def __init__(self, bus: SystemBus, registers: RegisterFile, wire: Wire | None) -> None:
        self._bus: Final = bus
        self._memory: Final = bus.memory
        self._registers: Final = registers
        self._wire: Final = wire

    def activate(self, error: int) -> None:
        """Raise a global error unless it is already active."""
        words = self._registers.words
        if (words[GERROR] ^ words[GERRORN]) & error:
            return
        words[GERROR] ^= error
        if error != MSI_GERROR_ABT_ERR and words[IRQ_CTRL] & GERROR_IRQEN:
            address = self._registers.read64(GERROR_IRQ_CFG0)
            self.signal("gerror", address, words[GERROR_IRQ_CFG1], MSI_GERROR_ABT_ERR)

    def is_active(self, error: int) -> bool:
        words = self._registers.words
        return bool((words[GERROR] ^ words[GERRORN]) & error)

    def pulse(self, output: str) -> None:
        """Pulse a wired output."""
        if self._wire is not None:
            self._wire(output)

    def signal(self, output: str, address: int, data: int, error: int) -> None:
        """Pulse ``output`` and, if ``address`` is not zero, send ``data`` there; ``error`` if that aborts."""
        if self._wire is not None:
            self._wire(output)
        if not address:
            return
        if address + 4 <= self._memory.size:
            self._memory.write(address, data.to_bytes(4, "little"))
        elif self._bus.is_mmio(address):
            self._bus.dma_write(address, data.to_bytes(4, "little"))
        else:
            self.activate(error)
