/* The MSG_ flags of the send and recv families. */
#include "actor.h"

#include <linux/errqueue.h>

void scenario_msg_peek(void) {
    char buffer[64], tail[64];
    int fd = connection();
    if (me.client) {
        put_text(fd, "peekaboo");
        meet();
        put_text(fd, " twice");
        meet();
        meet();
        return;
    }
    await_readable(fd, 8);
    say_bytes("peek 4", buffer, T(recv(fd, buffer, 4, MSG_PEEK)));
    say_bytes("peek all", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    meet();
    meet();
    await_readable(fd, 14);
    struct iovec parts[] = {{buffer, 6}, {tail, sizeof tail}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    T(recvmsg(fd, &message, MSG_PEEK));
    say("%.6s|%.8s", buffer, tail);
    say_bytes("recv 3", buffer, T(recv(fd, buffer, 3, 0)));
    say_bytes("peek after", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    say_bytes("recv rest", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, MSG_PEEK | MSG_DONTWAIT));
    meet();
}

/* A blocked peek returns when bytes come, and leaves them. */
void scenario_peek_blocks(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        await_asleep(told());
        put_text(fd, "now");
        expect_end(fd);
        return;
    }
    tell(getpid());
    say_bytes("peek", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    close(fd);
}

void scenario_msg_waitall(void) {
    char buffer[256];
    int fd = connection();
    if (me.client) {
        put_text(fd, "0123456789");
        await_asleep(told());
        put_text(fd, "abcdefghijklmnopqrst");
        meet();
        put_text(fd, "short");
        meet();
        put_text(fd, "peeked bytes");
        meet();
        put_text(fd, "last words");
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    await_readable(fd, 10);
    tell(getpid());
    say_bytes("waitall", buffer, T(recv(fd, buffer, 30, MSG_WAITALL)));
    meet();
    await_readable(fd, 5);
    say_bytes("waitall, dontwait", buffer, T(recv(fd, buffer, 30, MSG_WAITALL | MSG_DONTWAIT)));
    meet();
    await_readable(fd, 12);
    say_bytes("waitall, peek", buffer, T(recv(fd, buffer, 12, MSG_WAITALL | MSG_PEEK)));
    say_bytes("waitall", buffer, T(recv(fd, buffer, 12, MSG_WAITALL)));
    meet();
    struct iovec parts[] = {{buffer, 4}, {buffer + 4, 100}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    say_bytes("waitall until the end", buffer, T(recvmsg(fd, &message, MSG_WAITALL)));
    T(recv(fd, buffer, 10, MSG_WAITALL));
    meet();
}

/* MSG_WAITALL for more than any buffer holds. */
void scenario_waitall_large(void) {
    enum { TOTAL = 8000000 };
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, TOTAL, 5);
        meet();
        return;
    }
    unsigned char *bytes = malloc(TOTAL);
    say_bytes("waitall", bytes, T(recv(fd, bytes, TOTAL, MSG_WAITALL)));
    meet();
    free(bytes);
}

void scenario_msg_dontwait(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
        T(send(fd, "x", 1, MSG_DONTWAIT));
        say("flags %#x", fcntl(fd, F_GETFL));
        meet();
        return;
    }
    await_readable(fd, 1);
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)));
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    meet();
}

/* On a stream MSG_TRUNC throws the bytes away. */
void scenario_msg_trunc(void) {
    char buffer[32] = "untouched";
    int fd = connection();
    if (me.client) {
        put_text(fd, "skip these bytes, read these");
        meet();
        return;
    }
    await_readable(fd, 28);
    T(recv(fd, NULL, 10, MSG_TRUNC));
    T(recv(fd, buffer, 8, MSG_TRUNC));
    say("%s", buffer);
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, NULL, 10, MSG_TRUNC | MSG_DONTWAIT));
    meet();
}

void scenario_msg_more(void) {
    char buffer[32];
    int fd = connection();
    int on = 1, off = 0;
    if (me.client) {
        T(send(fd, "held ", 5, MSG_MORE));
        T(send(fd, "back ", 5, MSG_MORE | MSG_NOSIGNAL));
        T(send(fd, "and sent", 8, MSG_EOR));
        T(setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof on));
        T(send(fd, "corked", 6, 0));
        T(setsockopt(fd, IPPROTO_TCP, TCP_CORK, &off, sizeof off));
        meet();
        return;
    }
    await_readable(fd, 24);
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
}

void scenario_unknown_flags(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        T(send(fd, "proxy", 5, MSG_PROXY));
        T(send(fd, "confirm", 7, MSG_CONFIRM | MSG_DONTROUTE));
        T(send(fd, "high bit", 8, 0x00100000));
        meet();
        return;
    }
    await_readable(fd, 20);
    say_bytes("recv", buffer, T(recv(fd, buffer, 5, MSG_CMSG_CLOEXEC)));
    say_bytes("recv", buffer, T(recv(fd, buffer, 7, 0x00100000)));
    say_bytes("recv", buffer, T(recv(fd, buffer, 8, MSG_ERRQUEUE)));
    say_bytes("recv", buffer, T(recv(fd, buffer, 8, 0)));
    meet();
}

/* Zero-copy sends report on the error queue when the bytes may be reused. */
void scenario_msg_zerocopy(void) {
    static char bytes[20000];
    int fd = connection();
    if (me.server) {
        say_bytes("received", bytes, get(fd, bytes, sizeof bytes));
        meet();
        return;
    }
    int on = 1;
    fill_pattern(bytes, 0, sizeof bytes, 9);
    T(setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    T(send(fd, bytes, sizeof bytes, MSG_ZEROCOPY));
    say_poll("error queue", await_bits(fd, 0));
    char control[256];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
    T(recvmsg(fd, &message, MSG_ERRQUEUE));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head) {
        struct sock_extended_err *report = (void *)CMSG_DATA(head);
        say("level %d type %d errno %u origin %u range %u-%u", head->cmsg_level, head->cmsg_type,
            report->ee_errno, report->ee_origin, report->ee_info, report->ee_data);
    }
    meet();
}
