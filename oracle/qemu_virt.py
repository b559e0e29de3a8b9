# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's Arm ``virt`` machine with its SMMUv3 and a row of ``edu`` devices, nothing running on its processor.

RAM begins at 1 GiB: the first GiB of it is for frames that programs map, what follows for tables.
"""

import functools
import os
import subprocess
from typing import Final

from oracle import process
from oracle import qtest as line
from oracle.edu import Edu, plug_in
from oracle.qtest import Qtest, image
from oracle.shared_ram import SharedRam

RAM_START: Final = 0x4000_0000
RAM_SIZE: Final = 0x4800_0000
SMMU_BASE: Final = 0x0905_0000
ECAM: Final = 0x3F00_0000
"""PCI configuration space, with ``highmem=off``."""
FIRST_SLOT: Final = 1
FIRST_BAR: Final = 0x1000_0000
BAR_STEP: Final = 0x10_0000

STAGES: Final = {1: "1", 2: "2", 3: "nested"}
"""What a QEMU that can choose calls its SMMUs."""

_SLEEP: Final = bytes.fromhex("7f2003d5") + bytes.fromhex("ffffff17")
"""wfi, and back to it: the start of the image, where the processor starts."""
_PACKAGE: Final = "qemu-system-arm"


def program() -> str:
    """Path of QEMU for Arm."""
    return process.find_program(("qemu-system-aarch64",), _PACKAGE, "PVIOMMU_QEMU_AARCH64")


@functools.cache
def stages(found: str) -> tuple[int, ...]:
    """What the SMMU of the QEMU at ``found`` can be: 1, 2, 3 (nested).  Those that cannot choose have stage 1 only."""
    asked = subprocess.run([found, "-device", "arm-smmuv3,help"], capture_output=True, text=True, check=False)
    return (1, 2, 3) if "stage=" in asked.stdout else (1,)


class Virt:
    """The machine, started.  ``stage``: see :data:`STAGES`; ``talk``: the model prints what it does."""

    def __init__(self, stage: int, devices: int, talk: bool = False) -> None:
        found = program()
        if stage not in stages(found):
            raise process.ModelMissing(f"{found} has an SMMUv3 with stage 1 only; stage 2 and nesting came with QEMU 9")
        self.ram: Final = SharedRam(RAM_SIZE, RAM_START)
        firmware = image(_SLEEP + bytes(4096 - len(_SLEEP)))
        arguments = [
            *("-machine", "virt,iommu=smmuv3,highmem=off,memory-backend=ram"),
            *("-cpu", "cortex-a57", "-m", f"{RAM_SIZE >> 20}M"),
            *("-accel", "tcg", "-icount", "shift=0,sleep=off,align=off"),
            *("-bios", f"/proc/{os.getpid()}/fd/{firmware}"),
        ]
        if len(stages(found)) > 1:
            arguments += ["-global", f"arm-smmuv3.stage={STAGES[stage]}"]
        if talk:
            arguments += ["-trace", "smmu*"]
        slots = range(FIRST_SLOT, FIRST_SLOT + devices)
        for slot in slots:
            arguments += ["-device", f"edu,addr={slot:02x}.0,dma_mask=0xffffffffffffffff"]
        self.devices: Final[dict[int, Edu]] = {}
        """By requester id, which is the stream id."""
        try:
            self.connection: Final = Qtest(found, arguments, self.ram)
        except BaseException:
            self.ram.close()
            raise
        try:
            for index, slot in enumerate(slots):
                sid = slot << 3
                bar = FIRST_BAR + index * BAR_STEP
                self.devices[sid] = plug_in(self.connection, self._config, self.ram.memory, sid, index, bar)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(firmware)

    def _config(self, sid: int, offset: int, value: int | None) -> int:
        """Configuration space in memory (ECAM)."""
        address = ECAM + (sid << 12) + offset
        return self.connection.ask((line.read(address, 4) if value is None else line.write(address, 4, value),))[0]

    def close(self) -> None:
        """End the process and give its RAM back."""
        self.connection.close()
        self.ram.close()
