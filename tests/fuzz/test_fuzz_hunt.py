# SPDX-License-Identifier: GPL-2.0-or-later
"""Catalogued defects are found one by one."""

import pytest

from fuzz.hunt import hunt
from fuzz.program import parse
from fuzz.run import replay


@pytest.mark.parametrize("defect", ["A5", "B2", "D3", "F1", "T5"])
def test_a_catalogued_defect_is_found_and_its_program_replays(defect):
    (result,) = hunt([defect], 30, 0)
    assert result.clause and 1 <= result.length <= 8
    found = replay(parse(result.program))
    assert found is not None and found.clause == result.clause
