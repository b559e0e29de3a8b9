# SPDX-License-Identifier: GPL-2.0-or-later
"""Every backend, kind of guest and fixed profile that the front door has to behave alike on."""

from itertools import product

import pytest
from guest_calls import Caller, bed

BACKENDS = ("vtd", "smmuv3")
GUESTS = ("pv", "pvh")
PROFILES = ("v3-fixed", "v7-fixed")


@pytest.fixture(params=list(product(BACKENDS, PROFILES, GUESTS)), ids="-".join)
def caller(request: pytest.FixtureRequest) -> Caller:
    """A fresh hardware domain, PV-IOMMU set up: backend, profile and guest are parameters."""
    return bed(*request.param)


@pytest.fixture(params=list(product(BACKENDS, GUESTS)), ids="-".join)
def caller7(request: pytest.FixtureRequest) -> Caller:
    """The same where a test is about sub-op numbers and structs of their own."""
    backend, guest = request.param
    return bed(backend, "v7-fixed", guest)


@pytest.fixture(params=list(product(BACKENDS, GUESTS)), ids="-".join)
def caller3(request: pytest.FixtureRequest) -> Caller:
    """The same where a test is about the tagged union."""
    backend, guest = request.param
    return bed(backend, "v3-fixed", guest)


@pytest.fixture(params=list(product(BACKENDS, PROFILES)), ids="-".join)
def pv_caller(request: pytest.FixtureRequest) -> Caller:
    """A PV hardware domain, which names machine frames."""
    backend, profile = request.param
    return bed(backend, profile, "pv")


@pytest.fixture(params=list(product(BACKENDS, PROFILES)), ids="-".join)
def pvh_caller(request: pytest.FixtureRequest) -> Caller:
    """A PVH hardware domain, whose frame numbers the p2m translates."""
    backend, profile = request.param
    return bed(backend, profile, "pvh")
