# SPDX-License-Identifier: GPL-2.0-or-later
"""Real packets across the PV-IOMMU: what ``pviommu run`` does for one backend.

Boot the guest, bring the network card up in its own DMA domain, exchange packets with the real network stack behind
a wire, compare every byte, show that what is not mapped cannot be reached, shut everything down, and look for leaks.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from abi.errno import errno_name
from guest_driver.net.skb import build_skb
from guest_driver.net.stack import NetStack
from guest_driver.nic import Nic as NicDriver
from guest_driver.nic import nic_probe
from machine.network.wire import MTU, PEER_IP, STATION_IP, Wire
from testbed.build import NIC, TestBed, build
from testbed.config import Config
from testbed.demonstrations import BigCopy, Blocked, big_copy, late_dma, rogue_device, take_superpages
from testbed.guest import Guest, HypercallCall
from testbed.pump import NoReply, Pump
from testbed.stream import RING_LOG2, StreamReport, TimedWire, stream

SMALLEST_PING: Final = 56
LARGEST_PING: Final = MTU - 28
"""An IP packet of the MTU: 20 bytes of IP and 8 of ICMP header around it."""
RX_BUFFER: Final = 2048


class RunError(Exception):
    """The run cannot go on; one line for people."""


@dataclass(slots=True)
class Report:
    """What happened on one backend.  ``failures`` is empty when everything was as it must be."""

    backend: str
    profile: str
    guest: str
    wire: str
    kernel_log: list[str] = field(default_factory=list)
    interrupts: str = ""
    packets_sent: int = 0
    packets_returned: int = 0
    bytes_compared: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stream: StreamReport | None = None
    """The streaming phase, ``None`` if there was none."""
    hypercalls: dict[str, dict[str, int]] = field(default_factory=dict)
    pages_mapped: int = 0
    pages_unmapped: int = 0
    folds: int = 0
    splits: int = 0
    iotlb_hits: int = 0
    iotlb_misses: int = 0
    invalidations: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    blocked: list[Blocked] = field(default_factory=list)
    copy: BigCopy | None = None
    leaks: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and not any(self.leaks.values())

    @property
    def packets_per_second(self) -> float:
        return self.packets_returned / self.seconds if self.seconds else 0.0


def ping_sizes(count: int, seed: int) -> list[int]:
    """``count`` payload sizes from 56 to 8972 bytes: the two ends first, then what ``seed`` gives."""
    rng = random.Random(seed)
    return [SMALLEST_PING, LARGEST_PING, *(rng.randint(SMALLEST_PING, LARGEST_PING) for _ in range(count))][:count]


def run(
    config: Config,
    wire: Wire,
    sizes: Sequence[int],
    frames: Sequence[bytes] | None = None,
    *,
    stream_packets: int = 0,
    watch: Callable[[TestBed], Callable[[HypercallCall], None]] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """One run on a fresh test bed.  With ``frames`` these are sent, and must come back over an echoing ``wire``;
    else an echo request of each of ``sizes`` payload bytes is.  ``stream_packets`` of one size follow as fast as they
    go, over a wire that answers.  ``watch(testbed)`` gives a hypercall watcher."""
    testbed = build(config)
    report = Report(config.backend, config.profile, config.guest or testbed.backend.default_guest, wire.description)
    references = testbed.xen.frames.refs[min(testbed.mfns) : max(testbed.mfns) + 1]
    guest = Guest(testbed, watch(testbed) if watch is not None else None)
    if guest.kernel.xen is None:
        raise RunError(f"the xen-iommu driver declined this hypervisor ({errno_name(guest.kernel.xen_errno)})")
    idle = guest.kernel.leaks()
    superpages = take_superpages(testbed, guest, 2)
    nic = bring_up(testbed, guest, wire)
    report.interrupts = "message interrupts" if nic.irq is not None else "polling"

    started, started_cpu = time.perf_counter(), time.process_time()
    if frames is None:
        _ping(testbed, nic, wire, sizes, report, progress)
    else:
        _echo(testbed, nic, wire, frames, report, progress)
    report.seconds = time.perf_counter() - started
    report.cpu_seconds = time.process_time() - started_cpu
    if stream_packets:
        nic.remove()
        timed = TimedWire(wire)
        nic = bring_up(testbed, guest, timed, ring_log2=RING_LOG2, recycle=True)
        before = report.packets_sent
        report.stream = stream(
            testbed,
            nic,
            timed,
            stream_packets,
            report.failures,
            None if progress is None else lambda done: progress(before + done),
        )

    report.blocked.append(rogue_device(testbed, guest))
    report.blocked.append(late_dma(testbed, guest))
    report.copy, hole = big_copy(testbed, guest, *superpages)
    report.blocked.append(hole)
    _take_counts(testbed, guest, report)

    for pfn in superpages:
        guest.kernel.kernel.pages.free_pages(pfn, 9)
    nic.remove()
    left = guest.kernel.leaks()
    report.leaks = {f"guest {kind}": left[kind] - idle[kind] for kind in left}
    guest.kernel.shutdown()
    if guest.kernel.warnings:
        report.failures.append(f"the guest kernel logged {guest.kernel.warnings} warnings")
    report.kernel_log = list(guest.kernel.log)
    report.leaks |= hypervisor_leaks(testbed, references)
    return report


def bring_up(testbed: TestBed, guest: Guest, wire: Wire, *, ring_log2: int = 6, recycle: bool = False) -> NicDriver:
    """Plug ``wire`` into the network card and open it in the guest; the options are those of ``nic_probe``."""
    testbed.nic.wire = wire
    kernel = guest.kernel
    nic = nic_probe(kernel.kernel, kernel.devices[NIC], rx_buffer=RX_BUFFER, ring_log2=ring_log2, recycle=recycle)
    if isinstance(nic, int):
        raise RunError(f"the network card's driver did not bind ({errno_name(nic)})")
    error = nic.ndo_open()
    if error:
        raise RunError(f"the network card could not be opened ({errno_name(error)})")
    return nic


def hypervisor_leaks(testbed: TestBed, references: Iterable[int]) -> dict[str, int]:
    """What Xen still holds for dom0 beyond what it held before the guest booted (``references``)."""
    iommu = testbed.dom0.iommu
    assert iommu is not None
    first = min(testbed.mfns)
    now = testbed.xen.frames.refs[first : max(testbed.mfns) + 1]
    return {
        "contexts": len(iommu.contexts),
        "table pages": iommu.arena.used if iommu.arena is not None else 0,
        "page references": sum(before != after for before, after in zip(references, now)),
        "devices outside context 0": sum(
            device.context is not iommu.default for device in testbed.dom0.devices.values()
        ),
    }


def _ping(
    testbed: TestBed,
    nic: NicDriver,
    wire: Wire,
    sizes: Sequence[int],
    report: Report,
    progress: Callable[[int], None] | None,
) -> None:
    stack = NetStack(nic, STATION_IP, mtu=MTU)
    pump = Pump(testbed.nic, wire)
    for sequence, size in enumerate(sizes, 1):
        report.packets_sent += 1
        pump.restart()
        try:
            result = stack.ping(PEER_IP, size, 0x5056, sequence & 0xFFFF, polls=1 << 30, relax=pump)
            error = result.error
        except NoReply as missing:
            error = str(missing)
        if not error:
            report.packets_returned += 1
            report.bytes_compared += size
        else:
            report.failures.append(f"ping {sequence} of {size} bytes: {error}")
            if len(report.failures) >= 10:
                report.failures.append("giving up after ten failures")
                break
        if progress is not None:
            progress(sequence)
    stack.close()


def _echo(
    testbed: TestBed,
    nic: NicDriver,
    wire: Wire,
    frames: Sequence[bytes],
    report: Report,
    progress: Callable[[int], None] | None,
) -> None:
    received: list[bytes] = []
    nic.rx_handler = received.append
    pump = Pump(testbed.nic, wire)
    for number, frame in enumerate(frames, 1):
        report.packets_sent += 1
        received.clear()
        skb = build_skb(nic.kernel, frame, 0, 512)
        error = -12 if skb is None else nic.ndo_start_xmit(skb)
        if error:
            report.failures.append(f"frame {number} could not be sent ({errno_name(error)})")
            if skb is not None:
                skb.free()
            continue
        pump.restart()
        try:
            while frame not in received:
                pump()
                nic.poll()
        except NoReply:
            came = f"{len(received)} other frames came" if received else "nothing came"
            report.failures.append(f"frame {number} of {len(frame)} bytes did not come back; {came}")
            continue
        report.packets_returned += 1
        report.bytes_compared += len(frame)
        if progress is not None:
            progress(number)
    nic.rx_handler = None


def _take_counts(testbed: TestBed, guest: Guest, report: Report) -> None:
    for (name, result), count in sorted(guest.hypercalls.counts.items()):
        report.hypercalls.setdefault(name, {})[errno_name(result)] = count
    report.pages_mapped = guest.hypercalls.pages["map_pages"]
    report.pages_unmapped = guest.hypercalls.pages["unmap_pages"]
    report.folds, report.splits = testbed.xen.superpages()
    for unit in testbed.units:
        counters = unit.counters
        report.iotlb_hits += counters.iotlb_hits
        report.iotlb_misses += counters.iotlb_misses
        for name, count in counters.commands.items():
            if count:
                report.invalidations[name] = report.invalidations.get(name, 0) + count
        report.faults += counters.faults
