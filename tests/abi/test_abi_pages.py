# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages under docs/abi are what the declarations and the specification say today."""

import pytest

from abi import pages as pages_module
from abi.contract_fixed import EVERY
from abi.deviations import DEVIATIONS, deviations_of
from abi.pages import main, pages, stale
from abi.traces import traces


def test_the_pages_in_the_tree_are_not_stale():
    assert stale() == [], "run 'make docs'"


def test_a_changed_missing_or_foreign_page_is_stale(tmp_path):
    wanted = pages()
    for name, text in wanted.items():
        (tmp_path / name).write_text(text)
    assert stale(tmp_path) == []
    (tmp_path / "v7.md").write_text("old")
    (tmp_path / "v3.md").unlink()
    (tmp_path / "v8.md").write_text("nobody makes this one")
    assert stale(tmp_path) == ["v3.md", "v7.md", "v8.md"]
    assert stale(tmp_path / "nowhere") == sorted(wanted)


def test_the_command_writes_checks_and_removes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages_module, "FOLDER", tmp_path / "abi")
    monkeypatch.setattr(pages_module.stale, "__defaults__", (tmp_path / "abi",))
    assert main(["--check"]) == 1 and "v7.md is stale" in capsys.readouterr().out
    assert main([]) == 0 and main(["--check"]) == 0
    (tmp_path / "abi" / "v8.md").write_text("x")
    assert main([]) == 0 and "removed docs/abi/v8.md" in capsys.readouterr().out
    assert main(["--nonsense"]) == 2


def test_every_page_says_that_it_is_generated_and_has_one_title():
    for text in pages().values():
        lines = text.splitlines()
        assert "SPDX-License-Identifier" in lines[0] and "do not edit" in lines[1]
        assert len([line for line in lines if line.startswith("# ")]) == 1


@pytest.mark.parametrize("name", [name for name, contract in EVERY.items() if contract.runs])
def test_worked_calls_end_in_an_answer(name):
    for trace in traces(EVERY[name]):
        assert trace.lines[0].moment == "before" and trace.lines[-1].moment.startswith("answer")
        assert all(len(line.values) == len(trace.fields) for line in trace.lines)


def test_deviations_name_sub_ops_that_their_versions_have():
    for deviation in DEVIATIONS:
        for version in deviation.versions:
            assert deviation.subop == "" or EVERY[version].abi.has(deviation.subop), deviation
    assert {d.name for d in deviations_of("v7")} >= {"A4", "C1", "T1"}
