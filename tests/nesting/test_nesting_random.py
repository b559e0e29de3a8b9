# SPDX-License-Identifier: GPL-2.0-or-later
"""Random calls of every sub-op of x1-nested, plausible and not, on both backends: every property holds after them."""

import random

import pytest
from test_nesting_hypervisor import FLAGS, Guest
from test_nesting_vtd import FIRST

from testbed.build import COPIER, NIC, ROGUE
from testbed.invariants_nesting import check

FRAMES = range(0x100, 0x140)


def one_call(rng, guest, first):
    """A sub-op's name and fields."""
    number = rng.choice([0, 1, 2, 3, 4, 5, rng.randrange(1 << 16)])
    sbdf = rng.choice([COPIER, NIC, ROGUE, rng.getrandbits(16)])
    device = (sbdf >> 16, sbdf >> 8 & 0xFF, sbdf & 0xFF)
    pasid = rng.choice([0, 1, 2, 200, rng.getrandbits(20)])
    gfn = rng.choice([*FRAMES, rng.getrandbits(40)])
    calls = {
        "alloc_context": lambda: (0, rng.choice([0, 0, 2, 3])),
        "free_context": lambda: (number, rng.choice([0, 1, 1])),
        "alloc_nested": lambda: (number, gfn, rng.choice([first, first, first, rng.getrandbits(64)])),
        "reattach_device": lambda: (number, *device, rng.choice([0, 0, pasid])),
        "attach_pasid": lambda: (number, *device, pasid),
        "detach_pasid": lambda: (*device, pasid),
        "map_pages": lambda: (
            number,
            gfn,
            rng.choice([gfn, *FRAMES]),
            rng.choice([1, 3, 7]),
            4096,
            rng.randrange(40),
            0,
        ),
        "unmap_pages": lambda: (number, rng.choice([gfn, *FRAMES]), 4096, rng.randrange(40), 0),
        "flush_nested": lambda: (number, rng.randrange(4), guest.ram.linear(rng.choice([0x90, 0x100]) << 12), 0),
        "query_device": lambda: (*device, *(0,) * 7),
        "next_fault": lambda: (0,) * 8,
    }
    name = rng.choice(list(calls))
    return name, calls[name]()


def noise(rng, guest):
    """The guest writes into its tables and its list of commands, and devices send requests."""
    for _ in range(rng.randrange(6)):
        value = rng.choice([rng.choice(FRAMES) << 12 | 7, rng.choice(FRAMES) << 12 | 0x743, rng.getrandbits(64)])
        guest.write(rng.choice(FRAMES), rng.randrange(16), value)
    guest.write(0x90, rng.randrange(8), rng.choice([0x10, 0x12, 0x26, 0x36, 6 | 2 << 4, rng.getrandbits(64)]))
    for sbdf in (COPIER, NIC, ROGUE):
        unit, sid = guest.bed.fabric.route(sbdf)
        iova = rng.choice([rng.choice(FRAMES) << 12, rng.getrandbits(rng.choice([13, 40, 48]))])
        unit.translate(sid, iova, rng.random() < 0.5, rng.choice([None, None, 1, 2]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("kind", "backend", "first"), [("nested", "smmuv3", FLAGS), ("scalable", "vtd", FIRST)])
def test_random_calls_keep_every_property(kind, backend, first, seed):
    guest = Guest(kind, backend, iotlb="eager" if seed & 1 else "stale")
    rng = random.Random(seed)
    good = 0
    for number in range(400):
        name, fields = one_call(rng, guest, first)
        ret, _ = guest.call(name, *fields)
        assert -200 < ret <= 0, (name, fields, ret)
        good += not ret
        noise(rng, guest)
        if number % 80 == 79:
            guest.sound()
            assert not check(guest.bed), (number, check(guest.bed))
    assert good > 50
    while guest.bed.xen.destroy_domain(guest.bed.dom0):
        pass
    assert not guest.bed.dom0.iommu.contexts and not guest.bed.xen.kept
