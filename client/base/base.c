#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

near_status
near__fail(near_error *error, near_status code, const char *format, ...)
{
    va_list args;

    if (error == NULL)
        return code;
    error->code = code;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    return code;
}

void
near__log(const struct near__log *log, near_log_level level, const char *format, ...)
{
    char    message[512];
    va_list args;

    if (log == NULL || log->write == NULL)
        return;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    log->write(log->ctx, level, message);
}

const char *
near_version(void)
{
    return PACKAGE_VERSION; /* from configure.ac */
}

const char *
near_status_text(near_status status)
{
    switch (status) {
#define STATUS_TEXT(name, number, text)                                                                      \
    case name:                                                                                               \
        return text;
        NEAR_STATUS_TABLE(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "unknown status";
}

near_bytes
near_key(const char *text)
{
    return (near_bytes){ text, text != NULL ? strlen(text) : 0 };
}

const char *
near__errno_text(int code)
{
    const char *text = strerrordesc_np(code);

    return text != NULL ? text : "unknown error";
}

void *
near__zeroed(size_t align, size_t size)
{
    void *memory;

    size   = (size + align - 1) & ~(align - 1); /* aligned_alloc() wants a multiple */
    memory = aligned_alloc(align, size);
    return memory == NULL ? NULL : memset(memory, 0, size);
}
