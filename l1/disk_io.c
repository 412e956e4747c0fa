/* See disk_io.h. */
#include "l1/disk_io.h"

#include "base/futex.h"
#include "base/lock.h"
#include "base/thread.h"

#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>

#ifdef NEAR_HAVE_LIBURING
#include <liburing.h>
#endif

enum { THREADS_MAX = 16 };

/* ---- the system */

static int
result(long rc)
{
    return rc < 0 ? -errno : (int)rc;
}

static int
sys_open_directory(void *ctx, const char *path)
{
    struct stat st;
    int         fd;

    (void)ctx;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return -errno;
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && (st.st_mode & S_IWOTH) == 0)
        return fd;
    close(fd); /* anybody may put files there */
    return -EPERM;
}

/* What lies there and is no file of ours alone is not touched: values may be secrets. */
static int
sys_open(void *ctx, int directory, const char *name, bool fresh)
{
    int         fd = openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    struct stat st;

    (void)ctx;
    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1 ||
        (st.st_mode & 022) != 0 || (fresh && ftruncate(fd, 0) != 0)) {
        close(fd);
        return -EPERM;
    }
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* what is read ahead of a record is somebody else's */
    return fd;
}

static int64_t
sys_size(void *ctx, int fd)
{
    struct stat st;

    (void)ctx;
    return fstat(fd, &st) == 0 ? (int64_t)st.st_size : -errno;
}

static ssize_t
sys_read(void *ctx, int fd, void *bytes, size_t size, uint64_t at)
{
    ssize_t got = pread(fd, bytes, size, (off_t)at);

    (void)ctx;
    return got < 0 ? -errno : got;
}

static ssize_t
sys_read_now(void *ctx, int fd, void *bytes, size_t size, uint64_t at)
{
#ifdef RWF_NOWAIT
    struct iovec piece = { bytes, size };
    ssize_t      got   = preadv2(fd, &piece, 1, (off_t)at, RWF_NOWAIT);

    (void)ctx;
    return got < 0 ? -errno : got;
#else
    (void)ctx, (void)fd, (void)bytes, (void)size, (void)at;
    return -EOPNOTSUPP;
#endif
}

static ssize_t
sys_write(void *ctx, int fd, const void *bytes, size_t size, uint64_t at)
{
    ssize_t put = pwrite(fd, bytes, size, (off_t)at);

    (void)ctx;
    return put < 0 ? -errno : put;
}

static int
sys_resize(void *ctx, int fd, uint64_t size)
{
    (void)ctx;
    return result(ftruncate(fd, (off_t)size));
}

static int
sys_sync(void *ctx, int fd)
{
    (void)ctx;
    return result(fdatasync(fd));
}

static int
sys_lock(void *ctx, int fd)
{
    (void)ctx;
    return result(flock(fd, LOCK_EX | LOCK_NB));
}

/* Said, not left to the close: a child that was forked has the same lock. */
static int
sys_unlock(void *ctx, int fd)
{
    (void)ctx;
    return result(flock(fd, LOCK_UN));
}

static int
sys_unlink(void *ctx, int directory, const char *name)
{
    (void)ctx;
    return result(unlinkat(directory, name, 0));
}

static int
sys_close(void *ctx, int fd)
{
    (void)ctx;
    return result(close(fd));
}

const struct near__spill_os near__spill_os_system = {
    .open_directory = sys_open_directory,
    .open           = sys_open,
    .size           = sys_size,
    .read           = sys_read,
    .read_now       = sys_read_now,
    .write          = sys_write,
    .resize         = sys_resize,
    .sync           = sys_sync,
    .lock           = sys_lock,
    .unlock         = sys_unlock,
    .unlink         = sys_unlink,
    .close          = sys_close,
};

ssize_t
near__spill_read_all(const struct near__spill_os *os, int fd, void *bytes, size_t size, uint64_t at)
{
    size_t done = 0;

    while (done < size) {
        ssize_t got = os->read(os->ctx, fd, (char *)bytes + done, size - done, at + done);

        if (got == -EINTR)
            continue;
        if (got < 0)
            return got;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

int
near__spill_write_all(const struct near__spill_os *os, int fd, const void *bytes, size_t size, uint64_t at)
{
    size_t done = 0;

    while (done < size) {
        ssize_t put = os->write(os->ctx, fd, (const char *)bytes + done, size - done, at + done);

        if (put == -EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? (int)put : -EIO;
        done += (size_t)put;
    }
    return 0;
}

/* ---- reads */

struct reader {
    struct near__spill_io *io;
    pthread_t              thread;
    _Atomic int64_t        since; /* when it began what it is at; 0: idle.  Relaxed: a hint */
};

struct near__spill_io {
    const struct near__spill_os *os;
    int                          fd;
    struct near__clock           clock; /* a copy: a thread that hangs outlives who made it */
    struct near__lock            lock;
    pthread_cond_t               work, over;
    struct near__spill_wait     *first, **last;
    unsigned                     threads, running;
    _Atomic uint32_t             open; /* reads that are under way */
    bool                         stop, ring;
    _Atomic uint32_t             refs; /* the owner, and each thread */
    struct reader                readers[THREADS_MAX];
#ifdef NEAR_HAVE_LIBURING
    struct io_uring uring;
#endif
};

struct near__spill_wait *
near__spill_wait_new(uint64_t at, size_t size)
{
    struct near__spill_wait *wait = malloc(sizeof(*wait) + size);

    if (wait == NULL)
        return NULL;
    atomic_init(&wait->refs, 1);
    atomic_init(&wait->done, 0);
    wait->next = NULL;
    wait->at   = at;
    wait->size = size;
    wait->got  = -EIO;
    return wait;
}

void
near__spill_wait_free(struct near__spill_wait **pwait)
{
    struct near__spill_wait *wait = *pwait;

    *pwait = NULL;
    /* acq_rel: the last one sees what the other did */
    if (wait != NULL && atomic_fetch_sub_explicit(&wait->refs, 1, memory_order_acq_rel) == 1)
        free(wait);
}

static void
io_release(struct near__spill_io *io)
{
    if (atomic_fetch_sub_explicit(&io->refs, 1, memory_order_acq_rel) != 1)
        return;
#ifdef NEAR_HAVE_LIBURING
    if (io->ring)
        io_uring_queue_exit(&io->uring);
#endif
    io->os->close(io->os->ctx, io->fd);
    pthread_cond_destroy(&io->work);
    pthread_cond_destroy(&io->over);
    near__lock_fini(&io->lock);
    free(io);
}

static void
answer(struct near__spill_io *io, struct near__spill_wait *wait, ssize_t got)
{
    wait->got = got;
    atomic_store_explicit(&wait->done, 1, memory_order_release);
    near__futex_wake(&wait->done, INT_MAX);
    near__spill_wait_free(&wait);
    atomic_fetch_sub_explicit(&io->open, 1, memory_order_relaxed);
}

static struct near__spill_wait *
take_locked(struct near__spill_io *io)
{
    struct near__spill_wait *wait = io->first;

    if (wait == NULL)
        return NULL;
    io->first = wait->next;
    if (io->first == NULL)
        io->last = &io->first;
    return wait;
}

/* Who asked has gone: reading it would only make those behind it late.  Relaxed: nothing but the memory is ours then. */
static bool
is_left_behind(const struct near__spill_wait *wait)
{
    return atomic_load_explicit(&wait->refs, memory_order_relaxed) == 1;
}

/* Its last words; the thread touches nothing of the io afterwards. */
static void
thread_ends(struct near__spill_io *io)
{
    near__lock(&io->lock);
    io->running--;
    pthread_cond_broadcast(&io->over);
    near__unlock(&io->lock);
    io_release(io);
}

static void *
read_thread(void *ctx)
{
    struct reader         *me = ctx;
    struct near__spill_io *io = me->io;

    near__lock(&io->lock);
    for (;;) {
        struct near__spill_wait *wait = take_locked(io);

        if (wait == NULL && io->stop)
            break;
        if (wait == NULL) {
            near__cond_wait(&io->work, &io->lock, NEAR_NEVER);
            continue;
        }
        near__unlock(&io->lock);
        if (is_left_behind(wait)) {
            answer(io, wait, -ECANCELED);
            near__lock(&io->lock);
            continue;
        }
        atomic_store_explicit(&me->since, near__now(&io->clock), memory_order_relaxed);
        answer(io, wait, near__spill_read_all(io->os, io->fd, wait->bytes, wait->size, wait->at));
        atomic_store_explicit(&me->since, 0, memory_order_relaxed);
        near__lock(&io->lock);
    }
    near__unlock(&io->lock);
    thread_ends(io);
    return NULL;
}

#ifdef NEAR_HAVE_LIBURING
#define RING_POLL_MS 1 /* how long a read waits to be submitted behind one that hangs */

/* Everything in the queue on its way; how many. */
static unsigned
ring_submit(struct near__spill_io *io)
{
    struct io_uring_sqe     *sqe;
    struct near__spill_wait *wait;
    unsigned                 n = 0;

    near__lock(&io->lock);
    while (io->first != NULL && (sqe = io_uring_get_sqe(&io->uring)) != NULL) {
        wait = take_locked(io);
        io_uring_prep_read(sqe, io->fd, wait->bytes, (unsigned)wait->size, wait->at);
        io_uring_sqe_set_data(sqe, wait);
        n++;
    }
    near__unlock(&io->lock);
    if (io_uring_sq_ready(&io->uring) > 0) /* also what the kernel would not take the last time */
        io_uring_submit(&io->uring);
    return n;
}

/* One that was cut short is finished plainly: rare, for a record lies in one page or two. */
static ssize_t
ring_rest(struct near__spill_io *io, struct near__spill_wait *wait, int got)
{
    if (got == -EINTR || got == -EAGAIN || (got > 0 && (size_t)got < wait->size))
        return near__spill_read_all(io->os, io->fd, wait->bytes, wait->size, wait->at);
    return got;
}

static void *
ring_thread(void *ctx)
{
    struct reader           *me   = ctx;
    struct near__spill_io   *io   = me->io;
    struct __kernel_timespec poll = { 0, RING_POLL_MS * NEAR_MS };
    struct io_uring_cqe     *cqe;
    unsigned                 under_way = 0;
    bool                     stop      = false;

    while (!stop || under_way > 0) {
        under_way += ring_submit(io);
        atomic_store_explicit(&me->since, under_way > 0 ? near__now(&io->clock) : 0, memory_order_relaxed);
        if (under_way == 0) {
            near__lock(&io->lock);
            while (io->first == NULL && !io->stop)
                near__cond_wait(&io->work, &io->lock, NEAR_NEVER);
            stop = io->stop && io->first == NULL;
            near__unlock(&io->lock);
            continue;
        }
        if (io_uring_peek_cqe(&io->uring, &cqe) != 0 &&
            io_uring_wait_cqe_timeout(&io->uring, &cqe, &poll) != 0)
            continue;
        do {
            struct near__spill_wait *wait = io_uring_cqe_get_data(cqe);
            int                      got  = cqe->res;

            io_uring_cqe_seen(&io->uring, cqe);
            if (wait == NULL)
                continue; /* the timeout's own, on old kernels */
            under_way--;
            answer(io, wait, ring_rest(io, wait, got));
        } while (io_uring_peek_cqe(&io->uring, &cqe) == 0);
    }
    thread_ends(io);
    return NULL;
}
#endif

static bool
start(struct near__spill_io *io, unsigned i)
{
    void *(*run)(void *) = read_thread;

#ifdef NEAR_HAVE_LIBURING
    if (io->ring)
        run = ring_thread;
#endif
    io->readers[i].io = io;
    atomic_fetch_add_explicit(&io->refs, 1, memory_order_relaxed);
    io->running++;
    if (near__thread_start(&io->readers[i].thread, "near-disk-read", run, &io->readers[i]) == NEAR_OK)
        return true;
    io->running--;
    atomic_fetch_sub_explicit(&io->refs, 1, memory_order_relaxed);
    return false;
}

struct near__spill_io *
near__spill_io_new(const struct near__spill_os *os, int fd, unsigned threads, bool ring,
                   const struct near__clock *clock)
{
    struct near__spill_io *io = calloc(1, sizeof(*io));

    if (io == NULL)
        return NULL;
    io->os    = os;
    io->fd    = fd;
    io->clock = *clock;
    io->last  = &io->first;
    near__lock_init(&io->lock, NEAR__RANK_LEAF);
    near__cond_init(&io->work);
    near__cond_init(&io->over);
    atomic_init(&io->refs, 1);
#ifdef NEAR_HAVE_LIBURING
    /* containers forbid it, and so may anybody: then it is threads */
    io->ring = ring && io_uring_queue_init(NEAR__SPILL_READS, &io->uring, 0) == 0;
#else
    (void)ring;
#endif
    threads = io->ring ? 1 : threads < THREADS_MAX ? threads : THREADS_MAX;
    while (io->threads < threads && start(io, io->threads))
        io->threads++;
    if (io->threads > 0)
        return io;
    near__lock_fini(&io->lock);
    pthread_cond_destroy(&io->work);
    pthread_cond_destroy(&io->over);
#ifdef NEAR_HAVE_LIBURING
    if (io->ring)
        io_uring_queue_exit(&io->uring);
#endif
    free(io); /* the descriptor stays the caller's */
    return NULL;
}

bool
near__spill_io_has_ring(const struct near__spill_io *io)
{
    return io->ring;
}

void
near__spill_io_free(struct near__spill_io **pio, int64_t deadline)
{
    struct near__spill_io *io   = *pio;
    bool                   more = true;
    unsigned               left;

    *pio = NULL;
    if (io == NULL)
        return;
    near__lock(&io->lock);
    io->stop = true;
    pthread_cond_broadcast(&io->work);
    while (io->running > 0 && more)
        more = near__cond_wait(&io->over, &io->lock, deadline);
    left = io->running;
    near__unlock(&io->lock);
    for (unsigned i = 0; i < io->threads; i++)
        if (left == 0)
            pthread_join(io->readers[i].thread, NULL);
        else
            pthread_detach(
                io->readers[i].thread); /* hangs in the system: frees what is left when it comes back */
    io_release(io);
}

/* Every thread has been at its read for longer than that. */
static bool
is_stuck(const struct near__spill_io *io, int64_t now, int64_t patience)
{
    if (io->ring)
        return false; /* the bound on open reads is all it has */
    for (unsigned i = 0; i < io->threads; i++) {
        int64_t since = atomic_load_explicit(&io->readers[i].since, memory_order_relaxed);

        if (since == 0 || now - since <= patience)
            return false;
    }
    return true;
}

bool
near__spill_io_begin(struct near__spill_io *io, struct near__spill_wait *wait, int64_t patience)
{
    wait->began = near__now(&io->clock);
    if (is_stuck(io, wait->began, patience))
        return false;
    if (atomic_fetch_add_explicit(&io->open, 1, memory_order_relaxed) >= NEAR__SPILL_READS) {
        atomic_fetch_sub_explicit(&io->open, 1, memory_order_relaxed);
        return false;
    }
    atomic_fetch_add_explicit(&wait->refs, 1, memory_order_relaxed);
    near__lock(&io->lock);
    *io->last = wait;
    io->last  = &wait->next;
    pthread_cond_signal(&io->work);
    near__unlock(&io->lock);
    return true;
}

bool
near__spill_io_await(const struct near__spill_io *io, struct near__spill_wait *wait, int64_t deadline)
{
    /* acquire: pairs with answer() */
    while (atomic_load_explicit(&wait->done, memory_order_acquire) == 0)
        if (!near__futex_wait(&wait->done, 0, deadline - near__now(&io->clock)))
            return atomic_load_explicit(&wait->done, memory_order_acquire) != 0;
    return true;
}
