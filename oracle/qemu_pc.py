# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's q35 machine with ``intel-iommu`` and a row of ``edu`` devices, nothing running on its processor.

No firmware runs: the "firmware" is three instructions that put the processor to sleep, and this file gives the
devices their addresses through PCI configuration space.
"""

from typing import Final

from oracle import process
from oracle.edu_machine import EduMachine
from oracle.shared_ram import SharedRam

RAM_SIZE: Final = 0x8800_0000
"""2 GiB and a bit, all of it below 4 GiB in this machine, so that frames at 1 GiB make a 1 GiB page."""
IOMMU_BASE: Final = 0xFED9_0000
FIRST_SLOT: Final = 3
FIRST_BAR: Final = 0xE000_0000
NOT_RAM: Final = range(0xA_0000, 0x10_0000)
"""Machine addresses below 1 MiB that are not RAM in a PC."""

_SLEEP: Final = bytes.fromhex("faf4ebfd").ljust(16, b"\0")
"""cli; hlt; and back to hlt: the last 16 bytes of the image, where the processor starts."""
_BIOS_SIZE: Final = 0x10000
_PACKAGE: Final = "qemu-system-x86"


class Pc(EduMachine):
    """The machine, started.  ``iommu``: properties of the intel-iommu device; ``talk``: it prints what it does."""

    def __init__(self, iommu: str, devices: int, talk: bool = False) -> None:
        program = process.find_program(("qemu-system-x86_64",), _PACKAGE, "PVIOMMU_QEMU_X86_64")
        arguments = [
            *("-machine", "q35,memory-backend=ram,sata=off,smbus=off,hpet=off,pit=off,usb=off"),
            *("-m", f"{RAM_SIZE >> 20}M"),
            *("-device", f"intel-iommu,intremap=off,{iommu}"),
        ]
        if talk:
            arguments += ["-trace", "vtd_*"]
        firmware = bytes(_BIOS_SIZE - 16) + _SLEEP
        super().__init__(program, SharedRam(RAM_SIZE), firmware, arguments, FIRST_SLOT, devices, FIRST_BAR)

    def _config(self, sid: int, offset: int, value: int | None) -> int:
        """Configuration space through ports CF8h and CFCh."""
        select = f"outl 0xcf8 {0x8000_0000 | sid << 8 | offset:#x}\n"
        access = "inl 0xcfc\n" if value is None else f"outl 0xcfc {value:#x}\n"
        return self.connection.ask((select, access))[1]
