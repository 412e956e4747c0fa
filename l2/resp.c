/* See resp.h.  Lengths are summed before anything is allocated, so nothing here can overflow (rule H4). */
#include "l2/resp.h"

#include <stdlib.h>
#include <string.h>

enum { FRAMING = 32 }; /* more than '$', any length, and two line ends */

static inline size_t
digits(size_t number)
{
    size_t n = number < 10 ? 1 : number < 100 ? 2 : 3;

    for (number /= 1000; number > 0; number /= 10)
        n++;
    return n;
}

static char *
put_long(char *at, size_t number)
{
    size_t n = digits(number);

    for (size_t i = n; i > 0; i--) {
        at[i - 1] = (char)('0' + number % 10);
        number /= 10;
    }
    return at + n;
}

/* Most numbers are small. */
static inline char *
put_head(char *at, char kind, size_t number)
{
    *at++ = kind;
    if (number < 10) {
        *at++ = (char)('0' + number);
    } else if (number < 100) {
        *at++ = (char)('0' + number / 10);
        *at++ = (char)('0' + number % 10);
    } else {
        at = put_long(at, number);
    }
    at[0] = '\r';
    at[1] = '\n';
    return at + 2;
}

static inline char *
put_argument(char *at, near_bytes argument)
{
    at = put_head(at, '$', argument.size);
    if (argument.size > 0)
        memcpy(at, argument.data, argument.size);
    at += argument.size;
    at[0] = '\r';
    at[1] = '\n';
    return at + 2;
}

size_t
near__resp_size(size_t argc, const near_bytes *argv)
{
    size_t total = digits(argc) + 3;

    if (argc == 0 || argc > NEAR__RESP_MAX / FRAMING)
        return 0;
    for (size_t i = 0; i < argc; i++) {
        if (argv[i].size > NEAR__RESP_MAX)
            return 0;
        total += digits(argv[i].size) + 5 + argv[i].size;
        if (total > NEAR__RESP_MAX)
            return 0;
    }
    return total;
}

void
near__resp_put(char *at, size_t argc, const near_bytes *argv)
{
    at = put_head(at, '*', argc);
    for (size_t i = 0; i < argc; i++)
        at = put_argument(at, argv[i]);
}

near_status
near__resp_format(char **bytes, size_t *size, size_t argc, const near_bytes *argv)
{
    *size = near__resp_size(argc, argv);
    if (*size == 0)
        return NEAR_ERR_TOO_LARGE;
    *bytes = malloc(*size);
    if (*bytes == NULL)
        return NEAR_ERR_NOMEM;
    near__resp_put(*bytes, argc, argv);
    return NEAR_OK;
}
