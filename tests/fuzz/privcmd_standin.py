# SPDX-License-Identifier: GPL-2.0-or-later
"""A dom0 without a Xen: a process's hypercalls reach the emulated hypervisor, its memory is the guest's."""

import os
import socket
import struct
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

from abi.model import Convention
from fuzz.run import runner_for
from fuzz.target import Target
from hypervisor import profile as profiles

IOCTL_PRIVCMD_HYPERCALL = 0x305000  # _IOC(_IOC_NONE, 'P', 0, 48): include/uapi/xen/privcmd.h


class ProcessMemory:
    """The address space of another process as hypercalls reach it: what it may not touch is a fault."""

    def __init__(self, pid):
        self._pid = pid
        self._mem = os.open(f"/proc/{pid}/mem", os.O_RDWR)

    def close(self):
        os.close(self._mem)

    def _allowed(self, address, length, kind):
        at = address
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            where, rights = line.split()[:2]
            start, end = (int(part, 16) for part in where.split("-"))
            if start <= at < end and kind in rights:
                at = end
                if at >= address + length:
                    return True
        return False

    def read(self, address, length):
        return os.pread(self._mem, length, address) if self._allowed(address, length, "r") else None

    def write(self, address, data):
        return self.writable(address, len(data)) and os.pwrite(self._mem, bytes(data), address) == len(data)

    def writable(self, address, length):
        return self._allowed(address, length, "w")

    def window(self, address, length):
        return None


class Standin:
    """Runs a program that uses privcmd on an emulated hypervisor."""

    def __init__(self, interposer, bench, directory):
        self._interposer = interposer
        if bench.level == "driver":  # the machine before its guest has booted
            self.bed = runner_for(bench).bed
        else:
            starts = not profiles.get(bench.profile).abi.has("init")  # then contexts are there from the start
            self.target = Target(replace(bench, contexts=bench.contexts if starts else None))
            self.bed = self.target.bed
        self._path = directory / "privcmd"
        self._frames = directory / "frames"
        numbers = self.bed.mfns if self.bed.dom0.pv else range(len(self.bed.mfns))
        self._frames.write_text("".join(f"{number:#x}\n" for number in numbers))
        self.calls = 0

    def run(self, executable, **environment):
        """(exit status, output) of ``executable``."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        env = {
            **os.environ,
            "LD_PRELOAD": str(self._interposer),
            "PVIOMMU_STANDIN": str(self._path),
            "PVIOMMU_FRAMES": str(self._frames),
            **environment,
        }
        process = subprocess.Popen([executable], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        server = threading.Thread(target=self._serve, args=(listener, process.pid), daemon=True)
        server.start()
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
            listener.close()
            self._path.unlink()
        return process.returncode, output

    def _serve(self, listener, pid):
        try:
            connection, _ = listener.accept()
        except OSError:  # the process never opened the device
            return
        memory = ProcessMemory(pid)
        xen, dom0 = self.bed.xen, self.bed.dom0
        vcpu = xen.add_vcpu(dom0, memory)
        with connection:
            while message := connection.recv(56, socket.MSG_WAITALL):
                request, number, *args = struct.unpack("<7Q", message)
                assert request == IOCTL_PRIVCMD_HYPERCALL
                self.calls += 1
                union = xen.abi.convention is Convention.UNION and number == xen.abi.hypercall
                result = xen.hypercall(vcpu, number, *args[: 1 if union else 2])
                connection.sendall(struct.pack("<q", result))
        memory.close()
