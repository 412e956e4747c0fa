/*
 * Fuzz target: a configuration file, and every option's parser behind it, URIs first of all.
 *
 * Input: the text of a file.  It is loaded whole or not at all; a refusal says file, line and why; a client's settings are never made of a
 * file that was refused.  Each line is then tried as the URI that it may be: what is accepted can be shown without its password.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "base/uri.h"
#include "config.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

static bool
is_text(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

/* Some of each kind: nothing of a file that was refused is kept. */
static bool
is_default(const struct near__settings *got)
{
    static struct near__settings untouched;
    static bool                  made;
    near_config                 *config;

    if (!made) {
        config = near_config_new();
        made   = config != NULL && near__settings_resolve(&untouched, config, NULL) == NEAR_OK;
        near_config_free(config);
    }
    return made && got->l1_max_bytes == untouched.l1_max_bytes && got->ttl == untouched.ttl &&
           got->l1_policy == untouched.l1_policy && got->l2_pool_size == untouched.l2_pool_size &&
           strcmp(got->l2_uri, untouched.l2_uri) == 0 && strcmp(got->l2_user, untouched.l2_user) == 0;
}

static void
try_file(const uint8_t *data, size_t size)
{
    int          fd     = memfd_create("config", MFD_CLOEXEC);
    near_config *config = near_config_new();
    near_error   error  = { 0 };
    char         path[40];
    near_status  status;

    static struct near__settings got;

    check(fd >= 0 && config != NULL && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    status = near_config_load(config, path, &error);
    check(status == NEAR_OK || status == NEAR_ERR_INVALID || status == NEAR_ERR_UNSUPPORTED);
    check(status == NEAR_OK || (error.code == status && is_text(error.text, sizeof(error.text)) &&
                                strncmp(error.text, path, strlen(path)) == 0));
    if (status == NEAR_OK)
        (void)near__settings_resolve(&got, config,
                                     &error); /* options that contradict each other are refused here */
    else if (size % 16 == 0)                  /* it takes fifty times as long as all the rest */
        check(near__settings_resolve(&got, config, &error) == NEAR_OK && is_default(&got));
    near_config_free(config);
    close(fd);
}

static void
try_uri(const char *text)
{
    static struct near__uri place, *uri = &place;

    near_error error = { 0 };
    char       shown[64];

    if (near__uri_parse(uri, "l2.uri", text, &error) == NEAR_OK) {
        check(uri->address_count <= NEAR__URI_ADDRESSES && is_text(uri->password, sizeof(uri->password)));
        for (size_t i = 0; i < uri->address_count; i++)
            check(is_text(uri->addresses[i].host, sizeof(uri->addresses[i].host)) &&
                  uri->addresses[i].host[0] != '\0');
        memset(shown, 'x', sizeof(shown));
        near__uri_display(uri, shown, sizeof(shown));
        check(is_text(shown, sizeof(shown)));
        /* a short password may be part of a name, a long one is there by mistake only */
        check(strlen(uri->password) < 12 || strstr(uri->addresses[0].host, uri->password) != NULL ||
              strstr(uri->name, uri->password) != NULL || strstr(shown, uri->password) == NULL);
    } else {
        check(error.text[0] != '\0' && is_text(error.text, sizeof(error.text)));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);

    check(text != NULL);
    memcpy(text, data, size);
    text[size] = '\0';
    try_file(data, size);
    for (char *line = text, *end; line != NULL; line = end) {
        end = strchr(line, '\n');
        if (end != NULL)
            *end++ = '\0';
        try_uri(line);
    }
    free(text);
    return 0;
}
