# SPDX-License-Identifier: GPL-2.0-or-later
"""The xen-iommu driver against a hypervisor of dicts, over every ABI version that has contexts."""

import pytest
from fake_hypervisor import FakePci, FakeRam, FakeXen, NoMmio
from hypothesis import given, settings
from hypothesis import strategies as st
from mock_domain import endpoints, one_group

from abi import versions
from abi.errno import (
    EACCES,
    EADDRINUSE,
    EBUSY,
    EFAULT,
    EINVAL,
    EIO,
    ENODEV,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
)
from base.units import PAGE_SIZE, U32_MAX, parse_sbdf
from guest_driver.boot import boot
from guest_driver.linux.dma_iommu import DMA_TO_DEVICE
from guest_driver.linux.iommu import (
    IOMMU_CACHE,
    IOMMU_CAP_CACHE_COHERENCY,
    IOMMU_CAP_DEFERRED_FLUSH,
    IOMMU_READ,
    IOMMU_RESV_MSI,
    IOMMU_RESV_RESERVED,
    IOMMU_WRITE,
)
from guest_driver.linux.iommu_attach import iommu_attach_device, iommu_attach_group, iommu_detach_device
from guest_driver.linux.iommu_core import device_iommu_capable, iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.iommu_map import iommu_iova_to_phys, iommu_map, iommu_unmap
from guest_driver.linux.iommu_owner import iommu_group_claim_dma_owner, iommu_group_release_dma_owner
from guest_driver.linux.iommu_probe import iommu_release_device
from guest_driver.linux.iommu_resv import iommu_get_resv_regions
from guest_driver.linux.kernel import CommandLine
from guest_driver.port import PciInfo

USABLE = [
    name
    for name in versions.names()
    if all(versions.get(name).has(subop) for subop in ("query_capabilities", "alloc_context", "map_pages"))
]
UNUSABLE = [name for name in versions.names() if name not in USABLE]
RW = IOMMU_READ | IOMMU_WRITE
PAGE = PAGE_SIZE


def start(version="v7", pv=False, functions=None, caps=("default_identity", "cache"), setup=None, pages=512, **kwargs):
    functions = functions or endpoints(2)
    ram = FakeRam(pages, pv)
    xen = FakeXen(versions.get(version), ram, functions, caps)
    if setup is not None:
        setup(xen)
    guest = boot(xen, ram, FakePci(functions), NoMmio(), xen.abi, **kwargs)
    xen.calls.clear()
    return guest, xen


def paging(guest, device=0):
    dev = guest.kernel.devices[device]
    domain = iommu_paging_domain_alloc(dev)
    assert not isinstance(domain, int), domain
    return dev, domain


def table(xen, domain):
    return xen.contexts[domain.ctx_no]


def truth(guest, xen, domain):
    """iova page -> physical page, from the hypervisor's table."""
    return {dfn << 12: xen.ram.gfn_to_pfn(gfn) << 12 for dfn, (gfn, _) in table(xen, domain).items()}


def assert_told_the_truth(guest, xen, domain, last_page):
    real = truth(guest, xen, domain)
    for iova in range(0, last_page << 12, PAGE):
        expected = real[iova] + 0x123 if iova in real else 0
        assert iommu_iova_to_phys(domain, iova + 0x123) == expected


def test_there_are_versions_to_test():
    assert {"v3", "v4", "v7"} <= set(USABLE)


@pytest.mark.parametrize("pv", [False, True])
@pytest.mark.parametrize("version", USABLE)
def test_every_version_boots_maps_and_shuts_down_clean(version, pv):
    guest, xen = start(version, pv)
    dev = guest.kernel.devices[0]
    guest.dma.set_mask_and_coherent(dev, (1 << 64) - 1)
    address = guest.dma.map_single(dev, 0x5123, 0x5000, DMA_TO_DEVICE)
    for step in (0, 0xEDC, 0xEDD, 0x4FFF):
        assert xen.translate(dev.pci.sbdf, address + step) == 0x5123 + step
        domain = dev.iommu_group.default_domain
        assert iommu_iova_to_phys(domain, address + step) == 0x5123 + step
    guest.dma.unmap_single(dev, address, 0x5000, DMA_TO_DEVICE)
    assert xen.translate(dev.pci.sbdf, address) is None
    assert guest.leaks() == {"pages": 1, "domains": 2, "iovas": 0, "contexts": 0}
    guest.shutdown()
    assert guest.leaks() == {"pages": 0, "domains": 0, "iovas": 0, "contexts": 0}
    assert list(xen.contexts) == [0] and set(xen.where.values()) == {0}
    assert guest.warnings == 0


@pytest.mark.parametrize("version", UNUSABLE)
def test_abi_without_contexts_or_capabilities_is_declined_without_a_hypercall(version):
    guest, xen = start(version)
    assert guest.xen is None and guest.xen_errno == -EOPNOTSUPP and not xen.calls
    assert guest.leaks()["pages"] == 0


def test_plain_xen_is_enodev_and_devices_do_direct_dma():
    guest, _ = start(setup=lambda xen: setattr(xen, "absent", True))
    assert guest.xen_errno == -ENODEV and guest.leaks()["pages"] == 0
    dev = guest.kernel.devices[0]
    assert guest.dma.map_single(dev, 0x5123, 64, DMA_TO_DEVICE) == 0x5123


def failing(name, errno, after=0):
    """A plan that answers ``errno`` to sub-op ``name`` from its call number ``after`` on."""
    seen = [0]

    def fail(subop, fields):
        if subop != name:
            return 0
        seen[0] += 1
        return errno if seen[0] > after else 0

    return fail


@pytest.mark.parametrize(
    ("name", "errno", "after", "expected"),
    [
        ("query_capabilities", EPERM, 0, -ENODEV),
        ("query_capabilities", ENODEV, 0, -ENODEV),
        ("query_capabilities", EFAULT, 0, -EFAULT),
        ("query_capabilities", EFAULT, 1, -EFAULT),
        ("init", ENOMEM, 0, -ENOMEM),
        ("init", EACCES, 0, -EACCES),
        ("init", ENOSPC, 0, -EOPNOTSUPP),
        ("alloc_context", ENOMEM, 0, -ENOMEM),
        ("alloc_context", ENOSPC, 1, -22),
        ("reattach_device", ENOMEM, 1, -ENOMEM),
    ],
)
def test_errors_at_start_are_answered_and_leave_nothing(name, errno, after, expected):
    guest, xen = start(setup=lambda xen: setattr(xen, "fail", failing(name, errno, after)))
    xen.fail = None
    assert guest.xen is None and guest.xen_errno == expected
    assert guest.kernel.pages.allocated == 0 and not guest.iommu.domains and not guest.iommu.groups


def test_no_memory_for_the_argument_page_is_enomem():
    def before(kernel):
        kernel.pages.fault = lambda order: True

    guest, xen = start(before_probe=before)
    assert guest.xen_errno == -ENOMEM and not xen.calls


def test_contexts_that_are_there_already_are_not_initialised_again():
    calls = []

    def setup(xen):
        xen.limit = 9
        xen.fail = lambda name, fields: calls.append(name) or 0

    guest, _ = start(setup=setup)
    assert "init" not in calls and guest.xen.max_ctx_no == 9


def test_init_asks_for_128_contexts_and_an_arena_of_order_12():
    seen = []

    def setup(xen):
        xen.fail = lambda name, fields: seen.append((name, fields)) or 0

    start(setup=setup)
    assert ("init", (128, 12)) in seen


def test_iommus_own_function_is_not_claimed_and_bridges_only_in_dom0():
    functions = [
        *endpoints(1),
        PciInfo(parse_sbdf("00:08.0"), class_code=0x080600),
        PciInfo(parse_sbdf("00:1c.0"), is_bridge=True, secondary_bus=1, acs=True),
    ]
    for dom0, expected in ((True, [True, False, True]), (False, [True, False, False])):
        guest, _ = start(functions=functions, initial_domain=dom0)
        assert [dev.iommu_group is not None for dev in guest.kernel.devices] == expected


# -- contexts and domains


def test_paging_domain_tells_page_sizes_and_aperture():
    guest, xen = start(setup=lambda xen: setattr(xen, "pgsize_mask", 0x201000))
    _, domain = paging(guest)
    assert domain.pgsize_bitmap == xen.pgsize_mask
    assert (domain.aperture_start, domain.aperture_last) == (0, xen.max_iova_addr) and domain.force_aperture


def test_pv_guest_uses_pages_of_4_kib_only():
    guest, _ = start(pv=True, setup=lambda xen: setattr(xen, "pgsize_mask", 0x201000))
    assert paging(guest)[1].pgsize_bitmap == 0x1000


def test_unit_that_does_not_say_how_far_it_reaches_gets_4_gib():
    guest, _ = start(setup=lambda xen: setattr(xen, "max_iova_addr", 0))
    assert paging(guest)[1].aperture_last == U32_MAX


def test_exhaustion_is_enospc_for_domains_and_never_for_ownership():
    guest, xen = start(setup=lambda xen: setattr(xen, "limit", 4))
    dev = guest.kernel.devices[0]
    _, domain = paging(guest)
    assert iommu_paging_domain_alloc(dev) == -ENOSPC
    group = dev.iommu_group
    assert iommu_group_claim_dma_owner(group, object()) == 0
    iommu_group_release_dma_owner(group)
    iommu_domain_free(domain)
    assert len(xen.contexts) == 4
    assert paging(guest)[1].ctx_no == domain.ctx_no


def test_context_that_cannot_be_freed_is_kept_in_mind_and_freed_later():
    guest, xen = start()
    _, domain = paging(guest)
    xen.fail = failing("free_context", EBUSY)
    iommu_domain_free(domain)
    assert guest.leaks()["contexts"] == 1 and guest.warnings == 1 and domain.ctx_no in xen.contexts
    xen.fail = None
    _, again = paging(guest)
    assert guest.leaks()["contexts"] == 0 and again.ctx_no == domain.ctx_no
    iommu_domain_free(again)
    assert domain.ctx_no not in xen.contexts


def test_identity_lets_dma_through_and_blocked_lets_none_through():
    guest, xen = start(cmdline=CommandLine(passthrough=True))
    dev = guest.kernel.devices[0]
    assert xen.where[dev.pci.sbdf] == 0 and xen.translate(dev.pci.sbdf, 0x12345) == 0x12345
    assert iommu_group_claim_dma_owner(dev.iommu_group, object()) == 0
    assert xen.where[dev.pci.sbdf] == guest.xen.blocked.ctx_no
    assert xen.translate(dev.pci.sbdf, 0x12345) is None
    iommu_group_release_dma_owner(dev.iommu_group)
    assert xen.translate(dev.pci.sbdf, 0x12345) == 0x12345


def test_identity_comes_from_a_context_of_its_own_where_the_default_one_is_none():
    guest, xen = start(caps=("identity",), cmdline=CommandLine(passthrough=True))
    dev = guest.kernel.devices[0]
    assert guest.xen.identity.ctx_no in xen.identity and guest.xen.identity.ctx_no != 0
    assert xen.translate(dev.pci.sbdf, 0x12345) == 0x12345
    guest.shutdown()
    assert list(xen.contexts) == [0]


def test_without_any_identity_context_passthrough_becomes_dma():
    guest, xen = start(caps=(), cmdline=CommandLine(passthrough=True))
    dev = guest.kernel.devices[0]
    assert guest.xen.identity is None and dev.dma_iommu and xen.translate(dev.pci.sbdf, 0x12345) is None


def test_refused_attach_leaves_the_device_in_its_context():
    guest, xen = start(functions=one_group(3))
    dev, domain = paging(guest)
    group = dev.iommu_group
    before = dict(xen.where)
    refused = guest.kernel.devices[2].pci.sbdf & 0xFF
    xen.fail = lambda name, fields: ENOMEM if name == "reattach_device" and fields[3] == refused else 0
    assert iommu_attach_group(domain, group) == -ENOMEM
    assert xen.where == before and guest.warnings == 0


def test_released_device_is_blocked():
    guest, xen = start()
    dev = guest.kernel.devices[0]
    iommu_release_device(dev)
    assert xen.where[dev.pci.sbdf] == guest.xen.blocked.ctx_no


# -- map


@pytest.mark.parametrize("version", ["v3", "v7"])
@pytest.mark.parametrize("pv", [False, True])
@pytest.mark.parametrize("pages", [1, 5, 300])
def test_reported_bytes_are_those_the_hypervisor_mapped_for_every_failure_position(version, pv, pages):
    guest, xen = start(version, pv)
    _, domain = paging(guest)
    for budget in {0, 1, 2, 3, pages // 2, pages - 1, pages}:
        xen.page_budget = budget
        ret, mapped = guest.xen.xen_iommu_map_pages(domain, 0x100000, 0x8000, PAGE, pages, RW, 0)
        done = min(budget, pages)
        assert (ret, mapped) == (0 if done == pages else -ENOMEM, done * PAGE)
        assert sorted(table(xen, domain)) == list(range(0x100, 0x100 + done))
        assert truth(guest, xen, domain) == {0x100000 + n * PAGE: 0x8000 + n * PAGE for n in range(done)}
        assert_told_the_truth(guest, xen, domain, 0x100 + pages + 1)
        assert guest.xen.xen_iommu_unmap_pages(domain, 0x100000, PAGE, pages, None) == done * PAGE
        assert not table(xen, domain)


def test_driver_is_right_on_a_hypervisor_that_adds_to_mapped():
    guest, _ = start(pv=True, setup=lambda xen: setattr(xen, "additive", True))
    _, domain = paging(guest)
    assert guest.xen.xen_iommu_map_pages(domain, 0, 0x8000, PAGE, 50, RW, 0) == (0, 50 * PAGE)
    assert guest.xen.xen_iommu_unmap_pages(domain, 0, PAGE, 50, None) == 50 * PAGE


def test_contiguous_machine_frames_travel_in_one_hypercall():
    guest, xen = start(pv=True)
    _, domain = paging(guest)
    xen.calls.clear()
    iommu_map(domain, 0, 6 << 12, 10 * PAGE, RW)
    runs = [(fields[1], fields[2], fields[5]) for name, fields in xen.calls if name == "map_pages"]
    gfn = xen.ram.pfn_to_gfn
    assert runs == [(gfn(6), 0, 2), (gfn(8), 2, 4), (gfn(12), 6, 4)]


def test_a_translated_guest_needs_one_hypercall_for_everything():
    guest, xen = start()
    _, domain = paging(guest)
    xen.calls.clear()
    iommu_map(domain, 0, 0, 400 * PAGE, RW)
    iommu_unmap(domain, 0, 400 * PAGE)
    assert [name for name, _ in xen.calls] == ["map_pages", "unmap_pages"]


def test_limit_of_pages_per_call_is_kept():
    guest, xen = start("v3")
    _, domain = paging(guest)
    xen.calls.clear()
    assert iommu_map(domain, 0, 0, 500 * PAGE, RW) == 0
    assert iommu_unmap(domain, 0, 500 * PAGE) == 500 * PAGE
    counts = [fields[5] for name, fields in xen.calls if name == "map_pages"]
    assert counts == [256, 244]
    assert [fields[3] for name, fields in xen.calls if name == "unmap_pages"] == [256, 244]


def test_map_over_something_is_eaddrinuse_and_leaves_it():
    guest, xen = start()
    _, domain = paging(guest)
    iommu_map(domain, 0x3000, 0x9000, PAGE, RW)
    before = dict(table(xen, domain))
    assert iommu_map(domain, 0x1000, 0x20000, 5 * PAGE, RW) == -EADDRINUSE
    assert table(xen, domain) == before
    assert_told_the_truth(guest, xen, domain, 8)


def test_superpages_are_asked_for_as_such():
    guest, xen = start(pages=2048, setup=lambda xen: setattr(xen, "pgsize_mask", 0x201000))
    _, domain = paging(guest)
    xen.calls.clear()
    assert iommu_map(domain, 0x1FF000, 0x1FF000, 0x202000, RW) == 0
    seen = [fields[2:6] for name, fields in xen.calls if name == "map_pages"]
    assert [(dfn, size, count) for dfn, _, size, count in seen] == [
        (0x1FF, 0x1000, 1),
        (0x200, 0x200000, 1),
        (0x400, 0x1000, 1),
    ]
    assert iommu_iova_to_phys(domain, 0x3FFFFF) == 0x3FFFFF
    assert iommu_unmap(domain, 0x1FF000, 0x202000) == 0x202000
    assert not table(xen, domain)


@pytest.mark.parametrize("version", ["v3", "v7"])
def test_protection_bits_arrive_and_cache_only_with_the_capability(version):
    abi = versions.get(version)
    for caps in ((), ("cache",)):
        guest, xen = start(version, caps=caps)
        dev, domain = paging(guest)
        for slot, prot in enumerate((IOMMU_READ, IOMMU_WRITE, RW, RW | IOMMU_CACHE)):
            assert iommu_map(domain, slot << 12, 0x5000, PAGE, prot) == 0
            flags = table(xen, domain)[slot][1]
            assert bool(flags & abi.map_readable) == bool(prot & IOMMU_READ)
            assert bool(flags & abi.map_writeable) == bool(prot & IOMMU_WRITE)
            cached = bool(prot & IOMMU_CACHE and abi.caps.get("cache") and "cache" in caps)
            assert bool(flags & abi.map_cache) == cached
        assert device_iommu_capable(dev, IOMMU_CAP_CACHE_COHERENCY) == bool(caps and abi.caps.get("cache"))
        assert not device_iommu_capable(dev, IOMMU_CAP_DEFERRED_FLUSH)


def test_neither_read_nor_write_is_einval_without_a_hypercall():
    guest, xen = start()
    _, domain = paging(guest)
    xen.calls.clear()
    assert iommu_map(domain, 0, 0x5000, PAGE, IOMMU_CACHE) == -EINVAL
    assert not xen.calls


def test_nothing_is_mapped_outside_the_aperture():
    guest, xen = start(setup=lambda xen: setattr(xen, "max_iova_addr", (1 << 39) - 1))
    _, domain = paging(guest)
    assert iommu_map(domain, (1 << 39) - PAGE, 0x5000, PAGE, RW) == 0
    assert iommu_map(domain, (1 << 39) - PAGE, 0x5000, 2 * PAGE, RW) == -EINVAL
    assert iommu_map(domain, 1 << 39, 0x5000, PAGE, RW) == -EINVAL
    assert len(table(xen, domain)) == 1


def test_success_without_progress_is_eio_not_an_endless_loop():
    guest, xen = start()
    _, domain = paging(guest)
    xen.map_pages = lambda *fields: (0, (0,))
    assert iommu_map(domain, 0, 0x5000, PAGE, RW) == -EIO


def test_registers_of_devices_keep_their_frame_numbers_in_a_pv_guest():
    guest, xen = start(pv=True)
    _, domain = paging(guest)
    assert iommu_map(domain, 0x4000, 0xE0001000, 2 * PAGE, RW) == 0
    assert [gfn for gfn, _ in table(xen, domain).values()] == [0xE0001, 0xE0002]


# -- unmap


@pytest.mark.parametrize("version", ["v3", "v7"])
def test_unmap_reports_exactly_what_is_gone(version):
    guest, xen = start(version)
    _, domain = paging(guest)
    iommu_map(domain, 0, 0x5000, 4 * PAGE, RW)
    iommu_map(domain, 0x5000, 0x5000, 2 * PAGE, RW)
    assert iommu_unmap(domain, 0, 8 * PAGE) == 4 * PAGE
    assert iommu_unmap(domain, 0, 8 * PAGE) == 0
    assert_told_the_truth(guest, xen, domain, 8)
    xen.unmap_budget = 1
    assert iommu_unmap(domain, 0x5000, 2 * PAGE) == PAGE
    assert_told_the_truth(guest, xen, domain, 8)


def test_unmap_is_never_negative():
    guest, xen = start()
    _, domain = paging(guest)
    iommu_map(domain, 0, 0x5000, PAGE, RW)
    xen.fail = failing("unmap_pages", EINVAL)
    assert guest.xen.xen_iommu_unmap_pages(domain, 0, PAGE, 1, None) == 0
    assert iommu_iova_to_phys(domain, 0) == 0x5000


programs = st.lists(
    st.tuples(
        st.sampled_from(["map", "map", "unmap"]),
        st.integers(0, 40),
        st.integers(1, 12),
        st.integers(1, 80),
        st.one_of(st.none(), st.integers(0, 11)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(programs, st.sampled_from(["v3", "v7"]), st.booleans())
def test_shadow_and_hypervisor_agree_after_any_program(program, version, pv):
    guest, xen = start(version, pv, pages=128)
    _, domain = paging(guest)
    for kind, page, count, target, budget in program:
        before = truth(guest, xen, domain)
        if kind == "map":
            xen.page_budget = budget
            ret = iommu_map(domain, page << 12, target << 12, count << 12, RW)
            after = truth(guest, xen, domain)
            fresh = {page + n << 12: target + n << 12 for n in range(count)}
            assert after == (before if ret else before | fresh)
            assert bool(ret) == bool(before.keys() & fresh.keys() or (budget is not None and budget < count))
        else:
            xen.unmap_budget = budget
            gone = iommu_unmap(domain, page << 12, count << 12)
            xen.unmap_budget = None
            assert truth(guest, xen, domain) == {
                iova: paddr for iova, paddr in before.items() if not page << 12 <= iova < (page << 12) + gone
            }
        xen.page_budget = None
        assert_told_the_truth(guest, xen, domain, 54)
    assert guest.warnings == 0


def test_unwinding_that_gets_stuck_is_a_warning():
    guest, xen = start()
    _, domain = paging(guest)
    iommu_map(domain, 0x3000, 0x9000, PAGE, RW)
    xen.unmap_budget = 1
    assert iommu_map(domain, 0, 0x20000, 5 * PAGE, RW) == -EADDRINUSE
    assert guest.warnings == 1
    assert_told_the_truth(guest, xen, domain, 8)


# -- deferred flushing of maps


def test_map_with_flushing_held_back_is_flushed_once_as_a_whole():
    versions_with = [name for name in USABLE if versions.get(name).has("flush_pages")]
    for version in versions_with:
        guest, xen = start(version, pv=True, caps=("default_identity", "deferred_flush"))
        _, domain = paging(guest)
        assert iommu_map(domain, 0x7000, 0x5000, 9 * PAGE, RW) == 0
        assert xen.flushes == [(domain.ctx_no, 7, 9)]
        assert all(flags & xen.abi.map_no_flush for _, flags in table(xen, domain).values())
        guest, xen = start(version)
        _, domain = paging(guest)
        assert iommu_map(domain, 0x7000, 0x5000, PAGE, RW) == 0 and not xen.flushes


# -- reserved regions


def test_msi_window_and_reserved_device_memory_are_reported_and_never_handed_out():
    functions = endpoints(2)
    # More regions than fit the first question, close under 4 GiB where IOVAs are taken first.
    regions = [(0xFFFF0 - 16 * n, 4) for n in range(6)]

    def setup(xen):
        xen.rdm = {int(functions[0].sbdf): regions}

    guest, _ = start(functions=functions, setup=setup)
    first, second = guest.kernel.devices
    found = iommu_get_resv_regions(first)
    assert [(r.start, r.length) for r in found if r.type == IOMMU_RESV_MSI] == [(0xFEE00000, 0x100000)]
    assert [(r.start >> 12, r.length >> 12) for r in found if r.type == IOMMU_RESV_RESERVED] == regions
    assert [r.type for r in iommu_get_resv_regions(second)] == [IOMMU_RESV_MSI]
    guest.dma.set_mask_and_coherent(first, U32_MAX)
    for _ in range(60):
        pfn = guest.dma.map_single(first, 0x5000, 1, DMA_TO_DEVICE) >> 12
        assert all(not start <= pfn < start + count for start, count in regions)
    assert guest.leaks()["pages"] == 1


def test_refused_memory_op_leaves_the_msi_window():
    guest, _ = start()
    assert [r.type for r in iommu_get_resv_regions(guest.kernel.devices[0])] == [IOMMU_RESV_MSI]
    guest, _ = start(msi_window=None)
    assert iommu_get_resv_regions(guest.kernel.devices[0]) == []


# -- attach and detach of domains of one's own


def test_device_moves_between_its_domains_and_contexts_follow():
    guest, xen = start()
    dev, domain = paging(guest)
    default = dev.iommu_group.default_domain
    iommu_map(domain, 0x9000, 0x5000, PAGE, RW)
    assert xen.translate(dev.pci.sbdf, 0x9000) is None
    assert iommu_attach_device(domain, dev) == 0
    assert xen.translate(dev.pci.sbdf, 0x9ABC) == 0x5ABC
    iommu_detach_device(domain, dev)
    assert xen.where[dev.pci.sbdf] == default.ctx_no
    iommu_domain_free(domain)
    assert guest.warnings == 0 and domain.ctx_no not in xen.contexts
