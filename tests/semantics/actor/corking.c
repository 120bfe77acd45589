/* Bytes that a program holds back, by MSG_MORE or TCP_CORK: a peer does not see them in pieces, and sees them in the end. */
#include "actor.h"

#include <pthread.h>
#include <sys/select.h>

static void set(int fd, int option, int on) {
    setsockopt(fd, IPPROTO_TCP, option, &on, sizeof on);
}

/* What a look at the connection gives, as a number that both sides can compare. */
static long see(int fd) {
    char buffer[64];
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct epoll_event event = {.events = EPOLLIN};
    int readable = 0, epoll = epoll_create1(0);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    long polled = poll(&item, 1, 0), told = epoll_wait(epoll, &event, 1, 0);
    long selected = select(fd + 1, &reading, NULL, NULL, &(struct timeval){0});
    ioctl(fd, FIONREAD, &readable);
    long peeked = recv(fd, buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT);
    close(epoll);
    return (peeked < 0 ? 0 : peeked) * 1000000 + readable * 1000 + polled * 100 + told * 10 + selected;
}

/* The server says what it sees of what `hold` sent, unless the machine was so slow that it may have been sent on meanwhile; then
 * `follow` sends the rest of what is "held until now". */
static void hold_and_follow(int fd, void (*hold)(int), void (*follow)(int)) {
    char buffer[64] = "";
    for (bool late = true; late;) {
        if (me.client) {
            struct timespec start = now();
            hold(fd);
            tell(0);
            told();
            late = elapsed_ms(&start) > 150;
            tell(late);
            follow(fd);
        } else {
            told();
            long seen = see(fd);
            tell(0);
            late = told();
            await_readable(fd, 14);
            long count = recv(fd, buffer, sizeof buffer, 0);
            if (!late) {
                say("seen %ld", seen);
                say_bytes("recv", buffer, count);
            }
        }
    }
    meet();
}

static void send_more(int fd) {
    send(fd, "he", 2, MSG_MORE);
    send(fd, "ld ", 3, MSG_MORE | MSG_NOSIGNAL);
}

static void send_rest(int fd) {
    send(fd, "until now", 9, 0);
}

void scenario_held_back(void) {
    hold_and_follow(connection(), send_more, send_rest);
}

static void send_corked(int fd) {
    set(fd, TCP_CORK, 1);
    put_text(fd, "held ");
    put_text(fd, "until ");
    put_text(fd, "now");
}

static void uncork(int fd) {
    set(fd, TCP_CORK, 0);
}

void scenario_corked(void) {
    hold_and_follow(connection(), send_corked, uncork);
}

static void set_nodelay(int fd) {
    set(fd, TCP_NODELAY, 1);
}

/* This sends what is there, and leaves the cork where it is. */
void scenario_corked_then_nodelay(void) {
    int fd = connection();
    hold_and_follow(fd, send_corked, set_nodelay);
    hold_and_follow(fd, send_corked, uncork);
}

/* Corked before it is lifted. */
static void cork_and_switch_nodelay_off(int fd) {
    set(fd, TCP_CORK, 1);
    send(fd, "held ", 5, 0);
    set(fd, TCP_NODELAY, 0);
}

static void uncork_behind(int fd) {
    send(fd, "until now", 9, 0);
    set(fd, TCP_CORK, 0);
}

/* Switched on it sends what is held back; switched off it does not. */
void scenario_corked_then_nodelay_off(void) {
    hold_and_follow(connection(), cork_and_switch_nodelay_off, uncork_behind);
}

void scenario_corked_from_the_beginning(void) {
    int fd = cold_connection();
    char byte = 'x';
    set(fd, TCP_CORK, me.client);
    for (int i = 0; i < 3000; i++) {
        if (me.client) {
            put(fd, &byte, 1);
            set_nodelay(fd);
        }
        get(fd, &byte, 1);
        if (me.server)
            put(fd, &byte, 1);
    }
    hold_and_follow(fd, send_corked, set_nodelay);
}

/* ---- nothing follows ---- */

static void answer(int fd, const char *how, bool in_time) {
    char buffer[64];
    say("%s: in time %d", how, in_time);
    say_bytes("recv", buffer, recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    put_text(fd, "answer");
}

static void ask_and_hold_back(int fd, int times) {
    for (int i = 0; i < times; i++) {
        await_asleep(me.peer);
        send(fd, "question", 8, MSG_MORE);
        expect_text(fd, "answer");
    }
}

/* However the peer waits, it is told in the end. */
void scenario_held_back_and_waited_for(void) {
    int fd = connection();
    if (me.client) {
        ask_and_hold_back(fd, 5);
        meet();
        return;
    }
    char buffer[64];
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timeval patience = {.tv_sec = 5};
    fd_set reading;
    say_bytes("recv", buffer, recv(fd, buffer, sizeof buffer, 0));
    put_text(fd, "answer");
    answer(fd, "poll", poll(&item, 1, 5000) == 1);
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    answer(fd, "select", select(fd + 1, &reading, NULL, NULL, &patience) == 1);
    static const uint32_t kinds[] = {EPOLLIN, EPOLLIN | EPOLLET};
    for (size_t i = 0; i < COUNT(kinds); i++) {
        int set = epoll_create1(0);
        struct epoll_event event = {.events = kinds[i]};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        answer(fd, "epoll", epoll_wait(set, &event, 1, 5000) == 1);
        close(set);
    }
    meet();
}

/* Who does not wait, but looks again and again, sees it too. */
void scenario_held_back_and_looked_for(void) {
    int fd = connection();
    if (me.client) {
        send(fd, "question", 8, MSG_MORE);
        expect_text(fd, "answer");
        meet();
        return;
    }
    char buffer[64];
    long count;
    struct timespec start = now();
    do
        count = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    while (count < 0 && errno == EAGAIN && elapsed_ms(&start) < 5000);
    say_bytes("recv", buffer, count);
    put_text(fd, "answer");
    meet();
}

struct waiter {
    int set;
    _Atomic pid_t thread;
    _Atomic bool found;
    uint64_t data;
};

static void *wait_on_set(void *argument) {
    struct waiter *waiter = argument;
    struct epoll_event event;
    waiter->thread = gettid();
    if (epoll_wait(waiter->set, &event, 1, 5000) == 1)
        waiter->data = event.data.u64;
    waiter->found = true;
    return NULL;
}

/* Two threads sleep on one set; one of them learns first that something is held back, and is called away. */
void scenario_held_back_from_two_threads(void) {
    int fd = connection();
    if (me.client) {
        for (int i = 0; i < 2; i++) {
            told();
            send(fd, "question", 8, MSG_MORE);
            tell(0);
            expect_text(fd, "answer");
        }
        meet();
        return;
    }
    int set = epoll_create1(0), ends[2];
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    pipe(ends);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = 2};
    epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event);
    for (int i = 0; i < 2; i++) {
        struct waiter waiters[2] = {{.set = set}, {.set = set}};
        pthread_t threads[2];
        for (int n = 0; n < 2; n++) {
            pthread_create(&threads[n], NULL, wait_on_set, &waiters[n]);
            while (waiters[n].thread == 0)
                usleep(100);
            await_asleep(waiters[n].thread);
        }
        tell(0);
        told();
        write(ends[1], "x", 1);
        while (!waiters[0].found && !waiters[1].found)
            usleep(100);
        char buffer[64];
        read(ends[0], buffer, 1);
        for (int n = 0; n < 2; n++)
            pthread_join(threads[n], NULL);
        say("told of %d", (int)(waiters[0].data + waiters[1].data));
        say_bytes("recv", buffer, recv(fd, buffer, sizeof buffer, 0));
        put_text(fd, "answer");
    }
    meet();
}

/* ---- the end follows ---- */

static void end_by_shutdown(int fd) {
    shutdown(fd, SHUT_WR);
}

static void end_by_close(int fd) {
    close(fd);
}

static void end_by_exit(int fd) {
    (void)fd;
    exit(0);
}

static void end_by_kill(int fd) {
    (void)fd;
    raise(SIGKILL);
}

static void hold_and_end(void (*end)(int)) {
    int fd = connection();
    if (me.client) {
        send(fd, "last words", 10, MSG_MORE);
        end(fd);
        meet_if_alive();
        return;
    }
    expect_text(fd, "last words");
    expect_end(fd);
    meet_if_alive();
}

void scenario_held_back_then_shutdown(void) {
    hold_and_end(end_by_shutdown);
}

void scenario_held_back_then_closed(void) {
    hold_and_end(end_by_close);
}

void scenario_held_back_then_exit(void) {
    hold_and_end(end_by_exit);
}

void scenario_held_back_then_killed(void) {
    hold_and_end(end_by_kill);
}

/* ---- the connection goes back to TCP ---- */

static void lower(int fd) {
    char byte;
    recv(fd, &byte, 1, MSG_ERRQUEUE | MSG_DONTWAIT);
}

static void hold_and_lower(bool sender) {
    int fd = connection();
    if (me.client) {
        send(fd, "held ", 5, MSG_MORE);
        if (sender)
            lower(fd);
        meet();
        meet();
        send(fd, "until now", 9, 0);
        expect_text(fd, "answer");
        meet();
        return;
    }
    meet();
    if (!sender)
        lower(fd);
    meet();
    expect_text(fd, "held until now");
    put_text(fd, "answer");
    meet();
}

void scenario_held_back_then_sender_lowers(void) {
    hold_and_lower(true);
}

void scenario_held_back_then_reader_lowers(void) {
    hold_and_lower(false);
}

/* ---- more than can be held back ---- */

void scenario_held_back_by_the_megabyte(void) {
    static char bytes[700];
    const int times = 6000;
    int fd = connection();
    if (me.client) {
        for (int i = 0; i < times; i++) {
            fill_pattern(bytes, (uint64_t)i * sizeof bytes, sizeof bytes, 1);
            for (size_t sent = 0; sent < sizeof bytes;)
                sent += send(fd, bytes + sent, sizeof bytes - sent, MSG_MORE);
        }
        expect_text(fd, "all of it");
        meet();
        return;
    }
    get_pattern(fd, 0, times * sizeof bytes, 1);
    put_text(fd, "all of it");
    meet();
}

/* Nobody reads: what cannot be held back is no reason to refuse more. */
void scenario_held_back_until_full(void) {
    static char bytes[5000];
    int fd = connection();
    if (me.client) {
        long taken = 0, sent;
        while ((sent = send(fd, bytes, sizeof bytes, MSG_MORE | MSG_DONTWAIT)) > 0)
            taken += sent;
        tell(taken);
        struct pollfd item = {.fd = fd, .events = POLLOUT};
        say("room in the end %d", poll(&item, 1, 5000) == 1);
        meet();
        return;
    }
    long taken = told(), got = 0, count;
    while (got < taken && (count = recv(fd, bytes, sizeof bytes, 0)) > 0)
        got += count;
    say("all came %d", got == taken);
    meet();
}
