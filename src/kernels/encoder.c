/* Embeddings and blocks of `src.models.network.Network`, forward and backward, for a batch of sequences on a CPU.

   Sequences lie one behind the other, without padding. Some of them at a time, a group of about as many tokens as the
   core's own cache has room for, go through all layers before the next; groups are shared out among threads. The last
   layer has queries only where a hidden state is asked for. What the backward pass needs is kept group by group;
   dropout's draws are not, but drawn again, since they follow from the seed and the place alone.

   T tokens and Q queries of a group, D width, H heads, d = D / H, F = 4 D. Rows are filled up with zeros to a multiple
   of 16 entries, so that every product is one of whole vectors: D and F below are those. */

#include <stdint.h>

#include "elementwise.h"
#include "memory.h"
#include "product.h"
#include "threads.h"

enum { CHUNK = 64 /* rows of the feed-forward network at a time */, QUERIES = 32 /* of attention */ };
enum { EMBEDDING, ATTENTION, AFTER_ATTENTION, INSIDE, AFTER_FFN, DROPOUTS };
enum { QUERY, KEY, VALUE, OUTPUT, WIDEN, NARROW, LINEARS };
enum { ATTENTION_NORM = 2 * LINEARS, FFN_NORM = ATTENTION_NORM + 2, PER_LAYER = FFN_NORM + 2 };
enum { POSITIONS, EMBEDDING_NORM, FIRST_LAYER = EMBEDDING_NORM + 2 };

/* As `src.kernels.encoder` fills it. Parameters, and likewise gradients: the positions [max_len, D], weight and bias of
   the embedding's LayerNorm, then of each layer weight and bias of the query, key, value, attention output, first and
   second feed-forward layers, and of the two LayerNorms; all as torch has them. */
typedef struct {
    long width, heads, layers, max_len, norm_first;
    long kept, kept_attention, kept_ffn; /* of 256 values of a byte, those that dropout leaves: 256, none is dropped */
    uint64_t seed;
    long sequences, groups, threads, slots;
    const int64_t *tokens, *starts;         /* [tokens], and where each sequence begins: [sequences + 1] */
    const int64_t *queries, *query_starts;  /* [hidden states], numbers of tokens, ascending; [sequences + 1] */
    const int64_t *group_starts;            /* [groups + 1], numbers of sequences */
    const real *table;                      /* [V, D] */
    const real *const *parameters;
    real *packed;                           /* packed_size */
    real *saved;                            /* the last of saved_starts, or 0: there will be no backward pass */
    const int64_t *saved_starts;            /* [groups + 1] */
    long scratch_size;                      /* of a thread, from the function of that name */
    real *scratch;                          /* threads times as much */
    real *hidden;                           /* [hidden states, D], with the true width */
    const real *hidden_gradient;
    real *token_gradient;                   /* [tokens, D], of the rows that were looked up */
    real *sums;                             /* slots times sums_size: parts of the gradients */
    real *const *gradients;
} Encoder;

typedef struct {
    long in, out;
    const real *forward, *bias, *backward; /* panels of the weight transposed and of itself */
} Linear;

typedef struct {
    Linear linears[LINEARS];
    const real *attention_norm[2], *ffn_norm[2]; /* weight and bias */
} Weights;

/* What is kept of a layer. */
typedef struct {
    real *x, *query, *key, *value; /* [T, D], and the query [Q, D], over sqrt(d) */
    real *softmax;                 /* of each sequence and head [queries, keys], negative where dropout hides it */
    real *mixed;                   /* [Q, D] */
    real *attention_unit, *attention_inverse, *ffn_unit, *ffn_inverse; /* of the LayerNorms: [Q, D] and [Q] */
    real *wide;                    /* [Q, F], before GELU */
} Kept;

typedef struct {
    long number, first, last;  /* sequences */
    long token, tokens, query; /* numbers of the first token and query, and how many tokens */
    long queries;              /* in the last layer */
} Group;

static long padded(const Encoder *e) { return round_up(e->width, FILL); }
static long padded_wide(const Encoder *e) { return round_up(4 * e->width, FILL); }

static Group group_at(const Encoder *e, long number)
{
    long first = e->group_starts[number], last = e->group_starts[number + 1];
    Group group = {number, first, last, e->starts[first], e->starts[last] - e->starts[first], e->query_starts[first],
                   e->query_starts[last] - e->query_starts[first]};
    return group;
}

static int is_last(const Encoder *e, long layer) { return layer == e->layers - 1; }

/* Rows of a layer's output of one sequence: in all but the last layer, its tokens. */
static long queries_of(const Encoder *e, long layer, long sequence)
{
    const int64_t *starts = is_last(e, layer) ? e->query_starts : e->starts;
    return starts[sequence + 1] - starts[sequence];
}

static long keys_of(const Encoder *e, long sequence) { return e->starts[sequence + 1] - e->starts[sequence]; }

/* Hand out the memory that is kept of one layer after the other, from `*memory` on. */
static Kept kept_of(const Encoder *e, const Group *group, long layer, Memory *memory)
{
    long d = padded(e), queries = is_last(e, layer) ? group->queries : group->tokens, pairs = 0;
    for (long s = group->first; s < group->last; s++)
        pairs += e->heads * queries_of(e, layer, s) * round_up(keys_of(e, s), FILL);
    Kept kept;
    kept.x = take(memory, group->tokens * d);
    kept.query = take(memory, queries * d);
    kept.key = take(memory, group->tokens * d);
    kept.value = take(memory, group->tokens * d);
    kept.softmax = take(memory, pairs);
    kept.mixed = take(memory, queries * d);
    kept.attention_unit = take(memory, queries * d);
    kept.attention_inverse = take(memory, queries);
    kept.wide = take(memory, queries * padded_wide(e));
    kept.ffn_unit = take(memory, queries * d);
    kept.ffn_inverse = take(memory, queries);
    return kept;
}

/* Of the embedding: what its LayerNorm needs. */
static void kept_of_embedding(const Encoder *e, const Group *group, Memory *memory, real **unit, real **inverse)
{
    *unit = take(memory, group->tokens * padded(e));
    *inverse = take(memory, group->tokens);
}

static long kept_size(const Encoder *e, long number)
{
    Group group = group_at(e, number);
    Memory memory = {0};
    real *unit, *inverse;
    kept_of_embedding(e, &group, &memory, &unit, &inverse);
    for (long layer = 0; layer < e->layers; layer++)
        kept_of(e, &group, layer, &memory);
    return memory.taken;
}

/* Weights, laid out for the products. */

static void shape_of(const Encoder *e, int linear, long *in, long *out)
{
    *in = linear == NARROW ? 4 * e->width : e->width;
    *out = linear == WIDEN ? 4 * e->width : e->width;
}

static Weights weights_of(const Encoder *e, long layer, Memory *memory)
{
    const real *const *parameters = e->parameters + FIRST_LAYER + layer * PER_LAYER;
    Weights weights = {.attention_norm = {parameters[ATTENTION_NORM], parameters[ATTENTION_NORM + 1]},
                       .ffn_norm = {parameters[FFN_NORM], parameters[FFN_NORM + 1]}};
    for (int i = 0; i < LINEARS; i++) {
        Linear *linear = &weights.linears[i];
        shape_of(e, i, &linear->in, &linear->out);
        linear->forward = take(memory, panels_size(linear->in, linear->out));
        linear->bias = take(memory, panels_size(1, linear->out));
        linear->backward = take(memory, panels_size(linear->out, linear->in));
    }
    return weights;
}

long packed_size(const Encoder *e)
{
    Memory memory = {0};
    for (int i = 0; i < LINEARS; i++) {
        long in, out;
        shape_of(e, i, &in, &out);
        take(&memory, panels_size(in, out));
        take(&memory, panels_size(1, out));
        take(&memory, panels_size(out, in));
    }
    return e->layers * memory.taken;
}

static real score_factor(const Encoder *e) { return (real)(1.0 / sqrt((double)(e->width / e->heads))); }

/* Linear layer number `piece` of all layers. */
static void pack(const void *job, long piece, long thread)
{
    (void)thread;
    const Encoder *e = job;
    Memory memory = {e->packed, packed_size(e), 0};
    Weights weights;
    for (long layer = 0; layer <= piece / LINEARS; layer++)
        weights = weights_of(e, layer, &memory);
    int i = piece % LINEARS;
    const Linear *linear = &weights.linears[i];
    const real *const *parameters = e->parameters + FIRST_LAYER + piece / LINEARS * PER_LAYER;
    const real *weight = parameters[2 * i], *bias = parameters[2 * i + 1]; /* [out, in] */
    real factor = i == QUERY ? score_factor(e) : 1;
    pack_panels(linear->in, linear->out, weight, 1, linear->in, factor, (real *)linear->forward);
    pack_panels(1, linear->out, bias, 0, 1, factor, (real *)linear->bias);
    pack_panels(linear->out, linear->in, weight, linear->in, 1, 1, (real *)linear->backward);
}

/* y = x weight^T + bias, row by row. */
static void apply(const Linear *linear, long rows, const real *x, real *y)
{
    long in = round_up(linear->in, FILL), out = round_up(linear->out, FILL);
    multiply(rows, out, linear->in, x, in, 1, linear->forward, PANEL, linear->in * PANEL, linear->bias, 0, y, out);
}

/* The gradient of x, added to `start` [rows, in] unless it is 0, from that of y. */
static void apply_backward(const Linear *linear, long rows, const real *y, const real *start, real *x)
{
    long in = round_up(linear->in, FILL), out = round_up(linear->out, FILL);
    multiply(rows, in, linear->out, y, out, 1, linear->backward, PANEL, linear->out * PANEL, start, in, x, in);
}

/* Parts of the gradients that belong to one slot; a matrix has its shorter side in rows, see `add_outer`. */

typedef struct {
    real *positions, *embedding_norm[2];
    real *layers; /* PER_LAYER of them for each layer, `sum_of` */
} Sums;

static long sum_size(const Encoder *e, int parameter)
{
    if (parameter >= ATTENTION_NORM)
        return padded(e);
    long in, out;
    shape_of(e, parameter / 2, &in, &out);
    if (parameter % 2)
        return round_up(out, FILL);
    return (in > out ? in : out) * padded(e);
}

static long sums_of_layer(const Encoder *e)
{
    long size = 0;
    for (int parameter = 0; parameter < PER_LAYER; parameter++)
        size += sum_size(e, parameter);
    return size;
}

static Sums sums_of(const Encoder *e, real *memory)
{
    Sums sums = {memory, {memory + e->max_len * padded(e), memory + (e->max_len + 1) * padded(e)},
                 memory + (e->max_len + 2) * padded(e)};
    return sums;
}

static real *sum_of(const Encoder *e, const Sums *sums, long layer, int parameter)
{
    real *sum = sums->layers + layer * sums_of_layer(e);
    for (int before = 0; before < parameter; before++)
        sum += sum_size(e, before);
    return sum;
}

/* sum [a_width, b_width] += A^T B, of `rows` rows each. */
static void add_outer(long rows, const real *a, long a_width, long a_row, const real *b, long b_width, real *sum)
{
    multiply(a_width, b_width, rows, a, 1, a_row, b, b_width, PANEL, sum, b_width, sum, b_width);
}

static void add_rows(long rows, long width, const real *x, real *sum)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < width; i++)
            sum[i] += x[row * width + i];
}

/* What `x` and the gradient of `y` add to those of weight and bias of a linear layer that is not the narrowing one. */
static void add_linear(const Encoder *e, const Sums *sums, long layer, int linear, long rows, const real *x,
                       const real *y)
{
    long in, out;
    shape_of(e, linear, &in, &out);
    add_outer(rows, y, out, round_up(out, FILL), x, round_up(in, FILL), sum_of(e, sums, layer, 2 * linear));
    add_rows(rows, round_up(out, FILL), y, sum_of(e, sums, layer, 2 * linear + 1));
}

/* Dropout, forward and backward. */

static uint64_t stream(const Encoder *e, const Group *group, long layer, int kind)
{
    return mix(e->seed + mix((uint64_t)((group->number * (e->layers + 1) + layer) * DROPOUTS + kind + 1)));
}

/* Dropout in place of rows [rows, width] from number `row` on; `bytes` has room for them. */
static void drop_rows(const Encoder *e, const Group *group, long layer, int kind, long kept, long row, long rows,
                      long width, uint8_t *bytes, real *x)
{
    if (kept == 256)
        return;
    random_bytes(stream(e, group, layer, kind), row * width, rows * width, bytes);
    drop(rows * width, bytes, (int)kept, (real)256 / kept, x);
}

/* Attention. */

/* Columns of some head in rows [rows, D]: transposed, [d, stride] with zeros behind the rows, ... */
static void transpose_head(long rows, long d, long width, const real *x, long stride, real *out)
{
    for (long i = 0; i < d; i++) {
        for (long row = 0; row < rows; row++)
            out[i * stride + row] = x[row * width + i];
        for (long row = rows; row < stride; row++)
            out[i * stride + row] = 0;
    }
}

/* ... or by themselves, times a factor, [rows, stride] with zeros behind the d columns. */
static void copy_head(long rows, long d, long width, const real *x, long stride, real factor, real *out)
{
    for (long row = 0; row < rows; row++) {
        for (long i = 0; i < d; i++)
            out[row * stride + i] = factor * x[row * width + i];
        for (long i = d; i < stride; i++)
            out[row * stride + i] = 0;
    }
}

static void put_head(long rows, long d, long width, const real *x, long stride, real factor, real *out)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < d; i++)
            out[row * width + i] = factor * x[row * stride + i];
}

/* Scores [rows, stride] of `keys` keys become what is left of their softmax by dropout, without its factor, and `signed_`
   the whole softmax, negative where nothing is left. */
static void softmax_rows(long rows, long keys, long stride, const uint8_t *bytes, int kept, real *scores, real *signed_)
{
    for (long row = 0; row < rows; row++, scores += stride, signed_ += stride, bytes += stride) {
        real largest = scores[0], sum = 0;
#pragma omp simd reduction(max : largest)
        for (long i = 0; i < keys; i++)
            largest = scores[i] > largest ? scores[i] : largest;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < keys; i++) {
            scores[i] = exponential(scores[i] - largest);
            sum += scores[i];
        }
        sum = 1 / sum;
        if (kept == 256) {
            for (long i = 0; i < keys; i++)
                signed_[i] = scores[i] *= sum;
        } else {
            for (long i = 0; i < keys; i++) {
                real value = scores[i] * sum;
                signed_[i] = bytes[i] < kept ? value : -value;
                scores[i] = bytes[i] < kept ? value : 0;
            }
        }
        for (long i = keys; i < stride; i++)
            signed_[i] = scores[i] = 0;
    }
}

static void attend(const Encoder *e, const Group *group, long layer, const Kept *kept, Memory scratch)
{
    long width = padded(e), d = e->width / e->heads, head_stride = round_up(d, FILL);
    real dropped_scale = (real)256 / e->kept_attention;
    uint64_t key = stream(e, group, layer, ATTENTION);
    real *softmax = kept->softmax;
    long query = 0, token = 0;
    for (long s = group->first; s < group->last; s++) {
        long keys = keys_of(e, s), queries = queries_of(e, layer, s), stride = round_up(keys, FILL);
        for (long head = 0; head < e->heads; head++) {
            Memory memory = scratch;
            real *transposed = take(&memory, d * stride), *values = take(&memory, keys * head_stride);
            real *scores = take(&memory, QUERIES * stride), *out = take(&memory, QUERIES * head_stride);
            uint8_t *bytes = (uint8_t *)take(&memory, QUERIES * stride);
            transpose_head(keys, d, width, kept->key + token * width + head * d, stride, transposed);
            copy_head(keys, d, width, kept->value + token * width + head * d, head_stride, 1, values);
            for (long first = 0; first < queries; first += QUERIES) {
                long rows = queries - first < QUERIES ? queries - first : QUERIES;
                long at = (query + first) * width + head * d;
                multiply(rows, stride, d, kept->query + at, width, 1, transposed, stride, PANEL, 0, 0, scores, stride);
                if (e->kept_attention < 256)
                    random_bytes(key, softmax - kept->softmax, rows * stride, bytes);
                softmax_rows(rows, keys, stride, bytes, (int)e->kept_attention, scores, softmax);
                multiply(rows, head_stride, keys, scores, stride, 1, values, head_stride, PANEL, 0, 0, out, head_stride);
                put_head(rows, d, width, out, head_stride, dropped_scale, kept->mixed + at);
                softmax += rows * stride;
            }
        }
        query += queries;
        token += keys;
    }
}

/* From the gradient of `mixed` [Q, D] to those of query, key and value, each with zeros behind the true width. */
static void attend_backward(const Encoder *e, const Group *group, long layer, const Kept *kept, const real *mixed,
                            real *query_gradient, real *key_gradient, real *value_gradient, Memory scratch)
{
    long width = padded(e), d = e->width / e->heads, head_stride = round_up(d, FILL);
    real dropped_scale = (real)256 / e->kept_attention;
    const real *softmax = kept->softmax;
    long query = 0, token = 0;
    for (long s = group->first; s < group->last; s++) {
        long keys = keys_of(e, s), queries = queries_of(e, layer, s), stride = round_up(keys, FILL);
        for (long head = 0; head < e->heads; head++) {
            Memory memory = scratch;
            real *transposed = take(&memory, d * stride), *key = take(&memory, keys * head_stride);
            real *key_sum = take(&memory, keys * head_stride), *value_sum = take(&memory, keys * head_stride);
            real *out = take(&memory, QUERIES * head_stride), *gradient = take(&memory, QUERIES * head_stride);
            real *q = take(&memory, QUERIES * head_stride);
            real *scores = take(&memory, QUERIES * stride), *left = take(&memory, QUERIES * stride);
            long column = token * width + head * d;
            transpose_head(keys, d, width, kept->value + column, stride, transposed);
            copy_head(keys, d, width, kept->key + column, head_stride, 1, key);
            memset(key_sum, 0, keys * head_stride * sizeof(real));
            memset(value_sum, 0, keys * head_stride * sizeof(real));
            for (long first = 0; first < queries; first += QUERIES) {
                long rows = queries - first < QUERIES ? queries - first : QUERIES;
                long at = (query + first) * width + head * d;
                copy_head(rows, d, width, mixed + at, head_stride, dropped_scale, gradient);
                copy_head(rows, d, width, kept->query + at, head_stride, 1, q);
                multiply(rows, stride, d, gradient, head_stride, 1, transposed, stride, PANEL, 0, 0, scores, stride);
                for (long row = 0; row < rows; row++) {
                    /* Summed over the keys, softmax times its gradient is mixed times its own. */
                    real sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (long i = 0; i < d; i++)
                        sum += mixed[at + row * width + i] * kept->mixed[at + row * width + i];
                    for (long i = 0; i < stride; i++) {
                        real value = softmax[row * stride + i], share = value > 0 ? value : 0;
                        left[row * stride + i] = share;
                        scores[row * stride + i] = share * scores[row * stride + i] - (value > 0 ? value : -value) * sum;
                    }
                }
                multiply(keys, head_stride, rows, left, 1, stride, gradient, head_stride, PANEL, value_sum, head_stride,
                         value_sum, head_stride);
                multiply(keys, head_stride, rows, scores, 1, stride, q, head_stride, PANEL, key_sum, head_stride, key_sum,
                         head_stride);
                multiply(rows, head_stride, keys, scores, stride, 1, key, head_stride, PANEL, 0, 0, out, head_stride);
                put_head(rows, d, width, out, head_stride, score_factor(e), query_gradient + at);
                softmax += rows * stride;
            }
            put_head(keys, d, width, key_sum, head_stride, 1, key_gradient + column);
            put_head(keys, d, width, value_sum, head_stride, 1, value_gradient + column);
        }
        query += queries;
        token += keys;
    }
}

/* Layers. */

/* Rows of x [T, D] at the queries of the last layer, or x itself, which is all of them. */
static const real *rows_asked(const Encoder *e, const Group *group, long layer, const real *x, real *memory)
{
    if (!is_last(e, layer))
        return x;
    long width = padded(e);
    for (long i = 0; i < group->queries; i++)
        memcpy(memory + i * width, x + (e->queries[group->query + i] - group->token) * width, width * sizeof(real));
    return memory;
}

/* Equations 2 to 6 of the paper: from kept->x to `out` [Q, D]. */
static void run_layer(const Encoder *e, const Group *group, long layer, const Weights *w, const Kept *kept, real *out,
                      Memory scratch)
{
    long width = padded(e), wide = padded_wide(e), queries = is_last(e, layer) ? group->queries : group->tokens;
    const real *asked = rows_asked(e, group, layer, kept->x, take(&scratch, queries * width));
    apply(&w->linears[QUERY], queries, asked, kept->query);
    apply(&w->linears[KEY], group->tokens, kept->x, kept->key);
    apply(&w->linears[VALUE], group->tokens, kept->x, kept->value);
    if (width > e->width)
        memset(kept->mixed, 0, queries * width * sizeof(real));
    attend(e, group, layer, kept, scratch);
    for (long first = 0; first < queries; first += CHUNK) {
        long rows = queries - first < CHUNK ? queries - first : CHUNK, at = first * width;
        Memory memory = scratch;
        real *h = take(&memory, CHUNK * width), *sum = take(&memory, CHUNK * width);
        real *active = take(&memory, CHUNK * wide);
        uint8_t *bytes = (uint8_t *)take(&memory, CHUNK * wide);
        apply(&w->linears[OUTPUT], rows, kept->mixed + at, sum);
        drop_rows(e, group, layer, AFTER_ATTENTION, e->kept, first, rows, width, bytes, sum);
        for (long row = 0; row < rows; row++) {
            real *x = sum + row * width;
            for (long i = 0; i < width; i++)
                x[i] += asked[at + row * width + i];
            kept->attention_inverse[first + row] =
                normalise(e->width, width, x, w->attention_norm[0], w->attention_norm[1],
                          kept->attention_unit + at + row * width, h + row * width);
        }
        real *before = kept->wide + first * wide, density;
        apply(&w->linears[WIDEN], rows, h, before);
        for (long i = 0; i < rows * wide; i++)
            active[i] = before[i] * normal(before[i], &density);
        drop_rows(e, group, layer, INSIDE, e->kept_ffn, first, rows, wide, bytes, active);
        apply(&w->linears[NARROW], rows, active, sum);
        drop_rows(e, group, layer, AFTER_FFN, e->kept, first, rows, width, bytes, sum);
        for (long row = 0; row < rows; row++) {
            real *x = sum + row * width;
            for (long i = 0; i < width; i++)
                x[i] += h[row * width + i];
            kept->ffn_inverse[first + row] = normalise(e->width, width, x, w->ffn_norm[0], w->ffn_norm[1],
                                                       kept->ffn_unit + at + row * width, out + at + row * width);
        }
    }
}

/* From the gradient of `out` [Q, D] to that of x [T, D]. */
static void run_layer_backward(const Encoder *e, const Group *group, long layer, const Weights *w, const Kept *kept,
                               const Sums *sums, const real *out_gradient, real *x_gradient, Memory scratch)
{
    long width = padded(e), wide = padded_wide(e), queries = is_last(e, layer) ? group->queries : group->tokens;
    real *asked_gradient = take(&scratch, queries * width), *mixed = take(&scratch, queries * width);
    const real *asked = rows_asked(e, group, layer, kept->x, take(&scratch, queries * width));
    for (long first = 0; first < queries; first += CHUNK) {
        long rows = queries - first < CHUNK ? queries - first : CHUNK, at = first * width;
        Memory memory = scratch;
        real *after = take(&memory, CHUNK * width), *narrow = take(&memory, CHUNK * width);
        real *h = take(&memory, CHUNK * width);
        real *active = take(&memory, CHUNK * wide), *slope = take(&memory, CHUNK * wide);
        real *wide_gradient = take(&memory, CHUNK * wide);
        uint8_t *bytes = (uint8_t *)take(&memory, CHUNK * wide);
        for (long row = 0; row < rows; row++)
            normalise_backward(e->width, width, out_gradient + at + row * width, kept->ffn_unit + at + row * width,
                               kept->ffn_inverse[first + row], w->ffn_norm[0], sum_of(e, sums, layer, FFN_NORM),
                               sum_of(e, sums, layer, FFN_NORM + 1), after + row * width);
        memcpy(narrow, after, rows * width * sizeof(real));
        drop_rows(e, group, layer, AFTER_FFN, e->kept, first, rows, width, bytes, narrow);
        const real *before = kept->wide + first * wide;
        for (long i = 0; i < rows * wide; i++) {
            real density, below = normal(before[i], &density);
            active[i] = before[i] * below;
            slope[i] = below + before[i] * density;
        }
        drop_rows(e, group, layer, INSIDE, e->kept_ffn, first, rows, wide, bytes, active);
        if (e->kept_ffn < 256)
            drop(rows * wide, bytes, (int)e->kept_ffn, (real)256 / e->kept_ffn, slope);
        add_outer(rows, active, 4 * e->width, wide, narrow, width, sum_of(e, sums, layer, 2 * NARROW));
        add_rows(rows, width, narrow, sum_of(e, sums, layer, 2 * NARROW + 1));
        apply_backward(&w->linears[NARROW], rows, narrow, 0, wide_gradient);
        for (long i = 0; i < rows * wide; i++)
            wide_gradient[i] *= slope[i];
        for (long row = 0; row < rows; row++)
            for (long i = 0; i < width; i++)
                h[row * width + i] = i < e->width ? kept->attention_unit[at + row * width + i] * w->attention_norm[0][i] +
                                                        w->attention_norm[1][i]
                                                  : 0;
        add_linear(e, sums, layer, WIDEN, rows, h, wide_gradient);
        apply_backward(&w->linears[WIDEN], rows, wide_gradient, after, narrow);
        for (long row = 0; row < rows; row++)
            normalise_backward(e->width, width, narrow + row * width, kept->attention_unit + at + row * width,
                               kept->attention_inverse[first + row], w->attention_norm[0],
                               sum_of(e, sums, layer, ATTENTION_NORM), sum_of(e, sums, layer, ATTENTION_NORM + 1),
                               asked_gradient + at + row * width);
        memcpy(after, asked_gradient + at, rows * width * sizeof(real));
        drop_rows(e, group, layer, AFTER_ATTENTION, e->kept, first, rows, width, bytes, after);
        add_linear(e, sums, layer, OUTPUT, rows, kept->mixed + at, after);
        apply_backward(&w->linears[OUTPUT], rows, after, 0, mixed + at);
    }
    real *query = take(&scratch, queries * width), *key = take(&scratch, group->tokens * width);
    real *value = take(&scratch, group->tokens * width);
    if (width > e->width) {
        memset(query, 0, queries * width * sizeof(real));
        memset(key, 0, group->tokens * width * sizeof(real));
        memset(value, 0, group->tokens * width * sizeof(real));
    }
    attend_backward(e, group, layer, kept, mixed, query, key, value, scratch);
    add_linear(e, sums, layer, QUERY, queries, asked, query);
    add_linear(e, sums, layer, KEY, group->tokens, kept->x, key);
    add_linear(e, sums, layer, VALUE, group->tokens, kept->x, value);
    apply_backward(&w->linears[QUERY], queries, query, asked_gradient, asked_gradient);
    apply_backward(&w->linears[KEY], group->tokens, key, is_last(e, layer) ? 0 : asked_gradient, x_gradient);
    apply_backward(&w->linears[VALUE], group->tokens, value, x_gradient, x_gradient);
    if (is_last(e, layer))
        for (long i = 0; i < queries; i++)
            add_rows(1, width, asked_gradient + i * width,
                     x_gradient + (e->queries[group->query + i] - group->token) * width);
}

/* Item and position embedding, LayerNorm and dropout: to x [T, D]. */
static void embed(const Encoder *e, const Group *group, real *unit, real *inverse, real *x, Memory scratch)
{
    long width = padded(e), token = 0;
    uint8_t *bytes = (uint8_t *)take(&scratch, group->tokens * width);
    const real *const *parameters = e->parameters;
    for (long s = group->first; s < group->last; s++)
        for (long i = 0, keys = keys_of(e, s); i < keys; i++, token++) {
            const real *item = e->table + e->tokens[group->token + token] * e->width;
            const real *position = parameters[POSITIONS] + (e->max_len - keys + i) * e->width;
            for (long j = 0; j < width; j++)
                x[token * width + j] = j < e->width ? item[j] + position[j] : 0;
        }
    if (!e->norm_first)
        drop_rows(e, group, e->layers, EMBEDDING, e->kept, 0, token, width, bytes, x);
    for (long row = 0; row < token; row++)
        inverse[row] = normalise(e->width, width, x + row * width, parameters[EMBEDDING_NORM],
                                 parameters[EMBEDDING_NORM + 1], unit + row * width, x + row * width);
    if (e->norm_first)
        drop_rows(e, group, e->layers, EMBEDDING, e->kept, 0, token, width, bytes, x);
}

static void embed_backward(const Encoder *e, const Group *group, const real *unit, const real *inverse,
                           const Sums *sums, real *gradient, Memory scratch)
{
    long width = padded(e), token = 0;
    uint8_t *bytes = (uint8_t *)take(&scratch, group->tokens * width);
    if (e->norm_first)
        drop_rows(e, group, e->layers, EMBEDDING, e->kept, 0, group->tokens, width, bytes, gradient);
    for (long row = 0; row < group->tokens; row++)
        normalise_backward(e->width, width, gradient + row * width, unit + row * width, inverse[row],
                           e->parameters[EMBEDDING_NORM], sums->embedding_norm[0], sums->embedding_norm[1],
                           gradient + row * width);
    if (!e->norm_first)
        drop_rows(e, group, e->layers, EMBEDDING, e->kept, 0, group->tokens, width, bytes, gradient);
    for (long s = group->first; s < group->last; s++)
        for (long i = 0, keys = keys_of(e, s); i < keys; i++, token++) {
            real *position = sums->positions + (e->max_len - keys + i) * width;
            real *item = e->token_gradient + (group->token + token) * e->width;
            for (long j = 0; j < e->width; j++) {
                item[j] = gradient[token * width + j];
                position[j] += item[j];
            }
        }
}

/* Groups. */

static Memory scratch_of(const Encoder *e, long thread)
{
    return (Memory){e->scratch + thread * e->scratch_size, e->scratch_size, 0};
}

static void run_group(const void *job, long number, long thread)
{
    const Encoder *e = job;
    Memory scratch = scratch_of(e, thread);
    Group group = group_at(e, number);
    long width = padded(e);
    Memory packed = {e->packed, packed_size(e), 0}, memory = {0};
    memory.size = kept_size(e, number);
    memory.first = e->saved ? e->saved + e->saved_starts[number] : take(&scratch, memory.size);
    real *unit, *inverse, *out = take(&scratch, group.queries * width);
    kept_of_embedding(e, &group, &memory, &unit, &inverse);
    Kept kept = kept_of(e, &group, 0, &memory), next = kept;
    embed(e, &group, unit, inverse, kept.x, scratch);
    for (long layer = 0; layer < e->layers; layer++, kept = next) {
        Weights weights = weights_of(e, layer, &packed);
        if (!is_last(e, layer))
            next = kept_of(e, &group, layer + 1, &memory);
        run_layer(e, &group, layer, &weights, &kept, is_last(e, layer) ? out : next.x, scratch);
    }
    for (long i = 0; i < group.queries; i++)
        memcpy(e->hidden + (group.query + i) * e->width, out + i * width, e->width * sizeof(real));
}

static void run_group_backward(const Encoder *e, long number, const Sums *sums, Memory scratch)
{
    Group group = group_at(e, number);
    long width = padded(e);
    real *unit = 0, *inverse = 0, *from = take(&scratch, group.tokens * width), *to = take(&scratch, group.tokens * width);
    for (long i = 0; i < group.queries; i++)
        for (long j = 0; j < width; j++)
            from[i * width + j] = j < e->width ? e->hidden_gradient[(group.query + i) * e->width + j] : 0;
    for (long layer = e->layers - 1; layer >= 0; layer--) {
        Memory packed = {e->packed, packed_size(e), 0};
        Memory memory = {e->saved + e->saved_starts[number], kept_size(e, number), 0};
        Weights weights;
        Kept kept;
        kept_of_embedding(e, &group, &memory, &unit, &inverse);
        for (long before = 0; before <= layer; before++) {
            weights = weights_of(e, before, &packed);
            kept = kept_of(e, &group, before, &memory);
        }
        run_layer_backward(e, &group, layer, &weights, &kept, sums, from, to, scratch);
        real *swapped = from;
        from = to;
        to = swapped;
    }
    embed_backward(e, &group, unit, inverse, sums, from, scratch);
}

/* Sizes. */

long encoder_size(void) { return sizeof(Encoder); }

static long largest(const Encoder *e, int of_a_sequence)
{
    long most = 1;
    for (long i = 0; i < (of_a_sequence ? e->sequences : e->groups); i++) {
        long count = of_a_sequence ? keys_of(e, i) : group_at(e, i).tokens;
        most = count > most ? count : most;
    }
    return most;
}

/* Entries of scratch memory of a thread: what the functions above take, at most. */
long scratch_size(const Encoder *e)
{
    long width = padded(e), keys = round_up(largest(e, 1), FILL), tokens = round_up(largest(e, 0), FILL);
    long head = round_up(e->width / e->heads, FILL), kept = 0;
    long attention = keys * (2 * head + 3 * head) + QUERIES * (3 * keys + 3 * head);
    long feed_forward = CHUNK * (3 * width + 4 * padded_wide(e));
    for (long number = 0; !e->saved && number < e->groups; number++)
        kept = kept_size(e, number) > kept ? kept_size(e, number) : kept;
    return kept + 10 * tokens * width + attention + feed_forward + 64 * FILL;
}

long sums_size(const Encoder *e) { return (e->max_len + 2) * padded(e) + e->layers * sums_of_layer(e); }

/* Fills saved_starts [groups + 1], in entries; the last one is what there is of it in all. */
void plan(const Encoder *e, int64_t *saved_starts)
{
    saved_starts[0] = 0;
    for (long number = 0; number < e->groups; number++)
        saved_starts[number + 1] = saved_starts[number] + kept_size(e, number);
}

void encode(const Encoder *e)
{
    share(e->threads, e->layers * LINEARS, pack, e);
    share(e->threads, e->groups, run_group, e);
}

/* Every slot has its groups, whoever takes it, so that sums do not depend on chance. */
static void run_slot(const void *job, long slot, long thread)
{
    const Encoder *e = job;
    real *memory = e->sums + slot * sums_size(e);
    memset(memory, 0, sums_size(e) * sizeof(real));
    Sums sums = sums_of(e, memory);
    for (long number = slot; number < e->groups; number += e->slots)
        run_group_backward(e, number, &sums, scratch_of(e, thread));
}

/* gradient[i row + j column] = what all slots have at [i, j] of a matrix [rows, columns], whose rows take `stride`. */
static void add_up(const Encoder *e, const real *first, long rows, long columns, long stride, real *gradient, long row,
                   long column)
{
    long size = sums_size(e);
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) {
            real sum = 0;
            for (long slot = 0; slot < e->slots; slot++)
                sum += first[slot * size + i * stride + j];
            gradient[i * row + j * column] = sum;
        }
}

/* The gradient of parameter number `piece` of all layers. */
static void add_up_parameter(const void *job, long piece, long thread)
{
    (void)thread;
    const Encoder *e = job;
    Sums sums = sums_of(e, e->sums);
    int parameter = piece % PER_LAYER;
    const real *sum = sum_of(e, &sums, piece / PER_LAYER, parameter);
    real *gradient = e->gradients[FIRST_LAYER + piece];
    long in, out;
    shape_of(e, parameter < ATTENTION_NORM ? parameter / 2 : OUTPUT, &in, &out);
    if (parameter == 2 * NARROW)
        add_up(e, sum, in, out, padded(e), gradient, 1, in);
    else if (parameter < ATTENTION_NORM && parameter % 2 == 0)
        add_up(e, sum, out, in, padded(e), gradient, in, 1);
    else
        add_up(e, sum, 1, out, 0, gradient, 0, 1);
}

void encode_backward(const Encoder *e)
{
    share(e->threads, e->slots, run_slot, e);
    Sums sums = sums_of(e, e->sums);
    add_up(e, sums.positions, e->max_len, e->width, padded(e), e->gradients[POSITIONS], e->width, 1);
    for (int i = 0; i < 2; i++)
        add_up(e, sums.embedding_norm[i], 1, e->width, 0, e->gradients[EMBEDDING_NORM + i], 0, 1);
    share(e->threads, e->layers * PER_LAYER, add_up_parameter, e);
}
