# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that keeps translations of its own, in a context of its own, behind a unit that lets it."""

import random

from guest_calls import bed

from machine.iommu.unit import Fault
from testbed.build import COPIER
from testbed.units import UnitSpec

ATS = {"units": (UnitSpec("device-tlb", (COPIER,)), UnitSpec()), "device_tlb": True}


COMMAND = {"vtd": "device-TLB", "smmuv3": "CMD_ATC_INV"}


class Copying:
    """The copier, which keeps translations."""

    def __init__(self, **config):
        self.caller = bed(**(ATS | config))
        self.ctx = self.caller.alloc()
        self.caller.attach(self.ctx, COPIER)
        self.cache = self.caller.testbed.copier_cache
        self.commands = self.caller.testbed.units[0].counters.commands
        self.name = self.caller.testbed.backend.name

    @property
    def sent(self):
        """Invalidations that were sent to the device."""
        return self.commands[COMMAND[self.name]]

    @property
    def broken(self):
        """Whether the driver has given the device up."""
        backend = self.caller.xen.backend
        return bool(backend.units[0].broken if self.name == "vtd" else backend.caches.broken)

    def reach(self, dfn, write=True):
        """The frame that the device's own way leads to."""
        memory, port = self.caller.testbed.memory, self.caller.testbed.copier.port
        if not write:
            return port.read((dfn << 12) + 8, 4)
        mark = random.Random(dfn).randbytes(16)
        for pfn in range(2048, 2048 + 512):
            memory.write(self.caller.mfn(pfn) << 12, bytes(16)) if pfn < 2064 else None
        if isinstance(port.write(dfn << 12, mark), Fault):
            return None
        for pfn in range(2048, 2064):
            if memory.read(self.caller.mfn(pfn) << 12, 16) == mark:
                return pfn
        return -1
