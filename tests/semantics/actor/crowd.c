/* Many connections at once, idle ones, and the check that warming up does lift. */
#include "actor.h"

#include <arpa/inet.h>
#include <sys/resource.h>

enum { CROWD = 500, MESSAGE = 64, ROUNDS = 12 };

static void raise_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

/* Echoes on all connections until all have ended. */
static void serve_crowd(void) {
    int set = epoll_create1(0), open = 0, accepted = 0;
    long echoed = 0;
    struct epoll_event events[64];
    events[0] = (struct epoll_event){.events = EPOLLIN, .data.fd = me.listener};
    epoll_ctl(set, EPOLL_CTL_ADD, me.listener, events);
    while (accepted < CROWD || open > 0) {
        int n = epoll_wait(set, events, COUNT(events), 5000);
        if (n <= 0) {
            say("! nothing for 5 s: %d accepted, %d open", accepted, open);
            return;
        }
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            char message[4096];
            if (fd == me.listener) {
                struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
                event.data.fd = accept4(fd, NULL, NULL, SOCK_NONBLOCK);
                epoll_ctl(set, EPOLL_CTL_ADD, event.data.fd, &event);
                accepted++;
                open++;
                continue;
            }
            ssize_t count = read(fd, message, sizeof message);
            if (count > 0 && write(fd, message, count) == count) {
                echoed += count;
            } else if (count == 0) {
                close(fd);
                open--;
            }
        }
    }
    say("accepted %d, echoed %ld", accepted, echoed);
}

void scenario_crowd(void) {
    raise_limit();
    if (me.server) {
        serve_crowd();
        meet();
        return;
    }
    int fds[CROWD], wrong = 0;
    for (int i = 0; i < CROWD; i++)
        fds[i] = cold_connection();
    for (int round = 0; round < ROUNDS; round++) {
        char sent[MESSAGE], received[MESSAGE];
        for (int i = 0; i < CROWD; i++) {
            fill_pattern(sent, i * round, sizeof sent, i);
            put(fds[i], sent, sizeof sent);
        }
        for (int i = 0; i < CROWD; i++) {
            fill_pattern(sent, i * round, sizeof sent, i);
            wrong += get(fds[i], received, sizeof received) != sizeof received ||
                     memcmp(sent, received, sizeof sent) != 0;
        }
    }
    for (int i = 0; i < CROWD; i++)
        close(fds[i]);
    say("wrong %d", wrong);
    meet();
}

static long cpu_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* A second of nothing costs nothing: both wait, one in recv and one in epoll_wait, on warm connections. */
void scenario_idle(void) {
    enum { IDLE = 20 };
    int fds[IDLE];
    for (int i = 0; i < IDLE; i++)
        fds[i] = connection();
    meet();
    long before = cpu_ms();
    if (me.server) {
        char byte;
        T(recv(fds[0], &byte, 1, 0));
    } else {
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        for (int i = 0; i < IDLE; i++)
            epoll_ctl(set, EPOLL_CTL_ADD, fds[i], &event);
        T(epoll_wait(set, &event, 1, 1000));
        put_text(fds[0], "w");
    }
    long used = cpu_ms() - before;
    if (used > 20)
        say("! %ld ms of CPU time in an idle second", used);
    meet();
}

/* The runner looks at the service's list while the connection is warm, then lets both sides go on. */
void scenario_warm_and_wait(void) {
    int fd = connection();
    char byte;
    say("warm");
    if (me.client)
        expect_text(fd, "release");
    const char *release = getenv("ACTOR_RELEASE");
    for (int i = 0; me.server && release && access(release, F_OK) != 0 && i < 80; i++)
        usleep(100000);
    if (me.server)
        put_text(fd, "release");
    T(recv(fd, &byte, 1, MSG_DONTWAIT));
    meet();
}
