/* poll, ppoll, select and pselect. */
#include "actor.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>

void scenario_poll_bits(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "data");
        meet();
        shutdown(fd, SHUT_WR);
        meet();
        close(fd);
        meet();
        return;
    }
    short all = POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLRDBAND | POLLWRNORM | POLLWRBAND | POLLRDHUP;
    struct pollfd item = {.fd = fd, .events = all};
    T(poll(&item, 1, 0));
    say_poll("idle", item.revents);
    meet();
    await_readable(fd, 4);
    T(poll(&item, 1, -1));
    say_poll("data", item.revents);
    item.events = POLLIN;
    T(poll(&item, 1, 0));
    say_poll("data, asked for IN", item.revents);
    expect_text(fd, "data");
    T(poll(&item, 1, 0));
    meet();
    say_poll("half-closed", await_bits(fd, POLLRDHUP));
    item.events = all;
    T(poll(&item, 1, 0));
    say_poll("half-closed, all", item.revents);
    item.events = 0;
    T(poll(&item, 1, 0));
    shutdown(fd, SHUT_WR);
    say_poll("closed both ways", await_bits(fd, 0));
    item.events = all;
    T(poll(&item, 1, 0));
    say_poll("closed both ways, all", item.revents);
    meet();
    close(fd);
    T(poll(&item, 1, 0));
    say_poll("descriptor closed", item.revents);
    item.fd = -1;
    T(poll(&item, 1, 0));
    say_poll("negative descriptor", item.revents);
}

void scenario_poll_timeouts(void) {
    int fd = connection();
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timespec start = now();
    T(poll(&item, 1, 20));
    say("waited %s", elapsed_ms(&start) >= 19 ? "long enough" : "too short");
    start = now();
    struct timespec wait = {0, 20000000};
    T(ppoll(&item, 1, &wait, NULL));
    say("waited %s", elapsed_ms(&start) >= 19 ? "long enough" : "too short");
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    struct timeval span = {0, 20000};
    start = now();
    T(select(fd + 1, &reading, NULL, NULL, &span));
    say("waited %s, left %ld.%06ld, set %d", elapsed_ms(&start) >= 19 ? "long enough" : "too short",
        (long)span.tv_sec, (long)span.tv_usec, FD_ISSET(fd, &reading));
    FD_SET(fd, &reading);
    start = now();
    T(pselect(fd + 1, &reading, NULL, NULL, &wait, NULL));
    say("waited %s, asked %ld", elapsed_ms(&start) >= 19 ? "long enough" : "too short", wait.tv_nsec);
    struct timespec none = {0, 0};
    T(ppoll(&item, 1, &none, NULL));
    struct timespec wrong = {0, -1};
    T(ppoll(&item, 1, &wrong, NULL));
    struct timeval wrong_span = {-1, 0};
    T(select(fd + 1, &reading, NULL, NULL, &wrong_span));
    meet();
}

/* Time limits that no clock will reach, and numbers that were not asked for. */
void scenario_poll_without_an_end(void) {
    int fd = connection();
    const time_t ages = (time_t)(~0ull >> 1);
    if (me.client) {
        for (int i = 0; i < 4; i++) {
            meet();
            await_asleep(me.peer);
            put_text(fd, "1");
        }
        meet();
        return;
    }
    char byte;
    struct timespec wait = {.tv_sec = ages};
    meet();
    struct pollfd item = {.fd = fd, .events = POLLIN};
    T(ppoll(&item, 1, &wait, NULL));
    get(fd, &byte, 1);
    meet();
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    T(pselect(fd + 1, &reading, NULL, NULL, &wait, NULL));
    get(fd, &byte, 1);
    meet();
    struct timeval span = {.tv_sec = ages};
    T(select(fd + 1, &reading, NULL, NULL, &span));
    get(fd, &byte, 1);
    meet();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    T(epoll_pwait2(set, &event, 1, &wait, NULL));
    close(set);
    FD_SET(fd + 20, &reading);
    FD_CLR(fd, &reading);
    struct timeval none = {0};
    T(select(fd + 1, &reading, NULL, NULL, &none));
    say("beyond %d", FD_ISSET(fd + 20, &reading));
    meet();
}

static void *write_to_pipe(void *pipe_end) {
    await_asleep(getpid());
    put_text(*(int *)pipe_end, "pipe");
    return NULL;
}

/* Blocked on a pipe, the connection and the listening socket: each of them wakes. */
void scenario_poll_mixed(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "socket");
        await_asleep(told());
        int second = cold_connection();
        meet();
        close(second);
        return;
    }
    int ends[2];
    if (pipe(ends) != 0)
        return;
    struct pollfd items[] = {{ends[0], POLLIN, 0}, {fd, POLLIN, 0}, {me.listener, POLLIN, 0}, {-5, POLLIN, 0}};
    pthread_t thread;
    pthread_create(&thread, NULL, write_to_pipe, &ends[1]);
    T(poll(items, 4, 5000));
    say("pipe %d socket %d listener %d", items[0].revents, items[1].revents, items[2].revents);
    pthread_join(thread, NULL);
    expect_text(ends[0], "pipe");
    tell(getpid());
    T(poll(items, 4, 5000));
    say("pipe %d socket %d listener %d", items[0].revents, items[1].revents, items[2].revents);
    expect_text(fd, "socket");
    tell(getpid());
    T(poll(items, 4, 5000));
    say("pipe %d socket %d listener %d", items[0].revents, items[1].revents, items[2].revents);
    int second = cold_connection();
    T(poll(items, 4, 0));
    meet();
    close(second);
}

/* Lists as long as a process may have descriptors, times in many microseconds: what the kernel takes. */
void scenario_poll_at_the_limits(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "news");
        meet();
        return;
    }
    enum { LIMIT = 256 };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = LIMIT;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct pollfd items[LIMIT + 1];
    for (int i = 0; i <= LIMIT; i++)
        items[i] = (struct pollfd){i == LIMIT - 1 ? fd : -1, POLLIN, 0};
    T(poll(items, LIMIT, 0));
    T(poll(items, LIMIT, 20));
    T(poll(items, LIMIT + 1, 0));
    meet();
    T(poll(items, LIMIT, 5000));
    say_poll("the last", items[LIMIT - 1].revents);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_NOFILE, &limit);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    struct timeval span = {0, 2500000}, wrong = {0, -1};
    T(select(fd + 1, &reading, NULL, NULL, &span));
    say("left %d", span.tv_sec > 0);
    T(select(fd + 1, &reading, NULL, NULL, &wrong));
    expect_text(fd, "news");
    meet();
}

/* Of more descriptors than it may have from now on a process may still ask `select`; reading and writing need none. */
void scenario_few_descriptors_allowed(void) {
    int fd = connection(), second = cold_connection(), third = cold_connection();
    if (me.client) {
        put_text(third, "3");
        meet();
        put_text(second, "2");
        put_text(fd, "1");
        meet();
        put_pattern(fd, 0, 100000, 1);
        get_pattern(fd, 0, 3000000, 2);
        meet();
        return;
    }
    await_readable(third, 1);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t before = limit.rlim_cur;
    meet();
    await_readable(second, 1);
    await_readable(fd, 1);
    limit.rlim_cur = 2;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct timeval none = {0, 0};
    for (int i = 0; i < 2; i++) {
        fd_set reading;
        FD_ZERO(&reading);
        FD_SET(fd, &reading);
        FD_SET(second, &reading);
        FD_SET(third, &reading);
        T(select(64, &reading, NULL, NULL, &none));
        limit.rlim_cur = i == 0 ? 0 : before;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    limit.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &limit);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(second, &reading);
    T(select(64, &reading, NULL, NULL, &none));
    expect_text(fd, "1");
    meet();
    get_pattern(fd, 0, 100000, 1);
    put_pattern(fd, 0, 3000000, 2);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_NOFILE, &limit);
    meet();
}

/* Sleeping on a lifted connection needs no descriptors of the program's either. */
void scenario_no_descriptors_allowed(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_pattern(fd, 0, 100000, 1);
        get_pattern(fd, 0, 3000000, 2);
        meet();
        return;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t before = limit.rlim_cur;
    limit.rlim_cur = 0;
    setrlimit(RLIMIT_NOFILE, &limit);
    tell(getpid());
    get_pattern(fd, 0, 100000, 1);
    put_pattern(fd, 0, 3000000, 2);
    limit.rlim_cur = before;
    setrlimit(RLIMIT_NOFILE, &limit);
    meet();
}

static rlim_t address_space(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%lu", &pages) != 1)
        say("! no size");
    if (file)
        fclose(file);
    return pages * 4096;
}

/* Bulk moves though there is no address space left for anything. */
void scenario_no_address_space_left(void) {
    int fd = connection();
    char *bytes = malloc(1 << 20);
    memset(bytes, 1, 1 << 20);
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    rlim_t before = limit.rlim_cur;
    meet();
    limit.rlim_cur = address_space();
    setrlimit(RLIMIT_AS, &limit);
    for (int i = 0; i < 2; i++) {
        long all = 0;
        for (long count = 1; all < 1 << 20 && count > 0; all += count > 0 ? count : 0)
            count = (i == 0) == me.client ? write(fd, bytes + all, (1 << 20) - all)
                                          : read(fd, bytes + all, (1 << 20) - all);
        say("moved %ld", all);
    }
    limit.rlim_cur = before;
    setrlimit(RLIMIT_AS, &limit);
    free(bytes);
    meet();
}

/* A process that gets no more memory goes on making connections. */
void scenario_connections_without_memory(void) {
    enum { CONNECTIONS = 150 };
    int fd = connection();
    if (me.server) {
        long pages = 0;
        FILE *sizes = fopen("/proc/self/statm", "r");
        if (sizes && fscanf(sizes, "%ld", &pages) == 1)
            fclose(sizes);
        struct rlimit limit, now;
        getrlimit(RLIMIT_AS, &limit);
        now = limit;
        now.rlim_cur = pages * sysconf(_SC_PAGESIZE);
        T(setrlimit(RLIMIT_AS, &now));
        int good = 0, ends[2];
        for (int i = 0; i < CONNECTIONS; i++) {
            cold_ends(ends);
            round_trip(ends);
            good++;
        }
        setrlimit(RLIMIT_AS, &limit);
        say("%d connections", good);
        put_text(fd, "fine");
    } else {
        expect_text(fd, "fine");
    }
    meet();
}

/* Shared memory is no file of the program's that could be too large: no signal for that, either. */
void scenario_small_files_only(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &limit);
    int fd = cold_connection();
    for (int i = 0; i < 50; i++)
        hello(fd);
    say("both live");
    meet();
}

/* The same question hundreds of times in a row: of a connection that has room, and of others that are silent. */
static void ask_often(const char *label, struct pollfd *items, int count) {
    int answers = 0;
    for (int i = 0; i < 200; i++)
        answers += poll(items, count, 0);
    say("%s: %d answers", label, answers);
}

static void ask_after(const char *label, struct pollfd *items, int count) {
    meet();
    meet();
    for (int i = 0; i < 2; i++) {
        long found = poll(items, count, 0);
        say("%s: %ld: %x %x %x", label, found, items[0].revents, items[1].revents, items[2].revents);
    }
}

/* Whatever comes after it is told by the very next call. */
void scenario_poll_asked_often(void) {
    int fd = connection(), second = cold_connection();
    if (me.client) {
        meet();
        put_text(second, "news");
        meet();
        meet();
        int third = cold_connection();
        meet();
        meet();
        put_text(second, "more");
        meet();
        meet();
        put_text(second, "still more");
        meet();
        meet();
        put_text(third, "by another number");
        meet();
        meet();
        shutdown(third, SHUT_WR);
        meet();
        meet();
        put_text(fd, "lifted");
        meet();
        meet();
        struct linger none = {1, 0};
        setsockopt(second, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        close(second);
        meet();
        meet();
        return;
    }
    struct pollfd items[] = {{fd, POLLOUT, 0}, {me.listener, POLLIN, 0}, {second, POLLIN, 0}};
    ask_often("silent", items, 3);
    ask_after("bytes", items, 3);
    expect_text(second, "news");
    ask_often("read", items, 3);
    ask_after("a connection", items, 3);
    int third = cold_connection();
    ask_often("accepted", items, 3);
    /* A child has them too, asks for itself, and reads what comes. */
    pid_t child = fork();
    if (child == 0) {
        ask_often("in the child", items, 3);
        ask_after("in the child", items, 3);
        expect_text(second, "more");
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    ask_after("after the child", items, 3);
    expect_text(second, "still more");
    ask_often("read again", items, 3);
    /* The number comes to mean another connection. */
    int kept = dup(second);
    T_OK(dup2(third, second));
    T_OK(close(third));
    ask_often("another", items, 3);
    ask_after("another", items, 3);
    expect_text(second, "by another number");
    ask_often("read by another number", items, 3);
    ask_after("its end", items, 3);
    dup2(kept, second);
    close(kept);
    ask_often("the first again", items, 3);
    items[0].events |= POLLIN;
    ask_often("for reading too", items, 3);
    ask_after("lifted bytes", items, 3);
    expect_text(fd, "lifted");
    int answers = 0;
    for (int i = 0; i < 200; i++) {
        fd_set read, write;
        FD_ZERO(&read);
        FD_ZERO(&write);
        FD_SET(fd, &write);
        FD_SET(second, &read);
        struct timeval none = {0, 0};
        answers += select(64, &read, &write, NULL, &none);
    }
    say("selected: %d answers", answers);
    ask_often("lifted bytes read", items, 3);
    ask_after("a reset", items, 3);
    close(second);
    T(poll(items, 3, 0));
    say("closed: %x", items[2].revents);
    meet();
}

/* Bytes are there when the program asks: of all the others it has to be told in the same answer. */
void scenario_poll_bytes_and_others(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "bytes");
        meet();
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    int empty[2], full[2];
    if (pipe(empty) != 0 || pipe(full) != 0)
        return;
    put_text(full[1], "pipe");
    await_readable(fd, 5);
    struct pollfd one[] = {{fd, POLLIN, 77}, {-5, POLLIN, 77}};
    T(poll(one, 2, -1));
    say("socket %d, none %d", one[0].revents, one[1].revents);
    struct pollfd items[] = {{-5, POLLIN, 77}, {fd, POLLIN, 77}, {empty[0], POLLIN, 77}, {fd, POLLIN | POLLOUT, 77},
                             {full[0], POLLIN, 77}, {fd, POLLPRI, 77}, {empty[0] + 100, POLLIN, 77}};
    T(poll(items, 7, 5000));
    for (int n = 0; n < 7; n++)
        say("%d: %d", n, items[n].revents);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    struct timeval wait = {5, 0};
    T(select(fd + 1, &reading, NULL, NULL, &wait));
    say("set %d, %s", FD_ISSET(fd, &reading) != 0, wait.tv_sec >= 4 ? "no time passed" : "time passed");
    meet();
    await_bits(fd, POLLRDHUP);
    one[0].events = POLLIN | POLLRDHUP;
    T(poll(one, 2, -1));
    say("socket %d", one[0].revents);
    expect_text(fd, "bytes");
    one[0].events = POLLIN;
    T(poll(one, 2, -1));
    say("socket %d", one[0].revents);
    meet();
}

void scenario_select_mixed(void) {
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "socket");
        meet();
        return;
    }
    int ends[2];
    if (pipe(ends) != 0)
        return;
    int top = ends[1] > fd ? ends[1] : fd;
    fd_set reading, writing, failing;
#define ASK() \
    do { \
        FD_ZERO(&reading); \
        FD_ZERO(&writing); \
        FD_ZERO(&failing); \
        FD_SET(fd, &reading); \
        FD_SET(ends[0], &reading); \
        FD_SET(fd, &writing); \
        FD_SET(ends[1], &writing); \
        FD_SET(fd, &failing); \
    } while (0)
#define SHOW() say("reading: socket %d pipe %d; writing: socket %d pipe %d; failing: socket %d", \
                   FD_ISSET(fd, &reading) != 0, FD_ISSET(ends[0], &reading) != 0, FD_ISSET(fd, &writing) != 0, \
                   FD_ISSET(ends[1], &writing) != 0, FD_ISSET(fd, &failing) != 0)
    ASK();
    T(select(top + 1, &reading, &writing, &failing, NULL));
    SHOW();
    ASK();
    tell(getpid());
    T(select(top + 1, &reading, NULL, &failing, NULL));
    SHOW();
    ASK();
    put_text(ends[1], "pipe");
    struct timespec wait = {5, 0};
    T(pselect(top + 1, &reading, &writing, &failing, &wait, NULL));
    SHOW();
    expect_text(fd, "socket");
    expect_text(ends[0], "pipe");
    ASK();
    struct timeval none = {0, 0};
    T(select(top + 1, &reading, NULL, NULL, &none));
    SHOW();
    T(select(-1, &reading, NULL, NULL, &none));
    T(select(0, NULL, NULL, NULL, &none));
    close(ends[0]);
    FD_ZERO(&reading);
    FD_SET(ends[0], &reading);
    FD_SET(fd, &reading);
    T(select(top + 1, &reading, NULL, NULL, &none));
    meet();
}

/* Two descriptors of one connection, and the same descriptor twice, in one poll. */
void scenario_poll_duplicates(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "x");
        meet();
        return;
    }
    int twin = dup(fd);
    await_readable(fd, 1);
    struct pollfd items[] = {{fd, POLLIN, 0}, {twin, POLLIN | POLLOUT, 0}, {fd, POLLOUT, 0}, {twin, 0, 0}};
    T(poll(items, 4, -1));
    for (int i = 0; i < 4; i++)
        say_poll("item", items[i].revents);
    meet();
}

static volatile sig_atomic_t handled;

static void count_signal(int number) {
    (void)number;
    handled++;
}

/* ppoll, pselect and epoll_pwait let a blocked signal in while they wait, and only then. */
void scenario_wait_with_signal_mask(void) {
    int fd = connection();
    sigset_t blocked, open;
    struct sigaction action = {.sa_handler = count_signal};
    sigaction(SIGUSR1, &action, NULL);
    sigemptyset(&open);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    kill(getpid(), SIGUSR1);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timespec wait = {5, 0};
    T(poll(&item, 1, 0));
    say("handled %d", (int)handled);
    T(ppoll(&item, 1, &wait, &open));
    say("handled %d", (int)handled);
    kill(getpid(), SIGUSR1);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    T(pselect(fd + 1, &reading, NULL, NULL, &wait, &open));
    say("handled %d", (int)handled);
    kill(getpid(), SIGUSR1);
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    T(epoll_pwait(set, &event, 1, 5000, &open));
    say("handled %d", (int)handled);
    kill(getpid(), SIGUSR1);
    T(epoll_pwait2(set, &event, 1, &wait, &open));
    say("handled %d", (int)handled);
    sigset_t current;
    sigprocmask(SIG_SETMASK, NULL, &current);
    say("still blocked %d", sigismember(&current, SIGUSR1));
    meet();
}

/* poll says writable exactly when a write goes through, and wakes a waiting writer. */
void scenario_poll_writable(void) {
    int fd = connection();
    if (me.server) {
        size_t total = told();
        await_asleep(me.peer);
        get_pattern(fd, 0, total, 6);
        meet();
        return;
    }
    size_t total = fill_up(fd, 6);
    fd_set writing;
    FD_ZERO(&writing);
    FD_SET(fd, &writing);
    struct timeval none = {0, 0};
    T(select(fd + 1, NULL, &writing, NULL, &none));
    tell(total);
    FD_SET(fd, &writing);
    T(select(fd + 1, NULL, &writing, NULL, NULL));
    T(send(fd, "x", 1, MSG_DONTWAIT));
    meet();
}

/* Old programs say the size of their table of descriptors, which is more than a set has room for: the kernel looks at no more than it has. */
void scenario_select_beyond_its_sets(void) {
    int fd = connection();
    long page = sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + page, page, PROT_NONE);
    fd_set *set = (fd_set *)(pages + page - sizeof *set);
    struct timeval none = {0, 0}, long_time = {60, 0};
    if (me.client) {
        meet();
        put_text(fd, "bytes");
        warm(fd);
        meet();
        return;
    }
    FD_ZERO(set);
    FD_SET(fd, set);
    say("nothing yet: %d", select(1 << 20, set, NULL, NULL, &none));
    meet();
    FD_SET(fd, set);
    say("bytes: %d", select(1 << 20, set, NULL, NULL, &long_time));
    say("set %d", FD_ISSET(fd, set));
    expect_text(fd, "bytes");
    warm(fd);
    FD_SET(fd, set);
    say("room: %d", pselect(20000, NULL, set, NULL, NULL, NULL));
    /* Also where nothing of the connection is asked. */
    int pair[2];
    T(pipe(pair));
    FD_ZERO(set);
    FD_SET(pair[0], set);
    say("pipe: %d", select(1 << 20, set, NULL, NULL, &none));
    meet();
}
