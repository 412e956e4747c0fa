/* The application's handle on a value: see l1/entry.h for what it is made of. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "l1/find.h"

void
near_free(void *memory)
{
    free(memory);
}

near_bytes
near_value_bytes(const near_value *value)
{
    if (NEAR__LIKELY((uintptr_t)value & NEAR__VALUE_SLOT))
        return near__block_value(near__slot_block(near__value_address(value)));
    return value == NULL ? (near_bytes){ NULL, 0 } : near__value_data(value);
}

void *
near_value_object(const near_value *value)
{
    const struct near__object *object;

    if (NEAR__LIKELY((uintptr_t)value & NEAR__VALUE_SLOT))
        return near__block_decoded(near__slot_block(near__value_address(value)));
    object = value != NULL ? near__value_object(value) : NULL;
    return object != NULL ? object->object : NULL;
}

static int64_t
left_ms(int64_t until, int64_t now)
{
    return until == NEAR_NEVER ? -1 : until <= now ? 0 : (until - now) / NEAR_MS;
}

void
near_value_get_info(const near_value *value, near_value_info *info)
{
    near_value_info   full = NEAR_VALUE_INFO_INIT;
    struct near__meta meta;
    int64_t           now;
    size_t            size;

    if (info == NULL)
        return;
    size = info->struct_size; /* a caller built against an older header has a shorter struct */
    if (size < sizeof(size) || size > sizeof(full))
        size = sizeof(full);
    if (value != NULL) {
        now = near__now(&near__clock_system);
        near__value_meta(value, now, &meta);
        full.size   = near__value_data(value).size;
        full.source = near__value_source(value);
        full.stale  = ((uintptr_t)value & NEAR__VALUE_STALE) != 0;
        full.age_ms = meta.born < 0 ? -1 : (now - meta.born) / NEAR_MS;
        full.ttl_ms = left_ms(meta.fresh_until, now);
    }
    full.struct_size = size;
    memcpy(info, &full, size);
}

near_value *
near_value_ref(near_value *value)
{
    if (value != NULL)
        near__value_ref(value);
    return value;
}

static __attribute__((noinline)) void
release_other(near_value *value)
{
    if (value != NULL)
        near__value_release(value);
}

void
near_value_release(near_value *value)
{
    struct near__hazard *slot = near__value_address(value);

    /* as near__value_release(), with what is rare in a function of its own; acquire: as there */
    if (NEAR__LIKELY((uintptr_t)value & NEAR__VALUE_SLOT) &&
        NEAR__LIKELY(atomic_load_explicit(&slot->more, memory_order_acquire) == 0))
        near__hazard_release(slot);
    else
        release_other(value);
}
