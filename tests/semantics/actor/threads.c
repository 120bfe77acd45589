/* Several threads on one connection. */
#include "actor.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/select.h>

struct reader {
    int fd;
    _Atomic pid_t thread;
    _Atomic long result;
    int error;
    char buffer[64];
};

static void *blocked_recv(void *argument) {
    struct reader *reader = argument;
    reader->thread = gettid();
    reader->result = recv(reader->fd, reader->buffer, sizeof reader->buffer, 0);
    reader->error = errno;
    return NULL;
}

static pthread_t start_reader(struct reader *reader) {
    pthread_t thread;
    pthread_create(&thread, NULL, blocked_recv, reader);
    while (reader->thread == 0)
        usleep(100);
    await_asleep(reader->thread);
    return thread;
}

static void join_reader(pthread_t thread, struct reader *reader) {
    pthread_join(thread, NULL);
    errno = reader->error;
    say_bytes("the reader's recv", reader->buffer, reader->result);
}

/* One thread is blocked in recv, the other sends: the answer wakes the first. */
void scenario_thread_send_while_recv(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "question");
        put_text(fd, "answer");
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    put_text(fd, "question");
    join_reader(thread, &reader);
    meet();
}

void scenario_thread_shutdown_while_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        expect_text(fd, "still writable");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd}, second = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    T(shutdown(fd, SHUT_RD));
    join_reader(thread, &reader);
    meet();
    put_text(fd, "still writable");
    T(shutdown(fd, SHUT_RDWR));
    thread = start_reader(&second);
    join_reader(thread, &second);
    meet();
}

/* close() in one thread does not end another's recv: it goes on, and gets what comes. */
void scenario_thread_close_while_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "late bytes");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    T(close(fd));
    T(fcntl(fd, F_GETFL));
    meet();
    join_reader(thread, &reader);
    meet();
}

/* The same in a process that has become another user, which may not ask of its own threads what they do. */
void scenario_thread_close_while_recv_as_another_user(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "late bytes");
        expect_end(fd);
        meet();
        return;
    }
    T(setuid(65534));
    struct reader reader = {.fd = fd};
    pthread_t thread;
    pthread_create(&thread, NULL, blocked_recv, &reader);
    usleep(50000);
    T(close(fd));
    meet();
    join_reader(thread, &reader);
    meet();
}

/* The number is used again while the other thread is still in recv on the old connection. */
void scenario_thread_number_reused_while_recv(void) {
    int fd = connection();
    if (me.client) {
        int second = cold_connection();
        warm(second);
        put_text(second, "for the new");
        meet();
        put_text(fd, "for the old");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    close(fd);
    int second = cold_connection();
    say("same number %d", second == fd);
    warm(second);
    expect_text(second, "for the new");
    meet();
    join_reader(thread, &reader);
    meet();
}

enum { MUCH = 350000 };

/* Two threads are in recv; the peer sees the end when the second has got something too. */
void scenario_thread_close_while_two_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "for one");
        meet();
        usleep(20000);
        say_poll("not ended", await_bits(fd, POLLOUT));
        put_text(fd, "for two");
        expect_end(fd);
        meet();
        return;
    }
    struct reader readers[2] = {{.fd = fd}, {.fd = fd}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        threads[i] = start_reader(&readers[i]);
    T(close(fd));
    meet();
    while (readers[0].result == 0 && readers[1].result == 0)
        usleep(100);
    meet();
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        say("got %ld", readers[i].result);
    }
    meet();
}

static void *send_much(void *argument) {
    struct reader *writer = argument;
    static char bytes[MUCH];
    writer->thread = gettid();
    writer->result = send(writer->fd, bytes, sizeof bytes, 0);
    writer->error = errno;
    return NULL;
}

static void *receive_much(void *argument) {
    struct reader *reader = argument;
    static char bytes[MUCH];
    reader->thread = gettid();
    reader->result = recv(reader->fd, bytes, sizeof bytes, MSG_WAITALL);
    reader->error = errno;
    return NULL;
}

static pthread_t start_writer(struct reader *writer) {
    pthread_t thread;
    int size = 4096;
    T(setsockopt(writer->fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    pthread_create(&thread, NULL, send_much, writer);
    while (writer->thread == 0)
        usleep(100);
    await_asleep(writer->thread);
    return thread;
}

/* One thread waits for bytes, another for room; a third closes. The peer sees the end when both are done. */
void scenario_thread_close_while_both(void) {
    int fd = connection();
    if (me.client) {
        static char bytes[MUCH];
        meet();
        get(fd, bytes, sizeof bytes);
        usleep(50000);
        say_poll("not ended", await_bits(fd, POLLOUT));
        put_text(fd, "late bytes");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd}, writer = {.fd = fd};
    pthread_t reading = start_reader(&reader), writing = start_writer(&writer);
    T(close(fd));
    meet();
    pthread_join(writing, NULL);
    say("sent %zd", writer.result);
    join_reader(reading, &reader);
    meet();
}

/* What a set has of the old connection tells nothing of the new file that has its number, when the other thread's send is over. */
static void close_registered_while_send(bool reuses) {
    int fd = connection(), set = epoll_create1(0);
    if (me.client) {
        static char bytes[MUCH];
        meet();
        get(fd, bytes, sizeof bytes);
        expect_end(fd);
        meet();
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    struct reader writer = {.fd = fd};
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    pthread_t writing = start_writer(&writer);
    T(close(fd));
    if (reuses)
        T(socket(AF_INET, SOCK_STREAM, 0) == fd);
    T(epoll_wait(set, &event, 1, 0));
    meet();
    T(epoll_wait(set, &event, 1, 200));
    pthread_join(writing, NULL);
    say("sent %zd", writer.result);
    if (reuses)
        T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    meet();
}

void scenario_thread_close_registered_while_send(void) {
    close_registered_while_send(false);
}

void scenario_thread_number_reused_registered_while_send(void) {
    close_registered_while_send(true);
}

static sigjmp_buf out_of_recv;

static void leave_recv(int signal) {
    siglongjmp(out_of_recv, signal);
}

static void *leave_and_sleep(void *argument) {
    struct reader *reader = argument;
    reader->thread = gettid();
    if (sigsetjmp(out_of_recv, 1) == 0)
        recv(reader->fd, reader->buffer, sizeof reader->buffer, 0);
    reader->result = 1;
    pause();
    return NULL;
}

/* A thread that has left its call by longjmp, and sleeps elsewhere, is in it no more: the connection ends, and close does not wait for that thread. */
void scenario_thread_close_after_longjmp(void) {
    int fd = connection();
    if (me.client) {
        expect_end(fd);
        meet();
        return;
    }
    signal(SIGUSR1, leave_recv);
    struct reader reader = {.fd = fd};
    pthread_t thread;
    pthread_create(&thread, NULL, leave_and_sleep, &reader);
    while (reader.thread == 0)
        usleep(100);
    await_asleep(reader.thread);
    pthread_kill(thread, SIGUSR1);
    while (reader.result == 0)
        usleep(100);
    await_asleep(reader.thread);
    struct timespec start = now();
    T(close(fd));
    if (elapsed_ms(&start) > 500)
        say("! close took %ld ms", elapsed_ms(&start));
    meet();
}

static void *send_for_long(void *argument) {
    struct reader *writer = argument;
    static char bytes[4 << 20];
    writer->thread = gettid();
    writer->result = send(writer->fd, bytes, sizeof bytes, 0);
    writer->error = errno;
    return NULL;
}

/* A send that is at work, and may not have slept yet, goes on too. */
void scenario_thread_close_while_sending(void) {
    for (int round = 0; round < 8; round++) {
        int fd = cold_connection();
        warm(fd);
        if (me.client) {
            static char bytes[4 << 20];
            get(fd, bytes, sizeof bytes);
            expect_end(fd);
            close(fd);
            continue;
        }
        struct reader writer = {.fd = fd};
        pthread_t thread;
        pthread_create(&thread, NULL, send_for_long, &writer);
        for (int unsent = 0; unsent < 10000 && writer.result == 0;)
            ioctl(fd, TIOCOUTQ, &unsent);
        T(close(fd));
        pthread_join(thread, NULL);
        say("sent %zd", writer.result);
    }
}

struct poller {
    int fd;
    bool selects;
    _Atomic pid_t thread;
    _Atomic bool done;
    int result;
    int error;
    short bits;
};

static void *blocked_poll(void *argument) {
    struct poller *poller = argument;
    poller->thread = gettid();
    if (poller->selects) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(poller->fd, &set);
        poller->result = select(poller->fd + 1, &set, NULL, NULL, NULL);
        poller->bits = FD_ISSET(poller->fd, &set);
    } else {
        struct pollfd list = {.fd = poller->fd, .events = POLLIN};
        poller->result = poll(&list, 1, -1);
        poller->bits = list.revents;
    }
    poller->error = errno;
    poller->done = true;
    return NULL;
}

static pthread_t start_poller(struct poller *poller) {
    pthread_t thread;
    pthread_create(&thread, NULL, blocked_poll, poller);
    while (poller->thread == 0)
        usleep(100);
    await_asleep(poller->thread);
    return thread;
}

static void join_poller(pthread_t thread, struct poller *poller) {
    pthread_join(thread, NULL);
    errno = poller->error;
    traced(poller->selects ? "the poller's select" : "the poller's poll", poller->result);
    if (poller->selects)
        say("set %d", poller->bits);
    else
        say_poll("for", poller->bits);
}

/* Beside one that sends much others wait in recv and poll. Who is rung for one of them, and looks first, does not keep it from the others. */
void scenario_thread_send_beside_recv_and_poll(void) {
    enum { SIZE = 4 << 20 };
    for (int round = 0; round < 25; round++) {
        int fd = cold_connection();
        warm(fd);
        if (me.client) {
            static char bytes[100000];
            meet();
            struct timespec start = now();
            for (size_t done = 0; done < SIZE;) {
                ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
                if (got > 0) {
                    done += got;
                    start = now();
                } else if (elapsed_ms(&start) > 600) {
                    say("! the sender is asleep beside room");
                    _exit(1);
                } else {
                    usleep(1000);
                }
            }
            put_text(fd, "for recv");
            meet();
            put_text(fd, "for poll");
            meet();
            close(fd);
            continue;
        }
        struct reader reader = {.fd = fd}, writer = {.fd = fd};
        struct poller poller = {.fd = fd};
        pthread_t reading = start_reader(&reader), polling = start_poller(&poller), writing;
        pthread_create(&writing, NULL, send_for_long, &writer);
        while (writer.thread == 0)
            usleep(100);
        await_asleep(writer.thread);
        meet();
        pthread_join(writing, NULL);
        say("sent %zd", writer.result);
        join_reader(reading, &reader);
        meet();
        join_poller(polling, &poller);
        meet();
        close(fd);
    }
}

/* Who looks while the kernel is about it sees the error alone, or without the end. */
static void await_reset(int fd) {
    short all = POLLIN | POLLHUP, bits = 0;
    for (int i = 0; i < 1000 && (bits & all) != all; i++)
        bits = await_bits(fd, POLLIN);
    say_poll("reset", bits);
}

/* Who polls a number that another thread closes sleeps on until something comes to the connection, whose peer sees no end before. */
static void close_while_polling(bool selects) {
    int fd = connection();
    if (me.client) {
        meet();
        usleep(50000);
        say_poll("not ended", await_bits(fd, POLLOUT));
        put_text(fd, "late bytes");
        await_reset(fd);
        meet();
        return;
    }
    struct poller poller = {.fd = fd, .selects = selects};
    pthread_t thread = start_poller(&poller);
    T(close(fd));
    usleep(20000);
    say("done %d", poller.done);
    meet();
    join_poller(thread, &poller);
    meet();
}

void scenario_thread_close_while_poll(void) {
    close_while_polling(false);
}

void scenario_thread_close_while_select(void) {
    close_while_polling(true);
}

/* What comes to the old connection wakes who polls, and what the number is then decides whether that was it. */
static void reuse_while_polling(bool selects) {
    int fd = connection(), second = cold_connection();
    warm(second);
    if (me.client) {
        meet();
        usleep(50000);
        put_text(fd, "for the old");
        usleep(50000);
        put_text(second, "for the new");
        /* It wakes who sleeps on in the kernel. Lifted the new connection's bytes did, and the old one may be gone. */
        send(fd, "once more", 9, MSG_NOSIGNAL);
        meet();
        return;
    }
    struct poller poller = {.fd = fd, .selects = selects};
    pthread_t thread = start_poller(&poller);
    T(dup2(second, fd) == fd);
    usleep(20000);
    say("done %d", poller.done);
    meet();
    join_poller(thread, &poller);
    expect_text(fd, "for the new");
    meet();
}

void scenario_thread_close_while_two_poll(void) {
    int fd = connection();
    if (me.client) {
        meet();
        usleep(20000);
        say_poll("not ended", await_bits(fd, POLLOUT));
        put_text(fd, "late bytes");
        await_reset(fd);
        meet();
        return;
    }
    struct poller pollers[2] = {{.fd = fd}, {.fd = fd, .selects = true}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        threads[i] = start_poller(&pollers[i]);
    T(close(fd));
    meet();
    for (int i = 0; i < 2; i++)
        join_poller(threads[i], &pollers[i]);
    meet();
}

/* One side sends, the other receives, and nothing goes the other way: a call that began before on the side that `sends` not is the kernel's still
 * when the connection is lifted. */
static void lift_by(int fd, bool sends) {
    char bytes[4] = "";
    for (int i = 0; i < 40; i++) {
        if (sends)
            put(fd, bytes, sizeof bytes);
        else
            get(fd, bytes, sizeof bytes);
        meet();
    }
}

/* Sees no end when the other side has closed, but when that has got something. */
static void be_closed_late(int fd, bool resets) {
    char byte;
    lift_by(fd, false);
    meet();
    T(recv(fd, &byte, 1, MSG_DONTWAIT));
    put_text(fd, "late bytes");
    if (resets)
        await_reset(fd);
    else
        expect_end(fd);
    meet();
}

/* One thread is in recv since before the connection was lifted; close does not end that. */
static void close_while_recv_since_before(bool resets) {
    int fd = cold_connection();
    if (me.client)
        return be_closed_late(fd, resets);
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    lift_by(fd, true);
    struct linger linger = {.l_onoff = resets, .l_linger = 0};
    T(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    T(close(fd));
    T(fcntl(fd, F_GETFL));
    meet();
    join_reader(thread, &reader);
    meet();
}

void scenario_thread_close_while_recv_since_before(void) {
    close_while_recv_since_before(false);
}

void scenario_thread_close_with_reset_while_recv_since_before(void) {
    close_while_recv_since_before(true);
}

void scenario_thread_close_while_poll_since_before(void) {
    int fd = cold_connection();
    if (me.client)
        return be_closed_late(fd, true);
    struct poller poller = {.fd = fd};
    pthread_t thread = start_poller(&poller);
    lift_by(fd, true);
    T(close(fd));
    meet();
    join_poller(thread, &poller);
    meet();
}

void scenario_thread_close_while_send_since_before(void) {
    int fd = cold_connection();
    if (me.client) {
        static char bytes[MUCH];
        lift_by(fd, true);
        meet();
        say("got %zu", get(fd, bytes, sizeof bytes));
        expect_end(fd);
        meet();
        return;
    }
    struct reader writer = {.fd = fd};
    pthread_t thread = start_writer(&writer);
    lift_by(fd, false);
    T(close(fd));
    meet();
    pthread_join(thread, NULL);
    say("sent %ld", writer.result);
    meet();
}

void scenario_thread_number_reused_while_poll(void) {
    reuse_while_polling(false);
}

void scenario_thread_number_reused_while_select(void) {
    reuse_while_polling(true);
}

enum { TURNS = 600, TURN = 100 };

static int contested;
static _Atomic long received;

static void *receive_contested(void *unused) {
    char bytes[TURN];
    (void)unused;
    while (received < TURNS * TURN) {
        ssize_t n = recv(contested, bytes, sizeof bytes, 0);
        if (n > 0)
            received += n;
    }
    return NULL;
}

/* Two connections stand under one number in turns, with dup2, while two threads receive from it: what they are asleep or at work on, and what they find there next,
 * is one or the other, and nothing between. */
void scenario_thread_recv_beside_dup2(void) {
    int fds[2] = {connection(), cold_connection()};
    warm(fds[1]);
    if (me.client) {
        char bytes[TURN] = {0};
        for (int i = 0; i < TURNS; i++) {
            send(fds[i % 2], bytes, sizeof bytes, 0);
            usleep(100);
        }
        for (int i = 0; i < 2; i++)
            shutdown(fds[i], SHUT_WR);
        meet();
        return;
    }
    pthread_t threads[2];
    contested = dup(fds[0]);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, receive_contested, NULL);
    long got = 0;
    for (int i = 0, stands = 0; received < TURNS * TURN && stands < 10000; i++) {
        dup2(fds[i % 2], contested);
        usleep(100);
        stands = got == received ? stands + 1 : 0;
        got = received;
    }
    if (received != TURNS * TURN) {
        say("! stuck after %ld bytes", got);
        exit(1);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    say("all received");
    meet();
}

enum { CONTESTED = 60000 };

static void *send_contested(void *unused) {
    static char bytes[CONTESTED];
    (void)unused;
    fill_pattern(bytes, 0, sizeof bytes, 1);
    for (int i = 0; i < CONTESTED; i++) {
        int fd = i % 2 == 0 ? contested : dup(contested);
        ssize_t n = send(fd, bytes + i, 1, 0);
        if (n != 1)
            say("! send %zd %s", n, strerrorname_np(errno));
        if (fd != contested)
            close(fd);
    }
    return NULL;
}

/* The number is given the connection that it has already, again and again: to a thread that sends there, or by a duplicate, it is no other at any time. */
void scenario_thread_send_beside_dup2(void) {
    int fd = connection();
    if (me.client) {
        static char bytes[CONTESTED], expected[CONTESTED];
        fill_pattern(expected, 0, sizeof expected, 1);
        get(fd, bytes, sizeof bytes);
        say(memcmp(bytes, expected, sizeof bytes) == 0 ? "in order" : "! out of order");
        meet();
        return;
    }
    pthread_t thread;
    contested = dup(fd);
    pthread_create(&thread, NULL, send_contested, NULL);
    while (pthread_tryjoin_np(thread, NULL) == EBUSY)
        dup2(fd, contested);
    meet();
}

/* A call that begins just as its number becomes another file's, the last of the connection, is one on the old or on the new. */
void scenario_thread_recv_begins_beside_dup2(void) {
    enum { ROUNDS = 150 };
    int ended[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, ended);
    close(ended[1]);
    for (int i = 0; i < ROUNDS; i++) {
        int fd = cold_connection();
        warm(fd);
        if (me.client) {
            meet();
            close(fd);
            continue;
        }
        pthread_t thread;
        struct reader reader = {.fd = fd};
        pthread_create(&thread, NULL, blocked_recv, &reader);
        while (reader.thread == 0)
            continue;
        dup2(ended[0], fd);
        meet();
        pthread_join(thread, NULL);
        if (reader.result != 0)
            say("! recv %ld %s", reader.result, strerrorname_np(reader.error));
        close(fd);
    }
    say("done with all");
}

static _Atomic bool closes;

static void *close_what_is_high(void *unused) {
    (void)unused;
    for (unsigned i = 0; closes; i++) {
        if (i % 2 == 0)
            close_range(500, ~0U, 0);
        else
            for (int fd = 16 * 1024; fd < 16 * 1024 + 30; fd++)
                close(fd);
        usleep(200);
    }
    return NULL;
}

/* One thread closes numbers that the program does not have, but perhaps the library, while another opens connections. */
void scenario_thread_connect_beside_closefrom(void) {
    enum { CONNECTIONS = 100 };
    pthread_t thread;
    closes = true;
    pthread_create(&thread, NULL, close_what_is_high, NULL);
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = cold_connection();
        warm(fd);
        for (int turn = 0; turn < 6; turn++) {
            char byte = 'q';
            if (me.client)
                put(fd, &byte, 1);
            if (!await_bits(fd, POLLIN) || recv(fd, &byte, 1, 0) != 1) {
                say("! nothing came");
                exit(1);
            }
            if (me.server)
                put(fd, &byte, 1);
        }
        close(fd);
    }
    closes = false;
    pthread_join(thread, NULL);
    say("all came");
}

/* A child of the closing process has none of what the sleeper still has. */
void scenario_thread_fork_after_close_while_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "late bytes");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    T(close(fd));
    int pipe_ends[2];
    pipe(pipe_ends);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(pipe_ends[1]);
        read(pipe_ends[0], &byte, 1);
        _exit(0);
    }
    close(pipe_ends[0]);
    meet();
    join_reader(thread, &reader);
    meet();
    close(pipe_ends[1]);
    waitpid(child, NULL, 0);
}

/* Nor does closing one number, and then the other. */
void scenario_thread_close_both_numbers_while_recv(void) {
    int fd = connection();
    static char bytes[MUCH];
    if (me.client) {
        meet();
        put(fd, bytes, sizeof bytes / 2);
        meet();
        put(fd, bytes, sizeof bytes / 2);
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread;
    int other = dup(fd);
    pthread_create(&thread, NULL, receive_much, &reader);
    while (reader.thread == 0)
        usleep(100);
    await_asleep(reader.thread);
    T(close(fd));
    meet();
    usleep(20000);
    await_asleep(reader.thread);
    T(close(other));
    meet();
    pthread_join(thread, NULL);
    say("received %zd", reader.result);
    meet();
}

/* Closing all descriptors there are does not end it either. */
void scenario_thread_close_all_while_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "late bytes");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    T(close(fd));
    closefrom(1000);
    meet();
    join_reader(thread, &reader);
    meet();
}

static void *blocked_fill(void *argument) {
    struct reader *writer = argument;
    static char bytes[65536];
    writer->thread = gettid();
    while ((writer->result = send(writer->fd, bytes, sizeof bytes, MSG_NOSIGNAL)) == sizeof bytes)
        ;
    writer->error = errno;
    return NULL;
}

void scenario_thread_shutdown_while_send(void) {
    int fd = connection();
    if (me.client) {
        static char bytes[65536];
        meet();
        while (read(fd, bytes, sizeof bytes) > 0)
            ;
        say("ended");
        meet();
        return;
    }
    struct reader writer = {.fd = fd};
    pthread_t thread;
    pthread_create(&thread, NULL, blocked_fill, &writer);
    while (writer.thread == 0)
        usleep(100);
    await_asleep(writer.thread);
    T(shutdown(fd, SHUT_WR));
    pthread_join(thread, NULL);
    say("send ended with %s", writer.result >= 0 || writer.error == EPIPE ? "a part or EPIPE" : "something else");
    meet();
    meet();
}

/* A thread that waits for room goes on when another makes the send buffer larger. */
void scenario_thread_send_buffer_enlarged(void) {
    int fd = connection();
    if (me.client) {
        static char bytes[MUCH];
        meet();
        get(fd, bytes, sizeof bytes);
        meet();
        return;
    }
    int size = 4096;
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    struct reader writer = {.fd = fd};
    pthread_t thread;
    pthread_create(&thread, NULL, send_much, &writer);
    while (writer.thread == 0)
        usleep(100);
    await_asleep(writer.thread);
    size = 200000;
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    pthread_join(thread, NULL);
    say("sent %zd", writer.result);
    meet();
    meet();
}

void scenario_thread_cancelled_in_recv(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "after the cancel");
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    void *result;
    T(pthread_cancel(thread));
    pthread_join(thread, &result);
    say("cancelled %d", result == PTHREAD_CANCELED);
    meet();
    expect_text(fd, "after the cancel");
    meet();
}

/* Calls that do not have to sleep are cancellation points all the same, and act before they do anything. */
enum call { WRITE, SEND, WRITEV, SENDMSG, SENDMMSG, PEEK, DONTWAIT, RECVMSG, POLL, SELECT, EPOLL, CLOSE, CALLS };
static const char *const call_names[CALLS] = {"write", "send", "writev", "sendmsg", "sendmmsg", "recv MSG_PEEK",
                                              "recv MSG_DONTWAIT", "recvmsg", "poll", "select", "epoll_wait", "close"};

struct caller {
    int fd;
    enum call call;
    int timeout; /* of what waits for many descriptors */
    _Atomic pid_t thread;
    _Atomic bool cancelled;
    bool returned;
};

/* For bytes where it waits, for room where it does not. */
static void call_once(int fd, enum call call, int timeout) {
    char byte = 'x';
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    struct mmsghdr messages = {.msg_hdr = message};
    short bits = timeout ? POLLIN : POLLOUT;
    struct pollfd one = {fd, bits, 0};
    struct timeval time = {0};
    struct epoll_event event = {.events = timeout ? EPOLLIN : EPOLLOUT};
    fd_set set;
    int epoll;
    switch (call) {
    case WRITE: write(fd, &byte, 1); break;
    case SEND: send(fd, &byte, 1, 0); break;
    case WRITEV: writev(fd, &piece, 1); break;
    case SENDMSG: sendmsg(fd, &message, 0); break;
    case SENDMMSG: sendmmsg(fd, &messages, 1, 0); break;
    case PEEK: recv(fd, &byte, 1, MSG_PEEK); break;
    case DONTWAIT: recv(fd, &byte, 1, MSG_DONTWAIT); break;
    case RECVMSG: recvmsg(fd, &message, 0); break;
    case POLL: poll(&one, 1, timeout); break;
    case SELECT:
        FD_ZERO(&set);
        FD_SET(fd, &set);
        select(fd + 1, timeout ? &set : NULL, timeout ? NULL : &set, NULL, timeout ? NULL : &time);
        break;
    case EPOLL:
        epoll = epoll_create1(0);
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        epoll_wait(epoll, &event, 1, timeout);
        break;
    case CLOSE: close(fd); break;
    default: break;
    }
}

static void *call_when_cancelled(void *argument) {
    struct caller *caller = argument;
    while (!caller->cancelled)
        ;
    call_once(caller->fd, caller->call, caller->timeout);
    caller->returned = true;
    return NULL;
}

void scenario_thread_cancelled_at_entry(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        expect_text(fd, "nothing else was sent");
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    for (enum call call = 0; call < CALLS; call++) {
        struct caller caller = {.fd = fd, .call = call};
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, call_when_cancelled, &caller);
        pthread_cancel(thread);
        caller.cancelled = true;
        pthread_join(thread, &result);
        say("%s: cancelled %d, returned %d", call_names[call], result == PTHREAD_CANCELED, caller.returned);
    }
    expect_text(fd, "unread");
    put_text(fd, "nothing else was sent");
    meet();
}

static void *wait_for_many(void *argument) {
    struct caller *caller = argument;
    caller->thread = gettid();
    call_once(caller->fd, caller->call, caller->timeout);
    caller->returned = true;
    return NULL;
}

void scenario_thread_cancelled_in_poll(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "after the cancel");
        meet();
        return;
    }
    for (enum call call = POLL; call <= EPOLL; call++) {
        struct caller caller = {.fd = fd, .call = call, .timeout = -1};
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, wait_for_many, &caller);
        while (caller.thread == 0)
            usleep(100);
        await_asleep(caller.thread);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        say("%s: cancelled %d, returned %d", call_names[call], result == PTHREAD_CANCELED, caller.returned);
    }
    meet();
    say_poll("poll", await_bits(fd, POLLIN));
    expect_text(fd, "after the cancel");
    meet();
}

static void *call_on_and_on(void *argument) {
    struct caller *caller = argument;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    caller->thread = gettid();
    for (;;)
        call_once(caller->fd, caller->call, caller->timeout);
    return NULL;
}

/* Threads that may be cancelled anywhere: in calls that go on and on, and in those that sleep. */
void scenario_thread_cancelled_anywhere(void) {
    int fd = connection();
    if (me.client) {
        char bytes[4096];
        while (read(fd, bytes, sizeof bytes) > 0)
            ;
        put_text(fd, "all was read");
        meet();
        return;
    }
    static const enum call calls[] = {SEND, WRITE, DONTWAIT, PEEK, POLL, SELECT};
    int cancelled = 0;
    for (int round = 0; round < 180; round++) {
        struct caller caller = {.fd = fd, .call = calls[round % COUNT(calls)], .timeout = round % 4 < 2 ? -1 : 0};
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, call_on_and_on, &caller);
        while (caller.thread == 0)
            usleep(100);
        for (volatile int spin = 0; spin < round * 150; spin++)
            ;
        pthread_cancel(thread);
        pthread_join(thread, &result);
        cancelled += result == PTHREAD_CANCELED;
    }
    say("cancelled %d", cancelled);
    shutdown(fd, SHUT_WR);
    expect_text(fd, "all was read");
    meet();
}

enum { WRITERS = 4, MESSAGES = 100, MESSAGE = 250 };

struct writer {
    int fd, number;
};

static void *write_messages(void *argument) {
    struct writer *writer = argument;
    unsigned char message[MESSAGE];
    for (int i = 0; i < MESSAGES; i++) {
        memset(message, 'a' + writer->number, sizeof message);
        message[1] = i;
        if (send(writer->fd, message, sizeof message, 0) != sizeof message)
            say("! a message was cut");
    }
    return NULL;
}

/* Many threads write whole messages that fit; none is torn, each thread's are in order. */
void scenario_thread_many_writers(void) {
    int fd = connection();
    if (me.server) {
        unsigned char message[MESSAGE], next[WRITERS] = {0};
        int torn = 0;
        for (int i = 0; i < WRITERS * MESSAGES; i++) {
            get(fd, message, sizeof message);
            unsigned writer = message[0] - 'a';
            for (int k = 2; k < MESSAGE; k++)
                torn += message[k] != message[0];
            torn += writer >= WRITERS || message[1] != next[writer]++;
        }
        say("torn %d", torn);
        meet();
        return;
    }
    int room = 1000000;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    pthread_t threads[WRITERS];
    struct writer writers[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){fd, i};
        pthread_create(&threads[i], NULL, write_messages, &writers[i]);
    }
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    meet();
}

static void *sum_bytes(void *argument) {
    int fd = *(int *)argument;
    unsigned char bytes[777];
    uint64_t sum = 0;
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        for (ssize_t i = 0; i < n; i++)
            sum += bytes[i] + 1;
    return (void *)(uintptr_t)sum;
}

/* Several threads read: each byte goes to exactly one, and all of them see the end. */
void scenario_thread_many_readers(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 1000000, 1);
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    pthread_t threads[3];
    uint64_t total = 0;
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, sum_bytes, &fd);
    for (int i = 0; i < 3; i++) {
        void *sum;
        pthread_join(threads[i], &sum);
        total += (uintptr_t)sum;
    }
    say("sum %llu", (unsigned long long)total);
    meet();
}

static void *write_stream(void *argument) {
    put_pattern(*(int *)argument, 0, 5000000, me.server);
    return NULL;
}

/* One thread writes, one reads, on both sides, from the first byte: lifting comes in the middle. */
void scenario_thread_both_ways_from_the_start(void) {
    int fd = cold_connection();
    pthread_t thread;
    pthread_create(&thread, NULL, write_stream, &fd);
    get_pattern(fd, 0, 5000000, me.client);
    pthread_join(thread, NULL);
    meet();
}

/* fork in a program with a thread blocked in recv: the child can use the connection. */
void scenario_thread_fork_while_recv(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "from the child");
        put_text(fd, "for the thread");
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    pthread_t thread = start_reader(&reader);
    pid_t child = fork();
    if (child == 0) {
        put_text(fd, "from the child");
        _exit(0);
    }
    waitpid(child, NULL, 0);
    join_reader(thread, &reader);
    meet();
}

/* A connection that is lifted while a thread is in recv, and a child that is the first to look at it afterwards: the parent's set hears of what comes. */
void scenario_thread_fork_before_next_look(void) {
    int fd = cold_connection();
    if (me.client) {
        for (int i = 0; i < 300; i++)
            expect_text(fd, "x");
        put_text(fd, "late bytes");
        meet();
        put_text(fd, "news");
        expect_end(fd);
        meet();
        return;
    }
    struct reader reader = {.fd = fd};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = 7};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    T(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    pthread_t thread = start_reader(&reader);
    for (int i = 0; i < 300; i++) {
        send(fd, "x", 1, 0);
        usleep(500);
    }
    join_reader(thread, &reader);
    pid_t child = fork();
    if (child == 0) {
        struct pollfd one = {fd, POLLIN, 0};
        poll(&one, 1, 0);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    meet();
    T(epoll_wait(epoll, &event, 1, 2000));
    say("%u", event.data.u32);
    expect_text(fd, "news");
    close(epoll);
    close(fd);
    meet();
}

static void *register_on_and_on(void *argument) {
    struct caller *caller = argument;
    struct epoll_event event = {.events = EPOLLIN};
    while (!caller->cancelled) {
        int epoll = epoll_create1(EPOLL_CLOEXEC);
        epoll_ctl(epoll, EPOLL_CTL_ADD, caller->fd, &event);
        epoll_ctl(epoll, EPOLL_CTL_DEL, caller->fd, NULL);
        close(epoll);
    }
    return NULL;
}

/* Registering in one thread while another forks: neither waits for the other for ever. */
void scenario_thread_fork_beside_epoll_ctl(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "done");
        meet();
        return;
    }
    struct caller caller = {.fd = fd};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, register_on_and_on, &caller);
    for (int i = 0; i < 300; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
    }
    caller.cancelled = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    put_text(fd, "done");
    meet();
}

static void *close_own(void *fd) {
    T(unshare(CLONE_FILES));
    T(close(*(int *)fd));
    return NULL;
}

static void *close_own_by_range(void *fd) {
    T(close_range(*(int *)fd, *(int *)fd, CLOSE_RANGE_UNSHARE));
    return NULL;
}

/* A thread closes a descriptor in a table of its own: to the others it stays open. */
static void goes_on_after(void *(*thread)(void *)) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        meet();
        T(recv(fd, &(char){0}, 1, MSG_DONTWAIT));
        put_text(fd, "to the others");
        expect_text(fd, "by the others");
        expect_end(fd);
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    pthread_t other;
    pthread_create(&other, NULL, thread, &fd);
    pthread_join(other, NULL);
    meet();
    expect_text(fd, "unread");
    expect_text(fd, "to the others");
    put_text(fd, "by the others");
    close(fd);
    meet();
}

void scenario_thread_with_descriptors_of_its_own(void) {
    goes_on_after(close_own);
}

void scenario_thread_closes_unshared(void) {
    goes_on_after(close_own_by_range);
}

struct duel {
    int fd;
    unsigned delay;
    _Atomic int *there;
};

/* Both begin at the same moment, but for the delay. */
static void begin_duel(const struct duel *duel) {
    ++*duel->there;
    while (*duel->there < 2)
        ;
    for (volatile unsigned i = 0; i < duel->delay; i++)
        ;
}

static void *close_now(void *argument) {
    begin_duel(argument);
    close(((struct duel *)argument)->fd);
    return NULL;
}

/* One end is closed in the moment in which the other is written to: whoever is first, the writer learns of it. */
void scenario_close_against_write(void) {
    int heard = 0;
    for (int round = 0; round < 100; round++) {
        int ends[2];
        both_ends(ends);
        for (int trip = 0; trip < 20; trip++) {
            round_trip(ends);
            usleep(50);
        }
        _Atomic int there = 0;
        struct duel closer = {ends[0], 0, &there};
        struct duel writer = {ends[1], round * 100, &there};
        pthread_t thread;
        pthread_create(&thread, NULL, close_now, &closer);
        begin_duel(&writer);
        send(ends[1], "late", 4, MSG_NOSIGNAL);
        pthread_join(thread, NULL);
        struct pollfd one = {ends[1], 0, 0};
        if (poll(&one, 1, 1000) == 1 && one.revents & POLLERR)
            heard++;
        close(ends[1]);
    }
    say("%d of 100 writers hear of the reset", heard);
    meet();
}

/* ---- several threads at once on a stream that grows into larger rings ---- */

enum { WORDS = 50000, WORD = 4 };

/* Without waiting for acknowledgements. */
static void prompt_ends(int ends[2]) {
    both_ends(ends);
    setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    for (int trip = 0; trip < 20; trip++)
        round_trip(ends);
}

/* The first byte of each word has the high bit; the others, and the rest of that, count. */
static void put_word(unsigned char *to, unsigned n) {
    for (int i = 0; i < WORD; i++)
        to[i] = (n >> 7 * i & 0x7f) | (i == 0 ? 0x80 : 0);
}

/* The words that follow one another in what came in one piece: false if one does not. */
static bool in_order(const unsigned char *piece, size_t len) {
    size_t at = 0;
    long before = -1;
    while (at < len && !(piece[at] & 0x80))
        at++;
    for (; at + WORD <= len; at += WORD) {
        long n = 0;
        for (int i = 0; i < WORD; i++)
            n |= (long)(piece[at + i] & 0x7f) << 7 * i;
        if (before >= 0 && n != before + 1)
            return false;
        before = n;
    }
    return true;
}

struct stream {
    int fd;
    _Atomic int *torn;
    _Atomic unsigned *next;
};

static void *receive_pieces(void *argument) {
    struct stream *stream = argument;
    static _Thread_local unsigned char piece[30000];
    unsigned random = gettid();
    for (;;) {
        ssize_t got = recv(stream->fd, piece, 1 + rand_r(&random) % sizeof piece, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN)
            continue;
        if (got <= 0)
            return NULL;
        if (!in_order(piece, got))
            ++*stream->torn;
    }
}

/* What one call receives is one piece of the stream, whoever else receives. */
void scenario_receivers_beside_each_other(void) {
    static unsigned char all[WORDS * WORD];
    for (unsigned n = 0; n < WORDS; n++)
        put_word(all + n * WORD, n);
    _Atomic int torn = 0;
    for (int round = 0; round < 40; round++) {
        int ends[2];
        prompt_ends(ends);
        struct stream stream = {ends[1], &torn, NULL};
        pthread_t threads[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&threads[i], NULL, receive_pieces, &stream);
        unsigned random = round;
        for (size_t sent = 0; sent < sizeof all;) {
            size_t len = 1 + rand_r(&random) % 30000;
            if (len > sizeof all - sent)
                len = sizeof all - sent;
            sent += send(ends[0], all + sent, len, 0);
        }
        close(ends[0]);
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        close(ends[1]);
    }
    say("%d pieces were torn", torn);
    meet();
}

enum { RECORD = 1000, RECORDS = 60 };

static void *send_records(void *argument) {
    struct stream *stream = argument;
    unsigned char record[RECORD * WORD];
    unsigned n = ++*stream->next;
    for (unsigned i = 0; i < RECORD; i++)
        put_word(record + i * WORD, n * RECORD + i);
    for (int i = 0; i < RECORDS / 3; i++)
        send(stream->fd, record, sizeof record, 0);
    return NULL;
}

/* What one call sends is one piece of the stream, whoever else sends, where it has room. */
void scenario_senders_beside_each_other(void) {
    int torn = 0;
    for (int round = 0; round < 60; round++) {
        int ends[2];
        prompt_ends(ends);
        _Atomic unsigned next = 0;
        struct stream stream = {ends[0], NULL, &next};
        pthread_t threads[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&threads[i], NULL, send_records, &stream);
        for (int i = 0; i < RECORDS; i++) {
            unsigned char record[RECORD * WORD];
            if (recv(ends[1], record, sizeof record, MSG_WAITALL) != sizeof record || !in_order(record, sizeof record))
                torn++;
        }
        for (int i = 0; i < 3; i++)
            pthread_join(threads[i], NULL);
        close(ends[0]);
        close(ends[1]);
    }
    say("%d records were torn", torn);
    meet();
}

/* ---- one thread sleeps in a call on the connection, another looks at it in its own way, again and again ---- */

struct looker {
    int fd;
    short events;
    _Atomic bool over;
};

static void *look_by_poll(void *argument) {
    struct looker *looker = argument;
    struct pollfd item = {.fd = looker->fd, .events = looker->events};
    while (!looker->over)
        poll(&item, 1, 1);
    return NULL;
}

static void *look_by_select(void *argument) {
    struct looker *looker = argument;
    while (!looker->over) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(looker->fd, &set);
        select(looker->fd + 1, &set, NULL, NULL, &(struct timeval){.tv_usec = 1000});
    }
    return NULL;
}

#define TRIPS 3000

/* The sleeper is woken although the other one has seen the same byte. */
static void sleep_beside(void *(*look)(void *)) {
    int fd = connection();
    char byte = 'x';
    if (me.client) {
        unsigned seed = 1;
        for (int i = 0; i < TRIPS && get(fd, &byte, 1) == 1; i++) {
            usleep(rand_r(&seed) % 200);
            put(fd, &byte, 1);
        }
        meet();
        return;
    }
    struct looker looker = {.fd = fd, .events = POLLIN};
    pthread_t thread;
    pthread_create(&thread, NULL, look, &looker);
    long longest = 0;
    for (int i = 0; i < TRIPS; i++) {
        struct timespec start = now();
        put(fd, &byte, 1);
        get(fd, &byte, 1);
        long time = elapsed_ms(&start);
        longest = time > longest ? time : longest;
        if (longest > 1500) {
            say("! asleep for %ld ms beside a byte", longest);
            _exit(1);
        }
    }
    looker.over = true;
    pthread_join(thread, NULL);
    meet();
}

void scenario_thread_recv_beside_poll(void) {
    sleep_beside(look_by_poll);
}

void scenario_thread_recv_beside_select(void) {
    sleep_beside(look_by_select);
}

static void *read_one_by_one(void *argument) {
    int fd = *(int *)argument;
    char byte;
    long count = 0;
    while (recv(fd, &byte, 1, 0) == 1 && byte != 'e')
        count++;
    return (void *)count;
}

/* Two threads sleep in recv. Bytes come by twos, and each takes one. */
void scenario_thread_recv_beside_recv(void) {
    int fd = connection();
    if (me.client) {
        unsigned seed = 1;
        for (int i = 0; i < TRIPS; i++) {
            put(fd, "xx", 2);
            usleep(rand_r(&seed) % 100);
        }
        put(fd, "ee", 2);
        meet();
        return;
    }
    pthread_t threads[2];
    long all = 0;
    for (int n = 0; n < 2; n++)
        pthread_create(&threads[n], NULL, read_one_by_one, &fd);
    for (int n = 0; n < 2; n++) {
        void *count;
        pthread_join(threads[n], &count);
        all += (long)count;
    }
    say("came %ld", all);
    meet();
}

static void *read_while_there_is(void *argument) {
    int fd = *(int *)argument;
    char byte;
    while (recv(fd, &byte, 1, 0) == 1)
        continue;
    return NULL;
}

/* One thread sleeps in recv, another in epoll_wait until there is room. What one is woken for must not be taken from the other. */
void scenario_thread_recv_beside_epoll_for_room(void) {
    enum { ROUNDS = 300, MOST = 32 << 20 };
    static char bytes[1 << 16];
    int fd = connection();
    if (me.client) {
        unsigned seed = 1;
        ssize_t got;
        for (long n = 0; (got = recv(fd, bytes, 1 + rand_r(&seed) % sizeof bytes, 0)) > 0; n++)
            if (n % 3 == 0)
                put(fd, "x", 1);
        say("end of stream");
        meet();
        return;
    }
    pthread_t reader;
    pthread_create(&reader, NULL, read_while_there_is, &fd);
    int set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    for (int i = 0; i < ROUNDS; i++) {
        ssize_t n;
        for (long sent = 0; (n = send(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0 && sent < MOST;)
            sent += n;
        /* Not if the peer takes all as fast as it comes. */
        if (n < 0 && epoll_wait(set, &event, 1, 1500) != 1) {
            say("! asleep beside room");
            _exit(1);
        }
    }
    shutdown(fd, SHUT_WR);
    meet();
    shutdown(fd, SHUT_RD);
    pthread_join(reader, NULL);
}

static void on_no_signal(int number) {
    (void)number;
}

/* The C library tells the other threads by a signal of its own; no handler of the program's runs. */
void scenario_thread_recv_beside_setgid(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "bytes");
        meet();
        return;
    }
    struct sigaction action = {.sa_handler = on_no_signal};
    sigaction(SIGTERM, &action, NULL);
    struct reader reader = {.fd = fd, .result = -2};
    pthread_t thread = start_reader(&reader);
    T(setgid(getgid()));
    await_asleep(reader.thread);
    meet();
    pthread_join(thread, NULL);
    say_bytes("received", reader.buffer, reader.result);
    meet();
}
