/* Ranks of targets among all items by counting, without keeping or sorting any scores.

   B rows, V tokens, D width. A tile of some tokens' scores for all rows, [tokens, B], is counted while it is in the
   core's own cache. Every score is the same sum in the same order, whoever computes it, so that a target ties with
   itself. */

#include <stdint.h>
#include <string.h>

#include "product.h"
#include "threads.h"

enum { TILE_ENTRIES = 1 << 14, LEAST_TOKENS = 16 };

typedef struct {
    long rows, tokens, width, seen;
    long threads, slots;
    const real *hidden, *weight, *bias;         /* [B, D], [V, D], and [V] or 0 */
    const int64_t *targets;                     /* [B] */
    const int64_t *seen_rows, *seen_items;      /* [seen], each pair once */
    real *panels;                               /* panels_size of D and B */
    real *thresholds;                           /* [B rounded up to FILL]: scores of the targets */
    real *scores;                               /* of each thread a tile */
    int32_t *counts;                            /* of each slot [B rounded up to FILL] */
    int64_t *ranks;                             /* [B]; the first and the last token are no candidates */
    real *check;                                /* of each slot: 0, or no number if a score is none or infinite */
} Ranks;

static long stride_of(const Ranks *r) { return round_up(r->rows, FILL) | FILL; }

static long tokens_of_tile(const Ranks *r)
{
    long tokens = TILE_ENTRIES / stride_of(r);
    return tokens < LEAST_TOKENS ? LEAST_TOKENS : tokens;
}

/* Entries of `panels`, and of a thread's `scores`. */
long ranks_panels_size(const Ranks *r) { return panels_size(r->width, stride_of(r)); }
long ranks_scores_size(const Ranks *r) { return tokens_of_tile(r) * stride_of(r); }

static real score(const Ranks *r, long row, long token)
{
    real some[VEC];
    const real *panel = r->panels + row / PANEL * r->width * PANEL + row % PANEL / VEC * VEC;
    multiply(1, VEC, r->width, r->weight + token * r->width, r->width, 1, panel, PANEL, 0, 0, 0, some, VEC);
    return some[row % VEC] + (r->bias ? r->bias[token] : 0);
}

/* Adds 1 to the counts of those rows in which a token scores enough. Returns 0, or no number if a score is none or
   infinite. */
static real count_row(long rows, const real *restrict scores, real bias, const real *restrict thresholds,
                      int32_t *restrict counts)
{
    real check = 0;
#pragma omp simd reduction(+ : check)
    for (long row = 0; row < rows; row++) {
        real value = scores[row] + bias;
        counts[row] += value >= thresholds[row] ? 1 : 0;
        check += value * 0;
    }
    return check;
}

static void count_slot(const void *job, long slot, long thread)
{
    const Ranks *r = job;
    long stride = stride_of(r), tile = tokens_of_tile(r);
    long first = r->tokens * slot / r->slots, last = r->tokens * (slot + 1) / r->slots;
    real *scores = r->scores + thread * tile * stride, check = 0;
    int32_t *counts = r->counts + slot * stride;
    memset(counts, 0, stride * sizeof(int32_t));
    for (long token = first; token < last; token += tile) {
        long tokens = last - token < tile ? last - token : tile;
        multiply(tokens, stride, r->width, r->weight + token * r->width, r->width, 1, r->panels, PANEL,
                 r->width * PANEL, 0, 0, scores, stride);
        for (long i = 0; i < tokens; i++)
            check += count_row(stride, scores + i * stride, r->bias ? r->bias[token + i] : 0, r->thresholds, counts);
    }
    r->check[slot] = check;
}

void count_ranks(const Ranks *r)
{
    pack_panels(r->width, r->rows, r->hidden, 1, r->width, 1, r->panels);
    for (long row = r->rows; row < stride_of(r); row++)
        r->thresholds[row] = 0;
    for (long row = 0; row < r->rows; row++)
        r->thresholds[row] = score(r, row, r->targets[row]);
    share(r->threads, r->slots, count_slot, r);
    for (long row = 0; row < r->rows; row++) {
        r->ranks[row] = -1; /* the target itself is among those that score as much, and so may be what is no candidate */
        for (long slot = 0; slot < r->slots; slot++)
            r->ranks[row] += r->counts[slot * stride_of(r) + row];
        r->ranks[row] -= score(r, row, 0) >= r->thresholds[row];
        r->ranks[row] -= score(r, row, r->tokens - 1) >= r->thresholds[row];
    }
    for (long i = 0; i < r->seen; i++) {
        long row = r->seen_rows[i], item = r->seen_items[i];
        if (item > 0 && item < r->tokens - 1)
            r->ranks[row] -= score(r, row, item) >= r->thresholds[row];
    }
}
