/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The test bed's hot loops in plain C, for scale: what the same steps cost where a step is an instruction.
 *
 * map and unmap: the guest's struct in memory, its checks, the frame's owner and reference, a tree of four levels in
 * memory, a command and its completion in a queue in memory, the hardware that takes them out again, the answer in
 * the guest's struct.  DMA: requester id, translation cache, and on a miss the walk.  Left out is what these loops do
 * not reach: folding and splitting of superpages, preemption, p2m types, faults.
 *
 * Usage: lean SECONDS.  One line for each loop: backend, what, pages, nanoseconds.
 */
#define _POSIX_C_SOURCE 199309L
#include <string.h>
#include <time.h>

#include "machine.h"

#include "hypercall.h"

/* ------------------------------------------------------------------------------------------------ measurement */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void boot(const struct format *chosen)
{
    format = chosen;
    memset(ram, 0, (size_t)FRAMES << 12);
    memset(small, 0, sizeof small);
    memset(large, 0, sizeof large);
    memset(used, 0, sizeof used);
    ring_head = ring_tail = pool_left = 0;
    for (uint32_t mfn = 0; mfn < FRAMES; mfn++) {
        bool guests = mfn >= GUEST_BASE && mfn < GUEST_BASE + GUEST_FRAMES;
        owner[mfn] = guests ? DOM0 : XEN;
        refs[mfn] = REF;
    }
    for (uint32_t pfn = 0; pfn < GUEST_FRAMES; pfn++)
        pfn_to_mfn[pfn] = GUEST_BASE + pfn;
    for (uint32_t k = 0; k < POOL; k++)
        pool[pool_left++] = GUEST_BASE + GUEST_FRAMES + k;
    contexts[1] = (struct context){pool[--pool_left], 1, true};
    requesters[0x100] = &contexts[1];
}

/* Pairs of calls within the reach of one table, that of level 2 for superpages; dfns are aligned to the size. */
static void put_calls(uint64_t pages)
{
    for (uint64_t k = 0; k < BED_CALLS; k++) {
        uint64_t dfn = 0x1000 + (pages == WORDS ? k : k % (WORDS / 2 / pages)) * pages;
        struct map_pages map = {.ctx_no = 1, .gfn = GUEST_BASE + 512, .dfn = dfn, .flags = 3, .pgsize = 4096,
                                .nr_pages = pages};
        struct unmap_pages unmap = {.ctx_no = 1, .dfn = map.dfn, .pgsize = 4096, .nr_pages = pages};
        memcpy(guest_memory(DIRECT_MAP + 0x5000 + k * sizeof map, sizeof map), &map, sizeof map);
        memcpy(guest_memory(DIRECT_MAP + 0x6000 + k * sizeof unmap, sizeof unmap), &unmap, sizeof unmap);
    }
}

/* A page that stays mapped, and with it the tables. */
static void put_neighbour(uint64_t pages)
{
    uint64_t dfn = pages == WORDS ? 0xFFF : 0x11FF;
    struct map_pages map = {.ctx_no = 1, .gfn = GUEST_BASE, .dfn = dfn, .flags = 3, .pgsize = 4096, .nr_pages = 1};
    if (do_map(&map))
        fail("the neighbour could not be mapped");
}

static void map_unmap(double seconds, uint64_t pages)
{
    put_neighbour(pages);
    put_calls(pages);
    double best = 1e9;
    for (double end = now() + seconds; now() < end;) {
        double start = now();
        for (int k = 0; k < BED_CALLS; k++)
            if (hypercall(6, DIRECT_MAP + 0x5000 + k * sizeof(struct map_pages)) ||
                hypercall(7, DIRECT_MAP + 0x6000 + k * sizeof(struct unmap_pages)))
                fail("a hypercall failed");
        double took = (now() - start) / BED_CALLS;
        best = took < best ? took : best;
    }
    printf("%s map+unmap %llu %.2f\n", format->name, (unsigned long long)pages, best * 1e9);
}

static void dma(double seconds, bool cached)
{
    put_calls(1);
    for (int k = 0; k < BED_CALLS; k++)
        if (hypercall(6, DIRECT_MAP + 0x5000 + k * sizeof(struct map_pages)))
            fail("a hypercall failed");
    caches = cached;
    double best = 1e9;
    for (double end = now() + seconds; now() < end;) {
        double start = now();
        for (int round = 0; round < 100; round++)
            for (uint64_t k = 0; k < BED_CALLS; k++)
                if (translate(0x100, (0x1000 + k) << 12 | 0x10, k & 1) != ((GUEST_BASE + 512ull) << 12 | 0x10))
                    fail("a request arrived at the wrong place");
        double took = (now() - start) / (100 * BED_CALLS);
        best = took < best ? took : best;
    }
    caches = true;
    printf("%s dma-%s 1 %.2f\n", format->name, cached ? "hit" : "miss", best * 1e9);
}

int main(int count, char **arguments)
{
    double seconds = count > 1 ? atof(arguments[1]) : 0.2;
    ram = calloc(FRAMES, 4096);
    if (!ram)
        fail("no memory");
    for (size_t k = 0; k < sizeof formats / sizeof *formats; k++) {
        static const uint64_t sizes[] = {1, 32, 512};
        for (int size = 0; size < 3; size++) {
            boot(&formats[k]);
            map_unmap(seconds, sizes[size]);
        }
        boot(&formats[k]);
        dma(seconds, true);
        boot(&formats[k]);
        dma(seconds, false);
    }
    return 0;
}
