# SPDX-License-Identifier: GPL-2.0-or-later
"""The Arm SMMUv3 as hardware: one chapter of its specification (IHI 0070) per file.

===============  =================================================  ================
``config``       what an implementation chooses, and its ID regs    6.3.1 to 6.3.8
``registers``    the register file: fields, guards, reset           6.2, 6.3
``streams``      stream table, STE, configuration cache             3.3, 5.1, 5.2
``walk``         stage 2 descriptors, VMSAv8-64                     3.4, Arm ARM D8
``tlb``          translations tagged by VMID                        3.17, 4.4
``commands``     the Command queue                                  4, 7.1
``events``       event records and the Event queue                  7.2 to 7.4
``interrupts``   global errors, MSIs, wired interrupts              3.18, 7.5
``explain``      decoded entries in words, for people
``unit``         the parts put together: the unit of the contract
===============  =================================================  ================

Use :class:`Smmuv3Unit` and :class:`Smmuv3Config`; the rest is for reading beside the manual.
"""

from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit

__all__ = ["Smmuv3Config", "Smmuv3Unit"]
