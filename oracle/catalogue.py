# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracles there are: what each judges, what it needs, and how it is run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from oracle import cpu_oracle, golden, smmu_oracle, vtd_oracle, xen_boot, xen_tables
from oracle.campaign import Limits, ProgramOracle, replay, run
from oracle.outcome import Outcome
from oracle.process import ModelMissing, find_program
from oracle.program import Directed, Step

Progress = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One oracle."""

    name: str
    judges: str
    needs: Callable[[], str]
    """The program it runs; :class:`ModelMissing` if there is none."""
    run: Callable[[Limits, Progress], Outcome]
    replay: Callable[[Sequence[Step]], Outcome] | None = None
    directed: Callable[[], Sequence[Directed]] = tuple
    """Programs that every run starts with, as far as the installed model can run them."""

    def missing(self) -> str:
        """Why it cannot run here, in one line; empty if it can."""
        try:
            self.needs()
        except ModelMissing as missing:
            return str(missing)
        return ""


def _programs(oracle: ProgramOracle, judges: str, needs: Callable[[], str]) -> Entry:
    return Entry(
        oracle.name,
        judges,
        needs,
        lambda limits, progress: run(oracle, limits, progress),
        lambda program: replay(oracle, program),
        oracle.directed,
    )


def qemu_x86() -> str:
    """QEMU for x86."""
    return find_program(("qemu-system-x86_64",), "qemu-system-x86", "PVIOMMU_QEMU_X86_64")


def qemu_x86_and_xen() -> str:
    """QEMU for x86, with a Xen and a dom0 kernel to boot in it."""
    program = qemu_x86()
    xen_boot.images()
    return program


def qemu_arm() -> str:
    """QEMU for Arm."""
    return find_program(("qemu-system-aarch64",), "qemu-system-arm", "PVIOMMU_QEMU_AARCH64")


CATALOGUE: Final = {
    entry.name: entry
    for entry in (
        _programs(
            vtd_oracle.ORACLE,
            "VT-d: our driver and our unit against QEMU's intel-iommu",
            qemu_x86,
        ),
        _programs(
            smmu_oracle.ORACLE,
            "SMMUv3: our driver and our unit against QEMU's SMMUv3 (stage 2 where the version has it)",
            qemu_arm,
        ),
        _programs(
            cpu_oracle.ORACLE,
            "stage 2, and both stages: tables and our walks against QEMU's Arm processor",
            qemu_arm,
        ),
        Entry("golden", "words that a real Xen wrote against what our drivers write", lambda: "", golden.run),
        Entry(
            "xen-tables",
            "the tables that a real Xen built for its dom0, walked by our unit; its contiguity markers; its queue",
            qemu_x86_and_xen,
            xen_tables.run,
        ),
    )
}
