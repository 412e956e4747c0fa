/* See journal_disk.h. */
#include "journal_disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INTERRUPTIONS = 1000 }; /* of one call: more is no signal but a file system that does not get on */

static int
result_of(int result)
{
    return result < 0 ? -errno : result;
}

/* The directory that holds `path` learns of its new part. */
static int
sync_parent(const char *path)
{
    char parent[4096];
    int  length = snprintf(parent, sizeof(parent), "%s/..", path);
    int  fd, result;

    if ((size_t)length >= sizeof(parent)) /* also where it is an error, below 0 */
        return -ENAMETOOLONG;
    fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    result = result_of(fsync(fd));
    close(fd);
    return result;
}

static int
system_open_directory(void *ctx, const char *path, bool create)
{
    int result = 0;

    (void)ctx;
    if (create && mkdir(path, 0700) == 0)
        result = sync_parent(path);
    return result < 0 ? result : result_of(open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
}

static int
system_open(void *ctx, int directory, const char *name, enum near__disk_mode mode)
{
    static const int flags[] = {
        [NEAR__DISK_READ]   = O_RDONLY,
        [NEAR__DISK_WRITE]  = O_RDWR,
        [NEAR__DISK_NEW]    = O_RDWR | O_CREAT | O_EXCL,
        [NEAR__DISK_ENSURE] = O_RDWR | O_CREAT,
    };

    (void)ctx;
    /* O_NONBLOCK: a fifo of that name is refused by its kind, not waited for */
    return result_of(openat(directory, name, flags[mode] | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600));
}

static int
system_status(void *ctx, int fd, struct near__disk_status *status)
{
    struct stat stat;

    (void)ctx;
    if (fstat(fd, &stat) < 0)
        return -errno;
    *status = (struct near__disk_status){
        .size      = (uint64_t)stat.st_size,
        .directory = S_ISDIR(stat.st_mode),
        .regular   = S_ISREG(stat.st_mode),
        .ours      = stat.st_uid == geteuid(),
        .exposed   = (stat.st_mode & (S_ISDIR(stat.st_mode) ? S_IWOTH : S_IWOTH | S_IWGRP)) != 0,
    };
    return 0;
}

static ssize_t
system_read(void *ctx, int fd, void *buffer, size_t size, uint64_t at)
{
    ssize_t n = pread(fd, buffer, size, (off_t)at);

    (void)ctx;
    return n < 0 ? -errno : n;
}

static ssize_t
system_write(void *ctx, int fd, const void *buffer, size_t size, uint64_t at)
{
    ssize_t n = pwrite(fd, buffer, size, (off_t)at);

    (void)ctx;
    return n < 0 ? -errno : n;
}

static int
system_allocate(void *ctx, int fd, uint64_t size)
{
    int result = result_of(fallocate(fd, 0, 0, (off_t)size));

    (void)ctx;
    return result == -ENOSYS || result == -EINVAL ? -EOPNOTSUPP : result;
}

static int
system_resize(void *ctx, int fd, uint64_t size)
{
    (void)ctx;
    return result_of(ftruncate(fd, (off_t)size));
}

static int
system_sync(void *ctx, int fd)
{
    (void)ctx;
    return result_of(fdatasync(fd));
}

static int
system_sync_directory(void *ctx, int fd)
{
    (void)ctx;
    return result_of(fsync(fd));
}

static int
system_rename(void *ctx, int directory, const char *from, const char *to)
{
    (void)ctx;
    return result_of(renameat(directory, from, directory, to));
}

static int
system_unlink(void *ctx, int directory, const char *name)
{
    (void)ctx;
    return result_of(unlinkat(directory, name, 0));
}

static int
system_lock(void *ctx, int fd)
{
    (void)ctx;
    return result_of(flock(fd, LOCK_EX | LOCK_NB));
}

static void
system_unlock(void *ctx, int fd)
{
    (void)ctx;
    flock(fd, LOCK_UN);
}

static int
system_list(void *ctx, int directory, int (*found)(void *ctx, const char *name), void *found_ctx)
{
    int            fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), result = 0;
    DIR           *stream;
    struct dirent *entry;

    (void)ctx;
    if (fd < 0)
        return -errno;
    stream = fdopendir(fd);
    if (stream == NULL) {
        result = -errno;
        close(fd);
        return result;
    }
    for (errno = 0; result == 0 && (entry = readdir(stream)) != NULL; errno = 0)
        result = found(found_ctx, entry->d_name);
    if (result == 0 && errno != 0)
        result = -errno;
    closedir(stream);
    return result;
}

static int
system_close(void *ctx, int fd)
{
    (void)ctx;
    return result_of(close(fd));
}

const struct near__disk near__disk_system = {
    system_open_directory, system_open, system_status,         system_read,   system_write,  system_allocate,
    system_resize,         system_sync, system_sync_directory, system_rename, system_unlink, system_lock,
    system_unlock,         system_list, system_close,          NULL,
};

int
near__disk_read_all(const struct near__disk *disk, int fd, void *buffer, size_t size, uint64_t at)
{
    int interruptions = 0;

    for (uint8_t *to = buffer; size > 0;) {
        ssize_t n = disk->read(disk->ctx, fd, to, size, at);

        if (n == -EINTR && interruptions++ < INTERRUPTIONS)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        to += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int
near__disk_write_all(const struct near__disk *disk, int fd, const void *buffer, size_t size, uint64_t at)
{
    int interruptions = 0;

    for (const uint8_t *from = buffer; size > 0;) {
        ssize_t n = disk->write(disk->ctx, fd, from, size, at);

        if (n == -EINTR && interruptions++ < INTERRUPTIONS)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -EIO;
        from += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}
