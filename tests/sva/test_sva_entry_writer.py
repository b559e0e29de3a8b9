# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way from one entry to another, every sight of it that a fetch can have, and DMA after every single store."""

import random

import pytest

from guest_driver.arm_smmu_v3.ctx_desc import arm_smmu_make_cd
from guest_driver.arm_smmu_v3.entry_writer import (
    ArmSmmuEntryWriter,
    arm_smmu_get_cd_used,
    arm_smmu_get_ste_update_safe,
    arm_smmu_get_ste_used,
    arm_smmu_write_entry,
)
from guest_driver.arm_smmu_v3.layouts import EMPTY
from guest_driver.arm_smmu_v3.stream_entries import arm_smmu_make_abort_ste, arm_smmu_make_bypass_ste
from guest_driver.linux.iommu_core import iommu_paging_domain_alloc
from guest_driver.linux.printk import Printk
from machine.iommu import replacement as policies
from machine.iommu.smmuv3.config import Smmuv3Config
from machine.memory import PhysicalMemory
from testbed.invariants_sva import expected_syncs
from testbed.ports import DomainRam
from testbed.sva.meaning import INVALID, cd_kind, cd_meaning, mixtures, ste_kind, ste_meaning
from testbed.sva.stores import Store, StoreLog, before, prefixes, rounds, sights
from testbed.sva.watch import VA, Watch

AT = 0x4000
CONFIG = Smmuv3Config(stage1=True, ssid_bits=10, stall_model=0)
BYPASS, ABORT = arm_smmu_make_bypass_ste(), arm_smmu_make_abort_ste()
TABLES = 0x0010_0000, 0x0020_0000
STAGE2 = (20 << 32 | 2 << 38 | 5 << 48 | 1 << 51 | 1 << 54 | 1 << 58 | 7, 0x30_0000)


def cdtable(pointer=TABLES[0], dss=2, stalld=0, cdmax=10, vmid=0):
    shcfg = 1 << 44 if dss == 1 else 0
    return (
        1 | 5 << 1 | pointer | cdmax << 59,
        dss | 1 << 2 | 1 << 4 | 3 << 6 | stalld << 27 | shcfg,
        vmid,
        0,
        *(0,) * 4,
    )


def stage2(stall=0, root=STAGE2[1]):
    return (1 | 6 << 1, 1 << 44, STAGE2[0] | stall << 57, root, 0, 0, 0, 0)


def nested(pointer=TABLES[0], dss=2, mev=0, eats=0):
    low, attributes, *_ = cdtable(pointer, dss)
    return (low | 2 << 1, attributes | 1 << 44 | mev << 19 | eats << 28, *STAGE2, 0, 0, 0, 0)


STES = {
    "invalid": EMPTY,
    "abort": ABORT,
    "bypass": BYPASS,
    "cdtable": cdtable(),
    "other table": cdtable(TABLES[1]),
    "terminate": cdtable(dss=0),
    "dss bypass": cdtable(dss=1),
    "no stalls": cdtable(stalld=1),
    "s2": stage2(),
    "s2 stalls": stage2(stall=1),
    "other s2": stage2(root=0x40_0000),
    "nested": nested(),
    "nested bypass": nested(dss=1),
    "nested merged": nested(mev=1),
}
LIVE = arm_smmu_make_cd(0x100, 5, 5)
CDS = {
    "empty": EMPTY,
    "live": LIVE,
    "same tables": arm_smmu_make_cd(0x100, 6, 5),
    "other": arm_smmu_make_cd(0x200, 6, 5),
    "quiet": arm_smmu_make_cd(None, 5, 5),
    "quiet other": arm_smmu_make_cd(None, 6, 5),
}


class Writer(ArmSmmuEntryWriter):
    def __init__(self, log, used, safe=None):
        super().__init__(log, Printk(), AT)
        self.log, self._used, self._safe = log, used, safe

    def get_used(self, entry):
        return self._used(entry)

    def get_update_safe(self, entry, target):
        return self._safe(entry, target) if self._safe else super().get_update_safe(entry, target)

    def sync(self):
        self.log.sync()


def written(old, new, used, safe=None):
    """(the rounds of stores, whether nothing was interrupted); the entry is ``new`` afterwards."""
    memory = PhysicalMemory(2 << 20)
    log = StoreLog(DomainRam(memory, list(range(memory.frames)), False))
    for word, value in enumerate(old):
        memory.write64(AT + 8 * word, value)
    writer = Writer(log, used, safe)
    hitless = arm_smmu_write_entry(writer, new)
    assert log.entry(AT) == new and not writer.printk.warnings
    assert before(log.events, AT, new) == old
    return rounds(log.events, AT), hitless


def ste(old, new):
    return written(old, new, arm_smmu_get_ste_used, arm_smmu_get_ste_update_safe)


def cd(old, new):
    return written(old, new, arm_smmu_get_cd_used)


@pytest.mark.parametrize("new", STES)
@pytest.mark.parametrize("old", STES)
def test_a_stream_is_never_seen_in_a_mixture(old, new):
    stored, hitless = ste(STES[old], STES[new])
    seen = list(sights(STES[old], stored))
    meaning = ste_meaning(CONFIG)
    assert set(prefixes(STES[old], stored)) <= set(seen)
    assert not mixtures(STES[old], STES[new], seen, meaning)
    if hitless and "invalid" not in (old, new):
        assert INVALID not in map(meaning, seen)
    assert len(stored) <= 3


@pytest.mark.parametrize("new", CDS)
@pytest.mark.parametrize("old", CDS)
def test_a_descriptor_is_never_seen_in_a_mixture(old, new):
    stored, hitless = cd(CDS[old], CDS[new])
    seen = list(sights(CDS[old], stored))
    meaning = cd_meaning(CONFIG)
    assert not mixtures(CDS[old], CDS[new], seen, meaning)
    if hitless and "empty" not in (old, new):
        assert INVALID not in map(meaning, seen)


UPSTREAM = [
    ("bypass", "abort", 2, 2),
    ("cdtable", "abort", 2, 2),
    ("cdtable", "bypass", 3, 3),
    ("cdtable", "terminate", 1, 1),
    ("cdtable", "dss bypass", 1, 1),
    ("dss bypass", "bypass", 2, 2),
    ("s2", "abort", 2, 2),
    ("s2", "bypass", 2, 2),
    ("cdtable", "s2", 3, 3),
    ("no stalls", "s2 stalls", 3, 3),
    ("cdtable", "other table", 1, 1),
]


@pytest.mark.parametrize(("old", "new", "there", "back"), UPSTREAM)
def test_a_stream_takes_as_many_syncs_as_upstream(old, new, there, back):
    for one, other, count in ((old, new, there), (new, old, back)):
        stored, _ = ste(STES[one], STES[other])
        assert len(stored) == count
        assert expected_syncs("ste", ste_kind(STES[one]), ste_kind(STES[other])) >= count


@pytest.mark.parametrize(
    ("old", "new", "count", "hitless"),
    [
        ("empty", "live", 2, True),
        ("live", "empty", 2, True),
        ("live", "same tables", 1, True),
        ("live", "quiet", 2, True),
        ("quiet", "empty", 2, True),
        ("live", "other", 3, False),
    ],
)
def test_a_descriptor_takes_as_many_syncs_as_upstream(old, new, count, hitless):
    stored, smooth = cd(CDS[old], CDS[new])
    assert (len(stored), smooth) == (count, hitless)
    if "empty" not in (old, new):
        assert expected_syncs("cd", cd_kind(CDS[old]), cd_kind(CDS[new])) >= count


def test_nested_streams_and_bits_that_may_change_any_time():
    assert len(ste(nested(dss=1), BYPASS)[0]) <= 3
    stored, hitless = ste(nested(), nested(mev=1, eats=1))
    assert (len(stored), hitless) == (1, True)
    assert arm_smmu_get_ste_update_safe(nested(eats=2), nested())[1] == 1 << 19


@pytest.mark.parametrize("seed", range(12))
def test_random_streams_and_descriptors(seed):
    rng = random.Random(seed)
    pools = ((list(STES.values()), arm_smmu_get_ste_used, ste), (list(CDS.values()), arm_smmu_get_cd_used, cd))
    for pool, used, write in pools:
        meaning = ste_meaning(CONFIG) if write is ste else cd_meaning(CONFIG)
        for _ in range(12):
            pair = []
            for entry in rng.sample(pool, 2):
                noise = [rng.getrandbits(64) & rng.getrandbits(64) for _ in entry]
                noise[0] &= ~0xF if write is ste else ~(1 << 31 | 1 << 14)
                mask = used(entry)
                changed = tuple((word ^ n) & m for word, n, m in zip(entry, noise, mask))
                pair.append(tuple(word & m for word, m in zip(changed, used(changed))))
            old, new = pair
            stored, _ = write(old, new)
            masked = {tuple(w & m for w, m in zip(old, used(old))), tuple(w & m for w, m in zip(new, used(new)))}
            for seen in sights(old, stored):
                assert meaning(seen) in (meaning(old), meaning(new), INVALID)
                if write is cd and seen[0] >> 31 & 1:
                    assert tuple(w & m for w, m in zip(seen, used(seen))) in masked


def test_a_writer_that_stores_in_order_is_caught():
    other = CDS["other"]
    stored = [[Store(AT, word, LIVE[word], other[word]) for word in range(8) if LIVE[word] != other[word]]]
    assert mixtures(LIVE, CDS["other"], sights(LIVE, stored), cd_meaning(CONFIG))


@pytest.mark.parametrize("replacement", [None, policies.parse("eager")], ids=["stale", "eager"])
def test_dma_after_every_store_meets_the_old_the_new_or_nothing(replacement):
    """Devices send requests between any two stores; what they read is one address space or the other's."""
    watch = Watch(replacement=replacement)
    m = watch.machine
    mm = watch.process(text=b"process")
    old, new = (iommu_paging_domain_alloc(m.dev1) for _ in range(2))
    for domain, text in ((old, b"old"), (new, b"new")):
        pfn = m.kernel.pages.alloc_pages(0)
        m.memory.write(pfn << 12, text.ljust(8))
        assert domain.ops.map_pages(domain, VA, pfn << 12, 4096, 1, 3, 0) == (0, 4096)
    seen = []

    def everybody(store):
        seen.append((watch.dma(m.dev1), watch.dma(m.dev1, pasid=1), watch.dma(m.dev2, pasid=1)))

    def step(operation, plain, first, second):
        noted, watch.log.after = watch.log.after, lambda store: (noted(store), everybody(store))
        seen.clear()
        operation()
        watch.log.after = noted
        everybody(None)
        for allowed, what in zip((plain, first, second), zip(*seen)):
            assert set(what) <= allowed, (what, allowed)
            assert what[-1] in allowed

    alone, no_table, no_entry = {"process"}, {"C_BAD_SUBSTREAMID"}, {"C_BAD_CD"}
    start = watch.dma(m.dev1)
    step(lambda: watch.bind(m.dev1, mm), {start}, no_table | alone, no_table)
    step(lambda: watch.bind(m.dev2, mm), {start}, alone, no_table | alone)
    step(lambda: watch.attach(m.dev1, old), {start, "old"}, alone, alone)
    step(lambda: old.ops.attach_dev(new, m.dev1, old), {"old", "new"} | no_entry, alone, alone)
    step(lambda: watch.unbind(watch.handles[1]), {"new"}, alone, alone | no_entry | no_table)
    step(lambda: watch.exit(mm), {"new"}, alone | {"F_TRANSLATION"}, no_table)
    assert watch.dma(m.dev1, pasid=1) == "F_TRANSLATION"
    step(lambda: watch.unbind(watch.handles[0]), {"new"}, no_entry | {"F_TRANSLATION"}, no_table)
    assert watch.dma(m.dev1) == "new"
