# SPDX-License-Identifier: GPL-2.0-or-later
"""Thread 003, "Always setup MSI and enforce cc on kernel-managed domains": when a table enforces cache coherency.

dev1 is behind a unit without snoop control, where the snoop bit of an entry is reserved; dev2 and dev3 are not.  Making
a table an enforcing one when a second device attaches leaves old entries as they are and gives the first device
entries that it faults on.  Merged: settled when the table is made, never changed, and drivers refuse what cannot work.

On VT-d the tables are Xen's, two units walk them, and what decides is bit 11 of the leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from abi.errno import EINVAL
from guest_driver.iommufd.device import iommufd_device_bind
from guest_driver.iommufd.hw_pagetable import HwptPaging
from guest_driver.iommufd.release import Release, as_released
from guest_driver.linux.device import Device
from guest_driver.linux.iommu import IOMMU_RESV_SW_MSI, IommuResvRegion
from guest_driver.linux.mock_domain import DATA_TYPE
from guest_driver.xen_iommu import X86_MSI_WINDOW
from hypervisor.vtd.driver import VtdBackend
from hypervisor.vtd.format import SNP
from testbed.iommufd_machine import MOCK, X1, DeviceSpec, Machine, MockMachine, XenMachine
from testbed.scenarios.bench import SCRATCH, Session
from testbed.scenarios.nesting import VirtualMachine
from testbed.scenarios.nesting_vtd import VtdVirtualMachine
from testbed.scenarios.step import Step, answered, held

IOVA = 0x400_0000
LATER = IOVA + 0x1000


def start(
    place: str, release: Release, checked: bool = True, without_snoop: Sequence[int] = (1,)
) -> tuple[Session, Machine]:
    specs = [
        DeviceSpec(f"dev{number}", group=number, snoop_control=number not in without_snoop) for number in (1, 2, 3)
    ]
    machine: Machine
    if place == MOCK:
        machine = MockMachine(specs, checked=checked)
    else:
        machine = XenMachine(place, specs, profile=X1)
        backend = machine.testbed.xen.backend
        if isinstance(backend, VtdBackend):
            backend.refuses_unsnooped = checked
    session = Session(machine, release)
    for name, dev in session.devices.items():
        idev = iommufd_device_bind(session.ctx, dev)
        assert not isinstance(idev, int)
        session.bound[name] = idev
    session.ioas("ioas1")
    return session, machine


def _snooped(machine: Machine, dev: Device, iova: int) -> bool:
    """Whether the entry that the device's request meets has the snoop bit."""
    if isinstance(machine, MockMachine):
        return machine.mock.where[dev.name].table[iova][2]
    assert isinstance(machine, XenMachine)
    if machine.testbed.config.backend != "vtd":
        return False
    return bool(machine.testbed.walk(dev.pci.sbdf, iova).steps[-1].words[0] & SNP)


def _fault(machine: Machine, dev: Device, iova: int) -> str:
    """ "ok", or what the device's unit calls the fault."""
    if isinstance(machine, XenMachine):
        found = machine.testbed.translate(dev.pci.sbdf, iova, False)
        return "ok" if isinstance(found, int) else f"{found.name} (reason {found.code:#x})"
    return machine.dma(dev, iova)


def _enforces(session: Session, table: str) -> bool:
    hwpt = session.hwpt(table)
    return isinstance(hwpt, HwptPaging) and hwpt.enforce_cache_coherency


def order(place: str, release: Release) -> Iterator[Step]:
    """Both orders of the thread's last word, with explicit tables and with automatic ones."""
    can: set[str] = set() if place == "smmuv3" else {"dev2", "dev3"}
    if not can:
        yield held("nothing enforces here, so no order can matter", True, "an SMMUv3 would need S2FWB")
    for first, second in (("dev1", "dev2"), ("dev2", "dev1")):
        answer = -EINVAL if first in can and second not in can else 0
        session, bench = start(place, release)
        yield answered(f"make hwpt1 for {first}", session.table("hwpt1", first, "ioas1"), 0)
        enforcing = _enforces(session, "hwpt1")
        yield held("it enforces coherency exactly if that device can", enforcing == (first in can))
        yield answered(f"attach {first}", session.bound[first].attach(session.ids["hwpt1"])[0], 0)
        ret = session.bound[second].attach(session.ids["hwpt1"])[0]
        yield answered(f"attach {second}", ret, answer, "the result depends on the order; the tables are right in both")
        yield held("the table is what it was", _enforces(session, "hwpt1") == enforcing, "no promotion")
        if ret:
            ret = session.table("hwpt2", second, "ioas1") or session.bound[second].attach(session.ids["hwpt2"])[0]
            yield answered(f"make hwpt2 for {second} and attach", ret, 0, "what user space does then")
        yield answered("map a page", session.map("ioas1", IOVA), 0)
        seen = {name: bench.dma(session.devices[name], IOVA) for name in (first, second)}
        yield held("both devices reach it", set(seen.values()) == {"ok"}, state=session.state(IOVA))
        snooped = {name: _snooped(bench, session.devices[name], IOVA) for name in (first, second)}
        wanted = {first: enforcing, second: enforcing and answer == 0}
        yield held("entries have the snoop bit exactly in the enforcing table", snooped == wanted, str(snooped))
        session.ctx.exit()
    session, bench = start(place, release)
    results = [session.bound[name].attach(session.ids["ioas1"]) for name in ("dev2", "dev1", "dev3")]
    yield held("attach dev2, dev1, dev3 to the IOAS itself", all(ret == 0 for ret, _ in results))
    tables = [number for _, number in results]
    if can:
        yield held("two automatic tables, dev3 shares dev2's", tables[0] == tables[2] != tables[1])
    else:
        yield held("one automatic table for all", len(set(tables)) == 1)
    session.ctx.exit()


def upgrade(place: str, release: Release) -> Iterator[Step]:
    """What the thread is afraid of: promotion on attach as in 6.6; an enforcing table that a driver does not refuse."""
    session, bench = start(place, release if release.version == (6, 6) else as_released("6.6"))
    dev1, dev2 = session.bound["dev1"], session.bound["dev2"]
    yield answered("Linux 6.6: make hwpt1 for dev1", session.table("hwpt1", "dev1", "ioas1"), 0)
    yield answered("map a page", session.map("ioas1", IOVA), 0)
    yield answered("attach dev1", dev1.attach(session.ids["hwpt1"])[0], 0)
    beside = "6.6 asks for a promotion, which no driver can do here: a device that would work is refused"
    yield answered("attach dev2 beside it", dev2.attach(session.ids["hwpt1"])[0], 0, beside)
    dev1.detach()
    yield answered("detach dev1; attach dev2", dev2.attach(session.ids["hwpt1"])[0], 0)
    yield held("the table is what it was", not _enforces(session, "hwpt1"), "promoted on attach")
    yield answered("map another page", session.map("ioas1", LATER), 0)
    if session.bound["dev2"].attached:
        old, new = (_snooped(bench, session.devices["dev2"], iova) for iova in (IOVA, LATER))
        yield held("one table, one kind of entry", old == new, f"snoop bit: old page {old}, new page {new}")
    session.ctx.exit()

    session, bench = start(place, release, checked=False)
    yield answered("make hwpt1 for dev2, enforcing", session.table("hwpt1", "dev2", "ioas1"), 0)
    yield answered("map a page", session.map("ioas1", IOVA), 0)
    refused = session.bound["dev1"].attach(session.ids["hwpt1"])[0]
    yield answered("attach dev1, to a driver that does not look", refused, -EINVAL)
    seen = _fault(bench, session.devices["dev1"], IOVA)
    yield held("dev1 reaches the page", seen == "ok", f"its unit says: {seen}")
    session.ctx.exit()


def doorbell(place: str, release: Release) -> Iterator[Step]:
    """The doorbell page and reserved regions belong to the paging parent, also when a nested table comes first."""
    session, bench = start(place, release, without_snoop=())
    dev = session.devices["dev2"]
    translated = place != "vtd"  # there, messages go to a window that no table has
    window = 0x800_0000 if translated else X86_MSI_WINDOW[0]
    if translated:
        bench.regions[dev.name] = [IommuResvRegion(window, 0x10_0000, 0, IOMMU_RESV_SW_MSI)]
    yield answered("make the parent", session.table("parent", "dev2", "ioas1", flags=1), 0)
    yield answered("make a nested table over it", _nested(session, bench), 0)
    parent = session.hwpt("parent")
    assert isinstance(parent, HwptPaging)
    settled = parent.enforce_cache_coherency == session.bound["dev2"].enforce_cache_coherency
    yield held("coherency was settled with the parent", settled)
    ret = session.bound["dev2"].attach(session.ids["nested"])[0]
    yield answered("attach dev2 to the nested table first", ret, 0, state=session.state())
    cookie = parent.domain.cookie
    if translated:
        yield held("the doorbell page is prepared in the parent", cookie is not None and cookie.msi_iova == window)
    else:
        yield held(
            "the window of messages is reserved in the parent's address space, no page is needed", cookie is None
        )
    yield answered("map over it in the IOAS", session.map("ioas1", window), -EINVAL)
    ret = session.bound["dev2"].replace(session.ids["parent"])[0]
    yield answered("replace by the parent", ret, 0)
    yield held("prepared once", parent.domain.cookie is cookie)
    session.ctx.exit()


def _nested(session: Session, machine: Machine) -> int:
    """A nested table for dev2 over ``parent``, of the kind that the machine's driver takes."""
    if isinstance(machine, XenMachine) and machine.testbed.config.backend == "vtd":
        first_stage = VtdVirtualMachine(session, "dev2")
        return first_stage.boot() or first_stage.nested("nested")
    if isinstance(machine, XenMachine):
        vm = VirtualMachine(session, "dev2")
        return vm.boot() or vm.nested("nested", "parent")
    session.mm.mmap(SCRATCH + 4096, 4096)
    session.mm.write(SCRATCH + 4096, (7).to_bytes(8, "little"))
    ret, out = session.call(
        "HWPT_ALLOC",
        dev_id=session.bound["dev2"].id,
        pt_id=session.ids["parent"],
        data_type=DATA_TYPE,
        data_len=8,
        data_uptr=SCRATCH + 4096,
    )
    session.ids["nested"] = out["out_hwpt_id"]
    return ret
