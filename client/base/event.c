/* See event.h.  The counter behind a descriptor says nothing but "raised": that it cannot be raised further (EAGAIN) is as good. */
#include "event.h"

#include <errno.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <unistd.h>

int
near__event_open(void)
{
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void
near__event_raise(int event)
{
    const uint64_t one = 1;

    while (event >= 0 && write(event, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void
near__event_drain(int event)
{
    uint64_t count;

    while (event >= 0 && read(event, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
}

void
near__event_close(int *event)
{
    if (*event >= 0)
        close(*event);
    *event = -1;
}
