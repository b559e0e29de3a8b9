# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets end to end on every backend and profile, over the in-process peer and over the real kernel."""

import pytest

from machine.network.choice import open_wire
from machine.network.namespace import why_not
from machine.network.peer import LoopWire, PeerWire
from testbed.build import NIC
from testbed.config import Config
from testbed.packets import ping_sizes, run

EVERYWHERE = [
    pytest.param(Config(backend=backend, profile=profile, guest=guest), id=f"{backend}-{profile}-{guest}")
    for backend in ("vtd", "smmuv3")
    for profile in ("v7-fixed", "v3-fixed")
    for guest in ("pv", "pvh")
]


@pytest.mark.parametrize("config", EVERYWHERE)
def test_every_ping_returns_and_nothing_leaks(config):
    report = run(config, PeerWire(), ping_sizes(12, config.seed))
    assert report.failures == []
    assert report.packets_returned == report.packets_sent == 12
    assert {kind: count for kind, count in report.leaks.items() if count} == {}
    assert report.ok


@pytest.mark.parametrize("config", EVERYWHERE)
def test_forbidden_accesses_fault_and_the_hypervisor_reads_the_record(config):
    report = run(config, PeerWire(), [56])
    assert len(report.blocked) == 3
    for blocked in report.blocked:
        assert blocked.walk.maddr is None
        assert blocked.walk.blocked
        assert blocked.reported is not None
        assert blocked.reported.record == blocked.fault.record
        assert blocked.reported.sid == blocked.device & 0xFFFF


@pytest.mark.parametrize("backend", ["vtd", "smmuv3"])
def test_packets_cross_the_real_network_stack(backend):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    wire = open_wire("namespace")
    try:
        report = run(Config(backend=backend), wire, [56, 8972, 1472])
    finally:
        wire.close()
    assert report.failures == []
    assert report.packets_returned == 3


@pytest.mark.parametrize("config", EVERYWHERE)
def test_a_stream_comes_back_whole_and_leaves_nothing(config):
    report = run(config, PeerWire(), [56], stream_packets=150)
    assert report.ok, (report.failures, report.leaks)
    assert report.stream.sent == report.stream.returned == 150
    assert report.stream.bytes_compared == 150 * 1472
    assert 0 < report.stream.wire_seconds < report.stream.seconds
    assert report.stream.packets_per_cpu_second > 0


def test_a_stream_crosses_the_real_network_stack():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    wire = open_wire("namespace")
    try:
        report = run(Config(), wire, [56], stream_packets=300)
    finally:
        wire.close()
    assert report.ok and report.stream.returned == 300


def test_a_stream_whose_replies_are_lost_is_a_failure_not_a_hang(monkeypatch):
    monkeypatch.setattr("testbed.pump.REPLY_TIMEOUT", 0.05)
    wire = PeerWire()
    answer, dropped = wire.send, []

    def lossy(frame):
        (dropped.append if len(frame) > 1000 and frame[-1] & 1 else answer)(frame)

    monkeypatch.setattr(wire, "send", lossy)
    report = run(Config(), wire, [56], stream_packets=100)
    assert dropped and report.stream.returned < 100
    assert any("unanswered" in failure for failure in report.failures)


def test_frames_of_a_capture_come_back_as_they_were_sent():
    frames = [bytes([number]) * (14 + 37 * number) for number in range(1, 60)]
    report = run(Config(), LoopWire(), [], frames)
    assert report.failures == []
    assert report.packets_returned == len(frames)
    assert report.bytes_compared == sum(map(len, frames))


def test_a_silent_wire_is_a_failure_not_a_hang(monkeypatch):
    monkeypatch.setattr("testbed.pump.REPLY_TIMEOUT", 0.05)
    wire = PeerWire()
    monkeypatch.setattr(wire, "receive", lambda: None)
    monkeypatch.setattr(wire, "wait", lambda timeout: False)
    report = run(Config(), wire, [56, 56])
    assert not report.ok
    assert report.packets_returned == 0
    assert "no reply" in report.failures[0]


def test_a_corrupted_reply_is_found_at_its_byte(monkeypatch):
    wire = PeerWire()
    receive = wire.receive

    def flip():
        frame = receive()
        if frame is not None and len(frame) > 200:
            frame = frame[:150] + bytes([frame[150] ^ 1]) + frame[151:]
        return frame

    monkeypatch.setattr(wire, "receive", flip)
    monkeypatch.setattr("testbed.pump.REPLY_TIMEOUT", 0.05)
    report = run(Config(), wire, [300])
    assert not report.ok


def test_equal_seeds_give_equal_sizes_with_both_ends_first():
    assert ping_sizes(50, 7) == ping_sizes(50, 7)
    assert ping_sizes(3, 0)[:2] == [56, 8972]
    assert len(ping_sizes(1, 0)) == 1


def test_two_runs_of_one_configuration_issue_the_same_hypercalls():
    calls = []
    for _ in range(2):
        seen = []
        run(Config(seed=3), PeerWire(), [56, 4000], watch=lambda testbed, seen=seen: seen.append)
        calls.append([(call.name, call.before, call.after, call.result) for call in seen])
    assert calls[0] == calls[1]
    assert len(calls[0]) > 50


def test_the_nic_is_the_device_behind_the_root_port():
    assert NIC == 0x100
