/* Sending and receiving, by every call that can. */
#include "player.h"

#include <sys/sendfile.h>
#include <sys/syscall.h>

static unsigned char outgoing[LARGEST], incoming[LARGEST];
static const unsigned char UNTOUCHED = 0xee;

void fill(unsigned char *bytes, size_t count, uint32_t stamp, size_t offset) {
    for (size_t i = 0; i < count; i++) {
        uint32_t x = (uint32_t)(offset + i) * 2654435761u + stamp * 40503u;
        bytes[i] = (unsigned char)(x >> 24 ^ x >> 13);
    }
}

/* Three pieces of different sizes. */
static int cut(struct iovec *pieces, unsigned char *bytes, size_t count) {
    size_t first = count / 5, second = count / 3;
    pieces[0] = (struct iovec){bytes, first};
    pieces[1] = (struct iovec){bytes + first, second};
    pieces[2] = (struct iovec){bytes + first + second, count - first - second};
    return 3;
}

static void halve(struct mmsghdr *messages, struct iovec *pieces, unsigned char *bytes, size_t count) {
    memset(messages, 0, 2 * sizeof *messages);
    pieces[0] = (struct iovec){bytes, count / 2};
    pieces[1] = (struct iovec){bytes + count / 2, count - count / 2};
    for (int i = 0; i < 2; i++)
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
}

static long send_file(int fd, size_t count) {
    off_t at = 0;
    if (ftruncate(FILE_OF_BYTES, 0) != 0 || pwrite(FILE_OF_BYTES, outgoing, count, 0) != (ssize_t)count)
        answer("!no file");
    return sendfile(fd, FILE_OF_BYTES, &at, count);
}

/* send PLACE CALL COUNT FLAGS STAMP */
void step_send(void) {
    int fd = here();
    const char *call = word();
    size_t count = number();
    int flags = message_flags(word());
    fill(outgoing, count, number(), 0);
    struct iovec pieces[3];
    struct mmsghdr messages[2];
    struct msghdr message = {.msg_iov = pieces};

    if (strcmp(call, "write") == 0)
        answer_result(write(fd, outgoing, count));
    else if (strcmp(call, "send") == 0)
        answer_result(send(fd, outgoing, count, flags));
    else if (strcmp(call, "sendto") == 0)
        answer_result(sendto(fd, outgoing, count, flags, NULL, 0));
    else if (strcmp(call, "writev") == 0)
        answer_result(writev(fd, pieces, cut(pieces, outgoing, count)));
    else if (strcmp(call, "sendmsg") == 0) {
        message.msg_iovlen = cut(pieces, outgoing, count);
        answer_result(sendmsg(fd, &message, flags));
    } else if (strcmp(call, "sendmmsg") == 0) {
        halve(messages, pieces, outgoing, count);
        int sent = sendmmsg(fd, messages, 2, flags);
        answer_result(sent);
        for (int i = 0; i < sent; i++)
            answer("+%u", messages[i].msg_len);
    } else if (strcmp(call, "sendfile") == 0)
        answer_result(send_file(fd, count));
    else if (strcmp(call, "syscall") == 0)
        answer_result(syscall(SYS_sendto, fd, outgoing, count, flags, NULL, 0));
    else if (strcmp(call, "in_place") == 0)
        answer_result(send_in_place(fd, outgoing, count, flags));
    else
        answer("!no such call");
}

/* What came, and that nothing beyond it was touched. */
static void show(long got, size_t room) {
    answer_result(got);
    if (got < 0)
        return;
    answer_bytes(incoming, got);
    for (size_t i = got; i < room; i++)
        if (incoming[i] != UNTOUCHED) {
            answer("!touched %zu", i);
            return;
        }
}

static void receive_message(int fd, size_t count, int flags) {
    struct iovec pieces[3];
    struct sockaddr_storage from;
    struct msghdr message = {.msg_iov = pieces, .msg_name = &from, .msg_namelen = sizeof from};
    message.msg_iovlen = cut(pieces, incoming, count);
    show(recvmsg(fd, &message, flags), count);
    answer("flags:%x name:%u", message.msg_flags, message.msg_namelen);
}

/* The second message is asked for only where that cannot sleep. */
static void receive_messages(int fd, size_t count, int flags) {
    struct iovec pieces[2];
    struct mmsghdr messages[2];
    halve(messages, pieces, incoming, count);
    if (!(flags & MSG_DONTWAIT))
        pieces[0].iov_len = count;
    int got = recvmmsg(fd, messages, flags & MSG_DONTWAIT ? 2 : 1, flags, NULL);
    answer_result(got);
    for (int i = 0; i < got; i++) {
        answer("+%u", messages[i].msg_len);
        answer_bytes(pieces[i].iov_base, messages[i].msg_len);
    }
}

/* receive PLACE CALL COUNT FLAGS */
void step_receive(void) {
    int fd = here();
    const char *call = word();
    size_t count = number();
    int flags = message_flags(word());
    struct iovec pieces[3];
    memset(incoming, UNTOUCHED, count);

    if (strcmp(call, "read") == 0)
        show(read(fd, incoming, count), count);
    else if (strcmp(call, "recv") == 0)
        show(recv(fd, incoming, count, flags), count);
    else if (strcmp(call, "recvfrom") == 0) {
        struct sockaddr_storage from;
        socklen_t room = sizeof from;
        show(recvfrom(fd, incoming, count, flags, (struct sockaddr *)&from, &room), count);
    } else if (strcmp(call, "readv") == 0)
        show(readv(fd, pieces, cut(pieces, incoming, count)), count);
    else if (strcmp(call, "recvmsg") == 0)
        receive_message(fd, count, flags);
    else if (strcmp(call, "recvmmsg") == 0)
        receive_messages(fd, count, flags);
    else if (strcmp(call, "syscall") == 0)
        show(syscall(SYS_recvfrom, fd, incoming, count, flags, NULL, NULL), count);
    else if (strcmp(call, "in_place") == 0)
        show(receive_in_place(fd, incoming, count, flags), count);
    else
        answer("!no such call");
}

static bool wait_for(int fd, short events) {
    struct pollfd item = {.fd = fd, .events = events};
    int n;
    do
        n = poll(&item, 1, 5000);
    while (n < 0 && errno == EINTR);
    return n == 1;
}

/* out PLACE COUNT PIECE STAMP: all of it, however many calls that takes */
void step_stream_out(void) {
    int fd = here();
    size_t count = number(), piece = number(), done = 0;
    uint32_t stamp = number();
    while (done < count) {
        size_t want = count - done < piece ? count - done : piece;
        fill(outgoing, want, stamp, done);
        ssize_t n = send(fd, outgoing, want, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN && wait_for(fd, POLLOUT))
            continue;
        if (n < 0) {
            answer_result(n);
            return;
        }
        done += n;
    }
    answer("%zu", done);
}

/* in PLACE COUNT PIECE: exactly that many, however they come */
void step_stream_in(void) {
    int fd = here();
    size_t count = number(), piece = number(), done = 0;
    while (done < count) {
        size_t want = count - done < piece ? count - done : piece;
        ssize_t n = recv(fd, incoming + done, want, 0);
        if (n < 0 && errno == EAGAIN && wait_for(fd, POLLIN))
            continue;
        if (n <= 0) {
            answer_result(n);
            return;
        }
        done += n;
    }
    answer("%zu", done);
    answer_bytes(incoming, done);
}

/* ping PLACE ROUNDS FIRST: small round trips; the other end does the same with the other FIRST */
void step_ping(void) {
    int fd = here();
    long rounds = number(), first = number();
    char byte = 'w';
    for (long i = 0; i < 2 * rounds; i++)
        if ((i % 2 == 0) == (first != 0) ? write(fd, &byte, 1) != 1 : read(fd, &byte, 1) != 1) {
            answer("!warm-up failed");
            return;
        }
    answer("ok");
}
