# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel with the mock IOMMU, a process, and iommufd open."""

from base.units import parse_sbdf
from guest_driver.iommufd.context import iommufd_open
from guest_driver.iommufd.device import iommufd_device_bind
from guest_driver.iommufd.process import Process, UserMemory
from guest_driver.iommufd.release import release
from guest_driver.linux.device import Device
from guest_driver.linux.kernel import CommandLine, Kernel
from guest_driver.linux.mock_domain import MockIommu
from guest_driver.port import PciInfo

SCRATCH = 0x7000_0000
BUFFER = 0x1000_0000
MIB = 1 << 20


class Ram:
    xen_pv_domain = False

    def __init__(self, pages):
        self.pages = pages
        self.data = bytearray(pages * 4096)

    def read(self, paddr, length):
        return bytes(self.data[paddr : paddr + length])

    def write(self, paddr, data):
        self.data[paddr : paddr + len(data)] = data

    def linear(self, paddr):
        return paddr

    def pfn_to_gfn(self, pfn):
        return pfn


class Pci:
    def __init__(self, functions):
        self.functions = functions

    def devices(self):
        return self.functions

    def request_irq(self, handler):
        return None


class NoMmio:
    def readl(self, address):
        return 0

    def writel(self, address, value):
        pass


class Rig:
    """``groups`` lists the number of devices of each group; devices are ``devs[group][position]``."""

    def __init__(self, groups=(1,), name="7.0", defects=None, mock=None, scatter=True, pages=256):
        functions = [
            PciInfo(parse_sbdf(f"00:{slot + 1:02x}.{function}"), multifunction=count > 1)
            for slot, count in enumerate(groups)
            for function in range(count)
        ]
        self.kernel = Kernel(Ram(pages), Pci(functions), NoMmio(), CommandLine(), scatter=scatter)
        flat = [Device(self.kernel, info) for info in functions]
        self.kernel.devices.extend(flat)
        self.devs = []
        for count in groups:
            self.devs.append(flat[:count])
            flat = flat[count:]
        self.mock = mock or MockIommu()
        assert self.mock.register(self.kernel) == 0
        self.mm = UserMemory(self.kernel)
        assert self.mm.mmap(SCRATCH, 4 * 4096) == 0
        self.process = Process(self.mm)
        self.release = release(name, defects)
        self.ctx = iommufd_open(self.kernel, self.release)

    @property
    def warnings(self):
        return [line for line in self.kernel.printk.lines if line.startswith("WARNING")]

    def call(self, name, **fields):
        return self.ctx.call(self.process, name, SCRATCH, **fields)

    def ret(self, name, **fields):
        return self.call(name, **fields)[0]

    def ioas(self):
        ret, out = self.call("IOAS_ALLOC")
        assert ret == 0
        return out["out_ioas_id"]

    def obj(self, number):
        from guest_driver.iommufd.objects import IommufdObject

        return self.ctx.objects.get(number, IommufdObject)

    def bind(self, dev):
        idev = iommufd_device_bind(self.ctx, dev)
        assert not isinstance(idev, int), idev
        return idev

    def map(self, ioas, iova, va=BUFFER, length=4096, flags=7):
        ret, out = self.call("IOAS_MAP", flags=flags, ioas_id=ioas, user_va=va, length=length, iova=iova)
        return out["iova"] if ret == 0 else ret

    def unmap(self, ioas, iova, length):
        ret, out = self.call("IOAS_UNMAP", ioas_id=ioas, iova=iova, length=length)
        return out["length"] if ret == 0 else ret

    def hwpt(self, idev, pt, **fields):
        ret, out = self.call("HWPT_ALLOC", dev_id=idev.id, pt_id=pt, **fields)
        return out["out_hwpt_id"] if ret == 0 else ret

    def destroy(self, number):
        return self.ret("DESTROY", id=number)

    def buffer(self, pages=16, address=BUFFER, writable=True):
        assert self.mm.mmap(address, pages * 4096, writable) == 0
        return address

    def finish(self):
        """Close everything; nothing may be left."""
        self.ctx.exit()
        assert not self.mm.pins
        assert self.mm.pinned_vm == 0 and self.process.locked_vm == 0
        assert not self.kernel.iommu.domains
        assert all(group.owner is None for group in self.kernel.iommu.groups)
        assert not self.ctx.locks.held
        assert self.warnings == []
