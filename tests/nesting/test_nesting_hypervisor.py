# SPDX-License-Identifier: GPL-2.0-or-later
"""x1-nested from a guest that writes what it likes: errnos, references, isolation, invalidation, faults."""

import random

import pytest

from abi.errno import E2BIG, EBUSY, EFAULT, EINVAL, ENODEV, ENOENT, ENOSPC, EOPNOTSUPP
from abi.x1 import NestedFlags, NestedFormat
from base.units import make_sbdf
from guest_driver.arm_smmu_v3.ctx_desc import arm_smmu_make_cd
from guest_driver.xen_hypercall import IommuOp
from hypervisor.iommu.nesting import route_faults
from machine.dma import PasidPort
from machine.iommu.unit import Fault
from testbed.build import COPIER, TestBed
from testbed.config import MIB, Config
from testbed.invariants import check
from testbed.units import UnitSpec

FLAGS = NestedFlags.pack(format=NestedFormat.SMMUV3_CD, s1dss=2, s1cdmax=2)
OTHER = make_sbdf(0, 0, 9, 0)
CD, L0, L1, L2, L3, DATA = 0x100, 0x101, 0x102, 0x103, 0x104, 0x110
VA = 0x7F00_1234_5000
PAGE = 0x743 | 1 << 11
COPIER_SID = COPIER & 0xFFFF


class Guest:
    """dom0 of a machine with both stages, its tables written by hand."""

    def __init__(self, kind="nested", backend="smmuv3", **options):
        config = {"guest": "pvh", "ram": 32 * MIB, "guest_ram": 8 * MIB} | options
        self.bed = TestBed(
            Config(backend=backend, profile="x1-nested", units=(UnitSpec(kind),), endpoints=(OTHER,), **config)
        )
        self.ram = self.bed.ram
        self.op = IommuOp(self.bed.hypercalls, self.ram, None, self.bed.xen.abi, 0x80)
        assert self.call("init", 8, 8)[0] == 0

    def call(self, name, *fields):
        return self.op.call(name, *fields)

    def write(self, pfn, index, value):
        self.ram.write((pfn << 12) + 8 * index, value.to_bytes(8, "little"))

    def stage1(self, asid=1):
        """A table that maps VA to the guest's page DATA under every one of four PASIDs."""
        for pfn in (CD, L0, L1, L2, L3):
            self.ram.write(pfn << 12, bytes(4096))
        for pasid in range(4):
            for word, value in enumerate(arm_smmu_make_cd(L0, asid, 5)):
                self.write(CD, 8 * pasid + word, value)
        for shift, table, below in ((39, L0, L1), (30, L1, L2), (21, L2, L3)):
            self.write(table, VA >> shift & 511, below << 12 | 3)
        self.write(L3, VA >> 12 & 511, DATA << 12 | PAGE)
        self.ram.write(DATA << 12, b"the data")

    def nested(self, parent=0, gfn=CD, flags=FLAGS):
        ret, fields = self.call("alloc_nested", parent, gfn, flags)
        return ret or fields[0]

    def attach(self, context, sbdf=COPIER):
        return self.call("reattach_device", context, sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF, 0)[0]

    def flush(self, context, *commands):
        self.ram.write(0x90 << 12, b"".join(w.to_bytes(8, "little") for c in commands for w in c))
        ret, fields = self.call("flush_nested", context, len(commands), self.ram.linear(0x90 << 12), 0)
        return ret, fields[3]

    def read(self, iova=VA, sbdf=COPIER, pasid=None):
        fabric = self.bed.fabric
        port = fabric.port(sbdf) if pasid is None else PasidPort(fabric, sbdf, pasid)
        answer = port.read(iova, 8)
        return answer.name if isinstance(answer, Fault) else answer

    def faults(self):
        found = []
        while (answer := self.call("next_fault", *(0,) * 8))[0] == 0:
            found.append(answer[1])
        return found

    def sound(self):
        found = check(self.bed)
        assert not found, found


@pytest.fixture
def guest():
    guest = Guest()
    guest.stage1()
    return guest


def test_dma_goes_through_both_stages(guest):
    context = guest.nested()
    assert context > 0 and guest.attach(context) == 0
    assert guest.read() == guest.read(pasid=3) == b"the data"
    walk = guest.bed.unit.walk(COPIER_SID, VA)
    assert walk.maddr == guest.bed.mfns[DATA] << 12
    names = [step.name for step in walk.steps]
    assert names.count("stage 1 descriptor") == 4 and names.count("stage 2 descriptor") > 12
    assert guest.attach(0) == 0 and guest.read(DATA << 12) == b"the data"
    assert guest.call("free_context", context, 0)[0] == 0
    guest.sound()


def test_capabilities_and_devices():
    guest = Guest()
    caps = guest.bed.xen.abi.caps
    assert guest.call("query_capabilities", *(0,) * 6)[1][1] & caps["nested"]
    device = (COPIER >> 16, COPIER >> 8 & 0xFF, COPIER & 0xFF)
    ret, fields = guest.call("query_device", *device, *(0,) * 7)
    assert (ret, fields[3] & 3, fields[4], fields[5]) == (0, 2, NestedFormat.SMMUV3_CD, 12)
    assert fields[6] == guest.bed.bus.read32(guest.bed.backend.unit_base)
    assert guest.call("query_device", 0, 77, 0, *(0,) * 7)[0] == -ENODEV
    plain = Guest("default")
    assert not plain.call("query_capabilities", *(0,) * 6)[1][1] & caps["nested"]
    assert plain.nested() == -EOPNOTSUPP and plain.flush(1) == (-EOPNOTSUPP, 0)
    assert plain.call("query_device", *device, *(0,) * 7)[1][3:6] == (0, 0, 0)
    assert plain.call("next_fault", *(0,) * 8)[0] == -ENOENT


@pytest.mark.parametrize(
    ("parent", "gfn", "flags", "errno"),
    [
        (5, CD, FLAGS, ENOENT),
        (0, 1 << 40, FLAGS, EINVAL),
        (0, (1 << 64) - 1, FLAGS, EINVAL),
        (0, 0x800, FLAGS, EINVAL),
        (0, CD, 0, EINVAL),
        (0, CD, FLAGS | 1 << 63, EINVAL),
        (0, CD, NestedFlags.pack(format=NestedFormat.VTD_FIRST_STAGE), EINVAL),
        (0, CD, NestedFlags.pack(format=1, s1cdmax=13), EINVAL),
        (0, CD, NestedFlags.pack(format=1, s1cdmax=4, s1fmt=3), EINVAL),
        (0, CD, NestedFlags.pack(format=1, s1cdmax=4, s1dss=3), EINVAL),
        (0, CD + 1, NestedFlags.pack(format=1, s1cdmax=7), EINVAL),
        (0, 0x7FF, NestedFlags.pack(format=1, s1cdmax=12), EINVAL),
    ],
)
def test_what_alloc_nested_refuses(guest, parent, gfn, flags, errno):
    assert guest.nested(parent, gfn, flags) == -errno
    assert not guest.bed.dom0.iommu.contexts
    guest.sound()


def test_a_nested_context_is_no_parent_no_map_and_holds_its_own(guest):
    context = guest.nested()
    assert guest.nested(context) == -EINVAL
    assert guest.call("map_pages", context, DATA, 1, 3, 4096, 1, 0)[0] == -EINVAL
    assert guest.call("unmap_pages", context, 1, 4096, 1, 0)[0] == -EINVAL
    assert guest.call("alloc_context", 0, 0)[1][0] == context + 1
    parent = context + 1
    assert guest.call("map_pages", parent, CD, CD, 3, 4096, 32, 0)[0] == 0
    child = guest.nested(parent)
    assert guest.call("free_context", parent, 0)[0] == guest.call("free_context", parent, 1)[0] == -EBUSY
    mfn = guest.bed.mfns[CD]
    assert guest.bed.xen.frames.count(mfn) == 4  # its owner, the parent's leaf, and two nested tables
    assert guest.call("unmap_pages", parent, CD, 4096, 1, 0)[0] == 0
    assert guest.bed.xen.frames.count(mfn) == 3
    assert guest.call("free_context", child, 0)[0] == guest.call("free_context", parent, 0)[0] == 0
    assert guest.call("free_context", context, 0)[0] == 0
    assert guest.bed.xen.frames.count(mfn) == 1
    guest.sound()


def test_numbers_run_out(guest):
    made = [guest.nested() for _ in range(9)]
    assert made[:8] == list(range(1, 9)) and made[8] == -ENOSPC


def test_the_guests_invalidations_and_nobody_elses(guest):
    first, second = guest.nested(), guest.nested()
    guest.attach(first), guest.attach(second, OTHER)
    assert guest.read() == guest.read(sbdf=OTHER) == b"the data"
    guest.write(L3, VA >> 12 & 511, 0)
    assert guest.read() == b"the data"  # cached
    assert guest.flush(first, (0x12 | 1 << 48, VA & ~0xFFF)) == (0, 1)
    assert guest.read() == "F_TRANSLATION"
    guest.write(L3, VA >> 12 & 511, DATA << 12 | PAGE)
    assert guest.read() == b"the data"
    guest.write(CD, 0, 0)
    assert guest.read() == b"the data"
    config = 0x05 | COPIER_SID << 32
    assert guest.flush(first, (0x11 | 1 << 48, 0), (config, 1)) == (0, 2)
    assert guest.read() == "C_BAD_CD"
    assert guest.read(sbdf=OTHER) == b"the data"  # its descriptor is cached, and not the other's to forget
    for commands, done in (
        (((0x05 | (OTHER & 0xFFFF) << 32, 1),), 0),
        (((0x10, 0), (0x03 | COPIER_SID << 32, 1)), 1),
        (((0x30, 0),), 0),
        (((0x28, 0),), 0),
        (((0x46, 0),), 0),
        (((0x12, VA & ~0xFFF | 2 << 10),), 0),
        (((0xFF, 0),), 0),
    ):
        assert guest.flush(first, *commands) == (-EINVAL, done)
    guest.sound()


def test_flush_nested_refuses(guest):
    context = guest.nested()
    linear = guest.ram.linear(0x90 << 12)
    for number, count, errno in ((7, 0, ENOENT), (context, 257, E2BIG), (context, 1 << 31, E2BIG)):
        assert guest.call("flush_nested", number, count, linear, 0)[0] == -errno
    assert guest.call("flush_nested", context, 1, 0xDEAD_0000_0000, 0)[0] == -EFAULT
    _, (plain, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("flush_nested", plain, 0, linear, 0)[0] == -EINVAL
    assert guest.flush(context) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_random_commands_never_stop_the_queue_or_reach_another_guests_tag(guest, seed):
    rng = random.Random(seed)
    context = guest.nested()
    guest.attach(context)
    queue = guest.bed.xen.backend.units[0].commands
    for _ in range(300):
        op = rng.choice([0x10, 0x11, 0x12, 0x13, 0x05, 0x06, rng.randrange(256)])
        sid = rng.choice([COPIER_SID, rng.getrandbits(32)])
        guest.flush(context, (op | rng.getrandbits(24) << 8 | sid << 32, rng.getrandbits(64)))
    assert queue.errors == 0 and not guest.bed.dom0.iommu.contexts[context].unconfirmed
    assert guest.read() == b"the data"
    guest.sound()


@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_table_reaches_what_the_parent_maps_and_nothing_else(seed):
    """Random descriptors and tables: whatever comes out is the guest's page, or a fault."""
    guest = Guest(iotlb="eager" if seed & 1 else "stale")
    rng = random.Random(seed)
    ours = set(guest.bed.mfns)
    context = guest.nested()
    guest.attach(context)
    reached = 0
    for _ in range(60):
        guest.stage1()
        for pfn in (CD, L0, L1, L2, L3):
            for _ in range(rng.randrange(2)):
                address = rng.choice([L0, L1, L2, L3, DATA, rng.getrandbits(36)]) << 12
                value = rng.choice([address | 3, address | PAGE, rng.getrandbits(64), arm_smmu_make_cd(L0, 1, 5)[0]])
                self_index = rng.choice([0, 1, rng.randrange(512), VA >> 12 & 511, VA >> 39 & 511])
                guest.write(pfn, self_index, value)
        guest.flush(context, (0x10, 0), (0x06 | COPIER_SID << 32, 0))
        for pasid in (None, 0, 1, 3, 9):
            for write in (False, True):
                answer = guest.bed.unit.translate(COPIER_SID, rng.choice([VA, VA, rng.getrandbits(48)]), write, pasid)
                assert isinstance(answer, Fault) or answer >> 12 in ours
                reached += not isinstance(answer, Fault)
    assert reached > 20
    guest.sound()


def test_faults_of_the_first_stage_are_the_guests_and_those_of_the_second_are_xens(guest):
    _, (parent, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", parent, CD, CD, 3, 4096, 8, 0)[0] == 0
    context = guest.nested(parent)
    guest.attach(context)
    assert guest.read() == "F_TRANSLATION"  # DATA is not in the parent
    assert guest.faults() == []
    assert [(report.name, report.sid) for report in guest.bed.xen.faults] == [("F_TRANSLATION", COPIER_SID)]
    assert guest.read(VA + 4096) == "F_TRANSLATION"
    assert guest.read(VA, pasid=100) == "C_BAD_SUBSTREAMID"
    bus, devfn = COPIER >> 8 & 0xFF, COPIER & 0xFF
    assert guest.faults() == [(0, bus, devfn, 1, 0, 0x10, VA + 4096, 0), (0, bus, devfn, 3, 100, 0x08, 0, 0)]
    assert len(guest.bed.xen.faults) == 1


def test_faults_wait_in_bounds_and_the_rest_is_counted(guest):
    context = guest.nested()
    guest.attach(context)
    for number in range(70):
        guest.read(number << 12)
        guest.call("next_fault", *(0,) * 8) if number % 20 == 19 else None
    found = guest.faults()
    assert 0 < len(found) <= 70
    for number in range(200):
        guest.read(number << 12)
        if number % 50 == 49:
            route_faults(guest.bed.xen)
    found = guest.faults()
    assert len(found) == 64 and sum(fault[7] for fault in found) == 136


def test_unmapping_in_the_parent_reaches_combined_translations(guest):
    _, (parent, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", parent, CD, CD, 3, 4096, 32, 0)[0] == 0
    guest.attach(guest.nested(parent))
    assert guest.read() == b"the data"
    assert guest.call("unmap_pages", parent, DATA, 4096, 1, 0)[0] == 0
    assert guest.read() == "F_TRANSLATION"
    guest.sound()


def test_leaving_forgets_what_the_table_gave(guest):
    first, second = guest.nested(), guest.nested(gfn=0x140)
    guest.ram.write(0x140 << 12, bytes(4096))
    guest.attach(first)
    assert guest.read() == b"the data"
    assert guest.attach(second) == 0 and guest.read() == "C_BAD_CD"
    assert guest.attach(first) == 0 and guest.read() == b"the data"
    assert guest.call("free_context", first, 0)[0] == -EBUSY
    assert guest.call("free_context", first, 1)[0] == 0
    assert guest.read(DATA << 12) == b"the data"
    guest.sound()


def test_snapshots_and_destruction(guest):
    bed = guest.bed
    bed.snapshot()
    context = guest.nested()
    guest.attach(context)
    guest.read(5 << 12)
    guest.call("next_fault", *(0,) * 8)
    bed.reset()
    assert not bed.dom0.iommu.contexts and not bed.xen.faults
    guest.sound()
    context = guest.nested()
    assert context == 1 and guest.attach(context) == 0
    assert bed.xen.destroy_domain(bed.dom0) == 0
    assert not bed.dom0.iommu.contexts and not bed.xen.frames.count(bed.mfns[CD])
