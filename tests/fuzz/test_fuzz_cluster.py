# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a cluster of several worker processes on loopback, one of which is killed in the middle."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fuzz.program import Bench
from fuzz.store import Store
from fuzz.worker import Found, Job
from pviommu.cli import app

ROOT = Path(__file__).parents[2]
BENCHES = tuple(
    Bench("vtd", "v7-fixed", guest, 4, 6, defects=defect) for guest in ("pv", "pvh") for defect in ("A5", "D3")
)
SHARDS, OPS = 5, 400


def dask(kind, *args):
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path):
    """(address of a scheduler, its worker processes)."""
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    where = tmp_path / "scheduler.json"
    processes = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(where))]
    try:
        for _ in range(600):
            if where.exists() and where.read_text().strip():
                break
            time.sleep(0.1)
        workers = [dask("worker", "--scheduler-file", str(where), "--no-nanny", "--nthreads", "1") for _ in range(3)]
        processes += workers
        yield json.loads(where.read_text())["address"], workers
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_killed_worker_costs_no_finding(cluster, tmp_path):
    from fuzz.cluster import ClusterCampaign, run_shard

    address, workers = cluster
    killed = []

    def watch(progress):
        if not killed:  # the first shard is done, others are under way on every worker
            workers[1].send_signal(signal.SIGKILL)
            workers[1].wait()
            killed.append(progress.ops)

    kind = type("Small", (ClusterCampaign,), {"scheduler": address, "shard_ops": OPS})
    store = Store(tmp_path / "campaign")
    job = Job("swarm", BENCHES, 7, 300.0, SHARDS * OPS, tmp_path / "campaign")
    try:
        store.begin()
        progress = kind(store, job, 0, False, watch).run()
        filed = store.known()
    finally:
        store.close()
    assert killed and killed[0] < progress.ops
    assert progress.killed == 1 and progress.lost == 0
    expected = set()
    for seed in range(7, 7 + SHARDS):
        for message in run_shard(Job("swarm", BENCHES, seed, float("inf"), OPS, tmp_path)):
            if isinstance(message, Found):
                expected.add(message.finding.key)
    assert expected, "there has to be something to lose"
    assert set(filed) == expected
    assert all((Path(path) / "program.txt").exists() for path in filed.values())


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")
    from fuzz import cluster

    monkeypatch.setattr(cluster, "CONNECT", 1)
    options = ["--scheduler", "tcp://127.0.0.1:1", "--time", "1", "--corpus", str(tmp_path / "campaign")]
    done = CliRunner().invoke(app, ["fuzz", *options])
    assert done.exit_code == 2
    assert "tcp://127.0.0.1:1" in done.output


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "fuzz.cluster", raising=False)
    options = ["--scheduler", "tcp://127.0.0.1:1", "--time", "1", "--corpus", str(tmp_path / "campaign")]
    done = CliRunner().invoke(app, ["fuzz", *options])
    assert done.exit_code == 2
    assert "pip install -e '.[cluster]'" in done.output
