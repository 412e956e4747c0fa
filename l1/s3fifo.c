/* S3-FIFO as published: a small queue of a tenth of the entries, two uses to leave it for main (l1/fifos.h). */
#include "l1/fifos.h"
#include "l1/policy.h"

#include <stdlib.h>

static near_status
s3fifo_open(struct near__order *order)
{
    struct near__fifos *fifos = malloc(sizeof(*fifos));

    if (fifos == NULL)
        return NEAR_ERR_NOMEM;
    near__fifos_init(fifos, order->table, (struct near__fifos_rule){ 10, 2 });
    order->state = fifos;
    return NEAR_OK;
}

static void
s3fifo_close(struct near__order *order)
{
    near__fifos_fini(order->state);
    free(order->state);
    order->state = NULL;
}

static void
s3fifo_reset(struct near__order *order)
{
    near__fifos_clear(order->state);
}

static uint8_t
s3fifo_enter(struct near__order *order, uint32_t element)
{
    return near__fifos_enter(order->state, order->table, element);
}

static uint8_t
s3fifo_warmth(const struct near__order *order, uint8_t mark)
{
    (void)order;
    return near__fifos_warmth(mark);
}

static uint8_t
s3fifo_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    return near__fifos_revive(order->state, order->table, element, warmth);
}

static bool
s3fifo_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    return near__fifos_victim(order->state, order->table, place, element);
}

static size_t
s3fifo_bytes(const struct near__order *order)
{
    return sizeof(struct near__fifos) + near__fifos_bytes(order->state);
}

const struct near__policy near__s3fifo = {
    .name   = "s3fifo",
    .open   = s3fifo_open,
    .close  = s3fifo_close,
    .enter  = s3fifo_enter,
    .victim = s3fifo_victim,
    .warmth = s3fifo_warmth,
    .revive = s3fifo_revive,
    .reset  = s3fifo_reset,
    .bytes  = s3fifo_bytes,
};
