/* Several connections between two processes: however they are waited for, alone or together, each is woken for its own. */
#include "actor.h"

#include <pthread.h>

enum { MANY = 12 };

static void make_many(int fds[MANY]) {
    for (int i = 0; i < MANY; i++)
        fds[i] = connection();
}

/* The server waits in one way after the other; the client speaks when it sleeps, on the connection that is its turn. */
static void speak(int fd) {
    await_asleep(me.peer);
    put_text(fd, "x");
}

static void hear(int fd) {
    expect_text(fd, "x");
}

static int add(int set, int fd, uint32_t events, int number) {
    struct epoll_event event = {.events = events, .data.u32 = number};
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

/* Waits until something is there, and says what. */
static void say_ready(const char *label, int set) {
    struct epoll_event event;
    int count = epoll_wait(set, &event, 1, -1);
    say("%s: %d, number %u", label, count, event.data.u32);
}

/* Call by call on each of them, `poll` on all, and an epoll object with all. */
void scenario_many_waited_for_in_turns(void) {
    int fds[MANY];
    make_many(fds);
    meet();
    if (me.client) {
        for (int turn = 0; turn < 4; turn++)
            for (int i = 0; i < MANY; i++)
                speak(fds[i]);
        meet();
        return;
    }
    struct pollfd list[MANY];
    int set = epoll_create1(0), edges = epoll_create1(0);
    for (int i = 0; i < MANY; i++)
        hear(fds[i]);
    for (int i = 0; i < MANY; i++) {
        for (int n = 0; n < MANY; n++)
            list[n] = (struct pollfd){.fd = fds[n], .events = POLLIN};
        int count = poll(list, MANY, -1);
        say("poll: %d", count);
        say_poll("its own", list[i].revents);
        hear(fds[i]);
    }
    for (int i = 0; i < MANY; i++)
        add(set, fds[i], EPOLLIN, i);
    for (int i = 0; i < MANY; i++) {
        say_ready("set", set);
        hear(fds[i]);
    }
    for (int i = 0; i < MANY; i++) {
        epoll_ctl(set, EPOLL_CTL_DEL, fds[i], NULL);
        add(edges, fds[i], EPOLLIN | EPOLLET, i);
    }
    for (int i = 0; i < MANY; i++) {
        say_ready("edges", edges);
        hear(fds[i]);
    }
    meet();
}

struct watcher {
    int set;
    _Atomic pid_t thread;
    struct epoll_event event;
    int count;
};

static void *watch(void *argument) {
    struct watcher *watcher = argument;
    watcher->thread = gettid();
    watcher->count = epoll_wait(watcher->set, &watcher->event, 1, -1);
    return NULL;
}

static pthread_t start_watcher(struct watcher *watcher) {
    pthread_t thread;
    pthread_create(&thread, NULL, watch, watcher);
    while (watcher->thread == 0)
        usleep(100);
    await_asleep(watcher->thread);
    return thread;
}

static void join_watcher(const char *label, pthread_t thread, struct watcher *watcher) {
    pthread_join(thread, NULL);
    say("%s: %d, number %u", label, watcher->count, watcher->event.data.u32);
}

static void ask_in_turn(const int fds[MANY]) {
    for (int i = 0; i < MANY; i++) {
        meet();
        put_text(fds[i], "x");
        expect_text(fds[i], "y");
    }
    meet();
}

/* Half of the connections stand in one object, half in another, one in both; a thread sleeps on each. */
void scenario_many_in_two_sets(void) {
    int fds[MANY];
    make_many(fds);
    if (me.client) {
        ask_in_turn(fds);
        put_text(fds[MANY - 1], "x");
        meet();
        return;
    }
    int sets[2] = {epoll_create1(0), epoll_create1(0)};
    for (int i = 0; i < MANY; i++)
        add(sets[i % 2], fds[i], EPOLLIN, i);
    for (int i = 0; i < MANY; i++) {
        struct watcher watcher = {.set = sets[i % 2]};
        pthread_t thread = start_watcher(&watcher);
        meet();
        join_watcher("its set", thread, &watcher);
        T(epoll_wait(sets[(i + 1) % 2], &watcher.event, 1, 0));
        hear(fds[i]);
        put_text(fds[i], "y");
    }
    T(add(sets[0], fds[MANY - 1], EPOLLIN, 100));
    struct watcher first = {.set = sets[0]}, second = {.set = sets[1]};
    pthread_t one = start_watcher(&first), other = start_watcher(&second);
    meet();
    join_watcher("one", one, &first);
    join_watcher("the other", other, &second);
    hear(fds[MANY - 1]);
    meet();
}

struct reader {
    int fd;
    int rounds;
    _Atomic pid_t thread;
    int wrong;
};

static void *echo(void *argument) {
    struct reader *reader = argument;
    char byte;
    reader->thread = gettid();
    for (int i = 0; i < reader->rounds; i++)
        reader->wrong += recv(reader->fd, &byte, 1, 0) != 1 || send(reader->fd, &byte, 1, 0) != 1;
    return NULL;
}

/* The connections were lifted while there was one thread; then each gets one, and all sleep. Half of them stand in an object too. */
void scenario_many_threads_later(void) {
    enum { ROUNDS = 40 };
    int fds[MANY], wrong = 0;
    make_many(fds);
    if (me.client) {
        meet();
        for (int i = 0; i < ROUNDS; i++)
            for (int n = 0; n < MANY; n++) {
                char sent = 'a' + i % 26, received = 0;
                put(fds[n], &sent, 1);
                wrong += get(fds[n], &received, 1) != 1 || received != sent;
            }
        say("wrong %d", wrong);
        meet();
        return;
    }
    struct reader readers[MANY];
    pthread_t threads[MANY];
    int set = epoll_create1(0);
    for (int n = 0; n < MANY; n += 2)
        add(set, fds[n], EPOLLIN, n);
    for (int n = 0; n < MANY; n++) {
        readers[n] = (struct reader){.fd = fds[n], .rounds = ROUNDS};
        pthread_create(&threads[n], NULL, echo, &readers[n]);
        while (readers[n].thread == 0)
            usleep(100);
        await_asleep(readers[n].thread);
    }
    meet();
    for (int n = 0; n < MANY; n++) {
        pthread_join(threads[n], NULL);
        wrong += readers[n].wrong;
    }
    say("wrong %d", wrong);
    meet();
}

/* A child takes some of the connections into an object of its own, the parent goes on with the others in one that it had before. */
void scenario_many_shared_out_by_fork(void) {
    int fds[MANY];
    make_many(fds);
    if (me.client) {
        ask_in_turn(fds);
        return;
    }
    int set = epoll_create1(0);
    for (int i = 0; i < MANY; i += 2)
        add(set, fds[i], EPOLLIN, i);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        int own = epoll_create1(0);
        for (int i = 0; i < MANY; i++)
            if (i % 2 == 0)
                close(fds[i]);
            else
                add(own, fds[i], EPOLLIN, i);
        for (int i = 1; i < MANY; i += 2) {
            struct epoll_event event;
            if (epoll_wait(own, &event, 1, -1) != 1 || event.data.u32 != (uint32_t)i)
                _exit(1);
            hear(fds[i]);
            put_text(fds[i], "y");
        }
        _exit(0);
    }
    for (int i = 1; i < MANY; i += 2)
        close(fds[i]);
    await_asleep(child);
    for (int i = 0; i < MANY; i++) {
        meet();
        if (i % 2 == 0) {
            say_ready("the parent's", set);
            hear(fds[i]);
            put_text(fds[i], "y");
        }
    }
    int status;
    waitpid(child, &status, 0);
    say_status("the child", status);
    meet();
}
