/* Several threads on one connection. */
#include "actor.h"

#include <pthread.h>

struct reader {
    int fd;
    _Atomic pid_t thread;
    long result;
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
