# SPDX-License-Identifier: GPL-2.0-or-later
"""The Arm SMMUv3 as hardware: one chapter of its specification (IHI 0070) per file.

================  =================================================  ================
``config``        what an implementation chooses, and its ID regs    6.3.1 to 6.3.8
``registers``     the register file: fields, guards, reset           6.2, 6.3
``ste``           the stream table entry                             5.2
``streams``       stream table and configuration cache               3.3, 5.1
``cd``            the context descriptor                             5.4
``contexts``      substreams, CD tables and their cache              5.2, 5.3
``walk``          stage 2 descriptors, VMSAv8-64                     3.4, Arm ARM D8
``walk1``         stage 1 descriptors                                3.4, Arm ARM D8
``translation``   both stages, cached and walked; flag updates       3.3.3, 3.13
``tlb``           translations by VMID and ASID                      3.17, 4.4
``commands``      the Command queue                                  4.1, 4.7.3, 7.1
``invalidation``  CFGI and TLBI commands                             4.3, 4.4
``faults``        what a stop becomes: abort, record, stall          3.12, 5.5
``stalls``        transactions that wait                             3.12.2, 4.7
``ats``           translation services, CMD_ATC_INV                  3.9, 4.5.1
``pri``           page requests                                      4.5.2, 8
``events``        event records and the Event queue                  7.2 to 7.4
``interrupts``    global errors, MSIs, wired interrupts              3.18, 7.5
``observe``       a translation explained, past every cache
``explain``       decoded entries in words (``explain1``: stage 1)
``unit``          the parts put together: the unit of the contract
================  =================================================  ================

Use :class:`Smmuv3Unit` and :class:`Smmuv3Config`; the rest is for reading beside the manual.
"""

from machine.iommu.smmuv3.config import Smmuv3Config
from machine.iommu.smmuv3.unit import Smmuv3Unit

__all__ = ["Smmuv3Config", "Smmuv3Unit"]
