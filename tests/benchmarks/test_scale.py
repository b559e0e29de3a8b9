# SPDX-License-Identifier: GPL-2.0-or-later
"""Time and memory per mapping do not grow with the number of mappings, contexts, devices and units."""

import pytest

from benchmarks import scale
from benchmarks.scale import ScaleBed, Size, growth, memory, times

LARGE = Size(mappings=12_000, contexts=40, devices=160, units=16)
LITTLE = Size(mappings=300, contexts=1, devices=1, units=1)
BACKENDS = pytest.mark.parametrize("backend", ["vtd", "smmuv3"])


@BACKENDS
def test_many_mappings_contexts_devices_and_units_work(backend):
    large = ScaleBed(backend, LARGE)
    found, beside = times(large, ScaleBed(backend, LITTLE))
    assert len(found.map_pages) == len(found.unmap_pages) == LARGE.mappings // scale.BATCH
    assert beside.map_pages and min(found.map_pages + beside.unmap_pages) > 0
    assert len({large.testbed.fabric.unit_for(sbdf) for sbdf in large.devices}) == 16
    assert {context.number for context in large.testbed.dom0.iommu.contexts.values() if context.devices} == set(
        range(1, LARGE.contexts + 1)
    )


@BACKENDS
def test_memory_per_mapping_does_not_grow(backend):
    assert sum(memory(backend, LARGE)) <= scale.BAR * sum(memory(backend, LITTLE))
    deep = Size(mappings=10_000, contexts=1, devices=1, units=1)
    assert sum(memory(backend, deep)) <= scale.BAR * sum(memory(backend, LITTLE))


def test_growth_is_told_for_time_and_memory():
    told = {what: ratio for what, ratio, _ in growth("vtd", Size(4_000, 4, 8, 2), LITTLE._replace(mappings=1_000))}
    assert set(told) == {"map", "unmap", "memory"}
    assert all(0.2 < ratio < 5 for ratio in told.values())


def test_a_mapping_that_a_device_does_not_reach_is_noticed(monkeypatch):
    bed = ScaleBed("vtd", Size(1_000, 2, 4, 2))
    with pytest.raises(RuntimeError, match="does not reach"):
        bed.check()
