/*
 * What the disk tier asks of the system, and reads that their caller need not wait for.
 *
 * near__spill_os: one table, so that tests can be the disk.  Functions return what the system call returns, or -errno.
 *
 * near__spill_io: a few threads that read.  A read belongs to two: who asked, and the thread that serves it.  Who has waited long
 * enough leaves it behind; the last of the two frees it.  At most NEAR__SPILL_READS are open, and none is taken while every thread
 * has been at its read for longer than the caller would wait: so a disk that hangs costs a few callers their patience and the others
 * nothing.  With liburing, where the kernel lets us have a ring, one thread keeps all reads under way in it instead.
 *
 * io->lock (a leaf) covers the queue; a read's result is handed over by its word.  No lock is held while reading.
 */
#ifndef NEAR_L1_DISK_IO_H
#define NEAR_L1_DISK_IO_H

#include "base/clock.h"

#include <stdatomic.h>
#include <sys/types.h>

struct near__spill_os {
    int (*open_directory)(
        void *ctx,
        const char *
            path); /* made where it is not there; only the last part of the path; -EPERM: anybody may write to it */
    int (*open)(void *ctx, int directory, const char *name,
                bool fresh); /* made where it is not there; fresh: emptied */
    int64_t (*size)(void *ctx, int fd);
    ssize_t (*read)(void *ctx, int fd, void *bytes, size_t size, uint64_t at);
    /* The same if it need not wait; else -EAGAIN, or -EOPNOTSUPP where that cannot be said. */
    ssize_t (*read_now)(void *ctx, int fd, void *bytes, size_t size, uint64_t at);
    ssize_t (*write)(void *ctx, int fd, const void *bytes, size_t size, uint64_t at);
    int (*resize)(void *ctx, int fd, uint64_t size);
    int (*sync)(void *ctx, int fd);
    int (*lock)(void *ctx, int fd); /* -EWOULDBLOCK: somebody has it */
    int (*unlock)(void *ctx, int fd);
    int (*unlink)(void *ctx, int directory, const char *name);
    int (*close)(void *ctx, int fd);
    void *ctx;
};

extern const struct near__spill_os near__spill_os_system;

/* As many bytes as there are, over short counts and EINTR; or -errno. */
ssize_t near__spill_read_all(const struct near__spill_os *os, int fd, void *bytes, size_t size, uint64_t at);
int     near__spill_write_all(const struct near__spill_os *os, int fd, const void *bytes, size_t size,
                              uint64_t at);

struct near__spill_wait {
    _Atomic uint32_t refs;
    _Atomic uint32_t done; /* futex; release: pairs with the acquire of who waits, the bytes are there */
    struct near__spill_wait *next;
    uint64_t                 at;
    size_t                   size;
    ssize_t                  got; /* or -errno */
    int64_t                  began;
    _Alignas(16) uint8_t bytes[];
};

#define NEAR__SPILL_READS 256

struct near__spill_io;

/* `threads` that read; `ring`: io_uring in their place, if it can be had.  NULL: no memory, or no thread. */
struct near__spill_io *near__spill_io_new(const struct near__spill_os *os, int fd, unsigned threads,
                                          bool ring, const struct near__clock *clock);
/* Waits for its threads until the deadline; those that hang keep what they need, and free it when they come back. */
void near__spill_io_free(struct near__spill_io **io, int64_t deadline);
bool near__spill_io_has_ring(const struct near__spill_io *io);

/* One reference, of the caller's.  NULL: out of memory. */
struct near__spill_wait *near__spill_wait_new(uint64_t at, size_t size);
void                     near__spill_wait_free(struct near__spill_wait **wait);
/* Under way.  False: not taken, for the disk is slow (it has `patience` ns per read) or the queue full. */
bool near__spill_io_begin(struct near__spill_io *io, struct near__spill_wait *wait, int64_t patience);
/* False: not done by then. */
bool near__spill_io_await(const struct near__spill_io *io, struct near__spill_wait *wait, int64_t deadline);

#endif
