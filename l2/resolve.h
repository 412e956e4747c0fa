/*
 * Names into addresses, by a deadline.  getaddrinfo(3) cannot be bounded or called off, so it runs in threads of its own and callers
 * wait no longer than they want to (rule H9).
 *
 * One for the whole process: names belong to it, not to a client.  At most NEAR__RESOLVE_THREADS threads; each ends when it finds
 * nothing more to look up, so there are none while nobody dials.  A lookup that nobody waits for any more goes on until the system's
 * resolver answers: closing a client does not wait for it, and its thread is the only thing that may outlive the client.
 */
#ifndef NEAR_L2_RESOLVE_H
#define NEAR_L2_RESOLVE_H

#include "base/clock.h"
#include "base/uri.h"

#include <sys/socket.h>

#define NEAR__RESOLVE_THREADS   8
#define NEAR__RESOLVE_ADDRESSES 16 /* of one name; more are left out */

struct near__resolved {
    size_t n;
    struct {
        struct sockaddr_storage address;
        socklen_t               size;
    } at[NEAR__RESOLVE_ADDRESSES];
};

/*
 * The addresses of `address`, with its port.  Numeric ones are read without asking anybody.  A name is asked for anew at every call but
 * for the first moment after an answer, by one lookup for all who ask at the same time; where the resolver is slow or in trouble the
 * last good answer is given, where it says that there is no such name it is not.  `cancel_fd` (-1: none) readable: NEAR_ERR_CLOSED.
 * NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE, NEAR_ERR_NOMEM; `error` has the reason.
 */
near_status near__resolve(const struct near__address *address, struct near__resolved *found, int cancel_fd,
                          const struct near__clock *clock, int64_t deadline, near_error *error);

/* For tests: whom to ask instead of getaddrinfo() (0 or one of its EAI_ codes; NULL: it), and how long an answer is not asked for again
 * (below 0: as usual).  Forgets all answers. */
typedef int (*near__resolve_fn)(const char *host, struct near__resolved *found);
void   near__resolve_test(near__resolve_fn fn, int64_t fresh);
size_t near__resolve_threads(void);

#endif
