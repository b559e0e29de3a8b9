# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/profiles.md says in its tables what the specification of each profile says, in the same order."""

import re
from pathlib import Path

import pytest

from abi.conditions import CONDITIONS
from abi.contract_fixed import contract_called
from abi.errno import errno_name
from hypervisor import profile

PAGE = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
DESCRIBED = ("v3-fixed", "v7-fixed")
"""Profiles that the page has columns for; other fixed ones answer as one of them."""
FRAMING = {"unreadable", "unwritable-first", "unusable", "unknown", "unimplemented", "holes"}


def section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/profiles.md has no section {title!r}"
    return found.group(1)


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of ``text``, its rows by column title."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append([dict(zip(head, row)) for row in rows])
    return found


def written(text: str, name: str) -> list[tuple[str, str]]:
    """(condition in words, answer) for profile ``name``, in the order of the page."""
    return [(row["condition"], row[name]) for table in tables(text) for row in table if row.get(name)]


def specified(name: str, subop: str) -> list[tuple[str, str]]:
    rows = contract_called(name).tables[subop]
    return [(CONDITIONS[r.condition], r.answer) for r in rows if r.condition not in FRAMING]


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_sub_op_refuses_as_specified(name: str) -> None:
    for subop, row in profile.get(name).abi.by_name.items():
        if row.implemented:
            assert written(section(subop), name) == specified(name, subop), subop


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_way_in_is_as_specified(name: str) -> None:
    rows = written(section("The way in"), name)
    order = [words for words, _ in rows]
    contract = contract_called(name)
    assert {(words, errno) for words, errno in rows} == {
        (CONDITIONS[r.condition], f"-{errno_name(-r.errno)}")
        for table in contract.tables.values()
        for r in table
        if r.condition in FRAMING
    }
    for subop, table in contract.tables.items():
        conditions = [CONDITIONS[r.condition] for r in table if r.condition in FRAMING]
        assert conditions == [words for words in order if words in conditions], subop


def test_nothing_is_written_about_a_sub_op_that_a_profile_lacks() -> None:
    for title in re.findall(r"^## ([a-z_]+)$", PAGE, re.MULTILINE):
        for name in DESCRIBED:
            if not profile.get(name).abi.has(title):
                assert written(section(title), name) == [], (title, name)
