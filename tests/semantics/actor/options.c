/* Socket options, addresses and counters. */
#include "actor.h"

#include <arpa/inet.h>
#include <sys/mman.h>

enum { WATER = 10 };

static void set_timeout(int fd, int option, long ms) {
    struct timeval span = {ms / 1000, ms % 1000 * 1000};
    T(setsockopt(fd, SOL_SOCKET, option, &span, sizeof span));
}

void scenario_receive_timeout(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "in time");
        meet();
        put_text(fd, "half");
        meet();
        return;
    }
    set_timeout(fd, SO_RCVTIMEO, 50);
    struct timespec start = now();
    T(recv(fd, buffer, sizeof buffer, 0));
    say("waited %s", elapsed_ms(&start) >= 45 ? "long enough" : "too short");
    start = now();
    T(read(fd, buffer, sizeof buffer));
    struct iovec part = {buffer, sizeof buffer};
    T(readv(fd, &part, 1));
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    T(recvmsg(fd, &message, 0));
    say("waited %s", elapsed_ms(&start) >= 135 ? "long enough" : "too short");
    set_timeout(fd, SO_RCVTIMEO, 5000);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    struct timeval span;
    socklen_t length = sizeof span;
    T(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &span, &length));
    say("timeout %ld.%06ld", (long)span.tv_sec, (long)span.tv_usec);
    meet();
    await_readable(fd, 4);
    set_timeout(fd, SO_RCVTIMEO, 50);
    say_bytes("waitall until the timeout", buffer, T(recv(fd, buffer, 10, MSG_WAITALL)));
    set_timeout(fd, SO_RCVTIMEO, 0);
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    meet();
}

void scenario_send_timeout(void) {
    static unsigned char bytes[16000000];
    int fd = connection();
    if (me.server) {
        size_t total = told();
        get_pattern(fd, 0, total, 1);
        meet();
        return;
    }
    set_timeout(fd, SO_SNDTIMEO, 50);
    fill_pattern(bytes, 0, sizeof bytes, 1);
    struct timespec start = now();
    ssize_t part = T_OK(send(fd, bytes, sizeof bytes, 0));
    say("a part of it: %s", part > 0 && part < (ssize_t)sizeof bytes ? "yes" : "no");
    say("waited %s", elapsed_ms(&start) >= 45 ? "long enough" : "too short");
    size_t total = part;
    while ((part = send(fd, bytes + total, 4096, 0)) > 0)
        total += part;
    say("then %zd %s", part, strerrorname_np(errno));
    tell(total);
    meet();
}

/* Nothing is readable, and recv() waits, until SO_RCVLOWAT bytes are there. */
void scenario_receive_low_water(void) {
    char buffer[64];
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "0123456789");
        meet();
        meet();
        put_text(fd, "abcdefghij");
        meet();
        put_text(fd, "0123456789");
        await_asleep(told());
        put_text(fd, "ABCDEFGHIJKLMNOPQRST");
        meet();
        put_text(fd, "few");
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    int low = 15;
    T(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    meet();
    meet();
    await_readable(fd, 10);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    T(poll(&item, 1, 20));
    T(epoll_wait(set, &event, 1, 0));
    say_bytes("dontwait", buffer, T(recv(fd, buffer, 2, MSG_DONTWAIT)));
    meet();
    await_readable(fd, 18);
    T(poll(&item, 1, 5000));
    T(epoll_wait(set, &event, 1, 0));
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
    await_readable(fd, 10);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
    say_poll("end of stream", await_bits(fd, POLLIN));
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
}

/* Round trips until it is lifted, of a size that the low water mark lets through. */
static void round_trips(int fd) {
    char bytes[WATER];
    for (int i = 0; i < 200; i++) {
        if (me.client)
            put_pattern(fd, 0, WATER, 1);
        get(fd, bytes, WATER);
        if (me.server)
            put_pattern(fd, 0, WATER, 1);
        usleep(100);
    }
}

/* What is set on a listening socket is set on what it accepts. */
void scenario_low_water_of_listener(void) {
    char buffer[2 * WATER];
    int low = WATER;
    if (me.server)
        T(setsockopt(me.listener, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    meet();
    int fd = cold_connection();
    round_trips(fd);
    if (me.client) {
        put_text(fd, "few");
        meet();
        meet();
        put_text(fd, "and many more");
        meet();
        return;
    }
    meet();
    await_readable(fd, 3);
    T(poll(&(struct pollfd){fd, POLLIN, 0}, 1, 20));
    meet();
    say_poll("poll", await_bits(fd, POLLIN));
    await_readable(fd, 16);
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
}

/* The kernel begins with time stamps on the whole machine when the first socket wants some, a moment later. */
static int begin_with_timestamps(void) {
    int on = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on);
    usleep(100000);
    return fd;
}

static void receive_with_control_data(int fd) {
    char buffer[WATER], control[256];
    await_readable(fd, 4);
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    T(recvmsg(fd, &message, 0));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    say("control data %d", header ? header->cmsg_type : -1);
}

void scenario_timestamps_of_listener(void) {
    int on = 1, other = begin_with_timestamps();
    if (me.server)
        T(setsockopt(me.listener, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on));
    meet();
    int fd = cold_connection();
    round_trips(fd);
    if (me.client) {
        put_text(fd, "when");
        meet();
        return;
    }
    receive_with_control_data(fd);
    close(other);
    meet();
}

/* What is told beside the bytes, and what is handed out without a copy, is the kernel's to tell. */
void scenario_timestamps_of_new_kinds(void) {
    enum { NEW_KINDS = 63 }; /* SO_TIMESTAMP_NEW, SO_TIMESTAMPNS_NEW, SO_TIMESTAMPING_NEW */
    int fd = connection(), other = begin_with_timestamps();
    for (int kind = NEW_KINDS; kind < NEW_KINDS + 2; kind++) {
        if (me.server) {
            int on = 1;
            T(setsockopt(fd, SOL_SOCKET, kind, &on, sizeof on));
        }
        meet();
        if (me.client)
            put_text(fd, "when");
        if (me.server)
            receive_with_control_data(fd);
        meet();
    }
    close(other);
}

void scenario_receive_by_option(void) {
    char buffer[WATER];
    int fd = connection();
    if (me.client) {
        put_text(fd, "hello");
        meet();
        return;
    }
    await_readable(fd, 5);
    struct tcp_zerocopy_receive asked = {.length = 4096};
    void *place = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    asked.address = (uintptr_t)place;
    socklen_t length = sizeof asked;
    /* Once on TCP again they come from there. */
    for (int i = 0; i < 1000 && asked.recv_skip_hint == 0; i++) {
        asked.length = 4096;
        getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &asked, &length);
        usleep(1000);
    }
    say("mapped %u, to be copied %u", asked.length, asked.recv_skip_hint);
    say_bytes("copied", buffer, T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)));
    meet();
}

static void say_address(const char *label, const struct sockaddr_in *address, socklen_t length) {
    say("%s: family %d length %u %s, the server's port: %d", label, address->sin_family, length,
        inet_ntoa(address->sin_addr), ntohs(address->sin_port) == me.port);
}

void scenario_addresses(void) {
    int fd = connection();
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    T(getsockname(fd, (struct sockaddr *)&address, &length));
    say_address("own", &address, length);
    T(getpeername(fd, (struct sockaddr *)&address, &length));
    say_address("peer", &address, length);
    struct sockaddr_in again = server_address();
    T(connect(fd, (struct sockaddr *)&again, sizeof again));
    T(bind(fd, (struct sockaddr *)&again, sizeof again));
    T(accept(fd, NULL, NULL));
    T(listen(fd, 1));
    if (me.server)
        close(fd);
    else
        expect_end(fd);
    meet();
    T(getpeername(fd, (struct sockaddr *)&address, &length));
    meet();
}

static void show(int fd, const char *name, int level, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    int result = getsockopt(fd, level, option, &value, &length);
    say("%s: %d %d", name, result, result ? errno : value);
}

void scenario_socket_options(void) {
    int fd = connection();
    int on = 1, size = 40000;
    show(fd, "type", SOL_SOCKET, SO_TYPE);
    show(fd, "domain", SOL_SOCKET, SO_DOMAIN);
    show(fd, "protocol", SOL_SOCKET, SO_PROTOCOL);
    show(fd, "listening", SOL_SOCKET, SO_ACCEPTCONN);
    show(fd, "error", SOL_SOCKET, SO_ERROR);
    show(fd, "no delay", IPPROTO_TCP, TCP_NODELAY);
    T(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    show(fd, "no delay", IPPROTO_TCP, TCP_NODELAY);
    T(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    show(fd, "keep alive", SOL_SOCKET, SO_KEEPALIVE);
    T(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    show(fd, "receive buffer", SOL_SOCKET, SO_RCVBUF);
    show(fd, "send buffer", SOL_SOCKET, SO_SNDBUF);
    T(setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on));
    T(setsockopt(fd, SOL_SOCKET, 7777, &on, sizeof on));
    meet();
    if (me.client)
        put_pattern(fd, 0, 3000000, 1);
    else
        get_pattern(fd, 0, 3000000, 1);
    meet();
}

/* Sends while there is room, though nobody reads; how many bytes. */
static size_t fill(int fd, size_t offset) {
    static unsigned char bytes[4096];
    size_t total = 0;
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    while (poll(&room, 1, 500) == 1) {
        ssize_t part;
        do {
            fill_pattern(bytes, offset + total, sizeof bytes, 1);
            part = send(fd, bytes, sizeof bytes, MSG_DONTWAIT);
            total += part > 0 ? part : 0;
        } while (part > 0);
        if (errno != EAGAIN)
            say("! send: %s", strerrorname_np(errno));
    }
    return total;
}

/* Who makes the send buffer small can send little that nobody reads; made larger, it takes more. */
void scenario_send_buffer_size(void) {
    int fd = connection();
    if (me.server) {
        size_t total = 0;
        for (int i = 0; i < 3; i++) {
            size_t more = told();
            get_pattern(fd, total, more, 1);
            total += more;
            meet();
        }
        return;
    }
    int size = 4096;
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    size_t small = fill(fd, 0);
    say("little: %s", small > 4096 && small < 500000 ? "yes" : "no");
    tell(small);
    meet();
    size = 200000;
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    size_t large = fill(fd, small);
    say("more: %s", large > small + 100000 && large < 1000000 ? "yes" : "no");
    tell(large);
    meet();
    /* While more than the new size lies unread. */
    size_t before = fill(fd, small + large);
    size = 4096;
    T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    size_t after = fill(fd, small + large + before);
    say("nothing more: %zu", after);
    tell(before + after);
    meet();
}

static struct tcp_info counters(int fd) {
    struct tcp_info info;
    socklen_t length = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
        say("! TCP_INFO: %s", strerror(errno));
    return info;
}

/* The byte counters count the program's bytes, whichever way they went. */
void scenario_tcp_info_counts(void) {
    int fd = connection();
    struct timespec start = now();
    meet();
    /* What was sent before is acknowledged, perhaps a little later. */
    while (counters(fd).tcpi_unacked > 0 && elapsed_ms(&start) < 2000)
        usleep(500);
    struct tcp_info before = counters(fd);
    say("state %d", before.tcpi_state);
    meet();
    if (me.client)
        put_pattern(fd, 0, 12345, 1);
    else
        get_pattern(fd, 0, 12345, 1);
    meet();
    start = now();
    struct tcp_info after = counters(fd);
    while (me.client && after.tcpi_bytes_acked - before.tcpi_bytes_acked < 12345 && elapsed_ms(&start) < 2000) {
        usleep(500);
        after = counters(fd);
    }
    if (me.client)
        say("acknowledged %llu sent %llu not sent %u",
            (unsigned long long)(after.tcpi_bytes_acked - before.tcpi_bytes_acked),
            (unsigned long long)(after.tcpi_bytes_sent - before.tcpi_bytes_sent), after.tcpi_notsent_bytes);
    else
        say("received %llu", (unsigned long long)(after.tcpi_bytes_received - before.tcpi_bytes_received));
    meet();
    shutdown(fd, SHUT_WR);
    expect_end(fd);
    meet();
}

/* Asking for kernel TLS: whether the kernel has it or not, the bytes go on. */
void scenario_upper_layer_protocol(void) {
    int fd = connection();
    T(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 4));
    T(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "none such", 9));
    meet();
    if (me.client) {
        put_text(fd, "before any key");
        meet();
    } else {
        expect_text(fd, "before any key");
        meet();
    }
}

/* A program that reckons its time limit and is late sets one below zero: no call waits. */
void scenario_time_limit_below_zero(void) {
    static char bytes[1 << 20];
    struct timeval past = {.tv_sec = -1};
    int fd = connection();
    T(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &past, sizeof past));
    T(recv(fd, bytes, 1, 0));
    meet();
    T(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &past, sizeof past));
    if (me.client)
        while (send(fd, bytes, sizeof bytes, 0) > 0)
            ;
    if (me.client)
        say("full: %s", strerrorname_np(errno));
    meet();
}
