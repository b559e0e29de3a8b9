# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry says what the tables of the postings say: numbers, flags, sizes and offsets, copied here by hand."""

from dataclasses import replace

import pytest

from abi import versions
from abi.declare import ARCHES, IN, c_struct, u16
from abi.errno import ENODEV, EOPNOTSUPP, EPERM, errno_name, errno_number
from abi.layout import place
from abi.memory_op import ENTRY, MAP
from abi.model import subop, table
from abi.versions import Convention

NUMBERS = {
    "A-old": "- query_caps map_page unmap_page map_foreign_page lookup_foreign_page unmap_foreign_page",
    "A-new": "- query_caps map_page unmap_page - lookup_foreign_page unmap_foreign_page",
    "P-1": "noop - alloc_context free_context reattach_device map_pages unmap_pages",
    "P0": "noop - alloc_context free_context reattach_device map_pages unmap_pages lookup_page",
    "v3": "noop query_capabilities alloc_context free_context reattach_device map_pages unmap_pages lookup_page",
    "N": "noop query_capabilities alloc_context free_context reattach_device map_pages unmap_pages lookup_page"
    " remote_cmd alloc_nested flush_nested attach_pasid detach_pasid",
    "v4": "noop query_capabilities init alloc_context free_context reattach_device map_pages unmap_pages"
    " remote_cmd alloc_nested flush_nested attach_pasid detach_pasid",
    "E3": "noop query_capabilities init alloc_context free_context reattach_device map_pages unmap_pages"
    " remote_cmd alloc_nested flush_nested attach_pasid detach_pasid flush_pages",
}
for same, original in (("H0", "v3"), ("v1", "v3"), ("v2", "v3"), ("v5", "v4"), ("v6", "v4"), ("v7", "v4")):
    NUMBERS[same] = NUMBERS[original]

# struct -> (size on x86-64, on i386, {field: (offset on x86-64, on i386)}), from the reference's tables
V4_LAYOUTS = {
    "pv_iommu_capabilities": (
        24,
        24,
        "max_iova_addr 0/0 cap_flags 8/8 pgsize_mask 12/12 max_pasid 16/16 max_ctx_no 20/20",
    ),
    "pv_iommu_init": (8, 8, "max_ctx_no 0/0 arena_order 4/4"),
    "pv_iommu_alloc": (8, 8, "ctx_no 0/0 alloc_flags 4/4"),
    "pv_iommu_free": (8, 8, "ctx_no 0/0 free_flags 4/4"),
    "pv_iommu_map_pages": (
        40,
        36,
        "ctx_no 0/0 gfn 8/4 dfn 16/12 map_flags 24/20 pgsize 28/24 nr_pages 32/28 mapped 36/32",
    ),
    "pv_iommu_unmap_pages": (32, 24, "ctx_no 0/0 dfn 8/4 pgsize 16/12 nr_pages 20/16 unmapped 24/20"),
    "pv_iommu_reattach_device": (12, 12, "ctx_no 0/0 dev.seg 2/2 dev.bus 4/4 dev.devfn 5/5 pasid 8/8"),
    "pv_iommu_remote_cmd": (16, 8, "domid 0/0 subop 2/2 arg 8/4"),
    "pv_iommu_alloc_nested": (24, 20, "ctx_no 0/0 pgtable_gfn 8/4 nested_flags 16/12"),
    "pv_iommu_attach_pasid": (12, 12, "ctx_no 0/0 dev.seg 2/2 dev.bus 4/4 dev.devfn 5/5 pasid 8/8"),
    "pv_iommu_detach_pasid": (8, 8, "dev.seg 0/0 dev.bus 2/2 dev.devfn 3/3 pasid 4/4"),
    "pv_iommu_flush_nested": (0, 0, ""),
}
LAYOUTS = {
    "v4": V4_LAYOUTS,
    "v7": V4_LAYOUTS | {"pv_iommu_capabilities": (24, 24, V4_LAYOUTS["pv_iommu_capabilities"][2] + " pad0 22/22")},
    "E3": {"pv_iommu_flush_pages": (24, 20, "ctx_no 0/0 dfn 8/4 pgsize 16/12 nr_pages 20/16")},
    "N": {"pv_iommu_lookup_page": (24, 20, "ctx_no 0/0 dfn 8/4 gfn 16/12")},
    "v3": {
        "pv_iommu_op": (
            32,
            32,
            "subop_id 0/0 ctx_no 2/2 flags 4/4 map_pages.gfn 8/8 map_pages.dfn 16/16 map_pages.nr_pages 24/24"
            " map_pages.mapped 28/28 unmap_pages.dfn 8/8 unmap_pages.nr_pages 16/16 unmap_pages.unmapped 20/20"
            " reattach_device.dev.seg 8/8 reattach_device.dev.bus 10/10 reattach_device.dev.devfn 11/11"
            " lookup_page.gfn 8/8 lookup_page.dfn 16/16 cap.max_ctx_no 8/8 cap.max_nr_pages 12/12"
            " cap.max_iova_addr 16/16",
        )
    },
    "P0": {
        "pv_iommu_op": (
            24,
            24,
            "subop_id 0/0 ctx_no 2/2 flags 4/4 map_page.gfn 8/8 map_page.dfn 16/16 unmap_page.dfn 8/8"
            " reattach_device.dev.seg 8/8 reattach_device.dev.bus 10/10 reattach_device.dev.devfn 11/11"
            " lookup_page.gfn 8/8 lookup_page.dfn 16/16",
        )
    },
    "A-new": {
        "pv_iommu_op": (
            32,
            28,
            "subop_id 0/0 flags 2/2 status 4/4 u.query_caps.offset 8/8 u.map_page.bfn 8/8 u.map_page.gfn 16/16"
            " u.unmap_page.bfn 8/8 u.lookup_foreign_page.bfn 8/8 u.lookup_foreign_page.gfn 16/16"
            " u.lookup_foreign_page.domid 24/24 u.lookup_foreign_page.ioserver 26/26"
            " u.unmap_foreign_page.bfn 8/8 u.unmap_foreign_page.ioserver 16/16",
        )
    },
}


@pytest.mark.parametrize("name", versions.names())
def test_sub_op_numbers_are_those_of_the_table(name):
    abi = versions.get(name)
    wanted = {number: word for number, word in enumerate(NUMBERS[name].split()) if word != "-"}
    assert {number: row.name for number, row in abi.subops.items()} == wanted
    assert all(abi.by_name[row.name] is row for row in abi.subops.values())


@pytest.mark.parametrize(("name", "tag"), [(name, tag) for name, structs in LAYOUTS.items() for tag in structs])
def test_layouts_are_those_of_the_tables(name, tag):
    wide_size, small_size, fields = LAYOUTS[name][tag]
    struct = next(s for s in versions.get(name).structs if s.tag == tag)
    words = fields.split()
    wanted = dict(zip(words[::2], words[1::2]))
    for arch, size, column in (("x86-64", wide_size, 0), ("arm64", wide_size, 0), ("i386", small_size, 1)):
        layout = place(struct, ARCHES[arch])
        assert layout.size == size
        assert {m.path: m.offset for m in layout.members} == {
            path: int(offsets.split("/")[column]) for path, offsets in wanted.items()
        }


def test_reserved_memory_map_is_laid_out_as_in_xen():
    entry, request = place(ENTRY, ARCHES["x86-64"]), place(MAP, ARCHES["x86-64"])
    assert (entry.size, entry.member("nr_pages").offset) == (16, 8)
    assert request.size == 24
    offsets = {m.path: m.offset for m in request.members}
    assert offsets == {
        "flags": 0,
        "nr_entries": 4,
        "buffer": 8,
        "dev.pci.seg": 16,
        "dev.pci.bus": 18,
        "dev.pci.devfn": 19,
    }
    assert place(ENTRY, ARCHES["i386"]).size == 8 and place(MAP, ARCHES["i386"]).size == 16


def test_conventions_hypercalls_and_error_codes():
    for name, convention, number in (
        ("A-old", Convention.BATCH, 56),
        ("P0", Convention.BATCH, 43),
        ("v1", Convention.UNION, 43),
        ("v3", Convention.UNION, 43),
        ("v4", Convention.SUBOP, 43),
        ("E3", Convention.SUBOP, 43),
    ):
        abi = versions.get(name)
        assert (abi.convention, abi.hypercall) == (convention, number)
    assert versions.get("v3").errno_unusable == EPERM and versions.get("v7").errno_unusable == ENODEV
    assert versions.get("v7").errno_unknown_subop == EOPNOTSUPP
    assert versions.get("v3").max_nr_pages == 256 and versions.get("v4").max_nr_pages is None


def test_flags_and_capabilities():
    v3, v7, e3 = (versions.get(name) for name in ("v3", "v7", "E3"))
    assert (v3.map_readable, v3.map_writeable, v3.map_cache, v3.map_flags_mask) == (1, 2, 0, 3)
    assert (v3.alloc_identity, v3.alloc_flags_mask, v3.free_reattach_default, v3.free_flags_mask) == (0, 0, 1, 1)
    assert dict(v3.caps) == {}
    assert (v7.map_readable, v7.map_writeable, v7.map_cache, v7.map_flags_mask) == (1, 2, 4, 7)
    assert (v7.alloc_identity, v7.alloc_flags_mask, v7.free_reattach_default, v7.free_flags_mask) == (1, 1, 1, 1)
    assert dict(v7.caps) == {"default_identity": 1, "cache": 2, "nested": 4, "pasid": 8, "identity": 16}
    assert e3.map_no_flush == 8 and e3.caps["deferred_flush"] == 32


def test_registers_follow_the_convention():
    assert versions.get("v3").registers("map_pages", 0x1000) == (0x1000,)
    assert versions.get("v7").registers("map_pages", 0x1000) == (6, 0x1000)
    assert versions.get("N").registers("map_pages", 0x1000) == (5, 0x1000)
    assert versions.get("P0").registers("map_pages", 0x1000) == (0x1000, 1)


def test_tag_of_a_union_and_of_nothing_else():
    v3 = versions.get("v3")
    assert v3.subop_of(v3.by_name["lookup_page"].codec.encode(1, 2, 0)) == 7
    assert v3.subop_of(b"\x34\x12" + bytes(30)) == 0x1234
    with pytest.raises(ValueError, match="register"):
        versions.get("v7").subop_of(bytes(40))


def test_sub_ops_without_an_implementation_have_a_struct_and_no_codec():
    v7 = versions.get("v7")
    for name in ("alloc_nested", "flush_nested", "attach_pasid", "detach_pasid"):
        assert v7.by_name[name].codec is None and not v7.by_name[name].implemented
        assert v7.by_name[name].codec_on("x86-64") is not None
    assert v7.by_name["noop"].codec is None and v7.by_name["noop"].codec_on("i386") is None
    assert versions.get("v3").by_name["noop"].codec.encode() == bytes(32)


@pytest.mark.parametrize("version", ["v1", "v3", "v4", "v7"])
def test_a_version_as_32_bit_callers_have_it_differs_in_layout_only(version):
    wide = versions.get(version)
    small = wide.on("i386")
    assert wide.on("x86-64") == wide
    for name, row in wide.by_name.items():
        assert small.by_name[name].codec is (row.codec and row.codec_on("i386"))
        assert replace(small.by_name[name], codec=row.codec) == row
    assert replace(small, subops=wide.subops) == wide


def test_hole_mask_covers_what_belongs_to_no_field():
    v7, v3 = versions.get("v7"), versions.get("v3")
    assert v7.by_name["map_pages"].codec.hole_mask == 0xFFFFFFFFFFFF << 16
    assert v7.by_name["alloc_context"].codec.hole_mask == 0xFFFF << 16
    assert v7.by_name["query_capabilities"].codec.hole_mask == 0xFFFF << 176
    assert v7.by_name["init"].codec.hole_mask == 0
    assert all(row.codec.hole_mask == 0 for row in v3.subops.values())


def test_unknown_version_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"'v9'.*A-old.*v7, E3"):
        versions.get("v9")
    assert versions.get("V7") is versions.get("v7")


def test_a_number_or_name_cannot_be_used_twice():
    one = subop("noop", 0, "IOMMU_noop")
    with pytest.raises(ValueError, match="twice"):
        table(one, one.numbered(1))
    with pytest.raises(ValueError, match="twice"):
        table(one, subop("init", 0, "IOMMU_init"))


def test_nested_directions_come_from_the_outer_member():
    inner = c_struct("inner", "a" / u16)
    outer = place(c_struct("outer", "b" / IN(inner) * "doc"), ARCHES["x86-64"])
    assert (outer.member("b.a").direction, outer.member("b.a").promised) == ("in", "in")
    with pytest.raises(KeyError):
        outer.member("nonesuch")


def test_error_names():
    assert (errno_name(-12), errno_name(12), errno_name(0)) == ("ENOMEM", "ENOMEM", "0")
    assert errno_name(-4095) == "errno 4095"
    assert errno_number("-eaddrinuse") == 98
    with pytest.raises(ValueError, match="ENONSENSE"):
        errno_number("ENONSENSE")
