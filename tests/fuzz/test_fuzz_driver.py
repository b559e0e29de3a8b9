# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of driver level: each clause of the contract sees its fault, refused calls explain what they explain."""

import pytest
from typer.testing import CliRunner

from fuzz.driver_contract import CONTRACT
from fuzz.driver_mutate import legal
from fuzz.driver_run import DriverRunner
from fuzz.engines.fail_nth import FailNth
from fuzz.engines.greybox import Greybox
from fuzz.naming import name
from fuzz.program import Bench, Program, parse
from fuzz.run import replay
from fuzz.verbs import ProgramError
from guest_driver.linux.oops import KernelOops
from pviommu.cli import app

FAULTS = {
    "smaller-arena": ("K9", "fail_call init errno=ENOMEM\nboot"),
    "absent": ("K11", "fail_call query_capabilities errno=EPERM\nboot"),
    "blocking-is-free": ("L1.2-7", "boot\nfail_call alloc_context errno=ENOSPC\nclaim_dma_owner copier"),
    "default-domain": ("K6", "boot mode=passthrough"),
    "map-works": (
        "K10+L1.2-2",
        "domain_alloc domain=0 copier\niommu_map domain=0 iova=0x40000000 frames=near pages=1024",
    ),
}
"""By clause: a defect, and a program that shows it."""


def runner(driver="reference", guest="pv", **more):
    return DriverRunner(Bench("vtd", "v7-fixed", guest, level="driver", driver=driver, **more))


def ops(text):
    return parse(f"# pviommu program 1\nbench level=driver\n{text}\n").ops


def test_each_clause_of_the_contract_has_a_fault():
    assert set(FAULTS) == set(CONTRACT)


@pytest.mark.parametrize("clause", FAULTS)
def test_a_clause_of_the_contract_sees_its_fault(clause):
    defect, program = FAULTS[clause]
    known = "guest:calls/iommu_map/0,guest:12/*/*"  # what the same defects break besides
    found = runner(f"reference+{defect}", known=known).run(ops(program))
    assert found is not None and found.clause == clause, found
    assert runner().run(ops(program)) is None


def test_a_guest_kernel_that_dies_is_a_finding():
    def dies(bed):
        genuine = bed.hypercalls.hypercall

        def hypercall(number, *args):
            if bed.dom0.iommu.contexts:
                raise KernelOops("planted")
            return genuine(number, *args)

        bed.hypercalls.hypercall = hypercall

    found = DriverRunner(runner().bench, dies).run(ops("boot\ndomain_alloc domain=0 copier"))
    assert found is not None and found.key[:3] == ("oops", "boot", "oops"), found


def test_a_device_of_a_guest_kernels_reaches_what_tables_say():
    def takes_writes_for_reads(bed):
        translate = bed.unit.translate
        bed.unit.translate = lambda sid, iova, write: translate(sid, iova, False)

    text = (
        "domain_alloc domain=0 copier\ndomain_attach domain=0 copier\n"
        "iommu_map domain=0 iova=0x40000000 frames=near prot=r\ndma copier at=0x40000"
    )
    single = DriverRunner(runner().bench, takes_writes_for_reads)
    found = single.run(ops(text))
    assert found is not None and found.clause == "device-reach", found
    single.overlook({("device-reach", "dma", "0")})
    assert single.run(ops(text)) is None, "nothing else sees it"
    assert runner().run(ops(text)) is None


def test_what_is_known_is_passed_over_and_stands_in_the_bench_line():
    text = ops("domain_alloc domain=0 copier\niommu_map domain=0 iova=0x40000000 frames=near pages=8\nshutdown")
    single = runner("reference+K10")
    found = single.run(text)
    assert found is not None and found.key[:3] == ("guest:calls", "iommu_map", "0")
    single.overlook({found.key[:3]})
    assert single.run(text) is None
    leaking = runner("reference+K10+L1.2-8", known="guest:calls/iommu_map/0")
    found = leaking.run((*text[:-1], *ops("fail_call free_context errno=EBUSY\nshutdown")))
    assert found is not None and found.clause == "guest:leak"
    assert found.program.bench.known == "guest:calls/iommu_map/0"
    with pytest.raises(ProgramError, match="can be known"):
        runner(known="oops/boot/0")


@pytest.mark.parametrize("groups", ["own", "shared"])
def test_a_device_that_cannot_be_moved_explains_where_it_is_and_a_context_that_cannot_be_freed(groups):
    text = (
        f"boot groups={groups}\ndomain_alloc domain=0 nic\ndomain_attach domain=0 copier\n"
        "fail_call reattach_device errno=ENOMEM\ndomain_detach domain=0 copier\nshutdown"
    )
    assert runner().run(ops(text)) is None


def test_other_buffers_of_a_domain_explain_iovas_in_use():
    text = "dma_map_page slot=2 copier bytes=1\ndma_alloc_coherent slot=0 copier bytes=1\ndma_unmap_page slot=2"
    assert runner().run(ops(text)) is None


def test_an_oracle_of_programs_does_not_expect_an_arena_without_contexts():
    assert runner().run(ops("fail_call init errno=ENOMEM\nboot hide=contexts")) is None


def test_a_number_in_use_is_given_to_nothing_else():
    text = "domain_alloc domain=0 nic\ndomain_alloc domain=0 nic\nshutdown"
    told = []
    assert runner().run(ops(text), told=told) is None
    assert told[1] == "EBUSY"


def test_every_place_of_a_program_fails_once_and_explains_what_it_does():
    text = (
        "domain_alloc domain=0 copier\ndomain_attach domain=0 copier\niommu_map domain=0 iova=0x40000000 frames=near\n"
        "dma copier at=0x40000\niommu_unmap domain=0 iova=0x40000000\ndma copier at=0x40000"
    )
    bench = Bench("smmuv3", "v3-fixed", "pv", level="driver")
    sweep = FailNth(Program(bench, ops(text)))
    assert {"copy-in", "arena", "confirm"} <= set(sweep.reached)
    assert [run for run in sweep.runs() if run.finding is not None] == []


def test_programs_put_together_keep_the_rules_of_their_level():
    pieces = (
        "boot\ndomain_alloc domain=3 nic\niommu_map domain=0 iova=0x1000 frames=near\nboot\n"
        "dma_map_page slot=1 nic bytes=1\ndma_map_page slot=1 nic bytes=2\ndma_unmap_page slot=9\nshutdown\n"
        "dma_unmap_sg slot=1\ndomain_free domain=3\ndomain_attach domain=3 nic\nshutdown"
    )
    kept = (
        "boot\ndomain_alloc domain=3 nic\niommu_map domain=3 iova=0x1000 frames=near\n"
        "dma_map_page slot=1 nic bytes=1\ndma_map_page slot=2 nic bytes=2\ndma_unmap_page slot=2\n"
        "domain_free domain=3\nshutdown"
    )
    assert legal(ops(pieces)) == ops(kept)


def test_greybox_makes_programs_of_driver_level_out_of_others_and_is_quiet():
    engine = Greybox([Bench("vtd", "v7-fixed", "pv", level="driver")], 1)
    assert [hit for hit in engine.findings(600, max_ops=250) if hit is not None] == []
    (kept,) = engine.kept
    assert 0 < len(kept.programs) < engine.programs and kept.blocks.bit_count() > 200


def test_what_hides_behind_a_known_fault_is_named():
    program = (
        "# pviommu program 1\nbench guest=pv level=driver driver=edera known=guest:1/iommu_map/EADDRINUSE\n"
        "domain_alloc domain=0 copier\niommu_map domain=0 iova=0x1000 frames=far pages=3\n"
    )
    found = replay(parse(program))
    assert found is not None and found.clause == "guest:3"
    assert name(found) == ("L1.2-1",)


def test_a_driver_that_does_not_speak_the_version_is_wrong_usage():
    said = CliRunner().invoke(app, ["fuzz", "--level", "driver", "--driver", "rfc-v3", "--profile", "v3-fixed"])
    assert (
        said.exit_code == 2 and "rfc-v3 does not speak the ABI of v3-fixed; it speaks that of v4-fixed" in said.output
    )


def test_a_guest_kernel_that_does_not_come_back_is_stopped(monkeypatch):
    def for_ever(*_):
        while True:
            pass

    over = runner()
    over.patience = 0.3
    monkeypatch.setattr(over, "_perform", for_ever)
    found = over.run(ops("domain_alloc domain=0 copier"))
    assert found is not None and found.clause == "hang"


def test_a_state_that_cannot_be_looked_at_is_a_finding(monkeypatch):
    over = runner()
    with monkeypatch.context() as patched:
        patched.setattr("fuzz.driver_run.machine_sweep", lambda *_: 1 // 0)
        found = over.run(ops("boot"))
    assert found is not None and found.clause == "exception" and "ZeroDivisionError" in found.what
    assert over.run(ops("boot")) is None


def test_a_plan_that_is_none_is_no_finding():
    with pytest.raises(ProgramError, match="is no fault"):
        runner().run(ops("fault plan=toaster:1"))
