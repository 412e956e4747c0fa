/*
 * L1 where memory is refused, in the middle of everything it can be asked for: entries of all kinds, of every policy, in one pool and in two,
 * on a system without membarrier, and in a thread that gets no slots.  What comes back is always the newest, or nothing.
 *
 * One thread at a time: so the newest is known.  Linked with --wrap for the allocators, for mmap and mprotect, for what a thread needs
 * of its system, and for syscall.
 */
#define TEST_NAME "l1_faults"
#include "harness/shortage.h"

#include "unit/l1_help.h"

#include "nearcache.h"

#include "l1/curve.h"
#include "l1/disk.h"
#include "l1/hazard.h"
#include "l1/object.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- what else is refused: with the memory, but for the two that only a switch refuses */

void *__real_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__real_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset);
int   __real_mprotect(void *at, size_t size, int rights);
int   __wrap_mprotect(void *at, size_t size, int rights);
int   __real_pthread_key_create(pthread_key_t *key, void (*end)(void *));
int   __wrap_pthread_key_create(pthread_key_t *key, void (*end)(void *));
int   __real_pthread_setspecific(pthread_key_t key, const void *value);
int   __wrap_pthread_setspecific(pthread_key_t key, const void *value);
long  __real_syscall(long number, ...);
long  __wrap_syscall(long number, ...);

static bool   no_key, no_specific, no_membarrier;
static size_t answered; /* by values, of all lives */

void *
__wrap_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    return shortage_refuses() ? MAP_FAILED : __real_mmap64(at, size, rights, flags, fd, offset);
}

void *
__wrap_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    return shortage_refuses() ? MAP_FAILED : __real_mmap(at, size, rights, flags, fd, offset);
}

int
__wrap_mprotect(void *at, size_t size, int rights)
{
    return shortage_refuses() ? -1 : __real_mprotect(at, size, rights);
}

int
__wrap_pthread_key_create(pthread_key_t *key, void (*end)(void *))
{
    return no_key ? EAGAIN : __real_pthread_key_create(key, end);
}

int
__wrap_pthread_setspecific(pthread_key_t key, const void *value)
{
    return no_specific ? ENOMEM : __real_pthread_setspecific(key, value);
}

/* Of L1 membarrier alone comes here: three numbers. */
long
__wrap_syscall(long number, ...)
{
    va_list list;
    long    a[3];

    va_start(list, number);
    for (unsigned i = 0; i < 3; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_membarrier && no_membarrier) {
        errno = ENOSYS;
        return -1;
    }
    return __real_syscall(number, a[0], a[1], a[2]);
}

/* ---- keys, and what is known of them */

enum { KEYS = 300, HELD = 40, TAGS = 4 };

static struct {
    struct near__l1    *l1;
    struct near__spill *spill;                       /* NULL: there is no disk below */
    bool                valid[KEYS], negative[KEYS]; /* may be answered */
    unsigned            version[KEYS];
    int64_t             expires[KEYS];
    int                 tag[KEYS]; /* -1: none */
    struct {
        near_value *value;
        size_t      key;
        unsigned    version;
    } held[HELD];
    long        objects; /* made, and not destroyed */
    uint64_t    dice;
    int64_t     now;
    const char *wrong;
    char        why[160];
} world;

static _Atomic int64_t tick, disk_now;

static size_t
roll(size_t n)
{
    return (size_t)(test_random(&world.dice) % n);
}

static near_bytes
key_of(size_t k, char room[320])
{
    int size = snprintf(room, 320, "key:%zu", k);

    if (k % 50 == 7) /* longer than the arena takes */
        size += snprintf(room + size, (size_t)(320 - size), " %0270d", 1);
    return (near_bytes){ room, (size_t)size };
}

static void
is_wrong(const char *what, size_t k)
{
    if (world.wrong == NULL)
        snprintf(world.why, sizeof(world.why), "%s: key %zu, version %u", what, k, world.version[k]);
    world.wrong = world.why;
}

static bool
bytes_are(near_bytes bytes, size_t k, unsigned version)
{
    char text[48];
    int  size = snprintf(text, sizeof(text), "%zu:%u:", k, version);

    return bytes.size >= (size_t)size && memcmp(bytes.data, text, (size_t)size) == 0;
}

static bool
value_is_right(const near_value *value, size_t k, unsigned version)
{
    struct near__object *object = near__value_object(value);

    if (object != NULL && object->bytes == NULL)
        return (uintptr_t)object->object == (k << 32 | version);
    return bytes_are(near__value_data(value), k, version);
}

static void
check(near_value *value, size_t k)
{
    if (value == NULL)
        return;
    answered++;
    if (!world.valid[k])
        is_wrong("was gone", k);
    else if (world.expires[k] <= world.now)
        is_wrong("had expired", k);
    else if ((value == NEAR__L1_NEGATIVE) != world.negative[k])
        is_wrong("negative or not", k);
    else if (value != NEAR__L1_NEGATIVE && !value_is_right(value, k, world.version[k]))
        is_wrong("another value", k);
}

/* ---- entries of all kinds */

static void
destroy(void *object, void *ctx)
{
    (void)object, (void)ctx;
    world.objects--;
}

static struct near__object *
decoded(size_t k, unsigned version, const char *text, bool keep)
{
    struct near__object *object =
        near__object_new((void *)(uintptr_t)(k << 32 | version), 100, destroy, NULL,
                         keep ? (near_bytes){ text, strlen(text) } : (near_bytes){ NULL, 0 });

    world.objects += object != NULL;
    return object;
}

static bool
add_tag(struct near__entry *entry, int tag)
{
    struct near__labels *labels = malloc(sizeof(*labels) + 2);

    if (labels == NULL)
        return false;
    *labels = (struct near__labels){ .clock = near__l1_label_clock(world.l1), .n = 1, .names_size = 2 };
    labels->stripes[0] = (uint16_t)tag;
    memcpy(labels->names, "\1t", 2);
    entry->labels = labels;
    return true;
}

/* NULL: no memory for it.  What becomes of it when it is taken is in *next. */
static struct near__entry *
make(size_t k, unsigned version)
{
    static const size_t sizes[] = { 40, 64, 100, 1000, 5000, 70000, 300000 };
    char                room[320], text[48];
    near_bytes          key  = key_of(k, room);
    size_t              kind = roll(12), size = sizes[roll(NEAR_COUNT_OF(sizes))];
    bool  bare  = kind == 0 || kind == 2; /* a decoded one has its bytes as well, where they are kept */
    void *value = NULL;
    struct near__entry *entry = near__entry_new(key, hash_of(key), bare ? 0 : size, &value);

    if (entry == NULL)
        return NULL;
    snprintf(text, sizeof(text), "%zu:%u:", k, version);
    entry->born        = world.now;
    entry->expires     = NEAR_NEVER;
    entry->fresh_until = NEAR_NEVER;
    entry->stamp       = roll(2) ? version : 0;
    entry->cost_us     = roll(4) == 0 ? 500 : 0;
    entry->pool        = (uint8_t)roll(4);
    entry->negative    = kind == 0;
    if (!bare)
        memset(value, 'v', size), memcpy(value, text, strlen(text));
    if (kind == 1 || kind == 2)
        entry->object = decoded(k, version, text, kind == 1);
    if ((kind == 1 || kind == 2) && entry->object == NULL) {
        near__entry_release(&entry);
        return NULL;
    }
    if (roll(3) == 0)
        entry->expires = world.now + (int64_t)(1 + roll(2000)) * NEAR_MS;
    if (roll(12) == 0) /* more than a block can say */
        entry->expires = entry->fresh_until = world.now + (int64_t)40 * 86400 * 1000 * NEAR_MS;
    else if (roll(4) == 0)
        entry->fresh_until = world.now + (int64_t)(1 + roll(1000)) * NEAR_MS;
    if (roll(4) == 0 && !add_tag(entry, (int)roll(TAGS)))
        near__entry_release(&entry);
    return entry;
}

static void
note(size_t k, unsigned version, const struct near__entry *entry)
{
    world.valid[k]    = true;
    world.version[k]  = version;
    world.negative[k] = entry->negative;
    world.expires[k]  = entry->expires;
    world.tag[k]      = entry->labels != NULL ? entry->labels->stripes[0] : -1;
}

/* ---- what L1 can be asked for */

static void
do_write(size_t k)
{
    char                  room[320];
    near_bytes            key     = key_of(k, room);
    uint64_t              hash    = hash_of(key);
    struct near__l1_write write   = near__l1_write_begin(world.l1, hash, key);
    unsigned              version = world.version[k] + 1;
    struct near__entry   *entry   = make(k, version);

    world.valid[k]   = false;
    world.version[k] = version;
    if (entry != NULL)
        note(k, version, entry);
    near__l1_write_end(world.l1, write, hash, key, entry, world.now);
    near__entry_release(&entry);
}

/* A fill of what is the newest: made again, as from L2. */
static void
do_fill(size_t k)
{
    char                room[320];
    near_bytes          key   = key_of(k, room);
    uint64_t            fence = near__l1_fence(world.l1, hash_of(key));
    bool                late  = roll(5) == 0;
    struct near__entry *entry;

    if (late)
        near__l1_invalidate(world.l1, hash_of(key), key);
    world.valid[k] = false; /* an entry of another form may be in its place */
    entry          = make(k, ++world.version[k]);
    if (entry == NULL) {
        near__l1_invalidate(world.l1, hash_of(key), key);
        return;
    }
    switch (roll(3)) {
    case 0:
        if (near__l1_insert(world.l1, entry, fence, world.now) == NEAR__L1_ADMITTED)
            note(k, world.version[k], entry);
        else
            near__l1_invalidate(world.l1, hash_of(key), key);
        break;
    case 1:
        if (near__l1_store_if(world.l1, entry, fence, world.now) == NEAR__L1_ADMITTED)
            note(k, world.version[k], entry);
        else
            near__l1_invalidate(world.l1, hash_of(key), key);
        break;
    default:
        near__l1_invalidate(world.l1, hash_of(key), key);
        fence = near__l1_fence(world.l1, hash_of(key));
        if (near__l1_return(world.l1, entry, fence, world.now) == NEAR__L1_ADMITTED)
            note(k, world.version[k], entry);
    }
    near__entry_release(&entry);
}

static void
do_store(size_t k)
{
    char               room[320], value[600];
    near_bytes         key     = key_of(k, room);
    unsigned           version = world.version[k] + 1;
    int                size    = snprintf(value, sizeof(value), "%zu:%u:", k, version);
    struct near__entry entry   = {
          .key_size    = (uint32_t)key.size,
          .hash        = hash_of(key),
          .value       = value,
          .value_size  = (size_t)size + roll(500),
          .born        = world.now,
          .expires     = roll(2) ? NEAR_NEVER : world.now + 500 * NEAR_MS,
          .fresh_until = NEAR_NEVER,
    };

    memset(value + size, 'v', sizeof(value) - (size_t)size);
    if (!near__l1_store(world.l1, &entry, key, world.now))
        return;
    note(k, version, &entry);
}

static void
hold(near_value *value, size_t k)
{
    size_t at = roll(HELD);

    if (world.held[at].value != NULL) {
        if (!value_is_right(world.held[at].value, world.held[at].key, world.held[at].version))
            is_wrong("changed while it was held", world.held[at].key);
        near__value_release(world.held[at].value);
    }
    world.held[at].value   = value;
    world.held[at].key     = k;
    world.held[at].version = world.version[k];
}

static void
do_find(size_t k)
{
    char        room[320];
    near_bytes  key   = key_of(k, room);
    uint64_t    hash  = hash_of(key);
    near_value *value = roll(2) ? near__l1_find(world.l1, hash, key, world.now)
                                : near__l1_hit((struct near__l1_front *)world.l1, hash, key, world.now);

    check(value, k);
    if (value == NULL) {
        near__l1_missed(world.l1, hash);
        return;
    }
    if (value == NEAR__L1_NEGATIVE || world.wrong != NULL) {
        let_go_of(value);
        return;
    }
    if (roll(3) == 0) {
        struct near__entry *counted = near__value_counted(value, key, hash, world.now);
        struct near__meta   meta;

        near__value_meta(value, world.now, &meta);
        near__value_names(value);
        if (counted != NULL &&
            !value_is_right(near__value_of(counted, NEAR_FROM_L1, false), k, world.version[k]))
            is_wrong("counted", k);
        near__entry_release(&counted);
        near__l1_unused(world.l1);
    }
    if (roll(4) == 0) {
        near__value_ref(value);
        near__value_release(value);
    }
    hold(value, k);
}

static void
do_find_many(size_t k)
{
    enum { N = 40 };
    static char           rooms[N][320];
    static char           out[N][128];
    uint64_t              hashes[N];
    near_bytes            keys[N];
    near_value           *values[N];
    struct near__l1_sight sights[N];
    struct near__l1_copy  copies[N];

    for (size_t i = 0; i < N; i++) {
        keys[i]   = key_of((k + i) % KEYS, rooms[i]);
        hashes[i] = hash_of(keys[i]);
        copies[i] = (struct near__l1_copy){ .to = out[i], .room = sizeof(out[i]) };
    }
    near__l1_find_many(world.l1, hashes, keys, N, world.now, values);
    for (size_t i = 0; i < N; i++) {
        check(values[i], (k + i) % KEYS);
        let_go_of(values[i]);
    }
    near__l1_aim(world.l1, hashes, N, sights);
    near__l1_seek(world.l1, hashes, N, 100, sights);
    near__l1_copy(world.l1, hashes, keys, N, world.now, sights, copies);
    for (size_t i = 0; i < N; i++) {
        size_t at = (k + i) % KEYS;

        if (copies[i].value != NEAR__L1_COPIED) {
            check(copies[i].value, at);
            let_go_of(copies[i].value);
        } else if (!world.valid[at] ||
                   !bytes_are((near_bytes){ out[i], copies[i].size }, at, world.version[at])) {
            is_wrong("copied", at);
        }
    }
}

static void
do_invalidate(size_t k)
{
    char        room[320];
    near_bytes  key = key_of(k, room);
    int         tag = (int)roll(TAGS);
    near_value *value;

    if (roll(4) != 0) {
        near__l1_invalidate(world.l1, hash_of(key), key);
        world.valid[k] = false;
        return;
    }
    value = near__l1_find(world.l1, hash_of(key), key, world.now);
    near__l1_invalidate_tag(world.l1, (uint64_t)tag);
    near__l1_label_moment(world.l1, (uint64_t)tag);
    if ((uintptr_t)value > NEAR__VALUE_BITS && near__l1_label_clock(world.l1) > 0 &&
        near__l1_value_outdated(world.l1, value, near__l1_label_clock(world.l1)) != (world.tag[k] == tag))
        is_wrong("outdated by its tag, or not", k);
    let_go_of(value);
    for (size_t i = 0; i < KEYS; i++)
        if (world.tag[i] == tag)
            world.valid[i] = false;
}

static void
see(void *ctx, const struct near__l1_seen *seen)
{
    char   name[16];
    size_t k;

    (void)ctx;
    snprintf(name, sizeof(name), "%.*s", (int)seen->key.size - 4, (const char *)seen->key.data + 4);
    k = (size_t)strtoull(name, NULL, 10); /* of a long one a blank follows */
    if (!world.valid[k])
        is_wrong("walked over, and was gone", k);
    else if (!seen->negative && seen->value.size > 0 && !bytes_are(seen->value, k, world.version[k]))
        is_wrong("walked over another value", k);
}

static void
see_nothing(void *ctx, const struct near__l1_seen *seen)
{
    (void)ctx, (void)seen;
}

static void
do_walk(size_t k)
{
    struct near__l1_cursor cursor = { 0 };

    (void)k;
    while (near__l1_walk(world.l1, &cursor, 64, world.now, see, NULL))
        ;
}

static void
do_restore(size_t k)
{
    bool alone = roll(2);

    if (near__l1_restore_begin(world.l1, roll(2) * KEYS, alone) != NEAR_OK)
        return;
    for (size_t i = 0; i < 20; i++) {
        char                room[320];
        size_t              at    = (k + 7 * i) % KEYS;
        near_bytes          key   = key_of(at, room);
        uint64_t            fence = near__l1_fence(world.l1, hash_of(key));
        struct near__entry *entry;

        if (world.valid[at]) /* what was there has the word, as long as it is there */
            continue;
        if (i % 5 == 0)
            do_store((at + 1) % KEYS);
        near__l1_invalidate(world.l1, hash_of(key), key);
        fence = roll(4) ? near__l1_fence(world.l1, hash_of(key)) : fence;
        entry = make(at, ++world.version[at]);
        if (entry != NULL && near__l1_restore(world.l1, entry, key, fence, alone, (uint8_t)roll(256),
                                              world.now) == NEAR__L1_ADMITTED)
            note(at, world.version[at], entry);
        near__entry_release(&entry);
    }
    near__l1_restore_end(world.l1);
}

static void
do_upkeep(size_t k)
{
    struct near__l1_stats stats;
    size_t                max_bytes;

    near__l1_upkeep(world.l1, world.now, 8);
    if (k % 8 == 0)
        near__l1_resize(world.l1, (size_t)1 << (19 + roll(3)), roll(2) * 200);
    if (k % 8 == 1 && near__l1_pools(world.l1) > 0)
        near__l1_pool_resize(world.l1, 1 + (unsigned)roll(2), (size_t)1 << (19 + roll(3)));
    if (near__l1_pools(world.l1) > 0)
        near__l1_pool_stats(world.l1, 1 + (unsigned)roll(2), &stats, &max_bytes);
    near__l1_stats(world.l1, &stats);
    if (k % 64 == 2) {
        near__l1_flush(world.l1);
        memset(world.valid, 0, sizeof(world.valid));
    }
    world.now += (int64_t)(k % 32 == 3 ? 3600 * 1000 : roll(20)) * NEAR_MS;
    atomic_store(&tick, roll(4) ? world.now : 0);
    atomic_store(&disk_now, world.now);
}

/* A thread that has not read yet: it needs slots, and may get none. */
static void *
read_anew(void *ctx)
{
    size_t k = *(size_t *)ctx;

    for (size_t i = 0; i < 5; i++) {
        char        room[320];
        near_bytes  key   = key_of((k + i) % KEYS, room);
        near_value *value = near__l1_find(world.l1, hash_of(key), key, world.now);

        check(value, (k + i) % KEYS);
        let_go_of(value);
    }
    return NULL;
}

static void
do_thread(size_t k)
{
    pthread_t thread;
    long      after = shortage_after;

    shortage_after = -1; /* the thread itself is to be had */
    no_specific    = roll(8) == 0;
    if (pthread_create(&thread, NULL, read_anew, &k) == 0) {
        shortage_after = after;
        pthread_join(thread, NULL);
    }
    no_specific = false;
}

/* Two writes of a key at once: whichever came last at L2 is not known, so neither stays.  And no fill comes in meanwhile. */
static void
do_overlap(size_t k)
{
    char                  room[320];
    near_bytes            key   = key_of(k, room);
    uint64_t              hash  = hash_of(key);
    struct near__l1_write first = near__l1_write_begin(world.l1, hash, key), second;
    struct near__entry   *entry, *fill;
    struct near__entry    store = { .key_size    = (uint32_t)key.size,
                                    .hash        = hash,
                                    .value       = "x",
                                    .value_size  = 1,
                                    .expires     = NEAR_NEVER,
                                    .fresh_until = NEAR_NEVER };

    world.valid[k] = false;
    entry          = make(k, ++world.version[k]);
    second         = near__l1_write_begin(world.l1, hash, key);
    fill           = make(k, world.version[k]);
    if (fill != NULL &&
        (near__l1_insert(world.l1, fill, near__l1_fence(world.l1, hash), world.now) == NEAR__L1_ADMITTED ||
         near__l1_store_if(world.l1, fill, near__l1_fence(world.l1, hash), world.now) == NEAR__L1_ADMITTED ||
         near__l1_return(world.l1, fill, near__l1_fence(world.l1, hash), world.now) == NEAR__L1_ADMITTED ||
         near__l1_restore(world.l1, fill, key, near__l1_fence(world.l1, hash), false, 0, world.now) ==
             NEAR__L1_ADMITTED))
        is_wrong("filled during a write", k);
    if (roll(4) == 0)
        near__l1_store(world.l1, &store, key, world.now);
    near__l1_write_end(world.l1, first, hash, key, entry, world.now);
    near__l1_write_end(world.l1, second, hash, key, entry, world.now);
    near__entry_release(&entry);
    near__entry_release(&fill);
}

/* Two fills that began before either came: which is newer is known by nobody, unless they are the same. */
static void
do_two_fills(size_t k)
{
    char                    room[320];
    near_bytes              key  = key_of(k, room);
    uint64_t                hash = hash_of(key), fence;
    struct near__entry     *one, *two;
    enum near__l1_admission verdict = NEAR__L1_FENCED;

    near__l1_invalidate(world.l1, hash, key);
    fence          = near__l1_fence(world.l1, hash);
    world.valid[k] = false;
    one            = make(k, world.version[k] + 1);
    two            = make(k, world.version[k] + 2);
    world.version[k] += 2;
    if (one != NULL)
        near__l1_insert(world.l1, one, fence, world.now);
    if (two != NULL)
        verdict = near__l1_insert(world.l1, two, fence, world.now);
    if (two == NULL)
        near__l1_invalidate(world.l1, hash, key);
    if (verdict == NEAR__L1_ADMITTED)
        note(k, world.version[k], two);
    near__entry_release(&one);
    near__entry_release(&two);
}

/* What only looks. */
static void
do_ask(size_t k)
{
    static struct near__curve_answer answer;
    char                             room[320];
    near_bytes                       key    = key_of(k, room);
    struct near__entry              *entry  = make(k, world.version[k]);
    uint32_t                         before = near__l1_label_clock(world.l1);
    near_value                      *value  = near__l1_find(world.l1, hash_of(key), key, world.now);

    check(value, k);
    if ((uintptr_t)value > NEAR__VALUE_BITS &&
        near__l1_value_outdated(world.l1, value, before + (uint32_t)roll(3)) && world.tag[k] < 0)
        is_wrong("outdated without a tag", k);
    let_go_of(value);
    if (near__l1_pools(world.l1) > 0) {
        near__l1_pool_curve(world.l1, 1 + (unsigned)roll(2), &answer);
        if (near__l1_pool_of(world.l1, hash_of(key), key, world.now) != 0 && !world.valid[k])
            is_wrong("a pool has it", k);
    }
    near__l1_curve(world.l1, &answer);
    if (entry != NULL)
        near__l1_copies(world.l1, entry);
    near__entry_release(&entry);
}

/* What the disk below has of a key that L1 has not is the newest as well, or nothing.  It takes nothing back that was touched. */
static void
do_disk(size_t k)
{
    char                    room[320];
    near_bytes              key  = key_of(k, room);
    uint64_t                hash = hash_of(key);
    struct near__spill_read read;
    near_value             *value;

    if (world.spill == NULL)
        return;
    if (near__l1_adopt(world.l1, hash, key, near__l1_fence(world.l1, hash) + 1, 0, 64))
        is_wrong("adopted under another fence", k);
    value = near__l1_find(world.l1, hash, key, world.now);
    check(value, k);
    let_go_of(value);
    if (value != NULL || !near__spill_begin(world.spill, hash, &read) ||
        !near__spill_finish(world.spill, &read, key, NEAR_NEVER))
        return;
    if (!world.valid[k] && world.tag[k] < 0)
        is_wrong("on the disk, and was gone", k);
    if (world.valid[k] && (world.negative[k] || !bytes_are(read.record.value, k, world.version[k])))
        is_wrong("on the disk, and another value", k);
    if (near__l1_adopt(world.l1, hash, key, NEAR__L1_UNTOUCHED, 0, 64))
        is_wrong("adopted, and was touched", k);
    answered++;
    near__spill_end(&read);
}

static void (*const acts[])(size_t k) = {
    do_overlap,    do_two_fills, do_ask,    do_write,     do_write,     do_write,   do_fill,   do_fill,
    do_store,      do_store,     do_find,   do_find,      do_find,      do_find,    do_find,   do_find,
    do_invalidate, do_walk,      do_upkeep, do_find_many, do_find_many, do_restore, do_thread, do_disk,
};

/* ---- a life of an L1 */

static unsigned
choose_pool(void *ctx, near_bytes key, size_t value_size)
{
    (void)ctx;
    return (unsigned)((key.size + value_size) % 3);
}

static void
nothing(void *ctx)
{
    (void)ctx;
}

static void
sampled(void *ctx, uint64_t hash, near_bytes key)
{
    (void)ctx, (void)hash, (void)key;
}

static void
live(const struct near__l1_config *config, size_t rounds, bool in_need)
{
    if (near__l1_new(&world.l1, config) != NEAR_OK)
        return;
    for (size_t i = 0; i < rounds && world.wrong == NULL; i++) {
        size_t k = roll(4) ? roll(60) : roll(KEYS);

        if (in_need && roll(3) == 0)
            shortage_begin((long)roll(6), roll(4) == 0);
        acts[roll(NEAR_COUNT_OF(acts))](k);
        shortage_end();
    }
    for (size_t i = 0; i < HELD / 2; i++) { /* the others outlive it */
        let_go_of(world.held[i].value);
        world.held[i].value = NULL;
    }
    near__l1_free(&world.l1);
    for (size_t i = 0; i < HELD; i++) {
        if (world.held[i].value != NULL &&
            !value_is_right(world.held[i].value, world.held[i].key, world.held[i].version))
            is_wrong("held beyond the end", world.held[i].key);
        let_go_of(world.held[i].value);
        world.held[i].value = NULL;
    }
    if (world.objects != 0)
        is_wrong("objects remain", (size_t)world.objects);
}

static const char *const policies[] = { "lru", "lfu", "sieve", "s3fifo", "tinylfu", "adaptive" };

static int64_t
disk_clock(void *ctx)
{
    (void)ctx;
    return atomic_load(&disk_now);
}

/* Each policy, in one pool and in two, above a disk in that directory if there is one.  NULL: all was right. */
static const char *
live_above(const char *directory, bool in_need)
{
    for (size_t p = 0; p < 2 * NEAR_COUNT_OF(policies); p++) {
        const char            *policy   = policies[p / 2];
        struct near__l1_domain pools[2] = { { (size_t)1 << 20, policy, 0 },
                                            { (size_t)1 << 20, policy, 300 * NEAR_MS } };
        struct near__l1_config config   = l1_config((size_t)1 << 20, 0, 2, policy);

        memset(&world, 0, sizeof(world));
        world.dice    = 100 + p;
        world.now     = 1000 * NEAR_MS;
        config.wrote  = nothing;
        config.sample = sampled;
        config.curve  = p % 3 == 0;
        config.plain  = p % 4 == 1;
        if (p % 2 == 0)
            config.tick = &tick;
        if (p % 4 == 2) /* what is large is aligned, from here on */
            config.align_from = 256;
        if (p % 2 == 1) {
            config.pools_n = 2;
            config.pools   = pools;
            config.pool_of = choose_pool;
        } else if (p % 4 == 0) {
            config.ttl   = 1500 * NEAR_MS;
            config.grace = 500 * NEAR_MS;
        }
        if (directory != NULL) {
            struct near__spill_config disk = { .path          = directory,
                                               .max_bytes     = 4 << 20,
                                               .queue_bytes   = 8 * (128 << 10),
                                               .segment_bytes = 128 << 10,
                                               .timeout       = 1000 * NEAR_MS,
                                               .threads       = 1,
                                               .clock         = near__clock_system,
                                               .os            = &near__spill_os_system };
            int                       reason;

            disk.clock.now = disk_clock;
            atomic_store(&disk_now, world.now);
            if (near__spill_open(&world.spill, &disk, &reason) != NEAR_OK)
                return "no disk";
            config.spill = world.spill;
        }
        live(&config, test_scale(3000), in_need);
        if (world.spill != NULL)
            near__spill_close(&world.spill, NEAR_NEVER, false);
        if (world.wrong != NULL)
            return world.wrong;
    }
    return NULL;
}

static const char *
live_all(bool in_need)
{
    return live_above(NULL, in_need);
}

/* The n-th allocation of an L1 that opens, for all n. */
static void
test_opening_without_memory(void **state)
{
    (void)state;
    for (size_t p = 0; p < 2 * NEAR_COUNT_OF(policies); p++)
        for (long n = 0;; n++) {
            const char            *policy   = policies[p / 2];
            struct near__l1_domain pools[2] = { { (size_t)1 << 20, policy, 0 },
                                                { (size_t)1 << 20, policy, 0 } };
            struct near__l1_config config   = l1_config((size_t)1 << 20, 0, 2, policy);
            struct near__l1       *l1;
            near_status            status;

            config.curve   = true;
            config.pools_n = p % 2 == 1 ? 2 : 0;
            config.pools   = pools;
            shortage_count = 0;
            shortage_begin(n, false);
            status = near__l1_new(&l1, &config);
            shortage_end();
            if (status != NEAR_OK)
                assert_int_equal(status, NEAR_ERR_NOMEM);
            assert_true((l1 != NULL) == (status == NEAR_OK));
            if (l1 != NULL) {
                assert_int_equal(near__l1_label_moment(l1, 1), 0);
                assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
                assert_true(finds(l1, "a", "1"));
            }
            near__l1_free(&l1);
            if (shortage_count == 0)
                break;
        }
}

/* In a child, so that what it finds out about its system stays there. */
static void
in_a_child(const char *(*life)(void))
{
    pid_t child;
    int   status;

    if (TEST_UNDER_TSAN)
        skip();
    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const char *wrong = life();

        if (wrong != NULL)
            fprintf(stderr, "%s\n", wrong);
        _exit(wrong == NULL ? 7 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
}

static const char *
without_membarrier(void)
{
    no_membarrier = true;
    return live_all(true);
}

/* Nobody would give a thread's slots back: nothing is found, and nothing else changes. */
static const char *
without_a_key(void)
{
    struct near__l1 *l1;
    const char      *wrong = NULL;

    no_key = true;
    l1     = l1_open((size_t)1 << 20, 0, 1);
    if (put(l1, "a", "1") != NEAR__L1_ADMITTED || find_at(l1, "a", 0) != NULL)
        wrong = "found without a slot";
    if (stats_of(l1).entries != 1)
        wrong = "is not counted";
    near__l1_invalidate(l1, hash_of(text("a")), text("a"));
    upkeep_all(l1, 0);
    if (stats_of(l1).entries != 0)
        wrong = "did not leave";
    near__l1_free(&l1);
    return wrong != NULL ? wrong : live_all(true);
}

/* First: this process has not read yet. */
static void
test_a_process_without_a_key_for_its_threads(void **state)
{
    (void)state;
    in_a_child(without_a_key);
}

static void
test_a_system_without_membarrier(void **state)
{
    (void)state;
    in_a_child(without_membarrier);
}

static void
test_all_is_right_while_memory_is_refused(void **state)
{
    const char *wrong;

    (void)state;
    shortage_count = 0;
    wrong          = live_all(true);
    if (wrong != NULL)
        fail_msg("%s", wrong);
    print_message("# %ld refused\n", (long)shortage_count);
    assert_true(shortage_count > 100 || test_scale(100) < 100);
}

/* The same without need: it is asked often enough for what is there. */
static void
test_all_is_right_without_need(void **state)
{
    const char *wrong;
    size_t      lives = 2 * NEAR_COUNT_OF(policies);

    (void)state;
    answered = 0;
    wrong    = live_all(false);
    if (wrong != NULL)
        fail_msg("%s", wrong);
    print_message("# %zu answered\n", answered);
    assert_true(answered > lives * test_scale(1000));
}

/* And above a disk, which is told of all that leaves and of all that is void. */
static void
test_all_is_right_above_a_disk(void **state)
{
    char        directory[] = "/tmp/near-l1-faults-XXXXXX", command[64];
    const char *wrong;

    (void)state;
    assert_non_null(mkdtemp(directory));
    answered = 0;
    wrong    = live_above(directory, false);
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    assert_int_equal(system(command), 0);
    if (wrong != NULL)
        fail_msg("%s", wrong);
    print_message("# %zu answered\n", answered);
}

/* The control: a write that L1 is not told of is found to be wrong. */
static void
test_control_an_untold_write(void **state)
{
    struct near__l1_config config = l1_config((size_t)1 << 20, 0, 1, "lru");

    (void)state;
    memset(&world, 0, sizeof(world));
    assert_int_equal(near__l1_new(&world.l1, &config), NEAR_OK);
    do_store(1);
    do_find(1);
    assert_null(world.wrong);
    world.version[1]++;
    do_find(1);
    assert_non_null(world.wrong);
    for (size_t i = 0; i < HELD; i++)
        let_go_of(world.held[i].value);
    near__l1_free(&world.l1);
}

/* ---- an L1 that keeps nothing */

static void
test_an_l1_that_is_off(void **state)
{
    struct near__l1_config    config = l1_config(0, 0, 1, "lru");
    struct near__l1          *l1     = NULL;
    struct near__entry       *entry  = entry_of(text("a"), hash_of(text("a")), text("1"));
    struct near__l1_cursor    cursor = { 0 };
    struct near__curve_answer answer;
    static struct near__entry room;
    uint64_t                  hash = hash_of(text("a"));
    near_bytes                key  = text("a");
    near_value               *value;
    struct near__l1_sight     sight;
    char                      out[8];
    struct near__l1_copy      copy = { .to = out, .room = sizeof(out) };

    (void)state;
    assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
    room = (struct near__entry){
        .key_size = 1, .hash = hash, .value = "1", .value_size = 1, .expires = NEAR_NEVER
    };
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_TOO_LARGE);
    assert_false(near__l1_store(l1, &room, key, 0));
    assert_true(near__l1_store_if(l1, entry, near__l1_fence(l1, hash), 0) != NEAR__L1_ADMITTED);
    assert_true(near__l1_return(l1, entry, near__l1_fence(l1, hash), 0) != NEAR__L1_ADMITTED);
    assert_false(near__l1_adopt(l1, hash, key, NEAR__L1_UNTOUCHED, 0, 1));
    assert_int_equal(near__l1_restore_begin(l1, 10, true), NEAR_OK);
    assert_true(near__l1_restore(l1, entry, key, NEAR__L1_FENCE_BIRTH, true, 0, 0) != NEAR__L1_ADMITTED);
    near__l1_restore_end(l1);
    assert_false(near__l1_copies(l1, entry));
    near__l1_find_many(l1, &hash, &key, 1, 0, &value);
    assert_null(value);
    near__l1_aim(l1, &hash, 1, &sight);
    near__l1_seek(l1, &hash, 1, 8, &sight);
    near__l1_copy(l1, &hash, &key, 1, 0, &sight, &copy);
    assert_null(copy.value);
    assert_true(finds(l1, "a", NULL));
    assert_false(near__l1_walk(l1, &cursor, 8, 0, see, NULL));
    near__l1_invalidate_tag(l1, 1);
    near__l1_flush(l1);
    assert_false(near__l1_upkeep(l1, 0, 8));
    assert_int_equal(near__l1_resize(l1, 1 << 20, 0), NEAR_ERR_INVALID);
    assert_false(near__l1_curve(l1, &answer));
    assert_int_equal(near__l1_pools(l1), 0);
    assert_int_equal(near__l1_pool_resize(l1, 1, 1 << 20), NEAR_ERR_INVALID);
    assert_int_equal(stats_of(l1).entries, 0);
    near__entry_release(&entry);
    near__l1_free(&l1);
}

static void
test_bounds_that_are_refused(void **state)
{
    struct near__l1 *l1 = l1_open((size_t)1 << 20, 0, 4);

    (void)state;
    assert_int_equal(near__l1_resize(l1, 1000, 0), NEAR_ERR_INVALID);
    assert_int_equal(near__l1_resize(l1, (size_t)1 << 30, 0), NEAR_ERR_INVALID); /* more than was reserved */
    assert_int_equal(near__l1_resize(l1, SIZE_MAX, 0), NEAR_ERR_INVALID);
    assert_int_equal(near__l1_resize(l1, (size_t)1 << 20, 3), NEAR_ERR_INVALID); /* one for each shard */
    assert_int_equal(near__l1_resize(l1, (size_t)2 << 20, 4), NEAR_OK);
    assert_int_equal(near__l1_pool_resize(l1, 1, (size_t)1 << 20), NEAR_ERR_INVALID);
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "1"));
    near__l1_free(&l1);
}

/* ---- near_get(), where it reads L1's clock instead of one of its own: values that end, lose their freshness, or have tags */

static bool
gets(near_cache *cache, const char *key, const char *expected)
{
    near_value *value  = NULL;
    near_status status = near_get(cache, near_key(key), &value);
    bool right = expected == NULL ? status == NEAR_MISS : status == NEAR_OK && value_is(value, expected);

    if (value != NULL)
        near_value_release(value);
    return right;
}

struct ending {
    near_cache *cache;
    const char *key;
};

static int
has_ended(void *ctx)
{
    struct ending *ending = ctx;

    return gets(ending->cache, ending->key, NULL);
}

static void
test_reads_by_the_told_time(void **state)
{
    static const char *const tags[]  = { "one" };
    near_put_options         options = NEAR_PUT_OPTIONS_INIT;
    near_config             *config  = near_config_new();
    near_client             *client;
    near_cache              *cache;
    near_error               error;

    (void)state;
    assert_int_equal(near_config_set(config, "grace", "10s", &error), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_OK);
    near_config_free(config);
    assert_int_equal(near_cache_open(client, "cache", NULL, &cache, &error), NEAR_OK);
    for (size_t i = 0; i < 2; i++) {
        struct ending ending = { cache, i == 0 ? "a key that ends" : "another that ends" };

        options.ttl_ms = 400;
        assert_int_equal(near_put(cache, near_key(ending.key), near_key("value"), &options), NEAR_OK);
        for (size_t n = 0; n < 10; n++)
            gets(cache, ending.key, "value"); /* it may have ended already, on a slow machine */
        options.ttl_ms = 0;
        assert_int_equal(near_put(cache, near_key("a key that stays"), near_key("value"), &options), NEAR_OK);
        assert_true(test_wait_for(has_ended, &ending, 10000));
        assert_true(gets(cache, "a key that stays", "value"));
    }
    options.tags      = tags;
    options.tag_count = 1;
    assert_int_equal(near_put(cache, near_key("a key with a tag"), near_key("value"), &options), NEAR_OK);
    assert_true(gets(cache, "a key with a tag", "value"));
    assert_int_equal(near_invalidate_tag(cache, "one"), NEAR_OK);
    assert_true(gets(cache, "a key with a tag", NULL));
    assert_true(gets(cache, "a key that stays", "value"));
    near_cache_close(cache);
    assert_int_equal(near_client_close(client, &error), NEAR_OK);
}

/* ---- its parts, asked for what there is not */

static void
test_numbers_that_nobody_has(void **state)
{
    struct near__reader *reader = near__reader();
    size_t               number;

    (void)state;
    assert_non_null(reader);
    assert_int_equal(near__hits_sum(SIZE_MAX), 0);
    near__hits_close(SIZE_MAX);
    assert_false(near__reader_hits_grow(reader, SIZE_MAX));
    shortage_begin(0, false);
    assert_false(near__reader_hits_grow(reader, 100000));
    shortage_end();
    assert_true(near__reader_hits_grow(reader, 100000)); /* the control */
    near__hits_close(near__hits_open());                 /* the first sixteen are made */
    shortage_begin(0, true);
    for (size_t i = 0; i < 200; i++) { /* what has been made is given out, then there is no more */
        number = near__hits_open();
        if (number == SIZE_MAX)
            break;
    }
    shortage_end();
    assert_true(number == SIZE_MAX);
    for (size_t i = 0; i < 16; i++)
        near__hits_close(i);
    shortage_begin(0, false);
    assert_null(near__hazard_grave());
    shortage_end();
    shortage_begin(0, false);
    assert_int_equal(near__hazard_bury(NULL, NULL, NULL, nothing, NULL), NEAR_ERR_NOMEM);
    shortage_end();
}

/* Who holds more than there are slots for, and gets no more of them, finds nothing more; what it holds stays. */
static void
test_more_held_than_there_are_slots(void **state)
{
    enum { N = 3 * NEAR__HAZARD_SLOTS };
    struct near__l1       *l1 = l1_open((size_t)4 << 20, 0, 1);
    static near_value     *values[N];
    char                   room[16], out[8];
    size_t                 found  = 0;
    struct near__l1_cursor cursor = { 0 };
    struct near__l1_sight  sight;
    struct near__l1_copy   copy = { .to = out, .room = sizeof(out) };
    uint64_t               hash = hash_of(text("k0"));
    near_bytes             key  = text("k0");

    (void)state;
    for (size_t i = 0; i < N; i++) {
        snprintf(room, sizeof(room), "k%zu", i);
        assert_int_equal(put(l1, room, "value"), NEAR__L1_ADMITTED);
    }
    shortage_begin(0, true);
    for (size_t i = 0; i < N; i++) {
        snprintf(room, sizeof(room), "k%zu", i);
        values[i] = find_at(l1, room, 0);
        found += values[i] != NULL;
    }
    near__l1_aim(l1, &hash, 1, &sight);
    near__l1_seek(l1, &hash, 1, 8, &sight);
    near__l1_copy(l1, &hash, &key, 1, 0, &sight, &copy);
    assert_true(copy.value == NULL || copy.value == NEAR__L1_COPIED);
    near__l1_walk(l1, &cursor, 1, 0, see_nothing, NULL);
    shortage_end();
    assert_in_range(found, NEAR__HAZARD_SLOTS / 2, N - 1);
    for (size_t i = 0; i < N; i++) {
        snprintf(room, sizeof(room), "k%zu", i);
        if (values[i] == NULL)
            values[i] = find_at(l1, room, 0);
        assert_true(value_is(values[i], "value"));
    }
    for (size_t i = 0; i < N; i++)
        near__value_release(values[i]);
    near__l1_free(&l1);
}

/* While what lay in one range waits for its last holder, values of others come and go, wherever they lie. */
static void
test_releases_beside_a_burial(void **state)
{
    enum { N = 3 };
    struct near__l1 *l1[N];
    near_value      *values[N];

    (void)state;
    for (size_t buried = 0; buried < N; buried++) {
        for (size_t i = 0; i < N; i++) {
            l1[i] = l1_open((size_t)1 << 20, 0, 1);
            assert_int_equal(put(l1[i], "a", "value"), NEAR__L1_ADMITTED);
            values[i] = find_at(l1[i], "a", 0);
            assert_non_null(values[i]);
        }
        near__l1_free(&l1[buried]);
        for (size_t i = 0; i < N; i++)
            if (i != buried)
                near__value_release(values[i]);
        assert_true(value_is(values[buried], "value"));
        near__value_release(values[buried]);
        for (size_t i = 0; i < N; i++)
            near__l1_free(&l1[i]);
    }
}

/* Before the first tag there is no clock, and nothing that was labelled is outdated. */
static void
test_labels_before_there_is_a_clock(void **state)
{
    struct near__l1    *l1     = l1_open((size_t)1 << 20, 0, 1);
    struct near__labels labels = { .n = 1 };

    (void)state;
    assert_int_equal(near__l1_label_clock(l1), 0);
    assert_false(near__l1_labels_outdated(l1, &labels));
    near__l1_invalidate_tag(l1, 0);
    assert_true(near__l1_labels_outdated(l1, &labels)); /* the control */
    near__l1_free(&l1);
    l1 = l1_open((size_t)1 << 20, 0, 1);
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    shortage_begin(0, false);
    near__l1_invalidate_tag(l1, 0); /* no memory to be exact with: everything goes */
    shortage_end();
    assert_true(finds(l1, "a", NULL));
    near__l1_free(&l1);
}

static void
test_sizes_that_no_memory_has(void **state)
{
    void                *room;
    struct near__object *object;

    (void)state;
    assert_null(near__entry_new((near_bytes){ "k", (size_t)UINT32_MAX + 1 }, 0, 1, &room));
    assert_null(near__entry_new(text("k"), 0, SIZE_MAX, &room));
    assert_null(near__entry_new(text("k"), 0, (size_t)PTRDIFF_MAX - 10, &room));
    assert_null(near__object_new(NULL, 1, NULL, NULL, (near_bytes){ "x", SIZE_MAX - 10 }));
    object = near__object_new(NULL, SIZE_MAX, NULL, NULL, text("kept"));
    assert_non_null(object);
    assert_int_equal(near__object_cost(object), SIZE_MAX / 2); /* no sum of two overflows */
    shortage_begin(0, false);
    assert_null(near__object_around(object));
    shortage_end();
    near__object_release(&object);
    near__object_release(&object); /* NULL is fine */
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_process_without_a_key_for_its_threads),
        cmocka_unit_test(test_a_system_without_membarrier),
        cmocka_unit_test(test_numbers_that_nobody_has),
        cmocka_unit_test(test_opening_without_memory),
        cmocka_unit_test(test_all_is_right_while_memory_is_refused),
        cmocka_unit_test(test_all_is_right_without_need),
        cmocka_unit_test(test_all_is_right_above_a_disk),
        cmocka_unit_test(test_control_an_untold_write),
        cmocka_unit_test(test_an_l1_that_is_off),
        cmocka_unit_test(test_bounds_that_are_refused),
        cmocka_unit_test(test_more_held_than_there_are_slots),
        cmocka_unit_test(test_releases_beside_a_burial),
        cmocka_unit_test(test_labels_before_there_is_a_clock),
        cmocka_unit_test(test_reads_by_the_told_time),
        cmocka_unit_test(test_sizes_that_no_memory_has),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
