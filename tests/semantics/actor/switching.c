/* The moment at which a connection is lifted, under traffic. */
#include "actor.h"

#include <sys/select.h>

enum { TURNS = 6, PIECE = 7, MILLISECONDS = 60 };

/* Whether fd becomes readable within the time, each turn by another call. */
static bool is_readable(int fd, int set, int turn, int milliseconds) {
    struct epoll_event event;
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timeval limit = {milliseconds / 1000, milliseconds % 1000 * 1000};
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(fd, &readable);
    switch (turn % 3) {
    case 0: return select(fd + 1, &readable, NULL, NULL, &limit) == 1;
    case 1: return poll(&item, 1, milliseconds) == 1;
    default: return epoll_wait(set, &event, 1, milliseconds) == 1;
    }
}

/* What was reported as readable must be there. Returns what a read gave: 0 at the end of the stream, -1 after a failure. */
static ssize_t read_what_is_there(int fd, long got, unsigned seed) {
    char bytes[512], expected[sizeof bytes];
    int count = -1;
    ioctl(fd, FIONREAD, &count);
    ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0)
        say("! readable after %ld bytes, but: %s", got, strerrorname_np(errno));
    if (n >= 0 && n < count && n < (ssize_t)sizeof bytes)
        say("! FIONREAD gave %d after %ld bytes, recv %zd", count, got, n);
    if (n > 0) {
        fill_pattern(expected, got, n, seed);
        if (memcmp(bytes, expected, n) != 0)
            say("! other bytes than were written, after %ld", got);
    }
    return n;
}

/* Both sides send pieces so small that TCP holds some back until the peer acknowledges those before (Nagle), and ask
 * before each read. The ring may have bytes then while TCP still has some that come before them. */
void scenario_readable_while_lifted(void) {
    for (int turn = 0; turn < TURNS; turn++) {
        int fd = cold_connection();
        int set = epoll_create1(0);
        struct epoll_event interest = {.events = EPOLLIN};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &interest);
        struct timespec start = now();
        long sent = 0, got = 0, n = 1;
        while (elapsed_ms(&start) < MILLISECONDS && n > 0) {
            char piece[PIECE];
            fill_pattern(piece, sent, sizeof piece, me.client);
            sent += put(fd, piece, sizeof piece) ? sizeof piece : 0;
            if (is_readable(fd, set, turn, 0))
                got += n = read_what_is_there(fd, got, me.server);
        }
        shutdown(fd, SHUT_WR);
        while (n > 0 && is_readable(fd, set, turn, 5000))
            got += n = read_what_is_there(fd, got, me.server);
        tell(sent);
        say(n == 0 && got == told() ? "all came" : "! not all came");
        close(set);
        close(fd);
    }
    meet();
}

/* However far lifting has come when a program closes, the peer knows of it at once. */
void scenario_closed_while_lifted(void) {
    for (int turn = 0; turn < 60 && me.client; turn++) {
        char byte;
        int ends[2];
        struct linger hard = {1, 0};
        cold_ends(ends);
        for (int round = 0; round < turn / 2; round++)
            round_trip(ends);
        if (turn % 2)
            setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        T(close(ends[0]));
        struct pollfd item = {.fd = ends[1], .events = POLLIN | POLLOUT | POLLRDHUP};
        T(poll(&item, 1, 0));
        say_poll("closed", item.revents);
        T(recv(ends[1], &byte, 1, MSG_DONTWAIT));
        close(ends[1]);
    }
    meet();
}

/* A reset takes nothing away that had come before it, though some of it still lies in TCP and the rest in a ring. */
void scenario_reset_while_lifted(void) {
    for (int turn = 0; turn < 30 && me.client; turn++) {
        char bytes[16 * 1024];
        int ends[2], on = 1, left = -1;
        size_t written = 0, came = 0;
        cold_ends(ends);
        setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        for (int round = 0; round < 10 * turn + 1; round++, written += PIECE) {
            put_pattern(ends[0], written, PIECE, 1);
            put(ends[1], "a", 1);
            get(ends[0], bytes, 1);
        }
        put(ends[1], "unread", 6);
        T(close(ends[0]));
        say_poll("reset", await_bits(ends[1], POLLHUP));
        ioctl(ends[1], FIONREAD, &left);
        say("left %d", left);
        for (ssize_t n; (n = recv(ends[1], bytes, sizeof bytes, MSG_DONTWAIT)) > 0; came += n)
            continue;
        say_bytes("came", bytes, came);
        close(ends[1]);
    }
    meet();
}

/* Who only looks sees all that has come, though some of it lies in TCP and the rest in a ring. */
void scenario_peek_while_lifted(void) {
    char bytes[4096], expected[sizeof bytes];
    int ends[2], on = 1;
    if (me.client) {
        cold_ends(ends);
        setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        for (size_t written = PIECE; written < sizeof bytes; written += PIECE) {
            put_pattern(ends[0], written - PIECE, PIECE, 1);
            ssize_t n = recv(ends[1], bytes, sizeof bytes, MSG_PEEK);
            fill_pattern(expected, 0, written, 1);
            if (n != (ssize_t)written || memcmp(bytes, expected, written) != 0)
                return say("! %zd of %zu bytes are seen", n, written);
            put(ends[1], "a", 1);
            get(ends[0], bytes, 1);
        }
        get_pattern(ends[1], 0, sizeof bytes / PIECE * PIECE, 1);
        close(ends[0]);
        close(ends[1]);
    }
    meet();
}

/* A shell's way to start a program on a connection, however far lifting has come: the program has it alone. */
/* What nobody has read yet goes to the program that a child of vfork becomes, though the sender makes no call any more. */
void scenario_vfork_with_unread_bytes(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "for another program");
        meet();
        meet();
        return;
    }
    await_readable(fd, 19);
    meet();
    int ends[2];
    if (pipe(ends) != 0)
        return;
    pid_t child = vfork();
    if (child == 0) {
        dup2(fd, 0);
        dup2(ends[1], 1);
        execlp("timeout", "timeout", "5", "head", "-c19", NULL);
        _exit(127);
    }
    int status = -1;
    waitpid(child, &status, 0);
    say_status("head", status);
    close(ends[1]);
    char text[32];
    say_bytes("it read", text, read(ends[0], text, sizeof text));
    meet();
}

void scenario_vfork_while_lifted(void) {
    for (int turn = 0; turn < 16; turn++) {
        int fd = cold_connection();
        for (int i = 0; i < turn; i++)
            hello(fd);
        if (me.client) {
            put_text(fd, "through another program");
            shutdown(fd, SHUT_WR);
            expect_text(fd, "through another program");
            expect_end(fd);
        } else {
            pid_t child = vfork();
            if (child == 0) {
                dup2(fd, 0);
                dup2(fd, 1);
                if (turn % 2)
                    close(fd);
                execlp("cat", "cat", NULL);
                _exit(127);
            }
            close(fd);
            int status = -1;
            waitpid(child, &status, 0);
            say_status("cat", status);
        }
        meet();
        if (me.client)
            close(fd);
    }
}

/* Right after a connection was lifted, before the other end has read from the ring, it goes back to TCP. */
int lower_while_lifting(int rounds) {
    int wrong_end = 0, late = 0;
    for (int round = 0; round < rounds; round++) {
        char buffer[16] = "";
        int ends[2], low_water = 10;
        for (int way = 0; way < 2; way++) {
            cold_ends(ends);
            for (int turns = round % 7; turns > 0; turns--) {
                round_trip(ends);
                usleep(round % 3 * 100);
            }
            if (way == 0) {
                struct sockaddr nobody = {.sa_family = AF_UNSPEC};
                put_text(ends[0], "left");
                connect(ends[0], &nobody, sizeof nobody);
                wrong_end += recv(ends[1], buffer, sizeof buffer, 0) != 4 || memcmp(buffer, "left", 4) != 0;
                wrong_end += recv(ends[1], buffer, sizeof buffer, 0) != -1 || errno != ECONNRESET;
                wrong_end += recv(ends[1], buffer, sizeof buffer, 0) != 0;
            } else {
                /* A small write must not wait until the other end acknowledges an earlier one. */
                setsockopt(ends[1], SOL_SOCKET, SO_RCVLOWAT, &low_water, sizeof low_water);
                put_text(ends[0], "12345");
                usleep(3000);
                late += recv(ends[1], buffer, 3, MSG_DONTWAIT) != 3;
            }
            close(ends[0]);
            close(ends[1]);
        }
    }
    say("of %d rounds %d ended otherwise, %d were late", rounds, wrong_end, late);
    return 0;
}

void scenario_lowered_while_lifting(void) {
    if (me.client)
        return meet();
    lower_while_lifting(60);
    resume_lifting_after("1", "lower", "60");
    meet();
}
