/*
 * Memory, as the kernel counts it: the resident set's growth, each figure from a fresh process (this program again, as its child).
 *
 * Keys are made one by one, so that nothing but the cache grows.  Overhead per entry is growth / n - 121, the size of key and value.
 *
 * The budget: a cache of ours is filled far beyond l1.max_bytes with values of mixed sizes, then of small ones, then of large ones,
 * then mixed again, because a cache that cannot hand memory from one size to another shows it only then.
 */
#include "bench/l1.h"

#include <math.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAYLOAD = L1_KEY_SIZE + L1_VALUE_SIZE, LARGEST = 8192 };

static double
resident(void) /* bytes; from smaps_rollup, for statm may lag behind */
{
    FILE  *file = fopen("/proc/self/smaps_rollup", "r");
    char   line[256];
    double kib = 0;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "Rss: %lf kB", &kib) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kib * 1024;
}

/* ---- in the child */

static void
look(void *before)
{
    *(double *)before = resident();
}

static bool
fill(const struct l1_peer *peer, void *cache, uint32_t n)
{
    unsigned char value[L1_VALUE_SIZE];
    char          key[L1_KEY_SIZE];

    for (uint32_t i = 0; i < n; i++) {
        l1_key_print(key, i);
        l1_value(value, i);
        if (!peer->put(cache, l1_bytes(key, sizeof(key)), l1_bytes(value, sizeof(value))))
            return false;
    }
    return true;
}

/* What the process needs once, however large the cache: libraries, the first thread, what malloc keeps. */
static void
warm_up(const struct l1_peer *peer)
{
    struct l1_world world = { .keys = 1000 };
    const char     *why;
    void           *cache = peer->open(peer, &world, 0, &why);

    if (cache != NULL && fill(peer, cache, 1000))
        peer->close(cache);
}

static int
child_plain(const struct l1_peer *peer, uint32_t n)
{
    struct l1_world world = { .keys = n };
    const char     *why;
    double          before;
    void           *cache;

    warm_up(peer);
    before = resident();
    cache  = peer->open(peer, &world, 0, &why);

    if (cache == NULL || !fill(peer, cache, n))
        return 1;
    printf("%.0f %.0f\n", resident() - before, peer->policy != NULL ? (double)l1_ours_counted(cache) : 0.0);
    return 0;
}

static int
child_l2_backed(const struct l1_peer *peer, uint32_t n)
{
    const char *why;
    double      before = 0;
    void       *cache  = l1_ours_open(peer, UINT64_C(256) << 20, 0, "memory:", &why);

    if (cache == NULL || !l1_ours_fill_through_l2(cache, n, look, &before))
        return 1;
    printf("%.0f %.0f\n", resident() - before, (double)l1_ours_counted(cache));
    return 0;
}

struct sizes {
    uint32_t least, most; /* of values; drawn evenly over their logarithm */
};

/* Twice the budget in values; after each quarter, the most that was resident. */
static bool
flood(const struct l1_peer *peer, void *cache, struct sizes sizes, uint64_t budget, uint64_t *random,
      double *most)
{
    static char value[LARGEST];
    uint64_t    written = 0, looked = 0;
    char        key[L1_KEY_SIZE];

    while (written < 2 * budget) {
        *random     = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        double u    = (double)(*random >> 11) / 9007199254740992.0;
        size_t size = (size_t)(sizes.least * pow((double)sizes.most / sizes.least, u));
        l1_key_print(key, (uint32_t)(*random >> 32) % 100000000u);
        if (!peer->put(cache, l1_bytes(key, sizeof(key)), l1_bytes(value, size)))
            return false;
        written += size + sizeof(key);
        if (written - looked < budget / 4)
            continue;
        looked = written;
        *most  = fmax(*most, resident());
    }
    *most = fmax(*most, resident());
    return true;
}

/* All sizes, one after the other; what was resident and what was counted, at most. */
static bool
flood_all(const struct l1_peer *peer, uint64_t budget, double *most, double *counted)
{
    static const struct sizes phases[] = { { 16, 4096 }, { 16, 128 }, { 2048, LARGEST }, { 16, 4096 } };
    const char               *why;
    uint64_t                  random = 7;
    void                     *cache  = l1_ours_open(peer, budget, 0, "none:", &why);
    bool                      right  = cache != NULL;

    for (size_t i = 0; right && i < sizeof(phases) / sizeof(phases[0]); i++) {
        right    = flood(peer, cache, phases[i], budget, &random, most);
        *counted = right ? fmax(*counted, (double)l1_ours_counted(cache)) : 0;
    }
    if (cache != NULL)
        peer->close(cache);
    return right;
}

/* A rehearsal first, for the code that runs only in a full cache, and what the process needs once. */
static int
child_budget(const struct l1_peer *peer, uint64_t budget)
{
    enum { REHEARSAL = 1 << 20 };
    double before, most = 0, counted = 0;

    if (!flood_all(peer, REHEARSAL, &most, &counted))
        return 1;
    before = most = resident();
    counted       = 0;
    if (!flood_all(peer, budget, &most, &counted))
        return 1;
    printf("%.0f %.0f\n", most - before, counted);
    return 0;
}

int
l1_child(const struct l1_peer *peers, unsigned n, char **argv) /* KIND PEER NUMBER */
{
    unsigned long long number = strtoull(argv[2], NULL, 10);

    for (unsigned i = 0; i < n; i++) {
        if (strcmp(peers[i].name, argv[1]) != 0)
            continue;
        if (strcmp(argv[0], "plain") == 0)
            return child_plain(&peers[i], (uint32_t)number);
        if (strcmp(argv[0], "l2") == 0)
            return child_l2_backed(&peers[i], (uint32_t)number);
        return child_budget(&peers[i], number);
    }
    return 1;
}

/* ---- in the parent */

static bool
ask_child(const char *kind, const struct l1_peer *peer, uint64_t number, double *growth, double *counted)
{
    char  text[24], line[128] = "";
    int   out[2], status      = 1;
    FILE *from;
    pid_t pid;

    snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
    fflush(NULL);
    if (pipe(out) != 0 || (pid = fork()) < 0)
        return false;
    if (pid == 0) {
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execl("/proc/self/exe", "l1", "--policies", peer->policy != NULL ? peer->policy : "", "--child", kind,
              peer->name, text, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    from = fdopen(out[0], "r");
    if (from != NULL && fgets(line, sizeof(line), from) == NULL)
        line[0] = '\0';
    if (from != NULL)
        fclose(from);
    waitpid(pid, &status, 0);
    return status == 0 && sscanf(line, "%lf %lf", growth, counted) == 2;
}

double
l1_bytes_per_entry(const struct l1_peer *peer, enum l1_memory kind, uint32_t n)
{
    struct l1_world world;
    const char     *why;
    double          growth = -1, counted;
    void           *cache;

    if (peer->run == NULL)
        return ask_child(kind == L1_PLAIN ? "plain" : "l2", peer, n, &growth, &counted) ? growth / n - PAYLOAD
                                                                                        : -1;
    if (!l1_world_open(&world, n, 1, false))
        return -1;
    cache = peer->open(peer, &world, 0, &why);
    if (cache != NULL) {
        growth = peer->bytes(cache);
        peer->close(cache);
    }
    l1_world_close(&world);
    return growth < 0 ? -1 : growth / n - PAYLOAD;
}

bool
l1_budget(const struct l1_peer *peer, uint64_t budget, double *growth, double *counted)
{
    return ask_child("budget", peer, budget, growth, counted);
}
