// SPDX-License-Identifier: GPL-2.0-or-later
/* A program that asks for more than there is: sizes that cost it nothing (MAP_NORESERVE) must not cost the other side. */
#define _GNU_SOURCE
#include "check.h"

#define HUGE (1ul << 36)

static void *free_of_charge(int prot)
{
	void *at = mmap(NULL, HUGE, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		exit(3);
	return at;
}

static void structs(int fd, uint32_t ioas)
{
	struct iommu_ioas_alloc *cmd = free_of_charge(PROT_READ | PROT_WRITE);
	struct iommu_ioas_allow_iovas allow = { .size = sizeof(allow), .ioas_id = ioas, .num_iovas = UINT32_MAX };
	uint64_t twice[6] = { BASE, BASE + 0xfff, BASE + 0x8000, BASE + 0x8fff, BASE + 0xfff, BASE + 0x1fff };

	cmd->size = 1 << 20;
	CHECK(call(fd, IOMMU_IOAS_ALLOC, cmd), 0);
	CHECK(destroy(fd, cmd->out_ioas_id), 0);
	((char *)cmd)[(1 << 20) - 1] = 1;
	CHECK(call(fd, IOMMU_IOAS_ALLOC, cmd), -E2BIG);
	munmap(cmd, HUGE);
	allow.allowed_iovas = (uintptr_t)free_of_charge(PROT_READ);
	CHECK(call(fd, IOMMU_IOAS_ALLOW_IOVAS, &allow), -EINVAL);
	munmap((void *)allow.allowed_iovas, HUGE);
	allow.allowed_iovas = (uintptr_t)twice;
	allow.num_iovas = 3;
	CHECK(call(fd, IOMMU_IOAS_ALLOW_IOVAS, &allow), -EINVAL);
	allow.num_iovas = 2;
	CHECK(call(fd, IOMMU_IOAS_ALLOW_IOVAS, &allow), 0);
	allow.num_iovas = 0;
	CHECK(call(fd, IOMMU_IOAS_ALLOW_IOVAS, &allow), 0);
}

static void answers(int fd, uint32_t dev, uint32_t ioas)
{
	struct iommu_hw_info info = { .size = sizeof(info), .dev_id = dev, .data_len = UINT32_MAX };
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc), .dev_id = dev, .pt_id = ioas, .data_type = 1, .data_len = UINT32_MAX, .data_uptr = 8,
	};
	char *page = pages(2);

	munmap(page + PAGE, PAGE);
	info.data_uptr = (uintptr_t)page;
	CHECK(call(fd, IOMMU_GET_HW_INFO, &info), -EFAULT);
	CHECK(call(fd, IOMMU_HWPT_ALLOC, &alloc), -EFAULT);
}

static void dirty(int fd, uint32_t dev, uint32_t ioas)
{
	struct iommu_hwpt_get_dirty_bitmap cmd = {
		.size = sizeof(cmd), .length = 1ull << 62, .page_size = PAGE, .data = (uintptr_t)pages(17),
	};

	CHECK(new_hwpt(fd, dev, ioas, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, &cmd.hwpt_id), 0);
	CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd), -EINVAL);
	cmd.data = 8;
	CHECK(call(fd, IOMMU_HWPT_GET_DIRTY_BITMAP, &cmd), -EFAULT);
	CHECK(destroy(fd, cmd.hwpt_id), 0);
}

static void pins(int fd, uint32_t ioas)
{
	char *much = free_of_charge(PROT_READ | PROT_WRITE), *page = pages(1);

	CHECK(map(fd, ioas, much, 1ul << 30, 1ul << 30, FIXED), -ENOMEM);
	CHECK(map(fd, ioas, page, 1ul << 45, 1ul << 46, FIXED) < 0, 1);
	CHECK(map(fd, ioas, page, PAGE, 1ul << 30, FIXED), 0);
	CHECK(unmap(fd, ioas, 1ul << 30, PAGE), PAGE);
	munmap(much, HUGE);
}

static void other_calls(int fd, int device)
{
	char byte;

	alarm(20); /* none of them may wait */
	CHECK(read(fd, &byte, 1) <= 0, 1);
	CHECK(read(dup2(device, 99), &byte, 1) <= 0, 1);
	close(99);
	CHECK(open("/dev/iommu", O_RDWR | O_DIRECTORY) < 0 ? errno : 0, ENOTDIR);
	CHECK(open("/dev/iommu", O_RDWR | O_CREAT | O_EXCL, 0600) < 0 ? errno : 0, EEXIST);
	alarm(0);
}

int main(int argc, char **argv)
{
	int fd = open_iommu(), device = open_device(0);
	uint32_t ioas = new_ioas(fd), dev, pt = ioas;

	CHECK(bind_device(device, fd, &dev), 0);
	CHECK(attach(device, &pt), 0);
	structs(fd, ioas);
	answers(fd, dev, ioas);
	if (argc > 1 && !strcmp(argv[1], "dirty"))
		dirty(fd, dev, ioas);
	pins(fd, ioas);
	other_calls(fd, device);
	return finish();
}
