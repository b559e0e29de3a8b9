# SPDX-License-Identifier: GPL-2.0-or-later
"""Our backends and the example pass the suites; a backend with a planted fault fails the clause that names it."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from machine.network.peer import PeerWire
from testbed import backends
from testbed.config import Config
from testbed.conformance import SUITES, check_backend
from testbed.packets import ping_sizes, run

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "toy_backend"
CLAUSES = [(suite, clause.__name__) for suite, clauses in SUITES.items() for clause in clauses]


def failed(backend, *suites):
    return {result.clause for result in check_backend(backend, *suites) if result.failure is not None}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The example as an installed distribution: importable, with its entry point on record."""
    record = tmp_path / "pviommu_toy_backend-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: pviommu-toy-backend\nVersion: 0.1.0\n")
    (record / "entry_points.txt").write_text("[pviommu.backends]\ntoy = toy_driver:TOY\n")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    for name in ("toy_driver", "toy_hardware"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["vtd", "smmuv3"])
def test_our_backends_pass_every_clause(name):
    results = list(check_backend(backends.get(name)))
    assert [(result.suite, result.clause) for result in results] == CLAUSES
    assert [str(result) for result in results if result.failure is not None] == []


def test_the_example_is_found_by_its_entry_point_and_passes_every_clause(toy):
    assert "toy" in backends.names()
    results = list(check_backend(backends.get("toy")))
    assert [str(result) for result in results if result.failure is not None] == []


def test_packets_cross_the_example(toy):
    report = run(Config(backend="toy"), PeerWire(), ping_sizes(5, 0))
    assert report.failures == []
    assert report.ok


def test_an_unknown_suite_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown suite 'speed'; there are: format, hardware, software, pair"):
        list(check_backend(backends.VTD, "speed"))


def test_every_clause_states_its_claim():
    for clauses in SUITES.values():
        assert all(clause.__doc__ for clause in clauses)


def _faulty_driver(backend, **methods):
    """``backend`` with methods of its driver replaced: name to function(driver, original, arguments...)."""

    def make(platform, frames):
        driver = backend.make_driver(platform, frames)
        for name, replacement in methods.items():
            original = getattr(driver, name)
            setattr(driver, name, lambda *args, r=replacement, o=original: r(driver, o, *args))
        return driver

    return replace(backend, make_driver=make)


BOTH = pytest.mark.parametrize("name", ["vtd", "smmuv3"])


@BOTH
def test_a_flush_that_does_nothing_is_caught(name):
    broken = _faulty_driver(backends.get(name), flush=lambda driver, original, *args: 0)
    assert "an_unmapped_page_is_out_of_reach_after_the_flush" in failed(broken, "pair")


@BOTH
def test_a_flush_one_page_short_is_caught(name):
    def short(driver, original, context, dfn, pages, changes):
        return original(context, dfn, pages - 1, changes) if pages > 1 else original(context, dfn, pages, changes)

    assert "an_unmapped_page_is_out_of_reach_after_the_flush" in failed(
        _faulty_driver(backends.get(name), flush=short), "pair"
    )


@BOTH
def test_a_move_that_programs_nothing_is_caught(name):
    broken = _faulty_driver(backends.get(name), attach=lambda driver, original, device, context: 0)
    assert "mapped_pages_are_reached_with_their_rights" in failed(broken, "pair")


@BOTH
def test_a_detach_that_does_nothing_is_caught(name):
    broken = _faulty_driver(backends.get(name), detach=lambda driver, original, device: 0)
    assert "a_detached_device_reaches_nothing" in failed(broken, "pair")


@BOTH
def test_faults_reported_twice_are_caught(name):
    kept = []

    def repeat(driver, original):
        kept.extend(original())
        return list(kept)

    broken = _faulty_driver(backends.get(name), take_faults=repeat)
    assert "faults_are_read_back_as_they_happened" in failed(broken, "pair")


@BOTH
def test_a_leaked_root_is_caught(name):
    def leak(driver, original, context):
        context.pool.allocate()
        original(context)

    broken = _faulty_driver(backends.get(name), context_release=leak)
    assert "a_context_costs_its_root_and_returns_it" in failed(broken, "software")


@BOTH
def test_a_unit_that_raises_on_a_register_is_caught(name):
    backend = backends.get(name)

    def make(bus, options):
        unit = backend.make_unit(bus, options)
        read = unit.read

        def broken(offset, size):
            if offset == 0x2F8:
                raise KeyError(offset)
            return read(offset, size)

        unit.read = broken
        return unit

    assert failed(replace(backend, make_unit=make), "hardware") >= {"registers_are_total"}


@BOTH
def test_a_walk_that_disagrees_is_caught(name):
    backend = backends.get(name)

    def make(bus, options):
        unit = backend.make_unit(bus, options)
        walk = unit.walk
        unit.walk = lambda sid, iova, write=False: replace(walk(sid, iova, write), maddr=0)
        return unit

    assert failed(replace(backend, make_unit=make), "hardware") >= {"walk_and_translate_agree"}


@BOTH
@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"table_bits": 0}, "every_leaf_and_table_entry_is_told_from_empty"),
        ({"leaf_bits": (0, 0, 0, 0), "kind_mask": 0, "leaf_kind": 1}, "leaves_are_told_from_tables"),
        ({"read": 0}, "rights_survive"),
        ({"referenced": 1 << 20, "software": 1 << 20}, "bits_do_not_collide"),
    ],
)
def test_a_format_with_a_wrong_bit_is_caught(name, change, clause):
    backend = backends.get(name)

    def make(platform, frames):
        driver = backend.make_driver(platform, frames)
        driver.format = replace(driver.format, **change)
        return driver

    assert clause in failed(replace(backend, make_driver=make), "format")
