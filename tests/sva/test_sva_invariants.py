# SPDX-License-Identifier: GPL-2.0-or-later
"""Nothing is broken by the driver as it is; each property is broken by something on purpose."""

import pytest

from abi.errno import EBUSY, EINVAL, ENOMEM, EOVERFLOW
from guest_driver.arm_smmu_v3 import ctx_desc, domains, entry_writer, sva
from guest_driver.defects.sva import DEFECTS
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.sva import iommu_sva
from testbed.invariants_sva import INVARIANTS, check
from testbed.sva.watch import VA, Watch


def run(watch, *steps):
    """Ids of the properties that any of ``steps`` (functions of nothing) breaks."""
    found = {}
    for step in steps:
        made = step()
        for one in made if isinstance(made, list) else [made]:
            found |= check(watch, one)
    return found


def story(watch):
    """Bind, share, unmap, move, end: everything that touches an entry."""
    m = watch.machine
    mm, other = watch.process(), watch.process(text=b"other")
    paging = iommu_paging_domain_alloc(m.dev1)
    yield watch.bind(m.dev1, mm)
    yield watch.bind(m.dev2, mm)
    yield watch.bind(m.dev1, mm)
    yield watch.bind(m.dev1, other)
    yield watch.attach(m.dev1, paging)
    yield watch.bind(m.pair[0], mm)
    yield watch.attach(m.dev1, m.smmu.identity)
    yield watch.do("munmap", m.dev1, lambda: mm.munmap(VA, 1))
    yield watch.unbind(watch.handles[1])
    yield watch.attach(m.dev2, m.smmu.blocked)
    yield watch.bind(m.dev2, other)
    yield watch.exit(mm)
    while watch.handles:
        yield watch.unbind(watch.handles[0])
    yield watch.exit(other)
    iommu_sva.iommu_domain_free(paging)


@pytest.mark.parametrize("two_level", [False, True])
def test_the_driver_breaks_nothing(two_level):
    watch = Watch(two_level=two_level)
    started = watch.machine.kernel.pages.allocated
    assert started
    for step in story(watch):
        assert not check(watch, step), step.name
    watch.machine.shutdown()
    kernel = watch.machine.kernel
    assert (kernel.pages.allocated, kernel.printk.warnings) == (0, 0), kernel.printk.lines
    assert not kernel.iommu.global_pasids and not watch.machine.smmu.asids


def test_the_list_is_complete():
    broken = {"69", "70", "71", "72", "73", "listed", "published", "asid"}
    assert set(INVARIANTS) == broken
    assert all(len(entry.text) > 20 for entry in INVARIANTS.values())


def shared_domain(watch):
    """dev1 and dev2 on one domain for requests without a PASID."""
    m = watch.machine
    paging = iommu_paging_domain_alloc(m.dev1)
    assert not watch.attach(m.dev1, paging).result and not watch.attach(m.dev2, paging).result
    return paging


def test_69_words_in_their_order_show_a_mixture():
    watch = Watch(DEFECTS["SVA-4"].build)
    assert "69" in run(watch, lambda: watch.bind(watch.machine.dev1, watch.process()))


def test_69_invalid_where_it_could_be_hitless(monkeypatch):
    def broken(writer, target):
        entry_writer.entry_set(writer, entry_writer.EMPTY, 0, 1)
        entry_writer.entry_set(writer, target, 1, 7)
        entry_writer.entry_set(writer, target, 0, 1)

    watch = Watch()
    mm = watch.process()
    watch.bind(watch.machine.dev1, mm)
    monkeypatch.setattr(ctx_desc, "arm_smmu_write_entry", broken)
    assert "69" in run(watch, lambda: watch.exit(mm))


def test_70_a_round_for_every_word(monkeypatch):
    def one_by_one(writer, target, start, count):
        for word in range(start, start + count):
            if writer.read()[word] != target[word]:
                writer.store(word, target[word])
                writer.sync()

    monkeypatch.setattr(entry_writer, "entry_set", one_by_one)
    watch = Watch()
    assert "70" in run(watch, lambda: watch.bind(watch.machine.dev1, watch.process()))


def test_71_a_device_that_did_not_ask():
    watch = Watch(DEFECTS["SVA-2"].build)
    shared_domain(watch)
    mm = watch.process()
    assert "71" in run(watch, lambda: watch.bind(watch.machine.dev1, mm))
    assert watch.dma(watch.machine.dev2, pasid=1) == "process"


def fail_leaf_of(watch, dev):
    """No memory for the next leaf of the device."""
    pages = watch.machine.kernel.pages
    master = watch.machine.master(dev)
    calls = []

    def fault(order):
        calls.append(order)
        return order == 4 and len(master.cd_table.leaves) == 1 and calls.count(4) > 1

    pages.fault = fault


@pytest.mark.parametrize("defect", ["SVA-1", "SVA-2"])
def test_71_an_undo_that_others_can_see(defect):
    watch = Watch(DEFECTS[defect].build)
    shared_domain(watch)
    mm = watch.process()
    watch.machine.kernel.iommu.global_pasids |= set(range(1, 2000))
    fail_leaf_of(watch, watch.machine.dev2)
    found = run(watch, lambda: watch.bind(watch.machine.dev1, mm))
    assert watch.steps[-1].result == -ENOMEM
    assert ("let go" in found.get("71", "")) == (defect == "SVA-1")


def test_72_the_list_that_is_never_filled():
    watch = Watch(DEFECTS["SVA-3"].build)
    mm = watch.process()
    assert "listed" in run(watch, lambda: watch.bind(watch.machine.dev1, mm))
    assert "72" in run(watch, lambda: watch.exit(mm))


def test_72_cached_translations_that_survive(monkeypatch):
    watch = Watch()
    mm = watch.process()
    watch.bind(watch.machine.dev1, mm)
    watch.dma(watch.machine.dev1, pasid=1)
    monkeypatch.setattr(domains.ArmSmmuDevice, "invalidate_asid", lambda self, domain: None)
    monkeypatch.setattr(watch.machine.smmu, "sync_cd", lambda master, ssid: None)
    assert "72" in run(watch, lambda: watch.exit(mm))


def test_73_a_new_handle_for_every_bind(monkeypatch):
    watch = Watch()
    mm = watch.process()
    watch.bind(watch.machine.dev1, mm)
    real = iommu_sva.iommu_attach_handle_get
    monkeypatch.setattr(iommu_sva, "iommu_attach_handle_get", lambda group, pasid, type: (-2, None))
    monkeypatch.setattr(iommu_sva, "iommu_attach_device_pasid", lambda domain, dev, pasid, handle: 0)
    assert "73" in run(watch, lambda: watch.bind(watch.machine.dev1, mm))
    assert real


def test_published_leaf_with_rubbish(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(ctx_desc, "GFP_ZERO", 0)
    m = watch.machine
    for pfn in range(1, m.kernel.ram.pages):
        if m.memory.read(pfn << 12, 4096) == bytes(4096) and pfn > 300:
            m.memory.write(pfn << 12, b"\xa5" * 64)
    assert "published" in run(watch, lambda: watch.bind(m.dev1, watch.process()))


def test_asid_that_was_given_away(monkeypatch):
    watch = Watch()
    mm = watch.process()
    watch.bind(watch.machine.dev1, mm)
    monkeypatch.setattr(domains, "arm_smmu_clear_cd", lambda master, ssid: None)
    assert "asid" in run(watch, lambda: watch.unbind(watch.handles[0]))


def test_errors_of_binding():
    watch = Watch()
    m = watch.machine
    mm, ended = watch.process(), watch.process()
    watch.exit(ended)
    assert watch.bind(m.dev1, ended).result == -EINVAL
    paging = iommu_paging_domain_alloc(m.dev2)
    assert watch.bind(m.dev1, mm).result.users == 1
    assert domains.arm_smmu_set_pasid(m.master(m.dev2), paging, 1 << 12, (0,) * 8, None) == -EINVAL
    pasid = mm.iommu_mm.pasid
    assert iommu_sva.iommu_attach_device_pasid(paging, m.dev2, pasid, object()) == 0
    assert watch.bind(m.dev2, mm).result == -EBUSY
    m.dev2.iommu.max_pasids = pasid
    assert watch.bind(m.dev2, mm).result == -EOVERFLOW
    assert sva.SVA_OPS.attach_dev(None, m.dev1, None) == -EINVAL
