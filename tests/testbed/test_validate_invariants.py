# SPDX-License-Identifier: GPL-2.0-or-later
"""Every invariant is broken on purpose and has to be reported; on the reference driver nothing is."""

import pytest

from abi.errno import EBUSY, EINVAL, EIO, ENOMEM, ENOSPC
from guest_driver import drivers
from guest_driver.linux import dma_iommu, iommu_default_domain, iommu_group, iommu_owner, iommu_pasid
from guest_driver.linux import iommu_map as core_map
from guest_driver.linux.flush_queue import FlushQueue
from guest_driver.linux.iommu import IOMMU_RESV_DIRECT, IommuIotlbGather, IommuResvRegion
from guest_driver.linux.iova import IovaDomain
from testbed.invariants_guest import INVARIANTS, check
from testbed.validate import calls, calls_pasid
from testbed.validate.calls import perform
from testbed.validate.world import World

PAGE = 4096
AT = 0x4000_0000
START = (("boot",), ("alloc", 0, "copier"), ("attach", 0, "copier"))
TESTED = {
    *map(str, range(1, 43)),
    "errno",
    "warn",
    "calls",
    "leak",
}


def complaints(*program, sabotage=None, driver="reference", guest="pvh", before_last=None, **options):
    """Ids of the invariants that any call of ``program`` breaks."""
    world = World(drivers.get(driver), guest=guest, sabotage=sabotage, **options)
    found = set()
    for number, (name, *args) in enumerate(program):
        if before_last is not None and number == len(program) - 1:
            assert not found
            before_last(world)
        step = perform(world, name, tuple(args))
        found |= {complaint.invariant for complaint in check(world, step)}
    return found


def around(name, change, table="domain_ops"):
    """A sabotage: function ``name`` of the driver becomes ``change(original, *args)``."""

    def sabotage(driver):
        ops = getattr(driver, table)
        original = getattr(ops, name)
        setattr(ops, name, lambda *args: change(original, *args))

    return sabotage


def test_the_list_is_complete():
    assert set(INVARIANTS) == TESTED
    assert all(len(entry.text) > 20 for entry in INVARIANTS.values())


@pytest.mark.parametrize("guest", ["pv", "pvh", "hvm"])
@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
def test_the_reference_driver_breaks_nothing(profile, guest):
    assert not complaints(
        *START,
        ("map", 0, AT, "near", 3),
        ("touch", "copier", AT, 3),
        ("unmap", 0, AT, 3),
        ("map", 0, AT, "near", 40, "rwc"),
        ("fail", "unmap_pages", -ENOMEM, 5),
        ("unmap", 0, AT, 40),
        ("detach", 0, "copier"),
        ("claim", "copier"),
        ("bind", "copier"),
        ("release", "copier"),
        ("dma-map", 0, "nic", 9000),
        ("dma-unmap", 0),
        ("dma-sg", 0, "nic", "0+0:4096", "2+8:100"),
        ("dma-unsg", 0),
        ("unplug", "rogue"),
        ("plug", "rogue"),
        ("regions", "rogue"),
        ("type", "rogue", "identity"),
        ("type", "rogue", "DMA"),
        ("shutdown",),
        guest=guest,
        profile=profile,
    )


def test_1_mapped_that_is_too_much():
    lie = around("map_pages", lambda f, *args: _more(f(*args)))
    assert "1" in complaints(*START, ("map", 0, AT, "near", 2), sabotage=lie)


def _more(answer):
    return answer[0], answer[1] + PAGE


def test_2_map_over_an_existing_entry():
    def replace(original, domain, iova, paddr, pgsize, count, *rest):
        domain.ops.unmap_pages(domain, iova, pgsize, count, IommuIotlbGather())
        return original(domain, iova, paddr, pgsize, count, *rest)

    program = (*START, ("map", 0, AT, "near", 1), ("map", 0, AT, "near+5", 1))
    assert "2" in complaints(*program, sabotage=around("map_pages", replace))


def test_3_a_failed_map_that_leaves_pages():
    def fail_late(original, *args):
        original(*args)
        return -ENOMEM, 0

    assert "3" in complaints(*START, ("map", 0, AT, "near", 2), sabotage=around("map_pages", fail_late))


def test_4_success_without_a_mapping():
    empty = around("map_pages", lambda f, domain, iova, paddr, pgsize, count, *rest: (0, pgsize * count))
    assert "4" in complaints(*START, ("map", 0, AT, "near", 2), sabotage=empty)


def test_5_a_shadow_that_lies():
    lie = around("iova_to_phys", lambda f, domain, iova: 0)
    assert "5" in complaints(*START, ("map", 0, AT, "near", 2), sabotage=lie)


def test_6_unmap_that_reports_too_much():
    lie = around("unmap_pages", lambda f, *args: f(*args) + PAGE)
    assert "6" in complaints(*START, ("map", 0, AT, "near", 2), ("unmap", 0, AT, 2), sabotage=lie)


def test_7_unmap_that_cannot_undo_a_map():
    lazy = around("unmap_pages", lambda f, domain, iova, pgsize, count, gather: 0)
    assert "7" in complaints(*START, ("map", 0, AT, "near", 2), ("unmap", 0, AT, 2), sabotage=lazy)


def test_8_unmap_that_takes_a_neighbour_along():
    greedy = around(
        "unmap_pages",
        lambda f, domain, iova, pgsize, count, g: min(f(domain, iova, pgsize, count + 1, g), pgsize * count),
    )
    assert "8" in complaints(*START, ("map", 0, AT, "near", 4), ("unmap", 0, AT, 2), sabotage=greedy)


def alter(**fields):
    def change(original, dev):
        domain = original(dev)
        for name, value in fields.items():
            setattr(domain, name, value)
        return domain

    return around("domain_alloc_paging", change, "ops")


def test_9_page_sizes_that_the_hypervisor_has_not():
    assert "9" in complaints(*START, sabotage=alter(pgsize_bitmap=0x1000 | 1 << 40))


def test_10_an_aperture_that_is_too_large():
    assert "10" in complaints(*START, sabotage=alter(aperture_last=(1 << 60) - 1))


def test_11_rights_that_were_not_asked_for():
    def generous(driver):
        driver.flags_of_prot[1] = driver.flags_of_prot[3]

    assert "11" in complaints(*START, ("map", 0, AT, "near", 1, "r"), sabotage=generous)


def test_12_a_blocked_domain_that_lets_through():
    def leaky(driver):
        def finish():
            driver.blocked.ctx_no = 0
            return 0

        driver.static_domains.append(finish)

    assert "12" in complaints(("boot",), ("claim", "copier"), sabotage=leaky)


def test_13_a_failed_attach_that_moves():
    def move_and_fail(original, domain, dev, old):
        original(domain, dev, old)
        return -EIO if dev.name == "0000:00:04.0" and domain.type == 1 else 0

    assert "13" in complaints(*START, sabotage=around("attach_dev", move_and_fail))


def test_14_two_domains_in_one_context():
    assert "14" in complaints(("boot",), ("alloc", 0, "copier"), ("alloc", 1, "copier"), sabotage=alter(ctx_no=1))


def test_15_a_device_that_stays_where_it_was():
    def sticky(driver):
        def finish():
            driver.blocked.ops.attach_dev = lambda domain, dev, old: 0
            return 0

        driver.static_domains.append(finish)

    assert "15" in complaints(("boot",), ("unplug", "copier"), sabotage=sticky)


def test_16_exhaustion_that_leaks():
    armed = []

    def leak(original, dev):
        domain = original(dev)
        return -ENOSPC if armed else domain

    sabotage = around("domain_alloc_paging", leak, "ops")
    program = (("boot",), ("alloc", 0, "copier"))
    assert "16" in complaints(*program, sabotage=sabotage, before_last=lambda world: armed.append(1))


def test_17_regions_that_are_not_told():
    none = around("get_resv_regions", lambda f, dev: [], "ops")
    assert "17" in complaints(("boot",), ("regions", "copier"), sabotage=none)
    assert "17" in complaints(("boot",), sabotage=none, rmrr=True)


def test_18_wrong_frames():
    shift = around("map_pages", lambda f, domain, iova, paddr, *rest: f(domain, iova, paddr + PAGE, *rest))
    assert "18" in complaints(*START, ("map", 0, AT, "far", 3), sabotage=shift, guest="pv")


def test_19_coherency_that_is_made_up():
    assert "19" in complaints(("boot",), sabotage=around("capable", lambda f, dev, cap: False, "ops"))


def test_20_caches_that_keep_what_was_unmapped():
    def no_flush(world):
        world.testbed.xen.finish_pass = lambda *args: 0

    program = (*START, ("map", 0, AT, "near", 2), ("touch", "copier", AT, 2), ("unmap", 0, AT, 2))
    assert "20" in complaints(*program, before_last=no_flush)


def test_21_an_iova_that_is_free_before_its_flush():
    def queue(world):
        cookie = world.device("nic").iommu_group.default_domain.cookie
        cookie.fq = FlushQueue(cookie.iovad, lambda: None)
        cookie.fq.queue_iova(5, 1)

    assert "21" in complaints(("boot",), ("coherent", "nic"), before_last=queue)


def test_22_pieces_that_run_over_a_boundary(monkeypatch):
    monkeypatch.setattr(core_map, "iommu_pgsize", lambda domain, iova, paddr, size: (PAGE, size // PAGE))
    assert "22" in complaints(*START, ("map", 0, AT, "near", 512))


def test_23_a_misaligned_map_that_is_accepted(monkeypatch):
    monkeypatch.setattr(calls, "iommu_map", lambda *args: 0)
    assert "23" in complaints(*START, ("map-bytes", 0, AT, 0x1000, 0x800))


def test_24_the_errno_that_linux_7_0_lost():
    program = (*START, ("fail", "map_pages", -ENOMEM), ("map", 0, AT, "near", 2))
    assert "24" in complaints(*program, driver="reference+L8.1")
    assert "24" not in complaints(*program)


def test_25_a_sync_failure_that_nobody_hears(monkeypatch):
    def deaf(domain, iova, paddr, size, prot, gfp=0):
        ret = core_map.iommu_map_nosync(domain, iova, paddr, size, prot, gfp)
        domain.ops.iotlb_sync_map(domain, iova, size)
        return ret

    def with_sync(driver):
        driver.domain_ops.iotlb_sync_map = lambda domain, iova, size: -EIO

    assert "25" not in complaints(*START, ("map", 0, AT, "near", 2), sabotage=with_sync)
    monkeypatch.setattr(calls, "iommu_map", deaf)
    assert "25" in complaints(*START, ("map", 0, AT, "near", 2), sabotage=with_sync)


def test_26_an_unmap_that_reports_what_was_asked(monkeypatch):
    real = calls.iommu_unmap
    monkeypatch.setattr(calls, "iommu_unmap", lambda domain, iova, size: max(real(domain, iova, size), size))
    assert "26" in complaints(*START, ("map", 0, AT, "near", 1), ("unmap", 0, AT, 2))


def test_27_an_unmap_without_sync(monkeypatch):
    def with_sync(driver):
        driver.domain_ops.iotlb_sync = lambda domain, gather: None

    program = (*START, ("map", 0, AT, "near", 1), ("unmap", 0, AT, 1))
    assert "27" not in complaints(*program, sabotage=with_sync)
    unsynced = lambda domain, iova, size: core_map.iommu_unmap_fast(domain, iova, size, IommuIotlbGather())  # noqa: E731
    monkeypatch.setattr(calls, "iommu_unmap", unsynced)
    assert "27" in complaints(*program, sabotage=with_sync)


def test_28_a_list_of_which_only_the_beginning_is_mapped(monkeypatch):
    real = calls.iommu_map_sg

    def first_only(domain, iova, entries, prot):
        real(domain, iova, entries[:1], prot)
        return sum(entry.length for entry in entries)

    monkeypatch.setattr(calls, "iommu_map_sg", first_only)
    assert "28" in complaints(*START, ("map-sg", 0, AT, "0:1", "7:1"))


def test_29_a_group_that_is_torn_apart(monkeypatch):
    def refuse_rogue(original, domain, dev, old):
        return -EIO if dev.name == "0000:00:05.0" and domain.type == 1 else original(domain, dev, old)

    program = (("one-group",), *START)
    sabotage = around("attach_dev", refuse_rogue)
    assert "29" not in complaints(*program, sabotage=sabotage)
    monkeypatch.setattr(iommu_group, "_revert", lambda *args: None)
    assert "29" in complaints(*program, sabotage=sabotage)


def test_30_a_device_of_a_group_attached_alone(monkeypatch):
    alone = lambda domain, dev: iommu_group.iommu_group_set_domain(dev.iommu_group, domain)  # noqa: E731
    monkeypatch.setattr(calls, "iommu_attach_device", alone)
    program = (("one-group",), ("boot",), ("alloc", 0, "copier"), ("attach-device", 0, "copier"))
    assert "30" in complaints(*program)


def test_31_the_errno_of_the_early_postings(monkeypatch):
    """The series that thread 002 discusses answered -EBUSY where -EPERM was merged."""
    monkeypatch.setattr(calls, "iommu_group_claim_dma_owner", lambda group, owner: -EBUSY)
    assert "31" in complaints(("boot",), ("bind", "copier"), ("claim", "copier"))


def test_32_an_owner_on_the_default_domain(monkeypatch):
    monkeypatch.setattr(iommu_owner, "iommu_group_set_domain", lambda group, domain: 0)
    assert "32" in complaints(("boot",), ("claim", "copier"))


def _needs_regions(world):
    world.device("copier").iommu.require_direct = True


def test_33_a_device_that_needs_its_region_blocked(monkeypatch):
    program = (("boot",), ("claim", "copier"))
    assert "33" not in complaints(*program, before_last=_needs_regions)
    careless = lambda group, dev, domain, must_succeed: iommu_group.attach_dev(domain, dev, group.domain)  # noqa: E731
    monkeypatch.setattr(iommu_group, "device_set_domain", careless)
    assert "33" in complaints(*program, before_last=_needs_regions)


def test_34_a_region_that_is_not_mapped_in_time(monkeypatch):
    region = IommuResvRegion(0x2_0000_0000, PAGE, 3, IOMMU_RESV_DIRECT)
    direct = around("get_resv_regions", lambda f, dev: [*f(dev), region], "ops")
    monkeypatch.setattr(iommu_default_domain, "iommu_create_device_direct_mappings", lambda domain, dev: 0)
    assert "34" in complaints(("boot",), sabotage=direct)


PASIDS = (("one-group",), ("pasid-driver",), ("boot",), ("alloc", 0, "copier"), ("alloc", 1, "rogue"))


def test_35_nothing_where_pasids_are_attached_refused_and_replaced():
    program = (
        *PASIDS,
        ("pasid-fail", 1),
        ("pasid", 0, "copier", 5),
        ("pasid", 0, "copier", 5),
        ("pasid", 1, "rogue", 5),
        ("pasid-fail", 1),
        ("pasid-replace", 1, "rogue", 5),
        ("pasid-replace", 1, "rogue", 5),
        ("pasid-detach", 1, "copier", 5),
    )
    world = World(drivers.get("reference"))
    answers = []
    for name, *args in program:
        step = perform(world, name, tuple(args))
        assert not check(world, step)
        answers.append(step.result)
    assert answers[5:] == [0, -EIO, 0, -EBUSY, 0, -EIO, 0, 0]
    assert not world.pasids


def test_35_a_pasid_that_stays_although_it_failed(monkeypatch):
    def forgetful(domain, dev, pasid, handle):
        dev.iommu_group.pasid_array[pasid] = (domain, handle)
        return -EINVAL

    monkeypatch.setattr(calls_pasid, "iommu_attach_device_pasid", forgetful)
    assert "35" in complaints(*START, ("pasid", 0, "copier", 3))


def test_35_devices_that_keep_a_pasid_after_a_failure(monkeypatch):
    monkeypatch.setattr(iommu_pasid, "_block", lambda *args: None)
    assert "35" in complaints(*PASIDS, ("pasid-fail", 1), ("pasid", 0, "copier", 5))


def test_35_a_replace_that_reaches_one_device_only(monkeypatch):
    users = iommu_pasid._users
    monkeypatch.setattr(iommu_pasid, "_users", lambda group: users(group)[:1])
    assert "35" in complaints(*PASIDS, ("pasid", 0, "copier", 5))


def test_36_groups_that_depend_on_the_order():
    all_in_one = around("device_group", lambda f, dev: next(iter(dev.kernel.iommu.groups), None) or f(dev), "ops")
    assert "36" in complaints(("boot",), sabotage=all_in_one)


def test_37_a_default_domain_exchanged_in_use(monkeypatch):
    def exchange(group, text):
        group.default_domain = group.devices[0].iommu.iommu_dev.ops.identity_domain
        return 0

    monkeypatch.setattr(calls, "iommu_group_store_type", exchange)
    assert "37" in complaints(("boot",), ("bind", "copier"), ("type", "copier", "identity"))


def test_38_an_iova_that_is_not_aligned(monkeypatch):
    monkeypatch.setattr(dma_iommu, "iommu_dma_alloc_iova", lambda *args: 0x5000)
    assert "38" in complaints(("boot",), ("dma-map", 0, "nic", 8192))


def test_39_a_buffer_that_stays_mapped():
    def forget(world):
        world.booted.dma.unmap_page = lambda *args: None

    assert "39" in complaints(("boot",), ("dma-map", 0, "nic", 100), ("dma-unmap", 0), before_last=forget)


def test_40_segments_that_do_not_add_up():
    def lie(world):
        real = world.booted.dma.map_sg

        def grow(dev, entries, direction):
            count = real(dev, entries, direction)
            entries[0].dma_length += 512
            return count

        world.booted.dma.map_sg = grow

    assert "40" in complaints(("boot",), ("dma-sg", 0, "nic", "0+0:4096", "9+0:512"), before_last=lie)


def test_41_a_failed_mapping_that_keeps_its_iova(monkeypatch):
    program = (("boot",), ("fail", "map_pages", -ENOMEM), ("dma-map", 0, "nic", 100))
    assert "41" not in complaints(*program)
    monkeypatch.setattr(IovaDomain, "free_iova_fast", lambda self, pfn, size: None)
    assert "41" in complaints(*program)


def test_42_a_doorbell_with_two_addresses():
    def twice(world):
        pages = world.device("nic").iommu_group.default_domain.cookie.msi_pages
        pages += [(0xFEE0_0000, 0x1000, PAGE)]

    assert "42" in complaints(("boot",), ("coherent", "nic"), before_last=twice)


def test_errno_a_number_that_user_space_does_not_know():
    odd = around("domain_alloc_paging", lambda f, dev: -524 if dev.name == "0000:00:04.0" and armed else f(dev), "ops")
    armed = []
    program = (("boot",), ("alloc", 0, "copier"))
    assert "errno" in complaints(*program, sabotage=odd, before_last=lambda world: armed.append(1))


def test_warn_without_a_reason():
    noisy = around("capable", lambda f, dev, cap: dev.kernel.printk.warn_on(True, "again") or f(dev, cap), "ops")
    assert "warn" in complaints(("boot",), ("coherent", "nic"), ("coherent", "nic"), sabotage=noisy)


def test_calls_one_page_at_a_time():
    assert "calls" in complaints(*START, ("map", 0, AT, "near", 4), driver="reference+K10", guest="pv")


def test_leak_a_context_that_is_never_given_back():
    def keep(driver):
        driver.domain_ops.free = lambda domain: None

    assert "leak" in complaints(*START, ("shutdown",), sabotage=keep)
