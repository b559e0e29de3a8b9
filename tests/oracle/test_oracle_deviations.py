# SPDX-License-Identifier: GPL-2.0-or-later
"""Each known deviation is shown by a program of its own, which needs no other excuse, and none is left over."""

from pathlib import Path

import pytest

from oracle.catalogue import CATALOGUE, qemu_arm, qemu_x86
from oracle.cpu_expect import WALK_DEVIATIONS
from oracle.process import major_version
from oracle.program import from_text
from oracle.qemu_virt import stages
from oracle.shown import SHOWN
from oracle.smmu_deviations import BLIND_SPOTS, DEVIATIONS
from oracle.vtd_deviations import DEVIATIONS as VTD

KNOWN = {"qemu-vtd": VTD, "qemu-smmuv3": (*DEVIATIONS, *BLIND_SPOTS), "qemu-cpu-s2": WALK_DEVIATIONS}
CASES = [(name, one.name) for name, known in KNOWN.items() for one in known]

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.txt"))
"""Programs that showed a disagreement once, named by their oracle."""


def test_there_is_a_program_for_each_and_for_nothing_else():
    assert sorted((name, known) for name, shown in SHOWN.items() for known in shown) == sorted(CASES)
    assert len(set(CASES)) == len(CASES)


@pytest.mark.parametrize("name", KNOWN)
def test_each_has_a_reason_and_evidence_that_names_versions(name):
    assert [
        one.name for one in KNOWN[name] if not one.reason or not ("QEMU" in one.evidence or "IDR5" in one.evidence)
    ] == []


@pytest.mark.parametrize(("name", "known"), CASES)
def test_its_program_shows_it_and_nothing_else_where_the_model_has_it(name, known):
    entry = CATALOGUE[name]
    if entry.missing():
        pytest.skip(entry.missing())
    program = from_text(SHOWN[name][known])
    if name == "qemu-smmuv3" and program[0].arguments[0] not in stages(qemu_arm()):
        pytest.skip("this QEMU's SMMUv3 has stage 1 only")
    version = major_version(qemu_x86() if name == "qemu-vtd" else qemu_arm())
    deviation = next(one for one in KNOWN[name] if one.name == known)
    outcome = entry.replay(program)
    assert outcome.findings == []
    assert set(outcome.excused) == ({known} if version < getattr(deviation, "fixed_in", 1 << 30) else set())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_a_disagreement_once_is_none(path):
    entry = CATALOGUE[path.stem.partition("_")[0]]
    if entry.missing():
        pytest.skip(entry.missing())
    outcome = entry.replay(from_text(path.read_text()))
    assert outcome.checked
    assert outcome.findings == []
