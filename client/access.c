/*
 * Passwords come from one place only: the URI, a file or a variable.  They go into the parsed URI, which belongs to the client and is
 * wiped with it; keys for MACs, of a file or a variable, go into the cache's near__mac; buffers on the way are wiped here.  No lock: all
 * of this happens in the thread that opens the client.
 *
 * What can never happen: a password in a message, a file that everybody may read taken for a secret, an open that hangs on something
 * that is not a file.
 */
#include "access.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "l2/redis_sentinel.h"
#include "l2/tls.h"

/* ---- files that hold secrets */

/* An open descriptor of a regular file that others may not read, or -1. */
static int
open_secret(const char *option, const char *path, near_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO would wait for its writer */
    struct stat st;

    if (fd < 0) {
        near__fail(error, NEAR_ERR_INVALID, "%s = \"%.100s\": %s", option, path, near__errno_text(errno));
        return -1;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & (S_IROTH | S_IWOTH)) == 0)
        return fd;
    near__fail(
        error, NEAR_ERR_INVALID,
        "%s = \"%.100s\": accepts a file that is neither readable nor writable by everybody (chmod o-rw)",
        option, path);
    close(fd);
    return -1;
}

static near_status
check_secret(const char *option, const char *path, near_error *error)
{
    int fd = open_secret(option, path, error);

    if (fd < 0)
        return NEAR_ERR_INVALID;
    close(fd);
    return NEAR_OK;
}

/* ---- passwords */

/* Where one login comes from; texts of the settings, empty when not set. */
struct source {
    const char *file_option, *file;
    const char *env_option, *env;
    const char *user_option, *user;
};

static bool
is_set(const struct source *source)
{
    return source->file[0] != '\0' || source->env[0] != '\0' || source->user[0] != '\0';
}

static near_status
take_password(char *out, size_t size, const char *option, const char *text, size_t length, near_error *error)
{
    if (length == 0 || length >= size || memchr(text, '\0', length) != NULL)
        return near__fail(error, NEAR_ERR_INVALID, "%s: accepts a password of 1 .. %zu bytes; there are %zu",
                          option, size - 1, length);
    memcpy(out, text, length);
    out[length] = '\0';
    return NEAR_OK;
}

/* As much of the file as there is room for. */
static near_status
read_secret(char *text, size_t size, size_t *length, const char *option, const char *path, near_error *error)
{
    int         fd     = open_secret(option, path, error);
    ssize_t     n      = 0;
    near_status status = NEAR_OK;

    *length = 0;
    if (fd < 0)
        return NEAR_ERR_INVALID;
    do {
        n = read(fd, text + *length, size - *length);
        *length += n > 0 ? (size_t)n : 0;
    } while ((n > 0 && *length < size) || (n < 0 && errno == EINTR));
    if (n < 0)
        status =
            near__fail(error, NEAR_ERR_INVALID, "%s = \"%.100s\": %s", option, path, near__errno_text(errno));
    close(fd);
    return status;
}

static near_status
read_password(char *out, size_t size, const char *option, const char *path, near_error *error)
{
    char        text[1024];
    size_t      length;
    near_status status = read_secret(text, sizeof(text), &length, option, path, error);

    if (status == NEAR_OK) {
        const char *end = memchr(text, '\n', length);

        length = end != NULL ? (size_t)(end - text) : length;
        length -= length > 0 && text[length - 1] == '\r';
        status = take_password(out, size, option, text, length, error);
    }
    explicit_bzero(text, sizeof(text));
    return status;
}

static near_status
variable_password(char *out, size_t size, const char *option, const char *name, near_error *error)
{
    const char *text = secure_getenv(name);

    if (text == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.64s\": there is no such variable", option, name);
    return take_password(out, size, option, text, strlen(text), error);
}

/* `user` and `password` have the sizes of those of a URI.  Both stay as they are when nothing is set. */
static near_status
take_login(char *user, char *password, const struct source *source, near_error *error)
{
    const size_t size   = sizeof(((struct near__uri *)0)->password);
    near_status  status = NEAR_OK;

    if (!is_set(source))
        return NEAR_OK;
    if (source->file[0] != '\0' && source->env[0] != '\0')
        return near__fail(error, NEAR_ERR_INVALID, "%s and %s: only one of them can be set",
                          source->file_option, source->env_option);
    if (password[0] != '\0')
        return near__fail(error, NEAR_ERR_INVALID,
                          "%s: there is a password in the URI already; only one of them can be set",
                          source->file[0] != '\0'  ? source->file_option
                          : source->env[0] != '\0' ? source->env_option
                                                   : source->user_option);
    if (source->file[0] != '\0')
        status = read_password(password, size, source->file_option, source->file, error);
    else if (source->env[0] != '\0')
        status = variable_password(password, size, source->env_option, source->env, error);
    else
        return near__fail(error, NEAR_ERR_INVALID, "%s: a user without a password; set %s or %s",
                          source->user_option, source->file_option, source->env_option);
    if (status == NEAR_OK)
        snprintf(user, sizeof(((struct near__uri *)0)->user), "%.127s", source->user);
    return status;
}

/* ---- keys for MACs */

struct keys {
    uint8_t keys[NEAR__MAC_KEYS][NEAR__MAC_KEY_SIZE];
    size_t  n;
};

static bool
take_key(struct keys *keys, const char *word, size_t length)
{
    if (keys->n == NEAR__MAC_KEYS || length != 2 * NEAR__MAC_KEY_SIZE)
        return false;
    for (size_t i = 0; i < length; i += 2) {
        int high = near__hex_digit(word[i]), low = near__hex_digit(word[i + 1]);

        if (high < 0 || low < 0)
            return false;
        keys->keys[keys->n][i / 2] = (uint8_t)(high << 4 | low);
    }
    keys->n++;
    return true;
}

/* The words of the text, and nothing else; at least one. */
static bool
take_keys(struct keys *keys, const char *text, size_t length)
{
    size_t at = 0, end;

    for (;;) {
        while (at < length && strchr(" \t\r\n", text[at]) != NULL && text[at] != '\0')
            at++;
        if (at == length)
            return keys->n > 0;
        for (end = at; end < length && (text[end] == '\0' || strchr(" \t\r\n", text[end]) == NULL);)
            end++;
        if (!take_key(keys, text + at, end - at))
            return false;
        at = end;
    }
}

static near_status
make_mac(struct near__mac **mac, const char *option, const char *text, size_t length, near_error *error)
{
    struct keys keys   = { .n = 0 };
    near_status status = NEAR_ERR_INVALID;

    if (!take_keys(&keys, text, length))
        near__fail(error, status,
                   "%s: accepts one or two keys of 64 hexadecimal digits (openssl rand -hex 32), with "
                   "blanks or new lines between",
                   option);
    else
        status = near__mac_new(mac, keys.keys, keys.n);
    explicit_bzero(&keys, sizeof(keys));
    if (status == NEAR_ERR_UNSUPPORTED)
        return near__fail(error, status, "%s: this build has no MAC; it takes OpenSSL", option);
    return status == NEAR_ERR_NOMEM ? near__fail(error, status, "%s: out of memory", option) : status;
}

near_status
near__access_mac(struct near__mac **mac, const struct near__settings *settings, near_error *error)
{
    const char *file = settings->l2_mac_key_file, *env = settings->l2_mac_key_env, *value;
    char        text[1024]; /* far more than two keys are: what fills it has not been read to its end */
    size_t      length;
    near_status status;

    *mac = NULL;
    if (file[0] != '\0' && env[0] != '\0')
        return near__fail(error, NEAR_ERR_INVALID,
                          "l2.mac_key_file and l2.mac_key_env: only one of them can be set");
    if (file[0] != '\0') {
        status = read_secret(text, sizeof(text), &length, "l2.mac_key_file", file, error);
        if (status == NEAR_OK)
            status = make_mac(mac, "l2.mac_key_file", text, length < sizeof(text) ? length : 0, error);
        explicit_bzero(text, sizeof(text));
        return status;
    }
    if (env[0] == '\0')
        return NEAR_OK;
    value = secure_getenv(env);
    if (value == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "l2.mac_key_env = \"%.64s\": there is no such variable",
                          env);
    return make_mac(mac, "l2.mac_key_env", value, strlen(value), error);
}

/* ---- who could read along */

/* Certainly this machine, by its looks; what a name turns out to be is looked at again after connecting. */
static bool
is_here(const struct near__address *address)
{
    struct in_addr  v4;
    struct in6_addr v6;

    if (address->port == 0 || strcmp(address->host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, address->host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == IN_LOOPBACKNET;
    return inet_pton(AF_INET6, address->host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

/* Of sentinels the URI's password is not told, and who gets it is not known yet: that one is decided after connecting. */
static near_status
check_plaintext(const struct near__settings *settings, const struct near__uri *uri, const char *option,
                near_error *error)
{
    char name[300];

    if (uri->tls || uri->password[0] == '\0' || uri->layout == NEAR__LAYOUT_SENTINEL ||
        settings->l2_allow_plaintext_auth == NEAR__YES)
        return NEAR_OK;
    for (size_t i = 0; i < uri->address_count; i++) {
        if (is_here(&uri->addresses[i]))
            continue;
        near__address_display(&uri->addresses[i], name, sizeof(name));
        return near__fail(error, NEAR_ERR_INVALID,
                          "%s: the password would be readable on its way to %.64s; accepts rediss: (TLS), or "
                          "l2.allow_plaintext_auth = yes",
                          option, name);
    }
    return NEAR_OK;
}

/* ---- TLS and sentinels */

static near_status
need_tls(struct near__client_access *access, const struct near__settings *s, near_error *error)
{
    const char                    *key     = s->tls_key_file[0] != '\0' ? s->tls_key_file : s->tls_cert_file;
    const struct near__tls_options options = {
        .ca_file     = s->tls_ca_file,
        .ca_path     = s->tls_ca_path,
        .cert_file   = s->tls_cert_file,
        .key_file    = s->tls_key_file,
        .server_name = s->tls_server_name,
        .any_name    = s->tls_verify == NEAR__VERIFY_CA,
    };
    near_status status = NEAR_OK;

    if (access->tls != NULL)
        return NEAR_OK;
    if (key[0] != '\0')
        status = check_secret(key == s->tls_key_file ? "tls.key_file" : "tls.cert_file", key, error);
    return status == NEAR_OK ? near__tls_context_new(&access->tls, &options, error) : status;
}

static near_status
need_sentinels(struct near__access *access, const struct near__settings *s, const struct near__uri *uri,
               near_error *error)
{
    const struct source source                  = { "sentinel.password_file", s->sentinel_password_file,
                                                    "sentinel.password_env",  s->sentinel_password_env,
                                                    "sentinel.user",          s->sentinel_user };
    char                user[sizeof(uri->user)] = "", password[sizeof(uri->password)] = "";
    near_status         status = take_login(user, password, &source, error);

    if (status == NEAR_OK)
        status = near__sentinels_new(&access->sentinels, uri, user, password, error);
    explicit_bzero(password, sizeof(password));
    return status;
}

static near_status
open_access(struct near__client_access *all, struct near__access *access,
            const struct near__settings *settings, const struct near__uri *uri, near_error *error)
{
    near_status status = uri->tls ? need_tls(all, settings, error) : NEAR_OK;

    access->tls            = all->tls;
    access->plaintext_auth = settings->l2_allow_plaintext_auth == NEAR__YES;
    if (status == NEAR_OK && uri->layout == NEAR__LAYOUT_SENTINEL && access->sentinels == NULL)
        status = need_sentinels(access, settings, uri, error);
    return status;
}

/* ---- for the client */

near_status
near__access_l2(struct near__client_access *access, const struct near__settings *settings,
                struct near__uri *uri, near_error *error)
{
    const struct source source = { "l2.password_file", settings->l2_password_file,
                                   "l2.password_env",  settings->l2_password_env,
                                   "l2.user",          settings->l2_user };
    near_status         status = NEAR_OK;

    if (uri->kind != NEAR__URI_REDIS)
        return NEAR_OK;
    status = take_login(uri->user, uri->password, &source, error);
    if (status == NEAR_OK)
        status = check_plaintext(settings, uri, "l2.uri", error);
    return status == NEAR_OK ? open_access(access, &access->l2, settings, uri, error) : status;
}

near_status
near__access_bus(struct near__client_access *access, const struct near__settings *settings,
                 struct near__uri *uri, near_error *error)
{
    const struct source source    = { "coherence.password_file", settings->coherence_password_file,
                                      "coherence.password_env",  settings->coherence_password_env,
                                      "coherence.user",          settings->coherence_user };
    bool                automatic = strcmp(settings->coherence_uri, "auto") == 0;
    near_status         status    = NEAR_OK;

    if (uri->kind != NEAR__URI_REDIS)
        return NEAR_OK;
    if (automatic && is_set(&source)) /* a login of its own at L2's server */
        uri->user[0] = uri->password[0] = '\0';
    if (automatic) /* what one of the two learns of the master is the other's, too */
        access->bus.sentinels = access->l2.sentinels;
    status = take_login(uri->user, uri->password, &source, error);
    if (status == NEAR_OK)
        status = check_plaintext(settings, uri, "coherence.uri", error);
    return status == NEAR_OK ? open_access(access, &access->bus, settings, uri, error) : status;
}

void
near__access_free(struct near__client_access *access)
{
    if (access->bus.sentinels == access->l2.sentinels)
        access->bus.sentinels = NULL;
    near__sentinels_free(&access->l2.sentinels);
    near__sentinels_free(&access->bus.sentinels);
    near__tls_context_free(&access->tls);
    *access = (struct near__client_access){ 0 };
}
