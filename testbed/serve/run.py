# SPDX-License-Identifier: GPL-2.0-or-later
"""A program on a described machine, from its start to what is left when it has ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from guest_driver.iommufd.context import IommufdCtx, iommufd_open
from guest_driver.iommufd.selftest import Selftest, offer
from guest_driver.iommufd.vfio_device import VfioDevice
from guest_driver.linux.device import Device
from machine.devices.copier import Copier
from testbed.iommufd_machine import Machine
from testbed.serve.description import Description
from testbed.serve.memory import SharedPages
from testbed.serve.seccomp import start
from testbed.serve.server import Opener, Server

IOMMU_PATHS: Final = ("/dev/iommu", "/dev/vfio/vfio")
DEVICE_PATH: Final = "/dev/vfio/devices/vfio{}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the program's exit status (128 + signal), calls served, and what the kernel complains of."""

    status: int
    calls: int
    warnings: tuple[str, ...]
    left: tuple[str, ...]
    """What should be gone and is not: pinned pages, domains, owners of groups."""


def serve(
    description: Description,
    argv: Sequence[str],
    test_commands: bool = False,
    note: Callable[[str], None] | None = None,
) -> Outcome:
    """Run ``argv`` until it and its children have ended.

    ``ValueError``: a machine that cannot be; :class:`~testbed.serve.seccomp.Unsupported`: no user notification here.
    """
    machine = description.build()
    domains = len(machine.kernel.iommu.domains)
    shared = SharedPages(machine.kernel)

    def lend(paddr: int, data: bytes | None, length: int) -> bytes | None:
        return shared.access(paddr, data, length) if paddr >> 12 in shared.by_pfn else None

    machine.bus.lender = lend
    pid, listener = start(argv)
    server = Server(listener, shared, _paths(machine, description, test_commands), note)

    def pass_on(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program gets it too, and decides
    try:
        server.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    printk = machine.kernel.printk
    return Outcome(
        128 - code if code < 0 else code,
        server.calls,
        tuple(line for line in printk.lines if line.startswith("WARNING")),
        tuple(_left(machine, shared, domains)),
    )


def _paths(machine: Machine, description: Description, test_commands: bool) -> dict[str, Opener]:
    selftest = Selftest(machine.kernel) if test_commands else None

    def open_iommu() -> IommufdCtx | int:
        ctx = iommufd_open(machine.kernel, description.release)
        if selftest is not None and isinstance(ctx, IommufdCtx):
            offer(ctx, selftest)
        return ctx

    paths: dict[str, Opener] = dict.fromkeys(IOMMU_PATHS, open_iommu)
    for number, dev in enumerate(machine.devices):
        engine = Copier(machine.fabric.port(dev.pci.sbdf))
        paths[DEVICE_PATH.format(number)] = partial(_open_device, dev, engine)
    return paths


def _open_device(dev: Device, engine: Copier) -> VfioDevice:
    return VfioDevice(dev, engine)


def _left(machine: Machine, shared: SharedPages, domains: int) -> list[str]:
    left = []
    if shared.by_pfn:
        left.append(f"{len(shared.by_pfn)} pinned pages")
    if len(machine.kernel.iommu.domains) > domains:
        left.append(f"{len(machine.kernel.iommu.domains) - domains} domains")
    left += [f"group {group.id} is owned" for group in machine.kernel.iommu.groups if group.owner is not None]
    return left
