/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The machine below the loops: RAM, frames, entry formats, the hardware's caches and walk, the invalidation queue.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline))

enum { FRAMES = 1 << 15, GUEST_FRAMES = 1 << 13, GUEST_BASE = 1 << 10, WORDS = 512, LEVELS = 4, CONTEXTS = 128 };
enum { XEN = 0x7FF2, DOM0 = 0, POOL = 512, BED_CALLS = 64 };
#define DIRECT_MAP 0xFFFF888000000000ull
#define ADDRESS 0x000FFFFFFFFFF000ull
#define REF 1ull
#define WRITABLE_REF (1ull << 32 | REF)

/* ------------------------------------------------------------------------------------------ machine and frames */

static uint64_t *ram;
static uint64_t refs[FRAMES];
static uint16_t owner[FRAMES], used[FRAMES];
static uint8_t pagetable[FRAMES];
static uint32_t pfn_to_mfn[GUEST_FRAMES];
static uint32_t pool[POOL], pool_left;

static void fail(const char *what)
{
    fprintf(stderr, "lean: %s\n", what);
    exit(1);
}

static void store32(uint64_t maddr, uint64_t value)
{
    uint64_t *word = ram + (maddr >> 3), shift = maddr & 4 ? 32 : 0;
    *word = (*word & ~(0xFFFFFFFFull << shift)) | value << shift;
}

/* ---------------------------------------------------------------------------------------------------- formats */

struct format {
    const char *name;
    uint64_t leaf[3], table, kind_mask, leaf_kind, read, write, referenced;
    int (*flush)(uint16_t tag, uint64_t dfn, uint64_t pages);
};

struct context {
    uint32_t root;
    uint16_t tag;
    bool live;
};

static const struct format *format;
static struct context contexts[CONTEXTS];

/* ------------------------------------------------------------------------------------------- hardware: caches */

enum { SETS = 1 << 12 };
struct cached {
    uint64_t key, leaf;
};
static struct cached small[SETS], large[SETS];
static uint64_t drops[CONTEXTS]; /* by tag: how often everything was dropped */
static struct context *requesters[1 << 16];
static bool caches = true;

static uint64_t cache_key(uint16_t tag, uint64_t page)
{
    return (drops[tag % CONTEXTS] << 8 | tag) << 37 | page << 1 | 1;
}

static void cache_drop(uint16_t tag, uint64_t page, uint64_t count)
{
    for (uint64_t at = page; at < page + count; at++)
        if (small[at % SETS].key == cache_key(tag, at))
            small[at % SETS].key = 0;
    for (uint64_t at = page >> 9; at <= page + count - 1 >> 9; at++)
        if (large[at % SETS].key == cache_key(tag, at))
            large[at % SETS].key = 0;
}

/* Machine address, or 0 for a blocked request. */
static NOINLINE uint64_t translate(uint16_t sid, uint64_t iova, bool write)
{
    const struct context *context = requesters[sid];
    if (!context || iova >> 48)
        return 0;
    uint64_t page = iova >> 12, need = write ? format->write : format->read;
    const struct cached *hit = &small[page % SETS];
    if (hit->key == cache_key(context->tag, page))
        return hit->leaf & need ? (hit->leaf & ADDRESS) | (iova & 0xFFF) : 0;
    hit = &large[(page >> 9) % SETS];
    if (hit->key == cache_key(context->tag, page >> 9))
        return hit->leaf & need ? (hit->leaf & ADDRESS) | (iova & 0x1FFFFF) : 0;
    uint64_t at = (uint64_t)context->root * WORDS + (iova >> 39);
    for (int level = LEVELS;; level--) {
        uint64_t entry = ram[at];
        if (!entry)
            return 0;
        int shift = 3 + 9 * level;
        if (level == 1 || (entry & format->kind_mask) == format->leaf_kind) {
            if (!(entry & need))
                return 0;
            if (caches && level < 3) {
                struct cached *slot = level == 1 ? &small[page % SETS] : &large[(page >> 9) % SETS];
                slot->key = cache_key(context->tag, level == 1 ? page : page >> 9);
                slot->leaf = entry;
            }
            return (entry & ADDRESS) | (iova & (1ull << shift) - 1);
        }
        at = (entry & ADDRESS) >> 3 | (iova >> (shift - 9) & 511);
        if (at >= (uint64_t)FRAMES * WORDS)
            return 0;
    }
}

/* ------------------------------------------------------------------------- queues: software half, hardware half */

enum { RING = 300, STATUS = 301, SLOTS = 256 };
static uint32_t ring_tail, ring_head;
static uint32_t sequence;

static NOINLINE void vtd_tail(uint32_t tail)
{
    for (; ring_head != tail; ring_head = (ring_head + 1) % SLOTS) {
        uint64_t low = ram[RING * WORDS + 2 * ring_head], high = ram[RING * WORDS + 2 * ring_head + 1];
        switch (low & 0xE0F) {
        case 2:
            if (low & 0xFFFFFFFF0000FF00ull || high & 0xF80)
                return;
            if ((low >> 4 & 3) == 3)
                cache_drop(low >> 16, high >> 12, 1ull << (high & 63));
            else
                drops[(low >> 16) % CONTEXTS]++;
            break;
        case 5:
            if (low & 0xFFFFFF80ull || high & 3 || high >> 3 >= (uint64_t)FRAMES * WORDS)
                return;
            store32(high, low >> 32);
            break;
        default:
            return;
        }
    }
}

static int vtd_flush(uint16_t tag, uint64_t dfn, uint64_t pages)
{
    uint64_t *slot = ram + RING * WORDS + 2 * ring_tail;
    bool selective = !((pages | dfn) & (pages - 1));
    slot[0] = 2 | (selective ? 3 : 2) << 4 | 3 << 6 | (uint64_t)tag << 16;
    slot[1] = selective ? dfn << 12 | (63 - __builtin_clzll(pages)) : 0;
    slot[2] = 5 | 1 << 5 | 1 << 6 | 1ull << 32;
    slot[3] = STATUS << 12;
    ram[STATUS * WORDS] = 0;
    ring_tail = (ring_tail + 2) % SLOTS;
    vtd_tail(ring_tail);
    return ram[STATUS * WORDS] == 1 ? 0 : -EIO;
}

static NOINLINE void smmu_prod(uint32_t prod)
{
    for (; ring_head != prod; ring_head = (ring_head + 1) % SLOTS) {
        uint64_t low = ram[RING * WORDS + 2 * ring_head], high = ram[RING * WORDS + 2 * ring_head + 1];
        switch (low & 0xFF) {
        case 0x2A:
            if (high >> 10 & 3)
                cache_drop(low >> 32, high >> 12, ((low >> 12 & 31) + 1) << (low >> 20 & 31));
            else
                cache_drop(low >> 32, high >> 12, 1);
            break;
        case 0x46:
            if ((high & ~3ull) >> 3 >= (uint64_t)FRAMES * WORDS)
                return;
            store32(high, low >> 32);
            break;
        default:
            return;
        }
    }
}

static int smmu_flush(uint16_t tag, uint64_t dfn, uint64_t pages)
{
    uint64_t *slot = ram + RING * WORDS + 2 * ring_tail;
    int scale = 0;
    while (!(pages >> scale & 1))
        scale++;
    slot[0] = 0x2A | (uint64_t)tag << 32 | (uint64_t)scale << 20 | ((pages >> scale) - 1) << 12;
    slot[1] = dfn << 12 | (pages > 1 ? 1 << 10 : 0);
    slot[2] = 0x46 | 1 << 12 | (uint64_t)++sequence << 32;
    slot[3] = STATUS << 12;
    ring_tail = (ring_tail + 2) % SLOTS;
    smmu_prod(ring_tail);
    return (uint32_t)ram[STATUS * WORDS] == sequence ? 0 : -EIO;
}

static const struct format formats[] = {
    {"vtd", {0, 1 << 7, 1 << 7}, 3, 1 << 7, 1 << 7, 1, 2, 1ull << 60, vtd_flush},
    {"smmuv3",
     {1ull << 54 | 0x73F, 1ull << 54 | 0x73D, 1ull << 54 | 0x73D},
     3,
     2,
     0,
     1 << 6,
     1 << 7,
     1ull << 55,
     smmu_flush},
};
