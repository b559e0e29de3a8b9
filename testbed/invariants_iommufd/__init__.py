# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to hold in iommufd after every operation: invariants 43 to 68.

``groups`` has 43 to 52, ``mappings`` 53 to 61, ``calls`` 62 to 68.  Each is a generator of complaints over one
:class:`~testbed.invariants_iommufd.watch.Step`.
"""

from testbed.invariants_iommufd import calls, groups, mappings
from testbed.invariants_iommufd.registry import INVARIANTS, Invariant, check

__all__ = ["INVARIANTS", "Invariant", "calls", "check", "groups", "mappings"]
