# SPDX-License-Identifier: GPL-2.0-or-later
"""A real Xen with a real dom0 kernel, booted under QEMU's processor emulation with ``intel-iommu`` in the machine.

dom0 has no root file system: its kernel starts, probes the devices and panics, and Xen, told not to reboot, stands
still.  Everything that Xen built is then in RAM that this process shares, and the unit's registers are read over qtest.
"""

import gzip
import os
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oracle.process import ModelDied, ModelMissing, find_program
from oracle.qemu_pc import IOMMU_BASE
from oracle.qtest import Qtest, image, read
from oracle.shared_ram import SharedRam

RAM_SIZE: Final = 0x8000_0000
DOM0_MEMORY: Final = "dom0_mem=512M"
XEN: Final = "PVIOMMU_XEN"
DOM0_KERNEL: Final = "PVIOMMU_DOM0_KERNEL"
PATIENCE: Final = 240.0
"""Seconds after which a boot counts as failed."""
STANDS_STILL: Final = (b"Hardware Dom0 crashed", b"Hardware Dom0 halted", b"Manual reset required")
"""What Xen says when nothing will change any more."""

_PROCESSOR: Final = "max,-smap,-smep,-pku,-la57"
"""With SMAP, SMEP, PKU or five-level paging a PV kernel dies early under TCG."""
_BOOT: Final = Path("/boot")
_ELF: Final = b"\x7fELF"
_SETUP_HEADER: Final = slice(0x202, 0x206)
"""Where a bzImage says that it is one (Linux, Documentation/arch/x86/boot.rst)."""


@dataclass(frozen=True, slots=True)
class Case:
    """One boot: properties of the unit, and what Xen is told on its command line."""

    name: str
    unit: str
    xen: str
    aw_bits: int
    superpages: bool = True

    def __str__(self) -> str:
        return f"{self.name} (intel-iommu,{self.unit}; {self.xen})"


def images() -> tuple[Path, Path]:
    """Xen and a dom0 kernel: what the environment names, else the newest in /boot.  :class:`ModelMissing` without them,
    and for a file that is something else."""
    xen = _image(XEN, "xen-[0-9]*-amd64.gz", "Xen", "a package xen-hypervisor-*-amd64")
    kernel = _image(DOM0_KERNEL, "vmlinuz-*", "dom0 kernel", "the package linux-image-amd64")
    if not _unpacked(xen).startswith(_ELF):
        raise ModelMissing(f"{xen} is no Xen: neither an ELF file nor a whole gzip file with one in it")
    with kernel.open("rb") as file:
        start = file.read(_SETUP_HEADER.stop)
    if start[_SETUP_HEADER] != b"HdrS" and not start.startswith(_ELF):
        raise ModelMissing(f"{kernel} is no kernel: neither a bzImage nor an ELF file")
    return xen, kernel


def _image(variable: str, pattern: str, what: str, package: str) -> Path:
    named = os.environ.get(variable)
    if named:
        path = Path(named)
        if not os.access(path, os.R_OK) or not path.is_file():
            raise ModelMissing(f"{variable}={named}: there is no such file that can be read")
        return path
    found = sorted(path for path in _BOOT.glob(pattern) if os.access(path, os.R_OK))
    if not found:
        raise ModelMissing(f"no {what} in {_BOOT}; install {package}, or name the file in {variable}")
    return found[-1]


class XenBoot:
    """A boot of ``case``, from the first instruction to the moment when Xen stands still.

    ``waiting`` is called twice a second meanwhile.  :class:`ModelDied` if it never gets there, with Xen's last line.
    """

    def __init__(self, case: Case, waiting: Callable[[], None]) -> None:
        program = find_program(("qemu-system-x86_64",), "qemu-system-x86", "PVIOMMU_QEMU_X86_64")
        xen, kernel = images()
        self.ram: Final = SharedRam(RAM_SIZE)
        self._console: Final = os.memfd_create("pviommu-console")
        held = [image(_unpacked(xen)), os.open(kernel, os.O_RDONLY)]
        mine = f"/proc/{os.getpid()}/fd"
        try:
            self.connection: Final = Qtest(
                program,
                [
                    *("-machine", "q35,memory-backend=ram", "-m", f"{RAM_SIZE >> 20}M"),
                    *("-accel", "tcg", "-cpu", _PROCESSOR, "-no-reboot"),
                    *("-device", f"intel-iommu,aw-bits={case.aw_bits},{case.unit}"),
                    *("-chardev", f"file,id=com1,path={mine}/{self._console}"),
                    *("-device", "isa-serial,chardev=com1,index=0"),
                    *("-kernel", f"{mine}/{held[0]}"),
                    *("-append", f"console=com1 com1=115200,8n1 smap=0 noreboot {DOM0_MEMORY} {case.xen}"),
                    *("-initrd", f"{mine}/{held[1]} console=hvc0"),
                ],
                self.ram,
            )
        except BaseException:
            self.ram.close()
            os.close(self._console)
            raise
        try:
            self._wait(waiting)
        except BaseException:
            self.close()
            raise
        finally:
            for descriptor in held:
                os.close(descriptor)

    def _wait(self, waiting: Callable[[], None]) -> None:
        started = time.monotonic()
        while not any(words in self.said() for words in STANDS_STILL):
            if not self.connection.process.alive:
                raise self.connection.process.death()
            if time.monotonic() - started > PATIENCE:
                last = self.said().decode(errors="replace").strip().rsplit("\n", 1)[-1]
                raise ModelDied(f"Xen still runs after {PATIENCE:.0f} seconds; it said last: {last.strip()}")
            time.sleep(0.5)
            waiting()

    def said(self) -> bytes:
        """Everything on the serial console so far."""
        return os.pread(self._console, os.fstat(self._console).st_size, 0)

    @property
    def version(self) -> str:
        """The first line of Xen's console, up to the compiler's name."""
        for line in self.said().decode(errors="replace").splitlines():
            if "Xen version" in line:
                return line.partition("Xen version ")[2].partition(" (")[0]
        return "unknown"

    def register(self, offset: int, size: int) -> int:
        """A register of the unit."""
        return self.connection.ask((read(IOMMU_BASE + offset, size),))[0]

    def close(self) -> None:
        self.connection.close()
        self.ram.close()
        os.close(self._console)


def _unpacked(path: Path) -> bytes:
    """The ELF file, which is what QEMU's multiboot loader reads; nothing if what packs it is broken."""
    content = path.read_bytes()
    try:
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (EOFError, OSError, zlib.error):
        return b""
