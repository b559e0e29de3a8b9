# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a unit refuses or ignores: a frame that the hypervisor let go, because the flush was confirmed, is out of
every device's reach.  Devices use whatever they can at the worst moments: before every command.
"""

from hypothesis import given, settings
from hypothesis import strategies as st
from smmuv3_host import BASE, COPIER, DISTANCE, NIC, PAGE, RW, Host

from hypervisor.pagetable.radix import Changes
from machine.firmware import SmmuNode
from machine.iommu.smmuv3.config import Smmuv3Config

FRAMES = 4096
"""First of the frames that are mapped; no frame is mapped twice."""
PAGES = range(4)
OTHER = NIC + 2
CONFIGS = [
    Smmuv3Config(),
    Smmuv3Config(msi=False, ril=False),
    Smmuv3Config(ril=False, bbml=0, two_level=False, sid_bits=10, vmid16=False, coherent=False),
]
STEPS = ["map", "map", "unmap", "unmap", "attach", "attach", "detach", "renew", "use"]


class World:
    def __init__(self, config, faulty):
        nodes = [SmmuNode(BASE, include_all=False, scope=(NIC, OTHER)), SmmuNode(BASE + DISTANCE)]
        self.host = Host([config, config], nodes)
        self.faulty = faulty
        self.contexts = [self.host.context() for _ in range(3)]
        self.devices = [self.host.device(NIC, (NIC, OTHER)), self.host.device(COPIER)]
        self.places = [None, None]
        """Index of the context that the hypervisor believes each device to be in."""
        self.next_frame = FRAMES
        self.mapped = [{} for _ in self.contexts]
        self.gone = set()
        for probe in self.host.probes:
            probe.on_command = self.on_command

    def on_command(self, first, second):
        self.use()
        fate = next(self.faulty, 0)
        if fate == 1:
            for probe in self.host.probes:
                probe.refuse = 1
        elif fate == 2:
            self.host.probes[0].deaf = not self.host.probes[0].deaf

    def use(self):
        """Every device tries every page: caches fill, and what is gone must stay so."""
        for sid in (NIC, OTHER, COPIER):
            for dfn in PAGES:
                answer = self.host.read(sid, dfn * PAGE)
                if answer is not None:
                    frame = int.from_bytes(answer, "little")
                    assert frame not in self.gone, f"{sid:#x} reads frame {frame:#x} through {dfn}"

    def step(self, kind, which, where, dfn):
        context = self.contexts[where]
        if kind == "map" and dfn not in self.mapped[where]:
            frame, self.next_frame = self.next_frame, self.next_frame + 1
            self.host.memory.write64(frame << 12, frame)
            assert context.table.map(dfn, frame, 1, RW, Changes()) == (1, 0)
            self.mapped[where][dfn] = frame
        elif kind == "unmap" and dfn in self.mapped[where]:
            frame = self.mapped[where].pop(dfn)
            changes = Changes()
            assert context.table.unmap(dfn, 1, changes) == (1, 0)
            if not self.host.backend.flush(context, dfn, 1, changes):
                self.gone.add(frame)
                for table in changes.tables:
                    self.host.heap.free(table)
                    self.host.memory.write(table << 12, bytes.fromhex("ff07000f00000000") * 512)
        elif kind == "attach":
            if not self.host.backend.attach(self.devices[which], context):
                self.places[which] = where
        elif kind == "detach":
            if not self.host.backend.detach(self.devices[which]):
                self.places[which] = None
        elif kind == "renew" and where not in self.places and not any(context.hw.streams):
            frames = set(self.mapped[where].values())
            changes = Changes()
            while not context.table.empty_some(10, changes):
                pass
            self.mapped[where].clear()
            if not self.host.backend.flush_all(context):
                self.gone |= frames
                for table in changes.tables:
                    self.host.heap.free(table)
            self.host.backend.context_release(context)
            self.contexts[where] = self.host.context()
        self.use()


@settings(max_examples=60, deadline=None)
@given(
    config=st.sampled_from(CONFIGS),
    faults=st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), max_size=60),
    program=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 2), st.sampled_from(PAGES)),
        min_size=5,
        max_size=40,
    ),
)
def test_a_frame_that_was_let_go_is_out_of_reach(config, faults, program):
    world = World(config, iter(faults))
    for step in program:
        world.step(*step)
    # once the units behave again, devices are where they are believed to be
    for probe in world.host.probes:
        probe.on_command, probe.deaf, probe.refuse = None, False, 0
    for unit in world.host.backend.units:
        world.host.bus.write32(unit.node.base + 0x98, unit.commands._prod)
    for context in world.contexts:
        for _ in range(8):
            error = world.host.backend.flush_all(context)
        assert error == 0
    for device, place in zip(world.devices, world.places):
        if place is not None:
            assert world.host.backend.attach(device, world.contexts[place]) == 0
            for sid in device.requester_ids:
                for dfn in PAGES:
                    answer = world.host.read(sid, dfn * PAGE)
                    assert (answer and int.from_bytes(answer, "little")) == world.mapped[place].get(dfn)
