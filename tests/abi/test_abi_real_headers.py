# SPDX-License-Identifier: GPL-2.0-or-later
"""Against Xen's own public headers, where a system has them (Debian: libxen-dev)."""

from pathlib import Path

import pytest

from abi import errno, versions
from abi.check import AGREES, check
from abi.compiler import CompilerMissing, Unit, find
from abi.declare import ARCHES

XEN = Path("/usr/include/xen")
HEADERS = Path(__file__).parent / "headers"


@pytest.fixture(params=ARCHES)
def compiler(request):
    if not (XEN / "xen.h").is_file():
        pytest.skip(f"no Xen public headers in {XEN} (Debian: apt-get install libxen-dev)")
    try:
        return find(request.param)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["v3", "v7", "A-new"])
def test_hand_written_headers_agree_with_the_real_xen_h_and_physdev_h(name, compiler):
    report = check(versions.get(name), HEADERS / f"{name}.h", compiler, [XEN])
    assert report.differences == () and report.notes == ()


def test_reserved_memory_map_is_as_in_the_real_memory_h(tmp_path, compiler):
    header = tmp_path / "asks.h"
    header.write_text('#include "memory.h"\n')
    report = check(versions.get("v3"), header, compiler, [XEN], ["__XEN_TOOLS__"])
    mine = [item for item in report.items if "reserved" in item.struct or "XENMEM" in item.name]
    fields = [item for item in mine if item.kind == "field"]
    # the tools' view has 8-byte frame numbers on every architecture; the guest's own view is what is declared
    if compiler.arch != "i386":
        assert {item.verdict for item in mine} == {AGREES}
    assert len(fields) == 8 and sum(item.kind == "constant" for item in mine) == 2


def test_error_numbers_are_those_of_the_real_errno_h(compiler):
    source = "enum {\n#define XEN_ERRNO(name, value) XEN_##name = value,\n#include <xen/errno.h>\n};\n"
    names = [
        name for name in vars(errno) if name.startswith("E") and name.isupper() and name not in ("EDEADLOCK", "ETIME")
    ]
    found = Unit(compiler, source, [f"-I{XEN.parent}"]).values([f"XEN_{name}" for name in names])
    known = {name: value for name, value in zip(names, found) if value is not None}
    assert len(known) > 30
    assert known == {name: getattr(errno, name) for name in known}
