/*
 * Static probes for perf, bpftrace and SystemTap (--enable-usdt): one no-op instruction each, and a note in the ELF file that says where
 * it is and where its arguments lie.  Provider `nearcache`.  A hit in L1 has none.  The probes, and nothing else, are the interface:
 *
 *     miss(cache, hash, size)            L1 could not answer; the name of the cache, the key's hash and size
 *     load__start(cache, keys, id)       a loader is called; `id` is the same at its end
 *     load__end(cache, keys, id, ns)     all its keys are answered, or given up
 *     invalidation(cache, hash, source)  another instance's message, or the server, said so; source: enum near__last_source
 *     gate__closed(bus)                  the serve gate was closed by hand: what was heard proves nothing
 *     gate__opened(bus, ns)              it is open again, after so long (it also ends by itself, when nothing is heard)
 *     flush(client)                      all of L1 is distrusted
 *
 * Keys are never shown.  Names are C strings.
 */
#ifndef NEAR_CLIENT_BASE_PROBE_H
#define NEAR_CLIENT_BASE_PROBE_H

#ifdef NEAR_HAVE_USDT
#include <sys/sdt.h>
#define NEAR__PROBE1(name, a)          DTRACE_PROBE1(nearcache, name, a)
#define NEAR__PROBE2(name, a, b)       DTRACE_PROBE2(nearcache, name, a, b)
#define NEAR__PROBE3(name, a, b, c)    DTRACE_PROBE3(nearcache, name, a, b, c)
#define NEAR__PROBE4(name, a, b, c, d) DTRACE_PROBE4(nearcache, name, a, b, c, d)
#else
#define NEAR__PROBE1(name, a)          ((void)(a))
#define NEAR__PROBE2(name, a, b)       ((void)(a), (void)(b))
#define NEAR__PROBE3(name, a, b, c)    ((void)(a), (void)(b), (void)(c))
#define NEAR__PROBE4(name, a, b, c, d) ((void)(a), (void)(b), (void)(c), (void)(d))
#endif

#endif
