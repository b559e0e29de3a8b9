# SPDX-License-Identifier: GPL-2.0-or-later
"""A backend whose driver has catalogued defects, so that the suites can be seen to find them."""

from dataclasses import replace

from hypervisor import profile as profiles
from hypervisor.defects import catalogue
from hypervisor.frames import FrameTable
from hypervisor.iommu.backend import Backend
from hypervisor.platform import Platform
from hypervisor.xen import Xen
from testbed.backends import TranslationBackend


def with_defects(backend: TranslationBackend, ids: tuple[str, ...], profile: str) -> TranslationBackend:
    """``backend`` with the defects ``ids`` as a hypervisor of ``profile`` has them; what they change above the driver
    is out of the suites' sight."""

    def make_driver(platform: Platform, frames: FrameTable) -> Backend:
        xen = Xen(platform, profiles.get(profile), lambda platform, own: backend.make_driver(platform, frames))
        catalogue.apply(xen, ids)
        driver = xen.backend
        driver.enable = lambda: 0  # type: ignore[method-assign]  # the hypervisor has done it
        return driver

    return replace(backend, make_driver=make_driver)
