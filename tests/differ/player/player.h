/* An ordinary socket program that does what it is told: each line on its control channel is one step, each answer
 * one line with everything the calls of that step gave back. It knows nothing of VMMC; the same binary runs over the
 * kernel and lifted, and all answers have to be equal.
 *
 *   player DIRECTORY NAME      DIRECTORY/control: the conductor's AF_UNIX listener
 *
 * Rules for a step
 *  - Its answer must not depend on time, ports or process ids.
 *  - It names descriptors by place: a table of PLACES numbers, copied by fork and kept through exec.
 *  - A part of an answer that begins with '!' is a failure whatever the kernel's answer is.
 */
#ifndef PLAYER_H
#define PLAYER_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PLACES = 12,
    /* The player's own descriptors are out of the way, so that new numbers depend on the steps alone. */
    CONTROL = 900,
    LISTENER,
    INBOX, /* where descriptors come in */
    FILE_OF_BYTES,
    LARGEST = 1 << 20,
};

struct player {
    char directory[80];
    char name[16];
    int place[PLACES]; /* the program's descriptors; -1: none */
    bool restarts;     /* signal handlers have SA_RESTART */
};
extern struct player me;
extern char *arguments; /* what is left of the step's line */

/* ---- control.c: the channel to the conductor, and what is answered ---- */

void enter(void);                 /* connects and introduces this process; also in a child of fork */
bool next_step(char *line, size_t size); /* false: the conductor is gone */
void started(void);               /* tells the conductor that a call follows which may sleep */
void answer(const char *format, ...) __attribute__((format(printf, 1, 2))); /* adds to the answer */
void answer_result(long value);   /* the value, and after -1 the errno */
void answer_bytes(const unsigned char *bytes, long count);
void send_answer(void);
const char *word(void);           /* the next argument */
long number(void);
int here(void);                   /* the descriptor at the place that the next argument names */
int *place(void);

/* ---- flags.c: names of bits ---- */

int message_flags(const char *text);
uint32_t event_bits(const char *text);
void answer_events(uint32_t bits);

/* ---- the steps ---- */

void step_send(void);
void step_receive(void);
void step_stream_out(void);
void step_stream_in(void);
void step_ping(void);

void step_reserve(void);
void step_commit(void);
void step_borrow(void);
void step_release(void);

void step_poll(void);
void step_epoll_create(void);
void step_epoll_ctl(void);
void step_epoll_wait(void);
void step_settle(void);

void step_listen(void);
void step_connect(void);
void step_accept(void);
void step_shutdown(void);
void step_linger(void);
void step_ask(void);

void step_close(void);
void step_dup(void);
void step_nonblocking(void);
void step_pass(void);
void step_take(void);
void close_all(void);

void step_fork(void);
void step_exec(void);
void step_spawn(void);
void step_leave(void);
void step_collect(void);
void step_handlers(void);
void step_reset(void);
void resume(char **argv);         /* after exec */

/* ---- loans.c: send and recv, in memory that the connection lends if it does ---- */

long send_in_place(int fd, const unsigned char *outgoing, size_t count, int flags);
long receive_in_place(int fd, unsigned char *incoming, size_t count, int flags);

/* Bytes of an endless pattern; `stamp` says which. */
void fill(unsigned char *bytes, size_t count, uint32_t stamp, size_t offset);

#endif
