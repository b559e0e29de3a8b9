# SPDX-License-Identifier: GPL-2.0-or-later
"""Hot plug by uevents: the message's form is the kernel's, and the bus does what it says."""

import pytest
from mock_domain import endpoints, mock_kernel

from abi.errno import EBUSY, EEXIST, EINVAL, ENODEV
from guest_driver.linux.dd import device_driver_attach
from guest_driver.linux.uevent import PciHotplug, Uevent, from_pyroute2, parse_uevent, pci_uevent

pytestmark = pytest.mark.core

SEEN = (
    b"remove@/devices/pci0000:00/0000:00:01.0\0ACTION=remove\0DEVPATH=/devices/pci0000:00/0000:00:01.0\0SUBSYSTEM=pci\0"
    b"PCI_CLASS=20000\0PCI_ID=1AF4:1041\0PCI_SUBSYS_ID=1AF4:1100\0PCI_SLOT_NAME=0000:00:01.0\0"
    b"MODALIAS=pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00\0SEQNUM=1718\0"
)


def test_a_device_goes_and_comes_back_by_what_a_host_said():
    kernel, _ = mock_kernel(endpoints(2))
    bus = PciHotplug(kernel)
    gone = kernel.devices[0]
    assert gone.name == "0000:00:01.0"
    event = parse_uevent(SEEN)
    assert bus.handle(event) == 0
    assert gone.iommu_group is None and gone not in kernel.devices and len(kernel.iommu.groups) == 1
    assert bus.handle(event) == -ENODEV
    assert bus.handle(pci_uevent(gone.pci, "add")) == 0
    assert bus.handle(pci_uevent(gone.pci, "add")) == -EEXIST
    (back,) = [dev for dev in kernel.devices if dev.pci.sbdf == gone.pci.sbdf]
    assert back.iommu_group.default_domain is back.iommu_group.domain and len(kernel.iommu.groups) == 2
    assert device_driver_attach(back, "driver") == 0
    assert bus.handle(event) == -EBUSY and back in kernel.devices


def test_pyroute2_reads_our_messages_and_we_read_pyroute2():
    uevent = pytest.importorskip("pyroute2.netlink.uevent")
    kernel, _ = mock_kernel(endpoints(1))
    ours = pci_uevent(kernel.devices[0].pci, "add", 7)
    for message in (bytes(ours), SEEN):
        (read,) = uevent.MarshalUevent().parse(message)
        assert from_pyroute2(read) == parse_uevent(message)
        assert bytes(parse_uevent(message)) == message
    assert read["PCI_SLOT_NAME"] == "0000:00:01.0" and read["header"]["message"].startswith("remove@/devices")


def test_what_is_no_hot_plug_is_left_alone():
    kernel, _ = mock_kernel(endpoints(1))
    bus = PciHotplug(kernel)
    info = kernel.devices[0].pci
    for message in (b"", b"\xff\xfe", b"libudev\0\0\0", b"add@nowhere\0", b"add@/x\0ACTION=remove\0"):
        assert bus.handle(parse_uevent(message)) == -EINVAL
    assert bus.handle(pci_uevent(info, "bind")) == 0
    assert bus.handle(Uevent("remove", "/devices/net/eth0", {"SUBSYSTEM": "net"})) == 0
    assert bus.handle(Uevent("remove", "/devices/x", {"SUBSYSTEM": "pci", "PCI_SLOT_NAME": "x"})) == -EINVAL
    assert bus.handle(Uevent("add", "/devices/x", {"SUBSYSTEM": "pci", "PCI_SLOT_NAME": "0000:77:00.0"})) == -ENODEV
    assert len(kernel.devices) == 1
