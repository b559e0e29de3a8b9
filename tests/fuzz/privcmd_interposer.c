/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Stands in for /dev/xen/privcmd: opening it connects to the socket in PVIOMMU_STANDIN, its ioctl goes through there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int device = -1;

int open(const char *path, int flags, ...)
{
	int (*genuine)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
	struct sockaddr_un where = { .sun_family = AF_UNIX };
	va_list rest;
	int mode;

	va_start(rest, flags);
	mode = va_arg(rest, int);
	va_end(rest);
	if (strcmp(path, "/dev/xen/privcmd") || !getenv("PVIOMMU_STANDIN"))
		return genuine(path, flags, mode);
	strncpy(where.sun_path, getenv("PVIOMMU_STANDIN"), sizeof(where.sun_path) - 1);
	device = socket(AF_UNIX, SOCK_STREAM, 0);
	return connect(device, (struct sockaddr *)&where, sizeof(where)) ? -1 : device;
}

int ioctl(int fd, unsigned long request, ...)
{
	int (*genuine)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	uint64_t message[7];
	int64_t result;
	va_list rest;
	void *argument;

	va_start(rest, request);
	argument = va_arg(rest, void *);
	va_end(rest);
	if (fd != device || fd < 0)
		return genuine(fd, request, argument);
	message[0] = request;
	memcpy(message + 1, argument, 48);
	if (write(fd, message, sizeof(message)) != sizeof(message) || read(fd, &result, sizeof(result)) != sizeof(result)) {
		errno = EIO;
		return -1;
	}
	if (result < 0) {
		errno = (int)-result;
		return -1;
	}
	return (int)result;
}
