# SPDX-License-Identifier: GPL-2.0-or-later
"""Units that refuse commands, go deaf or lack features: the driver says so and trusts nothing it was not told."""

import pytest
from smmuv3_host import BASE, COPIER, DISTANCE, NIC, PAGE, S2_IPA, S12_VMALL, Host

from hypervisor.errors import XenBug
from hypervisor.iommu.context import IommuContext
from hypervisor.smmuv3 import queue as queue_module
from machine.firmware import SmmuNode
from machine.iommu.smmuv3.config import Smmuv3Config

EIO, ENODEV, ENOMEM, ENOSPC = -5, -19, -12, -28
FRAMES = 2048
MODES = pytest.mark.parametrize("msi", [True, False], ids=["message", "polling"])


def in_use(msi=True, **config):
    host = Host([Smmuv3Config(msi=msi, **config)])
    context = host.context()
    nic = host.attached(NIC, context)
    host.map(context, 5, FRAMES, 4)
    assert host.reaches(NIC, 5, FRAMES)
    return host, context, nic


@MODES
def test_a_refused_command_is_an_error_and_the_queue_goes_on(msi):
    host, context, _ = in_use(msi)
    changes = host.unmap(context, 5)
    host.probe.refuse = 1
    assert host.backend.flush(context, 5, 1, changes) == EIO
    assert host.backend.units[0].commands.errors == 1
    assert host.backend.flush_all(context) == 0
    assert not host.reaches(NIC, 5, FRAMES)


@MODES
def test_every_command_of_a_refused_batch_is_taken_out_of_the_way(msi):
    host, context, _ = in_use(msi, ril=False)
    changes = host.unmap(context, 5, 3)
    host.probe.refuse = 3
    assert host.backend.flush(context, 5, 3, changes) == EIO
    assert host.backend.units[0].commands.errors == 3
    assert host.backend.flush_all(context) == 0


@MODES
def test_a_batch_that_is_refused_again_and_again_is_given_up_and_finished_later(msi):
    host, context, _ = in_use(msi, ril=False)
    host.unmap(context, 5, 4)
    host.map(context, 20, FRAMES, 16)
    changes = host.unmap(context, 20, 16)
    host.probe.refuse = 16
    assert host.backend.flush(context, 20, 16, changes) == EIO
    for _ in range(queue_module.RETRIES):
        error = host.backend.flush_all(context)
    assert error == 0
    assert not host.reaches(NIC, 5, FRAMES)


@MODES
def test_a_deaf_unit_fails_every_flush_until_it_answers(msi):
    host, context, _ = in_use(msi)
    changes = host.unmap(context, 5)
    host.probe.deaf = True
    for _ in range(3):
        assert host.backend.flush(context, 5, 1, changes) == EIO
    assert host.reaches(NIC, 5, FRAMES), "nothing was invalidated, so -EIO was the truth"
    host.probe.deaf = False
    host.bus.write32(BASE + 0x98, host.backend.units[0].commands._prod)
    assert host.backend.flush(context, 5, 1, changes) == 0
    assert not host.reaches(NIC, 5, FRAMES)


def test_after_a_failed_flush_the_next_one_takes_the_whole_vmid():
    host, context, _ = in_use()
    changes = host.unmap(context, 5)
    host.probe.refuse = 1
    assert host.backend.flush(context, 5, 1, changes) == EIO
    assert host.reaches(NIC, 5, FRAMES)
    changes = host.unmap(context, 6)
    host.probe.commands.clear()
    assert host.backend.flush(context, 6, 1, changes) == 0
    assert host.probe.ops() == [S12_VMALL]
    assert not host.reaches(NIC, 5, FRAMES)
    changes = host.unmap(context, 7)
    host.probe.commands.clear()
    assert host.backend.flush(context, 7, 1, changes) == 0
    assert host.probe.ops() == [S2_IPA]


def test_a_failed_break_before_make_is_made_good_and_told_by_the_flush_that_follows():
    host, context, _ = in_use(bbml=0)
    host.map(context, 512, FRAMES, 512)
    changes = None

    def refuse_first(first, second):
        host.probe.refuse, host.probe.on_command = 1, None

    host.probe.on_command = refuse_first
    changes = host.unmap(context, 600)
    assert host.backend.units[0].commands.errors == 1
    host.probe.commands.clear()
    assert host.backend.flush(context, 600, 1, changes) == EIO, "hardware may have used both entries"
    assert set(host.probe.ops()) == {S12_VMALL}
    assert not host.reaches(NIC, 600, FRAMES + 88)
    assert host.reaches(NIC, 601, FRAMES + 89)
    assert host.backend.flush(context, 600, 1, changes) == 0


# Attaching


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_reattach_leaves_the_device_where_it_was(failing):
    host, one, nic = in_use()
    two = host.context()
    host.map(two, 5, FRAMES + 1)
    count = iter(range(1, 100))

    def refuse_nth(first, second):
        if next(count) == failing:
            host.probe.refuse = 1

    host.probe.on_command = refuse_nth
    assert host.backend.attach(nic, two) == EIO
    host.probe.on_command = None
    assert host.reaches(NIC, 5, FRAMES)
    assert host.unmap_and_flush(one, 5) == 0
    assert not host.reaches(NIC, 5, FRAMES)
    assert host.backend.attach(nic, two) == 0
    assert host.reaches(NIC, 5, FRAMES + 1)


@pytest.mark.parametrize("failing", range(1, 8))
def test_all_requester_ids_or_none(failing):
    host = Host()
    one, two = host.context(), host.context()
    host.map(one, 5, FRAMES)
    host.map(two, 5, FRAMES + 1)
    ids = (NIC, NIC + 2)
    device = host.device(NIC, ids)
    assert host.backend.attach(device, one) == 0
    assert all(host.reaches(sid, 5, FRAMES) for sid in ids)
    count = iter(range(1, 100))

    def refuse_nth(first, second):
        if next(count) == failing:
            host.probe.refuse = 1

    host.probe.on_command = refuse_nth
    error = host.backend.attach(device, two)
    host.probe.on_command = None
    where = FRAMES if error else FRAMES + 1
    assert error == (0 if failing > 6 else EIO)
    assert all(host.reaches(sid, 5, where) for sid in ids)


def test_a_device_that_could_not_be_put_back_is_blocked_and_its_contexts_are_doubtful():
    host, one, nic = in_use()
    two = host.context()
    host.probe.refuse = 5
    assert host.backend.attach(nic, two) == EIO
    assert host.ste(NIC)[0] == 0b0001
    assert 0 in one.hw.doubtful and 0 in two.hw.doubtful
    host.probe.refuse = 0
    assert host.backend.attach(nic, two) == 0
    assert not host.reaches(NIC, 5, FRAMES)
    changes = host.unmap(one, 5)
    host.probe.commands.clear()
    assert host.backend.flush(one, 5, 1, changes) == 0
    assert not one.hw.doubtful


def test_a_device_that_could_not_be_put_back_is_cut_off_until_its_context_is_flushed():
    host, one, nic = in_use()
    host.probe.refuse = 5
    assert host.backend.attach(nic, host.context()) == EIO
    assert host.backend.cut_off(nic)
    assert host.backend.flush_all(one) == EIO
    assert host.backend.cut_off(nic)
    host.probe.refuse = 0
    assert host.backend.flush_all(one) == 0
    assert not host.backend.cut_off(nic)
    assert host.reaches(NIC, 5, FRAMES)


def test_a_device_that_could_not_be_blocked_is_translated_again_with_the_next_flush():
    host, one, nic = in_use()
    host.probe.refuse = 1
    assert host.backend.detach(nic) == EIO
    assert host.backend.cut_off(nic)
    assert host.backend.flush_all(one) == 0
    assert host.reaches(NIC, 5, FRAMES)
    assert host.backend.detach(nic) == 0
    assert not host.reaches(NIC, 5, FRAMES)


def test_a_unit_that_kept_an_entry_after_a_failed_attach_is_made_to_read_it_again():
    host = Host()
    context = host.context()
    host.map(context, 5, FRAMES)
    nic = host.device(NIC)
    count = iter(range(1, 100))

    def refuse_after_a_look(first, second):
        if next(count) >= 3:  # the entry translates: the device uses it, and the unit will not forget it
            assert host.reaches(NIC, 5, FRAMES)
            host.probe.refuse = 1

    host.probe.on_command = refuse_after_a_look
    assert host.backend.attach(nic, context) == EIO
    host.probe.on_command = None
    assert host.ste(NIC)[0] == 0b0001
    assert host.reaches(NIC, 5, FRAMES), "the unit is as stubborn as this test wants it"
    assert host.unmap_and_flush(context, 5) == 0
    assert not host.reaches(NIC, 5, FRAMES)
    host.map(context, 5, FRAMES)
    assert not host.reaches(NIC, 5, FRAMES), "it is not attached"


def test_releasing_a_context_that_is_in_use_is_a_bug_of_the_hypervisor():
    host, context, _ = in_use()
    with pytest.raises(XenBug):
        host.backend.context_release(context)


def test_a_doubtful_context_is_made_clean_before_a_device_enters_it():
    host, context, nic = in_use()
    host.probe.on_command = lambda first, second: setattr(host.probe, "refuse", first & 0xFF == S12_VMALL)
    assert host.backend.detach(nic) == 0
    assert context.hw.doubtful
    assert host.unmap_and_flush(context, 5) == EIO
    assert host.backend.attach(nic, context) == EIO
    host.probe.on_command = None
    assert host.backend.attach(nic, context) == 0
    assert not host.reaches(NIC, 5, FRAMES)
    assert host.reaches(NIC, 6, FRAMES + 1)


def test_vmid_and_root_of_a_doubtful_context_are_not_used_again():
    host, context, nic = in_use()
    host.probe.on_command = lambda first, second: setattr(host.probe, "refuse", first & 0xFF == S12_VMALL)
    host.backend.detach(nic)
    root, vmid = context.table.root, context.hw.vmids[0]
    host.unmap(context, 5, 4)
    host.backend.context_release(context)
    host.probe.on_command = None
    assert host.frames.count(root) == 1
    assert all(host.context().hw.vmids[0] != vmid for _ in range(3))


def test_one_dead_unit_does_not_keep_the_other_from_being_flushed():
    nodes = [SmmuNode(BASE, include_all=False, scope=(NIC,)), SmmuNode(BASE + DISTANCE)]
    host = Host([Smmuv3Config(), Smmuv3Config()], nodes)
    context = host.context()
    host.attached(NIC, context)
    host.attached(COPIER, context)
    host.map(context, 5, FRAMES, 2)
    assert host.reaches(NIC, 5, FRAMES) and host.reaches(COPIER, 5, FRAMES)
    host.probes[0].deaf = True
    changes = host.unmap(context, 5)
    assert host.backend.flush(context, 5, 1, changes) == EIO
    assert host.reaches(NIC, 5, FRAMES) and not host.reaches(COPIER, 5, FRAMES)


# Running out


def test_vmids_run_out_and_come_back():
    host = Host([Smmuv3Config(vmid16=False)])
    contexts = [host.context() for _ in range(255)]
    assert sorted(context.hw.vmids[0] for context in contexts) == list(range(1, 256))
    used = host.frames._next - len(host.frames._free)
    late = IommuContext(1000, host.heap)
    assert host.backend.context_init(late) == ENOSPC
    assert (late.table, late.hw) == (None, None)
    assert host.frames._next - len(host.frames._free) == used
    host.backend.context_release(contexts[7])
    assert host.backend.context_init(late) == 0


def test_running_out_of_vmids_on_the_second_unit_gives_the_first_ones_back():
    nodes = [SmmuNode(BASE), SmmuNode(BASE + DISTANCE)]
    host = Host([Smmuv3Config(), Smmuv3Config(vmid16=False)], nodes)
    for _ in range(255):
        host.context()
    for _ in range(3):
        assert host.backend.context_init(IommuContext(1000, host.heap)) == ENOSPC
    assert host.backend.units[0].take_vmid() == 256


def test_no_memory_for_a_stream_table_is_enomem_and_attaches_nothing():
    host = Host()
    context = host.context()
    while host.frames.allocate(0x7FF2) is not None:
        pass
    assert host.backend.attach(host.device(NIC), context) == ENOMEM
    assert host.ste(NIC) is None


def test_a_stream_beyond_the_table_is_enodev():
    host = Host([Smmuv3Config(sid_bits=8)])
    assert host.backend.attach(host.device(NIC), host.context()) == ENODEV
    assert host.backend.attach(host.device(COPIER), host.context()) == 0


# Switching on


ST_LEVEL_2, MSI, BIG_ENDIAN, COHERENT, AA64, AA32, S1P, S2P = 1 << 27, 1 << 13, 3 << 21, 1 << 4, 2 << 2, 1 << 2, 2, 1
QUEUES = 8 << 21 | 7 << 16 | 16
GRAN4K, GRAN64K, OAS48 = 1 << 4, 1 << 6, 5
GOOD = ST_LEVEL_2 | COHERENT | AA64 | S2P


class Registers:
    """An SMMU of registers alone: says what it is told to, acknowledges everything or nothing."""

    def __init__(self, idr0=GOOD, idr1=QUEUES, idr5=GRAN4K | OAS48, acknowledges=True):
        self.words = {0x00: idr0, 0x04: idr1, 0x14: idr5}
        self.acknowledges = acknowledges
        self.order = []

    def read(self, offset, size):
        return self.words.get(offset, 0)

    def write(self, offset, size, value):
        self.order.append((offset, value))
        self.words[offset] = value
        if not self.acknowledges:
            return
        if offset in (0x20, 0x50, 0x98):  # CR0, IRQ_CTRL, CMDQ_PROD
            self.words[offset + 4] = value
        if offset == 0x44:
            self.words[offset] &= ~(1 << 31)


def with_registers(registers):
    host = Host(enable=False)
    host.bus._pages.clear()
    host.bus.map(BASE, 0x20000, registers)
    host.backend = type(host.backend)(host.platform, host.frames)
    return host


@pytest.mark.parametrize(
    "registers",
    [
        pytest.param({"idr0": GOOD & ~AA64 | AA32}, id="no AArch64 tables"),
        pytest.param({"idr0": GOOD & ~S2P | S1P}, id="stage 1 only"),
        pytest.param({"idr0": GOOD | BIG_ENDIAN}, id="big-endian tables"),
        pytest.param({"idr1": QUEUES | 1 << 30}, id="preset stream table"),
        pytest.param({"idr1": QUEUES | 1 << 29}, id="preset queues"),
        pytest.param({"idr1": QUEUES & ~(31 << 21)}, id="a command queue of one slot"),
        pytest.param({"idr5": GRAN64K | OAS48}, id="no 4 KiB granule"),
    ],
)
def test_units_that_lack_something_are_refused(registers):
    assert with_registers(Registers(**registers)).backend.enable() == ENODEV


def test_a_unit_that_acknowledges_nothing_is_eio():
    registers = Registers(acknowledges=False)
    assert with_registers(registers).backend.enable() == EIO
    assert registers.order == [(0x44, 1 << 31 | 1 << 20)]


def test_the_unit_is_off_and_aborting_before_anything_else_is_written():
    registers = Registers()
    registers.words[0x20] = registers.words[0x24] = 1
    assert with_registers(registers).backend.enable() == 0
    offsets = [offset for offset, _ in registers.order]
    assert registers.order[:2] == [(0x44, 1 << 31 | 1 << 20), (0x20, 0)]
    assert registers.order[-1] == (0x20, 0b1101)
    assert [value for offset, value in registers.order if offset == 0x20] == [0, 0b1000, 0b1100, 0b1101]
    assert offsets.index(0x80) < offsets.index(0x98), "the stream table is known before the first command"


def test_no_memory_for_the_stream_table_at_boot_is_enomem():
    host = Host(enable=False)
    while host.frames.allocate(0x7FF2) is not None:
        pass
    assert host.backend.enable() == ENOMEM


def test_firmware_without_smmus_is_a_faulty_set_up():
    host = Host()
    platform = type(host.platform)(
        host.memory, host.bus, host.platform.pci, type(host.platform.firmware)(), host.interrupts, 0
    )
    with pytest.raises(ValueError, match="no SMMU"):
        type(host.backend)(platform, host.frames)


@pytest.mark.parametrize("bits", [31, 49, 45])
def test_input_ranges_that_cannot_be_are_refused(bits):
    with pytest.raises(ValueError, match="input range"):
        Host([Smmuv3Config(oas=44)], input_bits=bits)


def test_a_narrower_input_range_keeps_its_single_root_on_a_wide_unit():
    host = Host([Smmuv3Config(oas=48)], input_bits=40)
    context = host.context()
    assert (host.backend.max_iova, context.table.root_frames) == ((1 << 40) - 1, 1)
    host.attached(NIC, context)
    host.map(context, (1 << 28) - 1, FRAMES)
    assert host.reaches(NIC, (1 << 28) - 1, FRAMES)
    assert host.read(NIC, (1 << 40) + PAGE) is None
