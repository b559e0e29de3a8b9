# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread 001, "iommu/arm-smmu-v3: Refactor write_ctx_desc": who gets a context descriptor, and who else can see it.

An SMMUv3 with stage 1, on the bare machine or in a guest of Xen under Xen's stage 2; dev1 and dev2 on one domain for
requests without a PASID.  The posted function
writes the descriptor of a process for all masters of that domain and undoes a failure after letting go of the lock;
the notifier goes through a list that PASIDs never join.  Merged: one master, its own table, its pair on the list first.
"""

from __future__ import annotations

from collections.abc import Iterator

from abi.errno import ENOMEM
from guest_driver.defects.sva import DEFECTS
from guest_driver.iommufd.release import Release
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IommuDomain
from guest_driver.linux.iommu_core import iommu_domain_free, iommu_paging_domain_alloc
from guest_driver.linux.page_alloc import GFP_KERNEL
from guest_driver.sva.iommu_sva import IommuSva, iommu_sva_get_pasid
from guest_driver.sva.mm import MmStruct
from machine.iommu.smmuv3.cd import Cd0
from testbed.invariants_sva import check
from testbed.scenarios.step import Step, answered, held
from testbed.sva.linux import BARE
from testbed.sva.meaning import cd_kind, ste_kind
from testbed.sva.watch import VA, Watch
from testbed.sva.watch import Step as Observed

OTHER_PROCESSES = range(1, 1030)
"""PASIDs of the first leaf that are taken, so that the next process needs leaves of its own."""


class Bench:
    """The machine with names for its devices, and their state as lines."""

    def __init__(self, place: str, defect: str = "") -> None:
        self.watch = Watch(DEFECTS[defect].build if defect else None, xen=place != BARE)
        machine = self.watch.machine
        self.devices = {"dev1": machine.dev1, "dev2": machine.dev2}
        self.kernel = machine.kernel

    def domain_for_both(self) -> IommuDomain:
        """One domain that both devices' requests without a PASID go through."""
        domain = iommu_paging_domain_alloc(self.devices["dev1"])
        assert not isinstance(domain, int)
        for dev in self.devices.values():
            self.watch.attach(dev, domain)
        return domain

    def state(self, pasid: int = 0) -> list[str]:
        lines = []
        smmu = self.watch.machine.smmu
        for name, dev in self.devices.items():
            master = smmu.masters[dev]
            stream = ste_kind(self.watch.machine.stream_entry(dev))
            line = f"{name}: stream {stream}; PASIDs {', '.join(map(str, sorted(master.cd_table.ssids))) or 'none'}"
            if pasid:
                line += f"; PASID {pasid}: {self.descriptor(dev, pasid)}, DMA {self.watch.dma(dev, VA, pasid)}"
            lines.append(line)
        for asid, domain in sorted(smmu.asids.items()):
            names = {dev: name for name, dev in self.devices.items()}
            users = [f"{names.get(m.dev, m.dev.name)}{f'/{ssid}' if ssid else ''}" for m, ssid in domain.devices]
            lines.append(f"  ASID {asid}: on its list {', '.join(users) or 'nobody'}")
        return lines

    def descriptor(self, dev: Device, pasid: int) -> str:
        from guest_driver.arm_smmu_v3.ctx_desc import read_cd

        entry = read_cd(self.watch.machine.smmu.masters[dev], pasid)
        kind = cd_kind(entry)
        return kind if kind == "empty" else f"{kind} ASID {Cd0.asid.get(entry[0])}"

    def sound(self, observed: Observed) -> Step:
        """Whether every property holds after what was just done."""
        wrong = check(self.watch, observed)
        return held("every store of it shows old, new or invalid", not wrong, "; ".join(wrong.values()))


def _pasid(observed: Observed) -> int:
    return iommu_sva_get_pasid(observed.result) if isinstance(observed.result, IommuSva) else 0


def _code(observed: Observed) -> int:
    return observed.result if isinstance(observed.result, int) else 0


def merged(place: str, release: Release) -> Iterator[Step]:
    """Bind, share, unmap, end, unbind: what was merged."""
    bench = Bench(place)
    watch, dev1, dev2 = bench.watch, bench.devices["dev1"], bench.devices["dev2"]
    domain = bench.domain_for_both()
    mm = watch.process(text=b"secret")
    bound = watch.bind(dev1, mm)
    pasid = _pasid(bound)
    yield answered("bind dev1 to a process", _code(bound), 0, f"PASID {pasid}", bench.state(pasid))
    yield bench.sound(bound)
    yield held("dev1 reads the process, dev2 does not", _reads(bench, dev1, pasid) and not _reads(bench, dev2, pasid))
    again = watch.bind(dev1, mm)
    same = again.result is bound.result and isinstance(again.result, IommuSva) and again.result.users == 2
    yield held("bind dev1 once more: the same handle, counted up", same)
    shared = watch.bind(dev2, mm)
    yield answered("bind dev2: the same PASID and ASID", _code(shared), 0, state=bench.state(pasid))
    yield bench.sound(shared)
    unmapped = watch.do("munmap", dev1, lambda: mm.munmap(VA + 4096, 1))
    yield held("the process unmaps a page: neither device reaches it", not _both(bench, pasid, VA + 4096))
    yield bench.sound(unmapped)
    ended = watch.exit(mm)
    yield answered("the process ends, its devices still send requests", 0, 0, "quiet descriptors", bench.state(pasid))
    yield bench.sound(ended)
    yield held("nothing of what they do is recorded", not bench.watch.machine.port.take_events() and not ended.recorded)
    while watch.handles:
        step = watch.unbind(watch.handles[0])
        yield bench.sound(step)
    yield answered("the drivers unbind", 0, 0, state=bench.state(pasid))
    iommu_domain_free(domain)
    yield held("nothing is left", _clean(bench))


def _reads(bench: Bench, dev: Device, pasid: int, va: int = VA) -> bool:
    return not bench.watch.dma(dev, va, pasid).startswith(("F_", "C_"))


def _both(bench: Bench, pasid: int, va: int) -> bool:
    return any(_reads(bench, dev, pasid, va) for dev in bench.devices.values())


def _clean(bench: Bench) -> bool:
    bench.watch.machine.shutdown()
    return (
        not bench.kernel.pages.allocated and not bench.kernel.iommu.global_pasids and not bench.kernel.printk.warnings
    )


def _second_leaf_fails(bench: Bench, dev: Device) -> None:
    """There is memory for the first leaf of PASIDs from 1024 on, not for a second one."""
    leaves: list[int] = []

    def fault(order: int) -> bool:
        if order == 4:
            leaves.append(order)
        return order == 4 and len(leaves) > 1

    bench.kernel.pages.fault = fault


def undo(place: str, release: Release) -> Iterator[Step]:
    """A failed update whose undo another CPU comes before."""
    bench = Bench(place, "SVA-1")
    watch, dev1 = bench.watch, bench.devices["dev1"]
    bench.domain_for_both()
    bench.kernel.iommu.global_pasids.update(OTHER_PROCESSES)
    mm = watch.process(text=b"secret")
    _second_leaf_fails(bench, bench.devices["dev2"])
    smmu = watch.machine.smmu
    pasid = OTHER_PROCESSES.stop

    def other_cpu(mutex: object) -> bool:
        """dev1 leaves the domain between the failing loop and the loop that undoes it."""
        if bench.descriptor(dev1, pasid) == "empty":
            return False
        smmu.arm_smmu_attach_dev_identity(smmu.identity, dev1, None)
        return True

    watch.while_unlocked = other_cpu
    bound = watch.bind(dev1, mm)
    bench.kernel.pages.fault = None
    yield answered(
        "bind dev1; no memory for dev2's leaf; dev1 leaves the domain while the lock is open",
        _code(bound),
        -ENOMEM,
        state=bench.state(pasid),
    )
    empty = bench.descriptor(dev1, pasid) == "empty"
    yield held("nobody has a descriptor of the binding that failed", empty, "the undo did not find dev1 on the list")
    yield held("dev1 does not reach the process", not _reads(bench, dev1, pasid), watch.dma(dev1, VA, pasid))


def others(place: str, release: Release) -> Iterator[Step]:
    """A device that nobody bound."""
    bench = Bench(place, "SVA-2")
    watch, dev1, dev2 = bench.watch, bench.devices["dev1"], bench.devices["dev2"]
    bench.domain_for_both()
    mm = watch.process(text=b"secret")
    bound = watch.bind(dev1, mm)
    pasid = _pasid(bound)
    yield answered("bind dev1, as posted", _code(bound), 0, state=bench.state(pasid))
    yield held("dev2, which nobody bound, has no descriptor", bench.descriptor(dev2, pasid) == "empty")
    yield held(
        "dev2 does not read the process", not _reads(bench, dev2, pasid), f"it reads {watch.dma(dev2, VA, pasid)!r}"
    )
    yield from _merged_beside(place, others=True)


def list_never_filled(place: str, release: Release) -> Iterator[Step]:
    """The notifier's list."""
    bench = Bench(place, "SVA-3")
    watch, dev1 = bench.watch, bench.devices["dev1"]
    bench.domain_for_both()
    mm = watch.process(text=b"secret")
    bound = watch.bind(dev1, mm)
    pasid = _pasid(bound)
    yield answered("bind dev1", _code(bound), 0, "its pair is on no list", bench.state(pasid))
    page = mm.pages[VA]
    sent = _dma_while_it_ends(bench, dev1, pasid)
    watch.exit(mm)
    yield answered("the process ends; dev1 reads on meanwhile", 0, 0, state=bench.state(pasid))
    yield held("its descriptors are quiet", bench.descriptor(dev1, pasid).startswith("quiet"))
    _give_to_another_process(bench, page)
    seen = watch.dma(dev1, VA, pasid)
    stale = "translated between the notifier and the end of the tables"
    yield held("dev1 does not read who has the page now", seen.startswith("F_"), f"it reads {seen!r}, {stale}")
    yield held("the unit was asked for it after its invalidation", bool(sent))
    yield from _merged_beside(place, others=False)


def _dma_while_it_ends(bench: Bench, dev: Device, pasid: int) -> list[str]:
    """Let the device read when the notifier has invalidated and the memory is not yet taken down."""
    port = bench.watch.machine.port
    noted, sent = port.confirmed, []

    def confirmed() -> None:
        if noted is not None:
            noted()
        sent.append(bench.watch.dma(dev, VA, pasid))

    port.confirmed = confirmed
    return sent


def _give_to_another_process(bench: Bench, page: int) -> None:
    """Somebody else allocates the page and writes to it."""
    pages = bench.kernel.pages
    passed = []
    while (pfn := pages.alloc_pages(GFP_KERNEL)) != page:
        passed.append(pfn)
    for pfn in passed:
        pages.free_pages(pfn)
    bench.kernel.ram.write(page << 12, b"stranger")


def _merged_beside(place: str, others: bool) -> Iterator[Step]:
    """The same with the merged driver, for comparison."""
    bench = Bench(place)
    watch, dev1, dev2 = bench.watch, bench.devices["dev1"], bench.devices["dev2"]
    bench.domain_for_both()
    mm: MmStruct = watch.process(text=b"secret")
    bound = watch.bind(dev1, mm)
    pasid = _pasid(bound)
    if others:
        yield held("merged: dev2 has nothing", bench.descriptor(dev2, pasid) == "empty", state=bench.state(pasid))
    else:
        _dma_while_it_ends(bench, dev1, pasid)
        watch.exit(mm)
        quiet = bench.descriptor(dev1, pasid).startswith("quiet")
        yield held(
            "merged: quiet, and nothing is reached", quiet and not _reads(bench, dev1, pasid), "", bench.state(pasid)
        )
