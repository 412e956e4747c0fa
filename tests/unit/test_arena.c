/* The arena: blocks against a model, compaction, budgets, what the pages really cost, and memory that is refused. */
#include "harness/test.h"

#include "l1/arena.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#ifndef UNDER_ASAN
#define UNDER_ASAN 0
#endif
#if UNDER_ASAN
#include <sanitizer/asan_interface.h>
#endif

#define KIB(n) ((size_t)(n) << 10)
#define MIB(n) ((size_t)(n) << 20)

/* ---- a system that refuses: the nth call from now on fails, 0: none */

static _Atomic int mmap_fails, mprotect_fails, madvise_fails;

/* under both of its names: with large files the headers turn one into the other */
void *__real_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
void *__real_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
int   __real_mprotect(void *addr, size_t size, int protection);
int   __wrap_mprotect(void *addr, size_t size, int protection);
int   __real_madvise(void *addr, size_t size, int advice);
int   __wrap_madvise(void *addr, size_t size, int advice);

static bool
fails(_Atomic int *countdown)
{
    if (*countdown == 0 || --*countdown > 0)
        return false;
    errno      = ENOMEM;
    *countdown = 1; /* and all that follow */
    return true;
}

void *
__wrap_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset)
{
    return fails(&mmap_fails) ? MAP_FAILED : __real_mmap(addr, size, protection, flags, fd, offset);
}

void *
__wrap_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset)
{
    return fails(&mmap_fails) ? MAP_FAILED : __real_mmap64(addr, size, protection, flags, fd, offset);
}

int
__wrap_mprotect(void *addr, size_t size, int protection)
{
    return fails(&mprotect_fails) ? -1 : __real_mprotect(addr, size, protection);
}

int
__wrap_madvise(void *addr, size_t size, int advice)
{
    return fails(&madvise_fails) ? -1 : __real_madvise(addr, size, advice);
}

/* ---- an owner: it knows its blocks by number, and which block a reference stands for */

struct block {
    uint32_t ref;
    uint32_t size;
    uint32_t seed;
};

struct owner {
    struct near__arena     *arena;
    struct near__arena_view view;
    struct near__heap       heap;
    uint32_t               *block_of; /* by reference, + 1 */
    struct block           *blocks;
    size_t                  count, capacity, first; /* a ring, for owners that evict the oldest */
    size_t                  live_bytes;             /* as requested */
    uint32_t               *retired;
    size_t                  retired_count;
    uint64_t                random;
    unsigned                refuse; /* every nth move, 0: none */
    unsigned                moves, refused;
};

#define RETIRED_MAX 20000

static void
owner_open(struct owner *o, size_t max_bytes, size_t slab, size_t capacity)
{
    memset(o, 0, sizeof(*o));
    assert_int_equal(near__arena_open(&o->arena, max_bytes, max_bytes, slab), NEAR_OK);
    o->view = near__arena_view(o->arena);
    near__heap_init(&o->heap, o->arena, 0, max_bytes);
    o->capacity = capacity;
    o->block_of = calloc((near__arena_range(o->arena) + 2 * slab) >> o->view.shift, sizeof(uint32_t));
    o->blocks   = calloc(capacity, sizeof(*o->blocks));
    o->retired  = calloc(RETIRED_MAX, sizeof(uint32_t));
    assert_non_null(o->block_of);
    assert_non_null(o->blocks);
    assert_non_null(o->retired);
}

static void
owner_close(struct owner *o)
{
    near__arena_close(&o->arena);
    assert_null(o->arena);
    free(o->block_of);
    free(o->blocks);
    free(o->retired);
}

static void
fill(struct owner *o, const struct block *b)
{
    unsigned char *memory = near__arena_at(&o->view, b->ref);

    memset(memory, (int)(b->seed & 0xff), b->size);
    if (b->size >= 4)
        memcpy(memory, &b->seed, 4);
}

static bool
intact(const struct owner *o, const struct block *b)
{
    const unsigned char *memory = near__arena_at(&o->view, b->ref);

    if (b->size >= 4 && memcmp(memory, &b->seed, 4) != 0)
        return false;
    for (size_t i = b->size >= 4 ? 4 : 0; i < b->size; i++)
        if (memory[i] != (b->seed & 0xff))
            return false;
    return true;
}

/* A block into the place `at`; false: no memory. */
static bool
owner_put(struct owner *o, size_t at, size_t size)
{
    struct block *b   = &o->blocks[at];
    uint32_t      ref = near__heap_alloc(&o->heap, size);

    if (ref == 0)
        return false;
    assert_true(near__heap_block_bytes(&o->heap, ref) >= size);
    assert_int_equal((size_t)near__arena_at(&o->view, ref) & (((size_t)1 << o->view.shift) - 1), 0);
    assert_int_equal(o->block_of[ref], 0);
    *b               = (struct block){ ref, (uint32_t)size, (uint32_t)test_random(&o->random) };
    o->block_of[ref] = (uint32_t)at + 1;
    o->live_bytes += size;
    fill(o, b);
    return true;
}

static void
owner_drop(struct owner *o, size_t at)
{
    struct block *b = &o->blocks[at];

    assert_true(intact(o, b));
    o->live_bytes -= b->size;
    o->block_of[b->ref] = 0;
    near__heap_free(&o->heap, b->ref);
    b->ref = 0;
}

static void
owner_reclaim(struct owner *o)
{
    while (o->retired_count > 0)
        near__heap_free(&o->heap, o->retired[--o->retired_count]);
}

static bool
owner_move(void *ctx, uint32_t from, uint32_t to, size_t bytes)
{
    struct owner *o  = ctx;
    uint32_t      at = o->block_of[from];

    if (at == 0)
        return false; /* retired from an earlier move: it has left the index */
    if (o->refuse != 0 && test_random(&o->random) % o->refuse == 0) {
        o->refused++;
        return false;
    }
    assert_int_equal(near__heap_block_bytes(&o->heap, to), bytes);
    assert_int_equal(o->block_of[to], 0);
    memcpy(near__arena_at(&o->view, to), near__arena_at(&o->view, from), bytes);
    o->blocks[at - 1].ref = to;
    o->block_of[to]       = at;
    o->block_of[from]     = 0;
    o->moves++;
    if (o->retired_count == RETIRED_MAX)
        owner_reclaim(o); /* what waits, not this one */
    o->retired[o->retired_count++] = from;
    return true;
}

static size_t
class_slabs(const struct near__heap *heap)
{
    size_t slabs = 0;

    for (unsigned i = 0; i < NEAR__HEAP_CLASSES_MAX; i++)
        slabs += heap->classes[i].slabs;
    return slabs;
}

/* Those whose size is a multiple of 4 only. */
static size_t
class_slabs_between(const struct near__heap *heap)
{
    size_t slabs = 0, bytes = 0;

    for (unsigned i = 0; bytes < heap->largest; i++) {
        bytes = near__heap_class_bytes(heap, bytes + 1);
        slabs += bytes % 8 != 0 ? heap->classes[i].slabs : 0;
    }
    return slabs;
}

/* ---- classes */

static void
test_classes(void **state)
{
    static const size_t slabs[] = { 512, 1024, 4096, 32768, 65536 };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(slabs); i++) {
        struct near__arena *arena;
        struct near__heap   heap;
        size_t              before = 0;

        assert_int_equal(near__arena_open(&arena, MIB(1), 0, slabs[i]), NEAR_OK);
        assert_int_equal(near__arena_slab_bytes(arena), slabs[i]);
        near__heap_init(&heap, arena, 0, MIB(1));
        assert_int_equal(heap.largest, slabs[i] / 2);
        assert_int_equal(near__heap_class_bytes(&heap, slabs[i] / 2 + 1), 0);
        assert_int_equal(near__heap_alloc(&heap, slabs[i] / 2 + 1), 0);
        for (size_t size = 0; size <= slabs[i] / 2; size++) {
            size_t bytes = near__heap_class_bytes(&heap, size);

            assert_true(bytes >= size && bytes >= before && bytes % (bytes <= 160 ? 4 : 8) == 0);
            if (bytes > before && before >= 256) /* steps of an eighth, or of one block less in a slab */
                assert_true(bytes <= before + before / 8 || slabs[i] / bytes + 1 == slabs[i] / before);
            if (bytes > before && before > 0) /* and as large as the number of blocks allows */
                assert_true(slabs[i] / (bytes + (bytes < 160    ? 4
                                                 : bytes < 1024 ? 8
                                                                : 64)) <
                            slabs[i] / bytes);
            assert_true(bytes < 1024 || bytes % 64 == 0); /* values are promised to lie so */
            before = bytes;
        }
        near__arena_close(&arena);
    }
}

/* Wherever the promise of 64 begins, no class is left out: each is at most an eighth larger than the one before, 63 more for the promise,
 * or as large as one block fewer in a slab allows, if that is a multiple of 64. */
static void
test_no_class_is_left_out(void **state)
{
    (void)state;
    for (size_t slab = 512; slab <= 65536; slab *= 2)
        for (size_t line_from = 64; line_from <= 1024; line_from += 7) {
            struct near__arena *arena;
            struct near__heap   heap;

            assert_int_equal(near__arena_open_lines(&arena, MIB(1), 0, slab, line_from), NEAR_OK);
            near__heap_init(&heap, arena, 0, MIB(1));
            for (size_t bytes = 4, next; bytes < slab / 2; bytes = next) {
                next = near__heap_class_bytes(&heap, bytes + 1);
                assert_true(next <= bytes + bytes / 8 + 63 || slab / next + 1 >= slab / bytes ||
                            (slab / (slab / bytes - 1) & ~(size_t)63) <= bytes);
            }
            near__arena_close(&arena);
        }
}

static void
test_small_classes_are_multiples_of_four_or_eight(void **state)
{
    struct near__arena *arena;
    struct near__heap   heap;

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(1), 0, 65536), NEAR_OK);
    near__heap_init(&heap, arena, 0, MIB(1));
    for (size_t size = 1; size <= 256; size++) {
        size_t step = size <= 160 ? 4 : 8;

        assert_int_equal(near__heap_class_bytes(&heap, size), (size + step - 1) & ~(step - 1));
    }
    near__arena_close(&arena);
}

/* Where most blocks are of one size between two words they take no more than that; where few are, they take no slab for themselves. */
static void
test_a_class_between_two_words_is_for_the_many(void **state)
{
    struct near__arena *arena;
    struct near__heap   heap;
    uint32_t            ref;

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(1), 0, 16384), NEAR_OK);
    near__heap_init(&heap, arena, 0, MIB(1));
    for (size_t i = 0; i < 16384 / 132; i++) {
        assert_int_not_equal(ref = near__heap_alloc(&heap, 132), 0);
        assert_int_equal(near__heap_block_bytes(&heap, ref), 132);
    }
    assert_int_equal(heap.bytes, 16384);
    near__heap_fini(&heap);

    near__heap_init(&heap, arena, 0, MIB(1));
    for (size_t i = 0; i < 3000; i++) {
        size_t size = 100 + 4 * (i % 5); /* two of five are between */

        assert_int_not_equal(ref = near__heap_alloc(&heap, size), 0);
    }
    assert_true(class_slabs_between(&heap) <= 1); /* whoever comes first is all there is */
    near__heap_fini(&heap);
    near__arena_close(&arena);
}

/* ---- blocks against a model */

static size_t
random_size(struct owner *o)
{
    size_t   largest = o->heap.largest;
    unsigned bits    = 64 - (unsigned)__builtin_clzll(largest);

    return test_random(&o->random) % ((size_t)2 << test_random(&o->random) % bits) % (largest + 1);
}

static void
check_accounts(struct owner *o, size_t whole, size_t charged)
{
    size_t slab = near__arena_slab_bytes(o->arena);

    assert_int_equal(o->heap.bytes, (class_slabs(&o->heap) + whole) * slab + charged);
    assert_true(o->live_bytes + near__heap_slack(&o->heap) <= class_slabs(&o->heap) * slab);
}

/* Every block is intact and no two share a byte. */
static void
check_blocks(struct owner *o)
{
    size_t granules      = (near__arena_range(o->arena) >> o->view.shift) + near__arena_slab_bytes(o->arena);
    unsigned char *taken = calloc(1, granules);

    assert_non_null(taken);
    for (size_t i = 0; i < o->capacity; i++) {
        const struct block *b = &o->blocks[i];

        if (b->ref == 0)
            continue;
        assert_true(intact(o, b));
        for (size_t g = 0; g < near__heap_block_bytes(&o->heap, b->ref) >> o->view.shift; g++) {
            assert_int_equal(taken[b->ref + g], 0);
            taken[b->ref + g] = 1;
        }
    }
    free(taken);
}

#define WHOLES 4

struct pieces {
    unsigned char *slabs[WHOLES];
    size_t         charges[WHOLES];
    size_t         wholes, charged;
};

static void
step_pieces(struct owner *o, struct pieces *p, size_t budget)
{
    size_t slab = near__arena_slab_bytes(o->arena), i = test_random(&o->random) % WHOLES;

    if (p->slabs[i] != NULL) {
        near__heap_slab_free(&o->heap, p->slabs[i]);
        p->slabs[i] = NULL;
        p->wholes--;
    } else if ((p->slabs[i] = near__heap_slab(&o->heap)) != NULL) {
        p->wholes++;
        for (size_t j = 0; j < slab; j++)
            assert_int_equal(p->slabs[i][j], 0);
        memset(p->slabs[i], 0xa5, slab);
    }
    if (p->charges[i] != 0) {
        near__heap_discharge(&o->heap, p->charges[i]);
        p->charged -= p->charges[i];
        p->charges[i] = 0;
    } else {
        size_t bytes = 1 + test_random(&o->random) % (budget / 8);

        if (near__heap_charge(&o->heap, bytes)) {
            p->charges[i] = bytes;
            p->charged += bytes;
        }
    }
}

static void
stress(size_t slab, size_t budget, size_t blocks, size_t rounds)
{
    struct owner  o;
    struct pieces pieces = { 0 };
    size_t        failed = 0, compacted = 0;

    owner_open(&o, budget, slab, blocks);
    o.random = slab;
    for (size_t round = 0; round < rounds; round++) {
        size_t   at   = test_random(&o.random) % o.capacity;
        unsigned what = (unsigned)(test_random(&o.random) % 2000);

        /* waves: mostly in, mostly out */
        if (o.blocks[at].ref != 0 && (what % 4 != 0 || round / (2 * blocks) % 2 == 1))
            owner_drop(&o, at);
        else if (o.blocks[at].ref == 0 && !owner_put(&o, at, random_size(&o)))
            failed++;
        if (what < 10)
            step_pieces(&o, &pieces, budget);
        else if (what < 14) {
            o.refuse = what % 2 == 0 ? 0 : 20;
            compacted += near__heap_compact(&o.heap, owner_move, &o);
            if (what < 12)
                owner_reclaim(&o);
        } else if (what == 14)
            near__heap_limit(&o.heap, budget / 2 + test_random(&o.random) % (budget / 2));
        else if (what == 15)
            near__arena_trim(o.arena, test_random(&o.random) % budget);
        else if (what < 20)
            check_accounts(&o, pieces.wholes, pieces.charged);
        assert_true(near__arena_committed(o.arena) >= class_slabs(&o.heap) * slab);
        if (round % 50000 == 0)
            check_blocks(&o);
    }
    check_blocks(&o);
    owner_reclaim(&o);
    for (size_t i = 0; i < o.capacity; i++)
        if (o.blocks[i].ref != 0)
            owner_drop(&o, i);
    check_accounts(&o, pieces.wholes, pieces.charged);
    assert_int_equal(o.heap.bytes, pieces.wholes * slab + pieces.charged + (o.heap.spare != 0) * slab);
    print_message("slab %zu: %zu refused, %zu compactions, %u moves, %u moves refused\n", slab, failed,
                  compacted, o.moves, o.refused);
    assert_true(failed > 0 && o.moves > 0 && compacted > 0); /* or nothing was tested */
    near__heap_fini(&o.heap);
    assert_int_equal(o.heap.bytes, 0);
    near__arena_trim(o.arena, SIZE_MAX);
    assert_true(near__arena_committed(o.arena) < budget / 10 + KIB(8)); /* only the tables */
    owner_close(&o);
}

static void
test_stress(void **state)
{
    (void)state;
    stress(512, KIB(128), 8192, test_scale(400000));
    stress(4096, MIB(1), 6000, test_scale(400000));
    stress(65536, MIB(8), 4000, test_scale(400000));
}

/* ---- compaction */

/* Slabs with every block but each `keep`th freed. */
static void
make_sparse(struct owner *o, size_t count, size_t size, size_t keep)
{
    for (size_t i = 0; i < count; i++)
        assert_true(owner_put(o, i, size));
    for (size_t i = 0; i < count; i++)
        if (i % keep != 0)
            owner_drop(o, i);
}

static void
test_compaction_frees_what_it_can(void **state)
{
    struct owner o;
    size_t       bytes, calls = 0, slots = 65536 / 128;

    (void)state;
    owner_open(&o, MIB(4), 65536, 20 * slots);
    make_sparse(&o, 20 * slots, 128, 4);
    bytes = o.heap.bytes;
    assert_int_equal(bytes, 20 * 65536);
    while (near__heap_compact(&o.heap, owner_move, &o))
        calls++;
    assert_int_equal(calls, 15);           /* a quarter is live: 5 slabs full */
    assert_int_equal(o.heap.bytes, bytes); /* nobody has freed what was moved */
    assert_int_equal(near__heap_slack(&o.heap), 0);
    owner_reclaim(&o);
    assert_int_equal(o.heap.bytes, 5 * 65536);
    check_accounts(&o, 0, 0);
    check_blocks(&o);
    owner_close(&o);
}

static void
test_a_draining_slab_takes_nothing_new(void **state)
{
    struct owner o;
    uint32_t     slab;
    unsigned     slab_bits;

    (void)state;
    owner_open(&o, 2 * 65536, 65536, 20000);
    slab_bits = 16 - o.view.shift;
    make_sparse(&o, 60, 2176, 2); /* two slabs, half full; and the budget is used up */
    assert_true(near__heap_compact(&o.heap, owner_move, &o));
    assert_int_equal(o.retired_count, 15);
    slab = o.retired[0] >> slab_bits;
    for (size_t i = 0; i < o.retired_count; i++)
        assert_int_equal(o.retired[i] >> slab_bits, slab);
    assert_int_equal(near__heap_alloc(&o.heap, 2176), 0); /* the other is full */
    while (o.retired_count > 1)
        near__heap_free(&o.heap, o.retired[--o.retired_count]);
    assert_int_equal(near__heap_alloc(&o.heap, 2176), 0);
    assert_int_equal(near__heap_alloc(&o.heap, 16), 0);
    owner_reclaim(&o);
    assert_int_not_equal(near__heap_alloc(&o.heap, 16), 0); /* and now it serves another class */
    owner_close(&o);
}

static bool
move_never(void *ctx, uint32_t from, uint32_t to, size_t bytes)
{
    (void)from;
    (void)to;
    (void)bytes;
    ++*(unsigned *)ctx;
    return false;
}

static void
test_a_refused_slab_stays_in_use(void **state)
{
    struct owner o;
    unsigned     asked = 0;
    size_t       slack;

    (void)state;
    owner_open(&o, MIB(1), 65536, 20000);
    make_sparse(&o, 4 * 30, 2176, 2);
    slack = near__heap_slack(&o.heap);
    for (unsigned i = 0; i < 4; i++)
        assert_false(near__heap_compact(&o.heap, move_never, &asked));
    assert_int_equal(asked, 4); /* each slab once ... */
    assert_false(near__heap_compact(&o.heap, move_never, &asked));
    assert_int_equal(asked, 4); /* ... and no more ... */
    assert_int_equal(near__heap_slack(&o.heap), slack);
    owner_drop(&o, 0);
    assert_false(near__heap_compact(&o.heap, move_never, &asked));
    assert_int_equal(asked, 5); /* ... until something has left it */
    for (size_t i = 1; i < 4 * 30; i += 2)
        assert_true(owner_put(&o, i, 2176)); /* no slot was lost */
    assert_int_equal(o.heap.bytes, 4 * 65536);
    check_blocks(&o);
    check_accounts(&o, 0, 0);
    owner_close(&o);
}

/* The owner frees `from` within move(): the slab must not vanish under the compaction. */
static bool
move_and_free(void *ctx, uint32_t from, uint32_t to, size_t bytes)
{
    struct owner *o = ctx;

    if (!owner_move(ctx, from, to, bytes))
        return false;
    owner_reclaim(o);
    return true;
}

static void
test_moved_blocks_may_be_freed_at_once(void **state)
{
    struct owner o;

    (void)state;
    owner_open(&o, MIB(1), 4096, 4000);
    make_sparse(&o, 4000, 128, 8);
    while (near__heap_compact(&o.heap, move_and_free, &o))
        check_accounts(&o, 0, 0);
    assert_int_equal(o.heap.bytes, (500 + 31) / 32 * 4096);
    check_blocks(&o);
    owner_close(&o);
}

/* ---- a change of sizes: memory must follow */

struct shift {
    double least, mean; /* utilisation while it was full */
    double evicted;     /* blocks per block put in */
    double moves;
};

static size_t
size_of_phase(struct owner *o, unsigned phase)
{
    switch (phase) {
    case 1:
        return 1900 + test_random(&o->random) % 200;
    case 2:
        return ((size_t)16 << test_random(&o->random) % 8) * (16 + test_random(&o->random) % 16) / 16;
    default:
        return 16 + test_random(&o->random) % 112;
    }
}

/* The oldest block of the ring leaves; or any, and the last one takes its place. */
static void
evict(struct owner *o, bool oldest)
{
    size_t at, last;

    if (oldest) {
        owner_drop(o, o->first++ % o->capacity);
        return;
    }
    at = test_random(&o->random) % o->count;
    owner_drop(o, at);
    last = --o->count;
    if (last == at)
        return;
    o->blocks[at]                  = o->blocks[last];
    o->block_of[o->blocks[at].ref] = (uint32_t)at + 1;
    o->blocks[last].ref            = 0;
}

static struct shift
run_phase(struct owner *o, unsigned phase, bool oldest, bool compact, size_t volume)
{
    struct shift shift = { 1, 0, 0, o->moves };
    size_t       put = 0, evicted = 0, samples = 0, puts = 0;

    while (put < volume) {
        size_t size = size_of_phase(o, phase);

        assert_true(o->count - o->first < o->capacity);
        while (!owner_put(o, o->count % o->capacity, size)) {
            if (compact && near__heap_compact(&o->heap, owner_move, o)) {
                owner_reclaim(o);
                continue;
            }
            assert_true(o->first < o->count);
            evict(o, oldest);
            evicted++;
        }
        o->count++;
        put += size;
        if (++puts % 64 == 0 && put > volume / 4) {
            double used = (double)o->live_bytes / (double)o->heap.max_bytes;

            shift.least = used < shift.least ? used : shift.least;
            shift.mean += used;
            samples++;
        }
    }
    shift.mean /= (double)samples;
    shift.evicted = (double)evicted / (double)puts;
    shift.moves   = (o->moves - shift.moves) / (double)puts;
    return shift;
}

static double
run_shift(bool oldest, bool compact)
{
    static const char *const names[] = { "tiny", "2 KiB", "mixed", "tiny" };
    double                   worst   = 1;
    size_t                   budget  = MIB(test_scale(100) < 100 ? 8 : 16);
    struct owner             o;

    owner_open(&o, budget, budget / 256, budget / 32);
    for (unsigned phase = 0; phase < 4; phase++) {
        struct shift shift = run_phase(&o, phase, oldest, compact, 4 * budget);

        print_message(
            "%s, %s: %-5s utilisation %.3f (at least %.3f), %.2f evicted and %.2f moved per block\n",
            oldest ? "oldest out" : "any out", compact ? "compacting" : "control", names[phase], shift.mean,
            shift.least, shift.evicted, shift.moves);
        worst = shift.least < worst ? shift.least : worst;
        check_accounts(&o, 0, 0);
    }
    check_blocks(&o);
    owner_close(&o);
    return worst;
}

static void
test_memory_follows_the_sizes(void **state)
{
    (void)state;
    /* what is lost: rounding to classes, and up to a slab in each of the some 50 classes in use, out of 256 slabs */
    assert_true(run_shift(true, true) >= 0.82);
    assert_true(run_shift(false, true) >= 0.78);
    assert_true(run_shift(false, false) < 0.70); /* without compaction it would not */
}

/* ---- budgets */

static void
test_limits_up_and_down(void **state)
{
    struct owner o;
    size_t       count = 0;

    (void)state;
    owner_open(&o, MIB(2), 4096, 40000);
    near__heap_limit(&o.heap, MIB(1));
    while (owner_put(&o, count, 120))
        count++;
    assert_int_equal(o.heap.bytes, MIB(1));
    near__heap_limit(&o.heap, MIB(2));
    while (owner_put(&o, count, 120))
        count++;
    assert_int_equal(o.heap.bytes, MIB(2));
    assert_null(near__heap_slab(&o.heap));
    assert_false(near__heap_charge(&o.heap, 1));
    near__heap_limit(&o.heap, MIB(1) / 2);
    assert_int_equal(o.heap.bytes, MIB(2)); /* a number */
    for (size_t i = 0; i < count; i++)
        if (i % 5 != 0)
            owner_drop(&o, i);
    assert_int_equal(near__heap_alloc(&o.heap, 4), 0); /* over its budget: nothing for a new class */
    while (near__heap_compact(&o.heap, owner_move, &o))
        owner_reclaim(&o);
    assert_true(o.heap.bytes <= MIB(1) / 2);
    check_blocks(&o);
    near__heap_limit(&o.heap, 0);
    for (size_t i = 0; i < count; i += 5)
        owner_drop(&o, i);
    assert_int_equal(o.heap.bytes, 0); /* no spare slab over the budget */
    assert_int_equal(near__heap_alloc(&o.heap, 4), 0);
    assert_false(near__heap_charge(&o.heap, SIZE_MAX));
    assert_true(near__heap_charge(&o.heap, 0));
    owner_close(&o);
}

static void
test_fini_gives_back_what_one_heap_has(void **state)
{
    struct near__arena     *arena;
    struct near__heap       one, two;
    struct near__arena_view view;
    unsigned char          *kept;
    uint32_t                ref;

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(4), 0, 4096), NEAR_OK);
    near__heap_init(&one, arena, 0, MIB(2)); /* the number that untouched records have, too */
    near__heap_init(&two, arena, 1, MIB(2));
    for (size_t i = 0; i < 1000; i++) {
        assert_int_not_equal(near__heap_alloc(&one, 1 + i), 0);
        assert_int_not_equal(ref = near__heap_alloc(&two, 1 + i), 0);
    }
    assert_non_null(near__heap_slab(&one));
    assert_true(near__heap_charge(&one, 1000));
    view = near__arena_view(arena);
    kept = near__arena_at(&view, ref);
    memset(kept, 7, 1000);
    near__heap_fini(&one);
    assert_int_equal(one.bytes, 0);
    assert_int_equal(two.bytes, class_slabs(&two) * 4096);
    near__arena_trim(arena, SIZE_MAX);
    assert_in_range(near__arena_committed(arena), two.bytes, two.bytes + KIB(64));
    near__heap_limit(&one, MIB(4) - two.bytes);
    while (near__heap_slab(&one) != NULL)
        ;
    assert_int_equal(one.bytes + two.bytes, MIB(4)); /* nothing was lost, and nothing is there twice */
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(kept[i], 7);
    near__heap_fini(&two);
    near__arena_close(&arena);
    near__arena_close(&arena);
}

/* ---- what the pages cost */

#define TRUE_RSS (!UNDER_ASAN && !TEST_UNDER_TSAN) /* a sanitizer's shadow is resident, too */

static size_t
rss(void)
{
    char    text[128] = { 0 };
    int     fd        = open("/proc/self/statm", O_RDONLY);
    ssize_t got       = read(fd, text, sizeof(text) - 1);
    size_t  size, pages;

    close(fd);
    assert_true(got > 0);
    assert_int_equal(sscanf(text, "%zu %zu", &size, &pages), 2);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* The growth of the RSS since `before` is `expected` within 1 %, and committed() says the same. */
static void
check_rss(const struct near__arena *arena, const char *what, size_t before, size_t expected)
{
    double grown     = (double)rss() - (double)before;
    double committed = (double)near__arena_committed(arena), error = grown / (double)expected - 1;

    print_message("%-22s %8.2f MiB expected, RSS %+.2f %%, committed %+.2f %%\n", what,
                  (double)expected / 0x1p20, 100 * error, 100 * (committed / (double)expected - 1));
    assert_true(committed <= 1.01 * (double)expected && committed >= 0.99 * (double)expected);
    if (TRUE_RSS)
        assert_true(error <= 0.01 && error >= -0.01);
}

/* Blocks of this size until the budget is used up; touched all over. */
static size_t
gorge(struct near__heap *heap, uint32_t *refs, size_t count, size_t size)
{
    struct near__arena_view view = near__arena_view(heap->arena);

    for (uint32_t ref; (ref = near__heap_alloc(heap, size)) != 0; refs[count++] = ref)
        memset(near__arena_at(&view, ref), 1, near__heap_block_bytes(heap, ref));
    return count;
}

static bool
no_move(void *ctx, uint32_t from, uint32_t to, size_t bytes)
{
    return move_never(ctx, from, to, bytes);
}

static void
rss_of(size_t budget, size_t slab, size_t charge)
{
    struct near__arena *arena;
    struct near__heap   heap;
    uint32_t           *refs  = malloc(budget / 100 * sizeof(uint32_t));
    uint64_t            seed  = 1;
    unsigned            asked = 0;
    size_t              count, before;
    char                what[64];

    assert_non_null(refs);
    memset(refs, 0, budget / 100 * sizeof(uint32_t)); /* resident before it counts */
    assert_int_equal(near__arena_open(&arena, budget, 2 * budget, slab), NEAR_OK);
    near__heap_init(&heap, arena, 0, budget);
    assert_true(charge == 0 || near__heap_charge(&heap, charge));
    before = rss();
    near__heap_limit(&heap, budget / 2 + charge);
    count = gorge(&heap, refs, 0, 120);
    if (charge == 0) /* the control: half is half, give or take one 2 MiB page */
        assert_true(!TRUE_RSS ||
                    (rss() - before < budget / 2 + MIB(2) && rss() - before > budget * 49 / 100));
    near__heap_limit(&heap, budget);
    count = gorge(&heap, refs, count, 120);
    snprintf(what, sizeof(what), "%zu KiB slabs, full", slab >> 10);
    check_rss(arena, what, before, budget - charge);

    for (size_t round = 0; round < 6; round++) { /* other sizes, in part of the slabs */
        for (size_t i = 0; i < count;)
            if (test_random(&seed) % 100 < 98) {
                near__heap_free(&heap, refs[i]);
                refs[i] = refs[--count];
            } else
                i++;
        count = gorge(&heap, refs, count, 100 + 700 * (round % 3));
        count = gorge(&heap, refs, count, 100);
    }
    check_rss(arena, "after churn", before, budget - charge);

    near__heap_limit(&heap, budget / 2);
    near__arena_limit(arena, budget / 2);
    while (heap.bytes > budget / 2) { /* in the worst order: holes everywhere */
        size_t i = test_random(&seed) % count;

        near__heap_free(&heap, refs[i]);
        refs[i] = refs[--count];
        near__heap_compact(&heap, no_move, &asked);
    }
    near__arena_trim(arena, SIZE_MAX);
    check_rss(arena, "half, trimmed", before, heap.bytes - charge);

    near__arena_limit(arena, budget * 3 / 2);
    near__heap_limit(&heap, budget * 3 / 2);
    for (void *whole; (whole = near__heap_slab(&heap)) != NULL;)
        memset(whole, 1, slab);
    check_rss(arena, "half as much again", before, heap.bytes - charge);
    near__heap_fini(&heap);
    assert_true(near__arena_trim(arena, SIZE_MAX) >= budget);
    assert_true(!TRUE_RSS || rss() - before < budget / 100 + KIB(512));
    near__arena_close(&arena);
    free(refs);
}

static void
test_rss_is_the_budget(void **state)
{
    (void)state;
    rss_of(MIB(32), 65536, 0);
    rss_of(MIB(33) + 65536, 65536, 0);
    rss_of(MIB(64), 65536, MIB(3)); /* charged: less for the pages */
    rss_of(MIB(32), 16384, 0);
}

/* A charge that comes later takes the pages of free slabs away. */
static void
test_charges_push_free_pages_out(void **state)
{
    struct near__arena *arena;
    struct near__heap   heap;
    void               *slabs[512];

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(32), 0, 65536), NEAR_OK);
    near__heap_init(&heap, arena, 0, MIB(32));
    for (size_t i = 0; i < 512; i++) {
        assert_non_null(slabs[i] = near__heap_slab(&heap));
        memset(slabs[i], 1, 65536);
    }
    assert_true(near__arena_committed(arena) >= MIB(32));
    for (size_t i = 0; i < 512; i += 3)
        near__heap_slab_free(&heap, slabs[i]);
    assert_true(near__arena_committed(arena) >= MIB(32));
    assert_true(near__heap_charge(&heap, MIB(8)));
    assert_true(near__arena_committed(arena) <= MIB(24) + KIB(64));
    near__heap_discharge(&heap, MIB(8));
    for (size_t i = 0; i < 512; i += 3) /* the pages are new, and nothing else has changed */
        assert_non_null(slabs[i] = near__heap_slab(&heap));
    for (size_t i = 0; i < 512; i++)
        for (size_t j = 0; j < 65536; j += 512)
            assert_int_equal(((unsigned char *)slabs[i])[j], i % 3 != 0);
    near__arena_close(&arena);
}

/* Free slabs at the upper end hold the budget's pages when slabs of the lower end, without pages, are taken. */
static void
test_pages_move_to_the_slabs_in_use(void **state)
{
    struct near__arena *arena;
    struct near__heap   heap;
    void               *slabs[128];

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(8), 0, 65536), NEAR_OK);
    near__heap_init(&heap, arena, 0, MIB(8));
    for (size_t i = 0; i < 128; i++)
        assert_non_null(slabs[i] = near__heap_slab(&heap));
    for (size_t i = 0; i < 32; i++)
        near__heap_slab_free(&heap, slabs[i]);
    assert_int_equal(near__arena_trim(arena, SIZE_MAX), MIB(2));
    for (size_t i = 96; i < 128; i++)
        near__heap_slab_free(&heap, slabs[i]);
    near__arena_limit(arena, MIB(6));
    for (size_t i = 0; i < 32; i++) {
        assert_ptr_equal(near__heap_slab(&heap), slabs[i]); /* the lowest first */
        assert_true(near__arena_committed(arena) <= MIB(6) + KIB(16));
    }
    near__arena_close(&arena);
}

/* ---- memory that is refused */

static void
test_opening_when_memory_is_refused(void **state)
{
    struct near__arena *arena;

    (void)state;
    for (int i = 1; i <= 3; i++) {
        mmap_fails = i;
        assert_int_equal(near__arena_open(&arena, MIB(4), 0, 4096), NEAR_ERR_NOMEM);
        assert_null(arena);
        assert_int_equal(mmap_fails, 1); /* it did come to that */
    }
    mmap_fails = 4;
    assert_int_equal(near__arena_open(&arena, MIB(4), 0, 4096), NEAR_OK);
    mmap_fails = 0;
    near__arena_close(&arena);
    assert_int_equal(near__arena_open(&arena, MIB(4), 0, 256), NEAR_ERR_INVALID);
    assert_int_equal(near__arena_open(&arena, MIB(4), 0, 5000), NEAR_ERR_INVALID);
    assert_int_equal(near__arena_open(&arena, MIB(4), 0, 131072), NEAR_ERR_INVALID);
    assert_int_equal(near__arena_open(&arena, SIZE_MAX, SIZE_MAX, 65536), NEAR_ERR_NOMEM);
    assert_int_equal(near__arena_open(&arena, (size_t)1 << 45, 0, 512), NEAR_ERR_NOMEM);
    assert_null(arena);
    assert_int_equal(near__arena_open(&arena, 0, 0, 512), NEAR_OK); /* nothing needs little */
    near__arena_close(&arena);
}

static void
test_filling_when_memory_is_refused(void **state)
{
    (void)state;
    for (int i = 1; i < 6; i++) {
        struct owner o;
        size_t       count = 0, again;

        owner_open(&o, MIB(8), 65536, 20000);
        mprotect_fails = i;
        while (owner_put(&o, count, 1000))
            count++;
        assert_true(o.heap.bytes < MIB(8));
        assert_null(near__heap_slab(&o.heap));
        check_accounts(&o, 0, 0);
        if (count > 0) { /* what is there works on */
            owner_drop(&o, count / 2);
            assert_true(owner_put(&o, count / 2, 1000));
        }
        mprotect_fails = 0;
        again          = count;
        while (owner_put(&o, count, 1000))
            count++;
        assert_true(count > again); /* the control: it was the refusal */
        assert_int_equal(o.heap.bytes, MIB(8));
        check_blocks(&o);
        owner_close(&o);
    }
}

static void
test_advice_is_refused(void **state)
{
    (void)state;
    for (int i = 1; i < 12; i++) {
        struct owner o;
        size_t       count = 0, committed;

        madvise_fails = i;
        owner_open(&o, MIB(8), 65536, 20000);
        while (owner_put(&o, count, 1000))
            count++;
        assert_int_equal(o.heap.bytes, MIB(8));
        committed = near__arena_committed(o.arena);
        for (size_t j = 0; j < count; j++)
            owner_drop(&o, j);
        madvise_fails = 1;
        assert_int_equal(near__arena_trim(o.arena, SIZE_MAX), 0);
        assert_int_equal(near__arena_committed(o.arena), committed);
        madvise_fails = 0;
        assert_true(near__arena_trim(o.arena, SIZE_MAX) >= MIB(8) - 65536); /* the heap keeps one */
        while (count > 0 && owner_put(&o, count - 1, 1000))
            count--;
        check_blocks(&o);
        owner_close(&o);
        madvise_fails = 0;
    }
}

/* Little address space: the range cannot grow as far, or cannot be had. */
static void
test_address_space(void **state)
{
    struct near__arena *arena;
    int                 status;
    pid_t               child;

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(64), (size_t)1 << 40, 65536), NEAR_OK);
    assert_int_equal(near__arena_view(arena).shift, 3);
    assert_int_equal(near__arena_range(arena), ((size_t)32 << 30) - 65536);
    near__arena_close(&arena);
    if (UNDER_ASAN || TEST_UNDER_TSAN)
        skip(); /* their shadow is larger than any limit */
    fflush(stdout);
    child = fork();
    if (child == 0) {
        struct rlimit limit = { MIB(1024), MIB(1024) };

        if (setrlimit(RLIMIT_AS, &limit) != 0)
            _exit(1);
        if (near__arena_open(&arena, MIB(64), (size_t)1 << 40, 65536) != NEAR_OK)
            _exit(2);
        if (near__arena_range(arena) < MIB(256) || near__arena_range(arena) > MIB(1024))
            _exit(3);
        near__arena_close(&arena);
        _exit(near__arena_open(&arena, MIB(2048), 0, 65536) == NEAR_ERR_NOMEM ? 0 : 4);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* A range beyond 32 GiB: larger granules, and the last slab has a reference. */
static void
test_large_granules(void **state)
{
    struct near__arena     *arena;
    struct near__heap       heap;
    struct near__arena_view view;
    uint32_t                refs[64];

    (void)state;
    if (near__arena_open(&arena, (size_t)100 << 30, 0, 65536) != NEAR_OK)
        skip(); /* the system does not even reserve it */
    view = near__arena_view(arena);
    assert_int_equal(view.shift, 5);
    near__heap_init(&heap, arena, 0, MIB(8));
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(near__heap_class_bytes(&heap, 1 + 10 * i) % 32, 0);
        assert_int_not_equal(refs[i] = near__heap_alloc(&heap, 1 + 10 * i), 0);
        memset(near__arena_at(&view, refs[i]), (int)i, 1 + 10 * i);
    }
    for (size_t i = 0; i < 64; i++) {
        assert_int_equal(*(unsigned char *)near__arena_at(&view, refs[i]), i);
        near__heap_free(&heap, refs[i]);
    }
    near__arena_close(&arena);
}

static void
test_free_blocks_are_poisoned(void **state)
{
#if UNDER_ASAN
    static const size_t sizes[] = {
        100, 104
    }; /* of the smaller ones every second begins, or ends, half-way in a word */

    (void)state;
    for (size_t which = 0; which < NEAR_COUNT_OF(sizes); which++) {
        size_t       size = sizes[which], shared = size % 8;
        struct owner o;
        char        *memory[3];

        owner_open(&o, MIB(1), 4096, 100);
        for (size_t i = 0; i < 3; i++) {
            assert_true(owner_put(&o, i, size));
            memory[i] = near__arena_at(&o.view, o.blocks[i].ref);
            assert_null(__asan_region_is_poisoned(memory[i], size)); /* the control */
        }
        owner_drop(&o, 1);
        for (size_t i = 0; i < size - shared; i++)
            assert_true(__asan_address_is_poisoned(memory[1] + i) ||
                        (i < shared && (uintptr_t)memory[1] % 8 != 0));
        assert_null(__asan_region_is_poisoned(memory[0], size));
        assert_null(__asan_region_is_poisoned(memory[2], size));
        assert_true(__asan_address_is_poisoned(memory[2] + size + shared)); /* never used */
        owner_drop(&o, 0);
        owner_drop(&o, 2);
        assert_true(__asan_address_is_poisoned(memory[0] + shared));
        owner_close(&o);
    }
#else
    (void)state;
    skip();
#endif
}

/* ---- many heaps */

#define THREADS 6

struct worker {
    struct near__arena *arena;
    uint32_t            number;
    size_t              rounds, failed, wrong;
    pthread_t           thread;
};

static void *
work(void *ctx)
{
    struct worker          *w    = ctx;
    struct near__arena_view view = near__arena_view(w->arena);
    struct near__heap       heap;
    uint64_t                seed = w->number;
    static const size_t     most = 400;
    uint32_t               *refs = calloc(most, sizeof(*refs));

    near__heap_init(&heap, w->arena, w->number, MIB(2));
    for (size_t round = 0; refs != NULL && round < w->rounds; round++) {
        size_t   i = test_random(&seed) % most, size = 8 + test_random(&seed) % 2000;
        uint64_t word;

        if (refs[i] != 0) {
            memcpy(&word, near__arena_at(&view, refs[i]), sizeof(word));
            w->wrong += word != ((uint64_t)w->number << 32) + refs[i];
            near__heap_free(&heap, refs[i]);
            refs[i] = 0;
        } else if ((refs[i] = near__heap_alloc(&heap, size)) != 0) {
            word = ((uint64_t)w->number << 32) + refs[i];
            memcpy(near__arena_at(&view, refs[i]), &word, sizeof(word));
        } else
            w->failed++;
        if (round % 500 == 0) { /* slabs move from heap to heap */
            void *slab = near__heap_slab(&heap);

            if (slab != NULL) {
                memset(slab, 1, 4096);
                near__heap_slab_free(&heap, slab);
            }
            near__arena_trim(w->arena, KIB(64));
            if (near__heap_charge(&heap, 100))
                near__heap_discharge(&heap, 100);
        }
        if (round % 10000 == 9999) {
            near__heap_fini(&heap);
            memset(refs, 0, most * sizeof(*refs));
        }
    }
    near__heap_fini(&heap);
    free(refs);
    return NULL;
}

static void
test_many_heaps(void **state)
{
    struct near__arena *arena;
    struct worker       workers[THREADS];

    (void)state;
    assert_int_equal(near__arena_open(&arena, THREADS * KIB(300), 0, 4096), NEAR_OK);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ .arena = arena, .number = i, .rounds = test_scale(200000) };
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
    near__arena_trim(arena, SIZE_MAX);
    assert_true(near__arena_committed(arena) < KIB(64));
    near__arena_close(&arena);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_no_class_is_left_out),
        cmocka_unit_test(test_small_classes_are_multiples_of_four_or_eight),
        cmocka_unit_test(test_a_class_between_two_words_is_for_the_many),
        cmocka_unit_test(test_stress),
        cmocka_unit_test(test_compaction_frees_what_it_can),
        cmocka_unit_test(test_a_draining_slab_takes_nothing_new),
        cmocka_unit_test(test_a_refused_slab_stays_in_use),
        cmocka_unit_test(test_moved_blocks_may_be_freed_at_once),
        cmocka_unit_test(test_memory_follows_the_sizes),
        cmocka_unit_test(test_limits_up_and_down),
        cmocka_unit_test(test_fini_gives_back_what_one_heap_has),
        cmocka_unit_test(test_rss_is_the_budget),
        cmocka_unit_test(test_charges_push_free_pages_out),
        cmocka_unit_test(test_pages_move_to_the_slabs_in_use),
        cmocka_unit_test(test_opening_when_memory_is_refused),
        cmocka_unit_test(test_filling_when_memory_is_refused),
        cmocka_unit_test(test_advice_is_refused),
        cmocka_unit_test(test_address_space),
        cmocka_unit_test(test_large_granules),
        cmocka_unit_test(test_free_blocks_are_poisoned),
        cmocka_unit_test(test_many_heaps),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
