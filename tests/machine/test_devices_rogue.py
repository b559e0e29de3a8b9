# SPDX-License-Identifier: GPL-2.0-or-later
"""The adversary does what it says, and says what it got."""

import pytest

from machine.devices.copier import Copier
from machine.devices.nic import Nic
from machine.devices.rogue import Rogue
from machine.dma import DmaFabric
from machine.iommu.unit import Fault
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

BAR = 0xF000_0000
SBDF, VICTIM = 0x20, 0x18


class TableUnit:
    """Pages of (requester id, page number) -> writable; everything else faults."""

    def __init__(self):
        self.pages = {}

    def translate(self, sid, iova, write):
        writable = self.pages.get((sid, iova >> 12))
        if writable is None or (write and not writable):
            return Fault("fake", sid, iova, write, 1, "not mapped")
        return iova & 0xFFFF


@pytest.fixture
def rig():
    class Rig:
        bus = SystemBus(PhysicalMemory(1 << 20))
        unit = TableUnit()
        fabric = DmaFabric(bus)
        rogue = Rogue(fabric.port(SBDF))

    Rig.fabric.cover(Rig.unit)
    Rig.rogue.attach(Rig.bus, BAR)
    return Rig


def test_what_it_reads_comes_back_and_what_stops_it_too(rig):
    rig.unit.pages[SBDF, 0x70] = False
    rig.bus.memory.write(0x10, b"secret")
    good = rig.rogue.peek(0x70010, 6)
    assert (good.reached, good.data, good.fault) == (True, b"secret", None)
    bad = rig.rogue.poke(0x70010, b"x")
    assert not bad.reached
    assert (bad.fault.iova, bad.fault.write, bad.data) == (0x70010, True, None)
    assert rig.bus.memory.read(0x10, 6) == b"secret"


def test_a_sweep_reports_every_page_it_tried(rig):
    rig.unit.pages.update({(SBDF, 0x12): True, (SBDF, 0x14): True})
    attempts = rig.rogue.sweep(0x10000, 0x15FFF)
    assert [each.iova for each in attempts] == list(range(0x10000, 0x16000, 0x1000))
    assert [each.iova for each in attempts if each.reached] == [0x12000, 0x14000]


def test_replay_comes_back_to_what_was_good_once(rig):
    rig.unit.pages[SBDF, 5] = True
    rig.rogue.poke(0x5008, b"12345678")
    rig.rogue.peek(0x9000)
    assert rig.rogue.remembered == ((SBDF, 0x5008, 8),)
    assert [each.data for each in rig.rogue.replay()] == [b"12345678"]
    del rig.unit.pages[SBDF, 5]
    (late,) = rig.rogue.replay(b"late")
    assert late.fault is not None
    assert rig.bus.memory.read(0x5008, 8) == b"12345678"


def test_a_held_write_goes_out_after_the_unmap(rig):
    rig.unit.pages[SBDF, 5] = True
    rig.rogue.hold(0x5000, b"posted")
    assert rig.rogue.attempts == 0
    del rig.unit.pages[SBDF, 5]
    (late,) = rig.rogue.release()
    assert late.write and not late.reached
    assert rig.rogue.release() == []


def test_a_spoofed_request_goes_out_under_the_other_id(rig):
    rig.unit.pages[VICTIM, 7] = False
    rig.bus.memory.write(0x7000, b"victim's")
    assert not rig.rogue.peek(0x7000).reached
    assert rig.rogue.peek(0x7000, as_sbdf=VICTIM).data == b"victim's"
    found = rig.rogue.spoof(range(0x10, 0x20), 0x7000)
    assert [each.sbdf for each in found if each.reached] == [VICTIM]


def test_its_counts_are_in_its_registers(rig):
    rig.unit.pages[SBDF, 5] = True
    rig.rogue.sweep(0x4000, 0x6FFF)
    assert [rig.bus.read32(BAR + offset) for offset in (0, 4, 8, 12)] == [0x524F4731, 3, 1, 2]
    rig.bus.write32(BAR + 4, 0)
    assert rig.bus.read32(BAR + 4) == 3


def test_the_ends_of_the_address_space_are_ordinary_addresses(rig):
    assert not rig.rogue.peek((1 << 64) - 1, 4096).reached
    assert not rig.rogue.poke(1 << 70, b"x").reached


def test_restore_brings_back_what_it_knew(rig):
    rig.unit.pages[SBDF, 5] = True
    rig.rogue.peek(0x5000)
    rig.rogue.hold(0x5000, b"x")
    state = rig.rogue.save()
    rig.rogue.forget()
    rig.rogue.sweep(0, 0xFFFF)
    rig.rogue.restore(state)
    assert rig.rogue.save() == state
    assert rig.rogue.port.faults == []


def test_every_device_describes_itself_to_enumeration():
    devices = {device: device.pci_function(SBDF, BAR) for device in (Nic, Copier, Rogue)}
    assert {function.bars[0].base for function in devices.values()} == {BAR}
    assert {function.bars[0].length for function in devices.values()} == {0x1000}
    assert len({function.device_id for function in devices.values()}) == 3
    assert devices[Nic].class_code == 0x020000
