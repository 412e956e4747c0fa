/*
 * What a journal asks of the file system: one table, so that tests can be the disk (and lose, tear and refuse what they like).
 *
 * Functions return what the system call returns, or -errno.  Names are single parts, relative to the directory.  The system's table opens
 * nothing that is a link, closes everything on exec, and makes files nobody else may read.  No state.
 */
#ifndef NEAR_CLIENT_JOURNAL_DISK_H
#define NEAR_CLIENT_JOURNAL_DISK_H

#include "base/base.h"

#include <sys/types.h>

enum near__disk_mode {
    NEAR__DISK_READ,
    NEAR__DISK_WRITE, /* and read; must be there */
    NEAR__DISK_NEW,   /* and read; must not be there */
    NEAR__DISK_ENSURE /* and read; made where it is not there */
};

struct near__disk_status {
    uint64_t size;
    bool     directory, regular;
    bool     ours;    /* belongs to whom we are */
    bool     exposed; /* others may write it */
};

struct near__disk {
    int (*open_directory)(void *ctx, const char *path, bool create);
    int (*open)(void *ctx, int directory, const char *name, enum near__disk_mode mode);
    int (*status)(void *ctx, int fd, struct near__disk_status *status);
    ssize_t (*read)(void *ctx, int fd, void *buffer, size_t size, uint64_t at);
    ssize_t (*write)(void *ctx, int fd, const void *buffer, size_t size, uint64_t at);
    int (*allocate)(void *ctx, int fd,
                    uint64_t size); /* zeros, with their blocks; -EOPNOTSUPP where that is not to be had */
    int (*resize)(void *ctx, int fd, uint64_t size);
    int (*sync)(void *ctx, int fd);           /* a file's bytes */
    int (*sync_directory)(void *ctx, int fd); /* which names there are */
    int (*rename)(void *ctx, int directory, const char *from, const char *to);
    int (*unlink)(void *ctx, int directory, const char *name);
    int (*lock)(void *ctx, int fd); /* exclusive, of this open file; -EWOULDBLOCK: somebody has it */
    /* Whoever else has a descriptor of it: a forked child has until its handler ran. */
    void (*unlock)(void *ctx, int fd);
    int (*list)(void *ctx, int directory, int (*found)(void *ctx, const char *name), void *found_ctx);
    int (*close)(void *ctx, int fd);
    void *ctx;
};

extern const struct near__disk near__disk_system;

/* All `size` bytes, over short counts and EINTR: 0 or -errno.  A file that ends before is -EIO. */
int near__disk_read_all(const struct near__disk *disk, int fd, void *buffer, size_t size, uint64_t at);
int near__disk_write_all(const struct near__disk *disk, int fd, const void *buffer, size_t size, uint64_t at);

#endif
