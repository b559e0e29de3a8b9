# SPDX-License-Identifier: GPL-2.0-or-later
"""vCPUs of several domains at once, and the end of a domain under schedules: sound code holds, missing locks do not."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from fuzz.concurrent import Concurrent
from fuzz.engines.schedules import Explorer
from fuzz.program import parse
from fuzz.verbs import ProgramError
from hypervisor.locking.guards import GUARDS, nothing
from hypervisor.locking.toolstack import LOOKS as LOOKING
from hypervisor.locking.toolstack import TOOLSTACK
from pviommu.cli import app

GUEST = """# pviommu program 1
bench backend={} profile={} guest={} contexts=4 arena=6
create_domain domain=1 pages=16
assign copier domain=1
as domain=1
init contexts=2 arena=4
alloc
attach copier ctx=1
map ctx=1 frame=ram:8 at=0x401 pages=4
as domain=0
alloc
"""
BENCHES = [("vtd", "v7-fixed", "pvh"), ("smmuv3", "v4-fixed", "pv")]
AT_ONCE = {
    "one guest's vCPUs": "vcpu 0\nas domain=1\nmap ctx=1 frame=ram:9 at=0x800\n"
    "vcpu 1\nas domain=1\nfree ctx=1 flags=0x1\n",
    "a guest's and dom0's": "vcpu 0\nas domain=1\nattach copier ctx=0\nmap ctx=1 frame=ram:9 at=0x800\n"
    "vcpu 1\nassign copier domain=0\nmap ctx=1 frame=ram:8 at=0x10\n",
    "an end, a page and a device": "vcpu 0\ndestroy_domain domain=1\n"
    "vcpu 1\nmap ctx=1 frame=d1:9 at=0x10\nassign copier domain=0\nassign nic domain=1\n",
    "an end and what else the toolstack does": "vcpu 0\ndestroy_domain domain=1 passes=2\n"
    "vcpu 1\ndeassign copier domain=1\nremove frame=d1:10\ndma copier at=0x401\n",
    "two ends": "vcpu 0\ndestroy_domain domain=1\nvcpu 1\ndestroy_domain domain=1\n",
}


def attempts(text, bench=BENCHES[0], runs=60):
    concurrent = Concurrent(parse(GUEST.format(*bench) + text))
    return list(Explorer(concurrent, full=False).attempts("exhaustive", runs, 0, 2, 1))


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize("what", AT_ONCE)
def test_sound_code_survives_every_schedule(what, bench):
    found = attempts(AT_ONCE[what], bench)
    assert not [f"{attempt.schedule}: {attempt.broken}" for attempt in found if attempt.broken is not None]
    assert len({str(attempt.run.results) for attempt in found}) > 1, "the schedules made no difference"


def test_a_missing_lock_between_one_guests_vcpus_is_found(monkeypatch):
    for name in ("map_pages", "free_context"):
        monkeypatch.setitem(GUARDS, name, nothing)
    assert any(attempt.broken is not None for attempt in attempts(AT_ONCE["one guest's vCPUs"]))


def test_a_missing_lock_of_an_end_is_found(monkeypatch):
    for name in ("assign_device", "deassign_device"):
        monkeypatch.setitem(TOOLSTACK, name, lambda locks, xen, args, call: call())
    assert any(attempt.broken is not None for attempt in attempts(AT_ONCE["an end, a page and a device"]))


LOOKS = {
    "it goes on to another domain": (
        "assign copier domain=1\nassign copier domain=0\n",
        "remove_device copier\n",
        "18>1",
    ),
    "its domain ends": ("destroy_domain domain=1\n", "remove_device copier\nassign nic domain=1\n", "0>1 2>0"),
}


@pytest.mark.parametrize("defect", ["", "S6"])
@pytest.mark.parametrize("what", LOOKS)
def test_a_device_that_is_looked_for_is_met_wherever_another_vcpu_moves_it(what, defect):
    """``pcidevs_lock`` is taken by the call, not after its look; S6 looks again instead."""
    first, second, schedule = LOOKS[what]
    profile = "v2-fixed" if defect else "v7-fixed"
    text = "".join(GUEST.format("vtd", profile, "pv").splitlines(True)[:3]) + f"vcpu 0\n{first}vcpu 1\n{second}"
    program = parse(text)
    concurrent = Concurrent(replace(program, bench=replace(program.bench, defects=defect)))
    wanted = [concurrent.attempt(schedule, full=False)]
    every = Explorer(concurrent, full=False).attempts("exhaustive", 150, 0, 1, 1)
    assert not [f"{attempt.schedule}: {attempt.broken}" for attempt in (*wanted, *every) if attempt.broken is not None]


def test_a_missing_lock_of_a_look_is_found(monkeypatch):
    for name in LOOKING:
        monkeypatch.setitem(TOOLSTACK, name, lambda locks, xen, args, call: call())
    assert any(
        attempt.broken is not None
        for first, second, _ in LOOKS.values()
        for attempt in attempts(f"vcpu 0\n{first}vcpu 1\n{second}", runs=150)
    )


def test_a_finding_names_whose_vcpus_they_are(monkeypatch, tmp_path):
    for name in ("map_pages", "free_context"):
        monkeypatch.setitem(GUARDS, name, nothing)
    path, output = tmp_path / "program.txt", tmp_path / "found.txt"
    path.write_text(GUEST.format(*BENCHES[0]) + AT_ONCE["one guest's vCPUs"])
    done = CliRunner().invoke(
        app, ["explore", str(path), "--strategy", "exhaustive", "--runs", "60", "-o", str(output)]
    )
    assert done.exit_code == 1, done.stdout
    assert output.read_text().count("vcpu 1\nas domain=1\n") == 1
    assert CliRunner().invoke(app, ["explore", str(output)]).exit_code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vcpu 0\nas domain=2\nalloc\n", "no domain 2 that could make calls"),
        ("vcpu 0\nalloc\nas domain=1\nalloc\n", "as belongs before the first vcpu, or right behind one"),
        ("vcpu 0\nas domain=1\nalloc\nvcpu 1\ndestroy_domain domain=1\n", "domain 1 is paused when its end begins"),
    ],
)
def test_what_domains_cannot_do_at_once_is_said(text, says):
    with pytest.raises(ProgramError, match=says):
        Concurrent(parse(GUEST.format(*BENCHES[0]) + text))


def test_dom0_is_not_destroyed_under_any_schedule():
    found = attempts("vcpu 0\ndestroy_domain domain=0\nvcpu 1\nalloc\n", runs=10)
    assert {(attempt.broken, attempt.run.results[0][0]) for attempt in found} == {(None, -22)}
