# SPDX-License-Identifier: GPL-2.0-or-later
"""``check`` finds every difference that is planted in a correct header, and copes with what Xen's headers do."""

from pathlib import Path

import pytest

from abi import versions
from abi.c_declarations import read
from abi.check import DIFFERS, EXTRA, MISSING, NAMED_HOLE, check
from abi.compiler import CompileError, Compiler, CompilerMissing, Unit, find

HEADERS = Path(__file__).parent / "headers"
XEN = HEADERS / "xen"
V7 = (HEADERS / "v7.h").read_text().split("/* offset on")[0] + "\n#endif\n"
V3 = (HEADERS / "v3.h").read_text().split("#define AT(")[0] + "\n#endif\n"


def compiler_for(arch):
    try:
        return find(arch)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


def compare(tmp_path, name, text, arch="x86-64", include=(XEN,), defines=()):
    path = tmp_path / "pv-iommu.h"
    path.write_text(text)
    return check(versions.get(name), path, compiler_for(arch), include, defines)


def found(report):
    return {(item.struct or item.kind, item.name, item.verdict) for item in report.differences}


# (name, version, what to replace, with what, (struct or kind, name, verdict) that has to come out)
SEEDED = [
    (
        "fields swapped",
        "v7",
        "    uint64_aligned_t gfn;\n    uint64_aligned_t dfn;\n    uint32_t map_flags;",
        "    uint64_aligned_t dfn;\n    uint64_aligned_t gfn;\n    uint32_t map_flags;",
        ("pv_iommu_map_pages", "gfn", DIFFERS),
    ),
    (
        "field moved to the end",
        "v7",
        "    uint16_t ctx_no;\n    uint32_t alloc_flags;",
        "    uint32_t alloc_flags;\n    uint16_t ctx_no;",
        ("pv_iommu_alloc", "ctx_no", DIFFERS),
    ),
    (
        "field widened",
        "v7",
        "    uint16_t max_ctx_no;\n    uint16_t pad0;",
        "    uint32_t max_ctx_no;",
        ("pv_iommu_capabilities", "max_ctx_no", DIFFERS),
    ),
    (
        "field narrowed",
        "v7",
        "    uint32_t arena_order;",
        "    uint16_t arena_order;",
        ("pv_iommu_init", "arena_order", DIFFERS),
    ),
    (
        "field narrowed where padding hides it",
        "v7",
        "    uint32_t unmapped;",
        "    uint16_t unmapped;",
        ("pv_iommu_unmap_pages", "unmapped", DIFFERS),
    ),
    (
        "field signed",
        "v7",
        "    uint32_t cap_flags;",
        "    int32_t cap_flags;",
        ("pv_iommu_capabilities", "cap_flags", DIFFERS),
    ),
    ("pad gone", "v7", "    uint16_t pad0;\n", "", ("pv_iommu_capabilities", "pad0", MISSING)),
    (
        "pad renamed",
        "v7",
        "    uint16_t pad0;",
        "    uint16_t rsvd;",
        ("pv_iommu_capabilities", "rsvd", EXTRA),
    ),
    (
        "field gone",
        "v7",
        "    uint32_t pgsize;\n    uint32_t nr_pages;\n    uint32_t mapped;",
        "    uint32_t nr_pages;\n    uint32_t mapped;",
        ("pv_iommu_map_pages", "pgsize", MISSING),
    ),
    (
        "field added",
        "v7",
        "    uint32_t arena_order;",
        "    uint32_t arena_order;\n    uint32_t flags;",
        ("pv_iommu_init", "flags", EXTRA),
    ),
    (
        "field renamed",
        "v7",
        "    uint32_t free_flags;",
        "    uint32_t flags;",
        ("pv_iommu_free", "free_flags", MISSING),
    ),
    (
        "struct grown by its alignment alone",
        "v7",
        "struct pv_iommu_init {\n    uint32_t max_ctx_no;\n    uint32_t arena_order;\n}",
        "struct pv_iommu_init {\n    uint32_t max_ctx_no;\n    uint32_t arena_order;\n} __attribute__((aligned(8)))",
        ("pv_iommu_init", "", DIFFERS),
    ),
    (
        "struct packed",
        "v7",
        "    uint64_aligned_t nested_flags;\n}",
        "    uint64_aligned_t nested_flags;\n} __attribute__((packed))",
        ("pv_iommu_alloc_nested", "pgtable_gfn", DIFFERS),
    ),
    (
        "struct gone",
        "v7",
        "struct pv_iommu_detach_pasid {\n    struct physdev_pci_device dev;\n    uint32_t pasid;\n};\n",
        "",
        ("pv_iommu_detach_pasid", "", MISSING),
    ),
    (
        "struct added",
        "v7",
        "struct pv_iommu_flush_nested {",
        "struct pv_iommu_flush_pages { uint16_t ctx_no; };\nstruct pv_iommu_flush_nested {",
        ("pv_iommu_flush_pages", "", EXTRA),
    ),
    (
        "handle replaced by a frame number",
        "v7",
        "XEN_GUEST_HANDLE(void) arg;",
        "uint32_t arg;",
        ("pv_iommu_remote_cmd", "arg", DIFFERS),
    ),
    (
        "device written as one number",
        "v7",
        "    struct physdev_pci_device dev;\n    uint32_t pasid;\n};\n\nstruct pv_iommu_remote_cmd",
        "    uint32_t dev;\n    uint32_t pasid;\n};\n\nstruct pv_iommu_remote_cmd",
        ("pv_iommu_reattach_device", "dev.devfn", MISSING),
    ),
    (
        "sub-op renumbered",
        "v7",
        "IOMMU_map_pages = 6,\n    IOMMU_unmap_pages = 7,",
        "IOMMU_map_pages = 7,\n    IOMMU_unmap_pages = 6,",
        ("constant", "IOMMU_unmap_pages", DIFFERS),
    ),
    (
        "sub-ops shifted by one that was inserted",
        "v7",
        "    IOMMU_init = 2,\n    IOMMU_alloc_context = 3,",
        "    IOMMU_init = 2,\n    IOMMU_flush,\n    IOMMU_alloc_context,",
        ("constant", "IOMMU_alloc_context", DIFFERS),
    ),
    (
        "sub-op gone",
        "v7",
        "    IOMMU_remote_cmd = 8,\n",
        "",
        ("constant", "IOMMU_remote_cmd", MISSING),
    ),
    (
        "sub-op added",
        "v7",
        "    IOMMU_detach_pasid = 12,\n",
        "    IOMMU_detach_pasid = 12,\n    IOMMU_flush_pages = 13,\n",
        ("constant", "IOMMU_flush_pages", EXTRA),
    ),
    (
        "flag changed",
        "v7",
        "#define IOMMU_MAP_cache (1 << 2)",
        "#define IOMMU_MAP_cache (1 << 3)",
        ("constant", "IOMMU_MAP_cache", DIFFERS),
    ),
    (
        "capability changed",
        "v7",
        "#define IOMMUCAP_pasid (1U << 3)",
        "#define IOMMUCAP_pasid 3",
        ("constant", "IOMMUCAP_pasid", DIFFERS),
    ),
    (
        "flag added",
        "v7",
        "#define IOMMU_MAP_cache (1 << 2)",
        "#define IOMMU_MAP_cache (1 << 2)\n#define IOMMU_MAP_no_flush (1 << 3)",
        ("constant", "IOMMU_MAP_no_flush", EXTRA),
    ),
    (
        "field of a union moved",
        "v3",
        "            uint16_t max_ctx_no;\n            uint32_t max_nr_pages;",
        "            uint32_t max_nr_pages;\n            uint16_t max_ctx_no;",
        ("pv_iommu_op", "cap.max_ctx_no", DIFFERS),
    ),
    (
        "alternative of a union renamed",
        "v3",
        "        } cap;",
        "        } query_capabilities;",
        ("pv_iommu_op", "cap.max_iova_addr", MISSING),
    ),
    (
        "alternative of a union grown",
        "v3",
        "            uint64_t max_iova_addr;\n",
        "            uint64_t max_iova_addr;\n            uint64_t more[2];\n",
        ("pv_iommu_op", "", DIFFERS),
    ),
    (
        "field an array of bytes",
        "v7",
        "    uint32_t map_flags;",
        "    uint8_t map_flags[4];",
        ("pv_iommu_map_pages", "map_flags", DIFFERS),
    ),
    (
        "field an array of one",
        "v7",
        "    uint32_t pgsize;\n    uint32_t nr_pages;\n    uint32_t mapped;",
        "    uint32_t pgsize[1];\n    uint32_t nr_pages;\n    uint32_t mapped;",
        ("pv_iommu_map_pages", "pgsize", DIFFERS),
    ),
    (
        "field a pointer",
        "v7",
        "    uint64_aligned_t dfn;\n    uint32_t map_flags;",
        "    void *dfn;\n    uint32_t map_flags;",
        ("pv_iommu_map_pages", "dfn", DIFFERS),
    ),
    (
        "field floating point",
        "v7",
        "    uint64_aligned_t dfn;\n    uint32_t map_flags;",
        "    double dfn;\n    uint32_t map_flags;",
        ("pv_iommu_map_pages", "dfn", DIFFERS),
    ),
    (
        "head of a union changed",
        "v3",
        "    uint16_t ctx_no;\n#define",
        "    uint8_t ctx_no;\n#define",
        ("pv_iommu_op", "ctx_no", DIFFERS),
    ),
]


@pytest.mark.parametrize(("name", "version", "old", "new", "expected"), SEEDED, ids=[row[0] for row in SEEDED])
def test_a_seeded_difference_is_found(tmp_path, name, version, old, new, expected):
    text = {"v7": V7, "v3": V3}[version]
    assert text.count(old) == 1, "the seed must hit one place"
    report = compare(tmp_path, version, text.replace(old, new))
    assert expected in found(report)


def test_at_least_twenty_differences_are_seeded():
    assert len(SEEDED) >= 20


@pytest.mark.parametrize("arch", ["x86-64", "arm64"])
def test_a_difference_on_32_bit_alone_is_not_seen_on_64_bit(tmp_path, arch):
    assert compare(tmp_path, "v7", V7, arch, defines=["__XEN_TOOLS__"]).differences == ()


def test_a_difference_on_32_bit_alone_is_found_there(tmp_path):
    report = compare(tmp_path, "v7", V7, "i386", defines=["__XEN_TOOLS__"])
    assert ("pv_iommu_map_pages", "gfn", DIFFERS) in found(report)
    assert ("pv_iommu_map_pages", "", DIFFERS) in found(report)
    assert not any(struct == "pv_iommu_alloc" for struct, _, _ in found(report))


def test_padding_spelt_out_is_not_a_difference(tmp_path):
    text = V7.replace("uint16_t ctx_no;\n    uint32_t alloc_flags", "uint16_t ctx_no, pad1;\n    uint32_t alloc_flags")
    report = compare(tmp_path, "v7", text)
    assert report.differences == ()
    assert [item.name for item in report.items if item.verdict == NAMED_HOLE] == ["pad1"]


def test_missing_includes_are_stood_in_for_and_said_so(tmp_path):
    report = compare(tmp_path, "v7", V7, include=())
    assert report.differences == ()
    assert "xen.h" in report.notes[0] and "stand-in" in report.notes[0]


def test_aligned_type_that_nobody_defines_is_supplied_and_said_so(tmp_path):
    text = V7.replace("#ifndef uint64_aligned_t\n#define uint64_aligned_t uint64_t\n#endif\n", "")
    assert text != V7
    report = compare(tmp_path, "v7", text)
    assert report.differences == ()
    assert "uint64_aligned_t is not defined" in report.notes[0]


@pytest.mark.parametrize("name", ["u", "args", ""])
def test_the_union_may_have_any_name_or_none(tmp_path, name):
    head, brace, tail = V3.rpartition("    };\n};")
    report = compare(tmp_path, "v3", f"{head}    }} {name};\n}};{tail}")
    assert brace and report.differences == ()


def test_enums_and_defines_are_the_same_to_it(tmp_path):
    anonymous = V7.replace("enum pv_iommu_cmd {", "enum {")
    assert compare(tmp_path, "v7", anonymous).differences == ()
    lines = [
        f"#define {line.strip().rstrip(',').replace(' =', '')}" if line.startswith("    IOMMU_") else line
        for line in V7.replace("enum pv_iommu_cmd {", "")
        .replace("IOMMU_detach_pasid = 12,\n};", "IOMMU_detach_pasid = 12,")
        .splitlines()
    ]
    assert compare(tmp_path, "v7", "\n".join(lines) + "\n").differences == ()


def test_a_header_that_does_not_compile_gives_the_compilers_message(tmp_path):
    with pytest.raises(CompileError, match=r"pv-iommu.h:\d+:\d+: error:.*no_such_type"):
        compare(tmp_path, "v7", V7.replace("    uint32_t arena_order;", "    no_such_type arena_order;"))
    with pytest.raises(CompileError, match=r"nowhere\.h"):
        compare(tmp_path, "v7", '#include "nowhere.h"\n')
    with pytest.raises(CompileError, match="uint64_aligned_t"):
        compare(tmp_path, "v7", "struct s { uint64_aligned_t a; no_such_type b; };\n")


def test_fields_that_are_no_integers_are_told_by_kind(tmp_path):
    for type_, words in (("double dfn", "8 bytes at 16, floating point"), ("void *dfn", "an array or a pointer")):
        report = compare(
            tmp_path, "v7", V7.replace("    uint64_aligned_t dfn;\n    uint32_t map", f"    {type_};\n    uint32_t map")
        )
        assert words in next(i.header for i in report.items if (i.struct, i.name) == ("pv_iommu_map_pages", "dfn"))


def test_an_enum_is_as_good_an_integer_as_any(tmp_path):
    text = V7.replace("    uint32_t map_flags;", "    enum { ONE = 1 } map_flags;")
    assert {name for _, name, _ in found(compare(tmp_path, "v7", text))} <= {"ONE"}


def test_bytes_that_are_no_utf8_in_a_message_are_no_obstacle(tmp_path):
    path = tmp_path / "pv-iommu.h"
    path.write_bytes(b"struct s { caf\xe9 x; };\n/* \xff\xfe */\n#error caf\xe9\n")
    with pytest.raises(CompileError, match="error"):
        check(versions.get("v7"), path, compiler_for("x86-64"), (XEN,))


def test_a_compiler_that_writes_nothing_is_reported(tmp_path):
    silent = tmp_path / "cc"
    silent.write_text("#!/bin/sh\nexit 0\n")
    silent.chmod(0o755)
    unit = Unit(Compiler("x86-64", (str(silent),)), "", [])
    with pytest.raises(CompileError, match="left no output"):
        unit.preprocess()
    with pytest.raises(CompileError, match="left no output"):
        unit.values(["1"])


def test_a_definition_that_the_user_gave_is_not_overridden(tmp_path):
    text = V7.replace("#ifndef uint64_aligned_t\n#define uint64_aligned_t uint64_t\n#endif\n", "")
    with pytest.raises(CompileError, match="no_such_type"):
        compare(tmp_path, "v7", text, defines=["uint64_aligned_t=no_such_type /* uint64_aligned_t */"])


def test_a_struct_that_is_only_a_typedef_is_missing_and_said_to_be_that(tmp_path):
    old = "struct pv_iommu_init {\n    uint32_t max_ctx_no;\n    uint32_t arena_order;\n};"
    assert V7.count(old) == 1
    text = V7.replace(old, old.replace("struct pv_iommu_init", "typedef struct").replace("};", "} pv_iommu_init_t;"))
    report = compare(tmp_path, "v7", text)
    item = next(i for i in report.items if i.struct == "pv_iommu_init" and i.verdict == MISSING)
    assert item.header == "only typedef pv_iommu_init_t, of a struct without a tag"


def test_a_constant_that_is_no_integer_is_not_one(tmp_path):
    extra = "#define IOMMU_MAP_cache (1 << 2)\n"
    report = compare(tmp_path, "v7", V7.replace(extra, f"{extra}#define IOMMU_FLT 1.5\n"))
    assert report.differences == ()
    wrong = compare(tmp_path, "v7", V7.replace(extra, "#define IOMMU_MAP_cache 4.0\n"))
    assert ("constant", "IOMMU_MAP_cache", MISSING) in found(wrong)


def test_a_header_with_nothing_in_it_lacks_everything(tmp_path):
    report = compare(tmp_path, "v7", "/* empty */\n")
    missing = {item.struct for item in report.items if item.kind == "struct" and item.verdict == MISSING}
    assert missing == {struct.tag for struct in versions.get("v7").structs}


def test_reserved_memory_map_is_held_against_where_it_is_declared(tmp_path):
    text = (
        '#include "xen.h"\n#include "physdev.h"\n'
        "#define XENMEM_reserved_device_memory_map 28\n"
        "struct xen_reserved_device_memory { xen_pfn_t start_pfn; xen_ulong_t nr_pages; };\n"
        "struct xen_reserved_device_memory_map { uint32_t flags; unsigned int nr_entries; void *buffer;\n"
        "    union { struct physdev_pci_device pci; } dev; };\n"
    )
    report = compare(tmp_path, "v3", text)
    mine = {item for item in found(report) if "reserved" in item[0] or "XENMEM" in item[1]}
    assert mine == {("constant", "XENMEM_reserved_device_memory_map", DIFFERS)}


def test_no_compiler_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    find.cache_clear()
    try:
        with pytest.raises(CompilerMissing, match=r"no C compiler for arm64: tried .*apt-get install"):
            find("arm64")
    finally:
        find.cache_clear()


def test_a_unit_reports_its_own_failures():
    compiler = compiler_for("x86-64")
    with pytest.raises(CompileError, match="error"):
        Unit(compiler, "#error no\n", []).preprocess()
    with pytest.raises(CompileError):
        Unit(compiler, "int f(void) { return nonesuch; }\n", []).values(["1"])
    assert Unit(compiler, "enum { a = -3 };\n", []).values(["a", "nonesuch", "1ull << 40"]) == [-3, None, 1 << 40]
    assert str(Compiler("x86-64", ("gcc", "-m64"))) == "gcc -m64"


def test_declarations_are_read_from_whatever_c_throws_at_it():
    text = """
# 1 "a.h" 1
#define ONE 1
#define CALL(x) x
typedef struct { void *p; } __guest_handle_void;
typedef int (*callback)(struct other *, int);
static const char *names[] = { "a;b", "}", };
enum tag { A, B = (1 << 2), C = sizeof(struct { int x; }) };
struct s {
    unsigned int a : 3, b : 5;
    const volatile unsigned long c __attribute__((aligned(8)));
    struct other *pointer;
    __guest_handle_void handle;
    int array[2][3], tail;
    enum tag e;
    int (*hook)(int);
    struct { struct { char deep; } inner; union { int left; long right; }; } named;
} __attribute__((packed));
extern int f(int x) { if (x) { return 1; } return 0; }
struct s variable = { .a = 1 };
struct unfinished {
"""
    declared = read(text)
    leaves = declared.leaves("s")
    assert leaves[:7] == ["a", "b", "c", "pointer", "handle.p", "array", "tail"]
    assert {"named.inner.deep", "named.left", "named.right", "e"} <= set(leaves)
    assert set(declared.enumerators) == {"A", "B", "C"} and declared.enum_tags["A"] == "tag"
    assert declared.macros["ONE"] == ("a.h", "1") and "CALL" not in declared.macros
    assert declared.leaves("nonesuch") == []
