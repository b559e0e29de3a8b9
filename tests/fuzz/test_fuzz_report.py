# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign's report: one page that needs no network and says what was found, and JUnit XML beside it."""

import re
import sqlite3
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from fuzz import campaign
from fuzz.report.campaign_data import read_campaign
from pviommu.cli import app

pytest.importorskip("plotly", reason="the extra 'report' is not installed")
pytest.importorskip("junitparser", reason="the extra 'report' is not installed")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A campaign on a posted hypervisor that found something."""
    where = tmp_path_factory.mktemp("report") / "a-campaign"
    campaign.run(["vtd"], "v6", where, seconds=120, jobs=1, seed=1, stop_on_first=True)
    return where


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.outside, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                self.outside.append(value)
            if name == "id":
                self.ids.add(value)


def test_the_page_says_everything_and_needs_no_network(directory):
    done = CliRunner().invoke(app, ["report", str(directory)])
    assert done.exit_code == 0, done.output
    text = (directory / "report.html").read_text()
    links = Links()
    links.feed(text)
    assert not links.outside
    assert "times" in links.ids
    data = read_campaign(directory)
    assert data.findings
    for one in data.findings:
        assert one.label in text and one.program.splitlines()[1] in text
        assert any(line.text.startswith("context") or "references" in line.text for line in one.after)
    assert "before the last operation" in text


def test_junit_has_a_failure_for_each_finding_and_a_pass_for_each_clause_that_held(directory):
    import junitparser

    CliRunner().invoke(app, ["report", str(directory), "-o", str(directory / "other.html")])
    xml = junitparser.JUnitXml.fromfile(str(directory / "other.xml"))
    data = read_campaign(directory)
    assert xml.failures == len(data.findings)
    assert xml.tests > xml.failures
    (suite,) = xml
    failed = [case for case in suite if case.result]
    assert {case.classname for case in failed} == {f"pviommu.{one.clause}" for one in data.findings}
    assert "pviommu replay" in failed[0].result[0].text


def test_a_state_is_compared_line_by_line(directory):
    (one, *_) = read_campaign(directory).findings
    before = {line.text for line in one.before if not line.changed}
    after = {line.text for line in one.after if not line.changed}
    assert before == after, "what is not marked is on both sides"
    assert len(one.steps) == len(re.findall(r"^(?!#|bench)\S", one.program, re.M))


def test_a_campaign_that_has_moved_is_read_all_the_same(directory, tmp_path):
    moved = tmp_path / "moved"
    directory.rename(moved)
    try:
        assert all(one.steps for one in read_campaign(moved).findings)
    finally:
        moved.rename(directory)


def test_what_is_no_campaign_is_one_line(tmp_path):
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 2
    (tmp_path / "campaign.sqlite").write_bytes(b"no database at all" * 100)
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 2
    (tmp_path / "campaign.sqlite").unlink()
    sqlite3.connect(tmp_path / "campaign.sqlite").close()
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 0, "an empty one has an empty report"
