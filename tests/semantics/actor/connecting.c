/* How a connection comes to be, and bytes that are there before both ends know of each other. */
#include "actor.h"

#include <arpa/inet.h>

static void say_error(int fd) {
    int error = -1;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    say("SO_ERROR %s", error ? strerrorname_np(error) : "none");
}

void scenario_nonblocking_connect(void) {
    if (me.server) {
        meet();
        int fd = cold_connection();
        expect_text(fd, "early");
        warm(fd);
        expect_text(fd, "late");
        meet();
        return;
    }
    char byte;
    struct sockaddr_in address = server_address();
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    say_poll("connected", await_bits(fd, POLLOUT));
    say_error(fd);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    T(read(fd, &byte, 1));
    T(write(fd, "early", 5));
    meet();
    warm(fd);
    T(write(fd, "late", 4));
    meet();
}

void scenario_connect_refused(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    char byte;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int holder = socket(AF_INET, SOCK_STREAM, 0);
    bind(holder, (struct sockaddr *)&address, sizeof address);
    getsockname(holder, (struct sockaddr *)&address, &length);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    T(read(fd, &byte, 1));
    close(fd);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    say_poll("refused", await_bits(fd, POLLOUT));
    say_error(fd);
    say_error(fd);
    T(read(fd, &byte, 1));
    address.sin_family = 99;
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    T(connect(fd, (struct sockaddr *)&address, 3));
    close(fd);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    meet();
}

/* The client writes and leaves before the server accepts. */
void scenario_gone_before_accept(void) {
    if (me.client) {
        int fd = cold_connection();
        put_pattern(fd, 0, 30000, 1);
        T(close(fd));
        meet();
        meet();
        return;
    }
    meet();
    int fd = accept(me.listener, NULL, NULL);
    get_pattern(fd, 0, 30000, 1);
    expect_end(fd);
    meet();
}

/* Many round trips before the server ever looks: written blind, then answered. */
void scenario_written_before_accept(void) {
    if (me.client) {
        int fd = cold_connection();
        put_pattern(fd, 0, 20000, 1);
        meet();
        put_pattern(fd, 20000, 20000, 1);
        get_pattern(fd, 0, 40000, 2);
        warm(fd);
        meet();
        return;
    }
    meet();
    int fd = cold_connection();
    get_pattern(fd, 0, 40000, 1);
    put_pattern(fd, 0, 40000, 2);
    warm(fd);
    meet();
}

/* Both ends in one process. */
void scenario_connected_to_itself(void) {
    int ends[2];
    both_ends(ends);
    put_pattern(ends[0], 0, 30000, 1);
    get_pattern(ends[1], 0, 30000, 1);
    T(close(ends[0]));
    expect_end(ends[1]);
    meet();
}

/* connect() to no address ends the connection at once; the socket can be connected again. */
void scenario_disconnected(void) {
    char buffer[8];
    int fd = connection();
    if (me.client) {
        struct sockaddr nobody = {.sa_family = AF_UNSPEC};
        struct sockaddr_in address = server_address();
        put_text(fd, "bye");
        meet();
        T(connect(fd, &nobody, sizeof nobody));
        T(send(fd, "x", 1, MSG_NOSIGNAL));
        T(recv(fd, buffer, 1, 0));
        meet();
        T(connect(fd, (struct sockaddr *)&address, sizeof address));
        put_text(fd, "again");
        meet();
        return;
    }
    await_readable(fd, 3);
    meet();
    say_poll("disconnected", await_bits(fd, POLLHUP));
    say_bytes("left", buffer, recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
    meet();
    int second = accept(me.listener, NULL, NULL);
    expect_text(second, "again");
    meet();
}

/* A socket connected to its own port talks to itself. */
void scenario_self_connect(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bind(fd, (struct sockaddr *)&address, sizeof address);
    getsockname(fd, (struct sockaddr *)&address, &length);
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    for (int i = 0; i < 300; i++) {
        char byte = i;
        put(fd, &byte, 1);
        get(fd, &byte, 1);
    }
    put_text(fd, "to myself");
    expect_text(fd, "to myself");
    T(shutdown(fd, SHUT_WR));
    expect_end(fd);
    meet();
}

/* Over IPv6, and over IPv6 with a mapped IPv4 address. */
void scenario_ipv6(void) {
    int fd;
    if (me.server) {
        struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
        socklen_t length = sizeof address;
        int off = 0, listener = socket(AF_INET6, SOCK_STREAM, 0);
        setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
        T(bind(listener, (struct sockaddr *)&address, sizeof address));
        T(listen(listener, 5));
        getsockname(listener, (struct sockaddr *)&address, &length);
        tell(ntohs(address.sin6_port));
        fd = accept(listener, NULL, NULL);
        warm(fd);
        expect_text(fd, "over v6");
        int mapped = accept(listener, NULL, NULL);
        warm(mapped);
        T(getpeername(mapped, (struct sockaddr *)&address, &length));
        say("family %d mapped %d", address.sin6_family, IN6_IS_ADDR_V4MAPPED(&address.sin6_addr));
        expect_text(mapped, "over mapped v4");
    } else {
        me.port = told();
        struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(me.port)};
        address.sin6_addr = in6addr_loopback;
        fd = socket(AF_INET6, SOCK_STREAM, 0);
        T(connect(fd, (struct sockaddr *)&address, sizeof address));
        warm(fd);
        put_text(fd, "over v6");
        int plain = cold_connection();
        warm(plain);
        put_text(plain, "over mapped v4");
    }
    meet();
}

/* One short connection after the other, each for one request. */
void scenario_many_short_connections(void) {
    char buffer[16];
    for (int i = 0; i < 150; i++) {
        int fd = cold_connection();
        if (me.client) {
            put(fd, &i, sizeof i);
            int answer = -1;
            if (get(fd, &answer, sizeof answer) != sizeof answer || answer != i * 3)
                say("! connection %d was answered %d", i, answer);
            if (read(fd, buffer, 1) != 0)
                say("! connection %d did not end", i);
        } else {
            int question = 0;
            get(fd, &question, sizeof question);
            question *= 3;
            put(fd, &question, sizeof question);
        }
        close(fd);
    }
    meet();
}
