/* Urgent data: one byte out of band, and the mark where it was. */
#include "actor.h"

#include <sys/select.h>

static int at_mark(int fd) {
    int value = -1;
    ioctl(fd, SIOCATMARK, &value);
    return value;
}

void scenario_urgent_byte(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "before");
        T(send(fd, "U", 1, MSG_OOB));
        put_text(fd, "after");
        meet();
        meet();
        warm(fd);
        meet();
        return;
    }
    meet();
    say_poll("urgent", await_bits(fd, POLLPRI));
    await_readable(fd, 6);
    fd_set failing;
    FD_ZERO(&failing);
    FD_SET(fd, &failing);
    T(select(fd + 1, NULL, NULL, &failing, &(struct timeval){0, 0}));
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLPRI | EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    T(epoll_wait(set, &event, 1, 0));
    say_epoll("urgent", event.events);
    say("at mark %d", at_mark(fd));
    say_bytes("urgent byte", buffer, T(recv(fd, buffer, sizeof buffer, MSG_OOB)));
    T(recv(fd, buffer, sizeof buffer, MSG_OOB));
    say_bytes("up to the mark", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("at mark %d", at_mark(fd));
    say_bytes("after the mark", buffer, get(fd, buffer, 5));
    say("at mark %d", at_mark(fd));
    meet();
    warm(fd);
    meet();
}

void scenario_urgent_inline(void) {
    char buffer[32];
    int fd = connection(), on = 1;
    if (me.client) {
        meet();
        put_text(fd, "be");
        T(send(fd, "forU", 4, MSG_OOB));
        put_text(fd, "after");
        meet();
        return;
    }
    T(setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    meet();
    say_poll("urgent", await_bits(fd, POLLPRI));
    await_readable(fd, 5);
    T(recv(fd, buffer, 1, MSG_OOB));
    say_bytes("up to the mark", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("at mark %d", at_mark(fd));
    await_readable(fd, 6);
    say_bytes("from the mark", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
}

static volatile sig_atomic_t urgent_signals;

static void count_urgent(int number) {
    (void)number;
    urgent_signals++;
}

void scenario_urgent_signal(void) {
    int fd = connection();
    if (me.client) {
        meet();
        T(send(fd, "!", 1, MSG_OOB));
        meet();
        return;
    }
    struct sigaction action = {.sa_handler = count_urgent};
    sigaction(SIGURG, &action, NULL);
    T(fcntl(fd, F_SETOWN, getpid()));
    T(recv(fd, &(char){0}, 1, MSG_OOB));
    meet();
    say_poll("urgent", await_bits(fd, POLLPRI));
    say("SIGURG %d", (int)urgent_signals);
    meet();
}

/* An urgent byte comes while the connection is being lifted, or right after it, before its reader has seen the ring. */
int urgent_while_lifting(int rounds) {
    int wrong_before = 0, wrong_behind = 0;
    for (int round = 0; round < rounds; round++) {
        char buffer[16] = "";
        const char *first = round % 3 ? "abc" : "";
        int ends[2], count = strlen(first) + 4;
        cold_ends(ends);
        for (int turns = round / 4 % 6; turns > 0; turns--) {
            round_trip(ends);
            if (round % 5 == 0)
                usleep(100);
        }
        if (round % 2)
            usleep(300);
        put_text(ends[0], first);
        send(ends[0], "hello", 5, MSG_OOB);
        if (round % 4 > 1)
            usleep(200);
        put_text(ends[0], "world");
        await_readable(ends[1], count);
        wrong_before += recv(ends[1], buffer, sizeof buffer, 0) != count
                     || memcmp(buffer, first, count - 4) != 0
                     || memcmp(buffer + count - 4, "hell", 4) != 0;
        wrong_behind += recv(ends[1], buffer, sizeof buffer, 0) != 5 || memcmp(buffer, "world", 5) != 0;
        close(ends[0]);
        close(ends[1]);
    }
    say("of %d reads %d were wrong before the mark, %d behind it", rounds, wrong_before, wrong_behind);
    return 0;
}

void scenario_urgent_while_lifting(void) {
    if (me.client)
        return meet();
    urgent_while_lifting(400);
    resume_lifting_after("0", "urgent", "400");
    meet();
}
