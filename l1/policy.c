#include "l1/policy.h"

#include <string.h>

const struct near__l1_policy *const near__l1_policies[] = { &near__l1_lru, NULL };

const struct near__l1_policy *
near__l1_policy_named(const char *name)
{
    if (name == NULL)
        return NULL;
    for (size_t i = 0; near__l1_policies[i] != NULL; i++)
        if (strcmp(near__l1_policies[i]->name, name) == 0)
            return near__l1_policies[i];
    return NULL;
}
