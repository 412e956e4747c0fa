/* What hiredis parsed, in the form that l2/redis_node.h hands out.  For the outermost call only: free the result with test_reply_free(). */
#ifndef TESTS_HARNESS_REPLY_H
#define TESTS_HARNESS_REPLY_H

#include "l2/redis_node.h"

#include <stdlib.h>

static inline void
test_reply_take(struct near__redis_reply *out, const redisReply *reply)
{
    *out = (struct near__redis_reply){ .type = reply->type, .integer = reply->integer };
    if (reply->type == REDIS_REPLY_STRING || reply->type == REDIS_REPLY_STATUS ||
        reply->type == REDIS_REPLY_ERROR) {
        out->text = reply->str;
        out->size = (size_t)reply->len;
    }
    if (reply->type != REDIS_REPLY_ARRAY)
        return;
    out->element = calloc(reply->elements + 1, sizeof(*out->element));
    for (size_t i = 0; out->element != NULL && i < reply->elements; i++)
        test_reply_take(&out->element[out->elements++], reply->element[i]);
}

static inline void
test_reply_free(struct near__redis_reply *reply)
{
    for (size_t i = 0; i < reply->elements; i++)
        test_reply_free(&reply->element[i]);
    free(reply->element);
}

#endif
