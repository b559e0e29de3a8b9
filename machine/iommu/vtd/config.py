# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VT-d unit is capable of, and how it says so in CAP and ECAP (VT-d specification 11.4.2, 11.4.3).

A configuration is a value.  The model asks it what to accept; software can only learn it from the two registers.
"""

from dataclasses import dataclass
from typing import Final

from base.bits import Layout, bit, bits

SAGAW_BIT: Final = {39: 1, 48: 2}
"""CAP.SAGAW bit, which is also the AW value of a context entry, for each input width in bits."""


class Cap(Layout):
    """Capability register."""

    esrtps = bit(63, "SRTP also drops every cached entry")
    fs5lp = bit(60, "first-stage tables may have five levels")
    fs1gp = bit(56, "first-stage tables may have 1 GiB pages")
    drd = bit(55, "IOTLB invalidations can drain reads")
    dwd = bit(54, "IOTLB invalidations can drain writes")
    mamv = bits(53, 48, "largest AM of a page-selective invalidation")
    nfr = bits(47, 40, "fault recording registers - 1")
    psi = bit(39, "page-selective IOTLB invalidation")
    sllps_1g = bit(35)
    sllps_2m = bit(34)
    fro = bits(33, 24, "offset of the fault recording registers / 16")
    zlr = bit(22, "zero-length reads of write-only pages pass")
    mgaw = bits(21, 16, "widest DMA address in bits - 1")
    sagaw = bits(12, 8)
    cm = bit(7, "caching mode: not-present and faulty entries may be cached")
    phmr = bit(6)
    plmr = bit(5)
    rwbf = bit(4, "software has to flush the write buffer")
    afl = bit(3)
    nd = bits(2, 0, "domain ids are 4 + 2 * ND bits wide")


class Ecap(Layout):
    """Extended capability register."""

    rps = bit(49, "RID_PASID of a scalable context entry counts")
    smpwcs = bit(48, "page walks snoop if the PASID table entry says so")
    fsts = bit(47, "first-stage translation")
    ssts = bit(46, "second-stage translation in scalable mode")
    ssads = bit(45, "accessed and dirty bits in the second stage")
    smts = bit(43, "scalable mode")
    pasid = bit(40, "requests with PASID")
    pss = bits(39, 35, "width of a PASID in bits - 1")
    eafs = bit(34, "extended accessed bit in the first stage")
    srs = bit(31, "supervisor requests")
    nest = bit(26, "nested translation")
    mhmv = bits(23, 20)
    iro = bits(17, 8, "offset of the IOTLB registers / 16")
    sc = bit(7, "snoop control")
    pt = bit(6, "pass-through")
    eim = bit(4)
    ir = bit(3)
    dt = bit(2, "device TLBs")
    qi = bit(1, "queued invalidation")
    c = bit(0, "page walks are coherent")


@dataclass(frozen=True, slots=True, kw_only=True)
class VtdConfig:
    """One unit's capabilities.  ``ValueError`` for a combination that no register could report."""

    domain_id_bits: int = 16
    """4, 6, ... 16."""
    address_widths: tuple[int, ...] = (39, 48)
    """Input widths that a context entry may ask for."""
    max_guest_address_width: int = 48
    host_address_width: int = 48
    """Address bits from here up are reserved in every table entry."""
    superpage_2m: bool = True
    superpage_1g: bool = True
    page_selective: bool = True
    max_address_mask: int = 18
    caching_mode: bool = False
    write_buffer_flush: bool = False
    """CAP.RWBF: stores to tables wait in a write buffer until software flushes it."""
    drain_reads: bool = True
    drain_writes: bool = True
    zero_length_reads: bool = False
    set_root_invalidates: bool = False
    """CAP.ESRTPS."""
    fault_records: int = 8
    fault_record_offset: int = 0x220
    """Byte offset of the first fault recording register; a multiple of 16."""
    iotlb_offset: int = 0xF0
    """Byte offset of IVA, followed by the IOTLB register; a multiple of 16."""
    coherent_walk: bool = True
    """ECAP.C; without it, stores to tables are seen once their cache lines are written back."""
    snoops_anyway: bool = False
    """Walks are coherent although ECAP.C says that software must not count on it, as in QEMU."""
    queued_invalidation: bool = True
    pass_through: bool = True
    snoop_control: bool = True

    device_tlb: bool = False

    scalable: bool = False
    """ECAP.SMTS, and with it PASIDs; the fields below count only then."""
    pasid_bits: int = 20
    first_stage: bool = True
    first_stage_1g: bool = True
    five_levels: bool = False
    """CAP.FS5LP: first-stage tables of 57-bit addresses."""
    second_stage: bool = True
    second_stage_accessed_dirty: bool = False
    nested: bool = True
    supervisor_requests: bool = False
    extended_accessed: bool = False
    page_walk_snoop: bool = True
    """ECAP.SMPWCS: PWSNP of a PASID table entry makes its page walks coherent."""

    collapse_faults: bool = True
    """While a source has a fault pending, further ones of the same source are not recorded (7.2.1: optional)."""
    paging_structure_caches: bool = True
    """Remember pointers to the two lowest table levels, as real units do (6.2.4)."""

    def __post_init__(self) -> None:
        if self.domain_id_bits not in range(4, 17, 2):
            raise ValueError(f"domain ids are 4, 6, ... 16 bits wide, not {self.domain_id_bits}")
        if not self.address_widths or set(self.address_widths) - SAGAW_BIT.keys():
            raise ValueError(f"input widths are {', '.join(map(str, SAGAW_BIT))}, not {self.address_widths}")
        if not 30 <= self.max_guest_address_width <= 64:
            raise ValueError(f"a MGAW of {self.max_guest_address_width} bits")
        if not 32 <= self.host_address_width <= 52:
            raise ValueError(f"a host address width of {self.host_address_width} bits")
        if not 0 <= self.max_address_mask <= 63:
            raise ValueError(f"a MAMV of {self.max_address_mask}")
        if self.write_buffer_flush and not self.coherent_walk:
            raise ValueError("a write buffer in front of walks that are not coherent")
        if self.scalable and (self.write_buffer_flush or not 7 <= self.pasid_bits <= 20):
            raise ValueError("scalable mode has PASIDs of 7 to 20 bits and no write buffer")
        if self.scalable and self.nested and not (self.first_stage and self.second_stage):
            raise ValueError("nested translation without both stages")
        if self.superpage_1g and not self.superpage_2m:
            raise ValueError("1 GiB pages without 2 MiB pages: SLLPS reports sizes from the smallest up")
        faults = range(self.fault_record_offset, self.fault_record_offset + 16 * self.fault_records)
        iotlb = range(self.iotlb_offset, self.iotlb_offset + 16)
        if not 1 <= self.fault_records <= 256:
            raise ValueError(f"{self.fault_records} fault recording registers")
        for what, block in (("fault recording", faults), ("IOTLB", iotlb)):
            if block.start % 16 or block.start < 0xF0 or block.stop > 0x1000:
                raise ValueError(f"the {what} registers lie between 0xf0 and 0x1000, not at {block.start:#x}")
        if faults.start < iotlb.stop and iotlb.start < faults.stop:
            raise ValueError("the fault recording registers overlap the IOTLB registers")

    @property
    def cap(self) -> int:
        """The capability register."""
        return Cap.pack(
            esrtps=self.set_root_invalidates,
            fs5lp=self.scalable and self.five_levels,
            fs1gp=self.scalable and self.first_stage and self.first_stage_1g,
            drd=self.drain_reads,
            dwd=self.drain_writes,
            mamv=self.max_address_mask if self.page_selective else 0,
            nfr=self.fault_records - 1,
            psi=self.page_selective,
            sllps_1g=self.superpage_1g,
            sllps_2m=self.superpage_2m,
            fro=self.fault_record_offset >> 4,
            zlr=self.zero_length_reads,
            mgaw=self.max_guest_address_width - 1,
            sagaw=sum(1 << SAGAW_BIT[width] for width in set(self.address_widths)),
            cm=self.caching_mode,
            rwbf=self.write_buffer_flush,
            nd=(self.domain_id_bits - 4) // 2,
        )

    @property
    def ecap(self) -> int:
        """The extended capability register."""
        scalable = {
            "rps": 1,
            "smpwcs": self.page_walk_snoop,
            "fsts": self.first_stage,
            "ssts": self.second_stage,
            "ssads": self.second_stage_accessed_dirty,
            "smts": 1,
            "pasid": 1,
            "pss": self.pasid_bits - 1,
            "eafs": self.extended_accessed,
            "srs": self.supervisor_requests,
            "nest": self.nested,
        }
        return Ecap.pack(
            **(scalable if self.scalable else {}),
            dt=self.device_tlb,
            iro=self.iotlb_offset >> 4,
            sc=self.snoop_control,
            pt=self.pass_through,
            qi=self.queued_invalidation,
            c=self.coherent_walk,
        )
