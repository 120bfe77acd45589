/* An ordinary socket program: one of two processes that play a scenario over a TCP connection on the
 * loopback interface and write down everything they saw. It knows nothing of VMMC; the same binary runs
 * over the kernel and lifted, and the two transcripts have to be equal line by line.
 *
 *   actor SCENARIO server|client      standard input: AF_UNIX stream to the other actor (the control channel)
 *                                     standard output: the transcript
 *
 * Rules for a scenario
 *  - What is printed must not depend on time, ports, process ids, or on how much fits into a buffer.
 *  - The two sides are ordered by bytes, by `meet`, or by waiting for a condition; never by sleeping.
 *  - A line that begins with '!' is a failure whatever the other transcripts say.
 */
#ifndef ACTOR_H
#define ACTOR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <linux/tcp.h> /* glibc's own lacks the byte counters of tcp_info */
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct actor {
    bool server, client;  /* exactly one is true */
    pid_t peer;           /* the process at the other end of the control channel */
    int listener;         /* server: the listening socket; client: -1 */
    in_port_t port;       /* where the server listens, host byte order */
    const char *program;  /* path of this executable */
    const char *bystander; /* path of the statically linked program bystander.c */
    const char *will;      /* path of the library will.c */
};
extern struct actor me;

/* ---- transcript.c: what is written down ---- */

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Writes "call = value", with the errno's name after -1. Returns value; errno is kept. */
long traced(const char *call, long value);
/* Like traced, but writes "ok" for values >= 0: for descriptors and counts that may differ. */
long traced_ok(const char *call, long value);
#define T(call) traced(#call, (long)(call))
#define T_OK(call) traced_ok(#call, (long)(call))
/* Writes label, count, and the text or digest of `count` bytes; counts below 0 as errno. */
void say_bytes(const char *label, const void *bytes, long count);
void say_poll(const char *label, short bits);
void say_epoll(const char *label, uint32_t bits);
void say_status(const char *label, int wait_status);

/* ---- stream.c: bytes over the connection, untraced ---- */

int connection(void);      /* accepted or connected, and warmed up: over VMMC it is lifted by now */
int cold_connection(void); /* the same without the warm-up */
void warm(int fd);         /* small round trips until lifting has had its chance; both sides call it */
void hello(int fd);        /* one byte each way: the connection is accepted */
/* The same where this process has both ends. */
void both_ends(int ends[2]);
void cold_ends(int ends[2]);
void round_trip(const int ends[2]); /* one byte each way */
struct sockaddr_in server_address(void);
bool put(int fd, const void *bytes, size_t count); /* writes all; false and a '!' line if it cannot */
bool put_text(int fd, const char *text);
size_t get(int fd, void *bytes, size_t count);     /* reads until count or end; returns what came */
void expect_text(int fd, const char *text);        /* reads exactly this text */
void expect_end(int fd);                           /* reads the end of the stream */
/* `count` bytes of an endless pattern, beginning at `offset`; the receiver checks each byte. */
void put_pattern(int fd, uint64_t offset, size_t count, unsigned seed);
void get_pattern(int fd, uint64_t offset, size_t count, unsigned seed);
void fill_pattern(void *bytes, uint64_t offset, size_t count, unsigned seed);
uint64_t digest(const void *bytes, size_t count);
/* Writes with MSG_DONTWAIT until the stream takes nothing more; returns the bytes taken (a pattern). */
size_t fill_up(int fd, unsigned seed);

/* ---- rendezvous.c: ordering the two sides ---- */

void meet(void);                  /* returns when both sides have called it */
void meet_if_alive(void);         /* the same, but returns if the other side is gone */
void tell(long value);            /* gives the other side a number */
long told(void);                  /* waits for that number */
void await_readable(int fd, int count); /* until FIONREAD says at least count */
short await_bits(int fd, short bits);   /* poll until one of the bits, or HUP or ERR, is there; returns revents */
void await_asleep(pid_t pid);     /* until the process has gone to sleep in the kernel */
void await_stopped(pid_t pid);    /* until SIGSTOP has stopped it */
long elapsed_ms(const struct timespec *since);
struct timespec now(void);

/* ---- exec.c, passing.c, handing.c: a scenario goes on in another program image ---- */

int resume(int argc, char **argv);
void resume_lifting_after(const char *calls, const char *verb, const char *argument);
int urgent_while_lifting(int rounds);
int lower_while_lifting(int rounds);
int receive_in_new_image(int channel);
int resume_handed(const char *verb, int fd);

#define COUNT(array) (sizeof(array) / sizeof *(array))

#define SCENARIO(name) void scenario_##name(void);
#include "scenarios.h"
#undef SCENARIO

#endif
