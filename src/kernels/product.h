/* Matrix products of the sizes that a transformer has, on one core.

   A tile of C stays in registers while columns of A and rows of B go by. Both are taken from where they are, since they
   are small enough for the core's own caches; only weights are laid out beforehand, by `pack_panels`. */

#ifndef PRODUCT_H
#define PRODUCT_H

#include <string.h>

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define TILE_ROWS 8
#else
#define VECTOR_BYTES 32
#define TILE_ROWS 6
#endif

typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));
enum { VEC = VECTOR_BYTES / sizeof(real), PANEL = 2 * VEC };

/* Rows of matrices that are made here are filled up with zeros to a multiple of so many entries, a multiple of VEC. */
enum { FILL = 16, PANELS_FILL = PANEL > FILL ? PANEL : FILL };

static inline long round_up(long count, long step) { return (count + step - 1) / step * step; }

/* A tile of `rows` rows and `vectors` vectors of C = start + A B, see `multiply`. */
static inline __attribute__((always_inline)) void multiply_tile(
    const int rows, const int vectors, long depth, const real *a, long a_row, long a_column, const real *b, long b_row,
    const real *start, long start_row, real *c, long c_row)
{
    vec sums[TILE_ROWS][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            sums[i][j] = start ? *(const vec *)(start + i * start_row + j * VEC) : (vec){0};
    for (long k = 0; k < depth; k++)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors; j++)
                sums[i][j] += a[i * a_row + k * a_column] * *(const vec *)(b + k * b_row + j * VEC);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            *(vec *)(c + i * c_row + j * VEC) = sums[i][j];
}

static inline __attribute__((always_inline)) void multiply_panel(
    const int vectors, long rows, long depth, const real *a, long a_row, long a_column, const real *b, long b_row,
    const real *start, long start_row, real *c, long c_row)
{
    while (rows > 0) {
        int some = rows < TILE_ROWS ? (int)rows : TILE_ROWS;
        switch (some) { /* each number of rows a loop of its own, unrolled */
#define TILE(n) \
    case n: \
        multiply_tile(n, vectors, depth, a, a_row, a_column, b, b_row, start, start_row, c, c_row); \
        break
            TILE(1);
            TILE(2);
            TILE(3);
            TILE(4);
            TILE(5);
            TILE(6);
#if TILE_ROWS > 6
            TILE(7);
            TILE(8);
#endif
#undef TILE
        }
        rows -= some;
        a += some * a_row;
        c += some * c_row;
        start = start ? start + some * start_row : 0;
    }
}

/* C = start + A B: [rows, depth] [depth, columns] -> [rows, columns].

   Element (i, k) of A is a[i a_row + k a_column], so that A may be transposed. B comes in panels of PANEL columns: the
   next panel begins `b_panel` behind the last one, and a row takes `b_row`. A row of C and of `start` takes c_row and
   start_row; `start` may be C itself, have rows that are all the same one (start_row 0), or be 0 for zeros.
   `columns` is a multiple of VEC. */
static void multiply(long rows, long columns, long depth, const real *a, long a_row, long a_column, const real *b,
                     long b_row, long b_panel, const real *start, long start_row, real *c, long c_row)
{
    for (long column = 0; column < columns; column += PANEL, b += b_panel) {
        const real *from = start ? start + column : 0;
        if (columns - column >= PANEL)
            multiply_panel(2, rows, depth, a, a_row, a_column, b, b_row, from, start_row, c + column, c_row);
        else
            multiply_panel(1, rows, depth, a, a_row, a_column, b, b_row, from, start_row, c + column, c_row);
    }
}

/* How much memory `pack_panels` fills. */
static inline long panels_size(long depth, long columns) { return depth * round_up(columns, PANELS_FILL); }

/* Lay out `factor` times a matrix B [depth, columns] for `multiply` (b_row PANEL, b_panel depth PANEL).

   Element (k, j) of B is b[k b_row + j b_column]; what is left of them is filled up with zeros. */
static void pack_panels(long depth, long columns, const real *b, long b_row, long b_column, real factor, real *panels)
{
    for (long first = 0; first < round_up(columns, PANELS_FILL); first += PANEL)
        for (long k = 0; k < depth; k++, panels += PANEL)
            for (long j = 0; j < PANEL; j++)
                panels[j] = first + j < columns ? factor * b[k * b_row + (first + j) * b_column] : 0;
}

#endif
