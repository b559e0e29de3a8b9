# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever bytes software leaves anywhere, the unit answers; and it answers what a second reading of the manuals says.

The second reading is :func:`twin`: it works on bytes and bit strings, recursion and sets of legal combinations
where the model uses masks, a loop and inequalities.
"""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from smmuv3_board import (
    BASE,
    CFGI_ALL,
    CMDQ,
    EVENTQ,
    NSNH_ALL,
    RAM,
    STE_ABORT,
    STE_BYPASS,
    STRTAB,
    SYNC,
    TABLES,
    Board,
    ste_stage2,
)

from machine.iommu.smmuv3 import Smmuv3Config
from machine.iommu.unit import Fault

SID = 8
U64 = st.integers(0, (1 << 64) - 1)
SEEDS = st.integers(0, (1 << 32) - 1)

OUTPUT_BITS = {0: 32, 1: 36, 2: 40, 3: 42, 4: 44, 5: 48, 6: 52, 7: 52}

# Start level -> input sizes for a 4 KiB granule (Arm ARM, VTCR_EL2.SL0): the start level resolves one bit at
# least and at most four more than a whole table, and no more than 48 bits come in.
GEOMETRY = {2: range(25, 35), 1: range(31, 44), 0: range(40, 49)}


def field(words, msb, lsb):
    """Bits of an STE counted as the manual does, over all its 512."""
    whole = int.from_bytes(b"".join(word.to_bytes(8, "little") for word in words), "little")
    return int(format(whole, "0512b")[511 - msb : 512 - lsb], 2)


def legal_stage2(ste, config):
    output = min(OUTPUT_BITS[field(ste, 178, 176)], config.oas)
    level = {0: 2, 1: 1, 2: 0}.get(field(ste, 167, 166))
    size = 64 - field(ste, 165, 160)
    checks = [
        field(ste, 179, 179) == 1,
        field(ste, 175, 174) == 0,
        field(ste, 180, 180) == 0,
        field(ste, 183, 183) == field(ste, 184, 184) == field(ste, 185, 185) == 0,
        level is not None and size in GEOMETRY[level] and size <= config.oas,
        level != 0 or config.oas >= 44,
        field(ste, 243, 196) << 4 < 1 << output,
        config.vmid16 or field(ste, 143, 136) == 0,
    ]
    return all(checks)


def twin(board, sid, iova, write, ste):
    """(name of the fault or None, output address or None) as memory is now."""
    config = board.unit.config
    if field(ste, 0, 0) == 0:
        return "C_BAD_STE", None
    mode = format(field(ste, 3, 1), "03b")
    if mode[0] == "0":
        return "STE.Config=abort", None
    if mode[2] == "1":
        return "C_BAD_STE", None
    if mode[1] == "1" and not legal_stage2(ste, config):
        return "C_BAD_STE", None
    if iova >= 2**config.oas:
        return "F_ADDR_SIZE", None
    if mode == "100":
        return None, iova
    size = 64 - field(ste, 165, 160)
    if iova >= 2**size:
        return "F_TRANSLATION", None
    level = 2 - field(ste, 167, 166)
    output = min(OUTPUT_BITS[field(ste, 178, 176)], config.oas)
    bits = format(iova, f"0{size}b")
    pieces = [bits[-12:], bits[-21:-12], bits[-30:-21], bits[-39:-30], bits[-48:-39]][: 4 - level]
    top = bits[: size - sum(map(len, pieces))]
    entries = 2 ** len(top)
    root = (field(ste, 243, 196) << 4) // (8 * entries) * (8 * entries)
    fetches = config.perms_override and field(ste, 115, 114) == 3 and not write
    privileged = config.perms_override and field(ste, 113, 112) == 3
    return descend(
        board.memory, root, [top, *reversed(pieces)], level, output, ste, (write, fetches, privileged), config
    )


def descend(memory, table, pieces, level, output, ste, access, config):
    at = table + 8 * int(pieces[0], 2)
    if at + 8 > memory.size:
        return "F_WALK_EABT", None
    bits = format(int.from_bytes(memory.read(at, 8), "little"), "064b")[::-1]
    kind = {"00": "invalid", "01": "invalid", "10": "block", "11": "table"}[bits[:2]]
    if kind == "table" and level == 3:
        kind = "page"
    elif kind == "block" and level in (0, 3):
        kind = "invalid"
    if kind == "invalid":
        return "F_TRANSLATION", None
    if "1" in bits[output:48]:
        return "F_ADDR_SIZE", None
    address = sum(2**n for n in range(12, 48) if bits[n] == "1")
    if kind == "table":
        return descend(memory, address, pieces[1:], level + 1, output, ste, access, config)
    if bits[10] == "0" and field(ste, 181, 181) == 0:
        return "F_ACCESS", None
    write, fetches, privileged = access
    if fetches and config.xnx:
        allowed = (bits[54] + bits[53]) in (("00", "11") if privileged else ("00", "01"))
    elif fetches:
        allowed = bits[54] == "0"
    else:
        allowed = bits[7 if write else 6] == "1"
    if not allowed:
        return "F_PERMISSION", None
    rest = "".join(pieces[1:])
    return None, address // 2 ** len(rest) * 2 ** len(rest) + int(rest, 2)


def random_descriptor(random):
    word = random.choice([3, 3, 3, 3, 3, 3, 1, 1, 0])
    word |= TABLES + 0x1000 * random.randrange(8)
    if random.random() < 0.1:
        word |= random.choice([random.getrandbits(36) << 12, RAM])
    word |= random.choice([0, 1, 2, 3, 3, 3]) << 6 | (random.random() < 0.85) << 10
    if random.random() < 0.3:
        word |= random.getrandbits(2) << 53
    if random.random() < 0.1:
        word ^= 1 << random.randrange(64)
    return word


def random_ste(random, oas):
    sizes = [(size, sl0) for sl0, level in ((0, 2), (1, 1), (2, 0)) for size in GEOMETRY[level] if size <= oas]
    size, sl0 = random.choice([*sizes, (random.randrange(64), random.randrange(4))])
    low, attributes, stage2, _, *rest = ste_stage2(
        random.getrandbits(8),
        0,
        t0sz=64 - size,
        sl0=sl0,
        ps=random.choice([5, 5, random.randrange(8)]),
        extra2=random.getrandbits(1) << 53,
        extra1=random.getrandbits(4) << 48,
    )
    ste = [low, attributes, stage2, TABLES + 0x1000 * random.randrange(8) + random.choice([0, 0x10, 0x800]), *rest]
    for _ in range(random.choice([0, 0, 0, 1, 3])):
        ste[random.randrange(4)] ^= 1 << random.randrange(64)
    return ste


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.booleans(), st.sampled_from([32, 40, 42, 44, 48]), st.booleans())
def test_translate_walk_and_the_twin_agree(seed, xnx, oas, vmid16):
    random = Random(seed)
    board = Board(Smmuv3Config(xnx=xnx, oas=oas, vmid16=vmid16))
    for page in range(8):
        for slot in (*range(8), 511):
            board.memory.write64(TABLES + 0x1000 * page + 8 * slot, random_descriptor(random))
    for _ in range(6):
        ste = random_ste(random, oas)
        board.set_ste(SID, ste)
        for _ in range(12):
            iova = sum(random.choice([0, 1, 2, 7]) << shift for shift in (12, 21, 30, 39)) | random.getrandbits(12)
            iova &= (1 << 64 - field(ste, 165, 160)) - 1
            if random.random() < 0.1:
                iova = random.getrandbits(random.choice([25, 32, 40, 48, 52, 64]))
            write = random.random() < 0.5
            board.command(NSNH_ALL, SYNC)
            result = board.unit.translate(SID, iova, write)
            walk = board.unit.walk(SID, iova, write)
            expected = twin(board, SID, iova, write, ste)
            assert (walk.blocked, walk.maddr) == expected
            if isinstance(result, Fault):
                assert result.name == expected[0]
            else:
                assert result == expected[1]
                assert board.unit.translate(SID, iova, write) == result  # the cached answer too


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_random_bytes_everywhere_never_raise(seed):
    random = Random(seed)
    board = Board(two_level=random.random() < 0.5, log2streams=random.randrange(17))
    for base in (STRTAB, CMDQ, TABLES, EVENTQ):
        board.memory.write(base, random.randbytes(0x2000))
    for at in range(STRTAB, STRTAB + 0x2000, 64):
        if random.random() < 0.7:
            for index, word in enumerate(random_ste(random, 48)):
                board.memory.write64(at + 8 * index, word)
    for _ in range(40):
        sid = random.choice([random.randrange(128), random.getrandbits(16), random.getrandbits(32)])
        iova = random.getrandbits(random.choice([12, 32, 48, 64]))
        write = random.random() < 0.5
        board.command(NSNH_ALL, CFGI_ALL, SYNC)
        if board.cmdq_error():
            board.w32(0x64, board.r32(0x60))
            continue
        result = board.unit.translate(sid, iova, write)
        walk = board.unit.walk(sid, iova, write)
        if isinstance(result, Fault):
            assert walk.blocked == result.name and walk.maddr is None
        else:
            assert walk.maddr == result and walk.blocked is None


OFFSETS = [
    *range(0, 0xE0, 4),
    0x100A8,
    0x100AC,
    0x100C8,
    0xFD0,
    0x8000,
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(OFFSETS), st.integers(0, 0x20000)),
            st.sampled_from([4, 4, 4, 8, 1, 2]),
            st.one_of(U64, st.integers(0, 31), st.sampled_from([CMDQ | 3, EVENTQ | 2, STRTAB, BASE, BASE + 0x98, RAM])),
        ),
        max_size=30,
    ),
    SEEDS,
)
def test_random_register_writes_never_raise_and_leave_the_unit_consistent(writes, seed):
    random = Random(seed)
    board = Board()
    identity = [board.r32(offset) for offset in range(0, 0x20, 4)]
    board.set_ste(SID, STE_BYPASS)
    board.memory.write(CMDQ, b"".join(random_command(random) for _ in range(16)))
    for offset, size, value in writes:
        board.unit.write(offset, size, value)
        board.unit.read(offset, size)
        board.unit.translate(SID, 0x1000, True)
        board.unit.walk(SID, 0x1000)
    assert [board.r32(offset) for offset in range(0, 0x20, 4)] == identity
    assert board.r32(0x20) == board.r32(0x24)
    assert board.r32(0x50) == board.r32(0x54)
    assert (board.r32(0x60) ^ board.r32(0x64)) & ~0x1B5 == 0
    state = board.unit.save()
    board.unit.restore(state)
    assert board.unit.save() == state


def random_command(random):
    low, high = random.choice([SYNC, NSNH_ALL, CFGI_ALL, (0x28, 0), (0x2A, 0), (0x03, 0), (0x46, 0), (0x01, 0)])
    if random.random() < 0.5:
        low |= random.getrandbits(56) << 8
        high |= random.choice([random.getrandbits(64), BASE + 4 * random.randrange(64), BASE + 0x98])
    return (low & (1 << 64) - 1).to_bytes(8, "little") + high.to_bytes(8, "little")


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_random_commands_either_execute_or_stop_the_queue(seed):
    random = Random(seed)
    board = Board()
    root = board.stage2(SID)
    board.map(root, 0x1000, 0x5000)
    for _ in range(10):
        board.unit.translate(SID, 0x1000, False)
        for index in range(256):
            board.memory.write(CMDQ + 16 * index, random_command(random))
        board.w32(0x98, random.getrandbits(9))
        if not board.cmdq_error() and board.r32(0x20) & 8:
            assert board.r32(0x9C) & 0x1FF == board.r32(0x98) or board.unit.counters.commands
        board.w32(0x64, board.r32(0x60))


class Machine:
    """Software's view of one VMID: what a page may still translate to, by which invalidations were sent."""

    def __init__(self):
        self.now = {}
        self.possible = {}


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_stale_answer_is_always_one_that_memory_gave_since_the_last_invalidation(seed):
    random = Random(seed)
    board = Board()
    root = board.stage2(SID, 3)
    model = Machine()
    for page in range(4):
        board.map(root, page << 12, 0)
        model.now[page] = 0
        model.possible[page] = {0}
    for _ in range(80):
        page = random.randrange(4)
        action = random.random()
        if action < 0.4:
            target = random.randrange(1, 64) << 12
            board.map(root, page << 12, target)
            model.now[page] = target
            model.possible[page].add(target)
        elif action < 0.8:
            answer = board.unit.translate(SID, page << 12, False)
            assert answer in model.possible[page]
            model.possible[page] = {answer, model.now[page]}
        else:
            vmid = random.choice([3, 3, 4])
            board.command((0x2A | vmid << 32, page << 12 | 1), SYNC)
            if vmid == 3:
                model.possible[page] = {model.now[page]}
                assert board.unit.translate(SID, page << 12, False) == model.now[page]


def test_ste_abort_and_bypass_survive_noise_in_ignored_fields():
    random = Random(1)
    board = Board()
    for _ in range(200):
        for base, passes in ((STE_ABORT, False), (STE_BYPASS, True)):
            board.set_ste(SID, (base[0], *(random.getrandbits(64) for _ in range(7))))
            assert isinstance(board.unit.translate(SID, 0x40, False), int) == passes
