/* The read and write families: every call that moves bytes, with ordinary and odd arguments. */
#include "actor.h"

#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

void scenario_echo_sizes(void) {
    static const size_t sizes[] = {1,     2,     3,     7,     64,     100,    1000,   1460,   4096,  8191,
                                   16384, 32768, 65535, 65536, 65537,  100000, 131072, 200000, 262144, 300000};
    static unsigned char bytes[300000];
    int fd = connection();
    for (size_t i = 0; i < COUNT(sizes); i++) {
        if (me.client) {
            fill_pattern(bytes, 0, sizes[i], i);
            put(fd, bytes, sizes[i]);
            memset(bytes, 0, sizes[i]);
        }
        size_t count = get(fd, bytes, sizes[i]);
        say_bytes("echo", bytes, count);
        if (me.server)
            put(fd, bytes, count);
    }
}

void scenario_many_small_round_trips(void) {
    int fd = connection();
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 3000; i++) {
        uint32_t value = i * 2654435761u;
        if (me.client)
            put(fd, &value, 1 + i % 4);
        uint32_t back = 0;
        get(fd, &back, 1 + i % 4);
        sum = sum * 31 + back;
        if (me.server)
            put(fd, &back, 1 + i % 4);
    }
    say("sum %016llx", (unsigned long long)sum);
}

void scenario_read_write(void) {
    char buffer[64];
    int fd = connection();
    if (me.client) {
        T(write(fd, "hello", 5));
        T(write(fd, " and more", 9));
        meet();
        T(read(fd, buffer, sizeof buffer));
        return;
    }
    await_readable(fd, 14);
    say_bytes("read 5", buffer, T(read(fd, buffer, 5)));
    say_bytes("read the rest", buffer, T(read(fd, buffer, sizeof buffer)));
    T(write(fd, "answer", 6));
    meet();
}

void scenario_vectors(void) {
    char a[4] = "", b[16] = "", c[64] = "";
    int fd = connection();
    if (me.client) {
        struct iovec out[] = {{"ab", 2}, {"", 0}, {NULL, 0}, {"cdefgh", 6}, {"ijklmnopqrstuvwxyz", 18}};
        T(writev(fd, out, 5));
        T(writev(fd, out, 0));
        T(writev(fd, out, -1));
        T(writev(fd, out, IOV_MAX + 1));
        meet();
        T(pwrite(fd, "x", 1, 0));
        T(pread(fd, a, 1, 0));
        T(pwritev(fd, out, 1, 0));
        T(pwritev2(fd, out, 1, -1, 0));
        expect_text(fd, "thanks");
        return;
    }
    await_readable(fd, 26);
    struct iovec in[] = {{a, 4}, {c, 0}, {b, 16}, {c, 64}};
    T(readv(fd, in, 0));
    T(readv(fd, in, -1));
    T(readv(fd, in, 4));
    say("%.4s %.16s %.6s", a, b, c);
    meet();
    char extra[8] = "";
    struct iovec last[] = {{extra, 1}, {extra + 1, 1}};
    T(preadv2(fd, last, 2, -1, 0));
    say("%s", extra);
    put_text(fd, "thanks");
}

void scenario_long_vectors(void) {
    enum { PARTS = 1024, PART = 100 };
    static unsigned char bytes[PARTS * PART];
    static struct iovec parts[PARTS];
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){bytes + i * PART, PART};
    int fd = connection();
    if (me.client) {
        fill_pattern(bytes, 0, sizeof bytes, 1);
        ssize_t sent = T_OK(writev(fd, parts, PARTS));
        put(fd, bytes + sent, sizeof bytes - sent);
        meet();
        return;
    }
    await_readable(fd, 50000);
    ssize_t count = T_OK(readv(fd, parts, PARTS));
    count += get(fd, bytes + count, sizeof bytes - count);
    say_bytes("all parts", bytes, count);
    meet();
}

/* `preadv2` and `pwritev2` are `readv` and `writev` where the offset is -1; a connection has no other. */
void scenario_vectors_at_position(void) {
    char a[4] = "", b[32] = "";
    int fd = connection();
    struct iovec in[] = {{a, 2}, {b, 4}}, out[] = {{"fi", 2}, {"rst ", 4}};
    if (me.client) {
        T(pwritev2(fd, out, 2, -1, 0));
        T(pwritev64v2(fd, out, 2, -1, RWF_NOWAIT));
        T(pwritev2(fd, out, 2, 0, 0));
        T(pwritev(fd, out, 2, 0));
        T(pwrite(fd, "no", 2, 0));
        meet();
        meet();
        put_text(fd, "first first first ");
        meet();
        meet();
        T(syscall(SYS_pwritev2, fd, out, 2, -1L, 0, 0));
        T(pwritev2(fd, out, 2, -1, RWF_DSYNC));
        meet();
        return;
    }
    meet();
    expect_text(fd, "first first ");
    meet();
    meet();
    await_readable(fd, 18);
    T(preadv2(fd, in, 2, -1, 0));
    say("%.2s|%.4s", a, b);
    T(preadv2(fd, in, 2, 0, 0));
    T(preadv(fd, in, 2, 0));
    T(pread(fd, b, 1, 0));
    T(preadv64v2(fd, in, 2, -1, RWF_NOWAIT));
    T(syscall(SYS_preadv2, fd, in, 2, -1L, 0, 0));
    T(preadv2(fd, in, 2, -1, RWF_NOWAIT));
    T(preadv2(fd, in, IOV_MAX + 1, -1, RWF_NOWAIT));
    T(preadv2(fd, in, 0, -1, 0));
    meet();
    expect_text(fd, "first first ");
    meet();
}

void scenario_send_recv(void) {
    char buffer[64];
    int fd = connection();
    if (me.client) {
        T(send(fd, "0123456789", 10, 0));
        T(send(fd, "", 0, 0));
        meet();
        return;
    }
    await_readable(fd, 10);
    T(recv(fd, buffer, 0, 0));
    say_bytes("recv", buffer, T(recv(fd, buffer, 4, 0)));
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, 0, MSG_DONTWAIT));
    T(recv(fd, buffer, 1, MSG_DONTWAIT));
    meet();
}

/* sockperf hands sendto() on a connected socket an address that is not one; recvfrom() reports none. */
void scenario_sendto_recvfrom(void) {
    char buffer[64];
    struct sockaddr_in garbage;
    memset(&garbage, 0xa5, sizeof garbage);
    int fd = connection();
    if (me.client) {
        T(sendto(fd, "to nobody", 9, 0, NULL, 0));
        T(sendto(fd, "to garbage", 10, 0, (struct sockaddr *)&garbage, sizeof garbage));
        T(sendto(fd, "!", 1, 0, (struct sockaddr *)&garbage, 1000));
        T(sendto(fd, "!", 1, 0, (struct sockaddr *)&garbage, 3));
        meet();
        return;
    }
    await_readable(fd, 20);
    struct sockaddr_storage from;
    memset(&from, 0x77, sizeof from);
    socklen_t length = sizeof from;
    say_bytes("recvfrom", buffer, T(recvfrom(fd, buffer, 9, 0, (struct sockaddr *)&from, &length)));
    say("address length %u, family %#x", length, from.ss_family);
    length = 5;
    say_bytes("recvfrom", buffer, T(recvfrom(fd, buffer, sizeof buffer, 0, NULL, &length)));
    say("address length %u", length);
    T(recvfrom(fd, buffer, 1, MSG_DONTWAIT, (struct sockaddr *)&from, &length));
    meet();
}

void scenario_sendmsg_recvmsg(void) {
    char a[8] = "", b[32] = "", control[128];
    int fd = connection();
    if (me.client) {
        struct iovec out[] = {{"first ", 6}, {"second ", 7}, {"third", 5}};
        struct msghdr message = {.msg_iov = out, .msg_iovlen = 3};
        T(sendmsg(fd, &message, 0));
        message.msg_iovlen = 0;
        T(sendmsg(fd, &message, 0));
        message.msg_iovlen = IOV_MAX + 1;
        T(sendmsg(fd, &message, 0));
        meet();
        return;
    }
    await_readable(fd, 18);
    struct sockaddr_storage name;
    struct iovec in[] = {{a, 8}, {b, 32}};
    struct msghdr message = {.msg_name = &name,
                             .msg_namelen = sizeof name,
                             .msg_iov = in,
                             .msg_iovlen = 2,
                             .msg_control = control,
                             .msg_controllen = sizeof control,
                             .msg_flags = -1};
    T(recvmsg(fd, &message, 0));
    say("%.8s|%.10s namelen %u controllen %zu flags %#x", a, b, message.msg_namelen,
        message.msg_controllen, message.msg_flags);
    T(recvmsg(fd, &message, MSG_DONTWAIT));
    T(recvmsg(fd, &message, MSG_ERRQUEUE));
    meet();
}

/* Control data with bytes on a stream: what TCP makes of it. */
void scenario_control_data(void) {
    char buffer[16];
    int fd = connection();
    if (me.server) {
        await_readable(fd, 6);
        union {
            struct cmsghdr header;
            char room[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec part = {buffer, sizeof buffer};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        say_bytes("received", buffer, recvmsg(fd, &message, 0));
        say("control %zu flags %#x", message.msg_controllen, message.msg_flags);
        meet();
        return;
    }
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec part = {"rights", 6};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    T(sendmsg(fd, &message, 0));
    control.header.cmsg_type = 4711;
    T(sendmsg(fd, &message, 0));
    meet();
}

#ifndef TCP_INQ
#define TCP_INQ 36
#endif

/* One message of up to `len` bytes with so much room for control data: what is told of the bytes that are left. */
static void receive_and_say_left(int fd, size_t len, size_t room, int flags) {
    char buffer[64];
    union {
        struct cmsghdr header;
        char room[64];
    } control = {0};
    struct iovec part = {buffer, len};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = room ? &control : NULL, .msg_controllen = room};
    say_bytes("received", buffer, recvmsg(fd, &message, flags));
    say("control %zu flags %#x", message.msg_controllen, message.msg_flags);
    if (message.msg_controllen >= CMSG_LEN(0)) {
        int left = -1;
        memcpy(&left, CMSG_DATA(&control.header), sizeof left);
        say("length %zu level %d type %d: %d", control.header.cmsg_len, control.header.cmsg_level,
            control.header.cmsg_type, left);
    }
}

void scenario_bytes_left(void) {
    int fd = connection(), on = 1, wrong = 7;
    if (me.client) {
        put_text(fd, "twelve bytes");
        meet();
        put_text(fd, "end");
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    await_readable(fd, 12);
    receive_and_say_left(fd, 1, 64, 0);
    T(setsockopt(fd, IPPROTO_TCP, TCP_INQ, &wrong, sizeof wrong));
    receive_and_say_left(fd, 1, 64, 0);
    T(setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on));
    receive_and_say_left(fd, 1, 64, 0);
    receive_and_say_left(fd, 1, 64, MSG_PEEK);
    receive_and_say_left(fd, 1, CMSG_SPACE(sizeof(int)), 0);
    receive_and_say_left(fd, 1, CMSG_LEN(sizeof(int)), 0);
    receive_and_say_left(fd, 1, CMSG_LEN(sizeof(int)) - 1, 0);
    receive_and_say_left(fd, 1, sizeof(struct cmsghdr), 0);
    receive_and_say_left(fd, 1, 3, 0);
    receive_and_say_left(fd, 1, 0, 0);
    receive_and_say_left(fd, 64, 64, 0);
    meet();
    await_readable(fd, 3);
    await_bits(fd, POLLRDHUP);
    receive_and_say_left(fd, 2, 64, 0);
    receive_and_say_left(fd, 2, 64, 0);
    receive_and_say_left(fd, 2, 64, 0);
    on = 0;
    T(setsockopt(fd, IPPROTO_TCP, TCP_INQ, &on, sizeof on));
    receive_and_say_left(fd, 2, 64, 0);
    meet();
}

/* The time limit of recvmmsg: it is looked at between messages, and says what is left. */
void scenario_recvmmsg_time(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "12345678");
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 8);
    char bytes[4][2];
    struct iovec parts[4];
    struct mmsghdr messages[4] = {0};
    for (int i = 0; i < 4; i++) {
        parts[i] = (struct iovec){bytes[i], 2};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    struct timespec negative = {-1, 0}, wrong = {0, 2000000000}, none = {0, 0}, long_time = {50, 0};
    T(recvmmsg(fd, messages, 2, 0, &negative));
    T(recvmmsg(fd, messages, 2, 0, &wrong));
    T(recvmmsg(fd, messages, 2, 0, &none));
    T(recvmmsg(fd, messages, 2, 0, &long_time));
    say("less is left: %d", long_time.tv_sec < 50 && long_time.tv_sec >= 40);
    expect_text(fd, "78");
    meet();
}

void scenario_sendmmsg_recvmmsg(void) {
    int fd = connection();
    if (me.client) {
        struct iovec parts[] = {{"one", 3}, {"three", 5}, {"five5", 5}};
        struct mmsghdr messages[3] = {0};
        for (int i = 0; i < 3; i++)
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
        T(sendmmsg(fd, messages, 3, 0));
        say("lengths %u %u %u", messages[0].msg_len, messages[1].msg_len, messages[2].msg_len);
        T(sendmmsg(fd, messages, 0, 0));
        meet();
        return;
    }
    await_readable(fd, 13);
    char buffers[4][4];
    struct iovec parts[4];
    struct mmsghdr messages[4] = {0};
    for (int i = 0; i < 4; i++) {
        parts[i] = (struct iovec){buffers[i], 4};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    T(recvmmsg(fd, messages, 2, 0, NULL));
    say("%.4s %.4s", buffers[0], buffers[1]);
    T(recvmmsg(fd, messages, 4, MSG_WAITFORONE, NULL));
    say("%.4s %u %.1s %u", buffers[0], messages[0].msg_len, buffers[1], messages[1].msg_len);
    T(recvmmsg(fd, messages, 4, MSG_DONTWAIT, NULL));
    meet();
}

/* More messages than go at once; and one that is cut short, after which the next would leave a hole. */
void scenario_sendmmsg_in_parts(void) {
    enum { MANY = 1500, LONG = 16 << 20 };
    static struct mmsghdr messages[MANY];
    static struct iovec parts[MANY];
    static char bytes[LONG];
    int fd = connection();
    if (me.client) {
        get_pattern(fd, 0, 0, 0);
        say("got %zu", get(fd, bytes, told()));
        meet();
        size_t total = told();
        say("all of the first came %d", get(fd, bytes, total) == total && memchr(bytes, 'B', total) == NULL);
        expect_end(fd);
        meet();
        return;
    }
    for (int i = 0; i < MANY; i++) {
        parts[i] = (struct iovec){"q", 1};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    tell(T(sendmmsg(fd, messages, MANY, 0)));
    meet();
    struct timeval limit = {.tv_usec = 200000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    memset(bytes, 'A', LONG);
    parts[0] = (struct iovec){bytes, LONG};
    parts[1] = (struct iovec){"B", 1};
    messages[1].msg_len = 0;
    T(sendmmsg(fd, messages, 2, 0));
    say("the second %u", messages[1].msg_len);
    shutdown(fd, SHUT_WR);
    tell(messages[0].msg_len);
    meet();
}

/* A length that stands where no name is asked for stays as it is. */
void scenario_message_without_name(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        put_text(fd, "bytes");
        meet();
        return;
    }
    await_readable(fd, 5);
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_namelen = 16, .msg_iov = &part, .msg_iovlen = 1, .msg_flags = -1};
    T(recvmsg(fd, &message, MSG_PEEK));
    say("length %u flags %x", message.msg_namelen, message.msg_flags);
    struct sockaddr_storage name;
    message.msg_name = &name;
    T(recvmsg(fd, &message, 0));
    say("length %u flags %x", message.msg_namelen, message.msg_flags);
    meet();
}

/* What is wrong with calls on sockets that are no connections the kernel says, which looks at nothing that is not there. */
void scenario_bad_arguments_elsewhere(void) {
    void *nowhere[] = {NULL, (void *)16, (void *)-1};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), set = epoll_create1(0);
    for (int i = 0; i < 3; i++) {
        T(sendmsg(fd, nowhere[i], 0));
        T(sendmsg(-1, nowhere[i], 0));
        T(sendmmsg(fd, nowhere[i], 1, 0));
        T(recvmsg(fd, nowhere[i], MSG_DONTWAIT));
        T(recvmmsg(fd, nowhere[i], 1, MSG_DONTWAIT, NULL));
        T(connect(fd, nowhere[i], 16));
        T(poll(nowhere[i], 1, 0));
        T(epoll_ctl(set, EPOLL_CTL_ADD, fd, nowhere[i]));
        T(epoll_wait(set, nowhere[i], 1, 0));
    }
    T(select(1, nowhere[1], NULL, NULL, NULL));
    close(set);
    close(fd);
    meet();
}

void scenario_bad_arguments(void) {
    char buffer[64];
    void *nowhere = (void *)16;
    int fd = connection();
    if (me.client) {
        T(write(fd, nowhere, 10));
        T(send(fd, nowhere, 10, 0));
        struct iovec bad = {nowhere, 10};
        T(writev(fd, &bad, 1));
        T(writev(fd, nowhere, 1));
        T(sendmsg(fd, nowhere, 0));
        T(write(fd, nowhere, 0));
        put_text(fd, "good bytes");
        meet();
        return;
    }
    await_readable(fd, 10);
    T(read(fd, nowhere, 10));
    T(recv(fd, nowhere, 10, MSG_PEEK));
    struct iovec bad = {nowhere, 10};
    T(readv(fd, &bad, 1));
    T(recvmsg(fd, nowhere, 0));
    T(ioctl(fd, FIONREAD, nowhere));
    say_bytes("still there", buffer, T(read(fd, buffer, sizeof buffer)));
    close(fd);
    T(read(fd, buffer, 1));
    T(send(fd, buffer, 1, 0));
    meet();
}

/* Calls that make no sense on a socket, or little. */
void scenario_calls_for_other_files(void) {
    int fd = connection();
    struct stat status;
    T(fstat(fd, &status));
    say("socket %d size %ld", S_ISSOCK(status.st_mode), (long)status.st_size);
    T(lseek(fd, 0, SEEK_CUR));
    T(ftruncate(fd, 10));
    T(fsync(fd));
    T(isatty(fd));
    T_OK((long)mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0));
    T(posix_fallocate(fd, 0, 10));
    T(fcntl(fd, F_GETPIPE_SZ));
    T(fchmod(fd, 0600));
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    T(open(path, O_RDWR));
    meet();
    warm(fd);
    meet();
}

/* 2 MB each way at once, by poll, with pieces of changing size. */
void scenario_both_ways_at_once(void) {
    enum { TOTAL = 2000000 };
    static unsigned char out[TOTAL], in[TOTAL];
    int fd = connection();
    fill_pattern(out, 0, TOTAL, me.server);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    size_t sent = 0, received = 0;
    while (sent < TOTAL || received < TOTAL) {
        struct pollfd item = {.fd = fd, .events = POLLIN | (sent < TOTAL ? POLLOUT : 0)};
        if (poll(&item, 1, 5000) != 1) {
            say("! stuck after %zu sent and %zu received", sent, received);
            return;
        }
        size_t piece = 1 + (sent * 7 + received) % 30000;
        if (item.revents & POLLOUT) {
            ssize_t n = send(fd, out + sent, piece < TOTAL - sent ? piece : TOTAL - sent, 0);
            sent += n > 0 ? n : 0;
        }
        if (item.revents & POLLIN) {
            ssize_t n = recv(fd, in + received, piece < TOTAL - received ? piece : TOTAL - received, 0);
            received += n > 0 ? n : 0;
        }
    }
    say_bytes("received", in, TOTAL);
}

/* No warm-up: one direction streams from the first byte on, so the switch comes in mid-stream. */
void scenario_one_way_from_the_start(void) {
    int fd = cold_connection();
    if (me.client) {
        put_pattern(fd, 0, 20000000, 3);
        shutdown(fd, SHUT_WR);
        expect_end(fd);
        return;
    }
    get_pattern(fd, 0, 20000000, 3);
    expect_end(fd);
    close(fd);
}
