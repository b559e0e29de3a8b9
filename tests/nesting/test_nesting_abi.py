# SPDX-License-Identifier: GPL-2.0-or-later
"""x1-nested as an ABI value: apart from posted ones, in the posted layouts, known to the tools."""

import random

import pytest
from typer.testing import CliRunner

from abi import versions
from hypervisor import profile
from pviommu.abi_cli import app

X1, V7 = versions.get("x1-nested"), versions.get("v7")


def test_it_is_listed_apart():
    assert versions.experimental() == ("x1-nested",) and "x1-nested" not in versions.names()
    assert profile.experimental() == ("x1-nested",) and "x1-nested" not in profile.names()
    assert "experimental, not posted" in CliRunner().invoke(app, ["list"]).stdout.replace("\n", " ")
    with pytest.raises(ValueError, match="x1-nested"):
        profile.get("x2")


def test_what_was_posted_keeps_its_number_and_layout():
    for number, row in V7.subops.items():
        assert X1.subops[number].name == row.name
        if row.name != "flush_nested":  # posted as an empty struct
            assert (
                X1.layout(X1.subops[number].declaration).size == V7.layout(row.declaration).size
                if row.declaration
                else 1
            )
    taken = {row.number for row in versions.get("E3").subops.values()}
    assert not {row.number for row in X1.subops.values() if row.number > 12} & taken
    assert all(row.implemented for row in X1.subops.values())


@pytest.mark.parametrize("name", ["alloc_nested", "flush_nested", "attach_pasid", "query_device", "next_fault"])
def test_codec_and_declaration_agree(name):
    codec, rng = X1.by_name[name].codec, random.Random(name)
    for _ in range(50):
        raw = bytes(rng.randrange(256) for _ in range(codec.size))
        fields = codec.decode(raw)
        again = codec.encode(*fields)
        assert codec.decode(again) == fields
        parsed = codec.construct.parse(raw)
        for field, value in codec.as_dict(raw).items():
            assert parsed[codec.present[field].path] == value


@pytest.mark.parametrize(
    "line", ["show x1-nested", "header x1-nested", "diff v7 x1-nested", "lint x1-nested", "errors x1-nested"]
)
def test_the_tools_know_it(line):
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code in (0, 1, 2) and "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
