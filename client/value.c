/* The application's handle on a value: see l1/entry.h for what it is made of. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "l1/entry.h"

void
near_free(void *memory)
{
    free(memory);
}

near_bytes
near_value_bytes(const near_value *value)
{
    const struct near__entry *entry;

    if (value == NULL)
        return (near_bytes){ NULL, 0 };
    entry = near__value_entry(value);
    return (near_bytes){ entry->value, entry->value_size };
}

void
near_value_get_info(const near_value *value, near_value_info *info)
{
    const struct near__entry *entry;
    near_value_info           full = NEAR_VALUE_INFO_INIT;
    int64_t                   now;
    size_t                    size;

    if (info == NULL)
        return;
    size = info->struct_size; /* a caller built against an older header has a shorter struct */
    if (size < sizeof(size) || size > sizeof(full))
        size = sizeof(full);
    if (value != NULL) {
        entry       = near__value_entry(value);
        now         = near__now(&near__clock_system);
        full.size   = entry->value_size;
        full.source = (near_source)((uintptr_t)value & NEAR__VALUE_SOURCE);
        full.stale  = ((uintptr_t)value & NEAR__VALUE_STALE) != 0;
        full.age_ms = (now - entry->born) / NEAR_MS;
        full.ttl_ms = entry->fresh_until == NEAR_NEVER ? -1
                      : entry->fresh_until <= now      ? 0
                                                       : (entry->fresh_until - now) / NEAR_MS;
    }
    full.struct_size = size;
    memcpy(info, &full, size);
}

near_value *
near_value_ref(near_value *value)
{
    if (value != NULL)
        near__entry_ref(near__value_entry(value));
    return value;
}

void
near_value_release(near_value *value)
{
    struct near__entry *entry;

    if (value == NULL)
        return;
    entry = near__value_entry(value);
    near__entry_release(&entry);
}
