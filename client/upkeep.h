/* What a client does for its caches now and then, on its scheduler: see upkeep.c. */
#ifndef NEAR_CLIENT_UPKEEP_H
#define NEAR_CLIENT_UPKEEP_H

#include "base/base.h"

struct near_client;

void near__upkeep_init(struct near_client *client);
/* A cache was opened.  Without memory for a thread its L1 goes on without upkeep: what expires leaves when room is needed. */
void near__upkeep_start(struct near_client *client);

#endif
