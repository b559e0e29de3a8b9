# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu abi``: what it prints, and how it ends."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from abi import versions
from abi.compiler import CompilerMissing, find
from pviommu import abi_cli
from pviommu.abi_cli import app

HEADERS = Path(__file__).parent / "headers"
XEN = str(HEADERS / "xen")


def run(*arguments, status=0):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "TERM": "dumb"})
    assert result.exit_code == status, result.output
    return result.output


def run_json(*arguments, status=0):
    return json.loads(run(*arguments, "--format", "json", status=status))


def refused(*arguments):
    """The one line of a refusal."""
    output = run(*arguments, status=2)
    assert "Traceback" not in output
    return output


@pytest.fixture(autouse=True)
def compiler():
    try:
        find("x86-64")
    except CompilerMissing as missing:
        pytest.skip(str(missing))


def test_list_names_every_version():
    output = run("list")
    assert all(name in output for name in versions.names())
    assert [row["name"] for row in run_json("list")] == [*versions.names(), *versions.experimental()]


@pytest.mark.parametrize("name", versions.names())
def test_show_every_version_within_the_terminal(name):
    output = run("show", name)
    assert max(len(line.rstrip()) for line in output.splitlines()) <= 80
    shown = run_json("show", name, "--arch", "i386")
    assert len(shown["subops"]) == len(versions.get(name).subops)


@pytest.mark.parametrize("columns", [100, 73, 72, 60, 41, 40, 39, 30])
def test_the_byte_diagram_fits_the_terminal(columns):
    result = CliRunner().invoke(
        app, ["show", "v7", "--subop", "map_pages"], env={"COLUMNS": str(columns), "TERM": "dumb"}
    )
    lines = [line.rstrip() for line in result.output.splitlines()]
    assert result.exit_code == 0 and max(map(len, lines)) <= columns
    drawn = [line for line in lines if "│" in line]
    assert all(line.rstrip().endswith("│") for line in drawn), "no row is folded"
    assert len(drawn) == (5 if columns > 71 else 10 if columns > 39 else 0)
    assert ("no byte diagram" in result.output) == (columns < 40)


def test_show_draws_holes_and_directions():
    output = run("show", "v7", "--subop", "map_pages")
    assert "│    → ctx_no   │░░░" in output and "↔ gfn" in output and "hole" in output
    small = run("show", "v7", "--subop", "6", "--arch", "i386")
    assert "36 bytes" in small and "↔ (gfn)" in small
    assert "no members" in run("show", "v7", "--subop", "IOMMU_flush_nested")
    assert "promises" in run("show", "v7", "--subop", "init")


def test_show_writes_a_picture(tmp_path):
    target = tmp_path / "v7.svg"
    run("show", "v7", "--svg", str(target))
    root = ElementTree.parse(target).getroot()
    words = {element.text for element in root.iter() if element.text}
    assert root.tag.endswith("svg") and {"gfn", "pad0", "hole", "in/out"} <= words
    assert "cannot write" in refused("show", "v7", "--svg", str(tmp_path / "no" / "such.svg"))


def test_header_prints_or_writes(tmp_path):
    target = tmp_path / "v7.h"
    run("header", "v7", "-o", str(target))
    assert target.read_text() == run("header", "v7")
    assert run("check", "v7", str(target), "--arch", "x86-64").endswith("holes named\n\n")


def test_check_agrees_differs_and_shows_which():
    assert "the same: 80 agree" in run("check", "v7", str(HEADERS / "v7.h"), "-I", XEN)
    output = run("check", "v7", str(HEADERS / "v3.h"), "-I", XEN, status=1)
    assert "missing" in output and "pv_iommu_map_pages" in output and "extra" in output
    assert "agrees" in run("check", "v3", str(HEADERS / "v3.h"), "-I", XEN, "--all")
    report = run_json("check", "v4", str(HEADERS / "v7.h"), "-I", XEN, "--arch", "all")
    assert {entry["differences"] for entry in report} == {0}
    assert {item["verdict"] for item in report[0]["items"]} == {"agrees", "names a hole"}


def test_check_gives_the_compilers_message(tmp_path):
    broken = tmp_path / "broken.h"
    broken.write_text("struct s { nonsense x; };\n")
    assert "unknown type name" in refused("check", "v7", str(broken))
    assert "no such file" in refused("check", "v7", str(tmp_path / "absent.h"))
    assert "no such directory" in refused("check", "v7", str(broken), "-I", str(tmp_path / "absent"))
    assert "no architecture" in refused("check", "v7", str(broken), "--arch", "vax")


@pytest.mark.parametrize("define", ["", "=1", "2X", "A B"])
def test_check_refuses_a_definition_of_nothing(define):
    assert "is not NAME or NAME=VALUE" in refused("check", "v7", str(HEADERS / "v7.h"), "-D", define)


def test_check_asks_every_compiler_that_is_there(tmp_path):
    try:
        find("i386")
    except CompilerMissing as missing:
        pytest.skip(str(missing))
    path = tmp_path / "pv-iommu.h"
    path.write_text((HEADERS / "v7.h").read_text().split("/* offset on")[0] + "\n#endif\n")
    header = str(path)
    output = run("check", "v7", header, "-I", XEN, "-D", "__XEN_TOOLS__", status=1)
    assert "on i386" in output and "pv_iommu_map_pages" in output
    run("check", "v7", header, "-I", XEN, "-D", "__XEN_TOOLS__", "--arch", "x86-64")


def test_check_without_a_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    find.cache_clear()
    try:
        assert "no C compiler for x86-64" in refused("check", "v7", str(HEADERS / "v7.h"))
    finally:
        find.cache_clear()


def test_check_reports_architectures_that_it_skips(monkeypatch, capsys):
    def without_arm(arch):
        if arch == "arm64":
            raise CompilerMissing("no C compiler for arm64: tried nothing")
        return find(arch)

    monkeypatch.setattr("abi.compiler.find", without_arm)
    output = run("check", "v7", str(HEADERS / "v7.h"), "-I", XEN, "--arch", "all")
    assert "skipped: no C compiler for arm64" in output


def test_encode_and_decode_are_each_others_inverse():
    output = run(
        "encode", "v7", "map_pages", "ctx_no=1", "map_flags=IOMMU_MAP_readable|writeable", "gfn=0x10", "nr_pages=2"
    )
    assert output.strip() == run_json("encode", "v7", "6", "ctx_no=1", "flags=3", "gfn=16", "nr_pages=2")["hex"]
    shown = run_json("decode", "v7", "map_pages", output.strip())
    assert shown["canonical"]["gfn"] == 16 and shown["canonical"]["pgsize"] == 4096
    assert "IOMMU_MAP_readable" in run("decode", "v7", "map_pages", output.strip())
    tagged = run("encode", "v3", "map_pages", "ctx_no=1").strip()
    assert tagged.startswith("05000100") and "map_pages" in run("decode", "v3", "map_pages", tagged)
    assert len(run("encode", "v7", "map_pages", "--arch", "i386").strip()) == 72
    assert run("encode", "v7", "remote_cmd", "subop=map_pages").startswith("00000600")


def test_short_names_mean_constants_of_their_own_field():
    def field(*arguments):
        return run_json("encode", "v7", *arguments)["canonical"]

    assert field("query_capabilities", "cap_flags=cache")["cap_flags"] == 2
    assert field("map_pages", "map_flags=cache")["flags"] == 4
    assert field("alloc_context", "alloc_flags=identity")["flags"] == 1
    assert field("free_context", "ctx_no=IOMMU_DEFAULT_CONTEXT")["ctx_no"] == 0
    assert field("remote_cmd", "subop=IOMMU_init") == field("remote_cmd", "subop=init")
    assert run_json("encode", "v3", "alloc_context", "flags=clone")["canonical"]["flags"] == 1


def test_page_sizes_are_told_in_whole_units():
    for size, words in ((0x1000, "4 KiB"), (0x200000, "2 MiB"), (1 << 30, "1 GiB")):
        assert words in run("decode", "v7", "map_pages", run("encode", "v7", "map_pages", f"pgsize={size}").strip())


def test_a_tag_that_says_something_else_is_pointed_at():
    raw = run("encode", "v3", "unmap_pages", "ctx_no=1").strip()
    assert "subop_id says 6 (unmap_pages), the bytes are read as map_pages (5)" in " ".join(
        run("decode", "v3", "map_pages", raw).split()
    )
    assert run_json("decode", "v3", "unmap_pages", raw)["disagrees"] is None


def test_errors_of_the_oldest_say_who_is_refused_and_when():
    output = " ".join(run("errors", "A-new").split())
    assert "top bit set" in output and "passthrough mode, or AMD's" in output
    rows = run_json("errors", "A-new", "--subop", "unmap_page")["subops"]["unmap_page"]
    assert not any("something is mapped there" in row["means"] for row in rows)
    assert [row["answer"] for row in rows[:3]] == ["-ENOSYS", "-EINVAL", "-EFAULT"]


def test_errors_tell_what_the_posted_code_does_instead():
    assert "as posted, F5" in run("errors", "v7", "--subop", "map_pages")
    assert "F5" not in run("errors", "v6", "--subop", "map_pages") + run("errors", "v7-fixed")
    assert "stops the hypervisor" in run("errors", "v7", "--subop", "init")
    found = run_json("errors", "v7", "--subop", "map_pages")["deviations"]
    assert {"F4", "F5"} <= {row["defect"] for row in found}


def test_the_reserved_memory_map_is_reached_by_its_name():
    name = "XENMEM_reserved_device_memory_map"
    assert "nr_entries" in run("show", "v7", "--subop", name)
    raw = run("encode", "v7", name, "flags=XENMEM_RDM_ALL", "nr_entries=4").strip()
    assert raw.startswith("0100000004000000") and len(raw) == 48
    assert run_json("decode", "v7", name, raw)["canonical"]["nr_entries"] == 4
    assert "has no sub-op" in refused("show", "A-new", "--subop", name)


def test_decode_points_at_holes_and_unknown_flags():
    output = run("decode", "v7", "alloc_context", "0100 0100 ff000000")
    assert "(hole)" in output and "0xfe (no name)" in output and "IOMMU_ALLOC_identity" in output
    assert "no such sub-op" in run("decode", "v7", "remote_cmd", "0000ff00" + "00" * 12)
    assert "default_identity" in run("decode", "v7", "query_capabilities", "ff" * 8 + "01" + "00" * 15)
    assert "no such sub-op" in run("decode", "v3", "noop", "ff" * 32)
    assert "the default context" in run("decode", "v7", "free_context", "00" * 8)
    assert "not a page size" in run("decode", "v7", "unmap_pages", "00" * 32)


@pytest.mark.parametrize("name", ["v1", "v3", "v4", "v7", "v3-fixed", "v7-fixed", "A-new"])
def test_errors_show_the_contract_in_order(name):
    output = run("errors", name)
    assert "in the order in which they are tested" in " ".join(output.split())
    contract = run_json("errors", name)
    assert all(contract["subops"].values())


def test_errors_show_promises_that_are_not_kept():
    rows = run_json("errors", "v7", "--subop", "map_pages")["subops"]["map_pages"]
    occupied = next(row for row in rows if row["condition"] == "occupied")
    assert (occupied["errno"], occupied["promised"], occupied["per_page"]) == ("EADDRINUSE", "EINVAL", True)
    assert "-EADDRINUSE" in run("errors", "v7", "--subop", "map_pages")


def test_diff_and_lint_exit_with_1_if_there_is_something():
    assert "A new interface" in run("diff", "v3", "v7", status=1)
    assert "same in everything" in run("diff", "v3", "v3")
    assert run_json("diff", "v6", "v7", status=1)["changes"][0]["section"] == "answers"
    output = run("lint", "v7", status=1)
    assert "implicit-padding" in output and "mend:" in output and "Alejandro Vallejo" in output
    found = run_json("lint", "v7", "--scope", "driver", status=1)["findings"]
    assert {finding["scope"] for finding in found} == {"driver"}
    assert "nothing found" in run("lint", "v7", "--rule", "implicit-enum")


def test_lint_lists_its_rules():
    assert "layout-differs-32-64" in run("lint", "--rules")
    assert len(run_json("lint", "--rules")) > 60


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "v9"), "no ABI version is called 'v9'"),
        (("show", "v7", "--arch", "vax"), "no architecture"),
        (("show", "v7", "--subop", "99"), "has no sub-op '99'"),
        (("diff", "v3", "v9"), "v9"),
        (("diff", "v3", "v7", "--arch", "vax"), "vax"),
        (("lint",), "which version?"),
        (("lint", "v9"), "v9"),
        (("lint", "v7", "--scope", "nowhere"), "no scope"),
        (("lint", "v7", "--rule", "nothing"), "no rule"),
        (("header", "v9"), "v9"),
        (("errors", "v9"), "v9"),
        (("errors", "N"), "without an implementation"),
        (("decode", "v7", "map_pages", "zz"), "not hexadecimal"),
        (("decode", "v7", "map_pages", "00"), "40 bytes on x86-64, 1 were given"),
        (("decode", "v7", "noop", "00"), "takes no argument"),
        (("encode", "v7", "noop"), "takes no argument"),
        (("encode", "v7", "init", "nonsense"), "not FIELD=VALUE"),
        (("encode", "v7", "init", "colour=1"), "max_ctx_no, arena_order"),
        (("encode", "v7", "init", "arena_order=0x100000000"), "32 bits wide"),
        (("encode", "v7", "init", "arena_order=many"), "neither a number nor a constant"),
        (("encode", "v7", "query_capabilities", "cap_flags=IOMMU_MAP_cache"), "nor one of IOMMUCAP_default_identity"),
        (("encode", "v7", "map_pages", "map_flags=init"), "nor one of IOMMU_MAP_readable"),
        (("encode", "v7", "map_pages", "map_flags="), "'' is neither"),
        (("encode", "v7", "map_pages", "ctx_no=1", "ctx_no=2"), "ctx_no is given twice"),
        (("encode", "v7", "map_pages", "map_flags=1", "flags=1"), "flags is given twice"),
        (
            ("encode", "v7", "query_capabilities", "cap_flags=identity"),
            "ambiguous: IOMMUCAP_default_identity, IOMMUCAP",
        ),
        (("encode", "v7", "reattach_device", "dev.bus=0x100"), "dev.bus=0x100: the field is 8 bits wide"),
        (("encode", "v7", "reattach_device", "colour=1"), "ctx_no, dev.seg, dev.bus, dev.devfn, pasid"),
        (("encode", "v7", "init", "arena_order=-1"), "32 bits wide"),
        (("show",), "Missing argument"),
        (("show", "v7", "--format", "xml"), "xml"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(arguments, words):
    assert words in refused(*arguments)


def test_without_a_command_it_shows_its_help():
    output = CliRunner().invoke(app, []).output
    for command in ("list", "show", "diff", "lint", "header", "check", "decode", "encode", "errors"):
        assert command in output
    assert abi_cli.app is app
