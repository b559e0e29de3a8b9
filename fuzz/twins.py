# SPDX-License-Identifier: GPL-2.0-or-later
"""One program on two machines that must agree: two backends, two profiles.  No contract is asked, only the other one.

What the two cannot both express, or may rightly answer differently, is left out on both sides: capabilities, numbers
beyond the narrower machine, page sizes that one lacks, allocation failures (which allocation it is depends on the
tables).  Where one runs out of memory and the other does not, the program ends.  Between two versions of the interface,
errnos are compared as success or failure.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from abi.errno import ENOMEM, ENOSPC, errno_name
from base.units import PAGE_SHIFT
from fuzz.oracle import Oracle
from fuzz.program import Bench
from fuzz.run import Runner
from fuzz.spans import Span, joined
from fuzz.sweep import Broken
from fuzz.target import SUBOPS, Call, Target
from fuzz.verbs import DEVICES, Op, ProgramError
from hypervisor import profile as profiles
from testbed import backends
from testbed.build import TestBed
from testbed.reachable import reachable

"""Versions without an init call have more contexts."""
_PAGES: Final = {"remove": "remove", "p2m": "retype"}
_TOLD: Final = {"preempt": "preempt", "progress": "claim", "remote": "carry", "as": "call_as"}
"""Verb to the target's method."""
_SAMPLE: Final = 8
"""Pages of a device's access that are compared."""


def other_bench(bench: Bench) -> Bench:
    """The bench that ``bench.against`` stands for; ``ProgramError`` for a name that is neither backend nor profile."""
    name = bench.against
    if name in backends.names():
        return replace(bench, backend=name, against="")
    if name in profiles.names():
        return replace(bench, profile=name, against="")
    raise ProgramError(f"there is no backend or profile {name!r} to compare with")


def _names(left: Bench, right: Bench) -> tuple[str, str]:
    if left.backend != right.backend:
        return left.backend, right.backend
    return left.profile, right.profile


class _Agreement(Oracle):
    """Sweeps compare what devices reach on both sides."""

    def __init__(self, target: Target, other: Target) -> None:
        super().__init__(target)
        self._other: Final = other
        self._sides: Final = _names(target.bench, other.bench)
        self.over = False
        """One side had no memory where the other had: nothing can be compared any more."""

    def reset(self) -> None:
        super().reset()
        self._other.reset()
        self.over = False

    def sweep(self, full: bool = True) -> Broken | None:
        if self.over:
            return None
        left, right = spaces(self.target.bed), spaces(self._other.bed)
        one, two = self._sides
        if left.keys() != right.keys():
            return Broken("same-reach", f"contexts are {sorted(left)} on {one} and {sorted(right)} on {two}")
        for number, spans in left.items():
            if spans != right[number]:
                odd = sorted(set(spans) ^ set(right[number]))[0]
                has, lacks = (one, two) if odd in spans else (two, one)
                start, end, delta, access = odd
                what = f"dfn {start:#x}+{end - start:#x} to frame {start + delta:#x} (access {access})"
                return Broken("same-reach", f"context {number}: {has} has {what}, {lacks} has not")
        at = [homes(target.bed) for target in (self.target, self._other)]
        if at[0] != at[1]:
            return Broken("same-reach", f"devices are in contexts {at[0]} on {one}, {at[1]} on {two}")
        return None


class Twins(Runner):
    """Runs programs on the bench and on the one it is held against."""

    def __init__(self, bench: Bench, sabotage: Callable[[TestBed], None] | None = None) -> None:
        """``sabotage`` goes into the first machine only."""
        self._other: Final = Target(other_bench(bench))
        super().__init__(bench, sabotage)
        one, two = self.target, self._other
        self._same_abi: Final = one.abi == two.abi
        self._sides: Final = _names(one.bench, two.bench)
        self._last_dfn: Final = min(one.xen.max_dfn, two.xen.max_dfn)
        self._odd_sizes: Final = one.xen.pgsize_mask ^ two.xen.pgsize_mask
        self._map_flags: Final = one.abi.map_flags_mask & two.abi.map_flags_mask
        self._most: Final = min(one.xen.max_nr_pages, two.xen.max_nr_pages)
        self.steps.update({verb: partial(self._both, name) for verb, name in SUBOPS.items()})
        self.steps.update({"raw": self._raw_both, "dma": self._dma_both, "fail": self._nothing})
        self.steps.update({verb: partial(self._page_both, name) for verb, name in _PAGES.items()})
        self.steps.update({verb: partial(self._tell_both, name) for verb, name in _TOLD.items()})
        self.steps.update(dict.fromkeys(one.of_domains, self._domains_both))

    def _make_oracle(self) -> Oracle:
        self._agreement = _Agreement(self.target, self._other)
        return self._agreement

    # -------------------------------------------------------------------------------------------------- operations

    def _both(self, name: str, operation: Op) -> tuple[int, Broken | None]:
        if self._agreement.over or not self._comparable(operation):
            return 0, None
        calls = []
        for target in (self.target, self._other):
            calls.append(target.call(name, target.arguments(operation), operation[-2], operation[-1]))
        return self._compare(name, calls[0], calls[1])

    def _comparable(self, operation: Op) -> bool:
        """Whether an operation means the same on both machines."""
        verb = operation[0]
        if not self._same_abi and operation[-1]:  # bytes that belong to no field are no matter of every version
            return False
        if verb in ("map", "unmap"):
            at, pages, size = (operation[k] for k in ((3, 4, 6) if verb == "map" else (2, 3, 4)))
            if size & self._odd_sizes or pages > self._most or (not self._same_abi and size != 0x1000):
                return False
            if verb == "map" and not self._same_abi and operation[5] & ~self._map_flags:
                return False
            return bool(at + pages * max(size >> PAGE_SHIFT, 1) <= self._last_dfn + 1)
        if verb == "lookup":
            return bool(operation[2] <= self._last_dfn)
        if self._same_abi:
            return True
        if verb == "init" or (verb in ("alloc", "free") and operation[-3] & ~1):
            return False
        return all(target.abi.has(SUBOPS[str(verb)]) for target in (self.target, self._other))

    def _compare(self, name: str, left: Call, right: Call) -> tuple[int, Broken | None]:
        if left.result != right.result:
            if -ENOMEM in (left.result, right.result) or (
                not self._same_abi and -ENOSPC in (left.result, right.result)
            ):
                self._agreement.over = True
                return left.result, None
            if self._same_abi or (left.result == 0) != (right.result == 0):
                return left.result, self._differ(name or "unknown sub-op", left.result, right.result)
        if self._same_abi and left.after != right.after and name != "query_capabilities":
            one, two = self._sides
            return left.result, Broken(
                "same-answer", f"{name}'s struct reads {left.after.hex()} on {one}, {right.after.hex()} on {two}"
            )
        return left.result, None

    def _raw_both(self, operation: Op) -> tuple[int, Broken | None]:
        _, number, raw, argument = operation
        if self._agreement.over or not self._same_abi:
            return 0, None
        name = self.target.name_of(number)
        codec = self.target.abi.by_name[name].codec if name else None
        if name in ("map_pages", "unmap_pages", "lookup_page"):
            assert codec is not None
            fields = codec.as_dict(raw[: codec.size].ljust(codec.size, b"\0"))
            at, pages, size = fields["dfn"], fields.get("nr_pages", 1), fields.get("pgsize", 0x1000)
            if size & self._odd_sizes or at + pages * max(size >> PAGE_SHIFT, 1) > self._last_dfn + 1:
                return 0, None
        calls = [target.raw(number, raw, argument) for target in (self.target, self._other)]
        return self._compare(name, calls[0], calls[1])

    def _dma_both(self, operation: Op) -> tuple[int, Broken | None]:
        _, name, at, pages = operation
        if self._agreement.over or at + pages > self._last_dfn or name == "foreign":
            return 0, None
        device = DEVICES[name]
        one, two = self._sides
        step = max(pages // _SAMPLE, 1)
        for dfn in range(at, at + pages, step):
            for write in (False, True):
                found = []
                for target in (self.target, self._other):
                    found.append(target.translate(device, dfn, write))
                if found[0] != found[1] and not self._in_doorbells(dfn):
                    left, right = ("nothing" if m is None else f"frame {m >> PAGE_SHIFT:#x}" for m in found)
                    kind = "write" if write else "read"
                    return 0, Broken(
                        "same-reach", f"{name}'s {kind} at dfn {dfn:#x} reaches {left} on {one}, {right} on {two}"
                    )
        return 0, None

    def _in_doorbells(self, dfn: int) -> bool:
        """Interrupt doorbells are where each architecture has them."""
        for target in (self.target, self._other):
            base, length = target.bed.backend.doorbell_window
            if base <= dfn << PAGE_SHIFT < base + length:
                return True
        return False

    def _page_both(self, method: str, operation: Op) -> tuple[int, Broken | None]:
        """Something that the toolstack does to a page."""
        if self._agreement.over:
            return 0, None
        left, right = (getattr(target, method)(*operation[1:])[2] for target in (self.target, self._other))
        return self._same(operation, left, right, (-ENOMEM,))

    def _domains_both(self, operation: Op) -> tuple[int, Broken | None]:
        """Something that the toolstack does to domains and devices; two whose memory lies elsewhere are not comparable
        frame by frame."""
        if self._agreement.over:
            return 0, None
        targets = (self.target, self._other)
        left, right = (target.of_domains[operation[0]](*operation[1:]) for target in targets)
        made = [target.toolstack.callers.get(operation[1]) for target in targets]
        if operation[0] == "create_domain" and made[0] is not None and made[1] is not None:
            self._agreement.over = made[0].mfns != made[1].mfns
        return self._same(operation, left, right, (-ENOMEM, -ENOSPC))

    def _same(self, operation: Op, left: int, right: int, scarce: tuple[int, ...]) -> tuple[int, Broken | None]:
        """Both sides' answers to what the toolstack did: where one found something ``scarce``, they agree no longer."""
        if left == right:
            return left, None
        if left in scarce or right in scarce:
            self._agreement.over = True
            return left, None
        return left, self._differ(operation[0], left, right)

    def _differ(self, name: str, left: int, right: int) -> Broken:
        """The two sides answered ``name`` differently."""
        one, two = self._sides
        return Broken("same-answer", f"{name} answered {errno_name(left)} on {one} and {errno_name(right)} on {two}")

    def _tell_both(self, method: str, operation: Op) -> tuple[int, Broken | None]:
        """Something that changes how later operations go; versions differ in what can be carried and claimed."""
        if not self._same_abi and method not in ("preempt", "call_as"):
            return 0, None
        for target in (self.target, self._other):
            getattr(target, method)(*operation[1:])
        return 0, None

    def _nothing(self, operation: Op) -> tuple[int, Broken | None]:
        return 0, None


def spaces(bed: TestBed) -> dict[str, list[Span]]:
    """By context, one of a guest's as ``d1/2``: what its tables map, alike neighbours joined."""
    found = {}
    for domid, domain in sorted(bed.xen.domains.items()):
        contexts = domain.iommu.contexts if domain.iommu is not None else {}
        for number, context in sorted(contexts.items()):
            name = f"d{domid}/{number}" if domid else str(number)
            found[name] = list(joined(reachable(bed.memory, context.table).leaves))
    return found


def homes(bed: TestBed) -> dict[str, tuple[int, int]]:
    """Device to the domain that has it and the number of the context that it is in; all quarantine is alike."""
    return {
        name: (int(domain.domid), 0 if domain is bed.xen.quarantined else int(device.context.number))
        for domain in bed.xen.all_domains()
        for name, sbdf in DEVICES.items()
        for device in [domain.devices.get(sbdf)]  # type: ignore[call-overload]
        if device is not None and device.context is not None
    }
