/* Work shared out among threads, piece by piece. */

#ifndef THREADS_H
#define THREADS_H

/* `thread` counts the threads that take part, from 0. */
typedef void (*Work)(const void *job, long piece, long thread);

/* Have all pieces of a job done, by this thread and others: `threads` in all, or as many as the system has left. The
   others come from one pool of this process. A call while another one has the pool is done by its own thread alone. */
void share(long threads, long pieces, Work work, const void *job);

#endif
