# SPDX-License-Identifier: GPL-2.0-or-later
"""The command queue against a unit of four registers that executes when, and how, the test says."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.smmuv3.queue import POLLS, CommandQueue
from machine.memory import PhysicalMemory
from machine.mmio import SystemBus

BASE = 0x10_0000
FRAME, MESSAGE = 3, 5
PROD, CONS, GERROR, GERRORN = 0x98, 0x9C, 0x60, 0x64
SYNC, BAD = 0x46, 0xBAD0_0001_0000_00EE


class Unit:
    def __init__(self, memory, log2size, lazy=0, unreadable=0):
        self.memory, self.log2size, self.lazy, self.unreadable = memory, log2size, lazy, unreadable
        self.prod = self.cons = self.gerror = self.gerrorn = self.error = 0
        self.executed = []
        self.reads = 0

    def read(self, offset, size):
        self.reads += 1
        if offset == CONS:
            if self.lazy:
                self.lazy -= 1
            else:
                self.run()
            return self.cons | self.error << 24
        return {GERROR: self.gerror, GERRORN: self.gerrorn}[offset]

    def write(self, offset, size, value):
        if offset == PROD:
            self.prod = value
        else:
            assert offset == GERRORN
            self.gerrorn = value
        if not self.lazy:
            self.run()

    def run(self):
        while self.cons != self.prod and self.gerror == self.gerrorn:
            at = (FRAME << 12) + 16 * (self.cons & (1 << self.log2size) - 1)
            first, second = self.memory.read64(at), self.memory.read64(at + 8)
            if self.unreadable:
                self.unreadable -= 1
                self.error, self.gerror = 2, self.gerror ^ 1
            elif first == BAD:
                self.error, self.gerror = 1, self.gerror ^ 1
            else:
                if first & 0xFF != SYNC:
                    self.executed.append((first, second))
                elif first >> 12 & 3:
                    self.memory.write(second, (first >> 32).to_bytes(4, "little"))
                self.cons = self.cons + 1 & (2 << self.log2size) - 1


def queue_and_unit(log2size=3, message=True, **unit):
    memory = PhysicalMemory(64 << 10)
    bus = SystemBus(memory)
    model = Unit(memory, log2size, **unit)
    bus.map(BASE, 0x1000, model)
    return CommandQueue(memory, bus, BASE, FRAME, log2size, MESSAGE << 9 if message else None), model, memory


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.integers(0, 20), max_size=30),
    log2size=st.integers(1, 8),
    message=st.booleans(),
    lazy=st.integers(0, 5),
)
def test_every_command_is_executed_once_and_in_order(batches, log2size, message, lazy):
    queue, unit, memory = queue_and_unit(log2size, message, lazy=lazy)
    number = 1
    for size in batches:
        commands = [(number + k, number + k) for k in range(size)]
        if size == 1:
            assert queue.run_one(*commands[0]) == 0
        else:
            assert queue.run([word for command in commands for word in command]) == 0
        assert unit.executed == commands
        unit.executed.clear()
        number = number + size & 15
    assert memory.read((FRAME << 12) + (16 << log2size), 16) == bytes(16), "it stays within its slots"


@settings(max_examples=60, deadline=None)
@given(data=st.data(), log2size=st.integers(1, 8), message=st.booleans())
def test_refused_commands_are_reported_and_all_others_executed(data, log2size, message):
    queue, unit, _ = queue_and_unit(log2size, message)
    for _ in range(data.draw(st.integers(1, 12))):
        kinds = data.draw(st.lists(st.sampled_from([1, 1, 1, BAD]), min_size=1, max_size=4))
        words = [word for kind in kinds for word in (kind, 7)]
        error = queue.run_one(kinds[0], 7) if len(kinds) == 1 else queue.run(words)
        assert error == (-5 if BAD in kinds else 0)
        assert len(unit.executed) == kinds.count(1)
        assert unit.gerror == unit.gerrorn
        unit.executed.clear()


def test_with_messages_a_confirmed_command_reads_no_register():
    queue, unit, _ = queue_and_unit()
    for _ in range(7):
        assert queue.run_one(1, 2) == 0
    assert unit.reads <= 3, "only the pair that wraps around polls"


def test_an_old_message_does_not_confirm_a_new_command():
    queue, unit, _ = queue_and_unit()
    for _ in range(3):
        assert queue.run_one(1, 2) == 0
    unit.lazy = POLLS + 1
    assert queue.run_one(1, 2) == -5


def test_a_unit_that_cannot_read_the_queue_for_a_moment_is_asked_again():
    queue, unit, _ = queue_and_unit(unreadable=2)
    assert queue.run_one(1, 2) == -5
    assert unit.executed == [(1, 2)]
    assert queue.run_one(3, 4) == 0


def test_a_unit_that_can_never_read_the_queue_does_not_hang_the_driver():
    queue, unit, _ = queue_and_unit(unreadable=1 << 60)
    for _ in range(3):
        assert queue.run_one(1, 2) == -5
    assert unit.reads < 1000
    unit.unreadable = 0
    assert queue.run_one(3, 4) == 0
    assert (3, 4) in unit.executed


def test_nothing_is_queued_behind_a_unit_that_has_stopped():
    queue, unit, _ = queue_and_unit(2, lazy=10 * POLLS)
    for k in range(6):
        assert queue.run_one(10 + k, 0) == -5
    assert unit.prod == 2
    unit.lazy = 0
    assert queue.run([20, 0, 21, 0]) == 0
    assert unit.executed == [(10, 0), (20, 0), (21, 0)]


def test_a_snapshot_keeps_position_and_sequence():
    queue, unit, memory = queue_and_unit()
    queue.run_one(1, 2)
    memory.snapshot()
    state, registers = queue.save(), (unit.prod, unit.cons)
    for _ in range(3):
        for k in range(5):
            assert queue.run_one(k, k) == 0
        memory.reset()
        queue.restore(state)
        unit.prod, unit.cons = registers
    assert queue.run_one(1, 2) == 0
