/* Several threads asleep on one connection. Who is woken for another, and looks first, leaves nobody asleep beside what comes later. */
#include "actor.h"

#include <pthread.h>
#include <sched.h>

enum how { RECV, POLL, EPOLL };

struct sleeper {
    int fd;
    enum how how;
    int priority;
    _Atomic pid_t thread;
    _Atomic bool done;
};

/* Where that is allowed who has a priority looks before who has a lower one, or none. */
static void begin(struct sleeper *sleeper) {
    struct sched_param priority = {.sched_priority = sleeper->priority};
    if (sleeper->priority > 0)
        sched_setscheduler(0, SCHED_FIFO, &priority);
    sleeper->thread = gettid();
}

static void *sleep_for_byte(void *argument) {
    struct sleeper *sleeper = argument;
    struct pollfd list = {.fd = sleeper->fd, .events = POLLIN};
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, sleeper->fd, &event);
    begin(sleeper);
    char byte;
    switch (sleeper->how) {
    case RECV:
        recv(sleeper->fd, &byte, 1, 0);
        break;
    case POLL:
        poll(&list, 1, -1);
        break;
    case EPOLL:
        epoll_wait(set, &event, 1, -1);
        break;
    }
    sleeper->done = true;
    close(set);
    return NULL;
}

enum { MUCH = 4 << 20 };

static void *sleep_for_room(void *argument) {
    struct sleeper *sleeper = argument;
    static char bytes[MUCH];
    begin(sleeper);
    if (send(sleeper->fd, bytes, sizeof bytes, 0) != sizeof bytes)
        say("! a send ended short");
    return NULL;
}

static pthread_t start(void *(*sleep)(void *), struct sleeper *sleeper) {
    pthread_t thread;
    pthread_create(&thread, NULL, sleep, sleeper);
    while (sleeper->thread == 0)
        usleep(100);
    await_asleep(sleeper->thread);
    return thread;
}

/* All on one processor: in which order they look is known. */
static void share_a_processor(void) {
    cpu_set_t all, one;
    CPU_ZERO(&one);
    sched_getaffinity(0, sizeof all, &all);
    for (int n = 0; n < CPU_SETSIZE && CPU_COUNT(&one) == 0; n++)
        if (CPU_ISSET(n, &all))
            CPU_SET(n, &one);
    sched_setaffinity(0, sizeof one, &one);
}

/* One waits for room, and two for bytes. The first byte wakes all, and is taken before the slow one looks; the second byte is that one's. */
static void play_slow(enum how how) {
    enum { ROUNDS = 6 };
    int fd = connection();
    if (me.client) {
        for (int round = 0; round < ROUNDS; round++) {
            meet();
            put_text(fd, "1");
            meet();
            put_text(fd, "2");
            meet();
        }
        static char bytes[MUCH];
        say("got %zu", get(fd, bytes, sizeof bytes));
        meet();
        return;
    }
    share_a_processor();
    struct sleeper writer = {.fd = fd, .priority = 40};
    pthread_t writing = start(sleep_for_room, &writer);
    for (int round = 0; round < ROUNDS; round++) {
        struct sleeper slow = {.fd = fd, .how = how}, quick = {.fd = fd, .priority = 50};
        pthread_t threads[] = {start(sleep_for_byte, &slow), start(sleep_for_byte, &quick)};
        meet();
        while (!quick.done && !slow.done)
            usleep(1000);
        usleep(10000);
        meet();
        struct timespec start = now();
        pthread_join(threads[0], NULL);
        if (elapsed_ms(&start) > 500)
            say("! asleep beside a byte for %ld ms", elapsed_ms(&start));
        if (how != RECV) {
            char byte;
            while (recv(fd, &byte, 1, 0) == 1 && byte != '2')
                ;
        }
        pthread_join(threads[1], NULL);
        meet();
    }
    meet();
    pthread_join(writing, NULL);
}

void scenario_sleepers_slow_recv(void) {
    play_slow(RECV);
}

void scenario_sleepers_slow_poll(void) {
    play_slow(POLL);
}

void scenario_sleepers_slow_epoll(void) {
    play_slow(EPOLL);
}

static void *wait_idly(void *argument) {
    struct sleeper *sleeper = argument;
    struct sched_param none = {0};
    struct epoll_event event;
    sched_setscheduler(0, SCHED_IDLE, &none);
    sleeper->thread = gettid();
    sleeper->done = epoll_wait(sleeper->fd, &event, 1, 8000) == 1;
    return NULL;
}

/* One waits for a set; another, which is quicker, takes what has come, and looks at the set without waiting. */
void scenario_sleepers_beside_a_look(void) {
    int fd = connection();
    if (me.client) {
        for (int round = 0; round < 2; round++) {
            meet();
            put_text(fd, "1");
        }
        meet();
        return;
    }
    share_a_processor();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    struct sleeper sleeper = {.fd = set};
    pthread_t thread = start(wait_idly, &sleeper);
    meet();
    char byte;
    while (recv(fd, &byte, 1, MSG_DONTWAIT) != 1)
        ;
    T(epoll_wait(set, &event, 1, 0));
    usleep(100000);
    struct timespec begun = now();
    meet();
    pthread_join(thread, NULL);
    if (!sleeper.done || elapsed_ms(&begun) > 2000)
        say("! asleep beside a byte for %ld ms", elapsed_ms(&begun));
    close(set);
    meet();
}

/* A set that nobody waits for at the moment is told all the same, though somebody else was woken for what came, and slept on: who sends in another
 * thread, or in this one for a while, or waits for the peer's end only. */
void scenario_sleepers_beside_a_set(void) {
    enum { KINDS = 4 };
    for (int kind = 0; kind < KINDS; kind++) {
        int fd = cold_connection();
        warm(fd);
        if (me.client) {
            meet();
            await_asleep(me.peer);
            put_text(fd, "1");
            meet();
            static char bytes[1 << 16];
            while (recv(fd, bytes, sizeof bytes, 0) > 0)
                ;
            close(fd);
            continue;
        }
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN | (kind == 3 ? EPOLLET : 0)};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        T(epoll_wait(set, &event, 1, 20));
        struct sleeper writer = {.fd = fd};
        pthread_t writing;
        if (kind >= 2)
            writing = start(sleep_for_room, &writer);
        meet();
        struct timeval limit = {.tv_usec = 300000};
        static char bytes[MUCH];
        struct pollfd item = {.fd = fd, .events = POLLRDHUP};
        if (kind == 0) {
            setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
            send(fd, bytes, sizeof bytes, 0);
        } else {
            poll(&item, kind == 1, 300);
        }
        meet();
        T(epoll_wait(set, &event, 1, 3000));
        expect_text(fd, "1");
        if (kind >= 2)
            pthread_join(writing, NULL);
        shutdown(fd, SHUT_WR);
        close(set);
        close(fd);
    }
    meet();
}
