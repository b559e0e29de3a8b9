# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage 1 and nested translation answer what a second reading of the manuals says, whatever the tables hold.

:func:`twin` reads bits as strings, walks by recursion, raises what stops it and lists rights as sets of letters,
where the model uses masks, a loop, returned stops and bit masks of rights.
"""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from smmuv3_board import CMDQ, EVENTQ, RAM, STRTAB, SYNC, TABLES, ste_stage2
from smmuv3_stage1_board import SID, Stage1Board, cd, ste_nested, ste_stage1
from test_smmuv3_properties import OUTPUT_BITS, field

from machine.iommu.replacement import Random as RandomPolicy
from machine.iommu.unit import Fault

SEEDS = st.integers(0, (1 << 32) - 1)
CD_AT = TABLES + 0x8000
ROOT2 = 0x40_0000
FLAGS = 1 << 10 | 1 << 7


class Blocked(Exception):
    """(event, stage, what was being accessed)."""


def stage2(board, ste, ipa, want, purpose):
    """The machine address of ``ipa`` if ``want`` ("r", "w", "x" or "X", privileged) is allowed."""
    bits = format(ipa, "048b")
    table = field(ste, 243, 196) << 4
    for level, piece in enumerate([bits[:9], bits[9:18], bits[18:27], bits[27:36]]):
        word = format(board.memory.read64(table + 8 * int(piece, 2)), "064b")[::-1]
        if word[0] == "0" or (word[1] == "0" and level in (0, 3)):
            raise Blocked("F_TRANSLATION", 2, purpose)
        address = sum(2**n for n in range(12, 48) if word[n] == "1")
        if word[1] == "0" or level == 3:
            break
        table = address
    hardware = field(ste, 184, 184), field(ste, 183, 183)
    if word[10] == "0" and not field(ste, 181, 181) and not hardware[0]:
        raise Blocked("F_ACCESS", 2, purpose)
    allowed = {letter for letter, n in (("r", 6), ("w", 7)) if word[n] == "1"}
    if word[54] == "0":
        allowed |= {"x", "X"}
    if all(hardware) and word[51] == "1":
        allowed.add("w")
    if want not in allowed or (purpose != "in" and field(ste, 182, 182) and word[4] + word[5] == "00"):
        raise Blocked("F_PERMISSION", 2, purpose)
    span = 2 ** (39 - 9 * level)
    return address // span * span + ipa % span


def legal(words, stage1_only, config):
    def bit(n):
        return field(words, n, n)

    ranges = []
    for half, (size, epd, granule, base) in enumerate(((5, 14, 6, 1), (21, 30, 22, 2))):
        ips = min(OUTPUT_BITS[field(words, 34, 32)], config.oas)
        ranges.append(
            bit(epd) == 1
            or (
                16 <= field(words, size, size - 5) <= 39
                and field(words, granule + 1, granule) == (0, 2)[half]
                and field(words, 64 * base + 51, 64 * base + 4) << 4 < 1 << ips
            )
        )
    return all(
        [
            bit(31),
            bit(46),
            bit(41),
            not bit(44),
            not bit(15) or (bit(14) and bit(30)),
            *ranges,
        ]
    )


def rights(word, above, flags):
    """Letters that a page allows: r, w, x for unprivileged, R, W, X for privileged; ``above``: table bits or-ed."""
    read_only = word[7] == "1" or above[62] == "1"
    everybody = word[6] == "1" and above[61] == "0"
    user = {"r", "w", "x"} if everybody else {"x"}
    kernel = {"R", "W", "X"}
    if read_only:
        user -= {"w"}
        kernel -= {"W"}
    if word[54] == "1" or above[60] == "1" or (flags["wxn"] and "w" in user):
        user -= {"x"}
    if word[53] == "1" or above[59] == "1" or "w" in user or (flags["wxn"] and "W" in kernel):
        kernel -= {"X"}
    if flags["pan"] and everybody:
        kernel -= {"R", "W"}
    return user | kernel


def twin(board, ste, words, va, write):
    """The machine address, or :class:`Blocked`."""
    config = board.unit.config
    nested = field(ste, 3, 1) == 7
    fetches, privileged = field(ste, 115, 114) == 3 and not write, field(ste, 113, 112) == 3

    def through(address, want, purpose):
        return stage2(board, ste, address, want, purpose) if nested else address

    through(CD_AT, "r", "cd")
    if not legal(words, not nested, config):
        raise Blocked("C_BAD_CD", 0, "")
    upper = va >> 55 & 1
    size = field(words, 21, 16) if upper else field(words, 5, 0)
    if field(words, 30, 30) if upper else field(words, 14, 14):
        raise Blocked("F_TRANSLATION", 1, "in")
    text = format(va, "064b")[8 if field(words, 38 + upper, 38 + upper) else 0 :]
    if set(text[: len(text) - (64 - size)]) - {"01"[upper]}:
        raise Blocked("F_TRANSLATION", 1, "in")
    text = text[len(text) - (64 - size) : -12]
    pieces = []
    while text:
        pieces.insert(0, text[-9:])
        text = text[:-9]
    base = 64 * (2 if upper else 1)
    entries = 2 ** len(pieces[0])
    table = (field(words, base + 51, base + 4) << 4) // (8 * entries) * (8 * entries)
    had = config.had and field(words, base + 1, base + 1)
    output = min(OUTPUT_BITS[field(words, 34, 32)], config.oas)
    above = "0" * 64
    for level, piece in enumerate(pieces, 4 - len(pieces)):
        where = table + 8 * int(piece, 2)
        at = through(where, "r", "tt")
        if at + 8 > board.memory.size:
            raise Blocked("F_WALK_EABT", 1, "tt")
        word = format(board.memory.read64(at), "064b")[::-1]
        if word[0] == "0" or (word[1] == "0" and level in (0, 3)):
            raise Blocked("F_TRANSLATION", 1, "in")
        if "1" in word[output:48]:
            raise Blocked("F_ADDR_SIZE", 1, "in")
        address = sum(2**n for n in range(12, 48) if word[n] == "1")
        if word[1] == "0" or level == 3:
            break
        if not had:
            above = "".join(max(a, b) for a, b in zip(above, word))
        table = address
    sets_accessed = field(words, 43, 43) == 1
    if word[10] == "0" and not sets_accessed and field(words, 35, 35) == 0:
        raise Blocked("F_ACCESS", 1, "in")
    flags = {"wxn": field(words, 36, 36), "pan": field(words, 40, 40)}
    want = "w" if write else "x" if fetches else "r"
    if privileged:
        want = want.upper()
    changes = word[10] == "0" and sets_accessed
    if want not in rights(word, above, flags):
        dirtied = word[:7] + "0" + word[8:]
        dirty = sets_accessed and field(words, 42, 42) and word[51] == "1" and write
        if not dirty or want not in rights(dirtied, above, flags):
            raise Blocked("F_PERMISSION", 1, "in")
        changes = True
    if changes:
        through(where, "w", "tt")
    span = 2 ** (39 - 9 * level)
    return through(address // span * span + va % span, "X" if want == "X" else want.lower(), "in")


def random_descriptor(random):
    word = random.choice([3] * 9 + [1, 1, 0]) | TABLES + 0x1000 * random.randrange(8)
    word |= random.choice([1, 1, 1, 0, 2, 3]) << 6 | (random.random() < 0.85) << 10
    if random.random() < 0.15:
        word |= random.getrandbits(4) << 59 | random.getrandbits(2) << 53
    if random.random() < 0.2:
        word |= 1 << 51
    if random.random() < 0.05:
        word |= random.choice([random.getrandbits(36) << 12, RAM])
    return word


def random_cd(random):
    sizes = [random.choice([16, 16, 25, 34, random.randrange(16, 40)]) for _ in range(2)]
    bases = [TABLES + 0x1000 * random.randrange(8) for _ in range(2)]
    bases[0] |= random.choice([0, 0, 2])
    extra = sum(1 << n for n in (35, 36, 38, 39, 40, 42, 43) if random.random() < 0.2)
    words = list(cd(5, bases[0], sizes[0], bases[1], sizes[1], random.choice([5, 5, 5, 0, 7]), extra))
    if random.random() < 0.2:
        words[0] ^= 1 << random.randrange(48)
    return words


def random_tables2(board, random):
    """A stage 2 of intermediate addresses 0 to 2 MiB above TABLES, each page where it is, but for some."""
    for page in range(16):
        ipa = TABLES + 0x1000 * page
        attributes = 0x7FF
        if random.random() < 0.25:
            attributes ^= random.choice([1, 1 << 6, 1 << 7, 1 << 10, 0x38, 1 << 51 | 1 << 7, 1 << 54])
        board.map(ROOT2, ipa, ipa, attributes)


CLASSES = {"cd": 0, "tt": 1, "in": 2}


@settings(max_examples=70, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_both_readings_of_stage_1_agree(seed, nested, had):
    random = Random(seed)
    board = Stage1Board(had=had)
    board._next_table = ROOT2 + 0x1000
    for page in range(8):
        for slot in (*range(8), 511):
            board.memory.write64(TABLES + 0x1000 * page + 8 * slot, random_descriptor(random))
    if nested:
        random_tables2(board, random)
    for _ in range(5):
        overrides = random.choice([0, 0, 3]) << 48 | random.choice([0, 0, 3]) << 50
        if nested:
            extra2 = random.choice([0, 0, 1 << 53, 1 << 56, 3 << 55])
            ste = ste_nested(CD_AT, 3, ROOT2, extra1=overrides, extra2=extra2)
        else:
            ste = ste_stage1(CD_AT, extra1=overrides)
        board.set_ste(SID, ste)
        words = random_cd(random)
        board.set_cd(CD_AT, words)
        for _ in range(12):
            size = 64 - field(words, 5, 0)
            va = sum(random.choice([0, 1, 2, 7]) << n for n in (12, 21, 30, 39)) & (1 << size) - 1 | 0x18
            if random.random() < 0.3:
                va |= -1 << 64 - field(words, 21, 16) & (1 << 64) - 1
            if random.random() < 0.1:
                va = random.getrandbits(64)
            write = random.random() < 0.5
            board.command((0x30, 0), (0x04, 31), SYNC)
            try:
                expected = (None, twin(board, ste, words, va, write))
            except Blocked as blocked:
                expected = blocked.args
            walk = board.unit.walk(SID, va, write)
            assert (walk.blocked, walk.maddr) == (expected[0], None if expected[0] else expected[1])
            before = bytes(board.memory.bytes[TABLES : ROOT2 + 0x8000])
            result = board.unit.translate(SID, va, write)
            check_flags(before, bytes(board.memory.bytes[TABLES : ROOT2 + 0x8000]), words, ste)
            if isinstance(result, int):
                assert result == expected[1] and board.unit.translate(SID, va, write) == result
                continue
            assert result.name == expected[0]
            if result.record and result.name.startswith("F_"):
                assert (result.record[1] >> 39 & 1, result.record[1] >> 40 & 3) == (
                    expected[1] == 2,
                    CLASSES[expected[2]],
                )


def check_flags(before, after, words, ste):
    """Hardware changes no bit but AF and dirty state, and none where it was not asked to."""
    if before == after:
        return
    assert field(words, 43, 43) or field(ste, 184, 184)
    for at in range(0, len(before), 8):
        if before[at : at + 8] != after[at : at + 8]:
            old, new = (int.from_bytes(data[at : at + 8], "little") for data in (before, after))
            assert not (old ^ new) & ~FLAGS
            assert not (old ^ new) & 1 << 10 or new & 1 << 10


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_random_bytes_everywhere_never_raise_whatever_is_implemented(seed):
    random = Random(seed)
    board = Stage1Board(
        replacement=random.choice([None, RandomPolicy(seed, 8)]),
        two_level=random.random() < 0.3,
        stall_model=random.randrange(3),
        hyp=random.random() < 0.5,
        ats=True,
        pri=True,
        bbml=random.randrange(3),
    )
    board._next_table = ROOT2 + 0x1000
    for base in (STRTAB, CMDQ, TABLES, CD_AT, EVENTQ):
        board.memory.write(base, random.randbytes(0x2000))
    for sid in range(64):
        low = random.choice([ste_stage1(CD_AT, 4, random.randrange(4), random.randrange(4)), ste_stage2(3, TABLES)])
        ste = list(random.choice([low, ste_nested(CD_AT, 3, ROOT2, 4), low]))
        ste[random.randrange(4)] ^= 1 << random.randrange(64)
        board.set_ste(sid, ste, flush=False)
    for index in range(16):
        board.set_cd(CD_AT, random_cd(random), ssid=index, flush=False)
    random_tables2(board, random)
    for _ in range(60):
        sid, pasid = random.randrange(80), random.choice([None, random.randrange(20), random.getrandbits(20)])
        va = random.choice([TABLES + random.randrange(0x8000), random.getrandbits(random.choice([12, 48, 64]))])
        write = random.random() < 0.5
        action = random.random()
        if action < 0.5:
            result = board.unit.translate(sid, va, write, pasid)
            assert isinstance(result, (int, Fault))
            board.unit.walk(sid, va, write, pasid)
        elif action < 0.6:
            board.unit.translation_request(sid, va, write, pasid)
            board.unit.translated_request(sid, va, write)
        elif action < 0.9:
            opcode = random.choice([*range(0x48)])
            board.command((opcode | random.getrandbits(56) << 8 & ~(0xF << 28), random.getrandbits(64)))
            if board.cmdq_error():
                board.w32(0x98, board.r32(0x9C) & 0x1FF)
                board.w32(0x64, board.r32(0x60))
        else:
            offset = random.choice([0x20, 0x2C, 0x50, 0xC0, 0x100AC, 0x100C8, 0x100CC])
            board.w32(offset, random.getrandbits(32) & (0b11111 if offset in (0x20, 0x50) else -1))
            board.w32(0x20, random.choice([0b1111, 0b11111]))
    state = board.unit.save()
    board.unit.restore(state)
    assert board.unit.save() == state
