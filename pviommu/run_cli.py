# SPDX-License-Identifier: GPL-2.0-or-later
"""``pviommu run``: real packets across the PV-IOMMU."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple, TextIO

import typer

from machine.network.capture import CaptureError
from machine.network.choice import PREFERENCES, open_wire
from machine.network.pcap import PcapWriter, read_capture
from machine.network.recorded import RecordedWire
from machine.network.wire import MAX_FRAME, MIN_FRAME, Wire, WireError
from pviommu.options import (
    Backends,
    Defects,
    Dom0Iommu,
    Guest,
    Json,
    Profile,
    Seed,
    UsageError,
    backend_list,
    make_config,
)
from testbed.config import Config
from testbed.demonstrations import DemonstrationError
from testbed.packets import Report, RunError, ping_sizes
from testbed.packets import run as run_packets
from testbed.trace import TraceWriter

DEFAULT_COUNT = 200
DEFAULT_STREAM = 5000


class Outputs(NamedTuple):
    """Where a run of one backend writes, opened before the first of them starts."""

    trace: TextIO | None
    capture: PcapWriter | None


def run(
    backend: Backends = "both",
    profile: Profile = "v7-fixed",
    guest: Guest = None,
    count: Annotated[
        int | None, typer.Option(min=1, help=f"Echo requests per backend.  [default: {DEFAULT_COUNT}]")
    ] = None,
    stream: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Echo requests of 1,500 bytes that follow as fast as they go; 0 leaves them out.  "
            f"[default: {DEFAULT_STREAM}, 0 with --trace]",
        ),
    ] = None,
    seed: Seed = 0,
    defect: Defects = "",
    dom0_iommu: Dom0Iommu = "",
    wire: Annotated[
        str, typer.Option(help=f"What the network card is plugged into: {', '.join(PREFERENCES)}.")
    ] = "auto",
    pcap: Annotated[Path | None, typer.Option(help="Send the frames of this capture instead of pings.")] = None,
    pcap_out: Annotated[
        Path | None,
        typer.Option(help="Write what crossed the wire to this file; with several backends X.pcap is X.vtd.pcap etc."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write every hypercall to this file, as a program; with several backends as above."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send packets of the real network stack through a NIC behind the PV-IOMMU, and compare every byte.

    First one at a time, in pieces scattered over the guest's pages; then a stream as fast as it goes.
    Then show what the IOMMU is for: DMA by a rogue device, and DMA to buffers already unmapped, must fault.
    Exit status 1 if a packet, a byte, a fault or a reference is not as it must be.
    """
    names = backend_list(backend)
    configs = [make_config(name, profile, guest, seed, defect, dom0_iommu) for name in names]
    if wire not in PREFERENCES:
        raise UsageError(f"unknown wire {wire!r}; there are: {', '.join(PREFERENCES)}")
    if pcap is not None and (count is not None or stream):
        raise UsageError("--count counts pings, --stream too; with --pcap the frames of the capture are sent")
    if stream is None:
        stream = 0 if pcap is not None or trace is not None else DEFAULT_STREAM
    frames, skipped = _read_frames(pcap) if pcap is not None else (None, 0)
    with ExitStack() as stack:
        written: list[Path] = []
        outputs = [
            Outputs(
                _open_trace(stack, _path_for(trace, config, names, pcap), written),
                _open_capture(stack, _path_for(pcap_out, config, names, pcap), written),
            )
            for config in configs
        ]
        reports = [
            _run_one(config, wire, count or DEFAULT_COUNT, stream, frames, output, as_json)
            for config, output in zip(configs, outputs)
        ]
    ok = all(report.ok for report in reports)
    if as_json:
        from pviommu.report_json import report_as_dict

        result = {
            "ok": ok,
            "skipped_frames": skipped,
            "written": [str(path) for path in written],
            "backends": [report_as_dict(report) for report in reports],
        }
        print(json.dumps(result, indent=2))
    else:
        from pviommu.report_view import print_reports

        print_reports(reports, skipped, written)
    raise typer.Exit(0 if ok else 1)


def _run_one(
    config: Config, prefer: str, count: int, streamed: int, frames: list[bytes] | None, output: Outputs, quiet: bool
) -> Report:
    with ExitStack() as stack:
        try:
            wire: Wire = open_wire(prefer, echo=frames is not None)
        except WireError as error:
            raise UsageError(str(error)) from None
        stack.callback(wire.close)
        if output.capture is not None:
            wire = RecordedWire(wire, output.capture)
        stream = output.trace
        sizes = ping_sizes(count, config.seed)
        total = len(sizes) if frames is None else len(frames)
        progress = None
        if not quiet and sys.stderr is not None and sys.stderr.isatty():
            from pviommu.report_view import progress_bar

            progress = stack.enter_context(progress_bar(config.backend, total + streamed))
        try:
            return run_packets(
                config,
                wire,
                sizes,
                frames,
                stream_packets=streamed,
                watch=(lambda testbed: TraceWriter(stream, testbed)) if stream is not None else None,
                progress=progress,
            )
        except CaptureError as error:
            raise UsageError(str(error)) from None
        except (DemonstrationError, RunError) as error:
            report = Report(config.backend, config.profile, config.guest or "", wire.description)
            report.failures.append(str(error))
            return report


def _read_frames(path: Path) -> tuple[list[bytes], int]:
    """The sendable frames of a capture, and how many were cut short or have an impossible length."""
    try:
        captured = list(read_capture(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except CaptureError as error:
        raise UsageError(str(error)) from None
    frames = [frame.data for frame in captured if frame.complete and MIN_FRAME <= len(frame.data) <= MAX_FRAME]
    if not frames:
        raise UsageError(
            f"{path}: no frame in it can be sent ({len(captured)} read, of 14 to {MAX_FRAME} bytes whole: none)"
        )
    return frames, len(captured) - len(frames)


def _path_for(path: Path | None, config: Config, names: list[str], source: Path | None) -> Path | None:
    """The file of one backend: ``path`` itself, or X.vtd.pcap for X.pcap when there are several backends."""
    if path is None:
        return None
    if path.is_dir() or not path.name:
        raise UsageError(f"cannot write {path}: it is a folder; name a file in it")
    chosen = path if len(names) == 1 else path.with_name(f"{path.stem}.{config.backend}{path.suffix}")
    if source is not None and chosen.exists() and chosen.samefile(source):
        raise UsageError(f"cannot write {chosen}: it is the capture to be sent")
    return chosen


def _open_trace(stack: ExitStack, path: Path | None, written: list[Path]) -> TextIO | None:
    if path is None:
        return None
    try:
        stream = stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    written.append(path)
    return stream


def _open_capture(stack: ExitStack, path: Path | None, written: list[Path]) -> PcapWriter | None:
    if path is None:
        return None
    try:
        writer = stack.enter_context(PcapWriter(path))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    except CaptureError as error:
        raise UsageError(f"cannot write: {error}") from None
    written.append(path)
    return writer
