/* What `nearcache doctor` finds: one line a subject, as it is found or as JSON in the end. */
#ifndef NEAR_TOOLS_DOCTOR_H
#define NEAR_TOOLS_DOCTOR_H

#include "connect.h"

#include "base/clock.h"

/* The worst one is the exit status: FINE and NOTE 0, CHANGE 1, BAD 3. */
enum finding { FINE, NOTE, CHANGE, BAD };

struct doctor {
    struct connect connect;
    bool           json;
    size_t         said;
    enum finding   worst;
};

/* `advice`: what to do about it, or NULL. */
void found(struct doctor *doctor, enum finding finding, const char *subject, const char *advice,
           const char *format, ...) NEAR_PRINTF(5, 6);
/* The channel of the bus. */
/* By how much a server's clock, `theirs` in us since 1970, is ahead of ours, asked `before` and answered now, in us. */
void    doctor_clock(struct doctor *doctor, int64_t theirs, int64_t before);
int64_t doctor_wall_us(void);

void examine_redis(struct doctor *doctor);
void examine_memcached(struct doctor *doctor);

#endif
