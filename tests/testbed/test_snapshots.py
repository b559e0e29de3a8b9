# SPDX-License-Identifier: GPL-2.0-or-later
"""A test bed goes back to a snapshot exactly, guest kernel included, as often as wanted."""

import hashlib

import pytest

from machine.network.peer import PeerWire
from testbed.build import NIC, build
from testbed.config import MIB, Config
from testbed.guest import Guest


def _digest(testbed):
    state = hashlib.sha256(testbed.memory.bytes)
    state.update(testbed.xen.frames.refs.tobytes())
    state.update(repr(sorted(testbed.dom0.iommu.contexts)).encode())
    return state.hexdigest()


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("guest_kind", ["pv", "pvh"])
def test_reset_brings_memory_tables_and_guest_back(backend, guest_kind):
    testbed = build(Config(backend=backend, guest=guest_kind, ram=32 * MIB, guest_ram=8 * MIB))
    guest = Guest(testbed)
    nic = guest.kernel.devices[NIC]
    testbed.snapshot()
    before = _digest(testbed)
    addresses = []
    for _ in range(3):
        pfn = guest.kernel.kernel.pages.alloc_pages(0)
        iova = guest.kernel.dma.map_page(nic, pfn, 0, 4096, 2)
        assert testbed.fabric.port(NIC).write(iova, b"x" * 4096) is None
        addresses.append((pfn, iova))
        assert _digest(testbed) != before
        testbed.reset()
        assert _digest(testbed) == before
        assert testbed.fabric.port(NIC).write(iova, b"x") is not None
    assert len(set(addresses)) == 1


def test_reset_without_a_snapshot_is_refused():
    with pytest.raises(ValueError, match="no snapshot"):
        build(Config(ram=32 * MIB, guest_ram=8 * MIB)).reset()


def test_a_wire_can_be_changed_between_resets():
    testbed = build(Config(ram=32 * MIB, guest_ram=8 * MIB))
    testbed.snapshot()
    testbed.nic.wire = PeerWire()
    testbed.reset()
    testbed.nic.poll()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"ram": 3 * MIB}, "RAM of"),
        ({"ram": 4096 * MIB}, "RAM of"),
        ({"guest_ram": 128 * MIB}, "guest RAM"),
        ({"guest": "hvm64"}, "unknown guest kind"),
    ],
)
def test_an_impossible_configuration_is_refused_in_one_line(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        Config(**values)


def test_interrupt_vectors_are_handed_out_again_after_a_reset():
    testbed = build(Config(ram=32 * MIB, guest_ram=8 * MIB))
    testbed.snapshot()
    first = testbed.guest_pci.request_irq(lambda: None)
    testbed.reset()
    assert testbed.guest_pci.request_irq(lambda: None) == first
