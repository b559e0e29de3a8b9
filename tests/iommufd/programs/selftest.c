// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A conformance program that uses IOMMU_TEST_CMD: mock devices, accesses, nested tables, page requests, vIOMMUs.
 */
#define _GNU_SOURCE
#include <poll.h>

#include "check.h"

#define DEFAULT_WORD 0xbadbeef
#define MOCK_BASE 0x1000000ull

static int fd;

static int test(struct iommu_test_cmd *cmd, uint32_t op, uint32_t id)
{
	cmd->size = sizeof(*cmd);
	cmd->op = op;
	cmd->id = id;
	return call(fd, IOMMU_TEST_CMD, cmd);
}

static int mock(uint32_t pt, uint32_t flags, uint32_t *sdev, uint32_t *hwpt, uint32_t *idev)
{
	struct iommu_test_cmd cmd = { .mock_domain_flags.dev_flags = flags };
	int ret = test(&cmd, IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt);

	*sdev = cmd.mock_domain_flags.out_stdev_id;
	*hwpt = cmd.mock_domain_flags.out_hwpt_id;
	*idev = cmd.mock_domain_flags.out_idev_id;
	return ret;
}

static int nested(uint32_t idev, uint32_t parent, uint32_t flags, uint32_t fault, uint32_t word, uint32_t *id)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd), .flags = flags, .dev_id = idev, .pt_id = parent, .fault_id = fault,
		.data_type = IOMMU_HWPT_DATA_SELFTEST, .data_len = 4, .data_uptr = (uintptr_t)&word,
	};
	int ret = call(fd, IOMMU_HWPT_ALLOC, &cmd);

	*id = cmd.out_hwpt_id;
	return ret;
}

static int replace(uint32_t sdev, uint32_t pt)
{
	struct iommu_test_cmd cmd = { .mock_domain_replace.pt_id = pt };

	return test(&cmd, IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, sdev);
}

static int invalidate(uint32_t id, uint32_t type, void *entries, uint32_t length, uint32_t *number)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd), .hwpt_id = id, .data_uptr = (uintptr_t)entries, .data_type = type,
		.entry_len = length, .entry_num = *number,
	};
	int ret = call(fd, IOMMU_HWPT_INVALIDATE, &cmd);

	*number = cmd.entry_num;
	return ret;
}

static int iotlb(uint32_t hwpt, uint32_t number, uint32_t word)
{
	struct iommu_test_cmd cmd = { .check_iotlb = { .id = number, .iotlb = word } };

	return test(&cmd, IOMMU_TEST_OP_MD_CHECK_IOTLB, hwpt);
}

static int refs(void *at, uint64_t length, uint32_t count)
{
	struct iommu_test_cmd cmd = { .check_refs = { .length = length, .uptr = (uintptr_t)at, .refs = count } };

	return test(&cmd, IOMMU_TEST_OP_MD_CHECK_REFS, 0);
}

static void mappings(void)
{
	uint32_t ioas = new_ioas(fd), sdev, hwpt, idev;
	char *buffer = pages(4);
	struct iommu_test_cmd cmd = { .check_map = { MOCK_BASE, 4 * PAGE, (uintptr_t)buffer } };
	struct iommu_test_cmd reserve = { .add_reserved = { MOCK_BASE + 64 * PAGE, PAGE } };

	CHECK(mock(ioas, 1 << 5, &sdev, &hwpt, &idev), -EINVAL);
	CHECK(mock(ioas, 0, &sdev, &hwpt, &idev), 0);
	CHECK(refs(buffer, 4 * PAGE, 0), 0);
	CHECK(map(fd, ioas, buffer, 4 * PAGE, MOCK_BASE, FIXED), 0);
	CHECK(test(&cmd, IOMMU_TEST_OP_MD_CHECK_MAP, hwpt), 0);
	cmd.check_map.uptr += 2048;
	cmd.check_map.length = PAGE;
	CHECK(test(&cmd, IOMMU_TEST_OP_MD_CHECK_MAP, hwpt), -EINVAL);
	CHECK(refs(buffer, 4 * PAGE, 1), 0);
	CHECK(refs(buffer, 4 * PAGE, 2), -EIO);
	CHECK(test(&reserve, IOMMU_TEST_OP_ADD_RESERVED, ioas), 0);
	CHECK(map(fd, ioas, buffer, PAGE, MOCK_BASE + 64 * PAGE, FIXED), -EINVAL);
	CHECK(map(fd, ioas, buffer, PAGE, 0, FIXED), -EINVAL);
	CHECK(destroy(fd, ioas), -EBUSY);
	CHECK(destroy(fd, idev), -EBUSY);
	CHECK(destroy(fd, sdev), 0);
	CHECK(destroy(fd, hwpt), -ENOENT);
	CHECK(refs(buffer, 4 * PAGE, 0), 0);
	CHECK(destroy(fd, ioas), 0);
}

static void accesses(void)
{
	uint32_t ioas = new_ioas(fd), other = new_ioas(fd), item;
	char *buffer = pages(2), copy[32] = "through the access";
	struct iommu_test_cmd make = { .create_access.flags = 1 }, use = { 0 };
	int access;

	CHECK(map(fd, ioas, buffer, 2 * PAGE, MOCK_BASE, FIXED), 0);
	CHECK(test(&make, IOMMU_TEST_OP_CREATE_ACCESS, 999), -ENOENT);
	CHECK(test(&make, IOMMU_TEST_OP_CREATE_ACCESS, ioas), 0);
	access = make.create_access.out_access_fd;
	use.access_rw.iova = MOCK_BASE + PAGE - 9;
	use.access_rw.length = sizeof(copy);
	use.access_rw.uptr = (uintptr_t)copy;
	use.access_rw.flags = 1;
	CHECK(test(&use, IOMMU_TEST_OP_ACCESS_RW, access), 0);
	CHECK(strcmp(buffer + PAGE - 9, copy), 0);
	memset(copy, 0, sizeof(copy));
	use.access_rw.flags = 0;
	CHECK(test(&use, IOMMU_TEST_OP_ACCESS_RW, access), 0);
	CHECK(strcmp(buffer + PAGE - 9, copy), 0);
	memset(&use, 0, sizeof(use));
	use.access_pages.iova = MOCK_BASE;
	use.access_pages.length = PAGE;
	use.access_pages.uptr = (uintptr_t)buffer + PAGE;
	CHECK(test(&use, IOMMU_TEST_OP_ACCESS_PAGES, access), -EBADE);
	use.access_pages.uptr = (uintptr_t)buffer;
	CHECK(test(&use, IOMMU_TEST_OP_ACCESS_PAGES, access), 0);
	CHECK(refs(buffer, PAGE, 1), 0);
	item = use.access_pages.out_access_pages_id;
	/* The unmap makes it let go. */
	CHECK(unmap(fd, ioas, MOCK_BASE, 2 * PAGE), 2 * PAGE);
	memset(&use, 0, sizeof(use));
	use.destroy_access_pages.access_pages_id = item;
	CHECK(test(&use, IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, access), -ENOENT);
	use.access_replace_ioas.ioas_id = other;
	CHECK(test(&use, IOMMU_TEST_OP_ACCESS_REPLACE_IOAS, access), 0);
	CHECK(destroy(fd, ioas), 0);
	CHECK(destroy(fd, other), -EBUSY);
	close(access);
	CHECK(destroy(fd, other), 0);
}

static void page_requests(void)
{
	uint32_t ioas = new_ioas(fd), sdev, hwpt, idev, parent, child, number;
	struct iommu_fault_alloc queue = { .size = sizeof(queue) };
	struct iommu_hwpt_pgfault fault;
	struct iommu_hwpt_page_response answer = { .code = 1 };
	struct iommu_test_cmd trigger = { .trigger_iopf = { .grpid = 7, .perm = 3, .addr = 0xdead000 } };
	struct pollfd poller;
	uint32_t entries[3][2] = { { 0, 1 }, { 0, 9 }, { 1, 0 } };

	CHECK(mock(ioas, 0, &sdev, &hwpt, &idev), 0);
	CHECK(new_hwpt(fd, idev, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT, &parent), 0);
	CHECK(nested(idev, hwpt, 0, 0, 1, &child), -EINVAL);
	CHECK(nested(idev, parent, IOMMU_HWPT_FAULT_ID_VALID, 999, 1, &child), -ENOENT);
	queue.flags = 1;
	CHECK(call(fd, IOMMU_FAULT_QUEUE_ALLOC, &queue), -EOPNOTSUPP);
	queue.flags = 0;
	CHECK(call(fd, IOMMU_FAULT_QUEUE_ALLOC, &queue), 0);
	poller = (struct pollfd){ .fd = queue.out_fault_fd, .events = POLLIN };
	CHECK(nested(idev, parent, IOMMU_HWPT_FAULT_ID_VALID, queue.out_fault_id, DEFAULT_WORD, &child), 0);
	CHECK(replace(sdev, child), 0);
	CHECK(destroy(fd, queue.out_fault_id), -EBUSY);

	trigger.trigger_iopf.dev_id = idev;
	CHECK(poll(&poller, 1, 0), 0);
	CHECK(read(queue.out_fault_fd, &fault, sizeof(fault)), 0);
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_IOPF, 0), 0);
	CHECK(poll(&poller, 1, 0), 1);
	CHECK(read(queue.out_fault_fd, &fault, sizeof(fault) - 1) < 0 ? errno : 0, ESPIPE);
	CHECK(read(queue.out_fault_fd, &fault, sizeof(fault)), sizeof(fault));
	CHECK(poll(&poller, 1, 0), 0);
	CHECK(fault.dev_id, idev);
	CHECK(fault.grpid, 7);
	CHECK(fault.addr, 0xdead000);
	answer.cookie = fault.cookie + 1;
	CHECK(write(queue.out_fault_fd, &answer, sizeof(answer)) < 0 ? errno : 0, EINVAL);
	answer.cookie = fault.cookie;
	CHECK(write(queue.out_fault_fd, &answer, sizeof(answer)), sizeof(answer));
	CHECK(write(queue.out_fault_fd, &answer, sizeof(answer)) < 0 ? errno : 0, EINVAL);
	/* What nobody will answer is answered when the table goes. */
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_IOPF, 0), 0);

	CHECK(iotlb(child, 1, DEFAULT_WORD), 0);
	number = 3;
	CHECK(invalidate(child, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, entries, 8, &number), -EINVAL);
	CHECK(number, 1);
	CHECK(iotlb(child, 1, 0), 0);
	CHECK(iotlb(child, 2, DEFAULT_WORD), 0);
	number = 1;
	CHECK(invalidate(child, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, entries[2], 8, &number), 0);
	CHECK(iotlb(child, 2, 0), 0);
	CHECK(invalidate(parent, IOMMU_HWPT_INVALIDATE_DATA_SELFTEST, entries, 8, &number), -EINVAL);

	CHECK(replace(sdev, ioas), 0);
	CHECK(read(queue.out_fault_fd, &fault, sizeof(fault)), 0);
	CHECK(destroy(fd, child), 0);
	CHECK(destroy(fd, queue.out_fault_id), -EBUSY);
	close(queue.out_fault_fd);
	CHECK(destroy(fd, queue.out_fault_id), 0);
	CHECK(destroy(fd, parent), 0);
	CHECK(destroy(fd, sdev), 0);
	CHECK(destroy(fd, ioas), 0);
}

static int new_viommu(uint32_t idev, uint32_t hwpt, uint32_t type, uint32_t *id)
{
	struct iommu_viommu_alloc cmd = { .size = sizeof(cmd), .type = type, .dev_id = idev, .hwpt_id = hwpt };
	int ret = call(fd, IOMMU_VIOMMU_ALLOC, &cmd);

	*id = cmd.out_viommu_id;
	return ret;
}

static int new_vdevice(uint32_t viommu, uint32_t idev, uint64_t virt, uint32_t *id)
{
	struct iommu_vdevice_alloc cmd = { .size = sizeof(cmd), .viommu_id = viommu, .dev_id = idev, .virt_id = virt };
	int ret = call(fd, IOMMU_VDEVICE_ALLOC, &cmd);

	*id = cmd.out_vdevice_id;
	return ret;
}

static int new_queue(uint32_t viommu, uint32_t index, uint64_t iova, uint32_t *id)
{
	struct iommu_hw_queue_alloc cmd = {
		.size = sizeof(cmd), .viommu_id = viommu, .type = IOMMU_HW_QUEUE_TYPE_SELFTEST, .index = index,
		.nesting_parent_iova = iova, .length = PAGE,
	};
	int ret = call(fd, IOMMU_HW_QUEUE_ALLOC, &cmd);

	*id = cmd.out_hw_queue_id;
	return ret;
}

static int cache(uint32_t idev, uint32_t number, uint32_t word)
{
	struct iommu_test_cmd cmd = { .check_dev_cache = { .id = number, .cache = word } };

	return test(&cmd, IOMMU_TEST_OP_DEV_CHECK_CACHE, idev);
}

static void viommus(void)
{
	uint32_t ioas = new_ioas(fd), sdev, sdev2, hwpt, idev, idev2, parent, viommu, child, vdev, none, queue, queue2;
	uint32_t number, entries[2][3] = { { 0, 0x99, 2 }, { 0, 0x98, 0 } };
	struct iommu_veventq_alloc events = { .size = sizeof(events), .type = IOMMU_VEVENTQ_TYPE_SELFTEST };
	struct { struct iommufd_vevent_header header; uint32_t virt; } event;
	struct iommu_test_cmd trigger = { 0 };
	char *buffer = pages(1);

	CHECK(mock(ioas, 0, &sdev, &hwpt, &idev), 0);
	CHECK(new_hwpt(fd, idev, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT, &parent), 0);
	CHECK(new_viommu(idev, 0, IOMMU_VIOMMU_TYPE_SELFTEST, &viommu), -ENOENT);
	CHECK(new_viommu(idev, hwpt, IOMMU_VIOMMU_TYPE_SELFTEST, &viommu), -EINVAL);
	CHECK(new_viommu(idev, parent, 5, &viommu), -EOPNOTSUPP);
	CHECK(new_viommu(idev, parent, IOMMU_VIOMMU_TYPE_SELFTEST, &viommu), 0);
	CHECK(destroy(fd, parent), -EBUSY);
	CHECK(nested(idev, viommu, 0, 0, DEFAULT_WORD, &child), 0);
	CHECK(destroy(fd, viommu), -EBUSY);
	CHECK(replace(sdev, child), -ENOENT); /* its driver does not know the device yet */
	CHECK(new_vdevice(viommu, idev, 0x99, &vdev), 0);
	CHECK(new_vdevice(viommu, idev, 0x9a, &none), -EEXIST);
	CHECK(mock(ioas, 0, &sdev2, &hwpt, &idev2), 0);
	CHECK(new_vdevice(viommu, idev2, 0x99, &none), -EEXIST);
	CHECK(replace(sdev, child), 0);

	CHECK(cache(idev, 2, IOMMU_TEST_DEV_CACHE_DEFAULT), 0);
	number = 2;
	CHECK(invalidate(viommu, IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST, entries, 12, &number), -EINVAL);
	CHECK(number, 1);
	CHECK(cache(idev, 2, 0), 0);
	CHECK(cache(idev, 1, IOMMU_TEST_DEV_CACHE_DEFAULT), 0);

	events.viommu_id = viommu;
	CHECK(call(fd, IOMMU_VEVENTQ_ALLOC, &events), -EINVAL);
	events.veventq_depth = 2;
	CHECK(call(fd, IOMMU_VEVENTQ_ALLOC, &events), 0);
	CHECK(call(fd, IOMMU_VEVENTQ_ALLOC, &events), -EEXIST);
	trigger.trigger_vevent.dev_id = idev2;
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_VEVENT, 0), -ENOENT);
	trigger.trigger_vevent.dev_id = idev;
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_VEVENT, 0), 0);
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_VEVENT, 0), 0);
	CHECK(test(&trigger, IOMMU_TEST_OP_TRIGGER_VEVENT, 0), -EOVERFLOW);
	CHECK(read(events.out_veventq_fd, &event, sizeof(event)), sizeof(event));
	CHECK(event.header.sequence, 0);
	CHECK(event.virt, 0x99);
	CHECK(read(events.out_veventq_fd, &event, sizeof(event)), sizeof(event));
	CHECK(read(events.out_veventq_fd, &event, sizeof(event)), sizeof(event.header));
	CHECK(event.header.flags, 1);
	CHECK(event.header.sequence, 2);

	CHECK(new_queue(viommu, 0, MOCK_BASE, &queue), -ENOENT);
	CHECK(map(fd, ioas, buffer, PAGE, MOCK_BASE, FIXED), 0);
	CHECK(new_queue(viommu, 1, MOCK_BASE, &queue2), -EIO);
	CHECK(new_queue(viommu, 0, MOCK_BASE, &queue), 0);
	CHECK(new_queue(viommu, 0, MOCK_BASE, &queue2), -EEXIST);
	CHECK(new_queue(viommu, 1, MOCK_BASE, &queue2), 0);
	CHECK(unmap(fd, ioas, MOCK_BASE, PAGE), -EBUSY);
	CHECK(destroy(fd, queue), -EBUSY);
	CHECK(destroy(fd, queue2), 0);
	CHECK(destroy(fd, queue), 0);
	CHECK(unmap(fd, ioas, MOCK_BASE, PAGE), PAGE);

	close(events.out_veventq_fd);
	CHECK(destroy(fd, events.out_veventq_id), 0);
	CHECK(destroy(fd, sdev2), 0);
	CHECK(destroy(fd, sdev), 0); /* the device goes, and its id in the vIOMMU with it */
	CHECK(destroy(fd, vdev), -ENOENT);
	CHECK(destroy(fd, child), 0);
	/* The rest is left to close. */
}

static int pasid(uint32_t op, uint32_t sdev, uint32_t number, uint32_t pt)
{
	struct iommu_test_cmd cmd = { .pasid_attach = { .pasid = number, .pt_id = pt } };

	return test(&cmd, op, sdev);
}

static void pasids(void)
{
	uint32_t ioas = new_ioas(fd), sdev, plain, hwpt, idev, a, b, simple;
	struct iommu_hw_info info = { .size = sizeof(info) };

	CHECK(mock(ioas, 4, &sdev, &simple, &idev), 0);
	info.dev_id = idev;
	CHECK(call(fd, IOMMU_GET_HW_INFO, &info), 0);
	CHECK(info.out_max_pasid_log2, 20);
	CHECK(new_hwpt(fd, idev, ioas, 0, &plain), 0);
	CHECK(new_hwpt(fd, idev, ioas, IOMMU_HWPT_ALLOC_PASID, &a), 0);
	CHECK(new_hwpt(fd, idev, ioas, IOMMU_HWPT_ALLOC_PASID, &b), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_ATTACH, sdev, 100, a), -EINVAL); /* beside a table without PASIDs */
	CHECK(replace(sdev, b), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_ATTACH, sdev, 100, plain), -EINVAL);
	CHECK(pasid(IOMMU_TEST_OP_PASID_REPLACE, sdev, 100, a), -EINVAL);
	CHECK(pasid(IOMMU_TEST_OP_PASID_ATTACH, sdev, 100, a), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_CHECK_HWPT, sdev, 100, a), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_CHECK_HWPT, sdev, 100, b), -EINVAL);
	CHECK(replace(sdev, plain), -EINVAL);
	CHECK(destroy(fd, a), -EBUSY);
	CHECK(pasid(IOMMU_TEST_OP_PASID_REPLACE, sdev, 100, b), 0);
	CHECK(destroy(fd, a), 0);
	CHECK(new_hwpt(fd, idev, ioas, IOMMU_HWPT_ALLOC_PASID, &hwpt), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_ATTACH, sdev, 1024, hwpt), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_REPLACE, sdev, 1024, b), -ENOMEM);
	CHECK(pasid(IOMMU_TEST_OP_PASID_CHECK_HWPT, sdev, 1024, hwpt), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_DETACH, sdev, 1024, 0), 0);
	CHECK(pasid(IOMMU_TEST_OP_PASID_CHECK_HWPT, sdev, 1024, 0), 0);
	CHECK(destroy(fd, hwpt), 0);
	CHECK(destroy(fd, sdev), 0);
	CHECK(destroy(fd, b), 0);
	CHECK(destroy(fd, plain), 0);
	CHECK(destroy(fd, ioas), 0);
}

int main(void)
{
	fd = open_iommu();
	mappings();
	accesses();
	page_requests();
	pasids();
	viommus();
	return finish();
}
