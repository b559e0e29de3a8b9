# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands between this driver and its SMMU beside memory: commands, and the entries of streams.

On the bare machine both are queues and tables of the driver's own (:mod:`guest_driver.arm_smmu_v3.smmu`); where a
hypervisor keeps them, they are hypercalls, and context descriptors alone are the guest's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from guest_driver.arm_smmu_v3.layouts import Command, Entry


@dataclass(frozen=True, slots=True)
class SmmuFeatures:
    """What the unit can do (IDR0, IDR1, IDR5)."""

    ssid_bits: int
    sid_bits: int
    asid_bits: int
    two_level_cd: bool
    oas: int
    """As CD.IPS encodes it."""


class SmmuPort(Protocol):
    """One SMMU."""

    @property
    def features(self) -> SmmuFeatures: ...

    def issue(self, commands: Sequence[Command]) -> int:
        """Run ``commands`` and wait until they are done: 0 or -errno."""
        ...

    def prepare_stream(self, sid: int) -> int:
        """See that ``sid`` has an entry, which aborts at first: 0 or -errno."""
        ...

    def write_ste(self, sid: int, target: Entry) -> int:
        """Make the entry of ``sid`` ``target``: 0 or -errno."""
        ...
