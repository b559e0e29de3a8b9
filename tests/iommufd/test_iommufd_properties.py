# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs against a model: every table of an IOAS translates alike, pages are pinned once, runs stay whole."""

from hypothesis import given, settings
from hypothesis import strategies as st
from iommufd_rig import BUFFER, MIB, Rig

BASE = 16 * MIB
UNIT = 2048
SPACE = 24

spans = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 6))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("map"), spans, st.integers(0, 12)),
        st.tuples(st.just("unmap"), spans),
        st.tuples(st.just("copy"), spans, st.integers(0, SPACE - 1)),
        st.tuples(st.just("attach"), st.integers(0, 1)),
        st.tuples(st.just("detach"), st.integers(0, 1)),
        st.tuples(st.just("budget"), st.integers(0, 5)),
    ),
    max_size=14,
)


def overlaps(areas, start, count):
    return [at for at, (length, _) in areas.items() if at < start + count and start < at + length]


@settings(max_examples=120, deadline=None)
@given(steps, st.booleans())
def test_tables_follow_the_model(program, scatter):
    rig = Rig((1, 1), scatter=scatter)
    rig.buffer(16)
    ioas = rig.ioas()
    idevs = [rig.bind(devs[0]) for devs in rig.devs]
    hwpts = [rig.hwpt(idev, ioas) for idev in idevs]
    areas = {}  # unit -> (units, user address)
    for step in program:
        rig.mock.page_budget = None
        if step[0] == "map":
            (start, count), page = step[1:]
            # the I/O address keeps the place in the page, as user space that wants superpages would have it
            va = BUFFER + page * 4096 + start % 2 * UNIT
            ret = rig.map(ioas, BASE + start * UNIT, va=va, length=count * UNIT)
            assert (ret > 0) == (not overlaps(areas, start, count))
            if ret > 0:
                areas[start] = (count, va)
        elif step[0] == "unmap":
            start, count = step[1]
            hit = sorted(overlaps(areas, start, count))
            ret = rig.unmap(ioas, BASE + start * UNIT, count * UNIT)
            whole = []
            for at in hit:
                if at < start or at + areas[at][0] > start + count:
                    break
                whole.append(at)
            assert ret == (sum(areas[at][0] for at in whole) * UNIT if hit and whole == hit else -2)
            for at in whole:
                del areas[at]
        elif step[0] == "copy":
            (start, count), to = step[1:]
            units = {at + n: va + n * UNIT for at, (length, va) in areas.items() for n in range(length)}
            covered = all(start + n in units for n in range(count))
            fields = {"src_ioas_id": ioas, "dst_ioas_id": ioas, "length": count * UNIT, "flags": 7}
            ret = rig.ret("IOAS_COPY", src_iova=BASE + start * UNIT, dst_iova=BASE + to * UNIT, **fields)
            assert (ret == 0) == (covered and not overlaps(areas, to, count))
            if ret == 0:
                done = 0
                while done < count:
                    at = max(at for at in areas if at <= start + done and at not in range(to, to + count))
                    length = min(at + areas[at][0], start + count) - start - done
                    areas[to + done] = (length, units[start + done])
                    done += length
        elif step[0] == "attach" and not idevs[step[1]].attached:
            assert idevs[step[1]].attach(hwpts[step[1]])[0] == 0
        elif step[0] == "detach" and idevs[step[1]].attached:
            idevs[step[1]].detach()
        elif step[0] == "budget":
            rig.mock.page_budget = step[1]
            before = dict(rig.obj(ioas).iopt.areas)
            extra = rig.map(ioas, BASE + 2 * SPACE * UNIT, length=3 * 4096)
            rig.mock.page_budget = None
            assert extra == -12 and dict(rig.obj(ioas).iopt.areas) == before
        check(rig, areas, hwpts)
    rig.finish()


def check(rig, areas, hwpts):
    units = {at + n: va + n * UNIT for at, (length, va) in areas.items() for n in range(length)}
    expected = {BASE + at * UNIT: rig.mm.phys(va) for at, va in units.items()}
    for hwpt in hwpts:
        assert {at: entry[0] for at, entry in rig.obj(hwpt).domain.table.items()} == expected
    assert rig.mm.pins.keys() == {rig.mm.phys(va) >> 12 for va in units.values()}
    assert rig.obj(hwpts[0]).ioas.iopt.iova_alignment == UNIT
