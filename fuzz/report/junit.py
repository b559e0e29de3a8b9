# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign as JUnit XML, for whatever shows test results: a clause that held is a test that passed."""

from pathlib import Path

from junitparser import Failure, JUnitXml, TestCase, TestSuite

from fuzz.clauses import CLAUSES
from fuzz.report.campaign_data import CampaignData


def write_junit(data: CampaignData, path: Path) -> None:
    """One test case for each finding, and one for each clause without any."""
    suite = TestSuite(f"pviommu fuzz {data.directory.name}")
    broken = {one.clause for one in data.findings}
    for one in data.findings:
        case = TestCase(one.directory.name, f"pviommu.{one.clause}", time=one.seconds)
        failure = Failure(one.what, one.clause)
        failure.text = f"{one.program}\npviommu replay {one.directory / 'program.txt'}\n"
        case.result = [failure]
        suite.add_testcase(case)
    for clause in CLAUSES:
        if clause not in broken:
            suite.add_testcase(TestCase("holds", f"pviommu.{clause}"))
    suite.time = sum(run.seconds for run in data.runs)
    suite.update_statistics()
    xml = JUnitXml()
    xml.add_testsuite(suite)
    xml.write(str(path), pretty=True)
