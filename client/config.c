/*
 * Configuration: texts in, typed values out, by the table in config.h.
 *
 * A near_config is the texts that were set, one slot per option, each checked when it was set; it belongs to one thread at a time.
 * Nothing here knows what an option is for, except check_together().
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/uri.h"
#include "dictionaries.h"
#include "nearcache/backend.h"
#include "pools.h"

const struct near__option near__options[NEAR__OPTION_COUNT] = {
#define OPTION_ROW(field, name, type, scope, preset, least, most, accepts, help)                             \
    { name,    NEAR__##type, NEAR__SCOPE_##scope,                                                            \
      preset,  least,        most,                                                                           \
      accepts, help,         offsetof(struct near__settings, field) },
    NEAR__OPTIONS(OPTION_ROW)
#undef OPTION_ROW
};

#define BACKENDS_MOST 8
struct near_config {
    char *texts[NEAR__OPTION_COUNT]; /* NULL: not set */

    const struct near_l2_ops *backends[BACKENDS_MOST];
    size_t                    n_backends;
};

/* ---- units */

struct unit {
    const char *name;
    int64_t     factor;
};
static const struct unit size_units[] = {
    { "TiB", NEAR__TIB }, { "GiB", INT64_C(1) << 30 },
    { "MiB", NEAR__MIB }, { "KiB", NEAR__KIB },
    { "B", 1 },           { "", 1 },
};
static const struct unit duration_units[] = {
    { "d", NEAR__DAY }, { "h", 3600 * NEAR__SEC }, { "m", 60 * NEAR__SEC },
    { "s", NEAR__SEC }, { "ms", NEAR_MS },         { "us", NEAR_MS / 1000 },
};

/* Digits, then one of the units; a bare 0 needs none.  False: not of that form, or too large for an int64_t. */
static bool
parse_number(const char *text, const struct unit *units, size_t n, int64_t *value)
{
    const char *at     = text;
    int64_t     digits = 0;

    if (!isdigit((unsigned char)*at))
        return false;
    for (; isdigit((unsigned char)*at); at++)
        if (__builtin_mul_overflow(digits, 10, &digits) || __builtin_add_overflow(digits, *at - '0', &digits))
            return false;
    *value = 0;
    if (digits == 0 && *at == '\0')
        return true;
    for (size_t i = 0; i < n; i++)
        if (strcmp(at, units[i].name) == 0)
            return !__builtin_mul_overflow(digits, units[i].factor, value);
    return false;
}

/* "2", "0.5", "1.25": at most three digits behind the point, in thousandths. */
static bool
parse_decimal(const char *text, int64_t *value)
{
    static const struct unit plain[] = { { "", 1000 } };
    size_t                   whole   = strcspn(text, ".");
    char                     digits[20];
    int64_t                  scale = 100;

    if (whole >= sizeof(digits))
        return false;
    memcpy(digits, text, whole);
    digits[whole] = '\0';
    if (!parse_number(digits, plain, 1, value))
        return false;
    if (text[whole] == '\0')
        return true;
    for (text += whole + 1; isdigit((unsigned char)*text) && scale > 0; text++, scale /= 10)
        if (__builtin_add_overflow(*value, (*text - '0') * scale, value))
            return false;
    return *text == '\0' && scale < 100;
}

/* The largest unit that divides the value, for messages. */
static void
print_number(char *out, size_t size, int64_t value, const struct unit *units, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (value != 0 && value % units[i].factor == 0) {
            snprintf(out, size, "%lld%s", (long long)(value / units[i].factor), units[i].name);
            return;
        }
    snprintf(out, size, "%lld", (long long)value);
}

bool
near__option_number(enum near__option_type type, const char *text, int64_t *value)
{
    return type == NEAR__DURATION ? parse_number(text, duration_units, NEAR_COUNT_OF(duration_units), value)
                                  : parse_number(text, size_units, NEAR_COUNT_OF(size_units), value);
}

/* ---- one option */

static const struct near__option *
option_named(const char *name)
{
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        if (strcmp(near__options[i].name, name) == 0)
            return &near__options[i];
    return NULL;
}

static const struct unit *
units_of(const struct near__option *option, size_t *n)
{
    static const struct unit none[] = { { "", 1 } }, thousands[] = { { "", 1000 } };

    if (option->type == NEAR__SIZE)
        return *n = NEAR_COUNT_OF(size_units), size_units;
    if (option->type == NEAR__DURATION)
        return *n = NEAR_COUNT_OF(duration_units), duration_units;
    if (option->type == NEAR__DECIMAL)
        return *n = 1, thousands;
    return *n = 1, none;
}

void
near__option_accepts(const struct near__option *option, char *out, size_t size)
{
    char               least[32], most[32];
    size_t             n;
    const struct unit *units = units_of(option, &n);

    if (option->accepts != NULL) {
        snprintf(out, size, "%s", option->accepts);
        return;
    }
    print_number(least, sizeof(least), option->least, units, n);
    print_number(most, sizeof(most), option->most, units, n);
    snprintf(out, size, "%s .. %s", least, most);
}

void
near__option_variable(const struct near__option *option, char *out, size_t size)
{
    size_t at = (size_t)snprintf(out, size, "NEARCACHE_");

    for (const char *c = option->name; *c != '\0' && at + 1 < size; c++)
        out[at++] = *c == '.' ? '_' : (char)toupper((unsigned char)*c);
    out[at] = '\0';
}

/* The position of `value` in "a | b | c", or -1. */
static int
choice_index(const char *choices, const char *value)
{
    size_t length = strlen(value);

    for (int index = 0;; index++) {
        size_t word = strcspn(choices, " ");
        if (word == length && memcmp(choices, value, length) == 0)
            return index;
        choices += word;
        if (strncmp(choices, " | ", 3) != 0)
            return -1;
        choices += 3;
    }
}

static bool
is_visible(const char *text)
{
    for (; *text != '\0'; text++)
        if (*text < '!' || *text > '~')
            return false;
    return true;
}

/* URIs may hold a password: they are parsed for the message's sake and never shown. */
static bool
holds_uri(const struct near__option *option)
{
    return option == &near__options[NEAR__OPTION_l2_uri] ||
           option == &near__options[NEAR__OPTION_coherence_uri] ||
           option == &near__options[NEAR__OPTION_l2_gutter];
}

static near_status
check_text(const struct near__option *option, const char *origin, const char *value, near_error *error)
{
    struct near__uri *uri;
    near_status       status;
    char              accepts[256];

    if (holds_uri(option)) {
        if (strlen(value) >= NEAR__TEXT_SIZE)
            return near__fail(error, NEAR_ERR_INVALID, "%s: longer than %d bytes", origin,
                              NEAR__TEXT_SIZE - 1);
        if (option == &near__options[NEAR__OPTION_coherence_uri] && strcmp(value, "auto") == 0)
            return NEAR_OK;
        if (option == &near__options[NEAR__OPTION_l2_gutter] && value[0] == '\0')
            return NEAR_OK;
        uri = malloc(sizeof(*uri));
        if (uri == NULL)
            return near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", origin);
        status = near__uri_parse(uri, origin, value, error);
        if (status == NEAR_OK && option == &near__options[NEAR__OPTION_l2_gutter] &&
            uri->kind != NEAR__URI_MEMCACHED)
            status = near__fail(error, NEAR_ERR_INVALID, "%s: accepts %s", origin, option->accepts);
        explicit_bzero(uri, sizeof(*uri));
        free(uri);
        return status;
    }
    if (option == &near__options[NEAR__OPTION_l1_pools] && strlen(value) <= (size_t)option->most)
        return near__pool_list_parse(NULL, origin, value, error);
    if (strlen(value) <= (size_t)option->most && is_visible(value))
        return NEAR_OK;
    near__option_accepts(option, accepts, sizeof(accepts));
    return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.64s\": accepts %s", origin, value, accepts);
}

/* Check `value` and, when `settings` is not NULL, store it.  `origin` names the option as the user wrote it. */
static near_status
apply(struct near__settings *settings, const struct near__option *option, const char *origin,
      const char *value, near_error *error)
{
    char               accepts[256];
    const char        *hint = "";
    int64_t            number;
    size_t             n;
    const struct unit *units = units_of(option, &n);
    near_status        status;

    if (option->type == NEAR__TEXT) {
        status = check_text(option, origin, value, error);
        if (status == NEAR_OK && settings != NULL)
            snprintf((char *)settings + option->offset, NEAR__TEXT_SIZE, "%s", value);
        return status;
    }
    near__option_accepts(option, accepts, sizeof(accepts));
    if (option->type == NEAR__CHOICE) {
        int index = choice_index(option->accepts, value);
        if (index < 0)
            return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.64s\": accepts %s", origin, value, accepts);
        if (settings != NULL)
            *(unsigned *)((char *)settings + option->offset) = (unsigned)index;
        return NEAR_OK;
    }
    if (option->type == NEAR__DECIMAL ? !parse_decimal(value, &number)
                                      : !parse_number(value, units, n, &number)) {
        if (option->type == NEAR__DURATION)
            hint = isdigit((unsigned char)value[strlen(value) ? strlen(value) - 1 : 0])
                       ? "a duration needs a unit; "
                       : "not a duration; ";
        else
            hint = option->type == NEAR__SIZE ? "not a size; " : "not a number; ";
        return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.64s\": %saccepts %s", origin, value, hint,
                          accepts);
    }
    if (number < option->least || number > option->most)
        return near__fail(error, NEAR_ERR_INVALID, "%s = \"%.64s\": accepts %s", origin, value, accepts);
    if (settings != NULL)
        *(int64_t *)((char *)settings + option->offset) = number; /* SIZE and COUNT: the same bits */
    return NEAR_OK;
}

/* ---- near_config */

near_config *
near_config_new(void)
{
    return calloc(1, sizeof(near_config));
}

static void
forget_text(char **text)
{
    if (*text == NULL)
        return;
    explicit_bzero(*text, strlen(*text)); /* it may be a URI with a password */
    free(*text);
    *text = NULL;
}

void
near_config_free(near_config *config)
{
    if (config == NULL)
        return;
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        forget_text(&config->texts[i]);
    free(config);
}

near_status
near_config_set(near_config *config, const char *name, const char *value, near_error *error)
{
    const struct near__option *option;
    char                      *copy;
    near_status                status;

    if (config == NULL || name == NULL || value == NULL)
        return near__fail(error, NEAR_ERR_INVALID,
                          "near_config_set: config, name and value must not be NULL");
    option = option_named(name);
    if (option == NULL &&
        name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] != '\0')
        return near__fail(error, NEAR_ERR_INVALID,
                          "not an option's name (and not shown: it may hold a password)");
    if (option == NULL)
        return near__fail(error, NEAR_ERR_INVALID,
                          "unknown option \"%.64s\": `nearcache config --list` shows what there is", name);
    status = apply(NULL, option, name, value, error);
    if (status != NEAR_OK)
        return status;
    copy = strdup(value);
    if (copy == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", name);
    forget_text(&config->texts[option - near__options]);
    config->texts[option - near__options] = copy;
    return NEAR_OK;
}

/* ---- files */

static char *
trim(char *text)
{
    char *end;

    while (isspace((unsigned char)*text))
        text++;
    end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return text;
}

static near_status
load_line(near_config *config, char *line, const char *path, unsigned number, near_error *error)
{
    near_error  inner;
    char       *name = trim(line), *equals;
    near_status status;

    if (*name == '\0' || *name == '#')
        return NEAR_OK;
    equals = strchr(name, '=');
    if (equals == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "%s:%u: expected name = value", path, number);
    *equals = '\0';
    status  = near_config_set(config, trim(name), trim(equals + 1), &inner);
    if (status != NEAR_OK)
        return near__fail(error, status, "%s:%u: %s", path, number, inner.text);
    return NEAR_OK;
}

static near_status
load_stream(near_config *config, FILE *file, const char *path, near_error *error)
{
    char       *line     = NULL;
    size_t      capacity = 0;
    unsigned    number   = 0;
    near_status status   = NEAR_OK;

    errno = 0;
    while (status == NEAR_OK && getline(&line, &capacity, file) >= 0)
        status = load_line(config, line, path, ++number, error);
    if (status == NEAR_OK && !feof(file))
        status = near__fail(error, errno == ENOMEM ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                            "%s: cannot read: %s", path, near__errno_text(errno));
    if (line != NULL)
        explicit_bzero(line, capacity);
    free(line);
    return status;
}

near_status
near_config_load(near_config *config, const char *path, near_error *error)
{
    near_config *fresh;
    FILE        *file;
    near_status  status;

    if (config == NULL || path == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "near_config_load: config and path must not be NULL");
    file = fopen(path, "re");
    if (file == NULL)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: cannot open: %s", path, near__errno_text(errno));
    fresh  = near_config_new();
    status = fresh != NULL ? load_stream(fresh, file, path, error)
                           : near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", path);
    fclose(file);
    if (status == NEAR_OK) /* all or nothing: only now does the caller's configuration change */
        for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
            if (fresh->texts[i] != NULL) {
                forget_text(&config->texts[i]);
                config->texts[i] = fresh->texts[i];
                fresh->texts[i]  = NULL;
            }
    near_config_free(fresh);
    return status;
}

/* ---- backends */

const struct near_l2_ops *
near__config_backend(const near_config *config, const char *scheme)
{
    for (size_t i = 0; config != NULL && i < config->n_backends; i++)
        if (strcmp(config->backends[i]->scheme, scheme) == 0)
            return config->backends[i];
    return NULL;
}

static bool
is_whole(const struct near_l2_ops *ops)
{
    bool versioned =
        ops->version == NEAR_L2_OPS_V1 ||
        (ops->version == NEAR_L2_OPS_V2 && (ops->hash_get_many != NULL) == (ops->hash_set_many != NULL));

    return versioned && ops->scheme != NULL && ops->open != NULL && ops->get_many != NULL &&
           ops->set_many != NULL && ops->remove_many != NULL && ops->health != NULL && ops->stats != NULL &&
           ops->close != NULL && ops->stop != NULL && ops->fini != NULL && ops->forked != NULL;
}

near_status
near_config_add_backend(near_config *config, const struct near_l2_ops *ops, near_error *error)
{
    size_t size;

    if (config == NULL || ops == NULL)
        return near__fail(error, NEAR_ERR_INVALID,
                          "near_config_add_backend: config and ops must not be NULL");
    if (!is_whole(ops))
        return near__fail(
            error, NEAR_ERR_INVALID,
            "near_config_add_backend: the table is of another version, or a function is missing");
    size = strspn(ops->scheme, "abcdefghijklmnopqrstuvwxyz0123456789-");
    if (strncmp(ops->scheme, "x-", 2) != 0 || size < 3 || size > 22 || ops->scheme[size] != '\0')
        return near__fail(error, NEAR_ERR_INVALID,
                          "near_config_add_backend: the scheme must be x- and 1 to 20 of a-z 0-9 -");
    if (near__config_backend(config, ops->scheme) != NULL || config->n_backends == BACKENDS_MOST)
        return near__fail(error, NEAR_ERR_BUSY,
                          "near_config_add_backend: %s is there already, or eight others", ops->scheme);
    config->backends[config->n_backends++] = ops;
    return NEAR_OK;
}

/* ---- values */

enum near__codec
near__settings_codec(const struct near__settings *settings)
{
    switch (settings->l2_compression) {
    case NEAR__COMPRESSION_AUTO:
        if (settings->l2_dictionary[0] != '\0')
            return NEAR__CODEC_ZSTD;
        return settings->l2_envelope == NEAR__ENVELOPE_NONE ? NEAR__CODEC_NONE : near__codec_fastest();
    case NEAR__COMPRESSION_LZ4:
        return NEAR__CODEC_LZ4;
    case NEAR__COMPRESSION_ZSTD:
        return NEAR__CODEC_ZSTD;
    default:
        return NEAR__CODEC_NONE;
    }
}

/* Compression is a matter of the build, and of having somewhere to say that it was done. */
static near_status
check_compression(const struct near__settings *settings, near_error *error)
{
    enum near__codec codec = near__settings_codec(settings);
    uint32_t         id;

    if (!near__dictionaries_parse(settings->l2_dictionary, &id))
        return near__fail(
            error, NEAR_ERR_INVALID,
            "l2.dictionary = \"%.64s\": accepts nothing, auto or an id from 32768 to 2147483647",
            settings->l2_dictionary);
    if (settings->l2_dictionary[0] != '\0' && codec != NEAR__CODEC_ZSTD)
        return near__fail(error, NEAR_ERR_INVALID,
                          "l2.dictionary = %s: accepts l2.compression = zstd or auto, it says %s",
                          settings->l2_dictionary, codec == NEAR__CODEC_LZ4 ? "lz4" : "none");
    if (settings->l2_compression == NEAR__COMPRESSION_AUTO && settings->l2_dictionary[0] == '\0')
        return NEAR_OK;
    if (!near__codec_is_built(codec))
        return near__fail(
            error, NEAR_ERR_UNSUPPORTED, "l2.compression = %s: this build has none; it has%s%s%s",
            codec == NEAR__CODEC_LZ4 ? "lz4" : "zstd", near__codec_is_built(NEAR__CODEC_LZ4) ? " lz4" : "",
            near__codec_is_built(NEAR__CODEC_ZSTD) ? " zstd" : "", " none auto");
    if (codec != NEAR__CODEC_NONE && settings->l2_envelope == NEAR__ENVELOPE_NONE)
        return near__fail(
            error, NEAR_ERR_INVALID,
            "l2.compression = %s with l2.envelope = none: accepts none; other programs could not "
            "read the values",
            codec == NEAR__CODEC_LZ4 ? "lz4" : "zstd");
    return NEAR_OK;
}

static near_status
check_together(const struct near__settings *settings, near_error *error)
{
    near_status status;

    if (settings->coherence_heartbeat > settings->coherence_serve_window / 2)
        return near__fail(
            error, NEAR_ERR_INVALID,
            "coherence.heartbeat = %lldms: accepts at most half of coherence.serve_window (%lldms)",
            (long long)(settings->coherence_heartbeat / NEAR_MS),
            (long long)(settings->coherence_serve_window / NEAR_MS));
    if (settings->l2_envelope == NEAR__ENVELOPE_NONE && settings->l1_max_ttl == 0 &&
        settings->l1_max_bytes != 0)
        return near__fail(error, NEAR_ERR_INVALID,
                          "l1.max_ttl = 0 with l2.envelope = none: accepts 1ms .. 365d; what other programs "
                          "write would never be seen in L1");
    if (settings->l2_envelope == NEAR__ENVELOPE_NONE &&
        (settings->l2_mac_key_file[0] != '\0' || settings->l2_mac_key_env[0] != '\0'))
        return near__fail(error, NEAR_ERR_INVALID,
                          "%s with l2.envelope = none: accepts nothing; there is no place for a MAC",
                          settings->l2_mac_key_file[0] != '\0' ? "l2.mac_key_file" : "l2.mac_key_env");
    if ((settings->l1_shards & (settings->l1_shards - 1)) != 0)
        return near__fail(error, NEAR_ERR_INVALID, "l1.shards = %llu: accepts 0 or a power of two",
                          (unsigned long long)settings->l1_shards);
    status = near__pool_list_check(settings, error);
    return status == NEAR_OK ? check_compression(settings, error) : status;
}

static near_status
apply_environment(struct near__settings *settings, near_error *error)
{
    char variable[64];

    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++) {
        const char *value;
        near_status status;

        near__option_variable(&near__options[i], variable, sizeof(variable));
        value = secure_getenv(variable);
        if (value == NULL)
            continue;
        status = apply(settings, &near__options[i], variable, value, error);
        if (status != NEAR_OK)
            return status;
        settings->set[i] = true;
    }
    return NEAR_OK;
}

static near_status
apply_config(struct near__settings *settings, const near_config *config, near_error *error)
{
    for (size_t i = 0; config != NULL && i < NEAR__OPTION_COUNT; i++) {
        near_status status;

        if (config->texts[i] == NULL)
            continue;
        status = apply(settings, &near__options[i], near__options[i].name, config->texts[i], error);
        if (status != NEAR_OK)
            return status;
        settings->set[i] = true;
    }
    return NEAR_OK;
}

near_status
near__settings_resolve(struct near__settings *settings, const near_config *config, near_error *error)
{
    near_status status = NEAR_OK;

    memset(settings, 0, sizeof(*settings));
    for (size_t i = 0; i < NEAR__OPTION_COUNT && status == NEAR_OK; i++)
        status = apply(settings, &near__options[i], near__options[i].name, near__options[i].preset, error);
    if (status == NEAR_OK)
        status = apply_config(settings, config, error);
    if (status == NEAR_OK)
        status = apply_environment(settings, error);
    if (status == NEAR_OK)
        status = check_together(settings, error);
    return status;
}

near_status
near__settings_override(struct near__settings *settings, const struct near__settings *client,
                        const near_config *overrides, near_error *error)
{
    near_status status;

    *settings = *client;
    for (size_t i = 0; overrides != NULL && i < NEAR__OPTION_COUNT; i++)
        if (overrides->texts[i] != NULL && near__options[i].scope != NEAR__SCOPE_CACHE)
            return near__fail(error, NEAR_ERR_INVALID,
                              "%s belongs to the client: it cannot be set for one cache",
                              near__options[i].name);
    status = apply_config(settings, overrides, error);
    return status == NEAR_OK ? check_together(settings, error) : status;
}

void
near__settings_channel(const struct near__settings *settings, const char *suffix, char *name, size_t size)
{
    if (settings->coherence_channel[0] != '\0')
        snprintf(name, size, "%.128s%s", settings->coherence_channel, suffix);
    else
        snprintf(name, size, "%.64sbus%s", settings->l2_key_prefix, suffix);
}
