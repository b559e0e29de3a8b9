# SPDX-License-Identifier: GPL-2.0-or-later
"""A wrong bit in any field that a driver writes is noticed by somebody else's model or by a golden word."""

import pytest

from oracle import golden, pages
from oracle.guards import GUARDS
from oracle.plants import plants
from oracle.process import ModelMissing

PLANTS = {pages.key(plant): plant for plant in plants()}
CELLS = pages.cells(pages.PAGE.read_text(encoding="utf-8"))


def models_only():
    """For each model and structure: what no golden word pins, and one field that the model sees."""
    for guard in GUARDS.keys() - {"golden"}:
        seen = set()
        for (structure, where), row in sorted(CELLS.items()):
            if row[guard] and (not row["golden"] or structure not in seen):
                seen.add(structure)
                yield guard, (structure, where)


def test_the_page_has_every_field_and_each_is_guarded():
    assert CELLS.keys() == PLANTS.keys()
    assert [key for key, row in CELLS.items() if not any(row.values())] == []


def test_no_two_plants_are_the_same_bit():
    assert len({(plant.structure, plant.word, plant.bit) for plant in PLANTS.values()}) == len(PLANTS)


@pytest.mark.parametrize("structure", sorted({structure for structure, _ in PLANTS}))
def test_a_bit_planted_in_what_a_driver_writes_spoils_a_golden_word_as_the_page_says(structure):
    here = {key: plant for key, plant in PLANTS.items() if key[0] == structure}
    assert {key: golden.notices(plant) for key, plant in here.items()} == {key: CELLS[key]["golden"] for key in here}


@pytest.mark.parametrize(("guard", "key"), sorted(models_only()), ids=lambda value: str(value))
def test_a_bit_planted_in_memory_or_queue_shows_in_a_model_as_the_page_says(guard, key):
    try:
        if pages.versions() not in pages.PAGE.read_text(encoding="utf-8"):
            pytest.skip("the page is about another version of QEMU")
        assert GUARDS[guard](PLANTS[key]) is True
    except ModelMissing as missing:
        pytest.skip(str(missing))
