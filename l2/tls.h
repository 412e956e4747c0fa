/*
 * TLS by OpenSSL over a descriptor of ours (rules T1 - T3).  Used by l2/transport.c only; others have near__transport.
 *
 * A context holds what all connections of a client share: authorities, own certificate, what is checked.  It does not change once it
 * is made and may be used by many threads at once.  A near__tls is one connection; one thread at a time.  Without OpenSSL in the
 * build, making a context fails with NEAR_ERR_UNSUPPORTED, so no near__tls can exist.
 *
 * Nothing here blocks or raises a signal: what could not be done says which direction it waits for.
 */
#ifndef NEAR_L2_TLS_H
#define NEAR_L2_TLS_H

#include "base/base.h"

#include <sys/types.h>
#include <sys/uio.h>

struct near__tls_context;
struct near__tls;

/* Empty or NULL texts: not given. */
struct near__tls_options {
    const char *ca_file, *ca_path;    /* neither: the system's authorities */
    const char *cert_file, *key_file; /* key_file not given: the key is in cert_file */
    const char *server_name;          /* not given: the name that is connected to */
    bool        any_name;             /* a certificate for any name will do, if an authority has signed it */
};

/* NEAR_ERR_INVALID: a file cannot be read or used, and which; NEAR_ERR_UNSUPPORTED; NEAR_ERR_NOMEM. */
near_status near__tls_context_new(struct near__tls_context **context, const struct near__tls_options *options,
                                  near_error *error);
/* After its last connection.  NULL inside is fine. */
void near__tls_context_free(struct near__tls_context **context);

/* A connection over `fd`, which stays the caller's; `host` is the name or literal address that was connected to. */
near_status near__tls_new(struct near__tls **tls, struct near__tls_context *context, int fd, const char *host,
                          near_error *error);
/* No goodbye is sent: also for a forked child. */
void near__tls_free(struct near__tls **tls);

/* One step.  NEAR_OK: done.  NEAR_ERR_BUSY: wait for near__tls_events() and come again.  Else it failed: `error` has the reason. */
near_status near__tls_handshake(struct near__tls *tls, near_error *error);

/* As near__transport_send() and near__transport_receive().  Bytes that were taken are as good as sent: they leave by themselves, as
 * soon as the descriptor takes them and any call here is made. */
ssize_t near__tls_send(struct near__tls *tls, const struct iovec *pieces, size_t n);
ssize_t near__tls_receive(struct near__tls *tls, void *buffer, size_t size);
/* Bytes have been received already: receive() has something to give though the descriptor may have nothing. */
bool near__tls_pending(const struct near__tls *tls);
/* poll(2) events that the next step waits for. */
short near__tls_events(const struct near__tls *tls, bool sending);
/* Nothing to read, nothing left to send, and not closed by the peer. */
bool near__tls_quiet(struct near__tls *tls);
/* After the handshake, for a person: "TLSv1.3, TLS_AES_256_GCM_SHA384, certificate CN=cache.example, good for 89 days". */
void near__tls_describe(const struct near__tls *tls, char *out, size_t size);
/* Why it is broken, in words; NULL when errno says all. */
const char *near__tls_fault(const struct near__tls *tls);

#endif
