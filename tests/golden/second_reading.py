# SPDX-License-Identifier: GPL-2.0-or-later
"""A second, independent reading of what a running RFC v3 does: a small model that writes golden records.

Written from the rules that the recorded hypervisor was observed to follow (docs: the golden README) and from nothing
in ``hypervisor/``: tables are dictionaries, the arena is a set, a call is worked off page by page.  What it writes is
replayed on profile ``v3``; where the two readings part, one of them is wrong.
"""

import heapq
from collections import Counter

LEVELS = 4
FIRST_DID = 0x8000
DFN_MASK = (1 << 36) - 1
U64 = (1 << 64) - 1
EPERM, ENOENT, E2BIG, ENOMEM, EFAULT, EBUSY, EINVAL, ENOSPC, EADDRINUSE = -1, -2, -7, -12, -14, -16, -22, -28, -98
NAMES = {-1: "EPERM", -2: "ENOENT", -7: "E2BIG", -12: "ENOMEM", -14: "EFAULT", -16: "EBUSY", -22: "EINVAL"}
NAMES |= {-28: "ENOSPC", -98: "EADDRINUSE"}
ENDPOINTS = (0x18, 0x20, 0x28, 0xF8, 0xFA, 0xFB, 0x100, 0x308)
BRIDGES = (0x0, 0x30, 0x38, 0x200)


class Hangs(Exception):
    """The recorded hypervisor does not answer any more."""


class Arena:
    """The lowest free page first."""

    def __init__(self, order):
        self.size = 1 << order
        self.free = list(range(self.size))

    @property
    def used(self):
        return self.size - len(self.free)

    def take(self):
        return heapq.heappop(self.free) if self.free else None

    def give(self, page):
        heapq.heappush(self.free, page)


class Heap:
    """Where context 0's tables come from: never empty, never looked at."""

    def __init__(self):
        self.next = 1 << 40

    def take(self):
        self.next += 1
        return self.next

    def give(self, page):
        pass


class Tree:
    """Table page -> {index: entry}; an entry is the page of a table (a number) or a leaf (frame, rights)."""

    def __init__(self, pool):
        self.pool, self.tables, self.queue = pool, {}, []
        self.added = self.modified = False
        self.root = pool.take()
        self.late = self.root is None
        if not self.late:
            self.tables[self.root] = {}

    @staticmethod
    def index(dfn, level):
        return dfn >> 9 * (level - 1) & 511

    def find(self, dfn):
        """(frame, rights, level) of the leaf that maps ``dfn``, or None; None for frame 0 as well."""
        page, level = self.root, LEVELS
        while page is not None:
            entry = self.tables[page].get(self.index(dfn, level))
            if isinstance(entry, tuple):
                frame = entry[0] + (dfn & (1 << 9 * (level - 1)) - 1)
                return (frame, entry[1], level) if entry[1] and frame else None
            page, level = entry, level - 1
        return None

    def reach(self, dfn, make):
        """Pages of the tables from the root down to level 1, superpages in the way split; None: no memory, and what
        was made on the way stays."""
        if self.root is None:
            self.root = self.pool.take()
            if self.root is None:
                return None
            self.tables[self.root] = {}
        path = [self.root]
        for level in range(LEVELS, 1, -1):
            table, at = self.tables[path[-1]], self.index(dfn, level)
            entry = table.get(at)
            if not isinstance(entry, int):
                page = self.pool.take()
                if page is None:
                    return None
                self.tables[page] = {}
                if entry is not None and entry[1]:
                    step = 1 << 9 * (level - 2)
                    self.tables[page] = {k: (entry[0] + k * step, entry[1]) for k in range(512)}
                    self.modified = True
                table[at] = page
            path.append(table[at])
        return path

    def remove_table(self, page):
        del self.tables[page]
        self.queue.append(page)

    def map(self, dfn, frame, rights):
        path = self.reach(dfn, True)
        if path is None:
            return False
        table = self.tables[path[-1]]
        old = table.get(self.index(dfn, 1))
        if old == (frame, rights):
            return True
        self.modified |= old is not None and bool(old[1])
        table[self.index(dfn, 1)] = (frame, rights)
        self.added = True
        for level in (1, 2):
            table, step = self.tables[path[LEVELS - level]], 1 << 9 * (level - 1)
            first = table.get(0)
            if len(table) < 512 or not isinstance(first, tuple) or first[0] % (step << 9):
                break
            if any(table[k] != (first[0] + k * step, first[1]) for k in range(512)):
                break
            self.remove_table(path[LEVELS - level])
            self.tables[path[LEVELS - level - 1]][self.index(dfn, level + 1)] = first
            self.modified = True
        return True

    def unmap(self, dfn):
        path = self.reach(dfn, False)
        if path is None:
            return False
        del self.tables[path[-1]][self.index(dfn, 1)]
        self.modified = True
        for level in (1, 2):
            if self.tables[path[LEVELS - level]]:
                break
            self.remove_table(path[LEVELS - level])
            del self.tables[path[LEVELS - level - 1]][self.index(dfn, level + 1)]
        return True

    def leaves(self):
        """(dfn, level, frame, rights) of every present leaf, in order of dfn."""
        yield from self._leaves(self.root, LEVELS, 0)

    def _leaves(self, page, level, dfn):
        for index, entry in sorted(self.tables.get(page, {}).items()):
            here = dfn + (index << 9 * (level - 1))
            if isinstance(entry, int):
                yield from self._leaves(entry, level - 1, here)
            elif entry[1]:
                yield here, level, *entry

    def walked(self, page=None, level=LEVELS, dfn=0):
        """(level, dfn, page) of every table, parents first."""
        page = self.root if level == LEVELS else page
        if page is None:
            return
        yield level, dfn, page
        for index, entry in sorted(self.tables[page].items()):
            if isinstance(entry, int):
                yield from self.walked(entry, level - 1, dfn + (index << 9 * (level - 1)))


class Context:
    def __init__(self, tree, did):
        self.tree, self.did = tree, did
        self.devices, self.dying, self.flushes = [], False, False


class Xen:
    """RFC v3 on the recording machine.  ``owned(frame)``: dom0's own; ``pvh``: context 0 is shared with the p2m."""

    def __init__(self, order, owned, *, pvh=False, debug=False):
        self.arena, self.owned, self.pvh, self.debug = Arena(order), owned, pvh, debug
        self.contexts, self.refs = {}, Counter()
        self.dids, self.next_did = set(), 0
        self.domain_lock = self.unit_lock = True
        self.iq, self.log = [], []
        default = self.contexts[0] = Context(Tree(Heap()), 0)
        default.flushes = True
        default.devices = list(ENDPOINTS)
        if not pvh:
            self._one_to_one(default.tree)
        self.entries = dict.fromkeys(ENDPOINTS, default)

    @staticmethod
    def _one_to_one(tree):
        """Everything below 4 GiB but message interrupts, as large as it goes."""
        l3, l2, l1 = (tree.pool.take() for _ in range(3))
        tree.tables[tree.root][0] = l3
        tree.tables[l3] = {k: (k << 18, 3) for k in range(3)} | {3: l2}
        tree.tables[l2] = {k: (3 << 18 | k << 9, 3) for k in range(512)} | {0x1F7: l1}
        tree.tables[l1] = {k: (0xFEE00 + k, 3) for k in range(256, 512)}

    # ------------------------------------------------------------------------------------------------ calls

    def call(self, op, given):
        """(result, fields written back); :class:`Hangs`."""
        self.iq, self.log = [], []
        fields = dict(given)
        handler = getattr(self, op, None) if isinstance(op, str) else None
        return (EINVAL if handler is None else handler(fields)), fields

    def noop(self, fields):
        return 0

    def caps(self, fields):
        fields.update(max_ctx_no=255, max_nr_pages=256, max_iova_addr=(1 << 39) - 1)
        return 0

    def _lock(self):
        if not self.domain_lock:
            raise Hangs

    def _keep_lock(self, result):
        if self.debug:
            raise Hangs
        self.domain_lock = False
        return result

    def alloc(self, fields):
        self._lock()
        number = next((n for n in range(1, 256) if n not in self.contexts), None)
        if number is None:
            return self._keep_lock(ENOSPC)
        did = next(n % 0x7FFF for n in range(self.next_did, self.next_did + 0x7FFF) if n % 0x7FFF not in self.dids)
        self.dids.add(did)
        self.next_did = did + 1
        self.contexts[number] = Context(Tree(self.arena), FIRST_DID + did)
        fields["ctx"] = number
        return 0

    def free(self, fields):
        number = fields["ctx"]
        if number == 0:
            return EINVAL
        self._lock()
        context = self.contexts.get(number)
        if context is None:
            return self._keep_lock(ENOENT)
        context.dying = True
        if context.devices:
            if not fields["flags"] & 1:
                return EBUSY
            self._move(context.devices[-1], self.contexts[0])
            raise Hangs
        tree = context.tree
        if tree.root is None or any(level > 1 for _, level, _, _ in tree.leaves()):
            raise Hangs
        for _, _, frame, _ in tree.leaves():
            self.refs[frame] -= 1
        for page in tree.tables:
            if page != tree.root or tree.late:
                self.arena.give(page)
        self.dids.discard(context.did - FIRST_DID)
        del self.contexts[number]
        return 0

    def reattach(self, fields):
        sbdf = fields["seg"] << 16 | fields["bus"] << 8 | fields["devfn"]
        if sbdf not in ENDPOINTS + BRIDGES:
            return ENOENT
        self._lock()
        context = self.contexts.get(fields["ctx"])
        if context is None:
            return ENOENT
        if context.dying:
            return EINVAL
        if not self.unit_lock:
            raise Hangs
        if context.tree.root is None:
            if self.debug:
                raise Hangs
            self.unit_lock = False
            return ENOMEM
        self._move(sbdf, context)
        return 0

    def _move(self, sbdf, context):
        old = self.entries.get(sbdf)
        if old is not None:
            self.iq += [f"CC g3 did{old.did:#x} sid{sbdf:#x}", f"IOTLB g2 did{old.did:#x}"]
        self.entries[sbdf] = context
        context.flushes = True
        if sbdf in ENDPOINTS:
            old.devices.remove(sbdf)
            context.devices.append(sbdf)

    def _admitted(self, fields):
        if fields["nr"] > 256:
            return E2BIG, None
        context = self.contexts.get(fields["ctx"])
        if context is None:
            return EINVAL, None
        self._lock()
        context.tree.added = context.tree.modified = False
        return 0, context

    def map(self, fields):
        error, context = self._admitted(fields)
        if context is None:
            return error
        done = 0
        while done < fields["nr"] and not error:
            frame, dfn = fields["gfn"] + done & U64, fields["dfn"] + done & DFN_MASK
            opaque = self.pvh and fields["ctx"] == 0
            if not self.owned(frame):
                error = EPERM
            elif not opaque and context.tree.find(dfn) is not None:
                error = EADDRINUSE
            else:
                self.refs[frame] += 1
                if not opaque and not context.tree.map(dfn, frame, fields["flags"] & 3):
                    error = ENOMEM
            done += not error
        fields["mapped"] = done
        self._flush(context, fields)
        return error

    def unmap(self, fields):
        error, context = self._admitted(fields)
        if context is None:
            return error
        done = 0
        while done < fields["nr"] and not error:
            dfn = fields["dfn"] + done & DFN_MASK
            found = None if self.pvh and fields["ctx"] == 0 else context.tree.find(dfn)
            if found is None:
                error = ENOENT
            elif not context.tree.unmap(dfn):
                error = ENOMEM
            elif not self.has_page(found[0]):
                raise Hangs
            else:
                self.refs[found[0]] -= 1
            done += not error
        fields["unmapped"] = done
        self._flush(context, fields)
        return error

    def has_page(self, frame):
        return frame < 0xFE000

    def lookup(self, fields):
        context = self.contexts.get(fields["ctx"])
        if context is None:
            return EINVAL
        self._lock()
        found = None if self.pvh and fields["ctx"] == 0 else context.tree.find(fields["dfn"] & DFN_MASK)
        if found is None:
            return ENOENT
        fields["gfn"] = found[0]
        return 0

    def _flush(self, context, fields):
        tree = context.tree
        if not tree.added and not tree.modified:
            return
        dfn, pages = fields["dfn"], fields["nr"]
        if dfn == U64:
            self.log.append("flush-failed-logged")
            return
        if context.flushes:
            if pages & pages - 1 or dfn & pages - 1:
                self.iq.append(f"IOTLB g2 did{context.did:#x}")
            elif tree.modified:
                where = dfn << 12 & U64
                self.iq.append(f"IOTLB g3 did{context.did:#x} addr{where:#x} am{pages.bit_length() - 1} ih0")
        for page in tree.queue:
            tree.pool.give(page)
        tree.queue = []
