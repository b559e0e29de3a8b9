# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu run``: real packets across the PV-IOMMU."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from machine.network.capture import CaptureError
from machine.network.choice import PREFERENCES, open_wire
from machine.network.pcap import PcapWriter, read_capture
from machine.network.recorded import RecordedWire
from machine.network.wire import MAX_FRAME, MIN_FRAME, Wire, WireError
from pviommu.options import Backends, Guest, Json, Profile, Seed, UsageError, backend_list, make_config
from testbed.config import Config
from testbed.demonstrations import DemonstrationError
from testbed.packets import Report, RunError, ping_sizes
from testbed.packets import run as run_packets
from testbed.trace import TraceWriter


def run(
    backend: Backends = "both",
    profile: Profile = "v7-fixed",
    guest: Guest = None,
    count: Annotated[int, typer.Option(min=1, help="Echo requests per backend.")] = 200,
    seed: Seed = 0,
    wire: Annotated[
        str, typer.Option(help=f"What the network card is plugged into: {', '.join(PREFERENCES)}.")
    ] = "auto",
    pcap: Annotated[Path | None, typer.Option(help="Send the frames of this capture instead of pings.")] = None,
    pcap_out: Annotated[Path | None, typer.Option(help="Write what crossed the wire to this file.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write every hypercall to this file, as a program.")] = None,
    as_json: Json = False,
) -> None:
    """Send packets of the real network stack through a NIC behind the PV-IOMMU, and compare every byte.

    Then show what the IOMMU is for: DMA by a rogue device, and DMA to buffers already unmapped, must fault.
    Exit status 1 if a packet, a byte, a fault or a reference is not as it must be.
    """
    names = backend_list(backend)
    configs = [make_config(name, profile, guest, seed) for name in names]
    if wire not in PREFERENCES:
        raise UsageError(f"unknown wire {wire!r}; there are: {', '.join(PREFERENCES)}")
    frames, skipped = _read_frames(pcap) if pcap is not None else (None, 0)
    reports = []
    for config in configs:
        report = _run_one(
            config, wire, count, frames, _path_for(pcap_out, config, names), _path_for(trace, config, names), as_json
        )
        reports.append(report)
    ok = all(report.ok for report in reports)
    if as_json:
        from pviommu.report_json import report_as_dict

        print(
            json.dumps(
                {"ok": ok, "skipped_frames": skipped, "backends": [report_as_dict(r) for r in reports]}, indent=2
            )
        )
    else:
        from pviommu.report_view import print_reports

        print_reports(reports, skipped)
    raise typer.Exit(0 if ok else 1)


def _run_one(
    config: Config,
    prefer: str,
    count: int,
    frames: list[bytes] | None,
    pcap_out: Path | None,
    trace: Path | None,
    quiet: bool,
) -> Report:
    with ExitStack() as stack:
        try:
            wire: Wire = open_wire(prefer, echo=frames is not None)
        except WireError as error:
            raise UsageError(str(error)) from None
        stack.callback(wire.close)
        try:
            if pcap_out is not None:
                wire = RecordedWire(wire, stack.enter_context(PcapWriter(pcap_out)))
            stream = stack.enter_context(trace.open("w", encoding="utf-8")) if trace is not None else None
        except (OSError, CaptureError) as error:
            raise UsageError(f"cannot write: {error}") from None
        sizes = ping_sizes(count, config.seed)
        total = len(sizes) if frames is None else len(frames)
        progress = None
        if not quiet and sys.stderr.isatty():
            from pviommu.report_view import progress_bar

            progress = stack.enter_context(progress_bar(config.backend, total))
        try:
            return run_packets(
                config,
                wire,
                sizes,
                frames,
                watch=(lambda testbed: TraceWriter(stream, testbed)) if stream is not None else None,
                progress=progress,
            )
        except (DemonstrationError, RunError) as error:
            report = Report(config.backend, config.profile, config.guest or "", wire.description)
            report.failures.append(str(error))
            return report


def _read_frames(path: Path) -> tuple[list[bytes], int]:
    """The sendable frames of a capture, and how many were cut short or have an impossible length."""
    try:
        captured = list(read_capture(path))
    except (OSError, CaptureError) as error:
        raise UsageError(str(error)) from None
    frames = [frame.data for frame in captured if frame.complete and MIN_FRAME <= len(frame.data) <= MAX_FRAME]
    if not frames:
        raise UsageError(
            f"{path}: no frame in it can be sent ({len(captured)} read, of 14 to {MAX_FRAME} bytes whole: none)"
        )
    return frames, len(captured) - len(frames)


def _path_for(path: Path | None, config: Config, names: list[str]) -> Path | None:
    """One file per backend when there are several: run.txt becomes run.vtd.txt."""
    if path is None or len(names) == 1:
        return path
    return path.with_name(f"{path.stem}.{config.backend}{path.suffix}")
