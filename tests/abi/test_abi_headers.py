# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers that the workbench writes compile everywhere, and agree with headers written by hand from the tables."""

import shutil
import subprocess
from pathlib import Path

import pytest

from abi import versions
from abi.check import AGREES, NAMED_HOLE, check
from abi.compiler import CompilerMissing, compile_header, find
from abi.declare import ARCHES
from abi.header import write_header

HEADERS = Path(__file__).parent / "headers"
XEN = HEADERS / "xen"
DISTINCT = [name for name in versions.names() if not versions.get(name).same_as]


def compiler_for(arch):
    try:
        return find(arch)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", versions.names())
def test_generated_header_compiles_with_all_its_asserts(name, arch, tmp_path):
    path = tmp_path / "generated.h"
    path.write_text(write_header(versions.get(name)))
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wpadded", "-Werror"]
    assert compile_header(compiler_for(arch), path, flags) == ""


@pytest.mark.parametrize("arch", ARCHES)
def test_generated_asserts_are_alive(arch, tmp_path):
    text = write_header(versions.get("v7"))
    broken = text.replace("uint32_t arena_order;", "uint16_t arena_order;")
    assert broken != text
    path = tmp_path / "broken.h"
    path.write_text(broken)
    assert "pv_iommu_assert" in compile_header(compiler_for(arch), path, ["-std=c99"])


@pytest.mark.parametrize("order", [("v3", "v7"), ("v7", "v3")])
def test_headers_of_two_versions_can_be_included_together(order, tmp_path):
    for name in order:
        (tmp_path / f"{name}.h").write_text(write_header(versions.get(name)))
    both = tmp_path / "both.h"
    both.write_text("".join(f'#include "{name}.h"\n' for name in order))
    assert compile_header(compiler_for("x86-64"), both, ["-std=c99", "-Wall", "-Wextra", "-Werror"]) == ""


@pytest.mark.parametrize("name", ["v3", "v7", "A-new", "E3"])
def test_generated_headers_are_c_plus_plus_as_well(name, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "generated.h"
    path.write_text(write_header(versions.get(name)))
    done = subprocess.run(["g++", "-fsyntax-only", "-x", "c++", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_constants_and_the_hypercall_number_are_asserted():
    text = write_header(versions.get("v7"))
    assert "PV_IOMMU_ASSERT(IOMMU_MAP_cache == 0x4);" in text
    assert "PV_IOMMU_ASSERT(__HYPERVISOR_iommu_op == 43);" in text


def test_every_offset_and_size_is_asserted():
    for name in DISTINCT:
        abi = versions.get(name)
        text = write_header(abi)
        for struct in abi.structs:
            layout = abi.layout(struct)
            assert f"sizeof(struct {struct.tag}) ==" in text
            for member in layout.members:
                assert f"offsetof(struct {struct.tag}, {member.path}) ==" in text
                assert f"sizeof(((struct {struct.tag} *)0)->{member.path}) ==" in text
        for row in abi.subops.values():
            assert not row.c_name or f"PV_IOMMU_ASSERT({row.c_name} == {row.number});" in text


@pytest.mark.parametrize("arch", ["x86-64", "i386"])
@pytest.mark.parametrize("name", DISTINCT)
def test_check_agrees_with_the_generated_header(name, arch, tmp_path):
    path = tmp_path / "generated.h"
    path.write_text(write_header(versions.get(name)))
    report = check(versions.get(name), path, compiler_for(arch))
    assert report.differences == ()
    assert {item.verdict for item in report.items} <= {AGREES, NAMED_HOLE}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", ["v7", "v3", "A-new"])
def test_check_agrees_with_the_header_written_by_hand(name, arch):
    report = check(versions.get(name), HEADERS / f"{name}.h", compiler_for(arch), [XEN])
    assert report.differences == () and report.notes == ()
    assert all(item.verdict == AGREES for item in report.items)
    assert len(report.items) > 20


@pytest.mark.parametrize(("name", "header"), [("v5", "v7"), ("v6", "v7"), ("v1", "v3"), ("v2", "v3"), ("H0", "v3")])
def test_versions_with_the_same_header_agree_with_it(name, header):
    assert check(versions.get(name), HEADERS / f"{header}.h", compiler_for("x86-64"), [XEN]).differences == ()
