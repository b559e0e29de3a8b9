# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden records of random calls, answered by :mod:`second_reading`: the same JSON lines as the recorder's."""

import json
import random

from second_reading import BRIDGES, EFAULT, ENDPOINTS, NAMES, U64, Hangs, Xen

RUNS = {"F": (6092, 131072), "G": (5120, 224256), "H": (1024, 214528)}
"""Name -> (frames, first frame modulo 2^18), as on the recording machine."""
BASE = 1 << 18
"""Where the replay puts a run whose place the record does not tell."""
COMMAND_LINE = "console=com1 iommu=verbose,debug,force dom0={} dom0_mem=512M dom0_max_vcpus=1 noreboot"
NOWHERE = ("0x0", "0x1", "0xfd", "0xfed1c", "0xfffffff", "0xffffffffffffffff", "arena+0", "arena+3")
PLACES = (0, 0x200, 0x400, 0x1F0, 0x7FE, 1 << 18, (1 << 18) - 2, 1 << 27, (1 << 27) - 1, (1 << 36) - 3, 1 << 36)
SIZES = (1, 1, 1, 2, 3, 4, 8, 16, 64, 255, 256, 256, 256, 0, 257)


def owned(frame):
    return any(0 <= frame - BASE - first < length for length, first in RUNS.values())


def named(frame):
    for name, (length, first) in RUNS.items():
        if 0 <= frame - BASE - first < length:
            return f"{name}{frame - BASE - first}"
    return hex(frame)


def number(text):
    if isinstance(text, str) and text[0] in RUNS and not text.startswith("0x"):
        return BASE + RUNS[text[0]][1] + int(text[1:])
    if isinstance(text, str) and text.startswith("="):
        return number(text[1:])
    if isinstance(text, str) and text.startswith("arena+"):
        return 1 << 41  # nobody's frame
    return int(text, 0) if isinstance(text, str) else text


class Writer:
    """One record.  ``seed`` decides everything."""

    def __init__(self, seed, order=9, *, pvh=False, debug=False):
        self.rng = random.Random(seed)
        self.xen = Xen(order, owned, pvh=pvh, debug=debug)
        self.pvh, self.lines, self.last = pvh, [], None
        boot = {"kind": "boot", "name": f"random-{seed}", "xen_build": f"debug={'y' if debug else 'n'}"}
        boot |= {"xen_cmdline": COMMAND_LINE.format("pvh" if pvh else "pv"), "arena_order": order, "arena_used": 0}
        boot |= {"ctx_count": 255, "baseline_ref": [3], "vtd_cap": "0xd2008c222f0606", "devices_ctx0": 8}
        runs = {name: {"len": length, "base_mod_262144": first} for name, (length, first) in RUNS.items()}
        self.lines.append(boot | {"runs": runs})
        self.state()

    def text(self):
        return "".join(json.dumps(line) + "\n" for line in self.lines)

    # ------------------------------------------------------------------------------------------------ lines

    def call(self, op, handle="", **given):
        """Issue a call and write down what the model answers; whether the host goes on."""
        line = {"kind": "call", "op": op, "in": given}
        before = self.xen.arena.used
        values = {name: number(value) for name, value in given.items()}
        if handle:
            line["handle"] = handle
        if handle.startswith("address"):
            self.xen.iq, self.xen.log, result, out = [], [], EFAULT, None
        else:
            try:
                result, out = self.xen.call(op, values)
            except Hangs:
                self.lines.append(line | {"hang": "no answer"})
                return False
        if handle == "read-only page":
            result, out = EFAULT, values
        line["ret"] = result
        if result:
            line["err"] = NAMES[result]
        if out is not None:
            line["out"] = {
                name: given[name] if value == values[name] else self._like(name, value, given[name])
                for name, value in out.items()
            }
        if self.xen.iq:
            line["iq"] = self.xen.iq
        if self.xen.log:
            line["xen_log"] = self.xen.log
        line["arena"] = self.xen.arena.used
        if self.xen.arena.used != before:
            line["arena_delta"] = self.xen.arena.used - before
        self.lines.append(line)
        return True

    @staticmethod
    def _like(name, value, given):
        return named(value) if isinstance(given, str) else value

    def state(self):
        """Everything that the recorder dumps."""
        xen = self.xen
        bitmap = sum(1 << n - 1 for n in xen.contexts if n)
        line = {"kind": "state", "arena_used": xen.arena.used, "contexts_bitmap": hex(bitmap)}
        line["ctx"] = {str(n): self._context(c) for n, c in xen.contexts.items() if n}
        line["context_entries"] = {self._sbdf(s): self._entry(s) for s in (*ENDPOINTS, *BRIDGES)}
        deltas = sorted((f, d) for f, d in xen.refs.items() if d and owned(f))
        line["extra_refs"] = [{"first": named(frame), "n": 1, "delta": delta} for frame, delta in deltas]
        self.lines.append(line)

    @staticmethod
    def _sbdf(sbdf):
        return f"{sbdf >> 8:02x}:{sbdf >> 3 & 31:02x}.{sbdf & 7}"

    def _entry(self, sbdf):
        context = self.xen.entries.get(sbdf)
        if context is None:
            # a bus without a context table has no entry at all
            bus = {other >> 8 for other in self.xen.entries}
            return {"lo_attrs": "0x0", "root": "0x0", "hi": "0x0"} if sbdf >> 8 in bus else None
        root = "0x7fc41" if context is self.xen.contexts[0] else f"arena+{context.tree.root}"
        return {"lo_attrs": "0x1", "root": root, "hi": hex(context.did << 8 | 2)}

    @staticmethod
    def _context(context):
        tree, leaves = context.tree, []
        for dfn, level, frame, rights in tree.leaves():
            attributes = hex(rights | (0x80 if level > 1 else 0))
            leaf = {"dfn": hex(dfn), "level": level, "frame": named(frame), "entries": 1, "attrs": attributes}
            leaves.append(leaf)
        tables = [{"level": level, "dfn": hex(dfn), "at": f"arena+{page}"} for level, dfn, page in tree.walked()]
        root = None if tree.root is None else f"arena+{tree.root}"
        return {
            "dying": int(context.dying),
            "devices": len(context.devices),
            "root": root,
            "tables": tables,
            "leaves": leaves,
        }

    # --------------------------------------------------------------------------------------- random programs

    def step(self):
        """One random call of those after which the host goes on."""
        rng = self.rng
        op = rng.choice(
            ("map",) * 9
            + ("unmap",) * 6
            + ("block",) * 4
            + ("seam", "seam", "lookup", "reattach", "alloc", "free", "odd")
        )
        getattr(self, f"_{op}")()

    def _number(self):
        return self.rng.choice([*self.xen.contexts] * 8 + [1, 2, 3, 9, 255, 256, 65535])

    def _place(self):
        rng = self.rng
        if self.last is not None and rng.random() < 0.5:
            return self.last
        return rng.choice(PLACES) + rng.choice((0, 0, 0, 1, 2, 256, 511, 512)) & U64

    def _handle(self):
        return self.rng.choice(("",) * 60 + ("read-only page", "page offset 1", "page offset 4080", "address 0x1000"))

    def _map(self):
        rng = self.rng
        dfn, nr = self._place(), rng.choice(SIZES)
        if rng.random() < 0.04:
            dfn = U64
        run = rng.choice("FFFFGH")
        start = rng.randrange(0, RUNS[run][0] - 300)
        if rng.random() < 0.6:  # in step with the device frames, so that tables fold
            start = start // 512 * 512 + dfn % 512
        gfn = f"{run}{min(start, RUNS[run][0] - 260)}" if rng.random() < 0.95 else rng.choice(NOWHERE)
        flags = rng.choice((3, 3, 3, 3, 3, 1, 2, 0, 7, 0xFFFFFFFF, 0xFFFFFFFC))
        self.last = dfn + nr & U64
        self._issue("map", ctx=self._number(), flags=flags, gfn=gfn, dfn=dfn, nr=nr, mapped=9)

    def _block(self):
        """512 pages that can fold, in pieces, and perhaps one taken out of the middle."""
        rng = self.rng
        own = [n for n in self.xen.contexts if n]
        if not own:
            return
        number, dfn = rng.choice(own), rng.choice((0, 0x200, 0x400, 1 << 18)) + rng.choice((0, 0, 0, 1))
        frame, flags = rng.choice((0, 512, 1024, 4096)), rng.choice((3, 3, 3, 1, 0))
        pieces = [*range(0, 512, rng.choice((256, 256, 128)))]
        size = pieces[1]
        rng.shuffle(pieces)
        if rng.random() < 0.3:
            self._issue("unmap", ctx=number, flags=0, dfn=dfn, nr=256, unmapped=0)
        for piece in pieces:
            gfn = f"F{frame + piece + dfn % 2}"
            self._issue("map", "", ctx=number, flags=flags, gfn=gfn, dfn=dfn + piece, nr=size, mapped=0)
        self.last = dfn + rng.choice((0, 100, 255, 256, 511))
        for _ in range(rng.choice((0, 1, 2))):
            self._issue("unmap", ctx=number, flags=0, dfn=self.last, nr=rng.choice((1, 2, 255)), unmapped=0)

    def _seam(self):
        """A call that takes a table away and then needs one, with as little as possible left in the arena."""
        rng = self.rng
        own = [n for n in self.xen.contexts if n]
        if not own or self.xen.arena.size > 16:
            return
        number, base = rng.choice(own), rng.choice((0x10000, 0x20000, 0x30000))
        both = {"ctx": number, "flags": 3}
        folds = rng.random() < 0.5
        for piece, size in ((0, 256), (256, 255 if folds else 256)):
            gfn = f"F{1024 + piece}"
            self._issue("map", "", **both, gfn=gfn, dfn=base + piece, nr=size, mapped=0)
        if not folds:
            self._issue("map", "", **both, gfn="F7", dfn=base - 1, nr=1, mapped=0)
        far = [1 << 28]
        while self.xen.arena.free and len(far) < 20:
            self._issue("map", "", **both, gfn="F9", dfn=far[-1], nr=1, mapped=0)
            far.append(far[-1] + rng.choice((512, 1 << 18)))
        if folds:
            self._issue("map", "", **both, gfn="F1535", dfn=base + 511, nr=2, mapped=0)
        else:
            self._issue("unmap", "", ctx=number, flags=0, dfn=base - 1, nr=2, unmapped=0)
        self.state()
        for clean in (base - 1, base, base + 256, base + 511, base + 512, *far):
            self._issue("unmap", "", ctx=number, flags=0, dfn=clean, nr=256, unmapped=0)

    def _unmap(self):
        dfn, nr = self._place(), self.rng.choice(SIZES)
        if self.rng.random() < 0.04:
            dfn = U64
        number = self._number()
        if number == 0 and not self.pvh:
            dfn = f"=F{self.rng.randrange(0, 4096)}" if self.rng.random() < 0.3 else dfn
            if isinstance(dfn, int) and dfn % (1 << 36) < 1 << 20:
                return
            nr = min(nr, 64)
        self._issue("unmap", ctx=number, flags=0, dfn=dfn, nr=nr, unmapped=self.rng.choice((0, 7)))

    def _issue(self, op, handle=None, **given):
        given["dfn"] = given["dfn"] if isinstance(given["dfn"], str) else hex(given["dfn"])
        self.call(op, self._handle() if handle is None else handle, **given)

    def _lookup(self):
        gfn = self.rng.choice(("0x0", "0xdead"))
        self._issue("lookup", ctx=self._number(), flags=self.rng.choice((0, 255)), gfn=gfn, dfn=self._place())

    def _reattach(self):
        sbdf = self.rng.choice((*ENDPOINTS, *ENDPOINTS, *BRIDGES, 0x98))
        number = self._number()
        context = self.xen.contexts.get(number)
        if context is not None and context.tree.root is None:
            return
        self.call("reattach", self._handle(), ctx=number, flags=0, seg=0, bus=sbdf >> 8, devfn=sbdf & 255)

    def _alloc(self):
        if len(self.xen.contexts) < 9:
            self.call("alloc", self._handle(), ctx=self.rng.choice((0, 77)), flags=self.rng.choice((0, 1, U64 >> 32)))

    def _free(self):
        rng = self.rng
        harmless = [0]
        for n, context in self.xen.contexts.items():
            tree = context.tree
            whole = tree.root is not None and all(level == 1 for _, level, _, _ in tree.leaves())
            if n and (whole or context.devices):
                harmless.append(n)
        number = rng.choice(harmless)
        busy = number and self.xen.contexts[number].devices
        self.call("free", self._handle(), ctx=number, flags=0 if busy else rng.choice((0, 0, 1, 2)))

    def _odd(self):
        kind = self.rng.choice(("noop", "caps", 8, 9, 255, 65535))
        given = {"ctx": self.rng.choice((0, 65535)), "flags": 7}
        if kind == "caps":
            given |= {"max_ctx_no": 1, "pad": 2, "max_nr_pages": 3, "max_iova_addr": 4}
        self.call(kind, **given)

    def end(self, how):
        """Finish with a call that stops the host, or with the ones that lead there."""
        rng = self.rng
        if how == "exhaust":
            while len(self.xen.contexts) < 256:
                self.call("alloc", ctx=0, flags=0)
            if self.call("alloc", ctx=0, flags=0):
                self._locked()
        elif how == "unknown":
            if self.call("free", ctx=rng.choice((200, 65535)), flags=0):
                self._locked()
        elif how == "superpage":
            self.call("alloc", ctx=0, flags=0)
            number = max(self.xen.contexts)
            for part in (0, 256):
                given = {"ctx": number, "flags": 3, "gfn": f"F{1024 + part}", "dfn": hex(0x8000 + part)}
                self.call("map", **given, nr=256, mapped=0)
            self.state()
            self.call("free", ctx=number, flags=0)
        elif how == "devices":
            self.call("alloc", ctx=0, flags=0)
            number = max(self.xen.contexts)
            for sbdf in rng.sample(ENDPOINTS, rng.choice((1, 2, 3))):
                self.call("reattach", ctx=number, flags=0, seg=0, bus=sbdf >> 8, devfn=sbdf & 255)
            if self.xen.contexts[number].devices:
                self.call("free", ctx=number, flags=1)
        elif how == "default" and not self.pvh:
            self.call("unmap", ctx=0, flags=0, dfn="0xfed1c", nr=1, unmapped=0)

    def _locked(self):
        self.call("noop", ctx=0, flags=0)
        self.call("map", ctx=1, flags=3, gfn="F0", dfn="0x0", nr=300, mapped=4)
        self.call("map", ctx=999, flags=3, gfn="F0", dfn="0x0", nr=1, mapped=4)
        self.call("free", ctx=0, flags=0)
        self.call("reattach", ctx=0, flags=0, seg=0, bus=0, devfn=0x98)
        self.call("lookup", ctx=0, flags=0, gfn="0x0", dfn="0x1")
