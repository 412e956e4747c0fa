/*
 * The ground floor: what every room may use and what uses no room.  base/ holds the vocabulary of the public header (status,
 * error, bytes) and a few small tools: clock, keyed hash, ranked locks, threads, URIs, little-endian bytes.
 */
#ifndef NEAR_BASE_H
#define NEAR_BASE_H

#include <nearcache.h>

#define NEAR_PRINTF(text, first) __attribute__((format(printf, text, first)))
#define NEAR_COUNT_OF(array)     (sizeof(array) / sizeof((array)[0]))

#define NEAR_MS                                                                                              \
    INT64_C(1000000)         /* nanoseconds in a millisecond: all internal times are int64_t nanoseconds */
#define NEAR_NEVER INT64_MAX /* the time that does not come */

/* Write code and text to `error` (which may be NULL) and return `code`, so that a failing line reads
 * `return near__fail(error, NEAR_ERR_INVALID, "...", ...)`. */
near_status near__fail(near_error *error, near_status code, const char *format, ...) NEAR_PRINTF(3, 4);

/* What a room says to the log: the client filters by level, limits the rate and calls the application.  A NULL sink is
 * silence.  Call it with no lock held. */
struct near__log {
    void (*write)(void *ctx, near_log_level level, const char *message);
    void *ctx;
};
void near__log(const struct near__log *log, near_log_level level, const char *format, ...) NEAR_PRINTF(3, 4);

/* Built for ThreadSanitizer, which knows no fences and no assembly. */
#if defined(__SANITIZE_THREAD__)
#define NEAR__TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NEAR__TSAN 1
#endif
#endif
#ifndef NEAR__TSAN
#define NEAR__TSAN 0
#endif

/* What an errno means, in English whatever the locale; never NULL.  strerror(3) may write into memory that threads share. */
const char *near__errno_text(int code);

/* Zeroed memory at a multiple of `align` (a power of two), for free(3).  NULL: out of memory. */
void *near__zeroed(size_t align, size_t size);

static inline bool
near__bytes_equal(near_bytes a, near_bytes b)
{
    return a.size == b.size && (a.size == 0 || __builtin_memcmp(a.data, b.data, a.size) == 0);
}

/* 0 to 15, in either case and whatever the locale; -1: no hexadecimal digit. */
static inline int
near__hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

#endif
