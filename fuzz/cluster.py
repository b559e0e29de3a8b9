# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign on a dask.distributed cluster: the coordinator files, workers on any machine fuzz.

The work comes in shards: a seed and a number of operations.  A shard is a pure function of those, so when a worker is
killed the scheduler gives its shards to another one, and what it had found is found again: nothing is lost, and nothing
has to be kept on the workers' disks.  Needs the optional extra ``cluster``, on every machine the same version of this.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, Final

from distributed import Client, KilledWorker, as_completed

from fuzz.campaign import Campaign, Progress
from fuzz.worker import Found, Job, Report, messages

SHARD_OPS: Final = 20_000
"""Operations of a shard."""
AHEAD: Final = 2
"""Shards for each thread of the cluster that are in flight."""
CONNECT: Final = 20
"""Seconds until a scheduler that does not answer is given up."""


def run_shard(job: Job) -> list[Found | Report]:
    """What a worker does with a shard: everything that it has to say, at once."""
    with tempfile.TemporaryDirectory(prefix="pviommu-shard-") as scratch:
        (Path(scratch) / "pending").mkdir()
        return list(messages(replace(job, directory=Path(scratch))))


class ClusterCampaign(Campaign):
    """A campaign whose workers are a cluster's."""

    scheduler = ""
    """Address, as tcp://host:8786."""
    shard_ops = SHARD_OPS

    def run(self) -> Progress:
        """``OSError`` if there is no scheduler."""
        self._leftovers()
        with Client(self.scheduler, timeout=CONNECT, set_as_default=False) as client:
            seen: set[str] = set()
            done = as_completed([], loop=client.loop)
            shards = self._shards()
            try:
                self._feed(client, done, shards)
                for future in done:
                    try:
                        for message in future.result():
                            self._hear(self._seeds, message)
                        self._seeds += 1
                    except KilledWorker:
                        self.progress.lost += 1  # it took one worker after the other with it
                    workers = set(client.scheduler_info(n_workers=-1)["workers"])
                    self.progress.killed += len(seen - workers)
                    seen = workers
                    self._tell()
                    if self._done():
                        break
                    self._feed(client, done, shards)
            finally:
                client.cancel(list(done.futures))
                self._checkpoint()
        return self.progress

    def _shards(self) -> Iterator[Job]:
        """Shard after shard, until time or operations are used up."""
        left = self._job.max_ops
        end = self._start + self._job.seconds
        seed = self._job.seed
        while monotonic() < end and (left is None or left > 0):
            ops = self.shard_ops if left is None else min(self.shard_ops, left)
            yield replace(self._job, seed=seed, seconds=inf, max_ops=ops, memory=0)
            seed, left = seed + 1, None if left is None else left - ops

    def _feed(self, client: Client, done: Any, shards: Iterator[Job]) -> None:
        """Keep every thread of the cluster busy."""
        threads = sum(client.ncores().values()) or 1
        while done.count() < AHEAD * threads:
            job = next(shards, None)
            if job is None:
                return
            done.add(client.submit(run_shard, job, pure=False, retries=2))
