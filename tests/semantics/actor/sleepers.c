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
