# SPDX-License-Identifier: GPL-2.0-or-later
"""What the oracle of real Xen's tables notices, on tables of the posted algorithm in place of a booted Xen's."""

import gzip
import subprocess
import sys

import pytest

from hypervisor.defects.posted_table import PostedPageTable
from hypervisor.pagetable.radix import Changes
from hypervisor.vtd.format import SECOND_STAGE
from machine.memory import PhysicalMemory
from oracle.outcome import Outcome
from oracle.process import ModelMissing
from oracle.xen_boot import DOM0_KERNEL, XEN, Case, images
from oracle.xen_tables import Judge

ROOT, CONTEXTS, TABLE, QUEUE = 1, 2, 3, 4
SID = 0xF8
REGISTERS = {
    0x08: 0xD2_008C_222F_0606,  # CAP and ECAP as QEMU 7.2 reports them with aw-bits=48
    0x10: 0xF0_0F4A,
    0x20: ROOT << 12,
    0x88: 3 << 4,
    0x90: QUEUE << 12,
}
CASE = Case("made", "", "", 48)


class Booted:
    """What :class:`XenBoot` is once Xen stands still, with the posted page table in Xen's place."""

    def __init__(self):
        self.memory = PhysicalMemory(4 << 20)
        self.ram = self
        frames = list(range(16, 64))
        pool = type("Pool", (), {"allocate": lambda _: frames.pop(0), "free": lambda _, frame: None})()
        table = PostedPageTable(self.memory, SECOND_STAGE, 4, TABLE, pool)
        changes = Changes()
        for dfn, mfn, count, rights in ((0x200, 0x200, 512, 3), (0x403, 0x103, 9, 1), (0x40_0000, 0x300, 16, 3)):
            for page in range(count):
                table.map(dfn + page, mfn + page, 1, rights, changes)
        table.unmap(0x40_0004, 2, changes)
        words = self.memory.words
        words[ROOT * 512] = CONTEXTS << 12 | 1
        words[CONTEXTS * 512 + 2 * SID : CONTEXTS * 512 + 2 * SID + 2] = memoryview(
            (TABLE << 12 | 1).to_bytes(8, "little") + (1 << 8 | 2).to_bytes(8, "little")
        ).cast("Q")
        for slot, low in enumerate((0x11, 0x1_0012, 0x1_0022)):  # context cache, global; IOTLB, global; and one domain
            words[QUEUE * 512 + 2 * slot] = low
        self.leaf = next(at for at in range(16 * 512, 64 * 512) if words[at] & ~(0xF << 52) == 0x103 << 12 | 1)

    def register(self, offset, size):
        return REGISTERS[offset]

    def judged(self):
        outcome = Outcome("xen-tables", 0)
        Judge(self, CASE, outcome).judge()
        return outcome


def test_tables_of_the_posted_algorithm_agree_with_walk_and_markers():
    outcome = Booted().judged()
    assert not outcome.findings
    assert outcome.counts["passed"] > 40
    assert outcome.counts["markers"] >= 5 * 512
    assert outcome.counts["descriptors"] == 3


@pytest.mark.parametrize("bit", [52, 53, 54, 55])
def test_every_bit_of_a_marker_is_noticed(bit):
    booted = Booted()
    booted.memory.words[booted.leaf] ^= 1 << bit
    assert {finding.kind for finding in booted.judged().findings} == {("marker",)}


@pytest.mark.parametrize("bit", [11, 48, 62])
def test_a_reserved_bit_in_a_leaf_is_noticed(bit):
    booted = Booted()
    booted.memory.words[booted.leaf] |= 1 << bit
    assert ("translation",) in {finding.kind for finding in booted.judged().findings}


def test_a_descriptor_that_no_unit_executes_is_noticed():
    booted = Booted()
    booted.memory.words[QUEUE * 512 + 2] = 0x0F
    (finding,) = booted.judged().findings
    assert finding.kind == ("descriptor",)
    assert "descriptor 1" in finding.differences[0][0]


def test_a_file_that_is_not_there_is_named_in_one_line(monkeypatch):
    monkeypatch.setenv(XEN, "/no/such/xen.gz")
    with pytest.raises(ModelMissing, match=r"PVIOMMU_XEN=/no/such/xen\.gz"):
        images()


def test_the_real_xen_is_judged_without_a_disagreement():
    try:
        images()
    except ModelMissing as missing:
        pytest.skip(str(missing))
    command = [sys.executable, "-m", "pviommu", "oracle", "run", "xen-tables", "--time", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert DOM0_KERNEL not in done.stderr


@pytest.mark.parametrize(
    ("variable", "content", "why"),
    [
        (XEN, b"root:x:0:0\n", "is no Xen"),
        (XEN, b"", "is no Xen"),
        (XEN, gzip.compress(b"\x7fELF" + bytes(5000), mtime=0)[:-9], "is no Xen"),
        (XEN, gzip.compress(b"something else", mtime=0), "is no Xen"),
        (DOM0_KERNEL, b"root:x:0:0\n", "is no kernel"),
        (DOM0_KERNEL, bytes(0x206), "is no kernel"),
    ],
    ids=["text", "empty", "cut off", "packed text", "text for a kernel", "zeros for a kernel"],
)
def test_files_that_are_something_else_are_refused_before_anything_boots(tmp_path, monkeypatch, variable, content, why):
    for name, good in ((XEN, b"\x7fELF"), (DOM0_KERNEL, bytes(0x202) + b"HdrS")):
        (tmp_path / name).write_bytes(content if name == variable else good)
        monkeypatch.setenv(name, str(tmp_path / name))
    with pytest.raises(ModelMissing, match=why) as refused:
        images()
    assert "\n" not in str(refused.value)
