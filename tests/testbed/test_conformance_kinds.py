# SPDX-License-Identifier: GPL-2.0-or-later
"""The conformance suites over units of every kind."""

from dataclasses import replace

import pytest

from testbed import backends
from testbed.conformance import check_backend


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("vtd", "smmuv3") for kind in backends.get(name).kinds]
    + [
        ("vtd", "39-bit+no-superpages+non-coherent+caching+few-domains"),
        ("vtd", "write-buffer+caching+domain-selective+no-draining"),
        ("vtd", "device-tlb+2m+moved"),
        ("vtd", "scalable+caching+39-bit"),
        ("vtd", "scalable+non-coherent+domain-selective"),
        ("smmuv3", "nested+no-ranges+vmid8"),
        ("smmuv3", "40-bit+vmid8+linear+no-ranges+break-before-make"),
    ],
)
def test_a_unit_of_this_kind_and_its_driver_conform(name, kind):
    backend = backends.get(name)
    variant = replace(backend, make_unit=lambda bus, options: backend.make_unit(bus, replace(options, kind=kind)))
    assert [str(result) for result in check_backend(variant) if result.failure is not None] == []
