/* Memory that is handed out piece by piece. */

#ifndef MEMORY_H
#define MEMORY_H

#include <stdio.h>
#include <stdlib.h>

#include "product.h"

/* A copy of it hands out the rest again. Without any, `first` 0, it only counts. */
typedef struct {
    real *first;
    long size, taken; /* entries */
} Memory;

static inline real *take(Memory *memory, long count)
{
    real *piece = memory->first ? memory->first + memory->taken : 0;
    memory->taken += round_up(count, FILL);
#ifdef CHECK_MEMORY
    if (memory->first && memory->taken > memory->size) {
        fprintf(stderr, "%ld entries taken of %ld\n", memory->taken, memory->size);
        abort();
    }
#endif
    return piece;
}

#endif
