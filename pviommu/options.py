# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that several commands share, checked before anything is built."""

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from hypervisor import dom0_options
from hypervisor import profile as profiles
from hypervisor.defects import catalogue as defects
from testbed import backends
from testbed.config import GUESTS, SWITCHED_ON, Config


class UsageError(typer.BadParameter):
    """A wrong argument, in one line."""

    def format_message(self) -> str:
        return self.message


Backends = Annotated[str, typer.Option("--backend", help="Translation backend: vtd, smmuv3, or both.")]
Profile = Annotated[
    str, typer.Option(help="How the hypervisor answers: v7-fixed, v3, ...; an unknown name lists them.")
]
Defects = Annotated[
    str,
    typer.Option("--defect", help="Switch single defects of the hypervisor on, as T1,F6; see 'pviommu defects list'."),
]
Dom0Iommu = Annotated[
    str, typer.Option("--dom0-iommu", help="Xen's option of that name, as passthrough or strict=no,map-reserved.")
]
Guest = Annotated[str | None, typer.Option(help="Kind of dom0: pv or pvh; default is the backend's usual one.")]
Seed = Annotated[int, typer.Option(help="Decides memory layout and packet sizes; equal seeds give equal runs.")]
Tried = Annotated[int, typer.Option("--seed", help="Decides what is tried; equal seeds try the same.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def finite(seconds: float | None) -> float | None:
    """Callback of ``--time``: :class:`UsageError` for ``inf``, which no run ends by and JSON has no word for."""
    if seconds is not None and not math.isfinite(seconds):
        raise UsageError(f"--time takes a number of seconds, not {seconds}")
    return seconds


def check_writable(*paths: Path | None) -> None:
    """Before the work: :class:`UsageError` for a file that could not be written after it.  Nothing is left behind."""
    for path in paths:
        if path is None or path.is_fifo() or path.is_char_device():
            continue
        new = not os.path.lexists(path)
        try:
            path.open("a").close()
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
        if new:
            path.unlink()


def make_config(
    backend: str, profile: str, guest: str | None, seed: int, defect: str = "", dom0_iommu: str = ""
) -> Config:
    """A configuration out of checked names and words."""
    if profile not in (*profiles.names(), *profiles.experimental()):
        raise UsageError(f"unknown profile {profile!r}; there are: {', '.join(profiles.names())}")
    if guest is not None and guest not in GUESTS:
        raise UsageError(f"unknown guest kind {guest!r}; there are: {', '.join(GUESTS)}")
    try:
        kind = guest or backends.get(backend).default_guest
        dom0_options.parse(dom0_iommu, profiles.get(profile), pv=kind == "pv")
        chosen = defects.chosen(defect, profiles.get(profile), backend)
        return Config(backend=backend, profile=profile, guest=guest, seed=seed, defects=chosen, dom0_iommu=dom0_iommu)
    except ValueError as error:
        raise UsageError(str(error)) from None


def switch_on(defect: str, profile: str, *names: str) -> tuple[str, ...]:
    """Let every test bed that this command builds have the defects ``defect``, checked against a known profile and the
    backends."""
    try:
        for name in names:
            defects.chosen(defect, profiles.get(profile), name)
        ids = tuple(defects.get(part.strip()).id for part in defect.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(str(error)) from None
    SWITCHED_ON.set(ids)
    return ids


def backend_list(name: str) -> list[str]:
    """``both`` is our two; anything else is one registered backend."""
    if name == "both":
        return ["vtd", "smmuv3"]
    if name not in backends.names():
        raise UsageError(f"unknown backend {name!r}; there are: {', '.join(backends.names())}, both")
    return [name]
