# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's machines have in common here: shared RAM, a processor asleep in its firmware, a row of ``edu`` devices.

Every virtual instruction is free to the clock (``-icount``), so that a device's DMA timer fires as soon as it is set.
"""

import os
from typing import Final

from oracle.edu import Edu, plug_in
from oracle.qtest import Qtest, image
from oracle.shared_ram import SharedRam

BAR_STEP: Final = 0x10_0000


class EduMachine:
    """A started machine; a vendor's says what it is made of and how its configuration space is reached.

    ``firmware``: bytes of the image that puts the processor to sleep; ``devices`` devices sit in consecutive slots from
    ``first_slot`` on, their BARs from ``first_bar``.  If anything fails nothing is left behind.
    """

    def __init__(
        self,
        program: str,
        ram: SharedRam,
        firmware: bytes,
        arguments: list[str],
        first_slot: int,
        devices: int,
        first_bar: int,
    ) -> None:
        self.ram: Final = ram
        self.devices: Final[dict[int, Edu]] = {}
        """By requester id."""
        slots = range(first_slot, first_slot + devices)
        bios = image(firmware)
        try:
            self.connection: Final = Qtest(
                program,
                [
                    *arguments,
                    *("-accel", "tcg", "-icount", "shift=0,sleep=off,align=off"),
                    *("-bios", f"/proc/{os.getpid()}/fd/{bios}"),
                    *(word for slot in slots for word in ("-device", f"edu,addr={slot:02x}.0,dma_mask={2**64 - 1:#x}")),
                ],
                ram,
            )
        except BaseException:
            ram.close()
            os.close(bios)
            raise
        try:
            for index, slot in enumerate(slots):
                sid = slot << 3
                bar = first_bar + index * BAR_STEP
                self.devices[sid] = plug_in(self.connection, self._config, ram.memory, sid, index, bar)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(bios)

    def _config(self, sid: int, offset: int, value: int | None) -> int:
        """Read (``value`` is ``None``) or write 32 bits of configuration space."""
        raise NotImplementedError

    def close(self) -> None:
        """End the process and give its RAM back."""
        self.connection.close()
        self.ram.close()
