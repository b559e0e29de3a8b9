# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulated hypervisor answers as the executable specification says: random programs of hypercalls, both profiles.

Where the specification leaves something open (is there a page left for a table?) its oracle accepts what follows from
it; everything else, every field of the struct included, has to come out.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.errno import errno_name
from abi.explain import explain
from abi.world import Chance, Context, Device, Request, domain_for
from testbed.build import build
from testbed.config import Config

ARGUMENT = 0x4000
HOLE = 0x3FFFFFF
SUBOPS = (
    "alloc_context",
    "free_context",
    "reattach_device",
    "map_pages",
    "map_pages",
    "map_pages",
    "unmap_pages",
    "unmap_pages",
    "query_capabilities",
    "init",
    "noop",
)


class Bench:
    """A test bed with the specification's picture of it."""

    def __init__(self, profile, backend):
        self.bed = build(Config(profile=profile, backend=backend))
        self.contract = contract_called(profile)
        self.abi = self.bed.xen.abi
        domain = self.bed.vcpu.domain
        self.gfns = [self.bed.ram.pfn_to_gfn(pfn) for pfn in range(0x200, 0x400)]
        self.devices = [int(sbdf) for sbdf in {device.sbdf for device in domain.iommu.default.devices}]
        self.state = {
            int(domain.domid): domain_for(
                profile,
                contexts={0: Context()},
                devices={
                    int(device.sbdf): Device(0, tuple((int(a), int(b)) for a, b in device.reserved))
                    for device in domain.iommu.default.devices
                },
                frames=dict.fromkeys(self.gfns, FrameKind.RAM),
                max_iova_addr=self.bed.xen.backend.max_iova,
                pgsize_mask=self.bed.xen.pgsize_mask,
                max_ctx_no=domain.iommu.limit,
            )
        }
        self.domid = int(domain.domid)

    def call(self, name, values):
        """Make the call on both sides; the specification has to explain the hypervisor's answer."""
        fields = [field.name for field in CANONICAL[name]]
        codec = self.abi.by_name[name].codec
        args = tuple(values.get(field.name, field.default) for field in CANONICAL[name])
        if codec is not None:
            present = codec.present
            args = tuple(value if field in present else d for field, value, d in zip(fields, args, defaults(name)))
            self.bed.ram.write(ARGUMENT, codec.encode(*args))
        registers = self.abi.registers(name, self.bed.ram.linear(ARGUMENT))
        result = self.bed.xen.hypercall(self.bed.vcpu, self.abi.hypercall, *registers)
        after = codec.decode(self.bed.ram.read(ARGUMENT, codec.size)) if codec is not None else ()
        asked = Request(self.domid, self.abi.by_name[name].number, args, Chance())
        if name == "query_capabilities":  # limits are facts of the machine, not of the contract
            assert result == 0
            return
        found = explain(self.contract, self.state, asked, result, after)
        said = dict(zip(fields, args)), errno_name(result), dict(zip(fields, after))
        assert found is not None, f"{name}: {said}"
        self.state = found[0]


def defaults(name):
    return tuple(field.default for field in CANONICAL[name])


def values(draw, bench, name):
    """Arguments that mostly make sense."""
    ctx_no = draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 9]))
    device = draw(st.sampled_from([*bench.devices, 0xFFFF]))
    flags = 3 if name == "map_pages" else 0
    if name == "init":
        return {
            "max_ctx_no": draw(st.sampled_from([3, 3, 0, 0xFFFF, 0xFFFFFFFF])),
            "arena_order": draw(st.sampled_from([6, 6, 2, 60])),
        }
    if name == "query_capabilities":
        return {}
    return {
        "ctx_no": ctx_no,
        "gfn": draw(st.sampled_from([*bench.gfns[:4], bench.gfns[30], HOLE])),
        "dfn": draw(st.sampled_from([0, 1, 2, 3, 0x200, 0x1FE, 0x40000, (1 << 36) - 1, 1 << 36, (1 << 64) - 1])),
        "flags": draw(st.sampled_from([flags, flags, flags, 1, 0, 4, 1 << 31])),
        "nr_pages": draw(st.sampled_from([0, 1, 2, 3, 5, 300])),
        "mapped": draw(st.sampled_from([0, 7])),
        "unmapped": draw(st.sampled_from([0, 7])),
        "segment": device >> 16,
        "bus": device >> 8 & 0xFF,
        "devfn": device & 0xFF,
        "pasid": draw(st.sampled_from([0, 0, 0, 1])),
    }


@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_a_device_in_a_dying_context_is_there_already(profile):
    bench = Bench(profile, "vtd")
    if bench.abi.has("init"):
        bench.call("init", {"max_ctx_no": 3, "arena_order": 4})
    bench.call("alloc_context", {})
    here, other = bench.devices[0], bench.devices[-1]
    where = {"ctx_no": 1, "segment": here >> 16, "bus": here >> 8 & 0xFF, "devfn": here & 0xFF}
    bench.call("reattach_device", where)
    bench.bed.vcpu.domain.iommu.contexts[1].dying = True
    domain = bench.state[bench.domid]
    contexts = {**domain.contexts, 1: replace(domain.contexts[1], dying=True)}
    bench.state = {**bench.state, bench.domid: replace(domain, contexts=contexts)}
    assert domain.devices[here].context == 1
    bench.call("reattach_device", where)
    if other != here:
        bench.call("reattach_device", where | {"bus": other >> 8 & 0xFF, "devfn": other & 0xFF})


@pytest.mark.parametrize(("profile", "backend"), [("v7-fixed", "vtd"), ("v3-fixed", "vtd"), ("v7-fixed", "smmuv3")])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_random_programs_are_answered_as_specified(profile, backend, data):
    bench = Bench(profile, backend)
    subops = [name for name in (*SUBOPS, "lookup_page") if bench.abi.has(name)]
    if bench.abi.has("init"):
        bench.call("init", {"max_ctx_no": 3, "arena_order": 4})
    for _ in range(data.draw(st.integers(5, 25))):
        name = data.draw(st.sampled_from(subops))
        bench.call(name, values(data.draw, bench, name))
