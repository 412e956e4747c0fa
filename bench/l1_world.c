/*
 * The workload: keys `user_feature_%08u`, and for each thread a sequence of them, zipf 0.99 over scrambled ranks.
 *
 * Sequences lie in a memory file, so that a peer in another process runs the very same ones.  They are drawn from fixed seeds: two
 * runs of the benchmark ask for the same keys.
 */
#include "bench/l1.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    GUIDES = 1 << 16
}; /* the bisection of a draw begins between two guides: a handful of steps are left */

static uint64_t
draw(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void
l1_key_print(char *out, uint32_t index)
{
    char text[L1_KEY_SIZE + 1];

    snprintf(text, sizeof(text), "user_feature_%08u", (unsigned)(index % 100000000u));
    memcpy(out, text, L1_KEY_SIZE);
}

struct zipf {
    uint32_t  n;
    double   *cumulated;
    uint32_t *key;   /* of each rank */
    uint32_t *guide; /* first rank whose cumulated share reaches i / GUIDES */
};

static bool
zipf_init(struct zipf *zipf, uint32_t n)
{
    uint64_t random = 99;
    double   sum    = 0;

    zipf->n         = n;
    zipf->cumulated = malloc(n * sizeof(*zipf->cumulated));
    zipf->key       = malloc(n * sizeof(*zipf->key));
    zipf->guide     = malloc((GUIDES + 1) * sizeof(*zipf->guide));
    if (zipf->cumulated == NULL || zipf->key == NULL || zipf->guide == NULL)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        zipf->cumulated[i] = sum += pow((double)i + 1, -0.99);
        zipf->key[i]       = i;
    }
    for (uint32_t i = 0; i < n; i++)
        zipf->cumulated[i] /= sum;
    for (uint32_t i = n - 1; i > 0; i--) { /* Fisher and Yates */
        uint32_t j = (uint32_t)(draw(&random) % (i + 1)), moved = zipf->key[i];
        zipf->key[i] = zipf->key[j];
        zipf->key[j] = moved;
    }
    for (uint32_t i = 0, rank = 0; i <= GUIDES; i++) {
        while (rank < n - 1 && zipf->cumulated[rank] < (double)i / GUIDES)
            rank++;
        zipf->guide[i] = rank;
    }
    return true;
}

static uint32_t
zipf_draw(const struct zipf *zipf, uint64_t *random)
{
    double   u    = (double)(draw(random) >> 11) / 9007199254740992.0;
    uint32_t low  = zipf->guide[(uint32_t)(u * GUIDES)];
    uint32_t high = zipf->guide[(uint32_t)(u * GUIDES) + 1];

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (zipf->cumulated[middle] < u)
            low = middle + 1;
        else
            high = middle;
    }
    return zipf->key[low];
}

static void
zipf_fini(struct zipf *zipf)
{
    free(zipf->cumulated);
    free(zipf->key);
    free(zipf->guide);
}

static bool
draw_sequences(struct l1_world *world)
{
    struct zipf zipf;
    size_t      n  = (size_t)world->threads * L1_SEQUENCE;
    bool        ok = zipf_init(&zipf, world->keys);

    for (size_t i = 0; ok && i < n; i++) {
        static uint64_t random;
        if (i % L1_SEQUENCE == 0)
            random = 1000 + i / L1_SEQUENCE;
        world->sequence[i] = zipf_draw(&zipf, &random) | (draw(&random) % 20 == 0 ? L1_WRITE : 0);
    }
    zipf_fini(&zipf);
    return ok;
}

static bool
lay_stream(struct l1_world *world)
{
    size_t n = (size_t)world->threads * L1_SEQUENCE;

    world->stream = malloc(n * L1_KEY_STRIDE);
    for (size_t i = 0; world->stream != NULL && i < n; i++)
        memcpy(world->stream + i * L1_KEY_STRIDE,
               world->key + (size_t)(world->sequence[i] & ~L1_WRITE) * L1_KEY_STRIDE, L1_KEY_STRIDE);
    return world->stream != NULL;
}

bool
l1_world_open(struct l1_world *world, uint32_t keys, unsigned threads, bool stream)
{
    size_t bytes = (size_t)threads * L1_SEQUENCE * sizeof(*world->sequence);

    *world      = (struct l1_world){ .keys = keys, .threads = threads };
    world->key  = calloc(keys, L1_KEY_STRIDE);
    world->file = memfd_create("sequences", 0); /* to be inherited */
    if (world->key == NULL || world->file < 0 || ftruncate(world->file, (off_t)bytes) != 0)
        return false;
    world->sequence = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, world->file, 0);
    if (world->sequence == MAP_FAILED)
        return false;
    for (uint32_t i = 0; i < keys; i++)
        l1_key_print(world->key + (size_t)i * L1_KEY_STRIDE, i);
    return draw_sequences(world) && (!stream || lay_stream(world));
}

void
l1_world_close(struct l1_world *world)
{
    munmap(world->sequence, (size_t)world->threads * L1_SEQUENCE * sizeof(*world->sequence));
    close(world->file);
    free(world->key);
    free(world->stream);
}
