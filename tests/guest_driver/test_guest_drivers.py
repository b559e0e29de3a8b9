# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of drivers: who speaks what, and posted loops without their faults are the reference's."""

import pytest
from fake_hypervisor import FakePci, FakeRam, FakeXen, NoMmio
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_domain import endpoints

from abi import versions
from abi.errno import EINVAL, ENODEV, ENOMEM, EOPNOTSUPP, EPERM
from abi.versions import Convention
from guest_driver import drivers
from guest_driver.boot import boot
from guest_driver.defects.loops import posted_loops
from guest_driver.defects.starting import ENOTSUPP
from guest_driver.linux.iommu import IommuIotlbGather
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.iommu_map import iommu_map
from guest_driver.linux.iommu_probe import pci_stop_and_remove_bus_device
from guest_driver.linux.kernel import CommandLine
from guest_driver.linux.oops import KernelOops

PAGE = 4096
RW = 3
NEW = ("v4", "v5", "v6", "v7", "E3")
OLD = ("H0", "v1", "v2", "v3")
SPEAKS = {"rfc-v1": OLD, "rfc-v2": OLD, "rfc-v3": NEW, "edera": NEW, "reference": (*OLD, *NEW, "N")}
SPEAKS |= {"lazy": SPEAKS["reference"], "edera-single-page": NEW}


def start(driver, version="v7", pv=False, setup=None, **kwargs):
    functions = endpoints(2)
    ram = FakeRam(512, pv)
    xen = FakeXen(versions.get(version), ram, functions, ("default_identity", "cache"))
    if setup is not None:
        setup(xen)
    guest = boot(xen, ram, FakePci(functions), NoMmio(), xen.abi, init=drivers.get(driver).init, **kwargs)
    xen.calls.clear()
    return guest, xen


@pytest.mark.parametrize("name", drivers.names())
def test_a_driver_runs_on_every_abi_that_it_speaks_and_declines_the_others(name):
    for version in versions.names():
        abi = versions.get(version)
        speaks = version in SPEAKS[name]
        assert drivers.get(name).speaks(abi) == speaks, version
        if abi.convention is Convention.BATCH:
            continue
        guest, _ = start(name, version)
        assert (guest.xen_errno, guest.xen is not None) == ((0, True) if speaks else (-EOPNOTSUPP, False))


def test_every_defect_says_what_it_is_and_whose():
    for found in drivers.DEFECTS.values():
        assert found.title and found.seen and found.source and found.versions
        assert all(name in drivers.names() or name == "linux-7.0" for name in found.versions)
    posted = {found.id for name in drivers.names() for found in drivers.get(name).defects}
    assert posted == {f.id for f in drivers.DEFECTS.values() if not f.judged and f.versions != ("linux-7.0",)}
    assert not drivers.get("reference").defects


def test_the_notes_catalogue_is_complete():
    known = {name for found in drivers.DEFECTS.values() for name in (found.id, *found.also)}
    assert known >= {f"K{n}" for n in range(1, 13)} | {f"L1.2-{n}" for n in range(1, 13)} | {"L8.1", "L8.6", "L8.7"}


def test_names_with_and_without_a_defect():
    mended = drivers.get("rfc-v3~L1.2-1")
    assert "L1.2-1" not in [found.id for found in mended.defects]
    assert [found.id for found in drivers.get("reference+K5+L8.1").defects] == ["L1.2-3", "L8.1"]
    with pytest.raises(ValueError, match="unknown driver 'rfc-v9'"):
        drivers.get("rfc-v9")
    with pytest.raises(ValueError, match="unknown defect 'K99'"):
        drivers.get("reference+K99")


steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, 12), st.integers(1, 6), st.integers(1, 200), st.none() | st.integers(0, 5)),
    max_size=12,
)


@settings(max_examples=60)
@given(steps, st.booleans())
def test_posted_loops_without_faults_answer_like_the_reference(program, pv):
    histories = []
    for loops in (False, True):
        guest, xen = start("reference", "v7", pv)
        if loops:
            posted_loops(guest.xen)
        domain = iommu_paging_domain_alloc(guest.kernel.devices[0])
        history = []
        for is_map, page, count, pfn, _ in program:
            ops = domain.ops
            if is_map:
                history.append(ops.map_pages(domain, page * PAGE, pfn * PAGE, PAGE, count, RW, 0))
            else:
                history.append(ops.unmap_pages(domain, page * PAGE, PAGE, count, IommuIotlbGather()))
            history.append([ops.iova_to_phys(domain, p * PAGE) for p in range(20)])
        histories.append((history, {ctx: dict(t) for ctx, t in xen.contexts.items()}))
    assert histories[0] == histories[1]


def test_rfc_v3_reports_the_last_run_where_mapped_is_not_added_up():
    guest, _ = start("rfc-v3", pv=True)
    domain = iommu_paging_domain_alloc(guest.kernel.devices[0])
    assert domain.ops.map_pages(domain, 0, PAGE, PAGE, 4, RW, 0) == (0, PAGE)
    mended, _ = start("rfc-v3~L1.2-1", pv=True)
    domain = iommu_paging_domain_alloc(mended.kernel.devices[0])
    assert domain.ops.map_pages(domain, 0, PAGE, PAGE, 4, RW, 0) == (0, 4 * PAGE)


def test_k1_dies_and_leaks_the_context_where_the_reference_says_enomem():
    for name, version in (("rfc-v1", "v3"), ("reference", "v3")):
        guest, xen = start(name, version)
        contexts = len(xen.contexts)
        guest.kernel.slab_fault = lambda purpose: True
        if name == "reference":
            assert iommu_paging_domain_alloc(guest.kernel.devices[0]) == -ENOMEM
            assert len(xen.contexts) == contexts
        else:
            with pytest.raises(KernelOops):
                iommu_paging_domain_alloc(guest.kernel.devices[0])
            assert len(xen.contexts) == contexts + 1


def test_l1_2_6_dies_when_a_device_leaves_and_with_passthrough():
    guest, _ = start("rfc-v3")
    with pytest.raises(KernelOops, match="attach_dev"):
        pci_stop_and_remove_bus_device(guest.kernel.devices[0])
    with pytest.raises(KernelOops):
        start("rfc-v3", cmdline=CommandLine(passthrough=True))


def test_l8_1_reports_success_for_a_map_that_failed():
    guest, _ = start("reference+L8.1")
    domain = iommu_paging_domain_alloc(guest.kernel.devices[0])
    assert iommu_map(domain, 0x3000, 0x3000, PAGE, RW) == 0
    assert iommu_map(domain, 0x1000, 0x1000, 4 * PAGE, RW) == 0
    assert domain.ops.iova_to_phys(domain, 0x1000) == 0
    guest, _ = start("reference")
    domain = iommu_paging_domain_alloc(guest.kernel.devices[0])
    assert iommu_map(domain, 0, 0, PAGE, 0) == -EINVAL


class Answers:
    """Answers every hypercall alike."""

    def __init__(self, errno):
        self.errno = errno

    def hypercall(self, nr, *args):
        return self.errno


@pytest.mark.parametrize(
    ("name", "errno", "expected"),
    [("rfc-v1", -EPERM, -ENOTSUPP), ("reference", -EPERM, -ENODEV), ("rfc-v1", -38, -ENODEV), ("rfc-v3", -38, -ENODEV)],
)
def test_what_a_driver_makes_of_a_hypervisor_that_refuses(name, errno, expected):
    version = "v3" if name == "rfc-v1" else "v7"
    guest = boot(
        Answers(errno), FakeRam(64, False), FakePci([]), NoMmio(), versions.get(version), init=drivers.get(name).init
    )
    assert guest.xen_errno == expected
    assert guest.leaks()["pages"] == 0
