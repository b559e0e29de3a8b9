# SPDX-License-Identifier: GPL-2.0-or-later
"""Profile v3 answers as the recorded Xen did, call by call; others do not, and the difference is named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pviommu.cli import app
from testbed.golden.records import RecordError
from testbed.golden.replay import replay

RECORDS = Path(__file__).parent / "xen-v3"
QUICK = sorted(path for path in RECORDS.glob("*.jsonl") if not path.name.startswith("onegig"))


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_v3_answers_as_the_recorded_hypervisor(path):
    result = replay(path, "v3")
    assert [str(difference) for difference in result.differences] == []
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert (result.calls, result.states) == (kinds.count("call"), kinds.count("state"))


@pytest.mark.parametrize("path", [path for path in QUICK if "unmap_ctx0" not in path.name], ids=lambda path: path.stem)
def test_v3_without_its_faults_answers_otherwise(path):
    assert len(replay(path, "v3-fixed").differences) == 1


def altered(tmp_path, name, change):
    lines = [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text().splitlines()]
    change(lines)
    path = tmp_path / "altered.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return replay(path, "v3").differences


def first(lines, **wanted):
    return next(line for line in lines if all(line.get(key) == value for key, value in wanted.items()))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda lines: first(lines, op="map").update(ret=-12), "map: return value"),
        (lambda lines: first(lines, op="map")["out"].update(mapped=255), "map: mapped"),
        (lambda lines: first(lines, op="map").update(arena=5), "map: arena pages in use"),
        (lambda lines: first(lines, op="map").update(iq=["IOTLB g2 did0x0"]), "map: invalidation descriptors"),
        (lambda lines: first(lines, kind="state")["ctx"]["1"]["tables"].pop(), "state: context 1: tables"),
        (lambda lines: first(lines, kind="state")["ctx"]["1"].update(dying=1), "state: context 1: dying"),
        (lambda lines: first(lines, kind="state")["ctx"]["1"]["leaves"][0].update(attrs="0x81"), "context 1: leaves"),
        (lambda lines: first(lines, kind="state")["extra_refs"].clear(), "state: references of F0"),
        (lambda lines: first(lines, op="free").update(hang="no answer"), "free: outcome"),
        (lambda lines: lines[0].update(ctx_count=254), "line 1: boot: contexts that may exist"),
        (lambda lines: lines[0].update(arena_used=1), "line 1: boot: arena pages in use"),
    ],
)
def test_a_record_that_says_otherwise_is_noticed(tmp_path, change, what):
    (difference,) = altered(tmp_path, "arena3-free-release", change)
    assert what in str(difference)


@pytest.mark.parametrize(
    "answer", [{"ret": -12, "err": "ENOENT"}, {"ret": 0, "err": "ENOMEM"}, {"ret": -12, "err": 12}]
)
def test_a_record_that_contradicts_itself_is_refused(tmp_path, answer):
    with pytest.raises(RecordError, match=r"altered\.jsonl:\d+: .*err"):
        altered(tmp_path, "arena3-free-release", lambda lines: first(lines, op="map").update(answer))


@pytest.mark.parametrize("text", ["", "{}", "no record", '{"kind": "boot"}', "[1]"])
def test_a_file_that_is_no_record_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "file.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"file\.jsonl:1"):
        replay(path, "v3")


def test_a_translated_dom0_with_a_shared_default_context(tmp_path):
    lines = (RECORDS / "destr-did-release.jsonl").read_text().splitlines()
    boot = json.loads(lines[0])
    boot["xen_cmdline"] = boot["xen_cmdline"].replace("dom0=pv", "dom0=pvh")
    asked = {"ctx": 0, "flags": 3, "gfn": "F0", "dfn": "0x70000", "nr": 2, "mapped": 9}
    looked = {"ctx": 0, "flags": 0, "gfn": "0x5", "dfn": "0x70000"}
    path = tmp_path / "pvh.jsonl"
    records = [
        boot,
        {"kind": "call", "op": "map", "in": asked, "ret": 0, "out": asked | {"mapped": 2}, "arena": 0},
        {"kind": "call", "op": "lookup", "in": looked, "ret": -2, "out": looked, "arena": 0},
        {"kind": "state", "extra_refs": [{"first": "F0", "n": 2, "delta": 1}]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    assert [str(difference) for difference in replay(path, "v3").differences] == []


@pytest.mark.parametrize("name", ["destr-exhaust-release", "destr-freeunknown-release"])
def test_a_debug_build_stops_when_the_call_returns_with_a_lock(tmp_path, name):
    lines = [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text().splitlines()]
    lines[0]["xen_build"] = "debug=y"
    failing = next(line for line in lines if line.get("ret", 0) < 0)
    path = tmp_path / "debug.jsonl"
    del failing["ret"], failing["out"]
    failing["hang"] = "no answer"
    path.write_text("\n".join(map(json.dumps, lines[: lines.index(failing) + 1])))
    result = replay(path, "v3")
    assert not result.differences
    assert "XenBug" in result.stopped


def test_lines_of_another_kind_are_named_and_a_second_boot_is_refused(tmp_path):
    text = (RECORDS / "destr-did-release.jsonl").read_text()
    file = tmp_path / "more.jsonl"
    file.write_text(text + '{"kind": "weather"}\n')
    done = CliRunner().invoke(app, ["golden", str(file)])
    assert done.exit_code == 0
    assert "passed over: lines of kind weather" in done.output
    file.write_text(text + text)
    done = CliRunner().invoke(app, ["golden", str(file)])
    assert done.exit_code == 2
    assert "a second boot record" in done.output
