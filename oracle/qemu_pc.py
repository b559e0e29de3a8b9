# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's q35 machine with ``intel-iommu`` and a row of ``edu`` devices, nothing running on its processor.

No firmware runs: the "firmware" is three instructions that put the processor to sleep, and this file gives the
devices their addresses through PCI configuration space.
"""

import os
from typing import Final

from base.units import make_sbdf
from oracle import process
from oracle.edu import EDU_ID, Edu
from oracle.qtest import Qtest
from oracle.shared_ram import SharedRam

RAM_SIZE: Final = 0x8800_0000
"""2 GiB and a bit, all of it below 4 GiB in this machine, so that frames at 1 GiB make a 1 GiB page."""
IOMMU_BASE: Final = 0xFED9_0000
FIRST_SLOT: Final = 3
FIRST_BAR: Final = 0xE000_0000
BAR_STEP: Final = 0x10_0000
NOT_RAM: Final = range(0xA_0000, 0x10_0000)
"""Machine addresses below 1 MiB that are not RAM in a PC."""

_SLEEP: Final = bytes.fromhex("faf4ebfd")
"""cli; hlt; and back to hlt."""
_BIOS_SIZE: Final = 0x10000
_PACKAGE: Final = "qemu-system-x86"


class Pc:
    """The machine, started.  ``iommu``: properties of the intel-iommu device; ``talk``: it prints what it does."""

    def __init__(self, iommu: str, devices: int, talk: bool = False) -> None:
        program = process.find_program(("qemu-system-x86_64",), _PACKAGE, "PVIOMMU_QEMU_X86_64")
        self.ram: Final = SharedRam(RAM_SIZE)
        bios = os.memfd_create("pviommu-bios")
        try:
            os.write(bios, bytes(_BIOS_SIZE - 16) + _SLEEP + bytes(16 - len(_SLEEP)))
            arguments = [
                *("-machine", "q35,memory-backend=ram,sata=off,smbus=off,hpet=off,pit=off,usb=off"),
                *("-m", f"{RAM_SIZE >> 20}M"),
                *("-accel", "tcg", "-icount", "shift=0,sleep=off,align=off"),
                *("-bios", f"/proc/{os.getpid()}/fd/{bios}"),
                *("-device", f"intel-iommu,intremap=off,{iommu}"),
            ]
            if talk:
                arguments += ["-trace", "vtd_*"]
            for slot in range(FIRST_SLOT, FIRST_SLOT + devices):
                arguments += ["-device", f"edu,addr={slot:02x}.0,dma_mask=0xffffffffffffffff"]
            self.connection: Final = Qtest(program, arguments, self.ram)
            try:
                self.devices: Final[dict[int, Edu]] = {}
                """By requester id."""
                for index in range(devices):
                    self._plug(index)
            except BaseException:
                self.connection.close()
                raise
        except BaseException:
            self.ram.close()
            raise
        finally:
            os.close(bios)

    def _plug(self, index: int) -> None:
        """Give device ``index`` its registers and the right to issue DMA, and fill its buffer."""
        sbdf = make_sbdf(0, 0, FIRST_SLOT + index, 0)
        found = self._config(sbdf, 0x00)
        if found != EDU_ID:
            raise process.ModelDied(f"expected an edu device, configuration space says {found:#x}")
        bar = FIRST_BAR + index * BAR_STEP
        self._config(sbdf, 0x10, bar)
        self._config(sbdf, 0x04, 6)  # memory space, bus master
        edu = Edu(self.connection, index, bar)
        scratch = 0x10_0000
        content = edu.tokens()
        self.ram.memory.write(scratch, content)
        edu.load(scratch)
        self.ram.memory.write(scratch, bytes(len(content)))
        self.devices[sbdf] = edu

    def _config(self, sbdf: int, offset: int, value: int | None = None) -> int:
        """Read or write 32 bits of configuration space through ports CF8h and CFCh."""
        select = f"outl 0xcf8 {0x8000_0000 | (sbdf & 0xFFFF) << 8 | offset:#x}\n"
        access = "inl 0xcfc\n" if value is None else f"outl 0xcfc {value:#x}\n"
        return self.connection.ask((select, access))[1]

    def close(self) -> None:
        """End the process and give its RAM back."""
        self.connection.close()
        self.ram.close()
