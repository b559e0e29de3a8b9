# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: a machine with Xen, a booted guest and a device as fixtures, for tests of one's own.

pytest finds it by its entry point.  Options choose hypervisor, hardware and layout for a whole run; the marker
``pviommu`` changes them for one test (``@pytest.mark.pviommu(profile="v3", check=False)``).  After each test the
machine's invariants are held, and a failure prints the options that repeat it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from base.units import Sbdf
    from machine.iommu.unit import Fault, Walk
    from testbed.build import TestBed
    from testbed.config import Config
    from testbed.guest import Guest

_CHOSEN = pytest.StashKey[str]()
_USUAL = ("v7-fixed", "vtd")
"""Profile and backend where no option says otherwise."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pviommu", "paravirtual IOMMU test bed")
    group.addoption("--pviommu-profile", default=_USUAL[0], help="how the hypervisor answers: v7-fixed, v3, ...")
    group.addoption("--pviommu-backend", default=_USUAL[1], help="translation backend: vtd, smmuv3, ..., or both")
    group.addoption("--pviommu-seed", type=int, default=0, help="decides where the guest's pages lie")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "pviommu(check=True, **settings): settings of testbed.config.Config for this test; check=False leaves out the "
        "machine's invariants afterwards",
    )
    _check(config.getoption("--pviommu-profile"), config.getoption("--pviommu-backend"))


def _check(profile: str, backend: str) -> None:
    """``pytest.UsageError`` for options that no test could run with; nothing is loaded for what is usual."""
    if (profile, backend) == _USUAL:
        return
    from pviommu.options import UsageError, backend_list, make_config

    try:
        for name in backend_list(backend):
            make_config(name, profile, None, 0)
    except UsageError as error:
        raise pytest.UsageError(f"--pviommu-profile {profile} --pviommu-backend {backend}: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each backend where a test uses the machine."""
    if "pviommu_backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("pviommu")
    if marker is not None and "backend" in marker.kwargs:
        names = [marker.kwargs["backend"]]
    else:
        from pviommu.options import backend_list

        names = backend_list(metafunc.config.getoption("--pviommu-backend"))
    metafunc.parametrize("pviommu_backend", names, scope="function")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report: pytest.TestReport = yield
    if report.failed and _CHOSEN in item.stash:
        report.sections.append(("pviommu", f"again with: {item.stash[_CHOSEN]}"))
    return report


@pytest.fixture
def pviommu_config(request: pytest.FixtureRequest, pviommu_backend: str) -> "Config":
    """What the test bed is built from."""
    from testbed.config import Config

    marker = request.node.get_closest_marker("pviommu")
    settings: dict[str, Any] = {
        "profile": request.config.getoption("--pviommu-profile"),
        "seed": request.config.getoption("--pviommu-seed"),
        **(marker.kwargs if marker is not None else {}),
        "backend": pviommu_backend,
    }
    settings.pop("check", None)
    request.node.stash[_CHOSEN] = (
        f"--pviommu-backend {pviommu_backend} --pviommu-profile {settings['profile']} "
        f"--pviommu-seed {settings['seed']} {request.node.nodeid}"
    )
    try:
        return Config(**settings)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"pviommu: {error}") from None


@pytest.fixture
def testbed(request: pytest.FixtureRequest, pviommu_config: "Config") -> "Iterator[TestBed]":
    """A machine with Xen and a hardware domain on it; its invariants have to hold when the test is over."""
    from testbed.build import build
    from testbed.invariants import check

    try:
        bed = build(pviommu_config)
    except ValueError as error:
        raise pytest.UsageError(f"pviommu: {error}") from None
    yield bed
    marker = request.node.get_closest_marker("pviommu")
    if marker is None or marker.kwargs.get("check", True):
        broken = check(bed)
        if broken:
            pytest.fail("the machine is not sound any more: " + "; ".join(map(str, broken)), pytrace=False)


@pytest.fixture
def guest(testbed: "TestBed") -> "Guest":
    """The Linux port, booted in the hardware domain: ``guest.kernel`` is Linux's side."""
    from testbed.guest import Guest

    return Guest(testbed)


class Device:
    """A PCI function of the machine, seen from both sides: the guest's drivers and the bus."""

    def __init__(self, testbed: "TestBed", guest: "Guest", sbdf: "Sbdf") -> None:
        self._testbed = testbed
        self.sbdf = sbdf
        self.kernel = guest.kernel.devices[sbdf]
        """The guest's ``struct device``: what DMA API and IOMMU core take."""
        self._port = testbed.fabric.port(sbdf)

    def read(self, iova: int, length: int) -> "bytes | Fault":
        """DMA: bytes from ``iova``, or the fault that stopped it."""
        return self._port.read(iova, length)

    def write(self, iova: int, data: bytes) -> "Fault | None":
        """DMA: store bytes at ``iova``; the fault that stopped it, or ``None``."""
        return self._port.write(iova, data)

    def walk(self, iova: int, write: bool = False) -> "Walk":
        """How the unit translates an access, structure by structure, without doing it."""
        return self._testbed.walk(self.sbdf, iova, write)


@pytest.fixture
def device(testbed: "TestBed", guest: "Guest") -> Device:
    """The network card, 01:00.0."""
    from testbed.build import NIC

    return Device(testbed, guest, NIC)
