/*
 * System calls that fail on command: for programs that are linked with --wrap for all that is listed in CALLS.  The n-th call of the process,
 * on any thread, is spoilt, once or from then on, in one of five ways; a call that knows no such way is not counted.  close() is real: a
 * descriptor is gone whatever it says.
 */
#ifndef TESTS_HARNESS_CALLS_H
#define TESTS_HARNESS_CALLS_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum calls_spoilt {
    CALLS_FAIL,      /* the worst it can say: ECONNRESET, ECONNREFUSED, EIO, EMFILE, ENOMEM, ENOBUFS */
    CALLS_HANG_UP,   /* the peer has closed: recv() says 0, send() EPIPE */
    CALLS_INTERRUPT, /* EINTR, and nothing done */
    CALLS_SHORT,     /* one byte, where more were asked for */
    CALLS_AGAIN,     /* EAGAIN, although poll() said otherwise */
    CALLS_WAYS
};

static _Atomic long calls_after = -1; /* so many more go well; -1: all */
static _Atomic bool calls_last;
static _Atomic int  calls_way;
static _Atomic long calls_spoilt; /* so far */

/* errno of each way by call, 0: it knows no such way; DONE: the wrapper does it itself. */
enum { DONE = -1 };
/* clang-format off */
#define CALLS(X)                                                                                \
    /*               fail          hang up  interrupt  short  again */                          \
    X(send,          ECONNRESET,   EPIPE,   EINTR,     DONE,  EAGAIN)                            \
    X(sendmsg,       ECONNRESET,   EPIPE,   EINTR,     DONE,  EAGAIN)                            \
    X(recv,          ECONNRESET,   DONE,    EINTR,     DONE,  EAGAIN)                            \
    X(event,         0,            0,       EINTR,     0,     0) /* read, write: 8 bytes */      \
    X(file_read,     EIO,          DONE,    EINTR,     DONE,  0)                                 \
    X(file_write,    EIO,          0,       EINTR,     DONE,  0)                                 \
    X(poll,          ENOMEM,       0,       EINTR,     0,     0)                                 \
    X(ppoll,         ENOMEM,       0,       EINTR,     0,     0)                                 \
    X(connect,       ECONNREFUSED, ENOENT,  EINTR,     0,     EAGAIN)                            \
    X(socket,        EMFILE,       0,       0,         0,     0)                                 \
    X(eventfd,       EMFILE,       0,       0,         0,     0)                                 \
    X(setsockopt,    ENOBUFS,      0,       0,         0,     0)                                 \
    X(getsockopt,    ENOBUFS,      0,       0,         0,     0)                                 \
    X(fcntl64,       EBADF,        0,       0,         0,     0)                                 \
    X(getrandom,     ENOSYS,       0,       EINTR,     DONE,  0)                                 \
    X(futex,         0,            0,       EINTR,     0,     EAGAIN) /* waits alone */          \
    X(futex_waitv,   ENOSYS,       0,       EINTR,     0,     EAGAIN)                            \
    X(nanosleep,     0,            0,       EINTR,     0,     0)                                 \
    X(mmap64,        ENOMEM,       0,       0,         0,     0)                                 \
    X(mprotect,      ENOMEM,       0,       0,         0,     0)                                 \
    X(madvise,       EAGAIN,       0,       0,         0,     0)                                 \
    X(thread,        EAGAIN,       0,       0,         0,     0) /* pthread_create */            \
    X(open64,        EMFILE,       ENOENT,  EINTR,     0,     0)                                 \
    X(openat64,      EMFILE,       ENOENT,  EINTR,     0,     0)                                 \
    X(sync,          EIO,          0,       0,         0,     0) /* fsync, fdatasync */          \
    X(pwrite64,      EIO,          ENOSPC,  EINTR,     DONE,  0)                                 \
    X(fallocate64,   EIO,          ENOSPC,  EINTR,     0,     0)                                 \
    X(ftruncate64,   EIO,          ENOSPC,  EINTR,     0,     0)                                 \
    X(renameat,      EIO,          ENOSPC,  0,         0,     0)                                 \
    X(unlinkat,      EIO,          0,       0,         0,     0)                                 \
    X(pread64,       EIO,          DONE,    EINTR,     DONE,  0)                                 \
    X(preadv64v2,    EIO,          0,       EINTR,     0,     EAGAIN)                            \
    X(fstat64,       EIO,          0,       0,         0,     0)                                 \
    X(flock,         EWOULDBLOCK,  0,       EINTR,     0,     0)                                 \
    X(mkdir,         EACCES,       ENOSPC,  0,         0,     0)
/* clang-format on */

#define X(name, ...) CALL_##name,
enum calls_call { CALLS(X) CALLS_KINDS };
#undef X
#define X(name, ...) #name,
static const char *const calls_names[] = { CALLS(X) };
#undef X
#define X(name, ...) { __VA_ARGS__ },
static const int calls_errnos[CALLS_KINDS][CALLS_WAYS] = { CALLS(X) };
#undef X
static _Atomic long calls_spoilt_by[CALLS_KINDS];
static _Atomic int  calls_newest; /* the kind of the last */

static inline void
calls_begin(enum calls_spoilt way, long after, bool last)
{
    calls_way    = way;
    calls_last   = last;
    calls_newest = -1;
    calls_after  = after;
}

static inline void
calls_end(void)
{
    calls_after = -1;
}

/* 0: go on; DONE: do as `way` says; else the errno. */
static inline int
calls_trouble(enum calls_call call)
{
    long left  = atomic_load(&calls_after);
    int  error = calls_errnos[call][atomic_load(&calls_way)];

    if (left < 0 || error == 0)
        return 0;
    while (left > 0)
        if (atomic_compare_exchange_weak(&calls_after, &left, left - 1))
            return 0;
    if (left < 0)
        return 0;
    if (!calls_last && !atomic_compare_exchange_strong(&calls_after, &left, -1))
        return 0;
    calls_spoilt++;
    calls_spoilt_by[call]++;
    calls_newest = call;
    return error;
}

#define CALLS_WRAP(result, name, arguments)                                                                  \
    result __real_##name arguments;                                                                          \
    result __wrap_##name arguments;                                                                          \
    result __wrap_##name arguments
/* In a wrapper: fail, or go on with `trouble` = 0 or DONE. */
#define CALLS_TRY(call)                                                                                      \
    int trouble = calls_trouble(CALL_##call);                                                                \
                                                                                                             \
    if (trouble > 0) {                                                                                       \
        errno = trouble;                                                                                     \
        return -1;                                                                                           \
    }
/* For those that know only errors. */
#define CALLS_PLAIN(name, call, arguments, passed)                                                           \
    CALLS_WRAP(int, name, arguments)                                                                         \
    {                                                                                                        \
        CALLS_TRY(call)                                                                                      \
        return __real_##name passed;                                                                         \
    }

CALLS_WRAP(ssize_t, send, (int fd, const void *data, size_t size, int flags))
{
    CALLS_TRY(send)
    return __real_send(fd, data, trouble == DONE && size > 0 ? 1 : size, flags);
}

CALLS_WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags))
{
    struct iovec  first;
    struct msghdr little = { .msg_iov = &first, .msg_iovlen = 1 };
    CALLS_TRY(sendmsg)

    if (trouble == 0 || message->msg_iovlen == 0)
        return __real_sendmsg(fd, message, flags);
    first = (struct iovec){ message->msg_iov[0].iov_base, message->msg_iov[0].iov_len > 0 };
    return __real_sendmsg(fd, &little, flags);
}

CALLS_WRAP(ssize_t, recv, (int fd, void *data, size_t size, int flags))
{
    CALLS_TRY(recv)
    if (trouble == DONE && atomic_load(&calls_way) == CALLS_HANG_UP)
        return 0;
    return __real_recv(fd, data, trouble == DONE && size > 0 ? 1 : size, flags);
}

CALLS_WRAP(ssize_t, read, (int fd, void *data, size_t size))
{
    int trouble = calls_trouble(size == sizeof(uint64_t) ? CALL_event : CALL_file_read);

    if (trouble > 0) {
        errno = trouble;
        return -1;
    }
    if (trouble == DONE && atomic_load(&calls_way) == CALLS_HANG_UP)
        return 0;
    return __real_read(fd, data, trouble == DONE && size > 0 ? 1 : size);
}

CALLS_WRAP(ssize_t, write, (int fd, const void *data, size_t size))
{
    int trouble = calls_trouble(size == sizeof(uint64_t) ? CALL_event : CALL_file_write);

    if (trouble > 0) {
        errno = trouble;
        return -1;
    }
    return __real_write(fd, data, trouble == DONE && size > 0 ? 1 : size);
}

CALLS_WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at))
{
    CALLS_TRY(pwrite64)
    return __real_pwrite64(fd, data, trouble == DONE && size > 0 ? 1 : size, at);
}

CALLS_WRAP(ssize_t, pread64, (int fd, void *data, size_t size, off_t at))
{
    CALLS_TRY(pread64)
    if (trouble == DONE && atomic_load(&calls_way) == CALLS_HANG_UP)
        return 0;
    return __real_pread64(fd, data, trouble == DONE && size > 0 ? 1 : size, at);
}

CALLS_WRAP(ssize_t, getrandom, (void *data, size_t size, unsigned flags))
{
    CALLS_TRY(getrandom)
    return __real_getrandom(data, trouble == DONE && size > 0 ? 1 : size, flags);
}

CALLS_WRAP(ssize_t, preadv64v2, (int fd, const struct iovec *pieces, int n, off_t at, int flags))
{
    CALLS_TRY(preadv64v2)
    return __real_preadv64v2(fd, pieces, n, at, flags);
}

CALLS_PLAIN(fstat64, fstat64, (int fd, struct stat *status), (fd, status))
CALLS_PLAIN(flock, flock, (int fd, int operation), (fd, operation))
CALLS_PLAIN(mkdir, mkdir, (const char *path, mode_t mode), (path, mode))
CALLS_PLAIN(poll, poll, (struct pollfd * fds, nfds_t n, int ms), (fds, n, ms))
CALLS_PLAIN(ppoll, ppoll, (struct pollfd * fds, nfds_t n, const struct timespec *time, const sigset_t *mask),
            (fds, n, time, mask))
CALLS_PLAIN(connect, connect, (int fd, const struct sockaddr *to, socklen_t size), (fd, to, size))
CALLS_PLAIN(socket, socket, (int family, int type, int protocol), (family, type, protocol))
CALLS_PLAIN(eventfd, eventfd, (unsigned count, int flags), (count, flags))
CALLS_PLAIN(setsockopt, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
            (fd, level, name, value, size))
CALLS_PLAIN(getsockopt, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
            (fd, level, name, value, size))
CALLS_PLAIN(nanosleep, nanosleep, (const struct timespec *time, struct timespec *left), (time, left))
CALLS_PLAIN(mprotect, mprotect, (void *at, size_t size, int rights), (at, size, rights))
CALLS_PLAIN(madvise, madvise, (void *at, size_t size, int advice), (at, size, advice))
CALLS_PLAIN(fsync, sync, (int fd), (fd))
CALLS_PLAIN(fdatasync, sync, (int fd), (fd))
CALLS_PLAIN(fallocate64, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size))
CALLS_PLAIN(ftruncate64, ftruncate64, (int fd, off64_t size), (fd, size))
CALLS_PLAIN(renameat, renameat, (int from, const char *old, int to, const char *name), (from, old, to, name))
CALLS_PLAIN(unlinkat, unlinkat, (int directory, const char *name, int flags), (directory, name, flags))

CALLS_WRAP(void *, mmap64, (void *at, size_t size, int rights, int flags, int fd, off64_t offset))
{
    int trouble = calls_trouble(CALL_mmap64);

    errno = trouble;
    return trouble > 0 ? MAP_FAILED : __real_mmap64(at, size, rights, flags, fd, offset);
}

CALLS_WRAP(int, pthread_create,
           (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *ctx))
{
    int trouble = calls_trouble(CALL_thread);

    return trouble > 0 ? trouble : __real_pthread_create(thread, attributes, run, ctx);
}

CALLS_WRAP(int, fcntl64, (int fd, int command, ...))
{
    va_list list;
    long    argument;
    CALLS_TRY(fcntl64)

    va_start(list, command);
    argument = va_arg(list, long);
    va_end(list);
    return __real_fcntl64(fd, command, argument);
}

CALLS_WRAP(int, open64, (const char *path, int flags, ...))
{
    va_list list;
    int     mode;
    CALLS_TRY(open64)

    va_start(list, flags);
    mode = va_arg(list, int);
    va_end(list);
    return __real_open64(path, flags, mode);
}

CALLS_WRAP(int, openat64, (int directory, const char *path, int flags, ...))
{
    va_list list;
    int     mode;
    CALLS_TRY(openat64)

    va_start(list, flags);
    mode = va_arg(list, int);
    va_end(list);
    return __real_openat64(directory, path, flags, mode);
}

/* futex(2) and futex_waitv alone are spoilt, and of the first the waits: number, word, operation, value, time. */
CALLS_WRAP(long, syscall, (long number, ...))
{
    va_list list;
    long    a[6];

    va_start(list, number);
    for (unsigned i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_futex && (a[1] & 127) == 0) {
        CALLS_TRY(futex)
    }
#ifdef SYS_futex_waitv
    if (number == SYS_futex_waitv) {
        CALLS_TRY(futex_waitv)
    }
#endif
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
