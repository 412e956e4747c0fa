/* See object.h.  One block of malloc's each, with the kept bytes at a multiple of 64 behind it. */
#include "l1/object.h"

#include "base/lock.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 64, MALLOC_HEADER = 8, HEAD = (sizeof(struct near__object) + LINE - 1) & ~(size_t)(LINE - 1) };

static struct near__object *
room_for(size_t kept)
{
    if (kept == 0)
        return malloc(sizeof(struct near__object));
    return kept <= PTRDIFF_MAX - HEAD - LINE
               ? aligned_alloc(LINE, HEAD + ((kept + LINE - 1) & ~(size_t)(LINE - 1)))
               : NULL;
}

struct near__object *
near__object_new(void *object, size_t size, void (*destroy)(void *object, void *ctx), void *ctx,
                 near_bytes keep)
{
    size_t               kept = keep.data != NULL ? keep.size : 0;
    struct near__object *made = room_for(kept);

    if (made == NULL)
        return NULL;
    memset(made, 0, sizeof(*made));
    atomic_init(&made->refs, 1);
    made->object  = object;
    made->size    = size;
    made->destroy = destroy;
    made->ctx     = ctx;
    if (kept > 0) {
        made->bytes      = memcpy((char *)made + HEAD, keep.data, kept);
        made->bytes_size = kept;
    }
    return made;
}

static void
let_go_of(void *object, void *ctx)
{
    struct near__object *inner = ctx;

    (void)object;
    near__object_release(&inner);
}

struct near__object *
near__object_around(struct near__object *object)
{
    struct near__object *made;

    if (object->destroy ==
        let_go_of) /* one around another shows the innermost: no chain grows with each move */
        object = object->ctx;
    made = near__object_new(object->object, object->size, let_go_of, object, (near_bytes){ NULL, 0 });
    if (made == NULL)
        return NULL;
    near__object_ref(object);
    made->bytes      = object->bytes;
    made->bytes_size = object->bytes_size;
    return made;
}

void
near__object_release(struct near__object **object)
{
    struct near__object *o = *object;

    *object = NULL;
    /* release and acquire: what every holder read comes before the end */
    if (o == NULL || atomic_fetch_sub_explicit(&o->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (o->destroy != NULL && o->destroy != let_go_of)
        near__lock_none();
    if (o->destroy != NULL)
        o->destroy(o->object, o->ctx);
    free(o);
}

size_t
near__object_cost(const struct near__object *object)
{
    size_t own = malloc_usable_size((void *)(uintptr_t)object) + MALLOC_HEADER;

    return object->size < SIZE_MAX / 2 ? own + object->size : SIZE_MAX / 2;
}
