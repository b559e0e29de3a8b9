# SPDX-License-Identifier: GPL-2.0-or-later
"""Every place of every sub-op fails once: an errno, nothing lost, and what is tried again succeeds."""

import pytest

from abi.declare import ARCHES
from abi.errno import EFAULT, EIO, ENOMEM, ENOSPC
from abi.layout import as_construct, place
from abi.memory_op import MAP, MEMORY_OP, XENMEM_RDM_ALL, XENMEM_RESERVED_DEVICE_MEMORY_MAP
from hypervisor.pviommu import contexts, mappings
from machine.firmware import Rmrr
from testbed.build import COPIER, build
from testbed.config import Config, DomU
from testbed.invariants import check
from testbed.schedule import Answer, Caller, Hypercall, injected

REGION = Rmrr(0x3000_0000, 0x3000_1FFF, (COPIER,))
BEDS = [("vtd", "v3-fixed"), ("vtd", "v7-fixed"), ("smmuv3", "v7-fixed")]
ALLOWED = {
    -EFAULT: ("copy-in", "copy-out"),
    -ENOMEM: ("arena", "heap", "xenheap"),
    -ENOSPC: ("tag",),
    -EIO: ("confirm",),
}
"""What a call may answer, and the kinds of places that it may be for."""

CHEAP = ("arenas_are_accounted_for", "tables_are_accounted_for", "devices_and_contexts_agree", "tags_are_unique")


def bed_of(backend, profile):
    bed = build(
        Config(
            backend=backend, profile=profile, ram=32 << 20, guest_ram=16 << 20, rmrrs=(REGION,), domus=(DomU(2 << 20),)
        )
    )
    return bed, Caller(bed, bed.vcpu)


def program(bed):
    """Every sub-op, with pages that fold, that are split, and that move with a device."""
    gfn = bed.ram.pfn_to_gfn
    device = {"devfn": COPIER & 0xFF}
    reattach = bed.xen.abi.free_reattach_default
    new = bed.xen.abi.has("init")

    def pages(name, ctx, dfn, nr, pfn=None, **more):
        where = {"ctx_no": ctx, "dfn": dfn, "nr_pages": nr} | more
        return Hypercall(name, where | ({} if pfn is None else {"gfn": gfn(pfn), "flags": 3}))

    yield Hypercall("noop")
    if new:
        yield Hypercall("init", {"max_ctx_no": 4, "arena_order": 6})
    yield Hypercall("query_capabilities")
    yield Hypercall("alloc_context")
    yield pages("map_pages", 1, 0x1FE, 4, 2)
    yield Hypercall("reattach_device", {"ctx_no": 1, **device})
    yield pages("map_pages", 1, 0x400, 256, 512)
    yield pages("map_pages", 1, 0x500, 256, 768)
    yield pages("unmap_pages", 1, 0x500, 16)
    yield pages("map_pages", 1, 1 << 27, 2, 40)
    if new:
        yield pages("map_pages", 1, 0x800, 1, 1024, pgsize=2 << 20)
        yield pages("unmap_pages", 1, 0x800, 1, pgsize=2 << 20)
        yield Hypercall("init", {"max_ctx_no": 2, "arena_order": 4}, on=1)
        yield Hypercall("alloc_context", on=1)
        yield Hypercall("map_pages", {"ctx_no": 1, "gfn": 4, "dfn": 4, "flags": 3}, on=1)
    if bed.xen.abi.has("lookup_page"):
        yield Hypercall("lookup_page", {"ctx_no": 1, "dfn": 0x400})
    yield Hypercall("alloc_context")
    yield Hypercall("reattach_device", {"ctx_no": 2, **device})
    yield Hypercall("reattach_device", {"ctx_no": 1, **device})
    yield pages("unmap_pages", 1, 0x400, 256)
    yield Hypercall("free_context", {"ctx_no": 2})
    yield Hypercall("free_context", {"ctx_no": 1, "flags": reattach})
    yield reserved_memory_map


def reserved_memory_map(caller):
    """The memory_op that a driver asks for reserved regions with."""
    structure = as_construct(place(MAP, ARCHES["x86-64"]), "pci")
    ram, page = caller._ram, caller._address
    values = {"flags": XENMEM_RDM_ALL, "nr_entries": 4, "buffer": ram.linear(page + 512)}
    pci = {"dev.pci.seg": 0, "dev.pci.bus": 0, "dev.pci.devfn": 0}
    ram.write(page, structure.build(values | pci))
    return Answer(caller.xen.hypercall(caller.vcpu, MEMORY_OP, XENMEM_RESERVED_DEVICE_MEMORY_MAP, ram.linear(page)), {})


def issue(caller, item, done=0):
    """Issue a call, from page ``done`` on if an earlier attempt got that far."""
    if not isinstance(item, Hypercall):
        return item(caller)
    fields = dict(item.fields)
    if done:
        pages = done * (fields.get("pgsize", 4096) >> 12)
        fields["dfn"] += pages
        fields["nr_pages"] -= done
        if "gfn" in fields:
            fields["gfn"] += pages
    if "nr_pages" in fields and not fields["nr_pages"]:
        return Answer(0, {})
    return caller.call(item.name, on=item.on, **fields)


@pytest.mark.parametrize(("backend", "profile"), BEDS)
def test_every_place_of_every_sub_op_can_fail(backend, profile):
    bed, caller = bed_of(backend, profile)
    reached, ways = set(), set()
    for item in program(bed):
        bed.snapshot()
        with injected(bed) as faults:
            assert issue(caller, item).result == 0, item
        for nth in range(1, faults.reached["any"] + 1):
            bed.reset()
            with injected(bed, f"any:{nth}") as fault:
                answer = issue(caller, item)
            kind = fault.failed[0].split(":")[0]
            reached.add(kind)
            ways.add((kind, answer.result))
            story = f"{item} with {fault.failed[0]} failing = {answer}"
            if answer.result == 0:
                assert not check(bed, *CHEAP), story
                continue
            assert not check(bed), story
            assert kind in ALLOWED[answer.result], story
            done = answer.fields.get("mapped", answer.fields.get("unmapped", 0)) if answer.result != -EFAULT else 0
            again = issue(caller, item, done)
            assert again.result == 0, f"{story}, and again = {again}"
            assert not check(bed, *CHEAP), story
        bed.reset()
        assert issue(caller, item).result == 0
    assert reached == {"copy-in", "copy-out", "arena", "xenheap", "tag", "confirm"} | ({"heap"} & reached)
    assert {result for _, result in ways} >= set(ALLOWED)


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_every_place_of_a_call_in_passes_can_fail(backend, monkeypatch):
    """What an earlier pass did stays done; a struct that cannot be read again is -EFAULT without a count."""
    monkeypatch.setattr(mappings, "PASS_PAGES", 512)
    monkeypatch.setattr(contexts, "TEARDOWN_LEAVES", 40)
    bed, caller = bed_of(backend, "v7-fixed")
    bed.xen.preempt = lambda vcpu: True
    assert caller.call("init", max_ctx_no=4, arena_order=6).result == 0
    assert caller.call("alloc_context").result == 0
    assert caller.call("reattach_device", ctx_no=1, devfn=COPIER & 0xFF).result == 0
    where = {"ctx_no": 1, "dfn": 0x40, "nr_pages": 1300}
    steps = [
        Hypercall("map_pages", {**where, "gfn": bed.ram.pfn_to_gfn(64), "flags": 3}),
        Hypercall("unmap_pages", {**where, "nr_pages": 1200}),
        Hypercall("free_context", {"ctx_no": 1, "flags": bed.xen.abi.free_reattach_default}),
    ]
    for item in steps:
        bed.snapshot()
        passes = []
        bed.xen.rescheduled = passes.append
        with injected(bed) as faults:
            assert issue(caller, item).result == 0
        assert passes, "it was done in one pass"
        for nth in range(1, faults.reached["any"] + 1):
            bed.reset()
            with injected(bed, f"any:{nth}") as fault:
                answer = issue(caller, item)
            assert not check(bed), f"{item} with {fault.failed} failing = {answer}"
            if answer.result in (0, -EFAULT):
                continue
            done = answer.fields.get("mapped", answer.fields.get("unmapped", 0))
            assert issue(caller, item, done).result == 0, f"{item} with {fault.failed} failing = {answer}"
            assert not check(bed, *CHEAP)
        bed.reset()
        assert issue(caller, item).result == 0
