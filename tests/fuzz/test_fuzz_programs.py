# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs read and print alike, and mean the same under any hash seed."""

import subprocess
import sys
from pathlib import Path

import pytest

from abi import versions
from fuzz.generate import Generator
from fuzz.intervals import Intervals
from fuzz.machines import MACHINES
from fuzz.program import Bench, Program, ProgramError, parse
from fuzz.run import replay

DOCS = Path(__file__).parents[2] / "docs" / "fuzzing.md"
HEAD = "# pviommu program 1\nbench backend=vtd profile=v7-fixed guest=pv contexts=4 arena=6\n"


@pytest.mark.parametrize("profile", ["v7-fixed", "v3-fixed"])
def test_every_generated_program_survives_printing_and_parsing(profile):
    bench = Bench("vtd", profile, "pv", 4, 6)
    generator = Generator(bench, versions.get(profile[:2]), 5)
    for _ in range(30):
        program = Program(bench, generator.program(100))
        assert parse(str(program)) == program


def test_equal_seeds_give_equal_programs_under_any_hash_seed():
    code = (
        "from fuzz.generate import Generator; from fuzz.program import *; from abi import versions; b = Bench();"
        "print(Program(b, Generator(b, versions.get('v7'), 3).program(150)))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("fly", "unknown operation"),
        ("map ctx=1", "needs frame"),
        ("map ctx=1 ctx=2", "twice"),
        ("map ctx=1 frame=7 at=0", "no frame"),
        ("dma toaster at=0", "unknown device"),
        ("unmap ctx=x at=0", "not a number"),
        ("remove frame=ram:2", "arguments"),
        ("raw subop=1 bytes=0g", "not bytes"),
    ],
)
def test_a_wrong_line_is_named(line, says):
    with pytest.raises(ProgramError, match=f"line 3: .*{says}"):
        parse(HEAD + line)


@pytest.mark.parametrize(
    ("bench", "says"),
    [
        ("machine=toaster", "unknown machine 'toaster'; there are: usual, narrow"),
        ("machine=32-bit backend=smmuv3", "machine=32-bit is of vtd"),
        ("machine=narrow level=driver", "machine=narrow is for hypercalls"),
        ("machine=narrow backend=smmuv3", "machine=narrow is of vtd"),
        ("machine=command-line", "nb-ctx=5: v7-fixed knows dma=no"),
    ],
)
def test_a_machine_that_cannot_be_is_named(bench, says):
    with pytest.raises(ProgramError, match=says):
        replay(parse(f"# pviommu program 1\nbench {bench}\n"))


def test_every_machine_is_printed_read_and_explained():
    page = DOCS.read_text()
    for name, machine in MACHINES.items():
        bench = Bench(machine=name)
        assert parse(str(Program(bench, ()))).bench == bench
        assert f"| `{name}` | {machine.prose} |" in page


def test_a_stale_table_pointer_does_not_survive_a_fold():
    text = HEAD.replace("vtd", "smmuv3") + (
        "alloc\nattach nic ctx=1\nmap ctx=1 frame=ram:0 at=0x800 pages=512\nunmap ctx=1 at=0x983\n"
        "dma nic at=0x800\nmap ctx=1 frame=ram:387 at=0x983\n"
    )
    assert replay(parse(text)) is None


def test_unmapping_a_unit_stops_at_its_first_hole_before_a_reserved_page():
    text = HEAD + "alloc\nattach copier ctx=1\nunmap ctx=1 at=0xc00 size=2M\nunmap ctx=1 at=0xa00 size=2M\n"
    assert replay(parse(text)) is None


def test_ranges_say_what_a_dictionary_says():
    import random

    rng = random.Random(1)
    for _ in range(60):
        ranges, pages = Intervals(), {}
        for _ in range(60):
            dfn, count, delta = rng.randrange(60), rng.randint(1, 20), rng.choice((0, 7))
            if rng.random() < 0.5:
                count = ranges.first_mapped(dfn, count)
                if count:
                    ranges.add(dfn, count, delta, 3)
                    pages.update((page, page + delta) for page in range(dfn, dfn + count))
            else:
                ranges.remove(dfn, count)
                for page in range(dfn, dfn + count):
                    pages.pop(page, None)
            said = {page: page + d for start, end, d, _ in ranges for page in range(start, end)}
            assert said == pages
            at = rng.randrange(70)
            hole = next(k for k in range(31) if k == 30 or at + k not in pages)
            assert ranges.first_hole(at, 30) == hole


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vcpu 99999999999", "line 3: vCPUs are numbered 0 to 63"),
        ("regions nic all=0x100000000", "regions.all is 32 bits wide"),
    ],
)
def test_numbers_that_nothing_holds_are_told_before_anything_is_built(text, says):
    with pytest.raises(ProgramError, match=says):
        replay(parse(HEAD + text + "\n"))


@pytest.mark.parametrize("count", [0, 65, 99999999999])
def test_a_bench_has_as_many_vcpus_as_a_domain_may(count):
    with pytest.raises(ProgramError, match=f"line 2: {count} vCPUs: it takes 1 to 64"):
        parse(f"# pviommu program 1\nbench vcpus={count}\nalloc\n")


@pytest.mark.parametrize("line", ["{}", "map {}", "map ctx={}", "raw bytes={}", "dma {}", "map frame=ram:{}"])
def test_a_message_does_not_repeat_a_line_of_megabytes(line):
    with pytest.raises(ProgramError, match="line 3: ") as told:
        parse(HEAD + line.format("z" * 1_000_000) + "\n")
    assert len(str(told.value)) < 1200


def test_one_vcpu_has_one_order_whatever_a_schedule_says():
    assert replay(parse(HEAD + "alloc\nschedule order=4>1\n")) is None
