# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to hold in a guest after every operation: 42 numbered properties of driver, IOMMU core and dma-iommu.

``driver`` has 1 to 21, ``core`` 22 to 37, ``dma`` 38 to 42, ``life`` what has no number.  Each is a generator of
complaints over one recorded :class:`~testbed.validate.record.Step`; none changes anything that a driver could notice,
except that 12 and 20 let devices try DMA.
"""

from testbed.invariants_guest import core, dma, driver, life
from testbed.invariants_guest.registry import INVARIANTS, Complaint, Invariant, Key, check

__all__ = ["INVARIANTS", "Complaint", "Invariant", "Key", "check", "core", "dma", "driver", "life"]
