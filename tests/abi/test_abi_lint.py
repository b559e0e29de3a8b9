# SPDX-License-Identifier: GPL-2.0-or-later
"""Every lint rule speaks up where it should and keeps quiet where somebody mended it."""

from dataclasses import replace
from functools import cache

import pytest

from abi.contract import rows
from abi.declare import IN, c_struct, u16, u32
from abi.lint import SCOPES, SEVERITIES, Subject, lint, rule, rules, subject_called
from abi.posting import Driver, Hypervisor


def of(name):
    return subject_called(name)


def mended(name, **facts):
    """A version whose header says or does better."""
    subject = of(name)
    return replace(subject, abi=replace(subject.abi, **facts))


def without(name, subop, *conditions):
    """A version whose contract does not have some conditions of a sub-op."""
    subject = of(name)
    tables = dict(subject.contract.tables)
    tables[subop] = tuple(row for row in tables[subop] if row.condition not in conditions)
    return replace(subject, contract=replace(subject.contract, tables=tables))


def hypervisor(name, **facts):
    subject = of(name)
    return replace(subject, hypervisor=replace(subject.hypervisor, **facts))


def driver(name, **facts):
    subject = of(name)
    return replace(subject, driver=replace(subject.driver, **facts))


PADDED = c_struct("pv_iommu_padded", "ctx_no" / IN(u16) * "c", "pad0" / IN(u16) * "p", "flags" / IN(u32) * "f")

# rule -> (subjects that have the finding, subjects that do not)
CASES = {
    "implicit-padding": (["v3", "v4", "v7"], [mended("v7", structs=(PADDED,))]),
    "layout-differs-32-64": (["A-new", "v4", "v7", "E3"], ["v3", "P0"]),
    "aligned-type-redefined": (["v4", "v7"], ["v3", "N"]),
    "plain-u64": (["A-old", "P0", "v3"], ["v4", "v7"]),
    "implicit-enum": (["N", "v4"], ["v3", "v5", "v7"]),
    "signed-shift": (
        ["v3", "v4", "v7"],
        [mended("v7", constants=tuple(c for c in of("v7").abi.constants if "U" in c.spelling))],
    ),
    "unnamed-subop": (["P0", "v1", "v3"], ["N", "v4"]),
    "unnamed-flag": (["v1", "v3"], ["P0", "v4"]),
    "tagged-union": (["A-new", "P0", "v3"], ["N", "v4"]),
    "shared-flags": (["A-new", "v3"], ["v4", "v7"]),
    "result-in-shared-head": (["P0", "v3"], ["v4", "v7"]),
    "direction-unmarked": (["v3", "v7"], [mended("v7", structs=of("v7").abi.structs[:-1])]),
    "page-size-unstated": (["P0", "v3"], ["N", "v4", "v7"]),
    "dangling-name": (["N", "v7"], ["v3"]),
    "number-or-count": (["v3", "v7"], ["A-new", "P0"]),
    "empty-struct": (["N", "v7"], ["v3"]),
    "width-differs": (["v4", "v7"], ["v3", "N"]),
    "number-only": (["v4", "v7"], ["v3", "N"]),
    "reserved-unchecked": (["v1", "v3", "v7"], ["v3-fixed", "v7-fixed"]),
    "out-is-inout": (["v4", "v7"], ["v3", "v7-fixed"]),
    "input-clobbered": (["v4", "v7"], ["v3", "v7-fixed"]),
    "preemption-undocumented": (["v6", "v7"], ["v3", "v7-fixed", mended("v7", documents_preemption=True)]),
    "stale-out": (["v1", "v3"], ["v4", "v7", "v3-fixed"]),
    "errno-differs": (["v3", "v4", "v6", "v7"], [replace(of("v3"), driver=None), "v3-fixed"]),
    "declared-but-ignored": (["v3", "v4", "v7"], ["v7-fixed"]),
    "usability-ambiguous": (["v1", "v3", "v7"], ["v4", "v6"]),
    "privilege-hard-coded": (["v3", "v7"], [without("v7", "remote_cmd", "not-privileged")]),
    "batch-refused": (["v1", "v3"], ["v4", "v7"]),
    "flush-failure-hidden": (["v1", "v3", "v7"], ["v3-fixed", "v7-fixed"]),
    "partial-undocumented": (["v3"], ["v4", "v7"]),
    "unmap-can-fail": (["v1", "v3", "v7"], [without("v7", "unmap_pages", "no-split-memory")]),
    "default-context-writable": (["v1", "v3"], ["v4", "v7", "v3-fixed"]),
    "tools-only-dependency": (["v1", "v3", "v7"], ["A-new"]),
    "separate-init": (["v4", "v6", "v7"], ["v3", "N"]),
    "init-falls-through": (["v4", "v7"], ["v3", "v7-fixed"]),
    "count-wraps": (["v4", "v7"], ["v3", "v7-fixed"]),
    "refusal-poisons": (["v1", "v7"], ["v3-fixed", "v7-fixed"]),
    "no-access-accepted": (["v1", "v7"], ["v3-fixed", "v7-fixed"]),
    "range-unchecked": (["v1", "v7"], ["v3-fixed", "v7-fixed"]),
    "reserved-range-entered": (["v4", "v6", "v7"], ["v3", "v7-fixed"]),
    "silent-overwrite": (["v4", "v7"], ["v3", "v7-fixed"]),
    "vendor-missing": (["v4", "v6", "v7"], [hypervisor("v7", amd="whole")]),
    "arch-missing": (["v6", "v7"], [hypervisor("v7", arm="whole")]),
    "build-broken": (["v4", "v6"], ["v3", "v5", "v7"]),
    "call-target-unmarked": (["v4"], ["v3", "v5", "v7"]),
    "passthrough-fails": (["v4"], ["v3", "v6", "v7"]),
    "quarantine-shared": (["v1", "v7"], [hypervisor("v7", quarantine_contexts=True)]),
    "domain-ids-unbounded": (["v5", "v7"], ["v3"]),
    "stack-bytes-leak": (["v4", "v7"], ["v3"]),
    "machine-address": (["v4", "v7"], ["v3", hypervisor("v7", translates_addresses=True)]),
    "moves-unseen": (["v7"], [hypervisor("v7", tells_of_moves=True)]),
    "prose": (["v6"], ["v5", "v7"]),
    "driver-legacy-alloc": (["v1"], ["v2", "v4"]),
    "driver-group-callback": (["v1"], ["v2", "v4"]),
    "driver-release": (["v1", "v2", "v7"], [driver("v7", releases_to_blocked=True)]),
    "driver-impossible-checks": (["v1", "v3"], ["v4"]),
    "driver-identity": (["v3", "v4"], ["E3"]),
    "driver-coherency": (["v1", "v3", "E3"], [driver("v7", claims_coherency=False)]),
    "driver-leftovers": (["v3"], ["v4"]),
    "driver-allocation": (["v1", "v3"], ["v4"]),
    "driver-swiotlb": (["v3"], ["v4"]),
    "driver-dead-exit": (["v3"], ["v4"]),
    "driver-kconfig": (["v3", "v4"], [driver("v7", states_x86=True)]),
    "driver-emulated-devices": (["v3"], [driver("v7", claims_emulated=False)]),
    "driver-page-size": (["v3"], ["v4"]),
    "driver-loops": (["v3"], ["v4"]),
    "driver-unmap-result": (["v1", "v3"], ["v4"]),
    "driver-editor-trailer": (["v1"], ["v2", "v4"]),
}


@cache
def rules_found(name):
    return {finding.rule for finding in lint(of(name))}


def has(subject, name):
    return name in (rules_found(subject) if isinstance(subject, str) else {f.rule for f in lint(subject)})


def test_every_rule_has_cases_and_words():
    assert set(CASES) == set(rules())
    for one in rules().values():
        assert one.scope in SCOPES and one.severity in SEVERITIES
        assert one.doc and one.mend and one.asked


@pytest.mark.parametrize("name", CASES)
def test_a_rule_fires_where_it_should(name):
    for subject in CASES[name][0]:
        assert has(subject, name), subject


@pytest.mark.parametrize("name", CASES)
def test_a_rule_keeps_quiet_where_it_was_mended(name):
    for subject in CASES[name][1]:
        assert not has(subject, name), subject


# what reviewers asked for (by item of the list of reviews), the version it was said of, and versions that mended it
REVIEWS = [
    ("3 name noop", "unnamed-subop", "v3", ["v4", "v7"]),
    ("3 no limit on batches", "batch-refused", "v3", ["v4", "v7"]),
    ("3 flush failures", "flush-failure-hidden", "v3", []),
    ("3 -EPERM is ambiguous", "usability-ambiguous", "v3", ["v4"]),
    ("3 XSM hook", "privilege-hard-coded", "v3", []),
    ("3 no results in the header", "result-in-shared-head", "v3", ["v4"]),
    ("3 no union", "tagged-union", "v3", ["v4"]),
    ("3 flags per struct", "shared-flags", "v3", ["v4"]),
    ("3 IN and OUT", "direction-unmarked", "v3", []),
    ("3 uint64_aligned_t", "plain-u64", "v3", ["v4"]),
    ("3 page size", "page-size-unstated", "v3", ["v4"]),
    ("3 failing address, rollback", "partial-undocumented", "v3", ["v4"]),
    ("4 local uint64_aligned_t", "aligned-type-redefined", "v4", []),
    ("4 named enum, numbers", "implicit-enum", "v4", ["v5", "v7"]),
    ("4 1U", "signed-shift", "v4", []),
    ("4 padding", "implicit-padding", "v4", []),
    ("7 implicit init", "separate-init", "v6", []),
    ("7 preemption", "preemption-undocumented", "v6", []),
    ("7 context count", "number-or-count", "v6", []),
    ("7 words", "dangling-name", "v6", []),
    ("7 typing errors, DID", "prose", "v6", ["v7"]),
    ("8 builds", "build-broken", "v4", ["v5", "v7"]),
    ("8 endbr64", "call-target-unmarked", "v4", ["v5"]),
    ("8 passthrough", "passthrough-fails", "v4", ["v6"]),
    ("8 AMD dead", "vendor-missing", "v6", []),
    ("8 Arm build", "build-broken", "v6", ["v7"]),
    ("9 AMD cleanup", "vendor-missing", "v7", []),
    ("9 domain ids", "domain-ids-unbounded", "v7", []),
    ("9 Arm", "arch-missing", "v7", []),
    ("9 nested, PASID", "number-only", "v7", []),
    ("9 domU addresses", "machine-address", "v7", []),
    ("9 quarantine", "quarantine-shared", "v7", []),
    ("9 pci-assignable-remove", "moves-unseen", "v7", []),
    ("10 tools-only call", "tools-only-dependency", "v1", []),
    ("10 editor trailer", "driver-editor-trailer", "v1", ["v2"]),
    ("11 domain_alloc_paging", "driver-legacy-alloc", "v1", ["v2"]),
    ("11 device_group", "driver-group-callback", "v1", ["v2"]),
    ("11 release_domain", "driver-release", "v1", []),
    ("11 unreachable checks", "driver-impossible-checks", "v1", ["v4"]),
    ("11 default context", "default-context-writable", "v1", ["v4"]),
    ("12 unmap must not fail", "unmap-can-fail", "v2", []),
    ("12 coherency", "driver-coherency", "v2", []),
    ("13 X86", "driver-kconfig", "v2", []),
    ("13 leftovers", "driver-leftovers", "v2", ["v4"]),
    ("13 kzalloc", "driver-allocation", "v2", ["v4"]),
    ("13 emulated devices", "driver-emulated-devices", "v2", []),
    ("13 multiplication", "driver-page-size", "v2", ["v4"]),
    ("13 loops", "driver-loops", "v2", ["v4"]),
    ("13 unmap returns bytes", "driver-unmap-result", "v2", ["v4"]),
    ("13 kfree", "driver-impossible-checks", "v2", ["v4"]),
    ("13 identity domain", "driver-identity", "v2", ["E3"]),
    ("13 swiotlb", "driver-swiotlb", "v2", ["v4"]),
    ("13 dead exit", "driver-dead-exit", "v2", ["v4"]),
]


@pytest.mark.parametrize(("what", "name", "said_of", "better"), REVIEWS, ids=[row[0] for row in REVIEWS])
def test_reviewers_complaints_come_out_by_rule(what, name, said_of, better):
    assert has(said_of, name)
    for version in better:
        assert not has(version, name), version


def test_what_v5_mended_is_no_longer_found():
    padded = {f.place for f in lint(of("v4")) if f.rule == "implicit-padding"}
    assert padded - {f.place for f in lint(of("v5")) if f.rule == "implicit-padding"} == {
        "struct pv_iommu_capabilities"
    }
    shifts = {name: next(f.problem for f in lint(of(name)) if f.rule == "signed-shift") for name in ("v4", "v5")}
    assert "IOMMUCAP_cache" in shifts["v4"] and "IOMMUCAP" not in shifts["v5"]


def test_what_v7_mended_is_no_longer_found():
    told = {name: {f.problem for f in lint(of(name)) if f.rule == "errno-differs"} for name in ("v6", "v7")}
    assert told["v6"] - told["v7"] == {"the caller has no such device: -ENOENT, promised is -ENODEV"}
    entered = {name: {f.place for f in lint(of(name)) if f.rule == "reserved-range-entered"} for name in ("v6", "v7")}
    assert entered == {"v6": {"map_pages", "unmap_pages"}, "v7": {"map_pages"}}


def test_a_promise_that_nobody_keeps_is_found():
    subject = without("v7", "unmap_pages", "not-mapped")
    assert any("promised and never given" in f.problem for f in lint(subject) if f.place == "unmap_pages")


def test_one_code_with_two_meanings_is_found_wherever_it_is():
    subject = of("v6")
    tables = dict(subject.contract.tables)
    tables["map_pages"] += rows(("frame-refused", subject.abi.errno_unusable))
    subject = replace(subject, contract=replace(subject.contract, tables=tables))
    assert has(subject, "usability-ambiguous")


def test_a_bare_subject_is_judged_by_its_header_alone():
    bare = Subject(of("v7").abi)
    scopes = {f.scope for f in lint(bare)}
    assert scopes == {"header", "contract"} and not has(bare, "input-clobbered")
    known = Subject(of("v7").abi, None, Hypervisor(), Driver("any"))
    assert {"hypervisor", "driver"} <= {f.scope for f in lint(known)}


def test_findings_come_scope_by_scope_and_the_worst_first():
    found = lint(of("v7"))
    order = [(SCOPES.index(f.scope), SEVERITIES.index(f.severity)) for f in found]
    assert order == sorted(order) and len(found) > 40


def test_nothing_is_claimed_about_answers_that_nobody_saw():
    assert not [f for f in lint(subject_called("E3")) if f.rule == "out-is-inout"]
    assert [f for f in lint(subject_called("v7")) if f.rule == "out-is-inout"]


def test_a_rule_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="implicit-padding"):
        rule("implicit-padding", "header", "note", "", "")(lambda s: iter(()))
    with pytest.raises(ValueError, match="bad"):
        rule("new", "nowhere", "note", "", "")(lambda s: iter(()))
