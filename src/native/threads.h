/* Work shared out among threads, piece by piece. */

#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

/* `thread` counts the threads that take part, from 0. */
typedef void (*Work)(const void *job, long piece, long thread);

typedef struct {
    const void *job;
    Work work;
    long pieces;
    atomic_long next_piece, next_thread;
} Team;

static void *take_pieces(void *argument)
{
    Team *team = argument;
    long thread = atomic_fetch_add(&team->next_thread, 1);
    for (long piece; (piece = atomic_fetch_add(&team->next_piece, 1)) < team->pieces;)
        team->work(team->job, piece, thread);
    return 0;
}

/* Have all pieces of a job done, by this thread and others: `threads` in all, or as many as the system has left. */
static void share(long threads, long pieces, Work work, const void *job)
{
    Team team = {.job = job, .work = work, .pieces = pieces};
    long wanted = (threads < pieces ? threads : pieces) - 1, started = 0;
    pthread_t *others = wanted > 0 ? malloc(wanted * sizeof(pthread_t)) : 0;
    while (others && started < wanted && pthread_create(&others[started], 0, take_pieces, &team) == 0)
        started++;
    take_pieces(&team);
    while (started > 0)
        pthread_join(others[--started], 0);
    free(others);
}

#endif
