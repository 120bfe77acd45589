/* epoll: the events of one set. */
#include "actor.h"

#include <sys/eventfd.h>
#include <sys/timerfd.h>

static int add(int set, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

static int modify(int set, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(set, EPOLL_CTL_MOD, fd, &event);
}

/* One wait for one event: says how many, which data and which bits. */
static void look(const char *label, int set, int timeout) {
    struct epoll_event event;
    int n = epoll_wait(set, &event, 1, timeout);
    if (n == 1) {
        char line[128];
        snprintf(line, sizeof line, "%s: data %llx", label, (unsigned long long)event.data.u64);
        say_epoll(line, event.events);
    } else {
        say("%s: %d %s", label, n, n < 0 ? strerrorname_np(errno) : "events");
    }
}

void scenario_epoll_level(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "abcd");
        meet();
        await_asleep(me.peer);
        put_text(fd, "more");
        meet();
        return;
    }
    int set = epoll_create1(EPOLL_CLOEXEC);
    char buffer[8];
    T(add(set, fd, EPOLLIN | EPOLLOUT, 0x1122334455667788));
    look("writable", set, -1);
    look("still writable", set, -1);
    T(modify(set, fd, EPOLLIN, 7));
    look("idle", set, 0);
    look("idle, 20 ms", set, 20);
    meet();
    look("data", set, 5000);
    look("data again", set, 5000);
    await_readable(fd, 4);
    T(read(fd, buffer, 2));
    look("half read", set, 0);
    T(read(fd, buffer, 8));
    look("all read", set, 0);
    meet();
    look("woken", set, 5000);
    await_readable(fd, 4);
    T(read(fd, buffer, 8));
    meet();
}

void scenario_epoll_edge(void) {
    int fd = connection();
    if (me.client) {
        for (int i = 0; i < 4; i++) {
            meet();
            put_text(fd, "abcd");
        }
        meet();
        return;
    }
    int set = epoll_create1(0);
    char buffer[64];
    T(add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1));
    look("added", set, 0);
    look("no edge", set, 0);
    meet();
    await_readable(fd, 4);
    look("first bytes", set, 5000);
    look("no edge", set, 20);
    meet();
    await_readable(fd, 8);
    look("more bytes", set, 5000);
    look("no edge", set, 0);
    T(read(fd, buffer, 3));
    look("no edge after a partial read", set, 0);
    T(modify(set, fd, EPOLLIN | EPOLLET, 2));
    look("modified", set, 0);
    look("no edge", set, 0);
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    look("nothing to read", set, 0);
    meet();
    look("after draining", set, 5000);
    await_readable(fd, 4);
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    look("no edge", set, 0);
    meet();
    await_readable(fd, 4);
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    look("read before looking", set, 0);
    meet();
}

/* Edge-triggered writability: one event when a full stream has room again. */
void scenario_epoll_edge_writable(void) {
    int fd = connection();
    if (me.server) {
        size_t total = told();
        get_pattern(fd, 0, total, 7);
        meet();
        return;
    }
    int set = epoll_create1(0);
    add(set, fd, EPOLLOUT | EPOLLET, 3);
    look("added", set, 0);
    size_t total = fill_up(fd, 7);
    while (epoll_wait(set, &(struct epoll_event){0}, 1, 0) == 1)
        ;
    look("full", set, 0);
    tell(total);
    look("room", set, 5000);
    meet();
}

/* The same, and something else was reported while there was no room. */
void scenario_epoll_edge_room_after_news(void) {
    char buffer[8];
    int fd = connection();
    if (me.server) {
        size_t total = told();
        put_text(fd, "news");
        meet();
        get_pattern(fd, 0, total, 7);
        meet();
        return;
    }
    int set = epoll_create1(0);
    add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 3);
    look("added", set, 0);
    size_t total = fill_up(fd, 7);
    while (epoll_wait(set, &(struct epoll_event){0}, 1, 0) == 1)
        ;
    tell(total);
    await_readable(fd, 4);
    look("news", set, 5000);
    T(read(fd, buffer, sizeof buffer));
    meet();
    look("room", set, 5000);
    meet();
}

/* Bytes that came and were read between two waits are an edge of what is true by then; not for who wants none. */
void scenario_epoll_edge_read_before(void) {
    char buffer[8];
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "ab");
        meet();
        return;
    }
    int both = epoll_create1(0), output = epoll_create1(0);
    add(both, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
    add(output, fd, EPOLLOUT | EPOLLET, 2);
    look("added", both, 0);
    look("added", output, 0);
    meet();
    await_readable(fd, 2);
    T(read(fd, buffer, sizeof buffer));
    look("read", both, 0);
    look("read", output, 0);
    look("again", both, 0);
    meet();
}

/* Bytes are no news to who waits for room or the end only. */
void scenario_epoll_edge_of_others(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "ab");
        meet();
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    int set = epoll_create1(0);
    add(set, fd, EPOLLOUT | EPOLLRDHUP | EPOLLET, 1);
    look("added", set, 0);
    meet();
    await_readable(fd, 2);
    look("bytes", set, 0);
    meet();
    await_bits(fd, POLLRDHUP);
    look("the end", set, 0);
    meet();
}

/* An end that was told of with the bytes before it is told of once, whenever those are read. */
void scenario_epoll_edge_of_end(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "last words");
        close(fd);
        meet();
        return;
    }
    int set = epoll_create1(0);
    add(set, fd, EPOLLIN | EPOLLET, 1);
    await_bits(fd, POLLRDHUP);
    look("bytes and end", set, 5000);
    expect_text(fd, "last words");
    expect_end(fd);
    look("read", set, 100);
    meet();
}

/* Who does not listen any more, which looks like an end, is told of the peer's end too. */
void scenario_epoll_edge_of_end_when_deaf(void) {
    int fd = connection(), set = epoll_create1(0);
    if (me.client) {
        meet();
        T(close(fd));
        meet();
        return;
    }
    struct epoll_event event;
    shutdown(fd, SHUT_RD);
    add(set, fd, EPOLLIN | EPOLLET, 1);
    for (int looks = 0; looks < 3; looks++)
        T(epoll_wait(set, &event, 1, 0));
    meet();
    T(epoll_wait(set, &event, 1, 3000));
    say_epoll("closed", event.events);
    meet();
    /* The kernel wakes twice for an end: whoever looks between the two is told once more. */
    epoll_wait(set, &event, 1, 0);
    T(epoll_wait(set, &event, 1, 0));
}

/* Bytes and the end that stand in the ring, while TCP holds back some that come before them (the sender corks it), are an edge
 * once those have come, also for who was told of room meanwhile. */
void scenario_epoll_edge_while_lifted(void) {
    enum { TURNS = 3, ROUNDS = 100 };
    for (int turn = 0; turn < TURNS; turn++) {
        char bytes[ROUNDS + 1], expected[ROUNDS];
        int fd = cold_connection(), set = epoll_create1(0), on = 1, got = 0;
        struct epoll_event event;
        ssize_t n = -1;
        setsockopt(fd, IPPROTO_TCP, me.client ? TCP_CORK : TCP_NODELAY, &on, sizeof on);
        add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
        fill_pattern(expected, 0, ROUNDS, 1);
        for (int i = 0; i < ROUNDS; i++) {
            meet();
            if (me.server)
                put(fd, "a", 1);
            else if (get(fd, bytes, 1))
                put(fd, expected + i, 1);
        }
        if (me.client)
            shutdown(fd, SHUT_WR);
        while (me.server && n != 0 && epoll_wait(set, &event, 1, 600) == 1)
            while ((n = recv(fd, bytes + got, sizeof bytes - got, MSG_DONTWAIT)) > 0)
                got += n;
        if (me.server)
            say(n == 0 && memcmp(bytes, expected, ROUNDS) == 0 ? "all came" : "! told of %d bytes only", got);
        meet();
        close(set);
        close(fd);
    }
}

/* Both sides have much to send while the connection is lifted, one by calls that block, the other by edges: that TCP has bytes is an
 * edge also where it has no room. */
void scenario_epoll_edge_while_both_send(void) {
    enum { MUCH = 8 << 20, PART = 65536 };
    static char out[PART], in[PART], expected[PART];
    for (int trips = 2; trips < 22; trips++) {
        int fd = cold_connection(), set = epoll_create1(0);
        struct epoll_event event;
        for (int i = 0; i < trips; i++) {
            char byte = 'x';
            if (me.client)
                put(fd, &byte, 1);
            get(fd, &byte, 1);
            if (me.server)
                put(fd, &byte, 1);
        }
        if (me.client) {
            char *all = malloc(MUCH);
            fill_pattern(all, 0, MUCH, 1);
            put(fd, all, MUCH); /* one call */
            free(all);
            get_pattern(fd, 0, MUCH, 2);
        } else {
            size_t sent = 0, got = 0;
            add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1);
            while ((sent < MUCH || got < MUCH) && epoll_wait(set, &event, 1, 3000) == 1) {
                ssize_t n = 1;
                while (sent < MUCH && n > 0) {
                    fill_pattern(out, sent, PART, 2);
                    size_t left = MUCH - sent;
                    n = send(fd, out, left < PART ? left : PART, MSG_DONTWAIT);
                    sent += n > 0 ? n : 0;
                }
                n = 1;
                while (got < MUCH && n > 0 && (n = recv(fd, in, PART, MSG_DONTWAIT)) > 0) {
                    fill_pattern(expected, got, n, 1);
                    if (memcmp(in, expected, n))
                        say("! wrong bytes at %zu", got);
                    got += n;
                }
            }
            if (sent < MUCH || got < MUCH) {
                say("! after %d trips: sent %zu, got %zu, told of no more", trips, sent, got);
                close(fd);
                return;
            }
        }
        meet();
        close(set);
        close(fd);
    }
    say("all came");
}

/* A call that does not wait finds what is there, however often it was asked before. */
void scenario_epoll_looks_at_all(void) {
    int fd = connection(), set = epoll_create1(0), pipes[2], missed = 0;
    char byte = 0;
    pipe(pipes);
    add(set, fd, EPOLLIN, 1);
    add(set, pipes[0], EPOLLIN, 2);
    for (int i = 0; i < 1000; i++) {
        struct epoll_event event;
        write(pipes[1], &byte, 1);
        missed += epoll_wait(set, &event, 1, 0) != 1;
        read(pipes[0], &byte, 1);
    }
    say("missed %d", missed);
    meet();
}

void scenario_epoll_oneshot(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "ab");
        meet();
        put_text(fd, "cd");
        meet();
        meet();
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    int set = epoll_create1(0);
    char buffer[8];
    T(add(set, fd, EPOLLIN | EPOLLONESHOT, 1));
    look("first", set, 5000);
    look("disarmed", set, 0);
    meet();
    await_readable(fd, 4);
    look("disarmed, more bytes", set, 20);
    T(modify(set, fd, EPOLLIN | EPOLLONESHOT, 2));
    look("armed again", set, 5000);
    look("disarmed", set, 0);
    T(read(fd, buffer, 8));
    T(modify(set, fd, EPOLLIN | EPOLLET | EPOLLONESHOT, 3));
    look("armed, nothing there", set, 0);
    meet();
    T(modify(set, fd, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLONESHOT, 4));
    look("writable", set, 0);
    look("disarmed", set, 0);
    meet();
    await_bits(fd, POLLRDHUP);
    look("disarmed at the end of the stream", set, 0);
    T(modify(set, fd, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, 5));
    look("end of stream", set, 0);
    meet();
}

void scenario_epoll_hangup(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "last");
        shutdown(fd, SHUT_WR);
        meet();
        expect_end(fd);
        close(fd);
        meet();
        return;
    }
    int set = epoll_create1(0), edges = epoll_create1(0), silent = epoll_create1(0);
    T(add(set, fd, EPOLLIN | EPOLLRDHUP | EPOLLOUT, 1));
    T(add(edges, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, 2));
    T(add(silent, fd, 0, 3));
    await_bits(fd, POLLRDHUP);
    look("level", set, 0);
    look("edge", edges, 0);
    look("edge again", edges, 0);
    look("asked for nothing", silent, 0);
    expect_text(fd, "last");
    look("level, drained", set, 0);
    expect_end(fd);
    look("level, end read", set, 0);
    meet();
    shutdown(fd, SHUT_WR);
    await_bits(fd, 0);
    look("level, closed", set, 0);
    look("asked for nothing, closed", silent, 0);
    meet();
}

void scenario_epoll_ctl_errors(void) {
    int fd = connection();
    int set = epoll_create1(0), other = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    T(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, &event));
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    T(epoll_ctl(set, 77, fd, &event));
    T(epoll_ctl(set, EPOLL_CTL_ADD, 300, &event));
    T(epoll_ctl(300, EPOLL_CTL_ADD, fd, &event));
    T(epoll_ctl(fd, EPOLL_CTL_ADD, set, &event));
    T(epoll_ctl(set, EPOLL_CTL_ADD, set, &event));
    T(epoll_ctl(set, EPOLL_CTL_MOD, fd, NULL));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(add(set, fd, EPOLLIN | EPOLLEXCLUSIVE, 1));
    T(modify(set, fd, EPOLLIN, 1));
    T(modify(set, fd, EPOLLIN | EPOLLEXCLUSIVE, 1));
    T(add(other, fd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    T(add(other, fd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLET | EPOLLOUT, 1));
    T(epoll_wait(set, &event, 0, 0));
    T(epoll_wait(set, &event, -1, 0));
    T(epoll_wait(fd, &event, 1, 0));
    T(epoll_wait(300, &event, 1, 0));
    T(epoll_wait(set, (void *)16, 1, 0));
    T(epoll_create1(0x55));
    T(epoll_create(0));
    T(epoll_wait(set, &event, 1, 0));
    look("exclusive, writable", other, 0);
    meet();
}

void scenario_epoll_delete_and_add_again(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "ab");
        meet();
        meet();
        put_text(fd, "cd");
        meet();
        return;
    }
    int set = epoll_create1(0);
    char buffer[8];
    await_readable(fd, 2);
    for (int i = 0; i < 3; i++) {
        T(add(set, fd, EPOLLIN | (i == 1 ? EPOLLET : 0), i));
        look("added", set, 0);
        look("second look", set, 0);
        struct epoll_event event = {0};
        T(epoll_ctl(set, EPOLL_CTL_DEL, fd, &event));
        look("deleted", set, 0);
    }
    T(read(fd, buffer, 8));
    meet();
    T(add(set, fd, EPOLLIN, 9));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    meet();
    await_readable(fd, 2);
    look("deleted before the bytes came", set, 20);
    T(add(set, fd, EPOLLIN, 10));
    look("added after", set, 0);
    meet();
}

/* Changes between two waits, by a program that has waited often: only their sum can be seen, but each has its result. */
static void changes_between_waits(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "ab");
        meet();
        meet();
        return;
    }
    int set = epoll_create1(0), outer = epoll_create1(0);
    await_readable(fd, 2);
    T(add(set, fd, EPOLLOUT, 1));
    for (int i = 0; i < 20; i++)
        look("accustomed", set, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    look("deleted", set, 0);
    T(add(set, fd, EPOLLIN, 2));
    T(add(set, fd, EPOLLIN, 3));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(modify(set, fd, EPOLLIN, 4));
    T(add(set, fd, EPOLLIN, 5));
    T(modify(set, fd, EPOLLIN, 6));
    look("the last", set, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(add(set, fd, EPOLLIN, 6));
    look("as before", set, 0);
    T(modify(set, fd, EPOLLIN | EPOLLET, 7));
    look("edge", set, 0);
    look("no edge", set, 0);
    T(modify(set, fd, EPOLLIN | EPOLLET, 7));
    look("armed again", set, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    T(add(set, fd, EPOLLIN | EPOLLONESHOT, 8));
    look("one shot", set, 0);
    look("shot", set, 0);
    T(modify(set, fd, EPOLLIN, 9));
    T(add(outer, set, EPOLLIN, 10));
    look("seen from outside", outer, 0);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    look("nothing from outside", outer, 0);
    T(add(set, fd, EPOLLIN, 11));
    look("again from outside", outer, 0);
    close(outer);
    meet();
    int twin = dup(fd);
    T(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
    close(fd);
    look("deleted, then closed", set, 0);
    meet();
    close(twin);
}

void scenario_epoll_changes_between_waits(void) {
    changes_between_waits();
}

void scenario_epoll_changes_between_waits_cold(void) {
    changes_between_waits();
}

/* The set is older than the connection: added while connecting, lifted while in the set. */
void scenario_epoll_before_connect(void) {
    int set = epoll_create1(0);
    int fd;
    if (me.client) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        T(add(set, fd, EPOLLIN | EPOLLOUT | EPOLLET, 1));
        look("not connected", set, 0);
        struct sockaddr_in address = server_address();
        T(connect(fd, (struct sockaddr *)&address, sizeof address));
        look("connected", set, 5000);
    } else {
        fd = cold_connection();
        T(add(set, fd, EPOLLIN, 2));
    }
    warm(fd);
    if (me.client) {
        modify(set, fd, EPOLLIN | EPOLLET, 3);
        meet();
        await_readable(fd, 5);
        look("bytes", set, 5000);
        expect_text(fd, "to it");
        look("drained", set, 0);
        put_text(fd, "back");
    } else {
        look("idle", set, 0);
        meet();
        put_text(fd, "to it");
        look("bytes", set, 5000);
        expect_text(fd, "back");
        look("drained", set, 0);
    }
    meet();
}

/* A connection, an eventfd, a timer and a pipe in one set: each is reported. */
void scenario_epoll_mixed_kinds(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "bytes");
        meet();
        return;
    }
    int set = epoll_create1(0), ends[2];
    int event = eventfd(0, EFD_NONBLOCK), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    if (pipe(ends) != 0)
        return;
    add(set, fd, EPOLLIN, 1);
    add(set, event, EPOLLIN, 2);
    add(set, timer, EPOLLIN, 3);
    add(set, ends[0], EPOLLIN, 4);
    uint64_t value = 5;
    char buffer[8];
    look("idle", set, 0);
    T(write(event, &value, sizeof value));
    look("eventfd", set, 5000);
    T(read(event, &value, sizeof value));
    struct itimerspec soon = {.it_value = {0, 5000000}};
    timerfd_settime(timer, 0, &soon, NULL);
    look("timer", set, 5000);
    T(read(timer, &value, sizeof value));
    T(write(ends[1], "p", 1));
    look("pipe", set, 5000);
    T(read(ends[0], buffer, 8));
    tell(getpid());
    look("connection", set, 5000);
    expect_text(fd, "bytes");
    look("idle", set, 0);
    meet();
}

/* The program closes what is registered without deleting it first, at every stage of being lifted: nothing more is told of it. */
void scenario_epoll_closed_without_delete(void) {
    int told_of = 0, set = epoll_create1(0);
    for (int i = 0; i < 60; i++) {
        int ends[2];
        cold_ends(ends);
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
        epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event);
        for (int trips = i % 20; trips > 0; trips--)
            round_trip(ends);
        close(ends[1]);
        await_bits(ends[0], POLLIN);
        close(ends[0]);
        for (int looks = 0; looks < 20; looks++)
            told_of += epoll_wait(set, &event, 1, 0);
    }
    say("told of closed ones %d times", told_of);
    meet();
}
