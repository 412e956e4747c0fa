/*
 * Fuzz target: what a Redis server may answer to HMGETs, through all of the backend (hash_get_many of l2/redis.c).
 *
 * Input: one byte that says what is asked (its low two bits: 1 to 4 hashes; the next three: 1 to 8 fields of each), then all that the server says
 * before it hangs up, on every connection anew.  The server is a thread that does not listen.  Whatever it says: each field is delivered once if its
 * word is DONE and else never, no value is larger than allowed, and a hash is DONE only with all of its fields answered.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "l2/backend.h"

#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define MAX_VALUE 1000
#define HASHES    4
#define FIELDS    8

static struct near__uri uri;
static int              listener = -1;

/* What the server says; its thread reads it while a call is under way, and nobody writes it then. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* covers `talk` */
static near_bytes      talk;

static void
remove_place(void)
{
    unlink(uri.addresses[0].host);
}

static void *
serve(void *ctx)
{
    char heard[4096];

    for (;;) {
        int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        if (peer < 0)
            continue;
        pthread_mutex_lock(&lock);
        (void)!send(peer, talk.data, talk.size, MSG_NOSIGNAL);
        pthread_mutex_unlock(&lock);
        shutdown(peer, SHUT_WR);
        while (recv(peer, heard, sizeof(heard), 0) >
               0) /* till the client goes: it may not have sent all yet */
            ;
        close(peer);
    }
    return ctx;
}

static void
open_place(void)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    char               text[160];
    pthread_t          thread;

    snprintf(at.sun_path, sizeof(at.sun_path), "/tmp/near-fuzz-rows-%ld", (long)getpid());
    unlink(at.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof(at)) == 0 &&
          listen(listener, 64) == 0);
    snprintf(text, sizeof(text), "redis+unix://%s", at.sun_path);
    check(near__uri_parse(&uri, "l2.uri", text, NULL) == NEAR_OK);
    atexit(remove_place);
    check(pthread_create(&thread, NULL, serve, NULL) == 0);
    pthread_detach(thread);
}

struct asked {
    struct near_l2_item items[HASHES];
    struct near_l2_hash hashes[HASHES];
    enum near_l2_answer answers[HASHES][FIELDS];
    unsigned            delivered[HASHES][FIELDS];
    size_t              n;
};

static void
deliver(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct asked *asked = ctx;
    uint8_t       sum   = 0;

    check(item >= asked->items && item < asked->items + asked->n && field < item->hash->count);
    check(value.size <= MAX_VALUE);
    for (size_t i = 0; i < value.size; i++)
        sum = (uint8_t)(sum + ((const uint8_t *)value.data)[i]);
    (void)sum;
    asked->delivered[item - asked->items][field]++;
}

static void
check_answers(const struct asked *asked)
{
    for (size_t i = 0; i < asked->n; i++) {
        const struct near_l2_item *item = &asked->items[i];

        check(item->answer == NEAR_L2_DONE || (item->answer == NEAR_L2_ERROR && item->status < 0));
        for (size_t k = 0; k < item->hash->count; k++) {
            check(asked->delivered[i][k] == (asked->answers[i][k] == NEAR_L2_DONE));
            check(item->answer != NEAR_L2_DONE || asked->answers[i][k] != NEAR_L2_NOT_TRIED);
        }
    }
}

static void
ask(void *backend, unsigned what)
{
    static const char *const names[FIELDS] = { "a", "price", "4294967295", "", "x", "y", "z", "long enough" };
    near_bytes               fields[FIELDS];
    struct asked             asked;

    memset(&asked, 0, sizeof(asked));
    asked.n = 1 + what % HASHES;
    for (size_t k = 0; k < FIELDS; k++)
        fields[k] = near_key(names[k]);
    for (size_t i = 0; i < asked.n; i++) {
        asked.hashes[i] = (struct near_l2_hash){ .fields  = fields,
                                                 .count   = 1 + what / HASHES % FIELDS,
                                                 .answers = asked.answers[i] };
        asked.items[i] =
            (struct near_l2_item){ .key = near_key(names[i]), .hash = &asked.hashes[i], .plain = true };
    }
    asked.items[asked.n - 1].key = near_key("entity");
    near__l2_redis_unix.hash_get_many(backend, asked.items, asked.n, deliver, &asked,
                                      near__now(&near__clock_system) + 2000 * NEAR_MS);
    check_answers(&asked);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct near_l2_env    env = { .uri             = &uri,
                                  .clock           = &near__clock_system,
                                  .connect_timeout = 2000 * NEAR_MS,
                                  .pool_size       = 1,
                                  .max_stored      = MAX_VALUE };
    struct near_l2_traits traits;
    void                 *backend;

    if (size == 0 || size > 64u << 10) /* a socket holds it */
        return 0;
    if (listener < 0)
        open_place();
    pthread_mutex_lock(&lock);
    talk = (near_bytes){ data + 1, size - 1 };
    pthread_mutex_unlock(&lock);
    /* a new one each time: what was heard to be down is not asked again so soon */
    check(near__l2_redis_unix.open(&backend, &env, &traits, NULL) == NEAR_OK);
    ask(backend, data[0]);
    near__l2_redis_unix.close(backend);
    near__l2_redis_unix.stop(backend);
    near__l2_redis_unix.fini(backend);
    pthread_mutex_lock(&lock); /* nobody reads it any more */
    talk = (near_bytes){ "", 0 };
    pthread_mutex_unlock(&lock);
    return 0;
}
