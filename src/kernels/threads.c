/* The pool of threads behind `share`. Threads are started when they are first needed and sleep between jobs; a process
   that was forked starts with none. */

#include <pthread.h>
#include <stdatomic.h>

#include "threads.h"

typedef struct {
    const void *job;
    Work work;
    long pieces;
    atomic_long next_piece, next_thread;
} Team;

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose job the pool does */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;   /* of all below */
static pthread_cond_t has_job = PTHREAD_COND_INITIALIZER, has_ended = PTHREAD_COND_INITIALIZER;
static Team *team;                       /* of the job at hand, on the stack of its caller, or 0 */
static long started, places, at_work;    /* threads there are; how many more may join the team; how many are in it */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void take_pieces(Team *of)
{
    long thread = atomic_fetch_add(&of->next_thread, 1);
    for (long piece; (piece = atomic_fetch_add(&of->next_piece, 1)) < of->pieces;)
        of->work(of->job, piece, thread);
}

static void *wait_for_jobs(void *unused)
{
    pthread_mutex_lock(&lock);
    for (;;) {
        while (places == 0)
            pthread_cond_wait(&has_job, &lock);
        places--;
        at_work++;
        Team *joined = team;
        pthread_mutex_unlock(&lock);
        take_pieces(joined);
        pthread_mutex_lock(&lock);
        if (--at_work == 0)
            pthread_cond_signal(&has_ended);
    }
    return unused;
}

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

/* The child has this thread alone, whatever the others were at. */
static void in_child(void)
{
    pthread_mutex_init(&in_use, 0);
    pthread_mutex_init(&lock, 0);
    pthread_cond_init(&has_job, 0);
    pthread_cond_init(&has_ended, 0);
    team = 0;
    started = places = at_work = 0;
}

static void watch_forks(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

static void start(long wanted)
{
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (started < wanted && pthread_create(&thread, &detached, wait_for_jobs, 0) == 0)
        started++;
    pthread_attr_destroy(&detached);
}

void share(long threads, long pieces, Work work, const void *job)
{
    Team mine = {.job = job, .work = work, .pieces = pieces};
    long others = (threads < pieces ? threads : pieces) - 1;
    if (others < 1 || pthread_mutex_trylock(&in_use) != 0) {
        take_pieces(&mine);
        return;
    }
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&lock);
    start(others);
    team = &mine;
    places = others < started ? others : started;
    pthread_cond_broadcast(&has_job);
    pthread_mutex_unlock(&lock);
    take_pieces(&mine);
    pthread_mutex_lock(&lock);
    places = 0; /* who has not come by now need not: all pieces are taken */
    while (at_work > 0)
        pthread_cond_wait(&has_ended, &lock);
    team = 0;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&in_use);
}
