# SPDX-License-Identifier: GPL-2.0-or-later
"""Which PCI functions share a group, whatever order they are probed in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_domain import MockIommu, make_kernel

from base.units import format_sbdf, make_sbdf, parse_sbdf
from guest_driver.linux.iommu_probe import iommu_device_register, pci_bus_add_device, pci_stop_and_remove_bus_device
from guest_driver.linux.pci_group import pci_dma_aliases, pci_isolation_sets
from guest_driver.port import PciInfo

pytestmark = pytest.mark.core


def fn(address, **kwargs):
    return PciInfo(parse_sbdf(address), **kwargs)


def port(address, secondary, acs=True, **kwargs):
    return fn(address, is_bridge=True, secondary_bus=secondary, acs=acs, **kwargs)


def groups(*functions):
    """The groups as sets of addresses without segment."""
    found = {}
    for sbdf, root in pci_isolation_sets(functions).items():
        found.setdefault(root, set()).add(format_sbdf(sbdf)[5:])
    return sorted(sorted(group) for group in found.values())


def test_devices_on_the_root_bus_stand_alone():
    assert groups(fn("00:03.0"), fn("00:04.0")) == [["00:03.0"], ["00:04.0"]]


def test_multifunction_device_without_acs_is_one_group():
    parts = [fn(f"00:03.{n}", multifunction=True) for n in range(3)]
    assert groups(*parts) == [["00:03.0", "00:03.1", "00:03.2"]]


def test_functions_with_acs_stand_alone():
    parts = [fn(f"00:03.{n}", multifunction=True, acs=n != 1) for n in range(3)]
    assert groups(*parts) == [["00:03.0"], ["00:03.1"], ["00:03.2"]]


def test_device_behind_a_port_with_acs_is_alone():
    assert groups(port("00:1c.0", 1), fn("01:00.0")) == [["00:1c.0"], ["01:00.0"]]


def test_port_without_acs_shares_its_group_with_what_is_behind_it():
    assert groups(port("00:1c.0", 1, acs=False), fn("01:00.0")) == [["00:1c.0", "01:00.0"]]


def test_switch_without_acs_joins_everything_below_it():
    parts = (
        port("00:1c.0", 1),
        port("01:00.0", 2, acs=False),
        port("02:00.0", 3, acs=False),
        port("02:01.0", 4, acs=False),
        fn("03:00.0"),
        fn("04:00.0"),
    )
    joined = ["01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"]
    assert groups(*parts) == [["00:1c.0"], joined]


def test_everything_behind_a_pcie_to_pci_bridge_is_one_group_with_it():
    parts = (port("00:1e.0", 5, pcie_to_pci=True), fn("05:01.0", is_pcie=False), fn("05:02.0", is_pcie=False))
    assert groups(*parts) == [["00:1e.0", "05:01.0", "05:02.0"]]


def test_function_that_uses_anothers_id_shares_its_group():
    assert groups(fn("00:03.0", dma_aliases=(0x20,)), fn("00:04.0")) == [["00:03.0", "00:04.0"]]


def test_two_functions_with_one_alias_share_a_group():
    parts = (fn("00:03.0", dma_aliases=(0xF8,)), fn("00:04.0", dma_aliases=(0xF8,)))
    assert groups(*parts) == [["00:03.0", "00:04.0"]]


def test_aliases_of_a_conventional_function_are_those_of_its_bridges():
    bridge = port("00:1e.0", 5, pcie_to_pci=True)
    inner = port("05:03.0", 6, acs=False, is_pcie=False)
    device = fn("06:01.0", is_pcie=False)
    aliases = pci_dma_aliases(device, (bridge, inner, device))
    assert aliases == (parse_sbdf("06:01.0"), parse_sbdf("05:03.0"), parse_sbdf("05:00.0"))


def test_equal_bus_numbers_in_two_segments_have_nothing_in_common():
    parts = [
        PciInfo(make_sbdf(segment, 0, 0x1C, 0), is_bridge=True, secondary_bus=1, acs=segment == 0) for segment in (0, 1)
    ] + [PciInfo(make_sbdf(segment, 1, 0, 0)) for segment in (0, 1)]
    found = pci_isolation_sets(parts)
    assert found[parts[2].sbdf] == parts[2].sbdf
    assert found[parts[3].sbdf] == parts[1].sbdf


@st.composite
def hierarchies(draw):
    parts = []
    next_bus = 1
    buses = [0]
    for _ in range(draw(st.integers(1, 9))):
        bus = draw(st.sampled_from(buses))
        slot = draw(st.integers(1, 3))
        function = draw(st.integers(0, 1))
        sbdf = make_sbdf(0, bus, slot, function)
        if any(part.sbdf == sbdf for part in parts):
            continue
        kind = draw(st.sampled_from(["end", "end", "port", "bridge", "conventional"]))
        common = {"acs": draw(st.booleans()), "multifunction": draw(st.booleans())}
        if kind == "end":
            aliases = draw(st.sampled_from([(), (), ((slot + 1) << 3,)]))
            parts.append(PciInfo(sbdf, dma_aliases=aliases, **common))
            continue
        parts.append(
            PciInfo(
                sbdf,
                is_bridge=True,
                secondary_bus=next_bus,
                is_pcie=kind != "conventional",
                pcie_to_pci=kind == "bridge",
                **common,
            )
        )
        buses.append(next_bus)
        next_bus += 1
    return parts


def partition(kernel):
    return {frozenset(dev.name for dev in group.devices) for group in kernel.iommu.groups}


@settings(max_examples=80)
@given(hierarchies(), st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_probing(parts, random):
    shuffled = list(parts)
    random.shuffle(shuffled)
    found = []
    for order in (parts, shuffled):
        kernel, mock = make_kernel(order, pages=16), MockIommu()
        assert iommu_device_register(kernel, mock.unit, mock.ops) == 0
        found.append(partition(kernel))
        for group in kernel.iommu.groups:
            assert {mock.where[dev.name] for dev in group.devices} == {group.default_domain}
    assert found[0] == found[1]


def test_device_plugged_in_later_joins_the_group_and_its_domain():
    parts = [fn(f"00:03.{n}", multifunction=True) for n in range(2)]
    kernel, mock = make_kernel(parts, pages=16), MockIommu()
    late = kernel.devices.pop()
    assert iommu_device_register(kernel, mock.unit, mock.ops) == 0
    (group,) = kernel.iommu.groups
    assert pci_bus_add_device(late) == 0
    assert late.iommu_group is group and mock.where[late.name] is group.domain and late.dma_iommu
    assert pci_stop_and_remove_bus_device(late) == 0
    assert group.devices == kernel.devices and mock.where[late.name] is mock.ops.release_domain
    assert pci_stop_and_remove_bus_device(group.devices[0]) == 0
    assert not kernel.iommu.groups and not kernel.iommu.domains
