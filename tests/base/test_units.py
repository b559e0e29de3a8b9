# SPDX-License-Identifier: GPL-2.0-or-later
"""Number spaces: conversions lose nothing, truncation is the one of C, PCI addresses read as lspci prints them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from base import units
from base.units import Dfn, Iova, Maddr, Mfn, Paddr, Pfn, format_sbdf, make_sbdf, parse_sbdf, s64, u16, u32, u64

words = st.integers(-(2**70), 2**70)


@given(words)
def test_truncation_is_cs(value: int) -> None:
    assert u16(value) == value % 2**16
    assert u32(value) == value % 2**32
    assert u64(value) == value % 2**64


@given(words)
def test_a_result_register_reads_as_long(value: int) -> None:
    assert -(2**63) <= s64(value) < 2**63
    assert s64(value) % 2**64 == value % 2**64


def test_errnos_come_back_negative() -> None:
    assert s64(2**64 - 12) == -12
    assert s64(-12) == -12
    assert s64(12) == 12


@given(st.integers(0, 2**52 - 1), st.integers(0, 4095))
def test_frames_and_addresses_convert_without_loss(frame: int, offset: int) -> None:
    assert units.mfn_of(units.maddr_of(Mfn(frame), offset)) == frame
    assert units.pfn_of(units.paddr_of(Pfn(frame), offset)) == frame
    assert units.dfn_of(units.iova_of(Dfn(frame), offset)) == frame
    assert units.maddr_of(units.mfn_of(Maddr(frame << 12 | offset))) == frame << 12
    assert units.paddr_of(units.pfn_of(Paddr(frame << 12 | offset)), offset) == frame << 12 | offset
    assert units.iova_of(units.dfn_of(Iova(frame << 12 | offset)), offset) == frame << 12 | offset


def test_page_constants_agree() -> None:
    assert 1 << units.PAGE_SHIFT == units.PAGE_SIZE == -units.PAGE_MASK == 4096


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 31), st.integers(0, 7))
def test_pci_addresses_round_trip(segment: int, bus: int, device: int, function: int) -> None:
    sbdf = make_sbdf(segment, bus, device, function)
    assert sbdf == segment << 16 | bus << 8 | device << 3 | function
    assert parse_sbdf(format_sbdf(sbdf)) == sbdf


def test_pci_addresses_are_written_as_lspci_does() -> None:
    assert format_sbdf(make_sbdf(0, 0, 0x1F, 7)) == "0000:00:1f.7"
    assert parse_sbdf("00:03.0") == make_sbdf(0, 0, 3, 0)
    assert parse_sbdf("ABCD:ff:1f.7") == make_sbdf(0xABCD, 0xFF, 31, 7)


@pytest.mark.parametrize(
    "text", ["", "3.0", "00:03", "00:03.", "00:20.0", "00:03.8", "100:03.0x", "1:2:3:4.5", "10000:00:00.0", "zz:00.0"]
)
def test_what_is_no_pci_address_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="PCI address"):
        parse_sbdf(text)


@pytest.mark.parametrize("parts", [(0x1_0000, 0, 0, 0), (0, 256, 0, 0), (0, 0, 32, 0), (0, 0, 0, 8), (0, 0, -1, 0)])
def test_coordinates_out_of_range_are_refused(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such PCI address"):
        make_sbdf(*parts)
