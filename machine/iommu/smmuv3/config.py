# SPDX-License-Identifier: GPL-2.0-or-later
"""What an SMMUv3 implementation may choose, and the ID registers that report the choice (IHI 0070, 6.3.1 to 6.3.8).

Only what this model honours can be chosen.  Tables are VMSAv8-64 with a 4 KiB granule, little-endian, and
terminated transactions abort; the ID registers say so.  By default there is stage 2 alone, as Xen uses it.
"""

from dataclasses import dataclass
from typing import Final

from base.bits import Layout, bit, bits

OAS_BITS: Final = (32, 36, 40, 42, 44, 48, 52)
"""Output address sizes by their encoding in IDR5.OAS and STE.S2PS; 7 is reserved."""


class Idr0(Layout, width=32):
    st_level = bits(28, 27, "1: two-level stream tables")
    term_model = bit(26, "1: a terminated transaction always aborts")
    stall_model = bits(25, 24, "0 both, 1 terminate only, 2 stall only")
    ttendian = bits(22, 21, "0 mixed, 2 little-endian, 3 big-endian")
    vatos = bit(20)
    cd2l = bit(19)
    vmid16 = bit(18)
    vmw = bit(17)
    pri = bit(16)
    atos = bit(15)
    sev = bit(14)
    msi = bit(13)
    asid16 = bit(12)
    ns1ats = bit(11)
    ats = bit(10)
    hyp = bit(9)
    dormhint = bit(8)
    httu = bits(7, 6)
    btm = bit(5)
    cohacc = bit(4)
    ttf = bits(3, 2, "2: VMSAv8-64 only")
    s1p = bit(1)
    s2p = bit(0)


class Idr1(Layout, width=32):
    ecmdq = bit(31)
    tables_preset = bit(30)
    queues_preset = bit(29)
    rel = bit(28)
    attr_types_ovr = bit(27)
    attr_perms_ovr = bit(26)
    cmdqs = bits(25, 21)
    eventqs = bits(20, 16)
    priqs = bits(15, 11)
    ssidsize = bits(10, 6)
    sidsize = bits(5, 0)


class Idr3(Layout, width=32):
    bbml = bits(12, 11, "break-before-make level")
    ril = bit(10, "range invalidation and level hint")
    stt = bit(9)
    fwb = bit(8)
    mpam = bit(7)
    xnx = bit(4)
    pps = bit(3)
    had = bit(2)


class Idr5(Layout, width=32):
    stall_max = bits(31, 16)
    vax = bits(11, 10)
    gran64k = bit(6)
    gran16k = bit(5)
    gran4k = bit(4)
    oas = bits(2, 0)


@dataclass(frozen=True, slots=True)
class Smmuv3Config:
    """One implementation: Non-secure only, SMMUv3.2; stage 2 only unless it says more.

    ``ValueError`` for a choice that the architecture does not allow or the model does not have.
    """

    sid_bits: int = 16
    """IDR1.SIDSIZE: stream ids are this wide (0 to 32)."""
    oas: int = 48
    """Output address size in bits: 32, 36, 40, 42, 44 or 48; intermediate addresses are as wide (3.4)."""
    two_level: bool = True
    """IDR0.ST_LEVEL: two-level stream tables."""
    vmid16: bool = True
    """IDR0.VMID16: VMIDs of 16 bits rather than 8."""
    cmdq_log2: int = 16
    """IDR1.CMDQS: log2 of the most entries that the Command queue may have (0 to 19)."""
    eventq_log2: int = 16
    """IDR1.EVENTQS: the same for the Event queue."""
    msi: bool = True
    """IDR0.MSI: interrupts may be messages; wired ones exist in any case."""
    sev: bool = True
    """IDR0.SEV: CMD_SYNC can signal an event to processors."""
    coherent: bool = True
    """IDR0.COHACC: tables and queues are read coherently.  The model always does; this is what it reports."""
    ril: bool = True
    """IDR3.RIL: invalidation by range with a level hint."""
    xnx: bool = False
    """IDR3.XNX: stage 2 execute-never distinguishes EL0 from EL1."""
    perms_override: bool = True
    """IDR1.ATTR_PERMS_OVR: STE.INSTCFG and STE.PRIVCFG have an effect."""
    bbml: int = 2
    """IDR3.BBML: 0 to 2; only at level 2 may software change a block for a table, or back, without making it invalid
    and invalidating between."""
    caches_empty_l1std: bool = True
    """Keep first-level stream table descriptors with Span 0 too.  5.1.1 lets an implementation do so and asks
    software to invalidate after filling one; drivers that do not can be run with False."""
    stage1: bool = False
    """IDR0.S1P: stage 1 and its context descriptors; with ``stage2`` nested translation too."""
    stage2: bool = True
    """IDR0.S2P."""
    ssid_bits: int = 0
    """IDR1.SSIDSIZE: SubstreamIDs (PASIDs) are this wide (0 to 20); 0: there are none."""
    two_level_cd: bool = True
    """IDR0.CD2L, reported with substreams: two-level tables of context descriptors."""
    asid16: bool = True
    """IDR0.ASID16, reported with stage 1: ASIDs of 16 bits rather than 8."""
    hyp: bool = False
    """IDR0.Hyp: stage 1 of the EL2 and EL2-E2H worlds (STE.STRW)."""
    had: bool = False
    """IDR3.HAD: CD.HAD0 and HAD1 switch hierarchical attributes off."""
    httu: int = 0
    """IDR0.HTTU: 0 software keeps the flags of descriptors, 1 hardware sets AF, 2 and dirty state."""
    stall_model: int = 1
    """IDR0.STALL_MODEL: 0 faults stall or terminate as configured, 1 terminate, 2 stall."""
    stall_max: int = 32
    """IDR5.STALL_MAX, reported where stalls exist: so many transactions stall at once, others wait outside."""
    ats: bool = False
    """IDR0.ATS: translation requests, translated transactions, CMD_ATC_INV."""
    split_ats: bool = True
    """The inverse of IDR0.NS1ATS: STE.EATS may hand out intermediate addresses."""
    pri: bool = False
    """IDR0.PRI: page requests and the PRI queue; needs ``ats``.  Automatic responses keep the PASID (IDR3.PPS)."""
    priq_log2: int = 8
    """IDR1.PRIQS, reported with ``pri``: log2 of the most entries that the PRI queue may have (0 to 19)."""
    tlb_conflict: str = "fault"
    """What two cached translations of one address lead to while ``bbml`` is below 2: ``fault`` (F_TLB_CONFLICT), or the
    translation of the ``small`` or of the ``large`` page.  With level 2 the small one is taken."""
    abort_at_reset: bool = False
    """GBPA.ABORT after reset: whether a disabled unit blocks everything."""
    iidr: int = 0
    """Implementation identification as read by software."""

    def __post_init__(self) -> None:
        if not 0 <= self.sid_bits <= 32:
            raise ValueError(f"StreamIDs have 0 to 32 bits, not {self.sid_bits}")
        if self.oas not in OAS_BITS[:6]:
            raise ValueError(f"an output address size of {self.oas} bits; the model has {OAS_BITS[:6]}")
        for name, value in (
            ("cmdq_log2", self.cmdq_log2),
            ("eventq_log2", self.eventq_log2),
            ("priq_log2", self.priq_log2),
        ):
            if not 0 <= value <= 19:
                raise ValueError(f"{name} is {value}; a queue has 2^0 to 2^19 entries")
        for name, value in (("bbml", self.bbml), ("httu", self.httu), ("stall_model", self.stall_model)):
            if not 0 <= value <= 2:
                raise ValueError(f"{name} is {value}; there are 0, 1 and 2")
        if not (self.stage1 or self.stage2):
            raise ValueError("neither stage 1 nor stage 2: there would be nothing to translate")
        if not 0 <= self.ssid_bits <= 20:
            raise ValueError(f"SubstreamIDs have 0 to 20 bits, not {self.ssid_bits}")
        if not self.stage1 and (self.ssid_bits or self.hyp):
            raise ValueError("substreams and the EL2 worlds belong to stage 1, which is absent")
        if self.pri and not self.ats:
            raise ValueError("PRI needs ATS")
        if not 1 <= self.stall_max < 1 << 16:
            raise ValueError(f"stall_max is {self.stall_max}; STALL_MAX has 16 bits and is not 0 where stalls exist")
        if self.tlb_conflict not in ("fault", "small", "large"):
            raise ValueError(f"tlb_conflict is {self.tlb_conflict!r}; there are fault, small and large")
        if not 0 <= self.iidr < 1 << 32:
            raise ValueError(f"IIDR has 32 bits, {self.iidr:#x} does not fit")

    def id_registers(self) -> dict[str, int]:
        """The values of the ID registers, by name."""
        return {
            "IDR0": Idr0.pack(
                s2p=self.stage2,
                s1p=self.stage1,
                ttf=2,
                cohacc=self.coherent,
                msi=self.msi,
                sev=self.sev,
                vmid16=self.vmid16 and self.stage2,
                ttendian=2,
                stall_model=self.stall_model,
                asid16=self.asid16 and self.stage1,
                cd2l=self.two_level_cd and bool(self.ssid_bits),
                hyp=self.hyp,
                httu=self.httu,
                ats=self.ats,
                ns1ats=self.ats and not self.split_ats,
                pri=self.pri,
                term_model=1,
                st_level=self.two_level,
            ),
            "IDR1": Idr1.pack(
                sidsize=self.sid_bits,
                ssidsize=self.ssid_bits,
                priqs=self.priq_log2 if self.pri else 0,
                eventqs=self.eventq_log2,
                cmdqs=self.cmdq_log2,
                attr_types_ovr=1,
                attr_perms_ovr=self.perms_override,
            ),
            "IDR2": 0,
            "IDR3": Idr3.pack(
                bbml=self.bbml, ril=self.ril, xnx=self.xnx, had=self.had, pps=self.pri and bool(self.ssid_bits)
            ),
            "IDR4": 0,
            "IDR5": Idr5.pack(
                gran4k=1, oas=OAS_BITS.index(self.oas), stall_max=0 if self.stall_model == 1 else self.stall_max
            ),
            "IIDR": self.iidr,
            "AIDR": 0x02,
        }
