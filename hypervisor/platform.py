# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine as the hypervisor finds it at boot: RAM, a bus, PCI, and what firmware says about the IOMMUs."""

from dataclasses import dataclass

from machine.firmware import Firmware
from machine.interrupts import MessageInterrupts
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus
from machine.pci import PciTopology


@dataclass(frozen=True, slots=True)
class Platform:
    """Handed to the hypervisor once, by whoever builds the machine."""

    memory: PhysicalMemory
    bus: SystemBus
    pci: PciTopology
    firmware: Firmware
    interrupts: MessageInterrupts
    """Where this host's own message interrupts arrive."""
    doorbell: int
    """Machine address that a unit writes to raise one."""
