# SPDX-License-Identifier: GPL-2.0-or-later
"""Every clause of the oracle against a hypervisor in which just that is wrong."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.clauses import CLAUSES
from fuzz.program import Bench, parse
from fuzz.resync import known_as
from fuzz.run import Runner, replay
from fuzz.spans import without
from fuzz.toolstack import SPLIT_END, STRUCT_END
from fuzz.verbs import op
from testbed.invariants import INVARIANTS

# --- a planted fault for each clause


def _accepts_any_flag(bed):
    bed.xen.map_permissions[8 | 3] = bed.xen.map_permissions[3]


def _leaves_out_field(bed):
    subops = bed.xen.entry._subops
    for number, (handler, decode, put_out, *rest) in list(subops.items()):
        if put_out is not None:
            subops[number] = (handler, decode, lambda buffer, out: None, *rest)


def _no_memory(bed):
    bed.xen.backend.context_init = lambda context: -12


def _confirms_all(bed):
    finish = bed.xen.finish_pass
    bed.xen.finish_pass = lambda *args: finish(*args) * 0


def _lets_go_first(bed):
    xen, finish = bed.xen, bed.xen.finish_pass

    def early(domain, context, dfn, pages, changes):
        xen._let_go(domain, context, changes)
        changes.removed.clear()
        changes.tables.clear()
        return finish(domain, context, dfn, pages, changes)

    xen.finish_pass = early


def _flushes_for_nothing(bed):
    backend, init = bed.xen.backend, bed.xen.backend.context_init
    backend.context_init = lambda context: init(context) or backend.flush_all(context)


def _never_yields(bed):
    from hypervisor.pviommu import contexts

    row = next(number for number, subop in bed.xen.abi.subops.items() if subop.name == "free_context")
    _, *rest = bed.xen.entry._subops[row]

    def deaf(xen, *args):
        kept, xen.preempt = xen.preempt, None
        try:
            return contexts.free_context(xen, *args)
        finally:
            xen.preempt = kept

    bed.xen.entry._subops[row] = (deaf, *rest)


def _lets_devices_write(bed):
    """Hardware that takes a write for a read."""
    translate = bed.unit.translate
    bed.unit.translate = lambda sid, iova, write: translate(sid, iova, False)


def _maps_the_page_beside(bed):
    def wrap(name, handler):
        def beside(xen, vcpu, domain, fields, start):
            return handler(xen, vcpu, domain, (fields[0], fields[1] ^ 1, *fields[2:]), start)

        return beside if name == "map_pages" else handler

    bed.xen.entry.wrap_handlers(wrap)


def _never_folds(bed):
    from hypervisor.pagetable.radix import PageTable

    class Flat(PageTable):
        def _fold(self, *args):
            pass

    bed.xen.backend.page_table = Flat


def _keeps_page(bed):
    bed.xen.remove_page = lambda domain, gfn: -1


def _lets_nobodys_through(bed):
    """Hardware that translates nothing for a device that dom0 does not have."""
    translate = bed.unit.translate

    def through(sid, iova, write):
        return translate(sid, iova, write) if sid in bed.dom0.devices else iova

    bed.unit.translate = through


def _keeps_contexts(bed):
    bed.xen.relinquish_contexts = lambda domain: 0


def _stops(bed):
    from hypervisor.errors import XenBug

    def bug(context):
        raise XenBug("planted")

    bed.xen.backend.context_release = bug


def _gives_firmwares_frames_away(bed):
    let_go = bed.xen._let_go

    def everything(domain, context, changes):
        let_go(domain, context, changes)
        for mfn, count, _ in changes.removed:
            bed.xen.frames.owner[mfn : mfn + count] = array("H", [domain.domid]) * count

    bed.xen._let_go = everything


def _raises(bed):
    bed.xen.backend.context_release = lambda context: 1 // 0


def _after_each_call(bed, does):
    """``does`` something, told the domain whose vCPU calls, after every handler."""

    def wrap(name, handler):
        def wrapped(xen, vcpu, *args):
            answer = handler(xen, vcpu, *args)
            does(vcpu)
            return answer

        return wrapped

    bed.xen.entry.wrap_handlers(wrap)


def _writes_behind_the_struct(bed):
    _after_each_call(bed, lambda vcpu: vcpu.memory.write(bed.ram.linear(STRUCT_END), b"\x01"))


def _writes_behind_the_split_struct(bed):
    _after_each_call(bed, lambda vcpu: vcpu.memory.write(bed.ram.linear(SPLIT_END), b"\x01"))


def _shows_a_table(bed):
    """A page of the guest's gets what a table of Xen's holds."""

    def does(vcpu):
        context = bed.dom0.iommu.default
        bed.ram.write(9 << 12, bed.memory.read(context.table.root << 12, 64))

    _after_each_call(bed, does)


def _writes_to_another_guest(bed):
    def does(vcpu):
        for domain in bed.xen.domains.values():
            if domain.domid != vcpu.domain.domid:
                owned = bed.xen.frames.owner.index(domain.domid)
                bed.memory.write((owned << 12) + 77, b"\x5a")

    _after_each_call(bed, does)


MAP = "alloc\nattach nic ctx=1\nmap ctx=1 frame=ram:8 at=0x400\n"
BIG = "alloc\nmap ctx=1 frame=ram:0 at=0x400 pages=256\nmap ctx=1 frame=ram:256 at=0x500 pages=256\n"
LONG = (
    "preempt pattern=0x1\nalloc\nmap ctx=1 frame=ram:8 at=0x401 pages=1000\nmap ctx=1 frame=ram:8 at=0xc01 pages=1000\n"
    "map ctx=1 frame=ram:8 at=0x1401 pages=1000\nfree ctx=1\n"
)
FIRMWARES = "alloc\nmap ctx=1 frame=rmrr:0 at=0x400\nunmap ctx=1 at=0x400\n"
PLANTED = {
    "answer": (_accepts_any_flag, "alloc\nmap ctx=1 frame=ram:8 at=0x400 access=0xb\n"),
    "written-back": (_leaves_out_field, "alloc\n"),
    "short-of-memory": (_no_memory, "alloc\n"),
    "confirmed": (_confirms_all, MAP + "fail flush=1\nunmap ctx=1 at=0x400\n"),
    "let-go": (_lets_go_first, MAP + "unmap ctx=1 at=0x400\n"),
    "yields": (_never_yields, LONG),
    "idle": (_flushes_for_nothing, "alloc\n"),
    "device-reach": (_lets_devices_write, MAP + "map ctx=1 frame=ram:9 at=0x401 access=r\ndma nic at=0x401\n"),
    "tree": (_maps_the_page_beside, MAP),
    "superpage": (_never_folds, BIG),
    "firmware": (_gives_firmwares_frames_away, FIRMWARES),
    "guest-memory": (_writes_behind_the_struct, "alloc\n"),
    "toolstack": (_keeps_page, "remove frame=ram:9\n"),
    "quarantine": (_lets_nobodys_through, "deassign nic domain=0\ndma nic at=0x400\n"),
    "left-over": (
        _keeps_contexts,
        "create_domain domain=1\nas domain=1\ninit contexts=1 arena=2\ndestroy_domain domain=1\n",
    ),
    "xen-bug": (_stops, "alloc\nfree ctx=1\n"),
    "exception": (_raises, "alloc\nfree ctx=1\n"),
}
HEAD = "# pviommu program 1\nbench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=8\n"


@pytest.mark.parametrize("clause", PLANTED)
def test_a_clause_breaks_where_just_that_is_wrong(clause):
    fault, text = PLANTED[clause]
    program = parse(HEAD + text)
    assert Runner(program.bench).run(program.ops, sweep_from=0) is None
    single = Runner(program.bench, fault)
    found = single.run(program.ops)
    assert found is not None and found.clause == clause, found
    if clause not in ("xen-bug", "exception"):  # there is no going on after these
        single.overlook({known_as(*found.key[:3])})
        assert single.run(program.ops) is None, "nothing else sees it"


SOUND = {
    "the page that stops a map is held by what hardware may still remember": "pv contexts=4 arena=4\n"
    "alloc\nmap ctx=1 frame=ram:321 at=0x0 pages=243\nfail flush=2\nremove frame=ram:591\nremove frame=ram:8\n"
    "remove frame=ram:456\nmap ctx=1 frame=ram:437 at=0xf8 pages=244\n",
    "a free goes on with what an earlier one left": "pvh contexts=4 arena=8\nalloc\nfail flush=2\npreempt pattern=0x1\n"
    + "".join(f"map ctx=1 frame=ram:8 at={0x8001 + 0x200 * k:#x} pages=256\n" for k in range(9))
    + "free ctx=1\nfree ctx=1\n",
    "a page that was given back is Xen's table now": "pv contexts=none arena=6\n"
    "remove frame=ram:511\nremove frame=ram:512\np2m frame=ram:511 kind=pagetable\n",
}


@pytest.mark.parametrize("profile", ["v3-fixed", "v7-fixed"])
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("why", SOUND)
def test_sound_code_is_not_accused(why, backend, profile):
    program = parse(f"# pviommu program 1\nbench backend={backend} profile={profile} guest={SOUND[why]}")
    found = replay(program)
    assert found is None, found


CROSSING = "alloc\nmap ctx=1 frame=ram:8 at=0x5ff\n{}fail allocation=1\nunmap ctx=1 at=0x5ff pages=2\n"
AT_ONCE = "map ctx=1 frame=ram:512 at=0x600 pages=512\n"
IN_HALVES = "map ctx=1 frame=ram:512 at=0x600 pages=256\nmap ctx=1 frame=ram:768 at=0x700 pages=256\n"
BUSY = "preempt pattern=0x1\nalloc\nmap ctx=1 frame=ram:8 at=0x400 pages=5\n"
KNOWN = "known=idle/map/0,written-back/map/0"
BUILT_ON = {
    "R2": ("v3-fixed", "S1", CROSSING.format(IN_HALVES), "short-of-memory"),
    "H3": ("v7-fixed", "A9", BUSY, "yields"),
    "F3": ("v7-fixed", "", FIRMWARES, "firmware"),
}


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
@pytest.mark.parametrize("defect", BUILT_ON)
def test_a_clause_tells_an_entry_from_those_that_it_is_built_on(defect, backend):
    profile, base, text, clause = BUILT_ON[defect]
    bench = f"# pviommu program 1\nbench backend={backend} profile={profile} guest=pv {KNOWN} defects="
    program = parse(f"{bench}{defect}\n{text}")
    found = Runner(program.bench).run(program.ops)
    assert found is not None and found.clause == clause, found
    sound = Runner(parse(f"{bench}{base}\n{text}").bench).run(program.ops)
    assert sound is None or sound.clause != clause, sound


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_an_unmap_splits_a_superpage_with_a_table_that_it_has_emptied_itself(backend):
    program = parse(
        f"# pviommu program 1\nbench backend={backend} profile=v7-fixed guest=pv\n{CROSSING.format(AT_ONCE)}"
    )
    answers = []
    assert Runner(program.bench).run(program.ops, told=answers) is None
    assert answers[-1] == "0"


def test_a_device_that_still_reaches_what_hardware_was_not_told_to_forget_is_seen():
    def flushes_nothing(bed):
        bed.xen.backend.flush = lambda context, dfn, pages, changes: 0

    program = parse(HEAD + MAP + "dma nic at=0x400\nunmap ctx=1 at=0x400\ndma nic at=0x400\n")
    found = Runner(program.bench, flushes_nothing).run(program.ops)
    assert found is not None and found.clause == "device-reach"


ELSEWHERE = {
    "a byte behind a struct across two pages": (_writes_behind_the_split_struct, "alloc arg=split\n"),
    "Xen's table in a page that no call names": (_shows_a_table, "alloc\n"),
    "another guest's page": (
        _writes_to_another_guest,
        "create_domain domain=1 pages=16\nas domain=1\ninit contexts=1 arena=2\nas domain=0\nalloc\n",
    ),
}


@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_memory_of_guests_that_a_call_does_not_name_stays_as_it_was(where, backend):
    fault, text = ELSEWHERE[where]
    program = parse(HEAD.replace("vtd", backend) + text)
    assert Runner(program.bench).run(program.ops, sweep_from=0) is None
    single = Runner(program.bench, fault)
    found = single.run(program.ops)
    assert found is not None and found.clause == "guest-memory", found
    single.overlook({("guest-memory", "*", "*")})
    assert single.run(program.ops) is None, "nothing else sees it"


def test_frames_that_were_used_before_a_guest_got_them_are_not_held_against_anybody():
    text = (
        "alloc\nmap ctx=1 frame=ram:8 at=0x401 pages=1000\nfree ctx=1 flags=1\n"
        "create_domain domain=1 pages=512\ndestroy_domain domain=1\ncreate_domain domain=1 pages=512 kind=pv\n"
        "as domain=1\ninit contexts=1 arena=4\nalloc arg=split\nas domain=0\nquery\n"
    )
    program = parse(HEAD.replace("arena=8", "arena=4") + text)
    assert Runner(program.bench).run(program.ops, sweep_from=0) is None


def test_every_clause_has_its_prose_and_a_planted_fault():
    others = {f"invariant:{name}" for name in INVARIANTS}  # tests/hypervisor/test_invariants.py breaks each of these
    others |= {"hang", "same-answer", "same-reach", "specified"}  # below, test_fuzz_engines.py, test_fuzz_specified.py
    assert set(CLAUSES) == set(PLANTED) | others
    assert all(prose.endswith(".") for prose in CLAUSES.values())


def test_a_frame_that_a_device_may_still_reach_is_nobody_elses():
    text = MAP + "dma nic at=0x400\nfail flush=1\nunmap ctx=1 at=0x400\nremove frame=ram:8\ndma nic at=0x400\n"
    program = parse(HEAD + text)
    assert Runner(program.bench).run(program.ops) is None

    def forgets_what_is_kept(bed):
        keep = bed.xen.kept
        finish = bed.xen.finish_pass

        def careless(domain, context, dfn, pages, changes):
            error = finish(domain, context, dfn, pages, changes)
            if keep:
                keep.clear()
                bed.xen._let_go(domain, context, changes)
            return error

        bed.xen.finish_pass = careless

    found = Runner(program.bench, forgets_what_is_kept).run(program.ops)
    assert found is not None and found.clause == "device-reach"


def test_a_call_that_never_ends_is_a_finding():
    def spins(bed):
        def forever(context):
            while True:
                pass

        bed.xen.backend.context_release = forever

    runner = Runner(Bench(), spins)
    runner.patience = 0.2
    found = runner.run((op("alloc"), op("free", ctx=1)))
    assert found is not None and found.clause == "hang" and found.program.ops[-1][0] == "free"
    assert runner.run((op("alloc"),)) is None


_PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=4)


@given(runs=_PAIRS, regions=_PAIRS)
def test_reserved_pages_are_cut_out_of_ranges_that_they_are_a_part_of(runs, regions):
    spans, at = [], 0
    for gap, pages in runs:
        spans.append((at + gap, at + gap + pages, 5, 3))
        at += gap + pages
    left = list(without(spans, [(first, first + pages - 1) for first, pages in regions]))
    reserved = {page for first, pages in regions for page in range(first, first + pages)}
    pages = [page for start, end, _, _ in spans for page in range(start, end) if page not in reserved]
    assert [page for start, end, _, _ in left for page in range(start, end)] == pages
    assert all(span[2:] == (5, 3) for span in left)
