# SPDX-License-Identifier: GPL-2.0-or-later
"""Bit layouts: typing mistakes fail when the class is made, values are never cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base.bits import Field, Layout, bit, bits


class Sample(Layout, width=32):
    top = bits(31, 28)
    middle = bits(19, 8, "what lies between")
    flag = bit(3)
    low = bits(1, 0)


def test_masks_and_widths_are_as_the_manual_prints_them() -> None:
    assert Sample.middle.mask == 0x000F_FF00
    assert (Sample.top.width, Sample.flag.width, Sample.low.mask) == (4, 1, 3)
    assert Sample.width == 32
    assert Sample.middle.doc == "what lies between"
    assert [repr(field) for field in Sample.fields.values()] == [
        "<top[31:28]>",
        "<middle[19:8]>",
        "<flag[3]>",
        "<low[1:0]>",
    ]


def test_reserved_bits_are_those_that_no_field_names() -> None:
    assert Sample.reserved() == 0x0FF0_00F4
    named = sum(field.mask for field in Sample.fields.values())
    assert named ^ Sample.reserved() == 0xFFFF_FFFF


@given(st.integers(0, 15), st.integers(0, 0xFFF), st.integers(0, 1), st.integers(0, 3))
def test_what_is_packed_is_decoded(top: int, middle: int, flag: int, low: int) -> None:
    word = Sample.pack(top=top, middle=middle, flag=flag, low=low)
    assert Sample.decode(word) == {"top": top, "middle": middle, "flag": flag, "low": low}
    assert word & Sample.reserved() == 0


@given(st.integers(0, 2**32 - 1))
def test_decoding_is_total_and_packing_gives_the_named_bits_back(word: int) -> None:
    assert Sample.pack(**Sample.decode(word)) == word & ~Sample.reserved()
    assert ("reserved" in Sample.describe(word)) == bool(word & Sample.reserved())


def test_descriptions_name_what_is_set() -> None:
    assert Sample.describe(0) == "0"
    assert Sample.describe(Sample.pack(flag=1, middle=0x20) | 1 << 20) == "middle=0x20 flag reserved=0x100000"


@pytest.mark.parametrize("field, value", [("top", 16), ("middle", 0x1000), ("flag", 2), ("low", 4), ("low", -1)])
def test_a_value_that_does_not_fit_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is .* bits wide"):
        Sample.pack(**{field: value})


def test_an_unknown_field_is_refused_with_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"no field 'middel'.*top, middle, flag, low"):
        Sample.pack(middel=1)


def test_overlap_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="overlaps"):
        type("Overlapping", (Layout,), {"one": bits(7, 4), "other": bits(4, 0)})


def test_a_field_outside_the_width_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match="bit 64 of a 64-bit word"):
        type("TooHigh", (Layout,), {"one": bits(64, 60)})


@pytest.mark.parametrize("bounds", [(3, 4), (3, -1), (-1, -1)])
def test_reversed_and_negative_bounds_are_errors(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="msb"):
        Field(*bounds)


def test_a_field_called_like_a_keyword_of_python_can_be_packed() -> None:
    class Device(Layout, width=24):
        cls = bits(23, 16)
        self = bits(7, 0)

    assert Device.pack(cls=2, self=1) == 0x02_0001
