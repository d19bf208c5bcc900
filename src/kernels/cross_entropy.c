/* Cross entropy of hidden W^T + bias, forward and backward, without keeping all logits.

   N targets, V tokens, D width. Some targets at a time, R, take some tokens at a time, a tile, twice. First come the
   exponentials of the tile's logits, [tokens, R], their sums, and the sums of the tile's rows of W that they weight. With
   the sums over all tiles known, the exponentials, which were held, make the gradient of the tile's own rows. So every
   operand of a product lies as it is needed, W and its gradient are read once for R targets, and what is at hand stays
   in the core's own cache. */

#include <math.h>
#include <stdint.h>

#include "elementwise.h"
#include "memory.h"
#include "product.h"
#include "threads.h"

enum { TILE_ENTRIES = 1 << 14, LEAST_TOKENS = 16 };

typedef struct {
    long count, tokens, width, rows; /* N, V, D, and the most targets at a time: R */
    long threads, slots;
    const real *hidden, *weight, *bias; /* [N, D], [V, D], and [V] or 0 */
    const int64_t *targets;             /* [N] */
    real *held;                         /* [V, R rounded up to FILL]: exponentials */
    real *memory;                       /* memory_size */
    real *losses;                       /* [N] */
    real *hidden_gradient, *weight_gradient, *bias_gradient; /* of the mean of the losses */
} CrossEntropy;

/* Of some targets. */
typedef struct {
    const CrossEntropy *c;
    long first, rows, stride, is_shifted; /* the stride of held rows */
    long tile, wide;                      /* tokens of a tile, and D rounded up to FILL */
    real *panels;                         /* [D, R], hidden states, laid out for the logits */
    real *scaled;                         /* [R, D], hidden states over the sums */
    real *shift, *scale;                  /* [R] each: what is subtracted from logits; one over sums and N */
    real *totals, *weighted;              /* of each slot: [R], the largest logits at first, and [R, D] */
    real *tile_rows;                      /* of each thread: rows of W [tile, D], filled up with zeros */
} Part;

static long tokens_of_tile(long stride)
{
    return TILE_ENTRIES / stride < LEAST_TOKENS ? LEAST_TOKENS : TILE_ENTRIES / stride;
}

static Part part_of(const CrossEntropy *c, long first, Memory *memory)
{
    long rows = c->count - first < c->rows ? c->count - first : c->rows, stride = round_up(rows, FILL);
    Part part = {.c = c, .first = first, .rows = rows, .stride = stride, .tile = tokens_of_tile(stride),
                 .wide = round_up(c->width, FILL)};
    part.panels = take(memory, panels_size(c->width, stride));
    part.scaled = take(memory, stride * part.wide);
    part.shift = take(memory, stride);
    part.scale = take(memory, stride);
    part.totals = take(memory, c->slots * stride);
    part.weighted = take(memory, c->slots * stride * part.wide);
    part.tile_rows = take(memory, c->threads * part.tile * part.wide);
    return part;
}

long cross_entropy_size(void) { return sizeof(CrossEntropy); }

/* Of the first part or of the last: the smaller one has the larger tiles. */
long cross_entropy_memory(const CrossEntropy *c)
{
    Memory first = {0}, last = {0};
    part_of(c, 0, &first);
    part_of(c, (c->count - 1) / c->rows * c->rows, &last);
    return first.taken > last.taken ? first.taken : last.taken;
}

/* Rows of W, or of its gradient, with zeros behind the true width: where they are, if there are none to be added. */
static const real *rows_of(const Part *p, const real *matrix, long first, long tokens, real *memory)
{
    long width = p->c->width;
    if (width == p->wide)
        return matrix + first * width;
    for (long token = 0; token < tokens; token++)
        for (long i = 0; i < p->wide; i++)
            memory[token * p->wide + i] = i < width ? matrix[(first + token) * width + i] : 0;
    return memory;
}

static void slot_tokens(const Part *p, long slot, long *first, long *last)
{
    *first = p->c->tokens * slot / p->c->slots;
    *last = p->c->tokens * (slot + 1) / p->c->slots;
}

static void logits(const Part *p, const real *rows, long tokens, real *out)
{
    long width = p->c->width;
    multiply(tokens, p->stride, width, rows, p->wide, 1, p->panels, PANEL, width * PANEL, 0, 0, out, p->stride);
}

/* The largest logit of each target in a slot. */
static void find_largest(const void *job, long slot, long thread)
{
    const Part *p = job;
    real *largest = p->totals + slot * p->stride;
    long first, last;
    slot_tokens(p, slot, &first, &last);
    for (long i = 0; i < p->stride; i++)
        largest[i] = -INFINITY;
    for (long token = first; token < last; token += p->tile) {
        long tokens = last - token < p->tile ? last - token : p->tile;
        real *scores = p->c->held + token * p->stride;
        logits(p, rows_of(p, p->c->weight, token, tokens, p->tile_rows + thread * p->tile * p->wide), tokens, scores);
        for (long row = 0; row < tokens; row++) {
            real bias = p->c->bias ? p->c->bias[token + row] : 0;
            for (long i = 0; i < p->stride; i++)
                largest[i] = scores[row * p->stride + i] + bias > largest[i] ? scores[row * p->stride + i] + bias : largest[i];
        }
    }
}

static void add_exponentials(const void *job, long slot, long thread)
{
    const Part *p = job;
    long stride = p->stride, first, last;
    real *totals = p->totals + slot * stride, *weighted = p->weighted + slot * stride * p->wide;
    slot_tokens(p, slot, &first, &last);
    memset(totals, 0, stride * sizeof(real));
    memset(weighted, 0, stride * p->wide * sizeof(real));
    for (long token = first; token < last; token += p->tile) {
        long tokens = last - token < p->tile ? last - token : p->tile;
        real *scores = p->c->held + token * stride;
        const real *rows = rows_of(p, p->c->weight, token, tokens, p->tile_rows + thread * p->tile * p->wide);
        logits(p, rows, tokens, scores);
        for (long row = 0; row < tokens; row++, scores += stride) {
            real bias = p->c->bias ? p->c->bias[token + row] : 0;
            for (long i = 0; i < stride; i++) {
                scores[i] = exponential(scores[i] + bias - p->shift[i]);
                totals[i] += scores[i];
            }
        }
        multiply(p->rows, p->wide, tokens, p->c->held + token * stride, 1, stride, rows, p->wide, PANEL, weighted, p->wide,
                 weighted, p->wide);
    }
}

static void add_gradient(const void *job, long slot, long thread)
{
    const Part *p = job;
    const CrossEntropy *c = p->c;
    long stride = p->stride, first, last;
    real *memory = p->tile_rows + thread * p->tile * p->wide;
    slot_tokens(p, slot, &first, &last);
    for (long end = last; end > first; end -= p->tile) { /* the last ones may still be in cache */
        long token = end - p->tile < first ? first : end - p->tile;
        const real *exponentials = c->held + token * stride;
        real *gradient = c->weight_gradient + token * c->width, *out = c->width == p->wide ? gradient : memory;
        const real *start = p->first ? rows_of(p, c->weight_gradient, token, end - token, memory) : 0;
        multiply(end - token, p->wide, p->rows, exponentials, stride, 1, p->scaled, p->wide, PANEL, start, p->wide, out,
                 p->wide);
        for (long row = 0; row < end - token && out != gradient; row++)
            memcpy(gradient + row * c->width, out + row * p->wide, c->width * sizeof(real));
        for (long row = 0; row < end - token && c->bias_gradient; row++) {
            real sum = p->first ? c->bias_gradient[token + row] : 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < p->rows; i++)
                sum += exponentials[row * stride + i] * p->scale[i];
            c->bias_gradient[token + row] = sum;
        }
    }
}

/* The sums over all slots; whether they are numbers that can well be told, as all are that a row's largest was taken from. */
static int add_up(const Part *p, real smallest, real largest)
{
    int are_good = 1;
    for (long i = 0; i < p->rows; i++) {
        for (long slot = 1; slot < p->c->slots; slot++)
            p->totals[i] += p->totals[slot * p->stride + i];
        are_good &= p->totals[i] > smallest && p->totals[i] < largest;
    }
    return are_good;
}

static void run_part(Part *p)
{
    const CrossEntropy *c = p->c;
    long width = c->width, wide = p->wide;
    const real *hidden = c->hidden + p->first * width;
    pack_panels(width, p->rows, hidden, 1, width, 1, p->panels);
    memset(p->shift, 0, p->stride * sizeof(real));
    share(c->threads, c->slots, add_exponentials, p);
    if (!add_up(p, 1e-30, 1e30)) { /* beyond what float32 can tell: the largest logit of each row is subtracted */
        share(c->threads, c->slots, find_largest, p);
        for (long i = 0; i < p->stride; i++) {
            p->shift[i] = p->totals[i];
            for (long slot = 1; slot < c->slots; slot++)
                p->shift[i] = p->totals[slot * p->stride + i] > p->shift[i] ? p->totals[slot * p->stride + i] : p->shift[i];
        }
        share(c->threads, c->slots, add_exponentials, p);
        add_up(p, 0, INFINITY);
    }
    for (long i = 0; i < p->rows; i++) {
        const real *h = hidden + i * width, *row = c->weight + c->targets[p->first + i] * width;
        real *gradient = c->hidden_gradient + (p->first + i) * width, dot = 0;
        p->scale[i] = 1 / (p->totals[i] * c->count);
        for (long j = 0; j < wide; j++)
            p->scaled[i * wide + j] = j < width ? h[j] * p->scale[i] : 0;
        for (long j = 0; j < width; j++) {
            real sum = 0;
            for (long slot = 0; slot < c->slots; slot++)
                sum += p->weighted[(slot * p->stride + i) * wide + j];
            gradient[j] = sum * p->scale[i] - row[j] / c->count;
            dot += h[j] * row[j];
        }
        real bias = c->bias ? c->bias[c->targets[p->first + i]] : 0;
        c->losses[p->first + i] = (real)log((double)p->totals[i]) + p->shift[i] - dot - bias;
    }
    share(c->threads, c->slots, add_gradient, p);
}

void cross_entropy(const CrossEntropy *c)
{
    for (long first = 0; first < c->count; first += c->rows) {
        Memory memory = {c->memory, cross_entropy_memory(c), 0};
        Part part = part_of(c, first, &memory);
        run_part(&part);
    }
    for (long i = 0; i < c->count; i++) {
        real *gradient = c->weight_gradient + c->targets[i] * c->width;
        for (long j = 0; j < c->width; j++)
            gradient[j] -= c->hidden[i * c->width + j] / c->count;
        if (c->bias_gradient)
            c->bias_gradient[c->targets[i]] -= (real)1 / c->count;
    }
}
