# SPDX-License-Identifier: GPL-2.0-or-later
"""x1-nested on VT-d in scalable mode: address spaces by PASID, x86-64 tables of guests as first stage."""

import random

import pytest
from test_nesting_hypervisor import Guest

from abi.errno import EBUSY, EEXIST, EINVAL, ENOENT, EOPNOTSUPP
from abi.x1 import NestedFlags, NestedFormat
from machine.iommu.unit import Fault
from testbed.build import COPIER, NIC
from testbed.invariants_nesting import check

FIRST = NestedFlags.pack(format=NestedFormat.VTD_FIRST_STAGE)
L4, L3, L2, L1, DATA, OTHER = 0x100, 0x101, 0x102, 0x103, 0x110, 0x111
VA = 0x5F00_1234_5000
FULL = 7
DEVICE = (COPIER >> 16, COPIER >> 8 & 0xFF, COPIER & 0xFF)


class VtdGuest(Guest):
    def __init__(self, **options):
        super().__init__("scalable", "vtd", **options)

    def stage1(self, data=DATA):
        for table, below, shift in ((L4, L3, 39), (L3, L2, 30), (L2, L1, 21), (L1, data, 12)):
            self.ram.write(table << 12, bytes(4096))
            self.write(table, VA >> shift & 511, below << 12 | FULL)
        self.ram.write(DATA << 12, b"the data")
        self.ram.write(OTHER << 12, b"another.")

    def read(self, iova=VA, **request):
        return super().read(iova, **request)

    def pasid(self, name, *fields):
        return self.call(name, *fields)[0]


@pytest.fixture
def guest():
    guest = VtdGuest()
    guest.stage1()
    return guest


def test_plain_contexts_work_in_scalable_mode(guest):
    assert guest.read(DATA << 12) == b"the data"
    _, (context, _) = guest.call("alloc_context", 0, 0)
    assert guest.attach(context) == 0 and isinstance(guest.read(VA), str)
    assert guest.call("map_pages", context, DATA, VA >> 12, 3, 4096, 1, 0)[0] == 0
    assert guest.read() == b"the data"
    assert guest.call("unmap_pages", context, VA >> 12, 4096, 1, 0)[0] == 0
    assert guest.read() == "second-stage entry not present"
    assert guest.attach(0) == 0 and guest.read(DATA << 12) == b"the data"
    assert guest.call("free_context", context, 0)[0] == 0
    guest.sound()
    assert not check(guest.bed)


def test_a_first_stage_over_the_second(guest):
    context = guest.nested(gfn=L4, flags=FIRST)
    assert context > 0 and guest.attach(context) == 0
    assert guest.read() == b"the data"
    assert guest.read(0x1000) == "first-stage entry not present"
    guest.write(L1, VA >> 12 & 511, OTHER << 12 | FULL)
    assert guest.read() == b"the data"  # cached
    assert guest.flush(context, (6 | 3 << 4, VA)) == (0, 1)
    assert guest.read() == b"another."
    guest.write(L1, VA >> 12 & 511, 0)
    assert guest.flush(context, (6 | 2 << 4 | 0xFFFF << 16 | 5 << 32, 0)) == (0, 1)
    assert guest.read() == "first-stage entry not present"
    for command in ((6 | 1 << 4, 0), (2 | 2 << 4, 0), (5, 0), (1 | 1 << 4, 0), (6 | 3 << 4, VA | 63)):
        assert guest.flush(context, command) == (-EINVAL, 0)
    guest.sound()


def test_faults_of_each_stage_and_to_whom(guest):
    _, (parent, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", parent, L4, L4, 3, 4096, 4, 0)[0] == 0
    context = guest.nested(parent, L4, FIRST)
    assert guest.attach(context) == 0
    assert guest.read() == "second-stage entry not present"
    assert guest.faults() == [] and [report.code for report in guest.bed.xen.faults] == [0x79]
    assert guest.read(0x1000) == "first-stage entry not present"
    found = guest.faults()
    assert [(fault[1:3], fault[5], fault[6]) for fault in found] == [(DEVICE[1:], 0x71, 0x1000)]
    assert len(guest.bed.xen.faults) == 1


def test_a_change_of_the_parent_reaches_what_is_nested_over_it(guest):
    _, (parent, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", parent, L4, L4, 3, 4096, 20, 0)[0] == 0
    assert guest.attach(guest.nested(parent, L4, FIRST)) == 0 and guest.read() == b"the data"
    assert guest.call("unmap_pages", parent, DATA, 4096, 1, 0)[0] == 0
    assert guest.read() == "second-stage entry not present"
    guest.sound()


def test_two_guests_tables_over_one_parent_are_not_confused(guest):
    first = guest.nested(gfn=L4, flags=FIRST)
    guest.ram.write(0x120 << 12, bytes(4096))
    second = guest.nested(gfn=0x120, flags=FIRST)
    assert guest.attach(first) == guest.attach(second, NIC) == 0
    assert guest.read() == b"the data"
    assert guest.read(sbdf=NIC) == "first-stage entry not present"


def test_pasids_have_contexts_of_their_own(guest):
    caps = guest.bed.xen.abi.caps
    _, capabilities = guest.call("query_capabilities", *(0,) * 6)
    assert capabilities[1] & caps["pasid"] and capabilities[1] & caps["nested"] and capabilities[3] == 255
    nested = guest.nested(gfn=L4, flags=FIRST)
    _, (plain, _) = guest.call("alloc_context", 0, 0)
    assert guest.call("map_pages", plain, OTHER, VA >> 12, 3, 4096, 1, 0)[0] == 0
    assert guest.pasid("attach_pasid", nested, *DEVICE, 5) == guest.pasid("attach_pasid", plain, *DEVICE, 6) == 0
    assert guest.read(pasid=5) == b"the data" and guest.read(pasid=6) == b"another."
    assert guest.read(DATA << 12) == b"the data"  # without a PASID: the default context
    assert guest.read(pasid=7) == "PASID table entry not present"
    assert guest.pasid("attach_pasid", plain, *DEVICE, 5) == -EEXIST
    assert guest.pasid("attach_pasid", plain, *DEVICE, 0) == guest.pasid("detach_pasid", *DEVICE, 0) == -EINVAL
    assert guest.pasid("attach_pasid", plain, *DEVICE, 256) == -EINVAL
    assert guest.pasid("attach_pasid", 7, *DEVICE, 8) == guest.pasid("attach_pasid", plain, 0, 9, 9, 8) == -ENOENT
    assert guest.pasid("detach_pasid", *DEVICE, 8) == guest.pasid("detach_pasid", 0, 9, 9, 5) == -ENOENT
    assert guest.call("reattach_device", plain, *DEVICE, 5)[0] == 0 and guest.read(pasid=5) == b"another."
    assert guest.call("reattach_device", nested, *DEVICE, 9)[0] == -ENOENT
    assert guest.call("free_context", plain, 0)[0] == -EBUSY
    assert guest.pasid("detach_pasid", *DEVICE, 5) == 0 and guest.read(pasid=5) == "PASID table entry not present"
    assert guest.call("free_context", plain, 1)[0] == 0 and guest.read(pasid=6) == "PASID table entry not present"
    guest.sound()
    assert not check(guest.bed)


def test_invalidations_reach_the_pasids_of_the_table(guest):
    context = guest.nested(gfn=L4, flags=FIRST)
    assert guest.pasid("attach_pasid", context, *DEVICE, 5) == 0 and guest.read(pasid=5) == b"the data"
    guest.write(L1, VA >> 12 & 511, OTHER << 12 | FULL)
    assert guest.flush(context, (6 | 2 << 4, 0)) == (0, 1) and guest.read(pasid=5) == b"another."


def test_pasids_go_with_the_device_and_come_back_with_a_snapshot(guest):
    bed = guest.bed
    context = guest.nested(gfn=L4, flags=FIRST)
    guest.pasid("attach_pasid", context, *DEVICE, 5)
    bed.snapshot()
    assert bed.xen.deassign_device(bed.dom0, bed.dom0.devices[COPIER]) == 0
    assert isinstance(guest.read(pasid=5), str)
    bed.reset()
    assert guest.read(pasid=5) == b"the data"
    assert guest.attach(context) == 0
    assert bed.xen.destroy_domain(bed.dom0) == 0
    assert isinstance(guest.read(pasid=5), str) and isinstance(guest.read(), str)


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_first_stage_reaches_the_guests_memory_or_nothing(seed):
    guest = VtdGuest(iotlb="eager" if seed & 1 else "stale")
    rng = random.Random(seed)
    ours = set(guest.bed.mfns)
    context = guest.nested(gfn=L4, flags=FIRST)
    assert guest.attach(context) == 0
    reached = 0
    for _ in range(60):
        guest.stage1()
        for table in (L4, L3, L2, L1):
            for _ in range(rng.randrange(2)):
                address = rng.choice([L4, L3, L2, L1, DATA, rng.getrandbits(36)]) << 12
                value = rng.choice([address | FULL, address | FULL | 0x80, rng.getrandbits(64)])
                guest.write(table, rng.choice([0, rng.randrange(512), VA >> 12 & 511, VA >> 39 & 511]), value)
        guest.flush(context, (6 | 2 << 4, 0))
        for write in (False, True):
            answer = guest.bed.unit.translate(COPIER & 0xFFFF, rng.choice([VA, VA, rng.getrandbits(48)]), write)
            assert isinstance(answer, Fault) or answer >> 12 in ours
            reached += not isinstance(answer, Fault)
    assert reached > 10
    guest.sound()


def test_without_scalable_mode_there_is_none_of_it():
    guest = Guest("default", "vtd")
    assert guest.nested(gfn=L4, flags=FIRST) == -EOPNOTSUPP
    assert guest.call("attach_pasid", 0, *DEVICE, 5)[0] == guest.call("detach_pasid", *DEVICE, 5)[0] == -EOPNOTSUPP
    assert guest.call("reattach_device", 0, *DEVICE, 5)[0] == -EOPNOTSUPP
