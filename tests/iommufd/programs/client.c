// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A program that speaks to /dev/iommu as any other would: maps, tables, DMA, sizes, bad pointers, fork, close.
 * Arguments: "dirty" if the machine tracks dirty pages.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"

static void maps(int fd)
{
	uint32_t ioas = new_ioas(fd), other = new_ioas(fd);
	char *buffer = pages(4), *fixed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_map anywhere = {
		.size = sizeof(anywhere), .flags = RW, .ioas_id = ioas, .user_va = (uintptr_t)buffer, .length = 2 * PAGE,
	};
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy), .flags = FIXED, .dst_ioas_id = other, .src_ioas_id = ioas,
		.length = PAGE, .dst_iova = BASE, .src_iova = BASE + PAGE,
	};

	CHECK(map(fd, ioas, buffer, 4 * PAGE, BASE, FIXED), 0);
	CHECK(map(fd, ioas, buffer, PAGE, BASE + PAGE, FIXED), -EEXIST);
	CHECK(map(fd, ioas, buffer, 0, BASE + 8 * PAGE, FIXED), -EINVAL);
	CHECK(map(fd, 999, buffer, PAGE, BASE, FIXED), -ENOENT);
	CHECK(map(fd, ioas, buffer, PAGE, BASE + 8 * PAGE, 8), -EOPNOTSUPP);
	CHECK(call(fd, IOMMU_IOAS_MAP, &anywhere), 0);
	CHECK(anywhere.iova % PAGE, 0);
	CHECK(call(fd, IOMMU_IOAS_COPY, &copy), 0);
	copy.src_iova = BASE + 16 * PAGE;
	CHECK(call(fd, IOMMU_IOAS_COPY, &copy), -ENOENT);
	CHECK(unmap(fd, ioas, BASE + PAGE, PAGE), -ENOENT);
	CHECK(unmap(fd, ioas, BASE, 4 * PAGE), 4 * PAGE);
	CHECK(unmap(fd, ioas, BASE, 4 * PAGE), -ENOENT);
	CHECK(unmap(fd, ioas, 0, UINT64_MAX), 2 * PAGE);
	CHECK(destroy(fd, ioas), 0);
	CHECK(destroy(fd, ioas), -ENOENT);
	CHECK(destroy(fd, other), 0);
	munmap(fixed, PAGE);
	munmap(buffer, 4 * PAGE);
}

static void ranges(int fd)
{
	uint32_t ioas = new_ioas(fd);
	uint64_t got[4] = { 0, 0, 77, 77 }, allowed[2] = { BASE, BASE + 4 * PAGE - 1 };
	struct iommu_ioas_iova_ranges cmd = {
		.size = sizeof(cmd), .ioas_id = ioas, .num_iovas = 2, .allowed_iovas = (uintptr_t)got,
	};
	struct iommu_ioas_allow_iovas allow = {
		.size = sizeof(allow), .ioas_id = ioas, .num_iovas = 1, .allowed_iovas = (uintptr_t)allowed,
	};
	struct iommu_ioas_map anywhere = {
		.size = sizeof(anywhere), .flags = RW, .ioas_id = ioas, .length = PAGE,
	};

	CHECK(call(fd, IOMMU_IOAS_IOVA_RANGES, &cmd), 0);
	CHECK(cmd.num_iovas, 1);
	CHECK(got[0], 0);
	CHECK(got[1], UINT64_MAX);
	CHECK(got[2], 77);
	cmd.num_iovas = 0;
	CHECK(call(fd, IOMMU_IOAS_IOVA_RANGES, &cmd), -EMSGSIZE);
	CHECK(cmd.num_iovas, 1);
	CHECK(call(fd, IOMMU_IOAS_ALLOW_IOVAS, &allow), 0);
	anywhere.user_va = (uintptr_t)pages(1);
	CHECK(call(fd, IOMMU_IOAS_MAP, &anywhere), 0);
	CHECK(anywhere.iova >= allowed[0] && anywhere.iova + PAGE - 1 <= allowed[1], 1);
	CHECK(destroy(fd, ioas), 0);
}

static void sizes(int fd)
{
	struct {
		struct iommu_ioas_alloc cmd;
		uint8_t tail[20];
	} big = { .cmd = { .size = sizeof(big) } };
	struct iommu_hwpt_alloc old = { .size = 24, .dev_id = 999 };

	CHECK(call(fd, IOMMU_IOAS_ALLOC, &big), 0);
	CHECK(destroy(fd, big.cmd.out_ioas_id), 0);
	big.tail[19] = 1;
	CHECK(call(fd, IOMMU_IOAS_ALLOC, &big), -E2BIG);
	big.cmd.size = sizeof(big.cmd);
	CHECK(call(fd, IOMMU_IOAS_ALLOC, &big), 0);
	CHECK(big.tail[19], 1);
	CHECK(destroy(fd, big.cmd.out_ioas_id), 0);
	big.cmd.size = sizeof(big.cmd) - 1;
	CHECK(call(fd, IOMMU_IOAS_ALLOC, &big), -EINVAL);
	CHECK(call(fd, IOMMU_HWPT_ALLOC, &old), -ENOENT);
	old.size = 23;
	CHECK(call(fd, IOMMU_HWPT_ALLOC, &old), -EINVAL);
	CHECK(call(fd, _IO(IOMMUFD_TYPE, 0xff), &old), -ENOTTY);
}

static void pointers(int fd)
{
	uint32_t ioas = new_ioas(fd);
	char *edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_alloc *split = (void *)(edge + PAGE - 8);
	struct iommu_ioas_iova_ranges bad = { .size = sizeof(bad), .ioas_id = ioas, .num_iovas = 1, .allowed_iovas = 8 };

	CHECK(call(fd, IOMMU_DESTROY, NULL), -EFAULT);
	CHECK(call(fd, IOMMU_DESTROY, (void *)-4096l), -EFAULT);
	CHECK(call(fd, IOMMU_IOAS_IOVA_RANGES, &bad), -EFAULT);
	*split = (struct iommu_ioas_alloc){ .size = sizeof(*split) };
	munmap(edge + PAGE, PAGE);
	CHECK(call(fd, IOMMU_IOAS_ALLOC, split), -EFAULT);
	split = (void *)edge;
	*split = (struct iommu_ioas_alloc){ .size = sizeof(*split) };
	mprotect(edge, PAGE, PROT_READ);
	CHECK(call(fd, IOMMU_IOAS_ALLOC, split), -EFAULT);
	CHECK(split->out_ioas_id, 0);
	/* The failed calls have left nothing: the next id is the next one. */
	CHECK(new_ioas(fd), ioas + 1);
	CHECK(destroy(fd, ioas + 1), 0);
	CHECK(destroy(fd, ioas), 0);
}

static void devices(int fd, int dirty)
{
	uint32_t ioas = new_ioas(fd), second = new_ioas(fd), id, other_id, hwpt, hwpt2, pt;
	int dev = open_device(0), other = open_device(1);
	char *buffer = pages(4), *hole = pages(2), *fixed;
	struct iommu_hw_info info = { .size = sizeof(info) };
	char info_word[4];

	CHECK(pread(dev, info_word, 4, 0), -1);
	CHECK(bind_device(dev, dev, &id), -EBADFD);
	CHECK(bind_device(dev, 4000, &id), -EBADF);
	CHECK(bind_device(dev, fd, &id), 0);
	CHECK(bind_device(dev, fd, &id), -EINVAL);
	CHECK(bind_device(other, fd, &other_id), 0);
	bind_device(dev, fd, &pt);
	info.dev_id = other_id;
	CHECK(call(fd, IOMMU_GET_HW_INFO, &info), 0);
	CHECK(peek(dev, 0), 0x43505931);

	CHECK(destroy(fd, other_id), -EBUSY);
	CHECK(new_hwpt(fd, other_id, ioas, 0, &hwpt), 0);
	CHECK(new_hwpt(fd, other_id, second, 0, &hwpt2), 0);
	CHECK(new_hwpt(fd, other_id, 999, 0, &pt), -EINVAL);
	CHECK(new_hwpt(fd, 999, ioas, 0, &pt), -ENOENT);
	pt = 999;
	CHECK(attach(dev, &pt), -ENOENT);
	pt = hwpt;
	CHECK(attach(dev, &pt), 0);
	CHECK(destroy(fd, hwpt), -EBUSY);

	/* A hole in the memory, and memory that is read-only, are found when there is a table. */
	munmap(hole + PAGE, PAGE);
	CHECK(map(fd, ioas, hole, 2 * PAGE, BASE + 8 * PAGE, FIXED), -EFAULT);
	fixed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(map(fd, ioas, fixed, PAGE, BASE + 8 * PAGE, FIXED), -EFAULT);
	CHECK(map(fd, ioas, fixed, PAGE, BASE + 8 * PAGE, FIXED & ~IOMMU_IOAS_MAP_WRITEABLE), 0);

	/* DMA through the table, into memory that this program has. */
	CHECK(map(fd, ioas, buffer, 4 * PAGE, BASE, FIXED), 0);
	strcpy(buffer + 2 * PAGE - 7, "across two pages");
	CHECK(dma(dev, buffer, BASE, BASE + 2 * PAGE - 7, BASE + 3 * PAGE, 17), 0);
	CHECK(strcmp(buffer + 3 * PAGE, "across two pages"), 0);
	CHECK(dma(dev, buffer, BASE, BASE, BASE + 8 * PAGE, 8), 3);
	CHECK(dma(dev, buffer, BASE, BASE + 16 * PAGE, BASE, 8), 2);

	/* The other table shows another page at the same address; going over and back. */
	CHECK(map(fd, second, buffer + PAGE, PAGE, BASE, FIXED), 0);
	pt = hwpt2;
	CHECK(attach(dev, &pt), 0);
	CHECK(destroy(fd, hwpt), 0);
	CHECK(dma(dev, buffer + PAGE, BASE, BASE, BASE + 64, 24), 0);
	CHECK(memcmp(buffer + PAGE, buffer + PAGE + 64, 24), 0);
	CHECK(dma(dev, buffer + PAGE, BASE, BASE + PAGE, BASE, 8), 2);
	pt = ioas;
	CHECK(attach(dev, &pt), 0);
	CHECK(pt != ioas && pt != hwpt2, 1);
	CHECK(detach(dev), 0);
	CHECK(destroy(fd, pt), -ENOENT);
	CHECK(dma(dev, buffer, BASE, BASE, BASE, 8), 1);
	CHECK(destroy(fd, hwpt2), 0);

	if (dirty) {
		uint64_t bitmap = 0;
		struct iommu_hwpt_set_dirty_tracking set = { .size = sizeof(set), .flags = 1 };
		struct iommu_hwpt_get_dirty_bitmap get = {
			.size = sizeof(get), .iova = BASE, .length = 4 * PAGE, .page_size = PAGE, .data = (uintptr_t)&bitmap,
		};

		CHECK(new_hwpt(fd, other_id, ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, &hwpt), 0);
		pt = hwpt;
		CHECK(attach(dev, &pt), 0);
		set.hwpt_id = get.hwpt_id = hwpt;
		CHECK(call(fd, IOMMU_HWPT_SET_DIRTY_TRACKING, &set), 0);
		CHECK(dma(dev, buffer, BASE, BASE, BASE + 2 * PAGE, 8), 0);
		get.flags = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
		CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
		CHECK(bitmap, 4);
		get.flags = 0;
		CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
		bitmap = 0;
		CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
		CHECK(bitmap, 0);
		get.page_size = 0;
		CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &get), -EINVAL);
		CHECK(detach(dev), 0);
		CHECK(destroy(fd, hwpt), 0);
	}
	close(other);
	CHECK(destroy(fd, other_id), -ENOENT);
	close(dev);
	CHECK(destroy(fd, second), 0);
	CHECK(destroy(fd, ioas), 0);
}

static void files(int fd)
{
	uint32_t ioas = new_ioas(fd), id, pt = ioas;
	int memory = memfd_create("buffer", 0), dev = open_device(0);
	struct iommu_ioas_map_file cmd = {
		.size = sizeof(cmd), .flags = FIXED, .ioas_id = ioas, .fd = memory, .length = 2 * PAGE, .iova = BASE,
	};
	char *view, *list = pages(1);

	CHECK(ftruncate(memory, 2 * PAGE), 0);
	view = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	CHECK(bind_device(dev, fd, &id), 0);
	CHECK(attach(dev, &pt), 0);
	CHECK(call(fd, IOMMU_IOAS_MAP_FILE, &cmd), 0);
	cmd.fd = 4000;
	CHECK(call(fd, IOMMU_IOAS_MAP_FILE, &cmd), -EBADF);
	cmd.fd = memory;
	cmd.iova = BASE + 16 * PAGE;
	cmd.length = 3 * PAGE;
	CHECK(call(fd, IOMMU_IOAS_MAP_FILE, &cmd), -EINVAL);
	CHECK(map(fd, ioas, list, PAGE, BASE + 8 * PAGE, FIXED), 0);
	strcpy(view, "in a file");
	CHECK(dma(dev, list, BASE + 8 * PAGE, BASE, BASE + PAGE, 10), 0);
	CHECK(strcmp(view + PAGE, "in a file"), 0);
	close(memory);
	close(dev);
	CHECK(destroy(fd, ioas), 0);
}

static void *from_a_thread(void *argument)
{
	uint32_t ioas = new_ioas(*(int *)argument);

	CHECK(destroy(*(int *)argument, ioas), 0);
	return NULL;
}

static void processes(int fd)
{
	uint32_t ioas = new_ioas(fd), id, pt = ioas;
	int dev = open_device(0), copy, status, i;
	char *buffer = pages(2), *shared;
	pthread_t threads[4];

	for (i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, from_a_thread, &fd);
	for (i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);

	/* What the child maps is the child's memory: the parent's page at that address is another one. */
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(bind_device(dev, fd, &id), 0);
	CHECK(attach(dev, &pt), 0);
	strcpy(buffer, "parent");
	fflush(stdout);
	if (!fork()) {
		strcpy(buffer, "child");
		failures = 0;
		CHECK(map(fd, ioas, buffer, PAGE, BASE, FIXED), 0);
		CHECK(map(fd, ioas, shared, PAGE, BASE + PAGE, FIXED), 0);
		_exit(failures);
	}
	CHECK(wait(&status) > 0, 1);
	CHECK(status, 0);
	/* The child has gone; its pages are still mapped, and the shared one is ours as well. */
	CHECK(map(fd, ioas, buffer + PAGE, PAGE, BASE + 4 * PAGE, FIXED), 0);
	CHECK(dma(dev, buffer + PAGE, BASE + 4 * PAGE, BASE, BASE + 4 * PAGE + 64, 6), 0);
	CHECK(strcmp(buffer + PAGE + 64, "child"), 0);
	CHECK(dma(dev, buffer + PAGE, BASE + 4 * PAGE, BASE, BASE + PAGE, 6), 0);
	CHECK(strcmp(shared, "child"), 0);
	CHECK(strcmp(buffer, "parent"), 0);

	/* A copy of the descriptor is the same file; closing one leaves the other. */
	copy = dup(fd);
	CHECK(unmap(copy, ioas, BASE, PAGE), PAGE);
	close(copy);
	CHECK(unmap(fd, ioas, BASE + PAGE, PAGE), PAGE);
	CHECK(call(copy, IOMMU_DESTROY, buffer), -EBADF);
	close(dev);
	CHECK(destroy(fd, ioas), 0);
}

static void close_in_the_middle(void)
{
	int fd = open_iommu(), dev = open_device(0);
	uint32_t ioas = new_ioas(fd), id, pt = ioas;
	char *buffer = pages(1);

	CHECK(bind_device(dev, fd, &id), 0);
	CHECK(attach(dev, &pt), 0);
	CHECK(map(fd, ioas, buffer, PAGE, BASE, FIXED), 0);
	close(fd); /* the device keeps it alive */
	CHECK(dma(dev, buffer, BASE, BASE, BASE + 64, 24), 0);
	CHECK(memcmp(buffer, buffer + 64, 24), 0);
	close(dev);
	fd = open_iommu(); /* and now everything is free again */
	dev = open_device(0);
	CHECK(bind_device(dev, fd, &id), 0);
	CHECK(id, 1);
	/* Left open: the end of the program closes it, attached or not. */
	pt = new_ioas(fd);
	CHECK(attach(dev, &pt), 0);
}

int main(int argc, char **argv)
{
	int fd = open_iommu();

	maps(fd);
	ranges(fd);
	sizes(fd);
	pointers(fd);
	devices(fd, argc > 1 && !strcmp(argv[1], "dirty"));
	files(fd);
	processes(fd);
	close(fd);
	close_in_the_middle();
	if (argc > 1 && !strcmp(argv[1], "hang")) {
		puts("ready");
		fflush(stdout);
		pause();
	}
	return finish();
}
