/* A program that notices whether socket calls, which are async-signal-safe, take memory from it: a handler that has interrupted malloc
 * could not make such a call. Both ends of its connections are its own. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/wait.h>

#include "pair.h"

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

static int in_calls;
static long taken;

void *malloc(size_t size) {
    taken += in_calls;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    taken += in_calls;
    return __libc_calloc(count, size);
}

void *realloc(void *block, size_t size) {
    taken += in_calls;
    return __libc_realloc(block, size);
}

void free(void *block) {
    taken += in_calls && block;
    __libc_free(block);
}

static void pass(int from, int to) {
    char byte = 'x';
    struct pollfd item = {.fd = to, .events = POLLIN};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(to, &set);
    if (send(from, &byte, 1, MSG_NOSIGNAL) != 1 || poll(&item, 1, 5000) != 1 ||
        select(to + 1, &set, NULL, NULL, NULL) != 1 || recv(to, &byte, 1, 0) != 1)
        exit(2);
}

static void use_a_connection(void) {
    int ends[2], option = 1;
    connect_both(ends);
    for (int round = 0; round < 100; round++)
        pass(ends[round % 2], ends[1 - round % 2]);
    int other = dup(ends[0]), set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(set, EPOLL_CTL_ADD, other, &event) || epoll_wait(set, &event, 1, 3) ||
        setsockopt(other, SOL_SOCKET, SO_KEEPALIVE, &option, sizeof option))
        exit(3);
    pass(other, ends[1]);
    pid_t child = fork();
    if (child == 0) {
        close(ends[1]);
        _exit(send(other, "y", 1, MSG_NOSIGNAL) != 1);
    }
    char byte;
    if (recv(ends[1], &byte, 1, 0) != 1 || waitpid(child, &option, 0) != child || option)
        exit(4);
    /* Back to TCP. */
    option = 1;
    if (setsockopt(other, SOL_SOCKET, SO_RCVLOWAT, &option, sizeof option))
        exit(5);
    pass(ends[1], other);
    if (close(set) || close(ends[0]) || shutdown(other, SHUT_WR) || recv(ends[1], &byte, 1, 0) || close(ends[1]) || close(other))
        exit(6);
}

int main(void) {
    /* Functions are looked up when they are first called. */
    use_a_connection();
    in_calls = 1;
    for (int round = 0; round < 20; round++)
        use_a_connection();
    in_calls = 0;
    printf("memory was taken or given back %ld times\n", taken);
    return 0;
}
