# SPDX-License-Identifier: GPL-2.0-or-later
"""Lint rules about what is answered: checks that are missing, errors that mislead, fields that change under way."""

from collections.abc import Iterator

from abi import memory_op
from abi.conditions import CONDITIONS
from abi.contract import Contract
from abi.declare import ARCHES
from abi.errno import errno_name
from abi.layout import place
from abi.lint import Subject, rule
from abi.model import Convention, SubOp

_ALEJANDRO_V3 = "Alejandro Vallejo on v3"


def _conditions(contract: Contract, subop: str) -> set[str]:
    return {row.condition for row in contract.tables.get(subop, ())}


def answered(s: Subject) -> Iterator[tuple[SubOp, set[str]]]:
    """Implemented sub-ops with the conditions that they test, where the contract is known."""
    if s.contract is not None and s.abi.convention is not Convention.BATCH:
        for row in s.abi.subops.values():
            if row.implemented and row.name in s.contract.tables:
                yield row, _conditions(s.contract, row.name)


@rule(
    "reserved-unchecked",
    "contract",
    "error",
    "defect A6",
    "refuse bytes and flag bits without a meaning (-EINVAL); what is ignored today can never be given a meaning",
)
def reserved_unchecked(s: Subject) -> Iterator[tuple[str, str]]:
    """Reserved bytes and unknown flag bits that nobody checks."""
    for row, tested in answered(s):
        codec = row.codec
        if codec is None or not row.copied_in:
            continue
        ignored = []
        if codec.hole_mask and "holes" not in tested:
            ignored.append("bytes that belong to no field")
        if "flags" in codec.present and "bad-flags" not in tested:
            ignored.append(f"unknown bits of {codec.present['flags'].plain}")
        if ignored:
            yield row.name, " and ".join(ignored) + " are ignored"


@rule(
    "out-is-inout",
    "contract",
    "error",
    "defect A9",
    "set the field to 0 at the start of the call, or document it as INOUT",
)
def out_is_inout(s: Subject) -> Iterator[tuple[str, str]]:
    """A field marked OUT whose value on entry ends up in the result."""
    for struct in s.abi.structs:
        for member in place(struct, ARCHES["x86-64"]).members:
            adds = s.contract is not None and s.contract.count == "add"
            if member.direction == "inout" and member.promised == "out" and adds:
                yield (
                    f"struct {struct.tag}, {member.path}",
                    "marked OUT; the result is added to what the guest left there",
                )


@rule(
    "input-clobbered",
    "contract",
    "error",
    "defect A9",
    "keep the progress of a preempted call in the hypercall's registers, not in the guest's struct",
)
def input_clobbered(s: Subject) -> Iterator[tuple[str, str]]:
    """Fields marked IN that a continuation changes."""
    if s.contract is not None and s.contract.cursor:
        for struct in s.abi.structs:
            members = place(struct, ARCHES["x86-64"]).members
            moved = [m.path for m in members if m.direction == "inout" and m.promised == "in"]
            if moved:
                yield f"struct {struct.tag}", f"marked IN, changed when the call is preempted: {', '.join(moved)}"


@rule(
    "preemption-undocumented",
    "contract",
    "warning",
    "Frediano Ziglio on v6 (batching implies preemption)",
    "say in the header that the call may be interrupted, what another vCPU may do meanwhile, and which fields change",
)
def preemption_undocumented(s: Subject) -> Iterator[tuple[str, str]]:
    """A batch that is preempted and issued again without a word in the header."""
    if s.contract is not None and s.contract.cursor and not s.abi.documents_preemption:
        yield "map_pages, unmap_pages", "the call may be preempted and issued again; the header does not say so"


@rule(
    "stale-out",
    "contract",
    "error",
    "defect A10",
    "write the field on every path, 0 if nothing was done",
)
def stale_out(s: Subject) -> Iterator[tuple[str, str]]:
    """A page count that some errors leave as the guest set it."""
    if s.contract is None or s.contract.count != "set" or s.abi.convention is Convention.BATCH:
        return
    for name, field in (("map_pages", "mapped"), ("unmap_pages", "unmapped")):
        early = [r for r in s.contract.table(name) if not r.each and r.condition in ("too-many-pages", "no-context")]
        codes = ", ".join(f"-{errno_name(row.errno)} ({CONDITIONS[row.condition]})" for row in early)
        yield f"{name}, {field}", f"not written on {codes}"


@rule(
    "errno-differs",
    "contract",
    "error",
    "defect A8",
    "make the header and the code say the same",
)
def errno_differs(s: Subject) -> Iterator[tuple[str, str]]:
    """An error code that is not the one that the header's comment promises."""
    for row, tested in answered(s):
        assert s.contract is not None
        for promise in row.promises:
            given = [r.errno for r in s.contract.table(row.name) if r.condition == promise.condition]
            if not given:
                yield row.name, f"-{errno_name(promise.errno)} is promised and never given"
            elif promise.errno not in given:
                what = CONDITIONS[promise.condition]
                yield row.name, f"{what}: -{errno_name(given[0])}, promised is -{errno_name(promise.errno)}"
        if row.name == "init" and s.contract.init_alters and tested:
            yield row.name, "-EACCES is promised, but the answer is replaced by that of alloc_context"
    if s.driver is not None and s.driver.tools_only_call:
        for said, given_ in memory_op.PROMISES:
            yield (
                "XENMEM_reserved_device_memory_map",
                f"too few slots: -{errno_name(given_)}, its comment promises -{errno_name(said)}",
            )


@rule(
    "declared-but-ignored",
    "contract",
    "error",
    "defects A5, A6",
    "honour the field, or refuse every value that is not honoured",
)
def declared_but_ignored(s: Subject) -> Iterator[tuple[str, str]]:
    """A size, PASID or feature flag that the struct takes and nobody looks at."""
    watched = {"pgsize": "bad-pgsize", "pasid": "pasid"}
    for row, tested in answered(s):
        if row.codec is None:
            continue
        for field, condition in watched.items():
            if field in row.codec.present and condition not in tested:
                yield f"{row.name}, {field}", "taken and ignored, whatever its value"
        if "bad-flags" in tested:
            continue
        group = {"alloc_context": "alloc", "map_pages": "map"}.get(row.name)
        for constant in s.abi.constants:
            if constant.group == group and constant.needs:
                yield f"{row.name}, {constant.name}", f"taken without the capability {constant.needs}, and ignored"
            if constant.group == "create" and row.name == "alloc_context":
                yield f"{row.name}, {constant.name}", "defined, and ignored"


@rule(
    "usability-ambiguous",
    "contract",
    "warning",
    _ALEJANDRO_V3,
    "answer -EOPNOTSUPP where there is no IOMMU to use and -EPERM where the caller may not, and keep both for that",
)
def usability_ambiguous(s: Subject) -> Iterator[tuple[str, str]]:
    """One error code for all reasons why PV-IOMMU cannot be used, or for other things as well."""
    if s.contract is None or s.abi.convention is Convention.BATCH:
        return
    code = errno_name(s.abi.errno_unusable)
    if len(s.contract.usability) > 1:
        yield f"-{code}", "stands for: " + "; ".join(s.contract.usability)
    others = [
        f"{row.name}: {CONDITIONS[r.condition]}"
        for row, _ in answered(s)
        for r in s.contract.table(row.name)
        if r.errno == s.abi.errno_unusable and r.condition not in ("unusable", "not-privileged", "target-unusable")
    ]
    if others:
        yield f"-{code}", f"means PV-IOMMU cannot be used, and also {'; '.join(others)}"


@rule(
    "privilege-hard-coded",
    "contract",
    "warning",
    _ALEJANDRO_V3,
    "ask an XSM hook instead of testing for the hardware domain",
)
def privilege_hard_coded(s: Subject) -> Iterator[tuple[str, str]]:
    """A permission that is a test for one domain, out of reach of any policy."""
    if s.contract is None or s.abi.convention is Convention.BATCH:
        return
    if any("hardware domain" in cause for cause in s.contract.usability):
        yield "every sub-op", "only the hardware domain may call; no policy is asked"
    for row, tested in answered(s):
        if "not-privileged" in tested:
            yield row.name, "only the hardware domain may; no policy is asked"


@rule(
    "batch-refused",
    "contract",
    "warning",
    f"{_ALEJANDRO_V3} and Jan Beulich on v3",
    "split large batches with continuations; a limit, if one is wanted, belongs to the domain's configuration",
)
def batch_refused(s: Subject) -> Iterator[tuple[str, str]]:
    """A limit on pages per call instead of preemption."""
    limit = s.abi.max_nr_pages
    if s.contract is not None and limit is not None and s.abi.convention is not Convention.BATCH:
        yield "map_pages, unmap_pages", f"more than {limit} pages are refused instead of being worked off in turns"


@rule(
    "flush-failure-hidden",
    "contract",
    "error",
    f"{_ALEJANDRO_V3}; defect H7",
    "fail the call when the flush fails: the guest must not reuse the pages",
)
def flush_failure_hidden(s: Subject) -> Iterator[tuple[str, str]]:
    """A failed IOTLB flush that the caller never hears of."""
    if s.contract is not None and s.abi.convention is not Convention.BATCH and not s.contract.reports_flush:
        yield "map_pages, unmap_pages", "a failing flush is logged and the call reports success"


@rule(
    "partial-undocumented",
    "contract",
    "note",
    f"{_ALEJANDRO_V3} (failing address, rollback)",
    "say that what was done before the error stays done and that the page counts hold then as well",
)
def partial_undocumented(s: Subject) -> Iterator[tuple[str, str]]:
    """An error after part of the work, without a word on what became of that part."""
    if s.contract is not None and not s.abi.documents_partial and s.abi.convention is not Convention.BATCH:
        yield (
            "map_pages, unmap_pages",
            "after an error the first pages stay mapped or unmapped; the header does not say so",
        )


@rule(
    "unmap-can-fail",
    "contract",
    "error",
    "Jason Gunthorpe on the Linux driver v2",
    "never fold what two calls mapped into one superpage, or keep pages in reserve for splitting; "
    "unmapping must need no memory",
)
def unmap_can_fail(s: Subject) -> Iterator[tuple[str, str]]:
    """An unmap that allocates, and so can fail for want of memory."""
    for row, tested in answered(s):
        if row.name == "unmap_pages" and "no-split-memory" in tested:
            yield row.name, "-ENOMEM when a superpage has to be split; callers free the pages all the same"


@rule(
    "default-context-writable",
    "contract",
    "error",
    "Jason Gunthorpe on the Linux driver v1; defect A1",
    "refuse the default context in map, unmap and lookup",
)
def default_context_writable(s: Subject) -> Iterator[tuple[str, str]]:
    """The default context, which the hypervisor owns, can be mapped into and unmapped from."""
    for row, tested in answered(s):
        if row.name in ("map_pages", "unmap_pages") and "default-context" not in tested:
            yield row.name, "accepts context 0: removes the guest's identity mapping and a reference never taken"


@rule(
    "tools-only-dependency",
    "contract",
    "warning",
    "Jan Beulich on the Linux driver v1",
    "add a sub-op that reports the reserved regions of a device",
)
def tools_only_dependency(s: Subject) -> Iterator[tuple[str, str]]:
    """Reserved regions that the ABI enforces and does not report."""
    if s.abi.has("reattach_device") and not s.abi.has("query_reserved"):
        yield (
            "reserved regions",
            "a guest can learn them only from XENMEM_reserved_device_memory_map, which is for tools and not stable",
        )
