/* Ranks of targets among all items by counting, without keeping or sorting any scores.

   B rows, V tokens, D width. A tile of some tokens' scores for all rows, [tokens, B], is counted while it is in the
   core's own cache. What is no candidate, and the target itself, is left out before the count, not subtracted after it:
   so nothing depends on two computations of a score rounding alike. */

#include <float.h>
#include <stdint.h>
#include <string.h>

#include "product.h"
#include "threads.h"

enum { TILE_ENTRIES = 1 << 14, LEAST_TOKENS = 16 };

/* A score below all others, and finite: what is added up to see that all are. A bias cannot bring it back. */
#define LOWEST ((real)-FLT_MAX / 4)

typedef struct {
    long rows, tokens, width, excluded;
    long threads, slots;
    const real *hidden, *weight, *bias;         /* [B, D], [V, D], and [V] or 0 */
    const int64_t *targets;                     /* [B] */
    const int64_t *excluded_rows, *excluded_items; /* [excluded], items ascending: what is not counted in a row */
    real *panels;                               /* panels_size of D and B */
    real *thresholds;                           /* [B rounded up to FILL]: scores of the targets */
    real *scores;                               /* of each thread a tile */
    int32_t *counts;                            /* of each slot [B rounded up to FILL] */
    int64_t *ranks;                             /* [B] */
    real *check;                                /* of each slot: 0, or no number if a score is none or infinite */
} Ranks;

static long stride_of(const Ranks *r) { return round_up(r->rows, FILL) | FILL; }

static long tokens_of_tile(const Ranks *r)
{
    long tokens = TILE_ENTRIES / stride_of(r);
    return tokens < LEAST_TOKENS ? LEAST_TOKENS : tokens;
}

long ranks_size(void) { return sizeof(Ranks); }

/* Entries of `panels`, and of a thread's `scores`. */
long ranks_panels_size(const Ranks *r) { return panels_size(r->width, stride_of(r)); }
long ranks_scores_size(const Ranks *r) { return tokens_of_tile(r) * stride_of(r); }

/* By the very code that fills a tile, a whole panel at a time: so a target ties with an item of the same score. */
static real score(const Ranks *r, long row, long token)
{
    real some[PANEL];
    const real *panel = r->panels + row / PANEL * r->width * PANEL;
    multiply(1, PANEL, r->width, r->weight + token * r->width, r->width, 1, panel, PANEL, 0, 0, 0, some, PANEL);
    return some[row % PANEL] + (r->bias ? r->bias[token] : 0);
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

/* The first of the excluded pairs whose item is at least `token`. */
static long first_excluded(const Ranks *r, long token)
{
    long low = 0, high = r->excluded;
    while (low < high) {
        long middle = low + (high - low) / 2;
        if (r->excluded_items[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void count_slot(const void *job, long slot, long thread)
{
    const Ranks *r = job;
    long stride = stride_of(r), tile = tokens_of_tile(r);
    long first = r->tokens * slot / r->slots, last = r->tokens * (slot + 1) / r->slots;
    real *scores = r->scores + thread * tile * stride, check = 0;
    int32_t *counts = r->counts + slot * stride;
    long pair = first_excluded(r, first);
    memset(counts, 0, stride * sizeof(int32_t));
    for (long token = first; token < last; token += tile) {
        long tokens = last - token < tile ? last - token : tile;
        multiply(tokens, stride, r->width, r->weight + token * r->width, r->width, 1, r->panels, PANEL,
                 r->width * PANEL, 0, 0, scores, stride);
        for (; pair < r->excluded && r->excluded_items[pair] < token + tokens; pair++) {
            real *excluded = scores + (r->excluded_items[pair] - token) * stride + r->excluded_rows[pair];
            check += *excluded * 0;
            *excluded = LOWEST;
        }
        for (long i = 0; i < tokens; i++)
            check += count_row(stride, scores + i * stride, r->bias ? r->bias[token + i] : 0, r->thresholds, counts);
    }
    r->check[slot] = check;
}

void count_ranks(const Ranks *r)
{
    pack_panels(r->width, r->rows, r->hidden, 1, r->width, 1, r->panels);
    long packed = panels_size(r->width, r->rows); /* the rest is multiplied too, whatever stood there before */
    memset(r->panels + packed, 0, (ranks_panels_size(r) - packed) * sizeof(real));
    real check = 0;
    for (long row = r->rows; row < stride_of(r); row++)
        r->thresholds[row] = 0;
    for (long row = 0; row < r->rows; row++) {
        r->thresholds[row] = score(r, row, r->targets[row]);
        check += r->thresholds[row] * 0;
    }
    share(r->threads, r->slots, count_slot, r);
    r->check[0] += check;
    for (long row = 0; row < r->rows; row++) {
        r->ranks[row] = 0;
        for (long slot = 0; slot < r->slots; slot++)
            r->ranks[row] += r->counts[slot * stride_of(r) + row];
    }
}
