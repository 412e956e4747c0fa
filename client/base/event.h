/*
 * Events that threads in poll() can be woken by: eventfds.  An event is raised or not; it stays raised until it is drained, so everybody
 * who polls it for POLLIN sees it.
 *
 * Whoever opened it owns the descriptor.  A forked child shares the event with its parent: it closes its own descriptor and raises
 * nothing.  -1 is no event: raising, draining and closing it does nothing, and poll() passes it over.
 */
#ifndef NEAR_BASE_EVENT_H
#define NEAR_BASE_EVENT_H

/* Not raised.  -1: no descriptor, or no memory; errno says. */
int  near__event_open(void);
void near__event_raise(int event);
void near__event_drain(int event);
/* Leaves -1 behind. */
void near__event_close(int *event);

#endif
