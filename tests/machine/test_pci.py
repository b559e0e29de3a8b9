# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI topology: which requester ids a function's DMA may carry, and what cannot be plugged in."""

import pytest

from base.units import make_sbdf
from machine.pci import PciFunction, PciTopology, PortType


def topology() -> PciTopology:
    pci = PciTopology()
    pci.add(PciFunction(make_sbdf(0, 0, 0, 0), PortType.HOST_BRIDGE))
    pci.add(PciFunction(make_sbdf(0, 0, 1, 0), PortType.ROOT_PORT, secondary_bus=1))
    pci.add(PciFunction(make_sbdf(0, 1, 0, 0), PortType.SWITCH_UPSTREAM, secondary_bus=2))
    pci.add(PciFunction(make_sbdf(0, 2, 3, 0), PortType.SWITCH_DOWNSTREAM, secondary_bus=3))
    pci.add(PciFunction(make_sbdf(0, 3, 0, 0)))
    pci.add(PciFunction(make_sbdf(0, 0, 2, 0), PortType.PCIE_TO_PCI_BRIDGE, secondary_bus=9))
    pci.add(PciFunction(make_sbdf(0, 9, 4, 1), PortType.CONVENTIONAL))
    return pci


def test_an_endpoint_uses_its_own_id_through_any_number_of_switches() -> None:
    pci = topology()
    for sbdf in (make_sbdf(0, 3, 0, 0), make_sbdf(0, 0, 1, 0)):
        assert pci.requester_ids(sbdf)[0] == sbdf
    assert [f.sbdf for f in pci.bridges_above(make_sbdf(0, 3, 0, 0))] == [
        make_sbdf(0, 2, 3, 0),
        make_sbdf(0, 1, 0, 0),
        make_sbdf(0, 0, 1, 0),
    ]


def test_a_function_without_phantom_functions_uses_one_id() -> None:
    pci = PciTopology()
    for function in range(8):
        sbdf = pci.add(PciFunction(make_sbdf(0, 0, 5, function))).sbdf
        assert pci.requester_ids(sbdf) == (sbdf,)


def test_behind_a_bridge_to_conventional_pci_the_bridges_id_is_used() -> None:
    pci = topology()
    assert pci.requester_ids(make_sbdf(0, 9, 4, 1)) == (make_sbdf(0, 9, 0, 0),)


@pytest.mark.parametrize(
    "log2, function, expected",
    [(0, 0, [0]), (1, 0, [0, 4]), (1, 3, [3, 7]), (2, 1, [1, 3, 5, 7]), (3, 0, list(range(8)))],
)
def test_phantom_functions_take_the_unused_function_numbers(log2: int, function: int, expected: list[int]) -> None:
    """PCIe 7.5.3.3: the log2 most significant bits of the function number are the phantom's to use."""
    pci = PciTopology()
    sbdf = pci.add(PciFunction(make_sbdf(0, 0, 5, function), phantom_functions=log2)).sbdf
    assert [rid & 7 for rid in pci.requester_ids(sbdf)] == expected
    assert {rid >> 3 for rid in pci.requester_ids(sbdf)} == {sbdf >> 3}


def test_segments_are_worlds_of_their_own() -> None:
    pci = topology()
    there = pci.add(PciFunction(make_sbdf(1, 9, 4, 1), PortType.CONVENTIONAL)).sbdf
    assert pci.bridge_above(there) is None
    assert pci.requester_ids(there) == (there,)


def test_two_functions_at_one_address_are_refused() -> None:
    pci = topology()
    with pytest.raises(ValueError, match=r"two functions at 0000:03:00\.0"):
        pci.add(PciFunction(make_sbdf(0, 3, 0, 0)))


def test_bridges_and_only_bridges_have_a_bus_behind_them() -> None:
    pci = PciTopology()
    for function in (
        PciFunction(make_sbdf(0, 0, 1, 0), PortType.ROOT_PORT),
        PciFunction(make_sbdf(0, 0, 1, 0), PortType.ENDPOINT, secondary_bus=1),
        PciFunction(make_sbdf(0, 0, 0, 0), PortType.HOST_BRIDGE, secondary_bus=1),
    ):
        with pytest.raises(ValueError, match="secondary bus"):
            pci.add(function)
    assert str(PciFunction(make_sbdf(0, 0, 1, 0))) == "0000:00:01.0 (endpoint)"
