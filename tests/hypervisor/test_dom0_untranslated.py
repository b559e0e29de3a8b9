# SPDX-License-Identifier: GPL-2.0-or-later
"""``dom0-iommu=passthrough`` and ``none``: DMA that is not translated, in context 0 and nowhere else."""

import pytest
from guest_calls import bed

from abi.errno import EINVAL, ENODEV, ENOENT, EPERM
from hypervisor import profile as profiles
from hypervisor.dom0_options import parse
from testbed import backends
from testbed.build import COPIER, NIC
from testbed.config import DomU
from testbed.units import UnitSpec

BACKENDS = ("vtd", "smmuv3")
SOMEWHERE = 0x1ABC
"""A frame that is not dom0's: it reaches it only untranslated."""
KINDS = [
    ("vtd", "default", False),
    ("vtd", "39-bit", False),
    ("vtd", "caching", False),
    ("vtd", "scalable", False),
    ("vtd", "device-tlb", True),
    ("smmuv3", "default", False),
    ("smmuv3", "device-tlb", True),
]


def untranslated(backend, profile, option="passthrough", **more):
    return bed(backend, profile, "pv", dom0_iommu=option, **more)


@pytest.mark.parametrize("profile", ["v3", "v7-fixed"])
@pytest.mark.parametrize(("backend", "kind", "ats"), KINDS)
def test_context_0_passes_through_and_the_others_translate(backend, kind, ats, profile):
    caller = untranslated(backend, profile, units=(UnitSpec(kind=kind),), device_tlb=ats)
    assert caller.context(0).table is None
    assert [caller.reach(SOMEWHERE, sbdf) for sbdf in (COPIER, NIC)] == [SOMEWHERE] * 2
    context = caller.alloc()
    assert caller.map(context, 9, 0x10).rc == 0
    for _ in range(2):
        assert caller.attach(context, COPIER) == 0
        assert caller.reach(0x10, COPIER, write=True) == caller.mfn(9)
        assert caller.reach(SOMEWHERE, COPIER) is None
        assert caller.reach(SOMEWHERE, NIC) == SOMEWHERE, "another device stays as it was"
        assert caller.attach(0, COPIER) == 0
        assert caller.reach(SOMEWHERE, COPIER, write=True) == SOMEWHERE
        assert caller.reach(0x10, COPIER) == 0x10, "what the context translated is forgotten"
    assert caller.free(context) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_the_option_the_same_frame_is_out_of_reach(backend):
    assert bed(backend, "v7-fixed", "pv").reach(SOMEWHERE, COPIER) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_hardware_domains_default_context_passes_through(backend):
    caller = untranslated(backend, "v7-fixed", domus=(DomU(devices=(COPIER,)),))
    guest = caller.testbed.domus[0]
    assert not guest.iommu.default.passes_through
    assert caller.reach(5, COPIER) == guest.translation.run(5, 1)[0]
    assert caller.reach(SOMEWHERE, COPIER) is None
    assert caller.xen.deassign_device(guest, guest.devices[COPIER]) == 0
    assert caller.reach(SOMEWHERE, COPIER) is None, "a device in quarantine"
    dom0 = caller.dom0
    assert caller.xen.assign_device(dom0, caller.xen.dom_io().devices[COPIER]) == 0
    assert caller.reach(SOMEWHERE, COPIER) == SOMEWHERE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_says_that_the_default_context_is_one_to_one(backend):
    caller = untranslated(backend, "v7-fixed")
    fields = caller.call("query_capabilities").fields
    assert fields["cap_flags"] & caller.abi.caps["default_identity"]
    assert fields["max_iova_addr"] == bed(backend, "v7-fixed").call("query_capabilities").fields["max_iova_addr"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_posted_v3_maps_nothing_in_a_default_context_without_a_tree(backend):
    caller = untranslated(backend, "v3")
    answer = caller.map(0, 9, 0x10, 1)
    assert (answer.rc, answer.fields["mapped"]) == (0, 1)
    assert caller.unmap(0, 0x10).rc == -ENOENT
    assert caller.call("lookup_page", ctx_no=0, dfn=0x10).rc == -ENOENT
    assert untranslated(backend, "v3-fixed").map(0, 9, 0x10, 1).rc == -EINVAL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("profile", "errno"), [("v1", EPERM), ("v2-fixed", EPERM), ("v3", EPERM), ("v4", ENODEV), ("v7-fixed", ENODEV)]
)
def test_a_hardware_domain_without_an_iommu_gets_the_versions_errno(backend, profile, errno):
    caller = untranslated(backend, profile, "none", init=False)
    assert caller.noop() == -errno
    for name in ("query_capabilities", "alloc_context", "map_pages"):
        assert caller.call(name).rc == -errno
    assert caller.reach(SOMEWHERE, COPIER, write=True) == SOMEWHERE
    assert caller.arena_used == 0


def test_units_that_cannot_pass_through_translate_as_usual(monkeypatch):
    monkeypatch.setitem(backends.VTD_KINDS, "no-pass-through", {"pass_through": False})
    units = (UnitSpec(kind="no-pass-through"),)
    caller = untranslated("vtd", "v7-fixed", units=units)
    assert caller.reach(SOMEWHERE, COPIER) is None
    assert caller.reach(caller.mfn(9), COPIER) == caller.mfn(9)
    assert "ignored" in caller.xen.console[0]
    with pytest.raises(ValueError, match="cannot let requests through"):
        untranslated("vtd", "v7-fixed", "none", units=units)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_snapshot_comes_back_to_pass_through(backend):
    caller = untranslated(backend, "v7-fixed")
    caller.testbed.snapshot()
    assert caller.attach(caller.alloc(), COPIER) == 0
    assert caller.reach(SOMEWHERE, COPIER) is None
    caller.testbed.reset()
    assert caller.reach(SOMEWHERE, COPIER) == SOMEWHERE


@pytest.mark.parametrize("word", ["passthrough", "none"])
def test_a_translated_hardware_domain_cannot_do_without(word):
    with pytest.raises(ValueError, match="PVH") as raised:
        parse(word, profiles.get("v7"), pv=False)
    assert "\n" not in str(raised.value)
