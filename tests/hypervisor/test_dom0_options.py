# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen's command line says about the hardware domain, and 32-bit callers."""

import pytest
from guest_calls import RMRR_BASE, RW, SCATTERED, bed

from abi.canonical import CANONICAL
from hypervisor import profile as profiles
from hypervisor.dom0_options import Dom0Options, parse
from machine.firmware import Rmrr
from testbed.build import COPIER

LOW = 0x4000_0000


@pytest.mark.parametrize(
    ("text", "profile", "meant"),
    [
        ("", "v3", Dom0Options()),
        ("nb-ctx=3, arena-order=2", "v3-fixed", Dom0Options(2, 2)),
        ("dma=no", "v7-fixed", Dom0Options(dma=False)),
        ("no-dma", "v4", Dom0Options(dma=False)),
        ("dma", "v7", Dom0Options()),
        ("passthrough", "v3", Dom0Options(passthrough=True)),
        ("no-passthrough", "v7", Dom0Options()),
        ("none", "v7", Dom0Options(none=True)),
    ],
)
def test_the_option_is_read(text, profile, meant):
    assert parse(text, profiles.get(profile)) == meant


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("nb-ctx=0", "v3"),
        ("nb-ctx=65535", "v3"),
        ("arena-order=0", "v3"),
        ("arena-order=x", "v3"),
        ("dma=no", "v3"),
        ("nb-ctx=3", "v7"),
        ("dma=maybe", "v7"),
        ("dom0", "v7"),
        ("none=yes", "v7"),
        ("passthrough=2", "v3"),
        ("passthrough,dma=no", "v7"),
        ("strict=2", "v7"),
    ],
)
def test_what_the_version_does_not_know_is_refused_in_one_line(text, profile):
    with pytest.raises(ValueError, match="dom0-iommu=") as refused:
        parse(text, profiles.get(profile))
    assert "\n" not in str(refused.value)


def test_contexts_and_arena_are_as_asked_for():
    caller = bed("vtd", "v3-fixed", "pv", dom0_iommu="nb-ctx=3,arena-order=4")
    assert caller.call("query_capabilities").fields["max_ctx_no"] == 2
    assert caller.dom0.iommu.arena.pages == 16
    assert [caller.call("alloc_context").rc for _ in range(3)] == [0, 0, -28]


@pytest.mark.parametrize("guest", ["pv", "pvh"])
def test_without_dma_the_default_context_maps_nothing(guest):
    caller = bed("vtd", "v7-fixed", guest, dom0_iommu="dma=no")
    assert not list(caller.context(0).table.leaves())
    assert not caller.call("query_capabilities").fields["cap_flags"] & caller.abi.caps["default_identity"]
    assert caller.reach(caller.gfn(9), COPIER) is None
    context = caller.alloc()
    assert caller.attach(context, COPIER) == 0
    assert caller.map(context, 9, 0x10, flags=RW).rc == 0
    assert caller.reach(0x10, COPIER) == caller.mfn(9)


@pytest.mark.parametrize(
    ("option", "seen", "unseen"),
    [
        ("", (), (0x1F00, 0xF0000)),
        ("strict=no", (0x1F00, 0x1800), (0x20, 0xF0000)),
        ("map-reserved", (0x1800,), (0x1F00, 0xF0000)),
        ("map-inclusive", (0x1F00, 0xF0000, 0xFEF00), (0x20, 0xFEE00, 1 << 20)),
        ("strict=no,map-reserved,map-inclusive", (0x1F00, 0x1800, 0xF0000), (0x20, 0xFEE00)),
    ],
)
def test_what_the_default_context_maps_besides_dom0s_own(option, seen, unseen):
    caller = bed("vtd", "v7-fixed", "pv", dom0_iommu=option, rmrrs=(Rmrr(RMRR_BASE, RMRR_BASE + 0x3FFF, ()),))
    assert all(caller.lookup(0, caller.mfn(pfn)) == caller.mfn(pfn) for pfn in (0, 9, SCATTERED + 5))
    assert [caller.lookup(0, dfn) for dfn in seen] == list(seen)
    assert [caller.lookup(0, dfn) for dfn in unseen] == [None] * len(unseen)


def call32(caller, name, **fields):
    """One hypercall from 32-bit code: (result, fields)."""
    codec = caller.abi.by_name[name].codec_on("i386")
    values = {f.name: f.default for f in CANONICAL[name]} | fields
    caller.testbed.linear.pages[LOW >> 12] = (5, True)
    caller.testbed.ram.write(5 << 12, codec.encode(*values.values()) + b"\xee" * 32)
    rc = caller.xen.hypercall32(caller.vcpu, caller.abi.hypercall, *caller.abi.registers(name, LOW))
    after = caller.testbed.ram.read(5 << 12, codec.size + 32)
    assert after[codec.size :] == b"\xee" * 32, "bytes behind the struct were written"
    return rc, codec.as_dict(after[: codec.size])


@pytest.mark.parametrize("profile", ["v3-fixed", "v4-fixed", "v7-fixed", "e3-fixed"])
def test_a_32_bit_caller_has_its_own_layout(profile):
    caller = bed("vtd", profile, "pvh")
    context = call32(caller, "alloc_context")[1]["ctx_no"]
    rc, fields = call32(caller, "map_pages", ctx_no=context, gfn=9, dfn=0x10, flags=RW, nr_pages=3)
    assert (rc, fields["mapped"]) == (0, 3)
    assert caller.lookup(context, 0x12) == caller.mfn(11)
    rc, fields = call32(caller, "unmap_pages", ctx_no=context, dfn=0x10, nr_pages=3)
    assert (rc, fields["unmapped"]) == (0, 3)
    assert call32(caller, "query_capabilities")[0] == 0


@pytest.mark.parametrize("profile", ["v7-fixed", "v7"])
def test_32_bit_code_gets_to_the_handlers_that_everybody_does(profile):
    caller, seen = bed("vtd", profile, "pvh"), []
    call32(caller, "alloc_context")
    caller.xen.entry.wrap_handlers(lambda name, handler: lambda *args: seen.append(name) or handler(*args))
    assert call32(caller, "alloc_context")[0] == 0 and seen == ["alloc_context"]


@pytest.mark.parametrize("profile", ["v7-fixed", "v7"])
def test_registers_of_32_bit_code_have_32_bits(profile):
    caller = bed("vtd", profile, "pvh", init=False)
    caller.testbed.linear.pages[LOW >> 12] = (5, True)
    noop = caller.abi.by_name["noop"].number
    assert caller.xen.hypercall32(caller.vcpu, caller.abi.hypercall, 1 << 32 | noop, LOW) == 0
    assert caller.xen.hypercall32(caller.vcpu, 12, 27, LOW) == -38


def test_remote_cmd_of_a_32_bit_caller_reads_its_structs_so_too():
    caller = bed("vtd", "v7-fixed", "pvh")
    context = caller.alloc()
    inner = caller.abi.by_name["map_pages"].codec_on("i386")
    values = {f.name: f.default for f in CANONICAL["map_pages"]}
    values |= {"ctx_no": context, "gfn": 9, "dfn": 0x10, "flags": RW}
    caller.testbed.linear.pages[(LOW >> 12) + 1] = (6, True)
    caller.testbed.ram.write(6 << 12, inner.encode(*values.values()))
    number = caller.abi.by_name["map_pages"].number
    assert call32(caller, "remote_cmd", domid=0, subop=number, arg=LOW + 4096)[0] == 0
    assert caller.lookup(context, 0x10) == caller.mfn(9)
    assert not caller.vcpu.narrow
