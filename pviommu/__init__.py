# SPDX-License-Identifier: GPL-2.0-or-later
"""pviommu: a hypervisor-side emulator and guest-driver test bed for Xen's paravirtual IOMMU.

The public front door.  ``build`` makes a test bed from a ``Config``; ``Guest`` boots the Linux port in it; ``run``
sends packets.  The layers below (``base abi machine hypervisor guest_driver testbed``) may be imported directly by
tests and tools; what is listed here stays stable.  Names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.build import TestBed, build
    from testbed.config import Config
    from testbed.guest import Guest
    from testbed.packets import Report, run

__all__ = ["Config", "Guest", "Report", "TestBed", "build", "run"]

_HOMES = {
    "Config": "testbed.config",
    "Guest": "testbed.guest",
    "Report": "testbed.packets",
    "TestBed": "testbed.build",
    "build": "testbed.build",
    "run": "testbed.packets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
