/* The backends there are, one row each, and what all of them need to answer a call. */
#include "l2/backend.h"

#include <string.h>

static const struct near_l2_ops *const rows[] = {
    &near__l2_memory,         &near__l2_redis,           &near__l2_rediss,        &near__l2_redis_unix,
    &near__l2_redis_sentinel, &near__l2_rediss_sentinel, &near__l2_redis_cluster, &near__l2_rediss_cluster,
    &near__l2_memcached,      &near__l2_memcached_unix,
};

const struct near_l2_ops *
near__l2_backend_named(const char *scheme)
{
    for (size_t i = 0; scheme != NULL && i < NEAR_COUNT_OF(rows); i++) {
        if (strcmp(rows[i]->scheme, scheme) == 0)
            return rows[i];
    }
    return NULL;
}

void
near__l2_answer_all(struct near_l2_item *items, size_t n, enum near_l2_answer answer, near_status status)
{
    for (size_t i = 0; i < n; i++) {
        items[i].answer = answer;
        items[i].status = status;
    }
}

void
near__l2_answer_rest(struct near_l2_item *items, size_t n, near_status status)
{
    for (size_t i = 0; i < n; i++) {
        if (items[i].answer == NEAR_L2_NOT_TRIED) {
            items[i].answer = NEAR_L2_ERROR;
            items[i].status = status;
        }
    }
}

static bool
valid_call(struct near_l2_item *items, size_t n, size_t most, bool possible)
{
    if (n >= 1 && n <= most && possible)
        return true;
    near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_INVALID);
    return false;
}

bool
near__l2_valid_get(struct near_l2_item *items, size_t n)
{
    return valid_call(items, n, NEAR_L2_READS, true);
}

bool
near__l2_valid_set(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                   const struct near_l2_announce *announce)
{
    return valid_call(items, n, NEAR_L2_BATCH,
                      mode == NEAR_L2_ALWAYS ||
                          ((mode == NEAR_L2_IF_ABSENT || mode == NEAR_L2_IF_STAMP) && announce == NULL));
}

bool
near__l2_valid_remove(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                      const struct near_l2_announce *announce)
{
    return valid_call(items, n, NEAR_L2_BATCH,
                      mode == NEAR_L2_ALWAYS || (mode == NEAR_L2_IF_STAMP && announce == NULL));
}

bool
near__l2_valid_increment(struct near_l2_item *items, size_t n)
{
    bool possible = true;

    for (size_t i = 0; i < n && i < NEAR_L2_BATCH; i++)
        possible = possible && items[i].sum != NULL;
    return valid_call(items, n, NEAR_L2_BATCH, possible);
}

static bool
is_readable(const struct near_l2_hash *hash)
{
    return hash != NULL && hash->fields != NULL && hash->count >= 1 && hash->count <= NEAR_L2_FIELDS;
}

bool
near__l2_valid_hash_get(struct near_l2_item *items, size_t n)
{
    bool possible = true;

    for (size_t i = 0; i < n && i < NEAR_L2_BATCH; i++)
        possible = possible && is_readable(items[i].hash) && items[i].hash->answers != NULL;
    return valid_call(items, n, NEAR_L2_BATCH, possible);
}

static bool
is_writable(const struct near_l2_hash *hash)
{
    bool any = false;

    for (size_t i = 0; is_readable(hash) && hash->values != NULL && i < hash->count; i++)
        any = any || hash->values[i].data != NULL;
    return any;
}

bool
near__l2_valid_hash_set(struct near_l2_item *items, size_t n)
{
    bool possible = true;

    for (size_t i = 0; i < n && i < NEAR_L2_BATCH; i++)
        possible = possible && is_writable(items[i].hash);
    return valid_call(items, n, NEAR_L2_BATCH, possible);
}

void
near__l2_forget_fields(struct near_l2_item *items, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t f = 0; f < items[i].hash->count; f++)
            items[i].hash->answers[f] = NEAR_L2_NOT_TRIED;
}

size_t
near__l2_hash_bytes(const struct near_l2_hash *hash)
{
    size_t bytes = 0;

    for (size_t f = 0; f < hash->count; f++)
        if (hash->values[f].data != NULL &&
            __builtin_add_overflow(bytes, hash->fields[f].size + hash->values[f].size, &bytes))
            return SIZE_MAX;
    return bytes;
}

size_t
near__l2_decimal_write(int64_t number, char *out)
{
    uint64_t left = number < 0 ? -(uint64_t)number : (uint64_t)number;
    char     digits[NEAR_L2_DECIMAL];
    size_t   n = 0, size = 0;

    do
        digits[n++] = (char)('0' + left % 10);
    while ((left /= 10) > 0);
    if (number < 0)
        out[size++] = '-';
    while (n > 0)
        out[size++] = digits[--n];
    return size;
}

bool
near__l2_decimal_read(near_bytes text, int64_t *number)
{
    const char *at       = text.data;
    bool        negative = text.size > 0 && at[0] == '-';
    uint64_t    sum      = 0;
    char        again[NEAR_L2_DECIMAL];

    if (text.size == 0 || text.size > NEAR_L2_DECIMAL)
        return false;
    for (size_t i = negative; i < text.size; i++) {
        if (at[i] < '0' || at[i] > '9')
            return false;
        sum = sum * 10 +
              (uint64_t)(at[i] - '0'); /* may wrap: then what is written below is not what was read */
    }
    *number = (int64_t)(negative ? -sum : sum);
    return near__l2_decimal_write(*number, again) == text.size && memcmp(again, at, text.size) == 0;
}

int64_t
near_l2_now(const struct near_l2_env *env)
{
    return near__now(env->clock);
}

void
near_l2_log(const struct near_l2_env *env, near_log_level level, const char *text)
{
    near__log(env->log, level, "l2 %s", text);
}
