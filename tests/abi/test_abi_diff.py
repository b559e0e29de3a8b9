# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two versions, and what it breaks for whom."""

import pytest

from abi import versions
from abi.diff import SECTIONS, Change, diff
from abi.diff_mail import mail
from abi.lint import subject_called

ALL = [*versions.names(), "v3-fixed", "v7-fixed"]


def changes(old, new, arch="x86-64"):
    return diff(subject_called(old), subject_called(new), arch)


def text(old, new, width=80):
    return mail(subject_called(old), subject_called(new), width=width)


def one(found, place):
    return next(change for change in found if change.place == place)


@pytest.mark.parametrize("name", ALL)
def test_a_version_does_not_differ_from_itself(name):
    assert changes(name, name) == []
    assert "are the same in everything" in text(name, name)


@pytest.mark.parametrize("old", ALL)
def test_every_pair_can_be_compared_and_fits_the_width(old):
    for new in ALL:
        found = changes(old, new)
        assert {change.section for change in found} <= set(SECTIONS)
        for line in text(old, new).splitlines():
            assert len(line) <= 80, line


def test_versions_that_differ_in_the_driver_alone():
    assert {change.section for change in changes("v1", "v2")} == {"posting"}
    assert {change.section for change in changes("v2", "v3")} == set()


def test_v3_to_v7_moves_numbers_fields_and_errors():
    found = changes("v3", "v7")
    assert one(found, "calling convention").old_guest.endswith("every call answers -EOPNOTSUPP")
    assert one(found, "calling convention").new_guest.endswith("every call is -EFAULT")
    moved = {c.place: (c.before, c.after) for c in found if c.section == "numbers" and c.kind == "moved"}
    assert moved == {
        "alloc_context": ("2", "3"),
        "free_context": ("3", "4"),
        "reattach_device": ("4", "5"),
        "map_pages": ("5", "6"),
        "unmap_pages": ("6", "7"),
    }
    gone = {c.place for c in found if c.section == "numbers" and c.kind == "vanished"}
    new = {c.place for c in found if c.section == "numbers" and c.kind == "appeared"}
    assert gone == {"lookup_page"} and {"init", "remote_cmd"} <= new
    assert one(found, "map_pages.map_flags").before == "flags"
    assert Change("structs", "moved", "map_pages.mapped", "4 bytes at 28", "4 bytes at 36") in found
    assert Change("structs", "appeared", "map_pages.pgsize", "", "4 bytes at 28") in found
    unusable = one(found, "every sub-op: the caller may not use PV-IOMMU")
    assert (unusable.before, unusable.after) == ("-EPERM", "-ENODEV")
    assert "-E2BIG" in one(found, "pages per call").new_guest
    assert "-ENOSPC" in one(found, "before the first context").old_guest


def test_v6_to_v7_moves_no_byte_and_names_what_changed():
    found = changes("v6", "v7")
    assert {change.section for change in found} == {"answers", "behaviour", "defects", "posting"}
    device = one(found, "reattach_device: the caller has no such device")
    assert device.before == "-ENOENT" and device.after == "-ENODEV, which is what the header promises"
    assert device.old_guest == "gets -ENODEV where it looks for -ENOENT"
    foreign = one(found, "map_pages: the frame is RAM of another guest")
    assert foreign.old_guest == "gets -EPERM unless it is the hardware domain"
    reserved = one(found, "a range that touches a reserved region")
    assert "removes the device's identity mapping" in reserved.new_guest
    assert "AMD-Vi" in {change.place for change in found}


def test_defects_that_came_or_went_are_in_the_diff():
    found = {(c.kind, c.place) for c in changes("v6", "v7") if c.section == "defects"}
    assert found == {
        ("appeared", f"{s} ({d})") for s, d in (("reattach_device", "D4"), ("map_pages", "F4"), ("map_pages", "F5"))
    }
    back = {(c.kind, c.place) for c in changes("v7", "v6") if c.section == "defects"}
    assert back == {("vanished", place) for _, place in found}
    assert {c.kind for c in changes("v7", "v7-fixed") if c.section == "defects"} == {"vanished"}
    assert "map_pages (F5)" in text("v6", "v7") and "What goes wrong in the code as posted" in text("v6", "v7")


def test_the_mail_of_v6_and_v7_knows_who_may_still_map_what():
    found = changes("v6", "v7")
    xen = one(found, "map_pages: the frame is RAM of the hypervisor")
    assert xen.after == "mapped for the hardware domain, -EPERM for others"
    assert one(found, "reattach_device: the device has never been put into a context").after == "-ENOENT"


def test_a_constant_spelt_another_way_is_not_renamed():
    assert "respelled IOMMUCAP_cache" in text("v4", "v5") and "renamed" not in text("v4", "v5")
    assert text("v7", "v7").count("A guest built for") == 1


def test_a_moved_number_says_what_runs_instead():
    found = changes("N", "v4")
    assert one(found, "alloc_context").old_guest == "alloc_context (2) runs init there"
    assert one(found, "init").new_guest == "init (2) runs alloc_context there"
    assert one(found, "lookup_page").old_guest == "lookup_page (7) runs unmap_pages there"
    assert one(changes("v7", "E3"), "flush_pages").new_guest == "flush_pages (13) runs nothing: -EOPNOTSUPP"
    flag = one(changes("v7", "E3"), "IOMMU_MAP_no_flush")
    assert "deferred_flush is not reported" in flag.new_guest


def test_v4_to_v5_is_a_matter_of_source_files():
    found = changes("v4", "v5")
    assert {c.place for c in found if c.section == "structs"} == {"query_capabilities.pad0"}
    assert "No byte moved" in text("v4", "v5")


def test_hypercall_numbers_and_conventions_of_the_oldest():
    assert "-ENOSYS" in one(changes("A-new", "v7"), "hypercall number").old_guest
    assert "first operation" in one(changes("P0", "v3"), "calling convention").old_guest
    assert "count is whatever" in one(changes("P0", "v3"), "calling convention").new_guest


def test_layouts_can_be_compared_for_a_32_bit_guest():
    wide, small = changes("v3", "v7"), changes("v3", "v7", "i386")
    for found, size in ((wide, 40), (small, 36)):
        structs = {c.place: c.after for c in found if c.section == "structs"}
        assert structs["map_pages"] == f"struct pv_iommu_map_pages, {size} bytes"


def test_the_mail_says_the_verdict_first_and_the_consequences_last():
    lines = text("v3", "v7").splitlines()
    assert lines[0] == "iommu_op v3 -> v7"
    assert lines[4].startswith("A new interface.")
    headings = [line for line in lines if line and not line.startswith(" ")]
    order = ["The call", "Sub-op numbers", "Structs (x86-64)", "Constants", "What is answered", "What a call does"]
    assert [h for h in headings if h in order] == order
    assert headings[-2:] == ["A guest built for v3, on v7", "A guest built for v7, on v3"]
    assert "  and once ported to v7:" in lines


def test_the_mail_of_v6_and_v7_is_short_and_complete():
    lines = text("v6", "v7").splitlines()
    assert "No byte of the interface changed" in lines[4]
    assert len(lines) < 60
    assert "      -ENOENT -> -ENODEV, which is what the header promises" in lines
