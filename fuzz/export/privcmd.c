/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * @HEAD@
 *
 * Build:  cc -Wall -Wextra -o replay THIS.c
 * Run as root in dom0 of a Xen that has this interface:  ./replay
 *
 * Exit status: 0 every answer was the expected one, 1 one was not, 2 it could not run.
 *
 * What it needs to know about the machine comes from the environment:
 *   PVIOMMU_<DEVICE>=ssss:bb:dd.f  the PCI function that stands for a device of the program
 *   PVIOMMU_FRAMES=FILE            guest frame numbers of the program's pages ram:0, ram:1, ..., one a line.
 *                                  Without it they are pages of this process, found in /proc/self/pagemap: right in a
 *                                  translated (PVH) dom0, where Linux's frame numbers are Xen's guest frame numbers.
 *   PVIOMMU_KEEP=1                 leave the contexts that the program made
 *   PVIOMMU_STOP=1                 make a call that stopped the emulated hypervisor, too
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Linux, include/uapi/xen/privcmd.h */
struct privcmd_hypercall {
	uint64_t op;
	uint64_t arg[5];
};
#define IOCTL_PRIVCMD_HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))

#define PAGE ((size_t)4096)
#define HUGE ((size_t)2 << 20)
#define LARGEST 64 /* bytes of the largest struct */

#define MAYBE static inline __attribute__((unused))

@CONSTANTS@

/* Xen, include/public/memory.h: which device frames firmware keeps */
#define MEMORY_OP 12
#define RESERVED_DEVICE_MEMORY_MAP 27
struct region {
	uint64_t first, frames;
};
struct regions {
	uint32_t flags, nr_entries;
	uint64_t buffer;
	uint16_t segment;
	uint8_t bus, devfn;
	uint32_t padding;
};

/* Where a call's struct lies. */
enum argument { PLAIN, SPLIT, READONLY, UNMAPPED, NONCANONICAL };

static int privcmd = -1;
static unsigned char *pages;		/* of arguments: two to write, one to read only, one that is not there */
static uint64_t frames[RAM_PAGES];	/* guest frame of ram:N */
static uint64_t context[CONTEXTS];	/* the program's context numbers to this machine's */
static unsigned char made[CONTEXTS];	/* contexts that the program made, by the program's number */
static unsigned int operations, compared, different, skipped;

static const char *now;			/* the operation */
static unsigned char image[LARGEST];	/* its struct */
static unsigned char given[LARGEST];	/* as it was before the call */
static unsigned char looked[LARGEST];	/* bytes of the answer that were looked at */
static size_t size;
static uint64_t subop;
static enum argument place;
static long answer;
static int silent;			/* an answer differed: its fields say nothing */

__attribute__((noreturn)) static void stop(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(2);
}

static void put(size_t offset, size_t bytes, uint64_t value)
{
	for (size_t k = 0; k < bytes; k++)
		image[offset + k] = (unsigned char)(value >> (8 * k));
}

static uint64_t get(size_t offset, size_t bytes)
{
	uint64_t value = 0;

	for (size_t k = 0; k < bytes; k++)
		value |= (uint64_t)image[offset + k] << (8 * k);
	return value;
}

/* Linear address of the struct. */
static unsigned char *address(void)
{
	switch (place) {
	case SPLIT:
		return pages + PAGE - 4;
	case READONLY:
		return pages + 2 * PAGE;
	case UNMAPPED:
		return pages + 3 * PAGE;
	case NONCANONICAL:
		return (unsigned char *)(uintptr_t)0x8000000000000000ULL;
	default:
		return pages;
	}
}

/* A struct that carries the call to another domain: remote_cmd's number, its size, and where its fields are. */
struct carrier {
	uint64_t subop;
	size_t size, domid[2], inner[2], arg[2]; /* offset, bytes */
};
static const struct carrier remote_cmd = CARRIER;
static long carried_to = -1; /* domain, or -1: nobody carries it */
static uint64_t claimed;     /* what earlier passes of it are said to have done */

/* Wrap the call up; the address of the wrapping. */
static uint64_t carry(uint64_t inner)
{
	unsigned char *at = pages + PAGE + PAGE / 2;
	unsigned char own[LARGEST];

	memcpy(own, image, sizeof(own));
	memset(image, 0, sizeof(image));
	put(remote_cmd.domid[0], remote_cmd.domid[1], (uint64_t)carried_to);
	put(remote_cmd.inner[0], remote_cmd.inner[1], subop);
	put(remote_cmd.arg[0], remote_cmd.arg[1], inner);
	memcpy(at, image, remote_cmd.size);
	memcpy(image, own, sizeof(own));
	return (uint64_t)(uintptr_t)at;
}

static long privileged(struct privcmd_hypercall *call)
{
	long result = ioctl(privcmd, IOCTL_PRIVCMD_HYPERCALL, call);

	return result == -1 ? -errno : result;
}

static long hypercall(void)
{
	struct privcmd_hypercall call = { .op = HYPERCALL };
	uint64_t where = (uint64_t)(uintptr_t)address();

	if (carried_to >= 0) {
		where = carry(where);
		subop = remote_cmd.subop | claimed;
		carried_to = -1;
	}

#if TAKES_SUBOP
	call.arg[0] = subop;
	call.arg[1] = where;
#else
	(void)subop; /* the struct says it */
	call.arg[0] = where;
#endif
	return privileged(&call);
}

/* ---- what the program is written in -------------------------------------------------------------------------- */

MAYBE void begin(const char *text, uint64_t number, size_t bytes, enum argument where)
{
	now = text;
	subop = number;
	size = bytes;
	place = where;
	silent = 0;
	operations++;
	memset(image, 0, sizeof(image));
	memset(looked, 0, sizeof(looked));
}

MAYBE void set(size_t offset, size_t bytes, uint64_t value)
{
	put(offset, bytes, value);
}

/* The call goes through remote_cmd, for that domain. */
MAYBE void remote(long domain, uint64_t progress)
{
	carried_to = domain;
	claimed = progress;
}

MAYBE void raw(const unsigned char *bytes)
{
	memcpy(image, bytes, size);
}

/* This machine's number of the program's context n. */
MAYBE uint64_t ctx(uint64_t n)
{
	return n < CONTEXTS ? context[n] : n;
}

/* Guest frame of the program's page ram:first, the first of several that have to be contiguous. */
MAYBE uint64_t ram(unsigned int first, unsigned int count)
{
	for (unsigned int k = 1; k < count && first + k < RAM_PAGES; k++)
		if (frames[first + k] != frames[first] + k) {
			printf("# ram:%u to ram:%u are not contiguous here: the next answer may differ\n",
			       first, first + count - 1);
			break;
		}
	return frames[first];
}

/* Whether the answer is one of two. */
static void judge(long expected, long also)
{
	compared++;
	if (answer == expected || answer == also) {
		printf("ok %u: %s: %ld\n", operations, now, answer);
		return;
	}
	different++;
	silent = 1;
	printf("DIFFERENT %u: %s: %ld, expected %ld\n", operations, now, answer, expected);
}

MAYBE void issue(long expected, long also)
{
	unsigned char *at = address();

	if (place == READONLY && mprotect(at, PAGE, PROT_READ | PROT_WRITE))
		stop("mprotect");
	if (place != UNMAPPED && place != NONCANONICAL)
		memcpy(at, image, size);
	if (place == READONLY && mprotect(at, PAGE, PROT_READ))
		stop("mprotect");
	memcpy(given, image, size);
	answer = hypercall();
	if (place != UNMAPPED && place != NONCANONICAL)
		memcpy(image, at, size);
	judge(expected, also);
}

MAYBE void expect(const char *name, size_t offset, size_t bytes, uint64_t value)
{
	uint64_t found = get(offset, bytes);

	memset(looked + offset, 1, bytes);
	if (silent || found == value)
		return;
	different++;
	printf("DIFFERENT %u: %s: %s is %#llx, expected %#llx\n", operations, now, name, (unsigned long long)found,
	       (unsigned long long)value);
}

/* A new context: it may have another number here. */
MAYBE void expect_context(size_t offset, size_t bytes, uint64_t n)
{
	memset(looked + offset, 1, bytes);
	if (silent || n >= CONTEXTS)
		return;
	context[n] = get(offset, bytes);
	made[n] = 1;
	if (context[n] != n)
		printf("# context %llu of the program is %llu here\n", (unsigned long long)n,
		       (unsigned long long)context[n]);
}

MAYBE void show(const char *name, size_t offset, size_t bytes)
{
	memset(looked + offset, 1, bytes);
	printf("#   %s = %#llx\n", name, (unsigned long long)get(offset, bytes));
}

/* Every other byte of the struct has to be as it was. */
MAYBE void rest(void)
{
	for (size_t k = 0; k < size && !silent; k++)
		if (!looked[k] && image[k] != given[k]) {
			different++;
			silent = 1;
			printf("DIFFERENT %u: %s: byte %zu was written: %#x, before %#x\n", operations, now, k,
			       image[k], given[k]);
		}
}

/* A struct regions, its entries in the page behind it. */
#define ENTRIES ((struct region *)(void *)(pages + PAGE))
#define UNWRITTEN 0xee

MAYBE void begin_regions(const char *text, uint32_t flags, uint32_t slots, uint64_t sbdf)
{
	struct regions asked = {
		.flags = flags,
		.nr_entries = slots,
		.buffer = (uint64_t)(uintptr_t)ENTRIES,
		.segment = (uint16_t)(sbdf >> 16),
		.bus = (uint8_t)(sbdf >> 8),
		.devfn = (uint8_t)sbdf,
	};

	begin(text, 0, sizeof(asked), PLAIN);
	memcpy(image, &asked, sizeof(asked));
}

MAYBE void issue_regions(long expected)
{
	struct privcmd_hypercall call = {
		.op = MEMORY_OP, .arg = { RESERVED_DEVICE_MEMORY_MAP, (uint64_t)(uintptr_t)pages }
	};

	memset(pages + PAGE, UNWRITTEN, PAGE);
	memcpy(pages, image, size);
	memcpy(given, image, size);
	answer = privileged(&call);
	memcpy(image, pages, size);
	judge(expected, expected);
}

MAYBE void expect_region(unsigned int entry, uint64_t first, uint64_t count)
{
	struct region found = ENTRIES[entry];

	memset(&ENTRIES[entry], UNWRITTEN, sizeof(found));
	if (silent || (found.first == first && found.frames == count))
		return;
	different++;
	printf("DIFFERENT %u: %s: region %u is %#llx+%#llx, expected %#llx+%#llx\n", operations, now, entry,
	       (unsigned long long)found.first, (unsigned long long)found.frames, (unsigned long long)first,
	       (unsigned long long)count);
}

/* So many entries are needed; nothing else was written, neither to the struct nor to the entries. */
MAYBE void rest_of_regions(uint32_t needed)
{
	expect("nr_entries", offsetof(struct regions, nr_entries), sizeof(needed), needed);
	rest();
	for (size_t k = PAGE; k < 2 * PAGE && !silent; k++)
		if (pages[k] != UNWRITTEN) {
			different++;
			silent = 1;
			printf("DIFFERENT %u: %s: byte %zu of the entries was written: %#x\n", operations, now,
			       k - PAGE, pages[k]);
		}
}

MAYBE void gone(uint64_t n)
{
	if (!silent && n < CONTEXTS)
		made[n] = 0;
}

/* The next call stopped the emulated hypervisor: is it to be made all the same? */
MAYBE int daring(void)
{
	if (getenv("PVIOMMU_STOP"))
		return 1;
	printf("# not made %u: %s: it stopped the emulated hypervisor; PVIOMMU_STOP=1 makes it\n", operations, now);
	return 0;
}

MAYBE void skip(const char *text, const char *why)
{
	operations++;
	skipped++;
	printf("# skipped %u: %s: %s\n", operations, text, why);
}

/* ---- the machine ---------------------------------------------------------------------------------------------- */

static void read_frames(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[64];

	if (!file)
		stop(path);
	for (unsigned int n = 0; n < RAM_PAGES && fgets(line, sizeof(line), file); n++)
		frames[n] = strtoull(line, NULL, 0);
	fclose(file);
}

static void find_frames(void)
{
	size_t length = (RAM_PAGES * PAGE + HUGE - 1) / HUGE * HUGE;
	unsigned char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_LOCKED | MAP_POPULATE, -1, 0);
	int map = open("/proc/self/pagemap", O_RDONLY);

	if (memory == MAP_FAILED) {
		puts("# no huge pages: pages will not be contiguous (echo 4 > /proc/sys/vm/nr_hugepages)");
		memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
	}
	if (memory == MAP_FAILED || map < 0)
		stop("pages of the program");
	for (unsigned int n = 0; n < RAM_PAGES; n++) {
		uint64_t entry = 0;
		off_t at = (off_t)(((uintptr_t)memory + n * PAGE) / PAGE * sizeof(entry));

		memory[n * PAGE] = 1;
		if (pread(map, &entry, sizeof(entry), at) != sizeof(entry))
			stop("/proc/self/pagemap");
		frames[n] = entry & ((1ULL << 55) - 1);
		if (!frames[n]) {
			fputs("/proc/self/pagemap hides frame numbers: run as root\n", stderr);
			exit(2);
		}
	}
	close(map);
}

static int translated(void)
{
	FILE *file = fopen("/sys/hypervisor/guest_type", "r");
	char kind[16] = "";

	if (file) {
		if (!fgets(kind, sizeof(kind), file))
			kind[0] = 0;
		fclose(file);
	}
	return strncmp(kind, "PV\n", 3) != 0;
}

/* segment << 16 | bus << 8 | devfn of a device of the program. */
MAYBE uint64_t device(const char *variable, uint64_t usual)
{
	unsigned int segment, bus, slot, function;
	const char *text = getenv(variable);

	if (!text)
		return usual;
	if (sscanf(text, "%x:%x:%x.%x", &segment, &bus, &slot, &function) != 4) {
		fprintf(stderr, "%s: %s is not ssss:bb:dd.f\n", variable, text);
		exit(2);
	}
	return (uint64_t)segment << 16 | bus << 8 | slot << 3 | function;
}

static void prepare(void)
{
	const char *list = getenv("PVIOMMU_FRAMES");

	privcmd = open("/dev/xen/privcmd", O_RDWR | O_CLOEXEC);
	if (privcmd < 0)
		stop("/dev/xen/privcmd");
	pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (pages == MAP_FAILED || mlock(pages, 3 * PAGE) || madvise(pages, 3 * PAGE, MADV_DONTFORK) ||
	    mprotect(pages + 3 * PAGE, PAGE, PROT_NONE))
		stop("pages of arguments");
	memset(pages, 0, 3 * PAGE);
	for (unsigned int n = 0; n < CONTEXTS; n++)
		context[n] = n;
	if (list) {
		read_frames(list);
	} else if (USES_RAM) {
		if (!translated()) {
			fputs("a PV dom0: set PVIOMMU_FRAMES to a list of machine frames, see the top of the source\n",
			      stderr);
			exit(2);
		}
		find_frames();
	}
}

@FREE@

static void tidy(void)
{
	if (getenv("PVIOMMU_KEEP"))
		return;
	for (unsigned int n = 1; n < CONTEXTS; n++) {
		if (!made[n])
			continue;
		now = "tidying up";
		memset(image, 0, sizeof(image));
		place = PLAIN;
		free_context(context[n]);
		memcpy(address(), image, size);
		answer = hypercall();
		if (answer)
			printf("# context %u stays: %ld\n", n, answer);
	}
}

/* ---- the program ---------------------------------------------------------------------------------------------- */

static void program(void)
{
@PROGRAM@
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	prepare();
	program();
	tidy();
	printf("%u operations: %u compared, %u different, %u without a counterpart here\n", operations, compared,
	       different, skipped);
	return different ? 1 : 0;
}
