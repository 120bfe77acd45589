/* Connections that are idle for a while, which over VMMC go back to TCP, and are used again.
 *
 * The runner makes them idle for long after a tenth of a second. As for the warm-up it names a file that says how far it has seen
 * the connection come; with a number behind its name for each time that it was parked (1, 3, 5) and lifted again (2, 4, 6). */
#include "actor.h"

#include <sys/select.h>

enum { PATIENCE = 30000 };

static int turns;

/* Whether the runner has not seen the turn yet. Without a runner that looks there is nothing to wait for. */
static bool pending(int turn, const struct timespec *since) {
    const char *gate = getenv("ACTOR_WARM_GATE");
    char name[4096];
    if (!gate)
        return false;
    snprintf(name, sizeof name, "%s.%d", gate, turn);
    if (access(name, F_OK) == 0)
        return false;
    if (elapsed_ms(since) < PATIENCE)
        return true;
    say("! turn %d did not come", turn);
    return false;
}

/* Until the connection is parked; nothing is sent. */
static void idle(int fd) {
    struct timespec start = now();
    turns++;
    while (pending(turns, &start)) {
        struct pollfd item = {.fd = fd, .events = POLLRDHUP};
        poll(&item, 1, 10);
    }
}

/* Small round trips, until the connection is lifted again; before each the server arms its one-shot registration in `set`. */
static void busy(int fd, int set) {
    struct timespec start = now();
    char message[8] = {0};
    turns++;
    for (int round = 0; message[0] == 0; round++) {
        if (me.client)
            message[0] = round >= 20 && !pending(turns, &start);
        if (me.client && !put(fd, message, sizeof message))
            return;
        struct epoll_event armed = {.events = EPOLLIN | EPOLLONESHOT};
        if (me.server && set >= 0)
            epoll_ctl(set, EPOLL_CTL_MOD, fd, &armed);
        if (get(fd, message, sizeof message) != sizeof message)
            return;
        if (me.server && !put(fd, message, sizeof message))
            return;
        if (round > 20)
            usleep(100);
    }
}

static struct tcp_info counters(int fd) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
    return info;
}

/* Bytes before, while and after it is parked; whoever counts them counts all. */
void scenario_parked_and_used(void) {
    int fd = connection();
    for (int turn = 0; turn < 3; turn++) {
        meet();
        struct timespec start = now();
        struct tcp_info before = counters(fd);
        while (me.client && before.tcpi_bytes_acked < before.tcpi_bytes_sent && elapsed_ms(&start) < 5000)
            before = counters(fd);
        uint64_t done = 0;
        meet();
        for (int part = 0; part < 2; part++) {
            size_t count = part ? 3000 : 50000;
            if (me.client)
                put_pattern(fd, done, count, turn);
            else
                get_pattern(fd, done, count, turn);
            done += count;
            meet();
            if (part == 0) {
                idle(fd);
                meet();
            }
        }
        start = now();
        struct tcp_info after = counters(fd);
        while (me.client && after.tcpi_bytes_acked - before.tcpi_bytes_acked < done && elapsed_ms(&start) < 5000) {
            usleep(500);
            after = counters(fd);
        }
        if (me.client)
            say("acknowledged %llu sent %llu", (unsigned long long)(after.tcpi_bytes_acked - before.tcpi_bytes_acked),
                (unsigned long long)(after.tcpi_bytes_sent - before.tcpi_bytes_sent));
        else
            say("received %llu", (unsigned long long)(after.tcpi_bytes_received - before.tcpi_bytes_received));
        int left = -1;
        T(ioctl(fd, me.client ? TIOCOUTQ : FIONREAD, &left));
        say("left %d", left);
        meet();
        busy(fd, -1);
    }
    shutdown(fd, SHUT_WR);
    expect_end(fd);
    meet();
}

/* The server sleeps in some call all the time, also when bytes come. */
static long sleep_in(int kind, int fd, int set, char *bytes) {
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct epoll_event event = {0};
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    switch (kind) {
    case 0: return read(fd, bytes, 16);
    case 1: return recv(fd, bytes, 8, MSG_WAITALL);
    case 2: T(poll(&item, 1, -1)); say_poll("poll", item.revents); break;
    case 3: T(select(fd + 1, &readable, NULL, NULL, NULL)); break;
    default: T(epoll_wait(set, &event, 1, -1)); say_epoll("epoll", event.events);
    }
    return read(fd, bytes, 16);
}

void scenario_parked_under_sleep(void) {
    int fd = connection();
    for (int kind = 0; kind < 7; kind++) {
        char bytes[16];
        int set = epoll_create1(0);
        struct epoll_event interest = {.events = EPOLLIN};
        interest.events |= kind == 5 ? EPOLLET : kind == 6 ? EPOLLONESHOT : 0;
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &interest);
        meet();
        if (me.client) {
            if (kind == 1)
                put_text(fd, "one ");
            idle(fd);
            put_text(fd, kind == 1 ? "word" : "word after word");
        } else {
            turns++;
            say_bytes("came", bytes, sleep_in(kind, fd, set, bytes));
        }
        meet();
        close(set);
        busy(fd, -1);
    }
    shutdown(fd, SHUT_WR);
    expect_end(fd);
}

/* What has shot, whether lifted or parked, stays so until it is armed again. */
void scenario_parked_one_shot(void) {
    int fd = connection();
    int set = epoll_create1(0);
    struct epoll_event armed = {.events = EPOLLIN | EPOLLONESHOT}, event;
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &armed);
    for (int turn = 0; turn < 4; turn++) {
        meet();
        if (me.client) {
            put_text(fd, "bytes");
        } else {
            if (turn == 1 || turn == 2) {
                await_readable(fd, 5);
                T(epoll_wait(set, &event, 1, 50));
                T(epoll_ctl(set, EPOLL_CTL_MOD, fd, &armed));
            }
            T(epoll_wait(set, &event, 1, 5000));
            expect_text(fd, "bytes");
        }
        meet();
        if (turn == 0)
            idle(fd);
        /* Enough to be lifted again. */
        for (int round = 0; turn == 1 && round < 60; round++)
            hello(fd);
        if (turn == 2)
            busy(fd, set);
    }
}

/* A child inherits a parked connection, then one that was lifted again. */
void scenario_parked_then_forked(void) {
    int fd = connection();
    idle(fd);
    for (int turn = 0; turn < 2; turn++) {
        meet();
        if (me.client) {
            put_text(fd, "to the child");
            expect_text(fd, "from the child");
            put_text(fd, "to the parent");
            expect_text(fd, "from the parent");
        } else {
            fflush(stdout);
            pid_t child = fork();
            if (child == 0) {
                expect_text(fd, "to the child");
                put_text(fd, "from the child");
                close(fd);
                _exit(0);
            }
            int status = -1;
            waitpid(child, &status, 0);
            say_status("child", status);
            expect_text(fd, "to the parent");
            put_text(fd, "from the parent");
        }
        meet();
        if (turn == 0)
            busy(fd, -1);
    }
    shutdown(fd, SHUT_WR);
    expect_end(fd);
    meet();
}

/* Another program gets a connection that was lifted before, and the one that had it lets go. */
void scenario_parked_then_spawned(void) {
    int fd = connection();
    idle(fd);
    meet();
    if (me.client) {
        meet();
        put_text(fd, "through another program");
        shutdown(fd, SHUT_WR);
        expect_text(fd, "through another program");
        expect_end(fd);
    } else {
        pid_t child = vfork();
        if (child == 0) {
            dup2(fd, 0);
            dup2(fd, 1);
            close(fd);
            execlp("cat", "cat", NULL);
            _exit(127);
        }
        close(fd);
        meet();
        int status = -1;
        waitpid(child, &status, 0);
        say_status("cat", status);
    }
}

void scenario_parked_then_half_closed(void) {
    int fd = connection();
    int set = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN | EPOLLRDHUP}, event = {0};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &interest);
    idle(fd);
    meet();
    if (me.client) {
        put_text(fd, "last words");
        T(shutdown(fd, SHUT_WR));
        expect_text(fd, "answer");
        expect_end(fd);
    } else {
        expect_text(fd, "last words");
        T(epoll_wait(set, &event, 1, 5000));
        say_epoll("ended", event.events);
        expect_end(fd);
        put_text(fd, "answer");
        T(close(fd));
    }
    meet();
}

/* Both ends have let go of each other, and the service of both: the end is seen at once all the same. */
void scenario_parked_then_closed(void) {
    int fd = connection();
    char byte;
    idle(fd);
    meet();
    if (me.client) {
        T(close(fd));
        meet();
    } else {
        meet();
        struct pollfd item = {.fd = fd, .events = POLLIN | POLLRDHUP};
        T(poll(&item, 1, 0));
        say_poll("closed", item.revents);
        T(read(fd, &byte, 1));
    }
    meet();
}

void scenario_parked_peer_killed(void) {
    int fd = connection();
    idle(fd);
    meet();
    if (me.client)
        raise(SIGKILL);
    char byte;
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLRDHUP};
    T(poll(&item, 1, 5000));
    say_poll("killed", item.revents);
    T(read(fd, &byte, 1));
}

/* Pauses about as long as it takes to be parked, at both ends: whatever is sent in that moment comes, once and in order. */
void scenario_parked_race(void) {
    int fd = connection();
    struct timespec start = now();
    long sent = 0, got = 0;
    unsigned seed = me.client ? 1 : 2;
    ssize_t n = 1;
    while (elapsed_ms(&start) < 2500) {
        static char bytes[4096], expected[4096];
        struct pollfd item = {.fd = fd, .events = POLLIN};
        seed = seed * 1103515245 + 12345;
        size_t count = 1 + (seed >> 16) % 2000;
        if ((seed >> 8) % 4 != 0) {
            put_pattern(fd, sent, count, me.client);
            sent += count;
        }
        if (poll(&item, 1, (seed >> 20) % 9) != 1)
            continue;
        n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n <= 0)
            break;
        fill_pattern(expected, got, n, me.server);
        if (memcmp(bytes, expected, n) != 0)
            say("! other bytes than were written, after %ld", got);
        got += n;
    }
    meet();
    tell(sent);
    long all = told();
    get_pattern(fd, got, all - got, me.server);
    say("all came");
    meet();
    shutdown(fd, SHUT_WR);
    expect_end(fd);
}
