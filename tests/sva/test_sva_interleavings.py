# SPDX-License-Identifier: GPL-2.0-or-later
"""Another CPU runs whenever the driver lets go of a lock: every place, every thing it could do there."""

import pytest

from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from testbed.invariants_sva import check
from testbed.sva.watch import VA, Watch


class Setting:
    """dev1 and dev2 share a domain; dev2 and the pair are bound to ``other``; dev1 is about to be bound to ``mm``."""

    def __init__(self, xen):
        self.watch = watch = Watch(xen=xen)
        self.m = watch.machine
        self.mm, self.other = watch.process(text=b"process"), watch.process(text=b"other")
        self.paging = iommu_paging_domain_alloc(self.m.dev1)
        for dev in (self.m.dev1, self.m.dev2):
            assert not watch.attach(dev, self.paging).result
        self.bound = [watch.bind(dev, self.other).result for dev in (self.m.dev2, self.m.pair[0])]

    def others(self):
        """What another CPU may do, by name."""
        watch, m = self.watch, self.m
        return {
            "dev2 leaves the domain": lambda: watch.attach(m.dev2, m.smmu.identity),
            "dev2 is unbound": lambda: watch.unbind(self.bound[0]),
            "dev2 is bound to the process too": lambda: watch.bind(m.dev2, self.mm),
            "the other process ends": lambda: watch.exit(self.other),
            "the process unmaps": lambda: watch.do("munmap", m.dev1, lambda: self.mm.munmap(VA, 1)),
        }


WAITS = {"dev2 leaves the domain", "dev2 is unbound", "dev2 is bound to the process too"}
"""They take arm_smmu_asid_lock themselves."""
STEPS = {
    "bind": lambda s: s.watch.bind(s.m.dev1, s.mm),
    "attach": lambda s: s.watch.attach(s.m.dev1, s.m.smmu.identity),
    "exit": lambda s: s.watch.exit(s.mm),
}


@pytest.mark.parametrize("xen", [False, True], ids=["bare", "xen"])
@pytest.mark.parametrize("step", STEPS)
def test_another_cpu_at_every_unlock(step, xen):
    ran = 0
    for name in Setting(xen).others():
        place = 0
        while True:
            setting = Setting(xen)
            watch = setting.watch
            if step == "exit":
                watch.bind(setting.m.dev1, setting.mm)
            other, seen = setting.others()[name], []

            def at_place(mutex, place=place, seen=seen, other=other, smmu=setting.m.smmu, waits=name in WAITS):
                if smmu.asid_lock.held and waits:
                    return False  # the other CPU would wait for that one
                seen.append(mutex.name)
                if len(seen) <= place:
                    return False
                other()
                return True

            watch.while_unlocked = at_place
            if step == "exit" and name == "dev2 is bound to the process too":
                break  # the process has no user left to be bound by
            STEPS[step](setting)
            if watch.while_unlocked is not None:
                break
            ran += 1
            place += 1
            inner = watch.steps[-1]  # what ran inside; the step around it saw the stores of both
            assert not check(watch, inner), (name, place)
            finish(setting, name)
    assert ran > (3 if step != "exit" else 2)


def finish(setting, name):
    """Whatever happened, everything can be taken down, and nothing is reached that should not be."""
    watch, m = setting.watch, setting.m
    watch.while_unlocked = None
    for mm in list(watch.processes):
        assert not {k: v for k, v in check(watch, watch.exit(mm)).items() if k != "71"}, name
    for dev in (m.dev1, m.dev2, *m.pair):
        for pasid in (1, 2):
            assert watch.dma(dev, VA, pasid).startswith(("F_", "C_")), (name, dev)
    while watch.handles:
        watch.unbind(watch.handles[0])
    for dev in (m.dev1, m.dev2):
        if dev.iommu_group.domain is setting.paging:
            watch.attach(dev, m.smmu.identity)
    iommu_domain_free(setting.paging)
    m.shutdown()
    assert m.kernel.pages.allocated == 0 and not m.kernel.printk.warnings, (name, m.kernel.printk.lines)
    assert not m.smmu.asids
