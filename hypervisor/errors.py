# SPDX-License-Identifier: GPL-2.0-or-later
"""Whom a failure concerns.

* The guest gets a negative errno, returned, never raised.
* Whoever develops the hypervisor gets one of the exceptions below, which the emulator does not catch:
  they stand where Xen would BUG, and reaching one from a guest's hypercall is a finding.
* Hardware reports faults through its own records; the drivers read them.
* A faulty set-up (a machine description that cannot be) is a ``ValueError`` while the test bed is built.
"""

from typing import Final


class HostStopped(Exception):
    """From here on the host does not answer any more."""


class XenBug(HostStopped):
    """The hypervisor would have stopped the host here (BUG, ASSERT, fatal page fault)."""


class XenHang(HostStopped):
    """The hypervisor would run in circles here for ever."""


class XenDeadlock(HostStopped):
    """The hypervisor would wait for ever for a lock that nobody is going to release.

    ``cycle`` has a line for every vCPU that waits for the next one; it is empty if the holder does not wait itself.
    """

    def __init__(self, what: str, cycle: tuple[str, ...] = ()) -> None:
        super().__init__(what)
        self.cycle: Final = cycle
