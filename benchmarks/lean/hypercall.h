/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * map_pages and unmap_pages of v7: the guest's struct, the checks, references, the tree, the flush, the answer.
 */
/* ------------------------------------------------------------------------------------------------ page tables */

static uint64_t slot_of(uint64_t entry, uint64_t dfn, int level)
{
    return (entry & ADDRESS) >> 3 | (dfn >> 9 * (level - 1) & 511);
}

/* The entry's word at `target`, with tables made on the way; 0 if a leaf is in the way or there is no memory. */
static uint64_t descend(const struct context *context, uint64_t dfn, int target)
{
    uint64_t at = (uint64_t)context->root * WORDS + (dfn >> 27);
    for (int level = LEVELS; level > target; level--) {
        if (!ram[at]) {
            if (!pool_left)
                return 0;
            uint32_t table = pool[--pool_left];
            memset(ram + (uint64_t)table * WORDS, 0, 4096);
            used[table] = 0;
            ram[at] = (uint64_t)table << 12 | format->table;
            used[at / WORDS]++;
        } else if ((ram[at] & format->kind_mask) == format->leaf_kind) {
            return 0;
        }
        at = slot_of(ram[at], dfn, level - 1);
    }
    return at;
}

static int map_run(const struct context *context, uint64_t dfn, uint64_t mfn, uint64_t count, uint64_t bits)
{
    int level = count == WORDS && !((dfn | mfn) % WORDS) ? 2 : 1;
    uint64_t entries = level == 2 ? 1 : count;
    uint64_t at = descend(context, dfn, level);
    if (!at)
        return -EADDRINUSE;
    for (uint64_t k = 0; k < entries; k++)
        if (ram[at + k])
            return -EADDRINUSE;
    for (uint64_t k = 0; k < entries; k++)
        ram[at + k] = (mfn + k) << 12 | bits | format->leaf[level - 1];
    used[at / WORDS] += entries;
    return 0;
}

static int unmap_run(const struct context *context, uint64_t dfn, uint64_t count)
{
    uint64_t path[LEVELS + 1], at = (uint64_t)context->root * WORDS + (dfn >> 27);
    uint64_t gone[WORDS], first_gone, entries = count;
    uint32_t tables[LEVELS];
    int level = LEVELS, empty = 0;
    for (;; level--) {
        path[level] = at;
        if (!ram[at])
            return -ENOENT;
        if (level == 1 || (ram[at] & format->kind_mask) == format->leaf_kind)
            break;
        at = slot_of(ram[at], dfn, level - 1);
    }
    if (level > 1)
        entries = 1;
    for (uint64_t k = 0; k < entries; k++) {
        if (!ram[at + k])
            return -ENOENT;
        gone[k] = ram[at + k];
        ram[at + k] = 0;
    }
    first_gone = gone[0];
    used[at / WORDS] -= entries;
    for (; level < LEVELS && !used[path[level] / WORDS]; level++) {
        tables[empty++] = path[level] / WORDS;
        ram[path[level + 1]] = 0;
        used[path[level + 1] / WORDS]--;
    }
    int error = format->flush(context->tag, dfn, count);
    if (error)
        return error;
    for (uint64_t k = 0; k < count; k++) {
        uint64_t entry = entries > 1 ? gone[k] : first_gone;
        uint64_t mfn = ((entry & ADDRESS) >> 12) + (entries > 1 ? 0 : k);
        if (entry & format->referenced)
            refs[mfn] -= entry & format->write ? WRITABLE_REF : REF;
        if (!(uint32_t)refs[mfn])
            fail("a frame lost its last reference");
    }
    while (empty)
        pool[pool_left++] = tables[--empty];
    return 0;
}

/* ------------------------------------------------------------------------------------------------- hypercalls */

struct map_pages {
    uint16_t ctx_no, pad0, pad1, pad2;
    uint64_t gfn, dfn;
    uint32_t flags, pgsize, nr_pages, mapped;
};
struct unmap_pages {
    uint16_t ctx_no, pad0, pad1, pad2;
    uint64_t dfn;
    uint32_t pgsize, nr_pages, unmapped, pad3;
};

static void *guest_memory(uint64_t linear, uint64_t size)
{
    uint64_t offset = linear - DIRECT_MAP;
    if (linear < DIRECT_MAP || offset >= (uint64_t)GUEST_FRAMES << 12 || (offset & 0xFFF) + size > 4096)
        return NULL;
    uint32_t mfn = pfn_to_mfn[offset >> 12];
    return owner[mfn] == DOM0 ? (char *)ram + ((uint64_t)mfn << 12 | (offset & 0xFFF)) : NULL;
}

static const struct context *checked(uint16_t ctx_no, uint64_t dfn, uint32_t pgsize, uint32_t nr_pages)
{
    const struct context *context = ctx_no && ctx_no < CONTEXTS && contexts[ctx_no].live ? &contexts[ctx_no] : NULL;
    return pgsize == 4096 && dfn + nr_pages - 1 < 1ull << 36 ? context : NULL;
}

static int do_map(struct map_pages *op)
{
    const struct context *context = checked(op->ctx_no, op->dfn, op->pgsize, op->nr_pages);
    op->mapped = 0;
    if (op->pad0 | op->pad1 | op->pad2 || !context || op->flags & ~7u || !(op->flags & 3))
        return -EINVAL;
    uint64_t reference = op->flags & 2 ? WRITABLE_REF : REF;
    uint64_t bits = (op->flags & 1 ? format->read : 0) | (op->flags & 2 ? format->write : 0) | format->referenced;
    while (op->mapped < op->nr_pages) {
        uint64_t mfn = op->gfn + op->mapped, dfn = op->dfn + op->mapped, count = 0;
        uint64_t most = op->nr_pages - op->mapped < WORDS - dfn % WORDS ? op->nr_pages - op->mapped : WORDS - dfn % WORDS;
        while (count < most && mfn + count < FRAMES && owner[mfn + count] == DOM0 && !pagetable[mfn + count])
            refs[mfn + count++] += reference;
        int error = count ? map_run(context, dfn, mfn, count, bits) : -EPERM;
        if (error) {
            while (count)
                refs[mfn + --count] -= reference;
            return error;
        }
        op->mapped += count;
    }
    return 0;
}

static int do_unmap(struct unmap_pages *op)
{
    const struct context *context = checked(op->ctx_no, op->dfn, op->pgsize, op->nr_pages);
    op->unmapped = 0;
    if (op->pad0 | op->pad1 | op->pad2 | op->pad3 || !context)
        return -EINVAL;
    while (op->unmapped < op->nr_pages) {
        uint64_t dfn = op->dfn + op->unmapped, count = op->nr_pages - op->unmapped;
        if (count > WORDS - dfn % WORDS)
            count = WORDS - dfn % WORDS;
        int error = unmap_run(context, dfn, count);
        if (error)
            return error;
        op->unmapped += count;
    }
    return 0;
}

static NOINLINE int hypercall(uint64_t subop, uint64_t arg)
{
    void *op;
    switch (subop) {
    case 6:
        op = guest_memory(arg, sizeof(struct map_pages));
        return op ? do_map(op) : -EFAULT;
    case 7:
        op = guest_memory(arg, sizeof(struct unmap_pages));
        return op ? do_unmap(op) : -EFAULT;
    }
    return -EOPNOTSUPP;
}
