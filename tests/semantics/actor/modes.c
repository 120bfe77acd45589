/* Blocking and non-blocking mode, byte counts, and full buffers. */
#include "actor.h"

#include <linux/sockios.h>

static int count_of(int fd, unsigned long request) {
    int value = -1;
    if (ioctl(fd, request, &value) != 0)
        return -1;
    return value;
}

void scenario_fionread(void) {
    char buffer[5000];
    int fd = connection();
    if (me.client) {
        say("nothing yet %d", count_of(fd, FIONREAD));
        put_pattern(fd, 0, 3000, 0);
        meet();
        put_pattern(fd, 3000, 1500, 0);
        meet();
        meet();
        return;
    }
    await_readable(fd, 3000);
    say("FIONREAD %d", count_of(fd, FIONREAD));
    recv(fd, buffer, 1000, MSG_PEEK);
    say("after peek %d", count_of(fd, FIONREAD));
    T(read(fd, buffer, 1234));
    say("after read %d", count_of(fd, FIONREAD));
    meet();
    await_readable(fd, 3266);
    say("SIOCINQ %d, SIOCATMARK %d", count_of(fd, SIOCINQ), count_of(fd, SIOCATMARK));
    meet();
    T(read(fd, buffer, sizeof buffer));
    say("drained %d", count_of(fd, FIONREAD));
    meet();
}

/* Bytes not yet taken by the peer's host: none are left once the peer has read everything. */
void scenario_outq_drains(void) {
    int fd = connection();
    if (me.server) {
        get_pattern(fd, 0, 50000, 0);
        meet();
        return;
    }
    put_pattern(fd, 0, 50000, 0);
    meet();
    struct timespec start = now();
    while (count_of(fd, SIOCOUTQ) != 0 && elapsed_ms(&start) < 3000)
        usleep(500);
    say("SIOCOUTQ %d SIOCOUTQNSD %d", count_of(fd, SIOCOUTQ), count_of(fd, SIOCOUTQNSD));
}

/* What the peer's host has taken is not in the queue, though its program has not read it. */
void scenario_outq_of_unread(void) {
    int fd = connection();
    if (me.server) {
        meet();
        get_pattern(fd, 0, 20000, 0);
        meet();
        return;
    }
    put_pattern(fd, 0, 20000, 0);
    struct timespec start = now();
    while (count_of(fd, SIOCOUTQ) != 0 && elapsed_ms(&start) < 3000)
        usleep(500);
    say("SIOCOUTQ %d", count_of(fd, SIOCOUTQ));
    meet();
    meet();
}

/* Little may wait to be sent: beside what the peer's host takes, a send that does not wait gets rid of no more. */
void scenario_notsent_low_water(void) {
    int fd = connection();
    int least = 4096;
    if (me.server) {
        size_t total = told();
        get_pattern(fd, 0, total, 1);
        meet();
        return;
    }
    T(setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &least, sizeof least));
    size_t total = fill_up(fd, 1);
    say("taken: %s", total < 500000 ? "little" : "much");
    struct pollfd item = {.fd = fd, .events = POLLOUT};
    T(poll(&item, 1, 0));
    tell(total);
    meet();
    T(poll(&item, 1, 3000));
}

/* A program that limits its own rate is held to it. */
void scenario_pacing(void) {
    enum { RATE = 2000000, BYTES = 1000000 };
    int fd = connection();
    unsigned rate = RATE;
    if (me.server) {
        get_pattern(fd, 0, BYTES, 1);
        tell(1);
        return;
    }
    T(setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate));
    struct timespec start = now();
    put_pattern(fd, 0, BYTES, 1);
    told();
    say("%s", elapsed_ms(&start) > 200 ? "paced" : "not paced");
}

/* A sender whose peer does not read sees its bytes in the queue, and never more than it wrote. */
void scenario_outq_while_full(void) {
    int fd = connection();
    if (me.server) {
        size_t total = told();
        get_pattern(fd, 0, total, 1);
        meet();
        return;
    }
    size_t total = fill_up(fd, 1);
    int queued = count_of(fd, SIOCOUTQ);
    say("queued: %s", queued > 0 && (size_t)queued <= total ? "some" : "wrong");
    tell(total);
    meet();
}

void scenario_nonblocking_ways(void) {
    char buffer[8];
    int fd = connection();
    int on = 1, off = 0;
    say("flags %#x", fcntl(fd, F_GETFL));
    T(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK));
    say("flags %#x", fcntl(fd, F_GETFL));
    T(read(fd, buffer, 8));
    T(recv(fd, buffer, 8, MSG_WAITALL));
    T(fcntl(fd, F_SETFL, 0));
    say("flags %#x", fcntl(fd, F_GETFL));
    T(ioctl(fd, FIONBIO, &on));
    say("flags %#x", fcntl(fd, F_GETFL));
    T(read(fd, buffer, 8));
    struct iovec part = {buffer, 8};
    T(readv(fd, &part, 1));
    T(ioctl(fd, FIONBIO, &off));
    say("flags %#x", fcntl(fd, F_GETFL));
    meet();
    if (me.client) {
        await_asleep(me.peer);
        put_text(fd, "wake");
    } else {
        say_bytes("blocking again", buffer, T(read(fd, buffer, 8)));
    }
    meet();
}

/* O_NONBLOCK belongs to the open file: a dup shares it. */
void scenario_nonblocking_is_shared(void) {
    char buffer[8];
    int fd = connection();
    int twin = dup(fd);
    T(fcntl(twin, F_SETFL, O_NONBLOCK));
    T(read(fd, buffer, 8));
    pid_t child = fork();
    if (child == 0) {
        fcntl(fd, F_SETFL, 0);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    say("flags %#x", fcntl(fd, F_GETFL));
    meet();
    if (me.client) {
        await_asleep(me.peer);
        put_text(fd, "wake");
    } else {
        say_bytes("blocking again", buffer, T(read(fd, buffer, 8)));
    }
    meet();
}

void scenario_accept4_flags(void) {
    char buffer[8];
    if (me.client) {
        int fd = cold_connection();
        warm(fd);
        T(read(fd, buffer, 8));
        return;
    }
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    int fd = accept4(me.listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    say("family %d length %u loopback %d", from.sin_family, length,
        from.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    say("flags %#x %#x", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
    warm(fd);
    T(read(fd, buffer, 8));
    say("flags %#x %#x", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
    fcntl(me.listener, F_SETFL, O_NONBLOCK);
    T(accept(me.listener, NULL, NULL));
    T(accept4(me.listener, NULL, NULL, 0x12345));
    close(fd);
}

void scenario_full_then_drained(void) {
    int fd = connection();
    if (me.server) {
        size_t total = told();
        get_pattern(fd, 0, total, 2);
        meet();
        expect_text(fd, "there is room");
        return;
    }
    size_t total = fill_up(fd, 2);
    T(send(fd, "x", 1, MSG_DONTWAIT));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T(write(fd, "x", 1));
    struct iovec part = {"x", 1};
    T(writev(fd, &part, 1));
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT};
    T(poll(&item, 1, 0));
    tell(total);
    say_poll("drained", await_bits(fd, POLLOUT));
    meet();
    T(write(fd, "there is room", 13));
}

/* A blocked writer of far more than fits goes on as the reader takes it. */
void scenario_blocked_writer(void) {
    enum { TOTAL = 12000000 };
    int fd = connection();
    if (me.server) {
        await_asleep(me.peer);
        get_pattern(fd, 0, TOTAL, 4);
        meet();
        return;
    }
    unsigned char *bytes = malloc(TOTAL);
    fill_pattern(bytes, 0, TOTAL, 4);
    T(write(fd, bytes, TOTAL));
    meet();
    free(bytes);
}
