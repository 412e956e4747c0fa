/*
 * TLS over a non-blocking descriptor.
 *
 *     pieces -> stage -> SSL_write -> send(MSG_NOSIGNAL)        recv -> SSL_read -> buffer
 *
 * OpenSSL reaches the socket through a BIO of ours, because its own writes with write(2) and so raises SIGPIPE (rule T1).  A record
 * that the socket did not take whole must be offered to OpenSSL again with the very same bytes; callers may change their minds about
 * what they have not sent, so what is offered is first copied into `stage`, counts as sent from then on, and leaves before anything
 * else does.
 *
 * The owner of the near__tls is the one thread that may be in here.  What can never happen: a certificate that is not checked (there
 * is no setting for it), a question on the terminal for a passphrase, an error of an earlier call taken for this one's (the queue is
 * emptied first, rule T3), a call into OpenSSL after it has failed fatally (`broken` is looked at first).
 */
#include "l2/tls.h"

#include <stdlib.h>

#ifdef HAVE_OPENSSL

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#if OPENSSL_VERSION_NUMBER < 0x30000000L
#define PEER_CERTIFICATE SSL_get_peer_certificate
#else
#define PEER_CERTIFICATE SSL_get1_peer_certificate
#endif

#define RECORD 16384 /* the most bytes of one TLS record: larger pieces would be cut there anyway */
#define READ_SIZE                                                                                            \
    (64 * 1024) /* ciphertext per recv(): four records, as large as what the codecs read at a time */
#define NAME_SIZE 256

struct near__tls_context {
    SSL_CTX    *ssl;
    BIO_METHOD *method;
    char        name[NAME_SIZE]; /* empty: the host's */
    bool        any_name;
};

struct near__tls {
    SSL   *ssl;
    int    fd;
    int    broken;           /* errno of the fault that ended it, 0: none */
    int    socket_code;      /* errno of the socket's last refusal */
    bool   ended;            /* the peer has closed the socket */
    bool   read_needs_room;  /* what receive() and the handshake wait for is room to send */
    bool   write_needs_data; /* what send() waits for is something to receive */
    bool   more;             /* the last receive() was full, and there is more in OpenSSL's buffers */
    char   why[160];         /* empty: errno says all */
    size_t staged;           /* bytes in `stage` that OpenSSL has not let go */
    char   stage[RECORD];
};

/* ------------------------------------------------------------------------------------------------- texts */

/* The newest of OpenSSL's errors of this call. */
static const char *
newest_reason(void)
{
    unsigned long code = ERR_peek_last_error();
    const char   *text = code != 0 ? ERR_reason_error_string(code) : NULL;

    return text != NULL ? text : "no reason given";
}

static near_status
refuse_file(near_error *error, const char *option, const char *path)
{
    return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.100s\": %s", option, path, newest_reason());
}

static bool
given(const char *text)
{
    return text != NULL && text[0] != '\0';
}

/* ------------------------------------------------------------------------------------------- the socket */

static int
bio_write(BIO *bio, const char *data, int size)
{
    struct near__tls *tls = BIO_get_data(bio);
    ssize_t           n;

    BIO_clear_retry_flags(bio);
    do
        n = send(tls->fd, data, (size_t)size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_write(bio);
    else if (n < 0)
        tls->socket_code = errno;
    return (int)n;
}

static int
bio_read(BIO *bio, char *data, int size)
{
    struct near__tls *tls = BIO_get_data(bio);
    ssize_t           n;

    BIO_clear_retry_flags(bio);
    do
        n = recv(tls->fd, data, (size_t)size, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        BIO_set_retry_read(bio);
    else if (n < 0)
        tls->socket_code = errno;
    tls->ended = tls->ended || n == 0;
    return (int)n;
}

static long
bio_control(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}

static int
bio_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static BIO_METHOD *
new_method(void)
{
    int         index  = BIO_get_new_index();
    BIO_METHOD *method = index < 0 ? NULL : BIO_meth_new(index | BIO_TYPE_SOURCE_SINK, "nearcache");

    if (method != NULL && BIO_meth_set_write(method, bio_write) && BIO_meth_set_read(method, bio_read) &&
        BIO_meth_set_ctrl(method, bio_control) && BIO_meth_set_create(method, bio_create))
        return method;
    BIO_meth_free(method);
    return NULL;
}

/* ----------------------------------------------------------------------------------------------- contexts */

/* OpenSSL's own would ask on the terminal. */
static int
no_passphrase(char *out, int size, int writing, void *ctx)
{
    (void)out, (void)size, (void)writing, (void)ctx;
    return 0;
}

static near_status
load_authorities(SSL_CTX *ssl, const struct near__tls_options *options, near_error *error)
{
    struct stat st;

    ERR_clear_error();
    if (given(options->ca_file) && SSL_CTX_load_verify_locations(ssl, options->ca_file, NULL) != 1)
        return refuse_file(error, "tls.ca_file", options->ca_file);
    if (given(options->ca_path) && (stat(options->ca_path, &st) != 0 || !S_ISDIR(st.st_mode)))
        return near__fail(error, NEAR_ERR_INVALID, "tls.ca_path = \"%.100s\": no such directory",
                          options->ca_path);
    if (given(options->ca_path) && SSL_CTX_load_verify_locations(ssl, NULL, options->ca_path) != 1)
        return refuse_file(error, "tls.ca_path", options->ca_path);
    if (!given(options->ca_file) && !given(options->ca_path) && SSL_CTX_set_default_verify_paths(ssl) != 1)
        return near__fail(error, NEAR_ERR_INVALID, "tls.ca_file: the system's authorities: %s",
                          newest_reason());
    return NEAR_OK;
}

static near_status
load_own(SSL_CTX *ssl, const struct near__tls_options *options, near_error *error)
{
    const char *key = given(options->key_file) ? options->key_file : options->cert_file;

    if (!given(options->cert_file))
        return !given(options->key_file)
                   ? NEAR_OK
                   : near__fail(error, NEAR_ERR_INVALID,
                                "tls.key_file without tls.cert_file: a key alone is no use");
    ERR_clear_error();
    if (SSL_CTX_use_certificate_chain_file(ssl, options->cert_file) != 1)
        return refuse_file(error, "tls.cert_file", options->cert_file);
    ERR_clear_error();
    if (SSL_CTX_use_PrivateKey_file(ssl, key, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(ssl) != 1)
        return refuse_file(error, given(options->key_file) ? "tls.key_file" : "tls.cert_file", key);
    return NEAR_OK;
}

static SSL_CTX *
new_ssl_context(void)
{
    SSL_CTX *ssl = SSL_CTX_new(TLS_client_method());

    if (ssl == NULL || SSL_CTX_set_min_proto_version(ssl, TLS1_2_VERSION) != 1) { /* rule T2 */
        SSL_CTX_free(ssl);
        return NULL;
    }
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER); /* rule T3 */
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_default_passwd_cb(ssl, no_passphrase);
    SSL_CTX_set_read_ahead(ssl, 1);
    SSL_CTX_set_default_read_buffer_len(ssl, READ_SIZE);
    return ssl;
}

near_status
near__tls_context_new(struct near__tls_context **out, const struct near__tls_options *options,
                      near_error *error)
{
    struct near__tls_context *context = calloc(1, sizeof(*context));
    near_status               status;

    *out = NULL;
    if (context == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "TLS: out of memory");
    ERR_clear_error();
    context->ssl      = new_ssl_context();
    context->method   = new_method();
    context->any_name = options->any_name;
    if (given(options->server_name))
        snprintf(context->name, sizeof(context->name), "%s", options->server_name);
    if (context->ssl == NULL || context->method == NULL)
        status = near__fail(error, NEAR_ERR_NOMEM, "TLS: OpenSSL cannot start: %s", newest_reason());
    else
        status = load_authorities(context->ssl, options, error);
    if (status == NEAR_OK)
        status = load_own(context->ssl, options, error);
    ERR_clear_error();
    if (status != NEAR_OK)
        near__tls_context_free(&context);
    *out = context;
    return status;
}

void
near__tls_context_free(struct near__tls_context **context)
{
    struct near__tls_context *c = *context;

    *context = NULL;
    if (c == NULL)
        return;
    SSL_CTX_free(c->ssl);
    BIO_meth_free(c->method);
    free(c);
}

/* -------------------------------------------------------------------------------------------- connections */

static bool
is_literal(const char *name)
{
    struct in6_addr address;

    return inet_pton(AF_INET, name, &address) == 1 || inet_pton(AF_INET6, name, &address) == 1;
}

/* The name as certificates have it: without an IPv6 address's zone, without the root's dot. */
static void
plain_name(char *out, const char *name)
{
    size_t n = strcspn(name, "%");

    if (n >= NAME_SIZE)
        n = NAME_SIZE - 1;
    memcpy(out, name, n);
    if (n > 1 && out[n - 1] == '.')
        n--;
    out[n] = '\0';
}

/* Whom we expect (rule T2).  SNI carries names only, and is said even when any name will do. */
static bool
expect_name(SSL *ssl, const struct near__tls_context *context, const char *host)
{
    char name[NAME_SIZE];

    plain_name(name, context->name[0] != '\0' ? context->name : host);
    if (is_literal(name))
        return context->any_name || X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set_tlsext_host_name(ssl, name) == 1 && (context->any_name || SSL_set1_host(ssl, name) == 1);
}

near_status
near__tls_new(struct near__tls **out, struct near__tls_context *context, int fd, const char *host,
              near_error *error)
{
    struct near__tls *tls = malloc(sizeof(*tls));
    BIO              *bio;

    *out = NULL;
    ERR_clear_error();
    if (tls == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "TLS: out of memory");
    memset(tls, 0, offsetof(struct near__tls, stage));
    tls->fd  = fd;
    tls->ssl = SSL_new(context->ssl);
    bio      = tls->ssl != NULL ? BIO_new(context->method) : NULL;
    if (bio == NULL || !expect_name(tls->ssl, context, host)) {
        near__fail(error, NEAR_ERR_NOMEM, "TLS: no connection could be set up: %s", newest_reason());
        BIO_free(bio);
        near__tls_free(&tls);
        ERR_clear_error();
        return NEAR_ERR_NOMEM;
    }
    BIO_set_data(bio, tls);
    SSL_set_bio(tls->ssl, bio, bio);
    SSL_set_connect_state(tls->ssl);
    *out = tls;
    return NEAR_OK;
}

void
near__tls_free(struct near__tls **tls)
{
    struct near__tls *t = *tls;

    *tls = NULL;
    if (t == NULL)
        return;
    SSL_free(t->ssl);
    free(t);
}

/* ------------------------------------------------------------------------------------------------- faults */

/* A call into OpenSSL said `result`, which is no success and no wait: the end of this connection. */
static void
break_down(struct near__tls *tls, int result)
{
    long verdict = SSL_get_verify_result(tls->ssl);

    if (tls->socket_code != 0)
        tls->broken = tls->socket_code;
    else if (result == SSL_ERROR_ZERO_RETURN || tls->ended)
        tls->broken = ECONNRESET;
    else
        tls->broken = EPROTO;
    if (tls->broken == EPROTO && verdict != X509_V_OK)
        snprintf(tls->why, sizeof(tls->why), "the server's certificate is refused: %s",
                 X509_verify_cert_error_string(verdict));
    else if (tls->broken == EPROTO)
        snprintf(tls->why, sizeof(tls->why), "TLS: %s", newest_reason());
    ERR_clear_error();
}

const char *
near__tls_fault(const struct near__tls *tls)
{
    return tls->why[0] != '\0' ? tls->why : NULL;
}

void
near__tls_describe(const struct near__tls *tls, char *out, size_t size)
{
    X509 *peer         = PEER_CERTIFICATE(tls->ssl);
    char  subject[160] = "";
    int   days = 0, seconds = 0;

    if (peer != NULL) {
        X509_NAME_oneline(X509_get_subject_name(peer), subject, sizeof(subject));
        ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(peer));
    }
    for (char *at = subject; *at != '\0'; at++) /* a certificate's words may hold anything */
        *at = *at >= ' ' && *at < 0x7F ? *at : '?';
    snprintf(out, size, "%s, %s, certificate %s, good for %d days", SSL_get_version(tls->ssl),
             SSL_get_cipher_name(tls->ssl), subject, days);
    X509_free(peer);
}

/* ---------------------------------------------------------------------------------------------- handshake */

static near_status
handshake_failed(struct near__tls *tls, int result, near_error *error)
{
    bool stranger = ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_WRONG_VERSION_NUMBER;

    break_down(tls, result);
    if (tls->why[0] == '\0')
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "TLS handshake: the server hung up: %s",
                          near__errno_text(tls->broken));
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "TLS handshake: %s%s", tls->why,
                      stranger ? " (does the server speak TLS at this port?)" : "");
}

near_status
near__tls_handshake(struct near__tls *tls, near_error *error)
{
    int rc, result;

    if (tls->broken != 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "TLS handshake: failed before");
    ERR_clear_error();
    rc = SSL_do_handshake(tls->ssl);
    if (rc == 1) {
        tls->read_needs_room = false;
        tls->more            = SSL_has_pending(tls->ssl) == 1;
        return NEAR_OK;
    }
    result               = SSL_get_error(tls->ssl, rc);
    tls->read_needs_room = result == SSL_ERROR_WANT_WRITE;
    if (result == SSL_ERROR_WANT_READ || result == SSL_ERROR_WANT_WRITE)
        return NEAR_ERR_BUSY;
    return handshake_failed(tls, result, error);
}

/* -------------------------------------------------------------------------------------------------- bytes */

static ssize_t
broken(const struct near__tls *tls)
{
    errno = tls->broken;
    return -1;
}

/* Sending failed, for the peer has gone: it may have said why before. */
static void
hear_last_words(struct near__tls *tls)
{
    char   byte;
    size_t n  = 0;
    int    rc = 1;

    for (int records = 0; rc == 1 && records < 64; records++) {
        ERR_clear_error();
        rc = SSL_read_ex(tls->ssl, &byte, 1, &n);
    }
    if (rc != 1 && SSL_get_error(tls->ssl, rc) == SSL_ERROR_SSL && !tls->ended)
        snprintf(tls->why, sizeof(tls->why), "TLS: %s", newest_reason());
    ERR_clear_error();
}

/* What is staged goes out, as far as the socket takes it.  False: broken. */
static bool
flush(struct near__tls *tls)
{
    while (tls->staged > 0) {
        size_t n = 0;
        int    rc, result;

        ERR_clear_error();
        rc = SSL_write_ex(tls->ssl, tls->stage, tls->staged, &n);
        if (rc == 1) {
            tls->write_needs_data = false;
            tls->staged -= n;
            memmove(tls->stage, tls->stage + n, tls->staged);
            continue;
        }
        result                = SSL_get_error(tls->ssl, rc);
        tls->write_needs_data = result == SSL_ERROR_WANT_READ;
        if (result == SSL_ERROR_WANT_WRITE || result == SSL_ERROR_WANT_READ)
            return true;
        break_down(tls, result);
        hear_last_words(tls);
        return false;
    }
    return true;
}

/* Where a caller's pieces have been copied up to. */
struct cursor {
    const struct iovec *pieces;
    size_t              n, offset; /* pieces that are left, bytes of the first that are not */
};

static size_t
fill_stage(struct near__tls *tls, struct cursor *at)
{
    while (at->n > 0 && tls->staged < RECORD) {
        size_t left = at->pieces->iov_len - at->offset, room = RECORD - tls->staged;
        size_t part = left < room ? left : room;

        if (part > 0)
            memcpy(tls->stage + tls->staged, (const char *)at->pieces->iov_base + at->offset, part);
        tls->staged += part;
        at->offset += part;
        if (at->offset == at->pieces->iov_len) {
            at->pieces++;
            at->n--;
            at->offset = 0;
        }
    }
    return tls->staged;
}

ssize_t
near__tls_send(struct near__tls *tls, const struct iovec *pieces, size_t n)
{
    struct cursor at   = { pieces, n, 0 };
    size_t        sent = 0;

    if (tls->broken != 0 || !flush(tls))
        return broken(tls);
    while (tls->staged == 0 && at.n > 0) {
        sent += fill_stage(tls, &at);
        if (!flush(tls))
            break; /* what is in a record counts as sent; the fault is told at the next call */
    }
    return (ssize_t)sent;
}

/* One record at the most.  1: n bytes; 0: nothing now; -1: broken. */
static int
receive_one(struct near__tls *tls, char *buffer, size_t size, size_t *n)
{
    int rc, result;

    ERR_clear_error();
    rc                   = SSL_read_ex(tls->ssl, buffer, size, n);
    tls->read_needs_room = false;
    if (rc == 1)
        return 1;
    result = SSL_get_error(tls->ssl, rc);
    if (result == SSL_ERROR_WANT_READ)
        return 0;
    tls->read_needs_room = result == SSL_ERROR_WANT_WRITE;
    if (tls->read_needs_room)
        return 0;
    break_down(tls, result);
    return -1;
}

ssize_t
near__tls_receive(struct near__tls *tls, void *buffer, size_t size)
{
    size_t got = 0;
    int    rc  = 1;

    if (tls->broken != 0 || !flush(tls))
        return broken(tls);
    do {
        size_t n = 0;

        rc = receive_one(tls, (char *)buffer + got, size - got, &n);
        got += n;
        tls->more = rc == 1 && SSL_has_pending(tls->ssl) == 1;
    } while (tls->more && got < size);
    if (rc < 0 && got == 0)
        return broken(tls);
    tls->more = tls->more || rc < 0; /* the fault is told at the next call: no poll() would bring it */
    return (ssize_t)got;
}

bool
near__tls_pending(const struct near__tls *tls)
{
    return tls->more;
}

short
near__tls_events(const struct near__tls *tls, bool sending)
{
    if (tls->read_needs_room) /* what can be read could not be dealt with: poll() would return at once for ever */
        return POLLOUT;
    return (sending || tls->staged > 0) && !tls->write_needs_data ? POLLIN | POLLOUT : POLLIN;
}

/* A server may send records that are not for us to read (session tickets): only OpenSSL can tell. */
bool
near__tls_quiet(struct near__tls *tls)
{
    char   byte;
    size_t n = 0;
    int    rc;

    if (tls->broken != 0 || tls->staged > 0 || tls->more)
        return false;
    if (recv(tls->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN && !SSL_has_pending(tls->ssl))
        return true;
    ERR_clear_error();
    rc = SSL_peek_ex(tls->ssl, &byte, 1, &n);
    return rc != 1 && SSL_get_error(tls->ssl, rc) == SSL_ERROR_WANT_READ;
}

#else /* without OpenSSL: no context, so nothing else can be reached */

near_status
near__tls_context_new(struct near__tls_context **context, const struct near__tls_options *options,
                      near_error *error)
{
    (void)options;
    *context = NULL;
    return near__fail(error, NEAR_ERR_UNSUPPORTED,
                      "TLS: this library was built without OpenSSL, so rediss: URIs cannot be used");
}

void
near__tls_context_free(struct near__tls_context **context)
{
    *context = NULL;
}

near_status
near__tls_new(struct near__tls **tls, struct near__tls_context *context, int fd, const char *host,
              near_error *error)
{
    (void)context, (void)fd, (void)host;
    *tls = NULL;
    return near__fail(error, NEAR_ERR_UNSUPPORTED, "TLS: this library was built without OpenSSL");
}

void
near__tls_free(struct near__tls **tls)
{
    *tls = NULL;
}

near_status
near__tls_handshake(struct near__tls *tls, near_error *error)
{
    (void)tls;
    return near__fail(error, NEAR_ERR_UNSUPPORTED, "TLS: this library was built without OpenSSL");
}

ssize_t
near__tls_send(struct near__tls *tls, const struct iovec *pieces, size_t n)
{
    (void)tls, (void)pieces, (void)n;
    return -1;
}

ssize_t
near__tls_receive(struct near__tls *tls, void *buffer, size_t size)
{
    (void)tls, (void)buffer, (void)size;
    return -1;
}

bool
near__tls_pending(const struct near__tls *tls)
{
    (void)tls;
    return false;
}

short
near__tls_events(const struct near__tls *tls, bool sending)
{
    (void)tls, (void)sending;
    return 0;
}

bool
near__tls_quiet(struct near__tls *tls)
{
    (void)tls;
    return false;
}

void
near__tls_describe(const struct near__tls *tls, char *out, size_t size)
{
    (void)tls;
    if (size > 0)
        *out = '\0';
}

const char *
near__tls_fault(const struct near__tls *tls)
{
    (void)tls;
    return NULL;
}

#endif
