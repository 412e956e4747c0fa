/* The list of policies.  Constant: no locks. */
#include "l1/policy.h"

#include <string.h>

const struct near__policy *const near__policies[] = {
    &near__adaptive, &near__lru, &near__lfu, &near__sieve, &near__s3fifo, &near__tinylfu, NULL
};

const struct near__policy *
near__policy_named(const char *name)
{
    if (name == NULL)
        return NULL;
    for (size_t i = 0; near__policies[i] != NULL; i++)
        if (strcmp(near__policies[i]->name, name) == 0)
            return near__policies[i];
    return NULL;
}
