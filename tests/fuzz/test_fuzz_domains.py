# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs with guest domains: sound code is not accused, single faults are, and the tools know the operations."""

import re
from dataclasses import replace
from functools import lru_cache

import pytest

from abi.canonical import CANONICAL
from abi.conditions import FrameKind
from abi.contract_fixed import contract_called
from abi.semantics import call
from abi.world import Device, Domain, Request
from fuzz import domain_generate
from fuzz.concurrent import Concurrent
from fuzz.engines.schedules import Explorer
from fuzz.engines.swarm import Swarm, benches
from fuzz.export.c_program import CProgram
from fuzz.generate import Generator
from fuzz.program import Bench, Program, parse
from fuzz.run import Runner, replay, runner_for
from fuzz.session import Session
from fuzz.state import overview
from fuzz.target import RMRR, SUBOPS
from fuzz.verbs import op
from hypervisor.frames import REF
from hypervisor.iommu import destruction

HEAD = "# pviommu program 1\nbench backend={} profile={} guest={} contexts=4 arena=6\n"
GUEST = (
    "create_domain domain=1 pages=512\nassign nic domain=1\nas domain=1\ninit contexts=2 arena=4\nalloc\n"
    "attach nic ctx=1\nmap ctx=1 frame=ram:8 at=0x401 pages=4\ndma nic at=0x400 pages=6\n"
)
LONG = GUEST + "".join(f"map ctx=1 frame=ram:8 at={0x801 + 600 * k:#x} pages=500\n" for k in range(5))


def program_of(text, backend="vtd", profile="v7-fixed", guest="pv"):
    return parse(HEAD.format(backend, profile, guest) + text)


runner_of = lru_cache(Runner)

# --------------------------------------------------------------------------------------------------- sound code

SOUND = {
    "the end of a domain in passes": LONG + "destroy_domain domain=1 passes=1\ndestroy_domain domain=1 passes=1\n"
    "remote domain=1\nalloc\ndestroy_domain domain=1\n",
    "an end that hardware does not confirm goes on later": GUEST
    + "fail flush=1\ndestroy_domain domain=1\ndma nic at=0x401\n"
    "destroy_domain domain=1\ncreate_domain domain=1 pages=512\nassign nic domain=1\ndma nic at=0x1ff pages=2\n",
    "dom0 holds a page of a domain that ended": GUEST + "as domain=0\nalloc\nmap ctx=1 frame=d1:9 at=0x10\n"
    "destroy_domain domain=1\nmap ctx=1 frame=d1:9 at=0x11\nfree ctx=1\ndestroy_domain domain=1\n",
    "a page of a guest's, taken while devices reach it": GUEST + "remove frame=d1:9\ndma nic at=0x401 pages=3\n"
    "unmap ctx=1 at=0x401 pages=4\np2m frame=d1:10 kind=ro\nmap ctx=1 frame=ram:10 at=0x401\n",
    "a domain for which there is no memory": "fail allocation=3\ncreate_domain domain=1\n"
    "create_domain domain=1 kind=pv\n",
    "a reserved region stays in context 0 of who had its device": "create_domain domain=1\nassign copier domain=1\n"
    "assign nic domain=1\nassign copier domain=0\ndma nic at=0xc00\ndma copier at=0xc00\ndestroy_domain domain=1\n",
    "nothing for a domain without IOMMU": "create_domain domain=1 iommu=no\nassign nic domain=1\nas domain=1\nnoop\n",
    "no memory for a quarantine": "fault plan=heap:1+\ndeassign copier domain=0\n"
    "dma copier at=0xc00\ndma copier at=0x400\n",
}


@pytest.mark.parametrize(("backend", "guest"), [("vtd", "pv"), ("smmuv3", "pvh")])
@pytest.mark.parametrize("why", SOUND)
def test_sound_code_is_not_accused(why, backend, guest):
    program = program_of(SOUND[why], backend, guest=guest)
    found = runner_of(program.bench).run(program.ops, sweep_from=0)
    assert found is None, found


@pytest.mark.parametrize(("profile", "backend"), [("v7-fixed", "vtd"), ("v3-fixed", "smmuv3"), ("v4-fixed", "smmuv3")])
def test_random_programs_with_guests_run_clean(profile, backend, monkeypatch):
    monkeypatch.setattr(domain_generate, "SHARE", 1)
    swarm = Swarm(benches(backend, profile), 11)
    assert [hit for hit in swarm.findings(600, 2_400) if hit is not None] == []
    coverage = {(verb, result) for runner in swarm.runners for verb, result, _ in runner.coverage}
    assert {("create_domain", 0), ("assign", 0), ("deassign", 0), ("as", 0), ("destroy_domain", 0)} <= coverage


def test_most_programs_have_no_guests():
    generator = Generator(Bench(), runner_for(Bench()).abi, 1)
    with_guests = sum(any(operation[0] == "create_domain" for operation in generator.program(60)) for _ in range(300))
    assert 5 < with_guests < 60


def test_a_guest_is_judged_as_the_specification_says():
    runner = Runner(Bench())
    target, oracle, contract = runner.target, runner.oracle, contract_called("v7-fixed")
    compared = 0
    for seed in range(6):
        runner.begin()
        for text in ("create_domain domain=1 pages=512 arena=7", "assign copier domain=1", "as domain=1"):
            assert runner.step(parse(HEAD.format("vtd", "v7-fixed", "pv") + text).ops[0]) == ("0", None)
        guest = Domain(
            hardware=False,
            devices={int(sbdf): Device(0, tuple(d.reserved)) for sbdf, d in target.xen.domains[1].devices.items()},
            frames=dict.fromkeys(range(512), FrameKind.RAM),
            max_iova_addr=target.xen.backend.max_iova,
            cap_flags=target.abi.caps["cache"],
            pgsize_mask=target.xen.pgsize_mask,
            dfn_mask=target.xen.max_dfn,
        )
        state = {0: Domain(), 1: guest}
        generator = Generator(replace(runner.bench, contexts=None), target.abi, seed)
        for operation in generator.program(60):
            name = SUBOPS.get(operation[0])
            if name is None or operation[-2:] != ("plain", 0) or (name == "init" and operation[2] > 7):
                continue
            oracle.before()
            made = target.call(name, target.arguments(operation))
            codec = target.abi.by_name[name].codec
            expected, _ = oracle._expected(made)
            if made.result == -12:
                break  # memory is nothing that the specification knows of
            fields = codec.as_dict(made.before) if codec is not None else {}
            asked = tuple(fields.get(field.name, field.default) for field in CANONICAL[name])
            state, outcome = call(contract, state, Request(1, target.abi.by_name[name].number, asked))
            assert expected == outcome.result == made.result, (operation, outcome.condition)
            compared += 1
    assert compared > 100


# ----------------------------------------------------------------------------------------------- planted faults


def _devices_stay(bed):
    bed.xen.deassign_device = lambda domain, device: 0


def _arena_is_forgotten(bed):
    relinquish = bed.xen.relinquish_contexts

    def forget(domain):
        arena = domain.iommu.arena if domain.iommu is not None else None
        if arena is not None:
            bed.xen.frames.get(arena.base, 1, REF)
        return relinquish(domain)

    bed.xen.relinquish_contexts = forget


def _memory_stays(bed):
    relinquish = bed.xen.relinquish

    def keep(domain):
        owners = bed.xen.frames.owner
        page = next((mfn for mfn, owner in enumerate(owners) if owner == domain.domid), None)
        if page is not None:
            bed.xen.frames.get(page, 1, REF)
        return relinquish(domain)

    bed.xen.relinquish = keep


def _never_yields(bed):
    relinquish = bed.xen.relinquish

    def at_once(domain):
        while (error := relinquish(domain)) > 0:
            pass
        return error

    bed.xen.relinquish = at_once


def _memory_goes_first(bed):
    relinquish = bed.xen.relinquish

    def early(domain):
        destruction._relinquish_memory(bed.xen, domain)
        return relinquish(domain)

    bed.xen.relinquish = early


def _dying_domains_go_on(bed):
    bed.xen.begin_dying = lambda domain: setattr(domain, "dying", True)


def _any_arena(bed):
    create = bed.xen.create_domain
    bed.xen.create_domain = lambda domid, **more: create(domid, **{**more, "arena_pages": 4096})


def _quarantine_stays(bed):
    from hypervisor.iommu import assignment

    give = assignment._give

    def assign(domain, device):
        error = assignment.move_device(bed.xen, domain, device, domain.iommu.default)
        give(bed.xen, device, domain)
        return error

    bed.xen.assign_device = assign


def _half_a_domain_stays(bed):
    bed.xen.destroy_domain = lambda domain: 0


PLANTED = {
    "left-over: a device": (_devices_stay, GUEST + "destroy_domain domain=1\n"),
    "left-over: an arena": (_arena_is_forgotten, GUEST + "destroy_domain domain=1\n"),
    "left-over: a page": (_memory_stays, GUEST + "destroy_domain domain=1\n"),
    "left-over: a quarantine": (_quarantine_stays, "deassign nic domain=0\nassign nic domain=0\n"),
    "left-over: half a domain": (_half_a_domain_stays, "fail allocation=3\ncreate_domain domain=1\n"),
    "yields": (_never_yields, LONG + "destroy_domain domain=1\n"),
    "invariant:no_reach_into_others": (
        _memory_goes_first,
        GUEST + "attach nic ctx=0\nfail flush=1\ndestroy_domain domain=1\n",
    ),
    "answer": (_dying_domains_go_on, GUEST + "fail flush=1\ndestroy_domain domain=1\nremote domain=1\nquery\n"),
    "answer: arena": (_any_arena, "create_domain domain=1 arena=1\nas domain=1\ninit contexts=1 arena=2\n"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_clause_breaks_where_just_that_is_wrong(what):
    fault, text = PLANTED[what]
    program = program_of(text)
    assert runner_of(program.bench).run(program.ops, sweep_from=0) is None
    found = Runner(program.bench, fault).run(program.ops)
    assert found is not None and found.clause == what.split(": ")[0], found


# ------------------------------------------------------------------------------------------------------ the tools


def test_a_calling_domain_that_ends_leaves_the_calls_to_dom0():
    session = Session(program_of(GUEST + "destroy_domain domain=1\nquery\nas domain=1\n"))
    session.goto(len(session.ops) - 1)
    assert session.runner.target.caller.domid == 0
    assert session.step().answer == "ESRCH" and session.broken is None


def test_a_states_words_tell_whose_contexts_devices_and_arenas_are():
    session = Session(program_of(GUEST + "deassign rogue domain=0\n"))
    session.goto(len(session.ops))
    said = "\n".join(overview(session.bed))
    for line in (
        "domain 1, context 1 (nic): 4 pages",
        "arena of domain 1: 4 of 16",
        "rogue (0000:00:05.0): quarantine",
    ):
        assert line in said, said


def test_both_architectures_agree_about_guests():
    program = program_of(GUEST + "as domain=0\nassign nic domain=0\ndma nic at=0x400\ndestroy_domain domain=1\n")
    assert replay(replace(program, bench=replace(program.bench, against="smmuv3"))) is None
    runner = runner_for(replace(program.bench, against="smmuv3"), _keeps_devices)
    found = runner.run(program.ops)
    assert found is not None and found.clause == "same-answer"


def _keeps_devices(bed):
    bed.xen.assign_device = lambda domain, device: -22


def test_exported_programs_say_what_is_not_theirs_to_do():
    text = CProgram(program_of(GUEST + "remote domain=1\nquery\nas domain=0\nquery\n")).text()
    skipped = re.findall(r'skip\("(\w+)', text)
    assert {"create_domain", "assign", "init", "map", "query"} <= set(skipped)
    assert text.count('begin("query"') == 1


def test_moves_between_domains_are_explored_and_hold():
    text = "create_domain domain=1 pages=16\nassign copier domain=1\nvcpu 0\nassign rogue domain=1\nvcpu 1\n"
    program = program_of(text + "deassign copier domain=1\n")
    attempts = list(Explorer(Concurrent(program)).attempts("exhaustive", 30, 0, 2, 1))
    assert len(attempts) > 5 and all(attempt.broken is None for attempt in attempts)


def test_what_a_program_may_do_to_domains_is_checked_when_it_is_read():
    for text, why in (
        ("remove frame=d1:7", "from number 8 on"),
        ("create_domain domain=1 kind=arm", "unknown domain kind"),
        ("assign nic", "assign needs domain"),
    ):
        with pytest.raises(ValueError, match=why):
            program_of(text)
    program = Program(Bench(), (op("create_domain", domain=1, kind="pv", arena=3), op("as", domain=1)))
    assert parse(str(program)) == program
    assert RMRR.base >> 12 == 0xC00
