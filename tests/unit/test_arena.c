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
        assert_int_equal(near__heap_largest(&heap), slabs[i] / 2);
        assert_int_equal(near__heap_class_bytes(&heap, slabs[i] / 2 + 1), 0);
        assert_int_equal(near__heap_alloc(&heap, slabs[i] / 2 + 1), 0);
        for (size_t size = 0; size <= slabs[i] / 2; size++) {
            size_t bytes = near__heap_class_bytes(&heap, size);

            assert_true(bytes >= size && bytes >= before && bytes % 8 == 0);
            if (bytes > before && before >= 256) /* steps of an eighth, or of one block less in a slab */
                assert_true(bytes <= before + before / 8 || slabs[i] / bytes + 1 == slabs[i] / before);
            if (bytes > before && before > 0) /* and as large as the number of blocks allows */
                assert_true(slabs[i] / (bytes + 8) < slabs[i] / bytes);
            before = bytes;
        }
        near__arena_close(&arena);
    }
}

static void
test_small_classes_are_multiples_of_eight(void **state)
{
    struct near__arena *arena;
    struct near__heap   heap;

    (void)state;
    assert_int_equal(near__arena_open(&arena, MIB(1), 0, 65536), NEAR_OK);
    near__heap_init(&heap, arena, 0, MIB(1));
    for (size_t size = 1; size <= 256; size++)
        assert_int_equal(near__heap_class_bytes(&heap, size), (size + 7) & ~(size_t)7);
    near__arena_close(&arena);
}

/* ---- blocks against a model */

static size_t
random_size(struct owner *o)
{
    size_t   largest = near__heap_largest(&o->heap);
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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_small_classes_are_multiples_of_eight),
        cmocka_unit_test(test_stress),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
