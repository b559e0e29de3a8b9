# SPDX-License-Identifier: GPL-2.0-or-later
"""Generated codecs are construct, faster: same bytes and values for every struct of every version and machine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi import versions
from abi.canonical import CANONICAL
from abi.codec import Codec
from abi.declare import ARCHES

CODECS = {
    f"{name}-{arch}-{sub.name}": codec
    for name in versions.names()
    for arch in ARCHES
    for sub in versions.get(name).subops.values()
    if (codec := sub.codec_on(arch)) is not None
}
DISTINCT = {(codec.subop, codec.layout): name for name, codec in CODECS.items()}
distinct = [CODECS[name] for name in DISTINCT.values()]
every_codec = pytest.mark.parametrize("codec", distinct, ids=DISTINCT.values())


def values_for(codec: Codec):
    """A tuple of canonical values that fit."""
    return st.tuples(
        *(
            st.integers(0, (1 << 8 * codec.present[name].size) - 1)
            if name in codec.present and codec.present[name].code.isupper()
            else st.integers(-(1 << 31), (1 << 31) - 1)
            if name in codec.present
            else st.integers(0, 1 << 64)
            for name in codec.fields
        )
    )


def by_construct(codec: Codec, buf: bytes) -> tuple[int, ...]:
    parsed = codec.construct.parse(buf)
    defaults = {field.name: field.default for field in CANONICAL[codec.subop]}
    return tuple(parsed[codec.present[n].path] if n in codec.present else defaults[n] for n in codec.fields)


@settings(max_examples=400)
@given(st.data())
def test_decode_equals_construct_on_arbitrary_bytes(data):
    codec = data.draw(st.sampled_from(distinct))
    buf = data.draw(st.binary(min_size=codec.size, max_size=codec.size))
    assert codec.decode(buf) == by_construct(codec, buf)
    assert codec.decode(bytearray(buf)) == codec.decode(memoryview(buf)) == codec.decode(buf)
    assert tuple(codec.as_dict(buf)) == codec.fields


@settings(max_examples=400)
@given(st.data())
def test_decode_clean_is_decode_unless_a_hole_is_set(data):
    codec = data.draw(st.sampled_from(distinct))
    raw = int.from_bytes(data.draw(st.binary(min_size=codec.size, max_size=codec.size)), "little")
    holes = [bit for bit in range(8 * codec.size) if codec.hole_mask >> bit & 1]
    clean = (raw & ~codec.hole_mask).to_bytes(codec.size, "little")
    assert codec.decode_clean(clean) == codec.decode_clean(memoryview(clean)) == codec.decode(clean)
    if holes:
        bit = data.draw(st.sampled_from(holes))
        assert codec.decode_clean((raw & ~codec.hole_mask | 1 << bit).to_bytes(codec.size, "little")) is None
    with pytest.raises(ValueError, match=f"is {codec.size} bytes, not"):
        codec.decode_clean(clean + b"\0")


@settings(max_examples=400)
@given(st.data())
def test_encode_equals_construct_for_all_values(data):
    codec = data.draw(st.sampled_from(distinct))
    values = data.draw(values_for(codec))
    named = dict(zip(codec.fields, values))
    paths = {codec.present[name].path: value for name, value in named.items() if name in codec.present}
    for member in codec.layout.members:
        paths.setdefault(member.path, 0)
    if codec.tag is not None:
        paths["subop_id"] = codec.tag
    buf = codec.encode(*values)
    assert buf == codec.construct.build(paths)
    assert len(buf) == codec.size
    assert int.from_bytes(buf, "little") & codec.hole_mask == 0
    again = dict(zip(codec.fields, codec.decode(buf)))
    assert all(again[name] == named[name] for name in codec.present)


@settings(max_examples=300)
@given(st.data())
def test_patch_out_writes_the_out_fields_and_nothing_else(data):
    codec = data.draw(st.sampled_from(distinct))
    buf = bytearray(data.draw(st.binary(min_size=codec.size, max_size=codec.size)))
    before = dict(zip(codec.fields, codec.decode(buf)))
    old = bytes(buf)
    values = dict(zip(codec.fields, data.draw(values_for(codec))))
    codec.patch_out(buf, *(values[name] for name in codec.out))
    after = dict(zip(codec.fields, codec.decode(buf)))
    touched = 0
    for name, member in codec.present.items():
        assert after[name] == (values[name] if name in codec.out else before[name])
        if name in codec.out:
            touched |= ((1 << 8 * member.size) - 1) << 8 * member.offset
    changed = int.from_bytes(old, "little") ^ int.from_bytes(buf, "little")
    assert changed & ~touched == 0


@every_codec
def test_any_other_length_is_a_value_error_that_names_both(codec):
    for length in {0, 1, codec.size - 1, codec.size + 1} - {codec.size, -1}:
        with pytest.raises(ValueError, match=f"{codec.size} bytes, not {length}"):
            codec.decode(bytes(length))


@every_codec
def test_a_value_that_does_not_fit_is_refused_by_name(codec):
    for name, member in codec.present.items():
        values = [1 << 64 if field == name else 0 for field in codec.fields]
        for bad in (1 << 64, 1 << 8 * member.size, -1 - (1 << 8 * member.size)):
            values[codec.fields.index(name)] = bad
            with pytest.raises(ValueError, match=rf"{codec.subop}\.{name} is {8 * member.size} bits wide"):
                codec.encode(*values)
            with pytest.raises(ValueError, match=name):
                codec.patch(bytearray(codec.size), name, bad)


@every_codec
def test_patch_stores_one_field(codec):
    for name, member in codec.present.items():
        buf = bytearray(codec.size)
        codec.patch(buf, name, 0x5A)
        assert codec.as_dict(buf)[name] == 0x5A
        assert buf[member.offset] == 0x5A and sum(buf) == 0x5A
    with pytest.raises(ValueError, match="has no field 'nonesuch'"):
        codec.patch(bytearray(codec.size), "nonesuch", 0)


def test_patching_a_short_buffer_is_a_value_error():
    codec = versions.get("v7").by_name["map_pages"].codec
    with pytest.raises(ValueError, match="40 bytes, not 8"):
        codec.patch_out(bytearray(8), 1)
    with pytest.raises(ValueError, match="shorter"):
        codec.patch(bytearray(8), "mapped", 1)


def test_patch_of_a_field_that_the_version_lacks_changes_nothing():
    codec = versions.get("v3").by_name["map_pages"].codec
    buf = bytearray(b"\xff" * 32)
    codec.patch(buf, "pgsize", 0x200000)
    assert buf == b"\xff" * 32
