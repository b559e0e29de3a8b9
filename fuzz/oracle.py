# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle: named clauses, each with its prose, held against a target after (and between) operations.

A fault is reported as :class:`Broken`: which clause, and what was seen.  The answers of single calls are judged at
once, by the quick :mod:`fuzz.shadow`; what needs a look at the whole state is the *sweep*, which runs sparsely and
densely only to find out which operation it was.
"""

from typing import Final

from abi.errno import EFAULT, EINVAL, EIO, ENOMEM, EPERM, errno_name
from base.units import PAGE_SHIFT, Sbdf
from fuzz import events
from fuzz.domains import Domains
from fuzz.faults import COPIES
from fuzz.shadow import Shadow
from fuzz.spans import diverge, joined, sample, without, words
from fuzz.sweep import Broken, sweep
from fuzz.target import FIRMWARES, Call, Target
from fuzz.verbs import DEVICES
from hypervisor.frames import DOMID_IO
from hypervisor.iommu.context import IommuContext
from hypervisor.pviommu.contexts import TEARDOWN_LEAVES
from hypervisor.pviommu.mappings import RESUME_GRAIN
from testbed.invariants import View
from testbed.reachable import Reachable


class Oracle:
    """The shadow of one target during one program."""

    def __init__(self, target: Target) -> None:
        self.target: Final = target
        self.domains: Final = Domains(target)
        self._untranslated: Final = {
            int(device.sbdf) for device in target.bed.dom0.devices.values() if not device.translated
        }
        requesters = target.bed.pci.requester_ids
        self._ways: Final = {
            device: tuple((requester, write) for requester in requesters(Sbdf(device)) for write in (False, True))
            for device in self.domains.devices
        }
        """By device: (requester id, whether it writes) of the accesses that it can make."""
        self._reserved: Final = [region for regions in self.domains.devices.values() for region in regions]
        """Every device's reserved regions: (first, last)."""
        self._codecs: Final = {name: subop.codec for name, subop in target.abi.by_name.items()}
        self._told: list[tuple[Shadow, int, range]] = []
        """(domain, context, device frames) that hardware was told to forget during this operation."""
        self.overlooked: set[str] = set()
        """Clauses of sweeps that are known not to hold."""
        self.shadow = self.domains.reset()
        """dom0's."""
        target.watch_flush = self._before_flush
        target.watch_shortage = self.domains.note_shortage

    def _before_flush(self, context: IommuContext, dfn: int, pages: int) -> str:
        """Whether the frame at ``dfn`` has lost a reference before hardware is told that it is unmapped."""
        shadow = self._shadow_of(context)
        if shadow is None:
            return ""
        told, self._told = self._told, [*self._told, (shadow, context.number, range(dfn, dfn + pages))]
        space = shadow.spaces.get(context.number)
        found = space.at(dfn) if space is not None else None
        frames = self.target.xen.frames
        if found is None or shadow.unsure or shadow.ending or shadow.dying:
            return ""
        mfn = dfn + found[2]
        if mfn >= frames.frames or frames.owner[mfn] == DOMID_IO:  # mapped as MMIO is, without a reference
            return ""
        if any(other.ending for other in shadow.kin):
            return ""
        if frames.refs[mfn] & 0xFFFF_FFFF < frames.allocated[mfn] + shadow.count(mfn, told):
            return f"the reference on frame {mfn:#x}"
        return ""

    def _shadow_of(self, context: IommuContext) -> Shadow | None:
        """The shadow of the domain that a context is of."""
        domains = self.target.xen.domains
        for domid, shadow in self.domains.shadows.items():
            iommu = domains[domid].iommu if domid in domains else None
            if iommu is not None and iommu.contexts.get(context.number) is context:
                return shadow
        return None

    def reset(self) -> None:
        """Forget everything; the target has been reset too."""
        self.shadow = self.domains.reset()

    def before(self) -> None:
        """An operation is about to run."""
        self.domains.before()
        self.target.events = 0
        self.target.passes.clear()
        self.target.too_early = ""
        self._told = []
        if self.target.faults is not None:
            self.target.faults.clear()

    # ------------------------------------------------------------------------------------------------------- calls

    def judge(self, call: Call) -> Broken | None:
        """Hold a hypercall's answer against the contract, and follow what it did."""
        return self._judge(call)

    def _judge(self, call: Call) -> Broken | None:
        """The same for a call that remote_cmd may have carried."""
        faults = self.target.faults
        if faults is not None and faults.copy and self.target.passes:
            return self._judge_stopped(call, COPIES[faults.copy])
        if faults is not None and faults.copy:  # the same as a struct that lies where it cannot be copied
            seen = call.inner if call.inner is not None and faults.copy == "copy-out" else call
            seen.argument = COPIES[faults.copy]
            if seen is call.inner:
                faults.copy = ""
        if call.name == "remote_cmd":
            return self._judge_remote(call)
        shadow = self.domains.shadows[call.domid]
        shadow.progress = call.progress
        expected, written = self._expected(call)
        if self.target.events & events.UNCONFIRMED:
            self.domains.note()
        result = call.result
        if len(self.target.passes) > 1 and call.name in ("map_pages", "unmap_pages"):
            fields = self._codecs[call.name].as_dict(call.before)  # type: ignore[union-attr]
            pages = fields["nr_pages"] * max(fields.get("pgsize", 0) >> PAGE_SHIFT, 1)
            if len(self.target.passes) > 1 + pages // RESUME_GRAIN:
                return Broken(
                    "yields", f"{call.name} of {pages} pages was issued again {len(self.target.passes)} times"
                )
        if result != expected:
            clause = "short-of-memory" if result == -ENOMEM else "confirmed" if expected == -EIO else "answer"
            name = call.name or "unknown sub-op"
            return Broken(clause, f"{name} answered {errno_name(result)}, not {errno_name(expected)}")
        if call.after != written:
            return Broken("written-back", self._difference(call, written))
        if call.name == "init" and not result:
            self.domains.after_init(call.domid)
        return self._judge_events(call, shadow, self.target.events)

    def _judge_events(self, call: Call, shadow: Shadow, happened: int) -> Broken | None:
        """What the hypervisor did beside answering."""
        if self.target.too_early:
            return Broken("let-go", f"{call.name} gave up {self.target.too_early} before hardware was told")
        quiet = call.name in _QUIET or (call.name == "flush_pages" and not self.target.xen.flushes_additions)
        if happened & (events.FLUSH | events.ATTACH) and quiet:
            return Broken("idle", f"{call.name} told hardware something")
        stayed = call.name == "reattach_device" and not shadow.moved and not call.result
        if stayed and happened & events.ATTACH and not shadow.unsure:  # nothing can have been cut off
            return Broken("idle", "a device was programmed again for the context that it is in")
        long = call.name == "free_context" and not call.result and shadow.scattered > 2 * TEARDOWN_LEAVES
        if long and self.target.always_wanted and not happened & events.RESTART:
            return Broken("yields", f"free of {shadow.scattered} pages let nobody else run")
        short = call.result == -ENOMEM and call.name == "unmap_pages" and self.target.faults is None
        if short and not happened & events.UNCONFIRMED and self.domains.free_pages(call.domid) > shadow.free_when_short:
            return Broken("short-of-memory", "unmap_pages answered ENOMEM, and gave tables back afterwards")
        added_only = call.name == "map_pages" and not call.result and not happened & (events.FOLD | events.RESTART)
        if added_only and happened & events.FLUSH and not self.target.xen.flushes_additions:
            return Broken("idle", "hardware was told to forget something, and entries were only added")
        return None

    def _judge_stopped(self, call: Call, argument: str) -> Broken | None:
        """A call that was preempted and whose struct could not be copied then: what its passes did is done."""
        inner = call.inner or call
        shadow, codec = self.domains.shadows[inner.domid], self._codecs[inner.name]
        assert codec is not None
        call.argument = inner.argument = argument
        shadow.progress, shadow.stopped = call.progress, True
        shadow.predict[inner.name](codec.decode(inner.before), call.result, ())
        shadow.stopped = False
        self.domains.note()
        if call.result != -EFAULT:
            return Broken("answer", f"{call.name} answered {errno_name(call.result)}, not EFAULT")
        if (call.after, inner.after) != (call.before, inner.before):
            return Broken("written-back", f"{call.name} (EFAULT): the struct changed")
        return None

    def _judge_remote(self, call: Call) -> Broken | None:
        """remote_cmd tests its own three fields, and is then what it carries."""
        codec, abi, shadows = self._codecs["remote_cmd"], self.target.abi, self.domains.shadows
        if not shadows[call.domid].usable:
            expected = -abi.errno_unusable
        elif codec is None:
            expected = -abi.errno_unknown_subop
        elif call.argument in ("unmapped", "noncanonical"):
            expected = -EFAULT
        else:
            domid, number, _ = codec.decode(call.before)
            inner = abi.subops.get(number)
            if codec.decode_clean(call.before) is None:
                expected = -EINVAL
            elif call.domid:
                expected = -EPERM
            elif domid not in shadows:
                expected = -2
            elif inner is None:
                expected = -abi.errno_unknown_subop
            elif inner.name == "remote_cmd":
                expected = -EINVAL
            elif not shadows[domid].usable:
                expected = -abi.errno_unusable
            elif call.inner is not None:
                broken = self._judge(call.inner)
                if broken is not None:
                    return Broken(broken.clause, f"remote_cmd: {broken.what}")
                expected = call.result
            elif inner.implemented and not call.progress:  # noop
                expected = 0
            else:
                expected = -abi.errno_unknown_subop
        if call.result != expected:
            return Broken("answer", f"remote_cmd answered {errno_name(call.result)}, not {errno_name(expected)}")
        if call.after != call.before:
            return Broken("written-back", "remote_cmd: its own struct changed")
        return None

    def _expected(self, call: Call) -> tuple[int, bytes]:
        """(result, bytes of the struct afterwards)."""
        abi, before, shadow = self.target.abi, call.before, self.domains.shadows[call.domid]
        nowhere = call.argument in ("unmapped", "noncanonical")
        if self.target.union and (nowhere or call.argument == "readonly"):
            return -EFAULT, before
        if not shadow.usable:
            return -abi.errno_unusable, before
        codec = self._codecs.get(call.name)
        if not call.name or (call.progress and call.name not in ("map_pages", "unmap_pages")):
            return -abi.errno_unknown_subop, before
        if codec is None or (codec.size == 0 and not self.target.union):
            return shadow.predict[call.name]((), call.result, ())[0], before
        if nowhere:
            return -EFAULT, before
        if self.target.union or codec.out != codec.fields:
            fields = codec.decode_clean(before)
            if fields is None:
                return -EINVAL, before
        else:
            fields = ()
        if codec.out and call.argument == "readonly":
            return -EFAULT, before
        if codec.out:
            after = codec.as_dict(call.after)
            actual = tuple(after[name] for name in codec.out)
        else:
            actual = ()
        result, out = shadow.predict[call.name](fields, call.result, actual)
        if not codec.out:
            return result, before
        patched = bytearray(before if fields else bytes(len(before)))
        codec.put_out(patched, out)
        return result, bytes(patched)

    def _difference(self, call: Call, written: bytes) -> str:
        codec = self._codecs[call.name]
        assert codec is not None
        was, must = codec.as_dict(call.after), codec.as_dict(written)
        odd = [f"{name} is {was[name]:#x}, not {must[name]:#x}" for name in was if was[name] != must[name]]
        return f"{call.name} ({errno_name(call.result)}): " + (
            ", ".join(odd) or "a byte that belongs to no field changed"
        )

    def judge_removal(self, domid: int, gfn: int, result: int) -> Broken | None:
        """Hold the toolstack's taking of a page of a domain against what must come of it."""
        expected = self.domains.removal(domid, gfn, result) if gfn >= 0 else -EINVAL
        if result != expected:
            return Broken(
                "toolstack", f"taking frame {gfn:#x} answered {errno_name(result)}, not {errno_name(expected)}"
            )
        return None

    def judge_retype(self, domid: int, gfn: int, kind: str, result: int) -> Broken | None:
        """The same for making another kind of page of one of a domain's."""
        expected = self.domains.retyping(domid, gfn, kind, result) if gfn >= 0 else -EINVAL
        if result != expected:
            return Broken("toolstack", f"frame {gfn:#x} as {kind}: {errno_name(result)}, not {errno_name(expected)}")
        return None

    # --------------------------------------------------------------------------------------------------------- DMA

    def dma(self, name: str, at: int, pages: int) -> Broken | None:
        """Let a device read and write pages from ``at`` on, a sample if they are many, and hold what it reaches against
        what is mapped for it."""
        device = DEVICES[name]
        place = self.domains.place(device)
        if device in self._untranslated or device not in self.domains.devices:
            return None
        if place is None:
            return self._dma_of_nobodys(name, at, pages)
        domid, home = place
        shadow = self.domains.shadows[domid]
        if not home and not domid and not shadow.frames.own(at):
            return None
        translate = self.target.translate
        for dfn in sample(at, min(pages, 1 << 30)):
            if dfn > shadow._max_dfn or (not home and not domid and not shadow.frames.own(dfn)):
                break
            if not home and domid and self._is_reserved(dfn):
                continue  # what a device of it once needed
            mfn, access = shadow.reach(home, dfn)
            for requester, write in self._ways[device]:
                actual = translate(requester, dfn, write)
                if actual is None:
                    self.target.events |= events.FAULT
                expected = mfn << PAGE_SHIFT if mfn is not None and access >> write & 1 else None
                if actual != expected and not self._doorbell(dfn, mfn):
                    kept = actual is None or self._is_kept(domid, actual >> PAGE_SHIFT)
                    if shadow.unsure and kept and self._is_unconfirmed(device):
                        continue  # what is remembered may also be that nothing is there
                    kind = "write" if write else "read"
                    got, must = ("nothing" if m is None else f"frame {m >> 12:#x}" for m in (actual, expected))
                    return Broken("device-reach", f"{name}'s {kind} at dfn {dfn:#x} reaches {got}, mapped is {must}")
        return None

    def _dma_of_nobodys(self, name: str, at: int, pages: int) -> Broken | None:
        """The same for a device that no domain has: where it reaches what firmware reserved for it, or nothing."""
        device = DEVICES[name]
        state = self.domains.away[device]
        for dfn in {at, at + max(pages, 1) - 1}:
            if dfn > self.shadow._max_dfn:
                continue
            own = any(first <= dfn <= last for first, last in self.domains.devices[device])
            for requester, write in self._ways[device]:
                actual = self.target.translate(requester, dfn, write)
                allowed = {dfn << PAGE_SHIFT if own and state != "out" else None}
                if state == "blocked":
                    allowed.add(None)
                if actual not in allowed and not self._doorbell(dfn, None):
                    got = "nothing" if actual is None else f"frame {actual >> 12:#x}"
                    where = "out of the machine" if state == "out" else "in quarantine"
                    return Broken("quarantine", f"{name}, {where}, reaches {got} at dfn {dfn:#x}")
        return None

    def _is_unconfirmed(self, device: int) -> bool:
        """Whether hardware may still act on what a device was, or on what its context was."""
        xen, sbdf = self.target.xen, Sbdf(device)
        found = next(domain.devices[sbdf] for domain in xen.all_domains() if sbdf in domain.devices)
        return found.context is None or found.context.stage2.unconfirmed or xen.backend.cut_off(found)

    def _is_reserved(self, dfn: int) -> bool:
        return any(first <= dfn <= last for first, last in self._reserved)

    def _is_kept(self, domid: int, mfn: int) -> bool:
        """Whether a frame that hardware may still remember of a domain cannot be in hands that it has nothing from."""
        frames = self.target.xen.frames
        if mfn >= frames.frames:
            return True
        owner = frames.owner[mfn]
        return frames.refs[mfn] > 0 and (owner in (domid, DOMID_IO) or (not domid and owner in self.domains.shadows))

    def _doorbell(self, dfn: int, mfn: int | None) -> bool:
        backend = self.target.bed.backend
        base, length = backend.doorbell_window
        window = range(base >> PAGE_SHIFT, base + length >> PAGE_SHIFT)
        return not backend.doorbell_is_translated and (dfn in window or mfn in window)

    # ------------------------------------------------------------------------------------------------------- sweeps

    def sweep(self, full: bool = True) -> Broken | None:
        """Look at everything; the first thing that is wrong.  Without ``full`` the invariants that cost most are left
        out: what they would see, most other clauses see too."""
        view = View(self.target.bed)
        for domain, context, tree in view.contexts:
            if domain.domid not in self.domains.shadows:
                continue
            if context.number:
                broken = self._compare(int(domain.domid), int(context.number), tree)
            else:
                broken = self._compare_default(int(domain.domid), tree)
            if broken is not None and broken.clause not in self.overlooked:
                return broken
        owner = self.target.xen.frames.owner
        for mfn in FIRMWARES if "firmware" not in self.overlooked else ():
            if owner[mfn] != DOMID_IO:
                return Broken("firmware", f"frame {mfn:#x} is {owner[mfn]:#x}'s")
        broken = sweep(view, full, self.overlooked)
        if broken is None and "guest-memory" not in self.overlooked:
            broken = next((Broken("guest-memory", what) for what in self.domains.memory.changes()), None)
        return broken

    def _compare_default(self, domid: int, tree: Reachable) -> Broken | None:
        """Context 0 of a guest against its pages; firmware's may stay in it."""
        shadow = self.domains.shadows[domid]
        if not domid or shadow.ending or shadow.unsure:
            return None
        found = list(without(joined(tree.leaves), self._reserved))
        for said, there in diverge(sorted(self.domains.default_spans(domid)), found):
            return Broken("tree", f"context 0 of domain {domid}: its are {words(said)}, the tables say {words(there)}")
        return None

    def _compare(self, domid: int, number: int, tree: Reachable) -> Broken | None:
        """The tables of a context against what the guest mapped."""
        shadow = self.domains.shadows[domid]
        if number in shadow.dying or shadow.ending:
            return None
        if number not in shadow.spaces:
            return Broken("tree", f"context {number} exists and should not")
        regions = [(first, last + 1, 0, 3) for first, last in shadow.regions[number]]
        expected = sorted([*shadow.spaces[number], *regions])
        for said, found in diverge(expected, list(joined(tree.leaves))):
            return Broken("tree", f"context {number}: the guest mapped {words(said)}, the tables say {words(found)}")
        largest = 2 if self.target.xen.backend.orders[-1] >= 9 else 1
        if largest == 1:
            return None
        for start, end, delta, _ in shadow.spaces[number]:
            if delta & 511:
                continue
            for dfn in range(-(-start // 512) * 512, end - 511, 512):
                leaf = tree.at(dfn)
                if leaf is not None and leaf.order == 0 and dfn + delta < self.target.memory.frames:
                    return Broken(
                        "superpage", f"context {number}: dfn {dfn:#x} could be a 2 MiB page and is 4 KiB ones"
                    )
        return None


_QUIET: Final = ("noop", "query_capabilities", "init", "alloc_context", "lookup_page")
"""Calls after which hardware has nothing to forget."""
