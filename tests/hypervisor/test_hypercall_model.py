# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole interface against a model of plain dictionaries, from both ends: what calls answer, what devices reach.

The model knows a context as {dfn: (mfn, flags)} and a device as the number of its context.  Memory for tables is
ample in one half of the runs, and then every answer is predicted exactly; in the other half -ENOMEM may come at any
page, and has to leave an exact prefix.
"""

from itertools import product

from guest_calls import MIB, RW, Caller, R, W, bed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from abi.errno import EADDRINUSE, EADDRNOTAVAIL, EBUSY, EINVAL, ENOENT, ENOMEM, EPERM
from hypervisor.frames import DOMID_NONE
from machine.firmware import Rmrr
from testbed.build import COPIER, NIC, ROGUE
from testbed.invariants import check

ALL = list(product(("vtd", "smmuv3"), ("v3-fixed", "v7-fixed"), ("pv", "pvh")))
REGION = Rmrr(12 * MIB, 12 * MIB + 0x3FFF, (COPIER,))
FIRST = REGION.base >> 12
BASE = FIRST - 1024
"""Where these contexts' superpages begin; the reserved region follows two of them."""
UNIT = 512

contexts = st.integers(1, 4)
dfns = st.one_of(st.integers(BASE - 8, FIRST + 12), st.sampled_from([BASE, BASE + UNIT, FIRST - 1, FIRST]))
pfns = st.one_of(st.sampled_from([0, 0, 0, 1, 512]), st.integers(0, 1023))
lengths = st.one_of(st.integers(0, 12), st.sampled_from([1, 256, 255, 200]))


class Model(RuleBasedStateMachine):
    """dom0 works on its contexts; the dictionaries say what has to come of it."""

    @initialize(which=st.sampled_from(ALL), tight=st.booleans(), preempt=st.integers(0, 15))
    def boot(self, which: tuple[str, str, str], tight: bool, preempt: int) -> None:
        backend, profile, guest = which
        self.tight = tight and profile == "v7-fixed"
        self.caller: Caller = bed(backend, profile, guest, ram=16 * MIB, guest_ram=4 * MIB, rmrrs=(REGION,), init=False)
        assert self.caller.init(4, 4 if self.tight else 8) == 0
        self.limit = 4 if profile == "v7-fixed" else 255
        self.spaces: dict[int, dict[int, tuple[int, int]]] = {}
        self.homes = dict.fromkeys((NIC, COPIER, ROGUE), 0)
        self.gone: set[int] = set()
        self.steps = 0
        if preempt:
            self.caller.xen.preempt = lambda vcpu: bool(preempt >> (self.steps & 3) & 1)

    # ----------------------------------------------------------------------------------------------- the model

    def reserved(self, ctx: int) -> range:
        here = any(home == ctx and device == COPIER for device, home in self.homes.items())
        return range(FIRST, FIRST + 4) if here else range(0)

    def frame(self, gfn: int) -> int:
        """The machine frame behind ``gfn``, or the errno that mapping it gives."""
        caller = self.caller
        if caller.dom0.pv:
            owner = caller.frames.owner[gfn] if gfn < caller.frames.frames else DOMID_NONE
            return gfn if owner == 0 else -EPERM
        if gfn >= len(caller.testbed.mfns) or gfn in self.gone:
            return -caller.xen.profile.errno_hole
        return caller.mfn(gfn)

    def predict_map(self, ctx: int, gfn: int, dfn: int, pages: int, flags: int, unit: int = 1) -> tuple[int, int, dict]:
        space, new = self.spaces[ctx], {}
        for k in range(pages):
            frame = self.frame(gfn + k)
            if dfn + k in self.reserved(ctx):
                error = -EADDRNOTAVAIL
            elif frame < 0:
                error = frame
            elif dfn + k in space:
                error = -EADDRINUSE
            else:
                new[dfn + k] = (frame, flags)
                continue
            whole = k // unit * unit
            return error, whole, {d: t for d, t in new.items() if d < dfn + whole}
        return 0, pages, new

    def took_place(self, ctx: int, dfn: int, done: int, new: dict[int, tuple[int, int]]) -> None:
        self.spaces[ctx].update({d: t for d, t in new.items() if d < dfn + done})

    # ------------------------------------------------------------------------------------------------- the calls

    @rule()
    def alloc(self) -> None:
        answer = self.caller.call("alloc_context")
        free = [n for n in range(1, self.limit + 1) if n not in self.spaces]
        if answer.rc == -ENOMEM:
            assert self.tight
        elif free and len(self.spaces) < 4:
            assert (answer.rc, answer.fields["ctx_no"]) == (0, free[0])
            self.spaces[free[0]] = {}
        elif answer.rc == 0:
            assert self.caller.free(answer.fields["ctx_no"]) == 0

    @rule(ctx=contexts, with_devices=st.booleans())
    def free(self, ctx: int, with_devices: bool) -> None:
        rc = self.caller.free(ctx, flags=int(with_devices))
        busy = ctx in self.homes.values()
        if ctx not in self.spaces:
            assert rc == -ENOENT
        elif busy and not with_devices:
            assert rc == -EBUSY
        else:
            assert rc == 0
            del self.spaces[ctx]
            self.homes = {device: 0 if home == ctx else home for device, home in self.homes.items()}

    @rule(ctx=st.integers(0, 4), device=st.sampled_from((NIC, COPIER, ROGUE)))
    def attach(self, ctx: int, device: int) -> None:
        rc = self.caller.attach(ctx, device)
        if ctx and ctx not in self.spaces:
            assert rc == -ENOENT
        elif ctx and device == COPIER and self.homes[device] != ctx:
            if any(dfn in self.spaces[ctx] for dfn in range(FIRST, FIRST + 4)):
                assert rc == -EADDRINUSE or (self.tight and rc == -ENOMEM)
            else:
                assert rc == 0 or (self.tight and rc == -ENOMEM)
        else:
            assert rc == 0
        if rc == 0:
            self.homes[device] = ctx

    @rule(ctx=contexts, pfn=pfns, dfn=dfns, pages=lengths, flags=st.sampled_from((RW, RW, R, W)))
    def map(self, ctx: int, pfn: int, dfn: int, pages: int, flags: int) -> None:
        answer = self.caller.map(ctx, pfn, dfn, pages, flags)
        if ctx not in self.spaces:
            assert answer.rc == -EINVAL
            return
        error, done, new = self.predict_map(ctx, self.caller.gfn(pfn), dfn, pages, flags)
        actual = answer.fields["mapped"]
        if answer.rc == -ENOMEM:
            assert self.tight
            assert actual <= done
        else:
            assert (answer.rc, actual) == (error, done)
        self.took_place(ctx, dfn, actual, new)

    @rule(ctx=contexts, pfn=st.sampled_from((0, 0, 1, 3)), at=st.sampled_from((0, UNIT, 300)))
    def map_a_superpage_in_pieces(self, ctx: int, pfn: int, at: int) -> None:
        for piece in range(0, UNIT, 256):
            self.map(ctx, pfn + piece, BASE + at + piece, 256, RW)

    @rule(ctx=contexts, dfn=dfns, pages=lengths)
    def unmap(self, ctx: int, dfn: int, pages: int) -> None:
        answer = self.caller.unmap(ctx, dfn, pages)
        if ctx not in self.spaces:
            assert answer.rc == -EINVAL
            return
        space = self.spaces[ctx]
        error = done = 0
        for done in range(pages + 1):
            if done == pages:
                break
            if dfn + done in self.reserved(ctx):
                error = -EADDRNOTAVAIL
                break
            if dfn + done not in space:
                error = -ENOENT
                break
        actual = answer.fields["unmapped"]
        if answer.rc == -ENOMEM:
            assert actual <= done
        else:
            assert (answer.rc, actual) == (error, done)
        for k in range(actual):
            del space[dfn + k]

    @precondition(lambda self: self.caller.abi.has("init"))
    @rule(
        ctx=contexts,
        pfn=st.sampled_from((0, 0, 512, 1)),
        at=st.sampled_from((0, UNIT, 2 * UNIT)),
        units=st.integers(0, 2),
    )
    def map_units(self, ctx: int, pfn: int, at: int, units: int) -> None:
        gfn, dfn = self.caller.gfn(pfn), BASE + at
        answer = self.caller.map(ctx, pfn, dfn, units, RW, pgsize=2 * MIB)
        if ctx not in self.spaces or gfn % UNIT:
            assert answer.rc == -EINVAL
            return
        error, done, new = self.predict_map(ctx, gfn, dfn, units * UNIT, RW, UNIT)
        actual = answer.fields["mapped"] * UNIT
        if answer.rc == -ENOMEM:
            assert self.tight
            assert actual <= done
        else:
            assert (answer.rc, actual) == (error, done)
        self.took_place(ctx, dfn, actual, new)

    @precondition(lambda self: self.caller.abi.has("init"))
    @rule(ctx=contexts, at=st.sampled_from((0, UNIT)), units=st.integers(0, 3))
    def unmap_units(self, ctx: int, at: int, units: int) -> None:
        answer = self.caller.unmap(ctx, BASE + at, units, pgsize=2 * MIB)
        if ctx not in self.spaces:
            assert answer.rc == -EINVAL
            return
        space, error, done = self.spaces[ctx], 0, 0
        for done in range(units + 1):
            first = BASE + at + done * UNIT
            unit = range(first, first + UNIT)
            if done == units:
                break
            if any(dfn in unit for dfn in self.reserved(ctx)):
                error = -EADDRNOTAVAIL
                break
            if any(dfn not in space for dfn in unit):
                error = -ENOENT
                break
        assert (answer.rc, answer.fields["unmapped"]) == (error, done)
        for k in range(done * UNIT):
            del space[BASE + at + k]

    @precondition(lambda self: self.caller.abi.has("lookup_page"))
    @rule(ctx=contexts, dfn=dfns)
    def lookup(self, ctx: int, dfn: int) -> None:
        answer = self.caller.call("lookup_page", ctx_no=ctx, dfn=dfn)
        if ctx not in self.spaces:
            assert answer.rc == -EINVAL
        elif dfn in self.spaces[ctx]:
            mfn = self.spaces[ctx][dfn][0]
            if self.caller.dom0.pv:
                assert (answer.rc, answer.fields["gfn"]) == (0, mfn)
            else:
                gfn = self.caller.testbed.mfns.index(mfn)
                expected = -ENOENT if gfn in self.gone else 0
                assert answer.rc == expected
                assert expected or answer.fields["gfn"] == gfn

    @rule(pfn=st.integers(8, 1023))
    def take_a_page_away(self, pfn: int) -> None:
        rc = self.caller.xen.remove_page(self.caller.dom0, self.caller.gfn(pfn))
        assert rc == (-EINVAL if pfn in self.gone else 0)
        self.gone.add(pfn)

    # -------------------------------------------------------------------------------------------- what has to hold

    @rule(device=st.sampled_from((NIC, COPIER, ROGUE)), dfn=dfns, write=st.booleans())
    def access(self, device: int, dfn: int, write: bool) -> None:
        home = self.homes[device]
        if not home:
            return
        expected = dfn if dfn in self.reserved(home) else None
        if dfn in self.spaces[home]:
            mfn, flags = self.spaces[home][dfn]
            expected = mfn if flags & (W if write else R) else None
        assert self.caller.reach(dfn, device, write) == expected

    @invariant()
    def devices_reach_the_model_and_nothing_else(self) -> None:
        if not hasattr(self, "caller"):
            return
        self.steps += 1
        for device, home in self.homes.items():
            if not home:
                continue
            space = self.spaces[home]
            for dfn in (BASE - 1, BASE, BASE + 255, BASE + UNIT, FIRST - 1, FIRST, FIRST + 4, *list(space)[-2:]):
                mfn, flags = space.get(dfn, (None, 0))
                if dfn in self.reserved(home):
                    mfn, flags = dfn, RW
                assert self.caller.reach(dfn, device) == (mfn if flags & R else None)
                assert self.caller.reach(dfn, device, write=True) == (mfn if flags & W else None)
        if self.steps % 4 == 0:
            self.trees_and_references()

    def trees_and_references(self) -> None:
        caller = self.caller
        for number, space in self.spaces.items():
            table = caller.context(number).table
            there = {
                dfn + k: (
                    (entry >> 12 & 0xFF_FFFF_FFFF) + k,
                    table.format.readable(entry) | table.format.writable(entry) << 1,
                )
                for dfn, entry, order in table.leaves()
                for k in range(1 << order)
            }
            for dfn in self.reserved(number):
                assert there.pop(dfn) == (dfn, RW)
            assert there == space
        assert check(caller.testbed) == []

    def teardown(self) -> None:
        if not hasattr(self, "caller"):
            return
        self.trees_and_references()
        self.caller.xen.preempt = None
        for number in list(self.spaces):
            assert self.caller.free(number, flags=1) == 0
        assert self.caller.arena_used == 0
        frames = self.caller.frames
        for pfn, mfn in enumerate(self.caller.testbed.mfns):
            if pfn in self.gone:
                assert frames.owner[mfn] != 0
            else:
                assert (frames.owner[mfn], frames.refs[mfn]) == (0, 1)
        assert check(self.caller.testbed) == []


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=35, stateful_step_count=25, deadline=None)
