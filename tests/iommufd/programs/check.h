/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the test programs share: a check that counts, ioctls that answer -errno, and a DMA engine behind VFIO. */
#ifndef CHECK_H
#define CHECK_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "iommufd.h"

#define PAGE 4096ull
#define BASE 0x2000000ull
#define RW (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)
#define FIXED (RW | IOMMU_IOAS_MAP_FIXED_IOVA)

static int failures;

static void check_equal(long long got, long long wanted, const char *what, int line)
{
	if (got == wanted)
		return;
	printf("line %d: %s is %lld, not %lld\n", line, what, got, wanted);
	failures++;
}

#define CHECK(expression, wanted) check_equal((long long)(expression), (long long)(wanted), #expression, __LINE__)

static inline int call(int fd, unsigned long request, void *argument)
{
	return ioctl(fd, request, argument) < 0 ? -errno : 0;
}

static inline void *pages(size_t count)
{
	void *at = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		exit(3);
	return at;
}

static inline int open_iommu(void)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		perror("/dev/iommu");
		exit(3);
	}
	return fd;
}

static inline uint32_t new_ioas(int fd)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

	CHECK(call(fd, IOMMU_IOAS_ALLOC, &cmd), 0);
	return cmd.out_ioas_id;
}

static inline int map(int fd, uint32_t ioas, const void *va, uint64_t length, uint64_t iova, uint32_t flags)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd), .flags = flags, .ioas_id = ioas,
		.user_va = (uintptr_t)va, .length = length, .iova = iova,
	};

	return call(fd, IOMMU_IOAS_MAP, &cmd);
}

static inline long long unmap(int fd, uint32_t ioas, uint64_t iova, uint64_t length)
{
	struct iommu_ioas_unmap cmd = { .size = sizeof(cmd), .ioas_id = ioas, .iova = iova, .length = length };
	int ret = call(fd, IOMMU_IOAS_UNMAP, &cmd);

	return ret ? ret : (long long)cmd.length;
}

static inline int destroy(int fd, uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return call(fd, IOMMU_DESTROY, &cmd);
}

static inline int new_hwpt(int fd, uint32_t dev, uint32_t pt, uint32_t flags, uint32_t *id)
{
	struct iommu_hwpt_alloc cmd = { .size = sizeof(cmd), .flags = flags, .dev_id = dev, .pt_id = pt };
	int ret = call(fd, IOMMU_HWPT_ALLOC, &cmd);

	*id = cmd.out_hwpt_id;
	return ret;
}

/* VFIO's device file; linux/vfio.h has these since 6.6. */
struct vfio_bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; };
struct vfio_attach { uint32_t argsz, flags, pt_id; };
#define VFIO_BIND _IO(IOMMUFD_TYPE, 118)
#define VFIO_ATTACH _IO(IOMMUFD_TYPE, 119)
#define VFIO_DETACH _IO(IOMMUFD_TYPE, 120)

static inline int open_device(int number)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/vfio/devices/vfio%d", number);
	return open(path, O_RDWR | O_CLOEXEC);
}

static inline int bind_device(int dev, int iommu, uint32_t *id)
{
	struct vfio_bind cmd = { .argsz = sizeof(cmd), .iommufd = iommu };
	int ret = call(dev, VFIO_BIND, &cmd);

	*id = cmd.out_devid;
	return ret;
}

static inline int attach(int dev, uint32_t *pt)
{
	struct vfio_attach cmd = { .argsz = sizeof(cmd), .pt_id = *pt };
	int ret = call(dev, VFIO_ATTACH, &cmd);

	*pt = cmd.pt_id;
	return ret;
}

static inline int detach(int dev)
{
	struct vfio_attach cmd = { .argsz = 8 };

	return call(dev, VFIO_DETACH, &cmd);
}

static inline void poke(int dev, off_t reg, uint32_t value)
{
	CHECK(pwrite(dev, &value, 4, reg), 4);
}

static inline uint32_t peek(int dev, off_t reg)
{
	uint32_t value = 0;

	CHECK(pread(dev, &value, 4, reg), 4);
	return value;
}

struct descriptor { uint64_t source, destination; uint32_t length, flags; };

/* Let the device copy; the descriptor lies in page, which the device sees at iova. 0 or the device's error code. */
static inline uint32_t dma(int dev, void *page, uint64_t iova, uint64_t from, uint64_t to, uint32_t length)
{
	*(struct descriptor *)page = (struct descriptor){ from, to, length, 0 };
	poke(dev, 0x18, iova & 0xffffffff);
	poke(dev, 0x1c, iova >> 32);
	poke(dev, 0x20, 1);
	poke(dev, 0x24, 1);
	return peek(dev, 0x0c);
}

static inline int finish(void)
{
	if (failures)
		printf("%d failures\n", failures);
	return failures != 0;
}
#endif
