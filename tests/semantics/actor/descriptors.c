/* Descriptor numbers: dup in all its forms, closing, and which number comes next. */
#include "actor.h"

#include <sys/resource.h>
#include <sys/syscall.h>

/* The peer of most scenarios here: echoes every byte until the end, then says so. */
static void echo_until_end(int fd) {
    char buffer[4096];
    ssize_t n;
    long total = 0;
    while ((n = read(fd, buffer, sizeof buffer)) > 0) {
        put(fd, buffer, n);
        total += n;
    }
    say("echoed %ld, then %zd", total, n);
    close(fd);
    meet();
}

static void probe(int fd, const char *text) {
    put_text(fd, text);
    expect_text(fd, text);
}

void scenario_dup_family(void) {
    int fd = connection();
    if (me.client) {
        echo_until_end(fd);
        return;
    }
    int a = T(dup(fd));
    int b = T(fcntl(fd, F_DUPFD, 100));
    int c = T(fcntl(a, F_DUPFD_CLOEXEC, 100));
    int d = T(dup2(fd, 120));
    int e = T(dup3(fd, 121, O_CLOEXEC));
    T(dup3(fd, fd, 0));
    T(dup2(fd, fd));
    T(dup2(77, 120));
    T(dup2(fd, -1));
    T(fcntl(fd, F_DUPFD, -1));
    say("close on exec %d %d %d %d %d", fcntl(a, F_GETFD), fcntl(b, F_GETFD), fcntl(c, F_GETFD),
        fcntl(d, F_GETFD), fcntl(e, F_GETFD));
    probe(a, "a");
    probe(b, "b");
    put_text(c, "written to c");
    expect_text(d, "written");
    expect_text(e, " to c");
    T(close(fd));
    T(close(a));
    probe(b, "first two closed");
    T(close(b));
    T(close(c));
    T(close(e));
    probe(d, "one left");
    T(close(d));
    meet();
}

/* dup2 of something else over the connection closes it for the peer. */
void scenario_dup2_over_connection(void) {
    int fd = connection();
    if (me.client) {
        echo_until_end(fd);
        return;
    }
    int ends[2];
    T(pipe(ends));
    probe(fd, "before");
    T(dup2(ends[0], fd));
    put_text(ends[1], "from the pipe");
    expect_text(fd, "from the pipe");
    T(write(fd, "x", 1));
    T(send(fd, "x", 1, 0));
    meet();
}

/* dup2 of one connection onto another: the second ends, the number now means the first. */
void scenario_dup2_onto_connection(void) {
    int first = connection(), second = connection();
    if (me.client) {
        expect_end(second);
        expect_text(first, "by the second's number");
        put_text(first, "fine");
        close(second);
        expect_end(first);
        meet();
        return;
    }
    T(dup2(first, second));
    put_text(second, "by the second's number");
    expect_text(first, "fine");
    T(close(first));
    T(close(second));
    meet();
}

void scenario_lowest_number(void) {
    int fd = connection();
    if (me.client) {
        int other = connection();
        expect_end(other);
        echo_until_end(fd);
        return;
    }
    int file = T(open("/dev/null", O_RDONLY));
    int ends[2];
    T(pipe(ends));
    say("pipe %d %d", ends[0], ends[1]);
    int other = T(connection());
    T(close(file));
    T(socket(AF_INET, SOCK_STREAM, 0));
    T(close(other));
    T(epoll_create1(0));
    T(open("/dev/null", O_RDONLY));
    T(close(0 + ends[0]));
    T(dup(fd));
    T(dup(fd));
    pid_t child = fork();
    if (child == 0) {
        T(open("/dev/null", O_RDONLY));
        _exit(0);
    }
    waitpid(child, NULL, 0);
    T(open("/dev/null", O_RDONLY));
    probe(fd, "fine");
    close(fd);
    for (int i = 3; i < 30; i++)
        close(i);
    meet();
}

/* What daemons do: close everything but the connection. */
void scenario_close_all_others(void) {
    int fd = connection();
    if (me.client) {
        echo_until_end(fd);
        return;
    }
    for (int i = 3; i < 1024; i++)
        if (i != fd)
            close(i);
    probe(fd, "after closing one by one");
    T(dup2(fd, 50));
    T(close_range(3, 49, 0));
    T(close_range(51, ~0u, 0));
    probe(50, "after close_range");
    T(open("/dev/null", O_RDONLY));
    closefrom(51);
    probe(50, "after closefrom");
    T(close_range(50, 40, 0));
    T(close_range(50, 60, CLOSE_RANGE_CLOEXEC));
    say("close on exec %d", fcntl(50, F_GETFD));
    probe(50, "after close_range with CLOEXEC");
    T(close_range(3, ~0u, 0));
    meet();
}

/* All closed, the connection too; the next connection works. */
void scenario_close_everything_and_reconnect(void) {
    int fd = connection();
    if (me.server) {
        expect_end(fd);
        close(fd);
        fd = connection();
        expect_text(fd, "again");
        meet();
        return;
    }
    T(close_range(3, ~0u, 0));
    fd = T(connection());
    put_text(fd, "again");
    meet();
}

static int count_until_full(void) {
    int count = 0;
    while (dup(2) >= 0)
        count++;
    return count;
}

void scenario_descriptor_limit(void) {
    int fd = connection();
    if (me.client) {
        echo_until_end(fd);
        return;
    }
    struct rlimit limit = {40, 40};
    T(setrlimit(RLIMIT_NOFILE, &limit));
    int count = count_until_full();
    say("%d more, then %s", count, strerrorname_np(errno));
    probe(fd, "still fine");
    T(dup(fd));
    T(accept(me.listener, NULL, NULL));
    close(20);
    T(dup(fd));
    close(fd);
    close(20);
    meet();
}

/* Some servers set their limit to what they were configured for, before the first connection. */
void scenario_descriptor_limit_lowered(void) {
    struct rlimit limit = {512, 512};
    if (me.server)
        T(setrlimit(RLIMIT_NOFILE, &limit));
    int fd = connection();
    if (me.client) {
        echo_until_end(fd);
        return;
    }
    probe(fd, "fine");
    T(open("/dev/null", O_RDONLY));
    T(close_range(100, 511, 0));
    probe(fd, "still fine");
    close(fd);
    meet();
}

/* One dup is closed while bytes wait; the other reads them. */
void scenario_close_one_dup(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "waiting bytes");
        meet();
        expect_text(fd, "ok");
        expect_end(fd);
        meet();
        return;
    }
    int twin = dup(fd);
    meet();
    await_readable(fd, 13);
    close(fd);
    expect_text(twin, "waiting bytes");
    put_text(twin, "ok");
    shutdown(twin, SHUT_WR);
    meet();
}

/* A table of its own is what a program with one thread has anyhow. */
void scenario_close_unshared(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "last");
        expect_end(fd);
        meet();
        return;
    }
    put_text(fd, "last");
    T(close_range(fd, fd, CLOSE_RANGE_UNSHARE));
    T(fcntl(fd, F_GETFD));
    meet();
}

/* Ranges of numbers that nobody has, and numbers that nothing may be put on: what is there stays. */
void scenario_numbers_out_of_reach(void) {
    enum { HIGH = 300 };
    int fd = connection();
    T(dup2(fd, HIGH));
    close(fd);
    T(close_range(0x80000000u, ~0u, 0));
    struct rlimit limit, lower;
    getrlimit(RLIMIT_NOFILE, &limit);
    lower = limit;
    lower.rlim_cur = HIGH - 50;
    T(setrlimit(RLIMIT_NOFILE, &lower));
    T(dup2(0, HIGH));
    T(dup3(0, HIGH, 0));
    setrlimit(RLIMIT_NOFILE, &limit);
    put_text(HIGH, "still there");
    expect_text(HIGH, "still there");
    meet();
}
