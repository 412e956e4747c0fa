/*
 * The memory: backend: a shared tier without a server, for trying nearcache out, for tests and for several
 * clients of one process.
 *
 *     handle (one per client) -> store -> table of entries -> blob (the stored bytes)
 *
 * `memory:` has a store of its own.  `memory:NAME` shares the store of that name with every other client of
 * the process; the registry lists the named ones and counts their handles, and the last handle to leave frees
 * the store.
 *
 * A blob never changes after birth and is counted: one reference is the entry's, one is each reader's while
 * it delivers.  So the store's lock is held for a look-up, or to merge the fields of a hash, never while calling out.  The lock covers
 * everything in the store but the blobs' bytes. Eviction is exact LRU over what the entries really take.
 *
 * A hash is an entry whose blob holds its fields, one behind the other; a write makes a new blob of the old one and the written fields.
 *
 * fork(): a lock may be held, and a table half changed, by a thread that does not exist in the child.  A
 * registry therefore belongs to one process, a child makes its own on first use, and inherited stores are
 * neither locked nor read again.
 */
#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "l2/backend.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Four times the default L1: room enough that a program tried without a server sees a useful second tier, and
 * little enough that nobody's laptop or test machine is eaten by it. */
#define STORE_BYTES ((size_t)256 << 20)
#define VALUE_MAX   (STORE_BYTES / 2) /* one entry never drives out all others */
#define STORE_SLOTS 1024              /* at first; doubled whenever there are as many entries */
/* What malloc adds to the two pieces of an entry, and its slot in the table. */
#define ENTRY_OVERHEAD (2 * 16 + sizeof(void *))
#define MAX_KEY        ((size_t)64 << 10) /* no backend needs more: the public limit for keys, prefix aside */
#define KEY_PREFIX     1024               /* what the client may put before a key */

struct blob {
    atomic_uint refs;
    size_t      size;
    uint8_t     bytes[];
};

struct entry {
    struct entry *next;          /* of its slot */
    struct entry *older, *newer; /* in order of use */
    uint64_t      hash;
    int64_t       expires; /* near__now() scale; NEAR_NEVER */
    struct blob  *blob;
    bool          hash_of_fields;
    size_t        key_size;
    uint8_t       key[];
};

struct store {
    char          name[sizeof(((struct near__uri *)0)->name)];
    struct store *next; /* in the registry; this and the next are covered by its lock */
    size_t        handles;

    struct near__secret secret; /* fixed at birth */
    struct near__lock   lock;   /* covers all below */
    struct entry      **slots;
    size_t              mask, count, bytes;
    struct entry       *oldest, *newest;
};

struct registry {
    pid_t             pid;
    struct near__lock lock;
    struct store     *stores;
    struct registry  *inherited; /* the parent process's: kept in reach, never used */
};

struct handle {
    const struct near_l2_env *env;
    struct registry          *registry;
    struct store             *store;
    atomic_bool               closed;
    atomic_size_t             calls; /* in flight */
    bool                      forked;
};

/* ------------------------------------------------------------------------------------------------- blobs */

static struct blob *
blob_new(near_bytes value)
{
    struct blob *blob = malloc(sizeof(*blob) + value.size);

    if (blob == NULL)
        return NULL;
    atomic_init(&blob->refs, 1);
    blob->size = value.size;
    if (value.size > 0)
        memcpy(blob->bytes, value.data, value.size);
    return blob;
}

/* Only by somebody who holds a reference or the store's lock, hence relaxed. */
static struct blob *
blob_ref(struct blob *blob)
{
    atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
    return blob;
}

static void
blob_release(struct blob **pblob)
{
    struct blob *blob = *pblob;

    *pblob = NULL;
    /* release: our reads happen before the free of whoever is last, who acquires them here */
    if (blob != NULL && atomic_fetch_sub_explicit(&blob->refs, 1, memory_order_acq_rel) == 1)
        free(blob);
}

static bool
blob_has_stamp(const struct blob *blob, uint64_t stamp)
{
    return blob->size >= NEAR_L2_STAMP_AT + 8 && near__le64_get(blob->bytes + NEAR_L2_STAMP_AT) == stamp;
}

/* ------------------------------------------------------------------------------------------------- store */

static size_t
entry_bytes(const struct entry *e)
{
    return sizeof(*e) + e->key_size + sizeof(*e->blob) + e->blob->size + ENTRY_OVERHEAD;
}

static void
use_link_locked(struct store *s, struct entry *e)
{
    e->older                                              = s->newest;
    e->newer                                              = NULL;
    *(s->newest != NULL ? &s->newest->newer : &s->oldest) = e;
    s->newest                                             = e;
}

static void
use_unlink_locked(struct store *s, struct entry *e)
{
    *(e->older != NULL ? &e->older->newer : &s->oldest) = e->newer;
    *(e->newer != NULL ? &e->newer->older : &s->newest) = e->older;
}

static struct entry **
find_place_locked(struct store *s, uint64_t hash, near_bytes key)
{
    struct entry **place = &s->slots[hash & s->mask];

    while (*place != NULL && ((*place)->hash != hash ||
                              !near__bytes_equal((near_bytes){ (*place)->key, (*place)->key_size }, key)))
        place = &(*place)->next;
    return place;
}

/* Take the entry out; its blob's reference is the caller's. */
static struct blob *
unlink_locked(struct store *s, struct entry **place)
{
    struct entry *e    = *place;
    struct blob  *blob = e->blob;

    *place = e->next;
    use_unlink_locked(s, e);
    s->bytes -= entry_bytes(e);
    s->count--;
    free(e);
    return blob;
}

static void
remove_locked(struct store *s, struct entry **place)
{
    struct blob *blob = unlink_locked(s, place);

    blob_release(&blob);
}

/* The place of a live entry or of nothing: an expired one is removed on the way. */
static struct entry **
find_locked(struct store *s, uint64_t hash, near_bytes key, int64_t now)
{
    struct entry **place = find_place_locked(s, hash, key);

    if (*place == NULL || (*place)->expires > now)
        return place;
    remove_locked(s, place);
    return find_place_locked(s, hash, key);
}

static void
grow_locked(struct store *s)
{
    size_t         mask  = s->mask * 2 + 1;
    struct entry **slots = calloc(mask + 1, sizeof(*slots));

    if (slots == NULL)
        return; /* longer chains, nothing worse */
    for (struct entry *e = s->oldest; e != NULL; e = e->newer) {
        e->next               = slots[e->hash & mask];
        slots[e->hash & mask] = e;
    }
    free(s->slots);
    s->slots = slots;
    s->mask  = mask;
}

static void
evict_locked(struct store *s)
{
    while (s->bytes > STORE_BYTES && s->oldest != NULL) {
        near_bytes key = { s->oldest->key, s->oldest->key_size };
        remove_locked(s, find_place_locked(s, s->oldest->hash, key));
    }
}

static void
link_locked(struct store *s, struct entry *e)
{
    struct entry **slot;

    if (s->count > s->mask)
        grow_locked(s);
    slot    = &s->slots[e->hash & s->mask];
    e->next = *slot;
    *slot   = e;
    use_link_locked(s, e);
    s->bytes += entry_bytes(e);
    s->count++;
    evict_locked(s);
}

static void
store_free(struct store *s)
{
    if (s == NULL)
        return;
    while (s->oldest != NULL) {
        struct entry *e = s->oldest;
        s->oldest       = e->newer;
        blob_release(&e->blob);
        free(e);
    }
    free(s->slots);
    near__lock_fini(&s->lock);
    free(s);
}

static near_status
store_new(struct store **out, const char *name)
{
    struct store *s = calloc(1, sizeof(*s));
    near_status   st;

    *out = NULL;
    if (s == NULL)
        return NEAR_ERR_NOMEM;
    near__lock_init(&s->lock, NEAR__RANK_STORE);
    snprintf(s->name, sizeof(s->name), "%s", name);
    s->handles = 1;
    s->mask    = STORE_SLOTS - 1;
    s->slots   = calloc(STORE_SLOTS, sizeof(struct entry *));
    st         = s->slots == NULL ? NEAR_ERR_NOMEM : near__secret_init(&s->secret);
    if (st != NEAR_OK) {
        store_free(s);
        return st;
    }
    *out = s;
    return NEAR_OK;
}

/* ---------------------------------------------------------------------------------------------- registry */

static _Atomic(struct registry *) current;

/* This process's registry, made on first use and kept for its life; NULL when out of memory. */
static struct registry *
registry_here(void)
{
    /* acquire, and the exchange releases: whoever sees a registry sees it initialised */
    struct registry *seen = atomic_load_explicit(&current, memory_order_acquire);
    struct registry *made;
    pid_t            pid = getpid();

    if (seen != NULL && seen->pid == pid)
        return seen;
    made = calloc(1, sizeof(*made));
    if (made == NULL)
        return NULL;
    made->pid       = pid;
    made->inherited = seen;
    near__lock_init(&made->lock, NEAR__RANK_REGISTRY);
    if (atomic_compare_exchange_strong_explicit(&current, &seen, made, memory_order_acq_rel,
                                                memory_order_acquire))
        return made;
    near__lock_fini(&made->lock); /* another thread was first */
    free(made);
    return seen;
}

/* The store of this name, or `*spare` as a new one, which then is NULL afterwards. */
static struct store *
registry_enter(struct registry *r, const char *name, struct store **spare)
{
    struct store *s;

    near__lock(&r->lock);
    s = r->stores;
    while (s != NULL && strcmp(s->name, name) != 0)
        s = s->next;
    if (s != NULL) {
        s->handles++;
    } else {
        s         = *spare;
        *spare    = NULL;
        s->next   = r->stores;
        r->stores = s;
    }
    near__unlock(&r->lock);
    return s;
}

/* The store, when it has to be freed, else NULL. */
static struct store *
registry_leave(struct registry *r, struct store *s)
{
    struct store **at = &r->stores;

    near__lock(&r->lock);
    if (--s->handles > 0) {
        near__unlock(&r->lock);
        return NULL;
    }
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    near__unlock(&r->lock);
    return s;
}

/* An inherited store may be half changed and locked for ever: it is kept in reach and as it is.  A named one
 * is in its registry's list already. */
static void
left_behind(struct store *s)
{
    static _Atomic(struct store *) stores;

    if (s->name[0] != '\0')
        return;
    s->next = atomic_load_explicit(&stores, memory_order_relaxed); /* nobody reads the list */
    while (!atomic_compare_exchange_weak_explicit(&stores, &s->next, s, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

/* ----------------------------------------------------------------------------------------------- backend */

static near_status
memory_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    const char    *name = env->uri->name;
    struct handle *h    = calloc(1, sizeof(*h));
    struct store  *spare;
    near_status    st = NEAR_ERR_NOMEM;

    *self = NULL;
    if (h == NULL)
        return near__fail(error, st, "memory: out of memory");
    if (env->max_stored == 0) {
        free(h);
        return near__fail(error, NEAR_ERR_INVALID, "memory: no room for a value (max_stored is 0)");
    }
    h->env      = env;
    h->registry = registry_here();
    if (h->registry != NULL)
        st = store_new(&spare, name);
    if (st != NEAR_OK) {
        free(h);
        return near__fail(error, st, "memory: %s",
                          st == NEAR_ERR_NOMEM ? "out of memory" : "the system gives no random bytes");
    }
    h->store = spare;
    if (name[0] != '\0') {
        h->store = registry_enter(h->registry, name, &spare);
        store_free(spare);
    }
    *traits = (struct near_l2_traits){
        .shared       = name[0] != '\0',
        .binary_keys  = true,
        .max_key      = MAX_KEY + KEY_PREFIX,
        .max_value    = env->max_stored < VALUE_MAX ? env->max_stored : VALUE_MAX,
        .min_lease_ms = 1,
    };
    *self = h;
    return NEAR_OK;
}

/* seq_cst on both sides: either the call sees `closed`, or stop() sees the call. */
static bool
call_begin(struct handle *h, struct near_l2_item *items, size_t n)
{
    atomic_fetch_add(&h->calls, 1);
    if (!atomic_load(&h->closed))
        return true;
    atomic_fetch_sub(&h->calls, 1);
    near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_CLOSED);
    return false;
}

static void
call_end(struct handle *h)
{
    atomic_fetch_sub(&h->calls, 1);
}

static void
answer(struct near_l2_item *item, enum near_l2_answer what, near_status status)
{
    item->answer = what;
    item->status = status;
}

/* A key the traits do not allow harms nothing here, but it is refused alike everywhere. */
static bool
key_is_fit(struct near_l2_item *item)
{
    if (item->key.size > 0 && item->key.size <= MAX_KEY + KEY_PREFIX)
        return true;
    answer(item, NEAR_L2_ERROR, NEAR_ERR_INVALID);
    return false;
}

/* *wrong: there is something of the other kind, and NULL is returned. */
static struct blob *
read_one(struct handle *h, near_bytes key, bool hash_of_fields, bool *wrong)
{
    struct store *s    = h->store;
    uint64_t      hash = near__hash_keyed(&s->secret, key);
    int64_t       now  = near__now(h->env->clock);
    struct blob  *blob = NULL;
    struct entry *e;

    near__lock(&s->lock);
    e      = *find_locked(s, hash, key, now);
    *wrong = e != NULL && e->hash_of_fields != hash_of_fields;
    if (e != NULL && !*wrong) {
        use_unlink_locked(s, e);
        use_link_locked(s, e);
        blob = blob_ref(e->blob);
    }
    near__unlock(&s->lock);
    return blob;
}

static void
get_one(struct handle *h, struct near_l2_item *item, near_l2_deliver_fn deliver, void *ctx)
{
    bool         wrong;
    struct blob *blob = read_one(h, item->key, false, &wrong);

    if (wrong) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_PROTOCOL); /* as a server's WRONGTYPE */
    } else if (blob == NULL) {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
    } else if (blob->size > h->env->max_stored) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE); /* written by a client with a higher limit */
    } else {
        answer(item, NEAR_L2_DONE, NEAR_OK);
        deliver(ctx, item, (near_bytes){ blob->bytes, blob->size });
    }
    blob_release(&blob);
}

static void
memory_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
                int64_t deadline)
{
    struct handle *h = self;

    (void)deadline; /* nothing here waits */
    if (!near__l2_valid_get(items, n) || !call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (key_is_fit(&items[i]))
            get_one(h, &items[i], deliver, ctx);
    }
    call_end(h);
}

static struct entry *
entry_new(uint64_t hash, near_bytes key, near_bytes value, int64_t expires)
{
    struct entry *e = malloc(sizeof(*e) + key.size);

    if (e == NULL)
        return NULL;
    e->blob = blob_new(value);
    if (e->blob == NULL) {
        free(e);
        return NULL;
    }
    e->hash           = hash;
    e->expires        = expires;
    e->hash_of_fields = false;
    e->key_size       = key.size;
    memcpy(e->key, key.data, key.size);
    return e;
}

static bool
condition_holds(enum near_l2_mode mode, const struct entry *e, uint64_t expected)
{
    if (mode == NEAR_L2_IF_ABSENT)
        return e == NULL;
    if (mode == NEAR_L2_IF_STAMP)
        return e != NULL && !e->hash_of_fields && blob_has_stamp(e->blob, expected);
    return true;
}

static int64_t
expiry(int64_t now, int64_t ttl_ms)
{
    if (ttl_ms < 0)
        return now; /* gone at once */
    if (ttl_ms == 0 || ttl_ms > INT64_MAX / NEAR_MS)
        return NEAR_NEVER;
    return near__time_after(now, ttl_ms * NEAR_MS);
}

static void
write_one(struct handle *h, enum near_l2_mode mode, struct near_l2_item *item)
{
    struct store  *s    = h->store;
    uint64_t       hash = near__hash_keyed(&s->secret, item->key);
    int64_t        now  = near__now(h->env->clock);
    struct entry  *e    = entry_new(hash, item->key, item->value, expiry(now, item->ttl_ms));
    struct blob   *old  = NULL;
    struct entry **place;
    bool           holds;

    if (e == NULL) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_NOMEM);
        return;
    }
    near__lock(&s->lock);
    place = find_locked(s, hash, item->key, now);
    holds = condition_holds(mode, *place, item->expected);
    if (holds) {
        if (*place != NULL)
            old = unlink_locked(s, place);
        link_locked(s, e);
    }
    near__unlock(&s->lock);
    answer(item, holds ? NEAR_L2_DONE : NEAR_L2_ABSENT, NEAR_OK);
    blob_release(&old);
    if (!holds) {
        blob_release(&e->blob);
        free(e);
    }
}

static void
memory_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                struct near_l2_announce *announce, int64_t deadline)
{
    struct handle *h = self;

    (void)deadline;
    if (announce != NULL)
        announce->stream = 0; /* we do not announce: the traits say so */
    if (!near__l2_valid_set(mode, items, n, announce) || !call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (!key_is_fit(&items[i]))
            continue;
        if (items[i].value.size > h->env->max_stored || items[i].value.size > VALUE_MAX)
            answer(&items[i], NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        else
            write_one(h, mode, &items[i]);
    }
    call_end(h);
}

static void
remove_one(struct handle *h, enum near_l2_mode mode, struct near_l2_item *item)
{
    struct store  *s    = h->store;
    uint64_t       hash = near__hash_keyed(&s->secret, item->key);
    struct blob   *old  = NULL;
    struct entry **place;
    bool           holds;

    near__lock(&s->lock);
    place = find_locked(s, hash, item->key, near__now(h->env->clock));
    holds = condition_holds(mode, *place, item->expected);
    if (holds && *place != NULL)
        old = unlink_locked(s, place);
    near__unlock(&s->lock);
    answer(item, holds ? NEAR_L2_DONE : NEAR_L2_ABSENT, NEAR_OK);
    blob_release(&old);
}

static void
memory_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                   struct near_l2_announce *announce, int64_t deadline)
{
    struct handle *h = self;

    (void)deadline;
    if (announce != NULL)
        announce->stream = 0;
    if (!near__l2_valid_remove(mode, items, n, announce) || !call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (key_is_fit(&items[i]))
            remove_one(h, mode, &items[i]);
    }
    call_end(h);
}

/* Slots under one hold of the lock. */
#define WALK 256

/* Slots in rising order: when the table doubles meanwhile, what was in a slot is in it or in one further on, so none is passed over. */
static near_status
memory_remove_prefix(void *self, near_bytes prefix, near_l2_progress_fn progress, void *ctx, int64_t deadline,
                     near_error *error)
{
    struct handle *h    = self;
    bool           more = true;

    if (!call_begin(h, NULL, 0))
        return near__fail(error, NEAR_ERR_CLOSED, "memory: closed");
    for (size_t at = 0; more && near__now(h->env->clock) < deadline;) {
        struct store *s = h->store;
        size_t        removed;

        near__lock(&s->lock);
        removed = s->count;
        for (size_t end = at + WALK; at < end && at <= s->mask; at++)
            for (struct entry **place = &s->slots[at]; *place != NULL;)
                if ((*place)->key_size >= prefix.size && memcmp((*place)->key, prefix.data, prefix.size) == 0)
                    remove_locked(s, place);
                else
                    place = &(*place)->next;
        removed -= s->count;
        more = at <= s->mask;
        near__unlock(&s->lock);
        if (removed > 0)
            progress(ctx, removed);
    }
    call_end(h);
    return more ? near__fail(error, NEAR_ERR_TIMEOUT, "memory: not all keys were looked at in time")
                : NEAR_OK;
}

/* What a counter becomes; NULL: the item is answered instead. */
static struct blob *
sum_up(struct near_l2_item *item, const struct blob *old)
{
    struct near_l2_sum *sum = item->sum;
    char                text[NEAR_L2_DECIMAL];
    struct blob        *blob;

    if (!near__l2_decimal_read((near_bytes){ old->bytes, old->size }, &sum->result)) {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
        return NULL;
    }
    if (__builtin_add_overflow(sum->result, sum->delta, &sum->result)) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_INVALID);
        return NULL;
    }
    blob = blob_new((near_bytes){ text, near__l2_decimal_write(sum->result, text) });
    if (blob == NULL)
        answer(item, NEAR_L2_ERROR, NEAR_ERR_NOMEM);
    else
        answer(item, NEAR_L2_DONE, NEAR_OK);
    return blob;
}

static void
increment_one(struct handle *h, struct near_l2_item *item)
{
    struct store       *s    = h->store;
    struct near_l2_sum *sum  = item->sum;
    uint64_t            hash = near__hash_keyed(&s->secret, item->key);
    int64_t             now  = near__now(h->env->clock);
    char                text[NEAR_L2_DECIMAL];
    near_bytes          first = { text, near__l2_decimal_write(sum->initial, text) };
    struct entry       *fresh = entry_new(hash, item->key, first, expiry(now, item->ttl_ms)), *e;
    struct blob        *blob  = NULL;

    if (fresh == NULL) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_NOMEM);
        return;
    }
    near__lock(&s->lock);
    e            = *find_locked(s, hash, item->key, now);
    sum->created = e == NULL;
    if (e == NULL) {
        link_locked(s, fresh);
        sum->result = sum->initial;
        answer(item, NEAR_L2_DONE, NEAR_OK);
    } else if ((blob = sum_up(item, e->blob)) != NULL) {
        struct blob *old = e->blob;

        s->bytes -= entry_bytes(e);
        e->blob = blob;
        s->bytes += entry_bytes(e);
        blob = old;
    }
    near__unlock(&s->lock);
    blob_release(&blob);
    if (!sum->created) {
        blob_release(&fresh->blob);
        free(fresh);
    }
}

static void
memory_increment(void *self, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct handle *h = self;

    (void)deadline;
    if (!near__l2_valid_increment(items, n) || !call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (key_is_fit(&items[i]))
            increment_one(h, &items[i]);
    }
    call_end(h);
}

/* ------------------------------------------------------------------------------------------------ hashes
 *
 * A blob of fields: sizes of name and value (32 bits each), name, value, and so on. */

#define FIELD_HEADER 8

struct field {
    near_bytes name, value;
    size_t     size; /* of all of it in the blob */
};

/* What lies at `at`, which is within the blob. */
static struct field
field_at(const struct blob *blob, size_t at)
{
    const uint8_t *head = blob->bytes + at;
    struct field   f    = { .name  = { head + FIELD_HEADER, near__le32_get(head) },
                            .value = { NULL, near__le32_get(head + 4) } };

    f.value.data = head + FIELD_HEADER + f.name.size;
    f.size       = FIELD_HEADER + f.name.size + f.value.size;
    return f;
}

/* Looked for from `*at` on and around, which is where it lies when fields are asked for in the order in which they were written.  *at moves
 * behind what was found. */
static bool
find_field(const struct blob *blob, near_bytes name, size_t *at, struct field *found)
{
    for (size_t seen = 0, here = *at; seen < blob->size; seen += found->size) {
        if (here == blob->size)
            here = 0;
        *found = field_at(blob, here);
        here += found->size;
        *at = here;
        if (near__bytes_equal(found->name, name))
            return true;
    }
    return false;
}

static enum near_l2_answer
get_field(struct handle *h, const struct blob *blob, struct near_l2_item *item, size_t i, size_t *at,
          near_l2_field_fn deliver, void *ctx)
{
    struct field f;

    if (blob == NULL || !find_field(blob, item->hash->fields[i], at, &f))
        return NEAR_L2_ABSENT;
    if (f.value.size > h->env->max_stored)
        return NEAR_L2_ERROR;
    deliver(ctx, item, i, f.value);
    return NEAR_L2_DONE;
}

static void
get_fields(struct handle *h, struct near_l2_item *item, near_l2_field_fn deliver, void *ctx)
{
    bool         wrong;
    struct blob *blob = read_one(h, item->key, true, &wrong);
    size_t       at   = 0;

    if (wrong) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_PROTOCOL);
        return;
    }
    answer(item, NEAR_L2_DONE, NEAR_OK);
    for (size_t i = 0; i < item->hash->count; i++)
        item->hash->answers[i] = get_field(h, blob, item, i, &at, deliver, ctx);
    blob_release(&blob);
}

static void
memory_hash_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_field_fn deliver, void *ctx,
                     int64_t deadline)
{
    struct handle *h = self;

    (void)deadline;
    if (!near__l2_valid_hash_get(items, n))
        return;
    near__l2_forget_fields(items, n);
    if (!call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (key_is_fit(&items[i]))
            get_fields(h, &items[i], deliver, ctx);
    }
    call_end(h);
}

static bool
is_written(const struct near_l2_hash *hash, near_bytes name)
{
    for (size_t i = 0; i < hash->count; i++)
        if (hash->values[i].data != NULL && near__bytes_equal(hash->fields[i], name))
            return true;
    return false;
}

static size_t
put_field(uint8_t *at, near_bytes name, near_bytes value)
{
    near__le32_put(at, (uint32_t)name.size);
    near__le32_put(at + 4, (uint32_t)value.size);
    if (name.size > 0)
        memcpy(at + FIELD_HEADER, name.data, name.size);
    if (value.size > 0)
        memcpy(at + FIELD_HEADER + name.size, value.data, value.size);
    return FIELD_HEADER + name.size + value.size;
}

/* The fields of `old` that are not written (NULL: none), and those that are.  NULL: out of memory. */
static struct blob *
merge_fields(const struct blob *old, const struct near_l2_hash *hash)
{
    size_t       old_size = old == NULL ? 0 : old->size;
    size_t       most = old_size + near__l2_hash_bytes(hash) + hash->count * FIELD_HEADER, size = 0;
    struct blob *blob = malloc(sizeof(*blob) + most);

    if (blob == NULL)
        return NULL;
    atomic_init(&blob->refs, 1);
    for (size_t at = 0; at < old_size;) {
        struct field f = field_at(old, at);

        at += f.size;
        if (!is_written(hash, f.name))
            size += put_field(blob->bytes + size, f.name, f.value);
    }
    for (size_t i = 0; i < hash->count; i++)
        if (hash->values[i].data != NULL)
            size += put_field(blob->bytes + size, hash->fields[i], hash->values[i]);
    blob->size = size;
    return blob;
}

/* With the lock held, for a hash that is merged within it must be the one that is replaced. */
static struct blob *
write_fields_locked(struct handle *h, struct near_l2_item *item, struct entry *fresh, uint64_t hash)
{
    struct store  *s     = h->store;
    int64_t        now   = near__now(h->env->clock);
    struct entry **place = find_locked(s, hash, item->key, now);
    struct entry  *e     = *place;
    struct blob   *blob;

    if (e != NULL && !e->hash_of_fields) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_PROTOCOL);
        return NULL;
    }
    blob = merge_fields(e == NULL ? NULL : e->blob, item->hash);
    if (blob == NULL || blob->size > VALUE_MAX) {
        answer(item, NEAR_L2_ERROR, blob == NULL ? NEAR_ERR_NOMEM : NEAR_ERR_TOO_LARGE);
        return blob;
    }
    fresh->blob = blob;
    if (e == NULL || item->ttl_ms != 0)
        fresh->expires = expiry(now, item->ttl_ms);
    else
        fresh->expires = e->expires;
    blob = e == NULL ? NULL : unlink_locked(s, place);
    link_locked(s, fresh);
    answer(item, NEAR_L2_DONE, NEAR_OK);
    return blob;
}

static void
write_fields(struct handle *h, struct near_l2_item *item)
{
    uint64_t      hash  = near__hash_keyed(&h->store->secret, item->key);
    struct entry *fresh = malloc(sizeof(*fresh) + item->key.size);
    struct blob  *unused;

    if (fresh == NULL) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_NOMEM);
        return;
    }
    fresh->hash           = hash;
    fresh->hash_of_fields = true;
    fresh->key_size       = item->key.size;
    memcpy(fresh->key, item->key.data, item->key.size);
    near__lock(&h->store->lock);
    unused = write_fields_locked(h, item, fresh, hash);
    near__unlock(&h->store->lock);
    blob_release(&unused);
    if (item->answer != NEAR_L2_DONE)
        free(fresh);
}

/* No value that a reader of the same limits would refuse. */
static bool
fields_fit(const struct handle *h, const struct near_l2_hash *hash)
{
    for (size_t i = 0; i < hash->count; i++)
        if (hash->values[i].data != NULL && hash->values[i].size > h->env->max_stored)
            return false;
    return near__l2_hash_bytes(hash) <= VALUE_MAX;
}

static void
memory_hash_set_many(void *self, struct near_l2_item *items, size_t n, struct near_l2_announce *announce,
                     int64_t deadline)
{
    struct handle *h = self;

    (void)deadline;
    if (announce != NULL)
        announce->stream = 0;
    if (!near__l2_valid_hash_set(items, n) || !call_begin(h, items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        if (!key_is_fit(&items[i]))
            continue;
        if (fields_fit(h, items[i].hash))
            write_fields(h, &items[i]);
        else
            answer(&items[i], NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
    }
    call_end(h);
}

static near_status
memory_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct handle *h = self;
    size_t         count, bytes;

    (void)deadline;
    if (!call_begin(h, NULL, 0))
        return near__fail(error, NEAR_ERR_CLOSED, "memory: closed");
    near__lock(&h->store->lock);
    count = h->store->count;
    bytes = h->store->bytes;
    near__unlock(&h->store->lock);
    snprintf(text, size, "memory%s%s, %zu entries, %zu of %zu bytes", h->store->name[0] != '\0' ? " " : "",
             h->store->name, count, bytes, STORE_BYTES);
    call_end(h);
    return NEAR_OK;
}

static void
memory_stats(void *self, struct near_l2_stats *stats)
{
    (void)self;
    *stats = (struct near_l2_stats){ .connects = 0 };
}

static void
memory_close(void *self)
{
    atomic_store(&((struct handle *)self)->closed, true);
}

/* No call here waits for anything, so what is in flight is over in microseconds: give way until it is. */
static void
memory_stop(void *self)
{
    struct handle *h = self;

    memory_close(h);
    while (!h->forked && atomic_load(&h->calls) > 0)
        usleep(100);
}

static void
memory_fini(void *self)
{
    struct handle *h = self;

    if (h == NULL)
        return;
    memory_stop(h);
    if (h->forked)
        left_behind(h->store);
    else if (h->store->name[0] == '\0')
        store_free(h->store);
    else
        store_free(registry_leave(h->registry, h->store));
    free(h);
}

static void
memory_forked(void *self)
{
    struct handle *h = self;

    h->forked = true;
    atomic_store(&h->closed, true);
}

const struct near_l2_ops near__l2_memory = {
    .version       = NEAR_L2_OPS_V2,
    .scheme        = "memory",
    .open          = memory_open,
    .get_many      = memory_get_many,
    .set_many      = memory_set_many,
    .remove_many   = memory_remove_many,
    .remove_prefix = memory_remove_prefix,
    .increment     = memory_increment,
    .health        = memory_health,
    .stats         = memory_stats,
    .close         = memory_close,
    .stop          = memory_stop,
    .fini          = memory_fini,
    .forked        = memory_forked,
    .hash_get_many = memory_hash_get_many,
    .hash_set_many = memory_hash_set_many,
};
