# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's Arm ``virt`` machine with its SMMUv3 and a row of ``edu`` devices, nothing running on its processor.

RAM begins at 1 GiB: the first GiB of it is for frames that programs map, what follows for tables.
"""

import functools
import subprocess
from typing import Final

from oracle import process
from oracle import qtest as line
from oracle.edu_machine import EduMachine
from oracle.shared_ram import SharedRam

RAM_START: Final = 0x4000_0000
RAM_SIZE: Final = 0x4800_0000
SMMU_BASE: Final = 0x0905_0000
ECAM: Final = 0x3F00_0000
"""PCI configuration space, with ``highmem=off``."""
FIRST_SLOT: Final = 1
FIRST_BAR: Final = 0x1000_0000

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


class Virt(EduMachine):
    """The machine, started.  ``stage``: see :data:`STAGES`; ``talk``: the model prints what it does."""

    def __init__(self, stage: int, devices: int, talk: bool = False) -> None:
        found = program()
        if stage not in stages(found):
            raise process.ModelMissing(f"{found} has an SMMUv3 with stage 1 only; stage 2 and nesting came with QEMU 9")
        arguments = [
            *("-machine", "virt,iommu=smmuv3,highmem=off,memory-backend=ram"),
            *("-cpu", "cortex-a57", "-m", f"{RAM_SIZE >> 20}M"),
        ]
        if len(stages(found)) > 1:
            arguments += ["-global", f"arm-smmuv3.stage={STAGES[stage]}"]
        if talk:
            arguments += ["-trace", "smmu*"]
        firmware = _SLEEP.ljust(4096, b"\0")
        super().__init__(found, SharedRam(RAM_SIZE, RAM_START), firmware, arguments, FIRST_SLOT, devices, FIRST_BAR)

    def _config(self, sid: int, offset: int, value: int | None) -> int:
        """Configuration space in memory (ECAM)."""
        address = ECAM + (sid << 12) + offset
        return self.connection.ask((line.read(address, 4) if value is None else line.write(address, 4, value),))[0]
