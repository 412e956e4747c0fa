/* near_curve_get(): what L1's ghosts know (l1/curve.h), as numbers and for the metrics' texts. */
#include "curve.h"

#include <inttypes.h>
#include <string.h>

#include "client.h"
#include "l1/curve.h"

static double
half(const near_curve *curve)
{
    return curve->half;
}

static double
same(const near_curve *curve)
{
    return curve->same;
}

static double
twice(const near_curve *curve)
{
    return curve->twice;
}

static double
four_times(const near_curve *curve)
{
    return curve->four_times;
}

/* In the order of near__curve_factors. */
const struct near__curve_size near__curve_sizes[NEAR__CURVE_SIZES] = {
    { "0.5x", half }, { "1x", same }, { "2x", twice }, { "4x", four_times }
};

near_status
near_curve_get(near_cache *cache, near_curve *out)
{
    struct near__curve_answer answer;
    near_curve                curve  = NEAR_CURVE_INIT;
    near_status               status = near__cache_check(cache);

    if (out == NULL || out->struct_size < sizeof(size_t))
        return NEAR_ERR_INVALID;
    if (status != NEAR_OK)
        return status;
    if (!near__l1_curve(cache->l1, &answer))
        return NEAR_ERR_UNSUPPORTED;
    curve.struct_size = out->struct_size < sizeof(curve) ? out->struct_size : sizeof(curve);
    curve.share       = answer.share;
    curve.requests    = answer.requests;
    curve.entries     = answer.entries;
    curve.half        = answer.ratio[0];
    curve.same        = answer.ratio[1];
    curve.twice       = answer.ratio[2];
    curve.four_times  = answer.ratio[3];
    memcpy(out, &curve, curve.struct_size);
    return NEAR_OK;
}

bool
near__curve_known(near_cache *cache, near_curve *curve)
{
    *curve = (near_curve)NEAR_CURVE_INIT;
    return near_curve_get(cache, curve) == NEAR_OK && curve->share > 0;
}

void
near__curve_print(FILE *out, double number)
{
    unsigned millionths = number <= 0 ? 0 : (unsigned)(number * 1e6 + 0.5);

    fprintf(out, "%u.%06u", millionths / 1000000, millionths % 1000000);
}
