/* epoll: several sets, descriptors, connections, threads and processes. */
#include "actor.h"

#include <sys/eventfd.h>

#include <pthread.h>

static int add(int set, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static void look(const char *label, int set, int timeout) {
    struct epoll_event event;
    int n = epoll_wait(set, &event, 1, timeout);
    if (n == 1) {
        char line[128];
        snprintf(line, sizeof line, "%s: data %llu", label, (unsigned long long)event.data.u64);
        say_epoll(line, event.events);
    } else {
        say("%s: %d %s", label, n, n < 0 ? strerrorname_np(errno) : "events");
    }
}

void scenario_epoll_two_sets(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "both");
        meet();
        return;
    }
    int level = epoll_create1(0), edge = epoll_create1(0);
    T(add(level, fd, EPOLLIN, 1));
    T(add(edge, fd, EPOLLIN | EPOLLET, 2));
    await_readable(fd, 4);
    look("level", level, 5000);
    look("edge", edge, 5000);
    look("level", level, 0);
    look("edge", edge, 0);
    T(epoll_ctl(level, EPOLL_CTL_DEL, fd, NULL));
    expect_text(fd, "both");
    look("level", level, 0);
    look("edge", edge, 0);
    meet();
}

/* A set watches the open file: a dup is another entry, and closing one descriptor removes nothing. */
void scenario_epoll_dup(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "one");
        meet();
        put_text(fd, "two");
        meet();
        meet();
        return;
    }
    int set = epoll_create1(0), twin = dup(fd);
    T(add(set, fd, EPOLLIN, 1));
    T(add(set, twin, EPOLLIN, 2));
    await_readable(fd, 3);
    struct epoll_event events[4];
    T(epoll_wait(set, events, 4, 5000));
    say("sum of data %llu", (unsigned long long)(events[0].data.u64 + events[1].data.u64));
    expect_text(twin, "one");
    T(epoll_ctl(set, EPOLL_CTL_DEL, twin, NULL));
    close(fd);
    meet();
    look("entry of the closed descriptor", set, 5000);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(epoll_ctl(set, EPOLL_CTL_DEL, twin, NULL));
    meet();
    expect_text(twin, "two");
    close(twin);
    look("all descriptors closed", set, 0);
    meet();
}

/* The set goes on under its other number when the one under which all was registered is closed. */
void scenario_epoll_set_renumbered(void) {
    int fd = connection(), one = 1;
    if (me.client) {
        meet();
        put_text(fd, "lowered");
        meet();
        return;
    }
    int set = epoll_create1(0), twin = dup(set);
    T(add(set, fd, EPOLLIN, 1));
    close(set);
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
    look("idle", twin, 0);
    meet();
    look("bytes", twin, 5000);
    look("bytes", twin, 0);
    expect_text(fd, "lowered");
    meet();
}

/* What one process of a family has brought back to TCP, the others are told of once. */
void scenario_epoll_lowered_by_child(void) {
    int fd = connection(), one = 1;
    if (me.client) {
        meet();
        put_text(fd, "once");
        meet();
        return;
    }
    int set = epoll_create1(0), status;
    struct epoll_event events[4];
    add(set, fd, EPOLLIN, 1);
    pid_t child = fork();
    if (child == 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
        _exit(0);
    }
    waitpid(child, &status, 0);
    meet();
    await_readable(fd, 4);
    T(epoll_wait(set, events, 4, 0));
    T(epoll_wait(set, events, 4, 0));
    expect_text(fd, "once");
    meet();
}

/* The same, and the parent changes its mind: what it has deleted is told of no more. */
void scenario_epoll_deleted_after_child_lowered(void) {
    int fd = connection(), one = 1;
    if (me.client) {
        put_text(fd, "told of once");
        meet();
        return;
    }
    int set = epoll_create1(0), status;
    struct epoll_event event = {.events = EPOLLOUT, .data.u64 = 2};
    add(set, fd, EPOLLIN | EPOLLOUT, 1);
    pid_t child = fork();
    if (child == 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
        _exit(0);
    }
    waitpid(child, &status, 0);
    await_readable(fd, 12);
    T(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    look("changed", set, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    look("deleted", set, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    expect_text(fd, "told of once");
    meet();
}

/* Exclusive wake-ups: what may be asked for with them, and that nothing is missed. */
void scenario_epoll_exclusive(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "for one");
        meet();
        return;
    }
    int first = epoll_create1(0), second = epoll_create1(0);
    T(add(first, fd, EPOLLIN | EPOLLEXCLUSIVE, 1));
    T(add(second, fd, EPOLLIN | EPOLLEXCLUSIVE, 2));
    T(add(first, fd, EPOLLIN | EPOLLEXCLUSIVE, 3));
    T(epoll_ctl(first, EPOLL_CTL_MOD, fd, &(struct epoll_event){.events = EPOLLIN}));
    look("idle", first, 0);
    meet();
    await_readable(fd, 7);
    look("bytes", first, 0);
    look("bytes", second, 0);
    expect_text(fd, "for one");
    look("read", first, 0);
    meet();
}

/* close() takes the connection out of the set; its number then belongs to the next one. */
void scenario_epoll_number_reused(void) {
    int first = connection();
    int set = epoll_create1(0);
    if (me.server) {
        T(add(set, first, EPOLLIN, 1));
        close(first);
        look("closed", set, 0);
        int second = connection();
        say("same number %d", second == first);
        T(epoll_ctl(set, EPOLL_CTL_MOD, second, &(struct epoll_event){.events = EPOLLIN}));
        T(add(set, second, EPOLLIN, 2));
        look("idle", set, 0);
        meet();
        look("bytes", set, 5000);
        expect_text(second, "second");
    } else {
        int second = connection();
        expect_end(first);
        meet();
        put_text(second, "second");
    }
    meet();
}

void scenario_epoll_nested(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "deep");
        meet();
        put_text(fd, "er");
        meet();
        return;
    }
    int inner = epoll_create1(0), outer = epoll_create1(0);
    T(add(inner, fd, EPOLLIN, 1));
    T(add(outer, inner, EPOLLIN, 2));
    struct pollfd item = {.fd = inner, .events = POLLIN};
    look("outer, idle", outer, 0);
    T(poll(&item, 1, 0));
    tell(getpid());
    look("outer", outer, 5000);
    T(poll(&item, 1, 0));
    say_poll("polled set", item.revents);
    look("inner", inner, 0);
    await_readable(fd, 4);
    expect_text(fd, "deep");
    look("outer, drained", outer, 0);
    T(poll(&item, 1, 0));
    meet();
    T(poll(&item, 1, 5000));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(outer, &reading);
    T(select(outer + 1, &reading, NULL, NULL, NULL));
    look("outer", outer, 0);
    look("inner", inner, 0);
    meet();
}

enum { FEW = 5 };

/* Five ready connections, room for two: nobody starves. */
void scenario_epoll_small_room(void) {
    int fds[FEW];
    for (int i = 0; i < FEW; i++) {
        fds[i] = connection();
        if (me.client)
            put_text(fds[i], "r");
    }
    if (me.server) {
        int set = epoll_create1(0), seen = 0;
        for (int i = 0; i < FEW; i++) {
            await_readable(fds[i], 1);
            add(set, fds[i], EPOLLIN, i);
        }
        struct epoll_event events[2];
        for (int look = 0; look < 3; look++) {
            T(epoll_wait(set, events, 2, 0));
            seen |= 1 << events[0].data.u64 | 1 << events[1].data.u64;
        }
        say("seen %#x", seen);
        struct epoll_event all[FEW];
        T(epoll_wait(set, all, FEW, 0));
    }
    meet();
}

/* However far the looks have come round, and whatever was deleted between: each that is ready is told of once. */
void scenario_epoll_each_once(void) {
    int fds[FEW];
    for (int i = 0; i < FEW; i++) {
        fds[i] = connection();
        if (me.client)
            put_text(fds[i], "r");
    }
    if (me.server) {
        int set = epoll_create1(0);
        for (int i = 0; i < FEW; i++) {
            await_readable(fds[i], 1);
            add(set, fds[i], EPOLLIN, i);
        }
        for (int round = 0; round < 3 * FEW; round++) {
            struct epoll_event some[2], all[FEW];
            int deleted = round % FEW, times[FEW] = {0};
            T(epoll_wait(set, some, 2, 0));
            T(epoll_ctl(set, EPOLL_CTL_DEL, fds[deleted], NULL));
            int n = T(epoll_wait(set, all, FEW, 0));
            for (int i = 0; i < n; i++)
                times[all[i].data.u64]++;
            for (int i = 0; i < FEW; i++)
                say("%d: %d", i, times[i]);
            add(set, fds[deleted], EPOLLIN, deleted);
        }
    }
    meet();
}

struct workers {
    int set, fd, handled;
    pthread_mutex_t lock;
};

/* Reads one message for each one-shot event until a message says stop. */
static void *work(void *argument) {
    struct workers *workers = argument;
    for (;;) {
        struct epoll_event event;
        int n = epoll_wait(workers->set, &event, 1, 5000);
        if (n == 0)
            say("! a worker waited in vain");
        if (n <= 0 && errno != EINTR)
            return NULL;
        char message;
        if (recv(workers->fd, &message, 1, MSG_PEEK) != 1 || message == 's') {
            event.events = EPOLLIN;
            epoll_ctl(workers->set, EPOLL_CTL_MOD, workers->fd, &event);
            return NULL;
        }
        if (recv(workers->fd, &message, 1, 0) == 1 && message == 'm') {
            pthread_mutex_lock(&workers->lock);
            workers->handled++;
            pthread_mutex_unlock(&workers->lock);
        }
        event.events = EPOLLIN | EPOLLONESHOT;
        send(workers->fd, "a", 1, 0);
        epoll_ctl(workers->set, EPOLL_CTL_MOD, workers->fd, &event);
    }
}

void scenario_epoll_two_threads(void) {
    int fd = connection();
    if (me.client) {
        char answer;
        for (int i = 0; i < 300; i++) {
            put_text(fd, "m");
            get(fd, &answer, 1);
        }
        put_text(fd, "s");
        meet();
        return;
    }
    struct workers workers = {.set = epoll_create1(0), .fd = fd, .lock = PTHREAD_MUTEX_INITIALIZER};
    add(workers.set, fd, EPOLLIN | EPOLLONESHOT, 0);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, work, &workers);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    say("handled %d", workers.handled);
    meet();
}

struct waiter {
    int set, count;
    _Atomic pid_t thread;
};

static void *wait_for_event(void *argument) {
    struct waiter *waiter = argument;
    struct epoll_event event;
    waiter->thread = gettid();
    waiter->count = epoll_wait(waiter->set, &event, 1, -1);
    return NULL;
}

static pthread_t start_waiter(struct waiter *waiter) {
    pthread_t thread;
    waiter->thread = 0;
    pthread_create(&thread, NULL, wait_for_event, waiter);
    while (waiter->thread == 0)
        usleep(100);
    await_asleep(waiter->thread);
    return thread;
}

/* How many events the waiter was told of. */
static void join_waiter(const struct waiter *waiter, pthread_t thread) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 10;
    if (pthread_timedjoin_np(thread, NULL, &end) != 0) {
        say("! nobody woke the waiter");
        exit(1);
    }
    say("events %d", waiter->count);
}

/* A thread already waiting on an empty set learns of a connection added later. */
void scenario_epoll_add_while_waiting(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "x");
        meet();
        return;
    }
    struct waiter waiter = {.set = epoll_create1(0)};
    pthread_t thread = start_waiter(&waiter);
    T(add(waiter.set, fd, EPOLLOUT | EPOLLET, 1));
    join_waiter(&waiter, thread);
    thread = start_waiter(&waiter);
    struct epoll_event event = {.events = EPOLLIN};
    T(epoll_ctl(waiter.set, EPOLL_CTL_MOD, fd, &event));
    tell(waiter.thread);
    join_waiter(&waiter, thread);
    meet();
}

/* Worker threads give connections back to a set that another thread sleeps on, before and after bytes have come. */
void scenario_epoll_armed_while_waiting(void) {
    int fd = connection();
    if (me.client) {
        for (int i = 0; i < 6; i++) {
            long sleeper = told();
            if (sleeper != 0)
                await_asleep(sleeper);
            put_text(fd, "x");
            expect_text(fd, "ack");
        }
        meet();
        return;
    }
    struct waiter waiter = {.set = epoll_create1(0)};
    add(waiter.set, fd, EPOLLIN, 1);
    for (int i = 0; i < 6; i++) {
        bool deletes = i % 2 == 0, late = i >= 3;
        struct epoll_event event = {.events = 0, .data.u64 = 1};
        T(epoll_ctl(waiter.set, deletes ? EPOLL_CTL_DEL : EPOLL_CTL_MOD, fd, &event));
        if (late) {
            tell(0);
            await_readable(fd, 1);
        }
        pthread_t thread = start_waiter(&waiter);
        event.events = EPOLLIN;
        T(epoll_ctl(waiter.set, deletes ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event));
        if (!late)
            tell(waiter.thread);
        join_waiter(&waiter, thread);
        expect_text(fd, "x");
        put_text(fd, "ack");
    }
    meet();
}

/* Parent and child wait on the same set after fork. */
void scenario_epoll_shared_by_fork(void) {
    int fd = connection();
    if (me.client) {
        for (int i = 0; i < 2; i++) {
            await_asleep(told());
            put_text(fd, i ? "parent" : "child!");
            expect_text(fd, "ack");
        }
        meet();
        return;
    }
    int set = epoll_create1(0);
    T(add(set, fd, EPOLLIN, 1));
    pid_t child = fork();
    if (child == 0) {
        tell(getpid());
        look("child", set, 5000);
        expect_text(fd, "child!");
        put_text(fd, "ack");
        _exit(0);
    }
    waitpid(child, NULL, 0);
    tell(getpid());
    look("parent", set, 5000);
    expect_text(fd, "parent");
    put_text(fd, "ack");
    meet();
}

/* A child brings the connection back to the kernel: the parent is told of its bytes together with what else there is. */
void scenario_epoll_lowered_beside_others(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "for parent and child");
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        char bytes[20];
        recv(fd, bytes, sizeof bytes, MSG_PEEK | MSG_WAITALL);
        _exit(0);
    }
    int set = epoll_create1(0), other = eventfd(1, 0);
    T(add(set, fd, EPOLLIN, 1));
    T(add(set, other, EPOLLIN, 2));
    tell(child);
    waitpid(child, NULL, 0);
    struct epoll_event found[4];
    int count = T(epoll_wait(set, found, 4, 0));
    unsigned long all = 0;
    for (int i = 0; i < count; i++)
        all |= found[i].data.u64;
    say("told of %lu", all);
    expect_text(fd, "for parent and child");
    meet();
}

/* A connection and a descriptor of the kernel's are ready in one set: each call tells of both, the next one too. */
void scenario_epoll_tells_of_all_kinds(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "there");
        meet();
        meet();
        return;
    }
    meet();
    int set = epoll_create1(0), other = eventfd(1, 0), late = eventfd(1, 0);
    await_readable(fd, 5);
    T(add(set, fd, EPOLLIN, 1));
    T(add(set, other, EPOLLIN, 2));
    struct epoll_event found[4];
    for (int i = 0; i < 4; i++)
        T(epoll_wait(set, found, 4, i < 2 ? 0 : 1000));
    T(add(set, late, EPOLLIN, 3));
    T(epoll_wait(set, found, 4, 1000));
    /* Room for one: everything gets its turn, however much time lies between the calls. */
    for (int pause = 0; pause < 2; pause++) {
        unsigned long all = 0;
        for (int i = 0; i < 12; i++) {
            poll(NULL, 0, pause);
            if (epoll_wait(set, found, 1, i & 1 ? 1000 : 0) != 1)
                say("! nothing");
            all |= 1ul << found[0].data.u64;
        }
        say("one at a time: %lx", all);
    }
    expect_text(fd, "there");
    T(epoll_wait(set, found, 4, 0));
    meet();
}

/* The child's copy keeps the entry alive after the parent closed its descriptor. */
void scenario_epoll_entry_outlives_close(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "still");
        meet();
        expect_text(fd, "bye");
        meet();
        return;
    }
    int set = epoll_create1(0), ends[2];
    if (pipe(ends) != 0)
        return;
    T(add(set, fd, EPOLLIN, 1));
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ends[1]);
        get(ends[0], &byte, 1);
        char buffer[8];
        get(fd, buffer, 5);
        put_text(fd, "bye");
        _exit(0);
    }
    close(fd);
    meet();
    look("closed here, open in the child", set, 5000);
    meet();
    close(ends[1]);
    waitpid(child, NULL, 0);
    look("closed everywhere", set, 20);
    meet();
}

/* A registered number is closed, and used again for another file, while the connection goes on under another number: the registration stays, and is
 * about the connection, whoever looks at the set. */
void scenario_epoll_registered_number_closed(void) {
    enum { KINDS = 3 };
    for (int kind = 0; kind < KINDS; kind++) {
        int fd = cold_connection();
        warm(fd);
        if (me.client) {
            meet();
            expect_text(fd, "hello");
            put_text(fd, "1");
            meet();
            expect_text(fd, "more");
            put_text(fd, "2");
            meet();
            shutdown(fd, SHUT_WR);
            meet();
            close(fd);
            continue;
        }
        int set = epoll_create1(0), ends[2];
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        int other = dup(fd);
        close(fd);
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends);
        say("reused %d", ends[0] == fd);
        put_text(other, "hello");
        if (kind == 1) {
            struct pollfd item = {.fd = set, .events = POLLIN};
            T(poll(&item, 1, 0));
        } else if (kind == 2) {
            int outer = epoll_create1(0);
            T(epoll_ctl(outer, EPOLL_CTL_ADD, set, &event));
            close(outer);
        }
        meet();
        T(epoll_wait(set, &event, 1, 5000));
        say_epoll("bytes", event.events);
        expect_text(other, "1");
        T(epoll_wait(set, &event, 1, 0));
        char byte;
        T(recv(ends[1], &byte, 1, MSG_DONTWAIT));
        put_text(other, "more");
        meet();
        T(epoll_wait(set, &event, 1, 5000));
        expect_text(other, "2");
        meet();
        T(epoll_wait(set, &event, 1, 5000));
        expect_end(other);
        meet();
        close(set);
        close(other);
        close(ends[0]);
        close(ends[1]);
    }
    meet();
}

/* What one may not ask of a registration later. */
void scenario_epoll_exclusive_later(void) {
    int fd = connection(), set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    T(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    meet();
    if (me.client)
        put_text(fd, "1");
    if (me.server) {
        T(epoll_wait(set, &event, 1, 5000));
        expect_text(fd, "1");
    }
    meet();
}
