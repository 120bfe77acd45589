/* A statically linked program: no library can be loaded into it. It gets a connection from somebody else.
 *
 *   bystander digest FD COUNT       reads COUNT bytes from the descriptor, prints their digest
 *   bystander answer FD COUNT TEXT  the same, then writes TEXT to the descriptor
 *   bystander echo                  copies standard input to standard output until the end
 *   bystander wait SET FD COUNT     waits on an inherited epoll set, then reads COUNT bytes, twice
 *   bystander receive UNIX_FD       receives a descriptor over AF_UNIX: reads a line from it, answers it
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static int read_digest(int fd, long count) {
    uint64_t hash = 0xcbf29ce484222325;
    long done = 0;
    unsigned char byte;
    while (done < count && read(fd, &byte, 1) == 1) {
        hash = (hash ^ byte) * 0x100000001b3;
        done++;
    }
    dprintf(1, "bystander: %ld digest %016llx\n", done, (unsigned long long)hash);
    return done == count ? 0 : 1;
}

static int receive_descriptor(int channel) {
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head;
    if (recvmsg(channel, &message, 0) != 1 || (head = CMSG_FIRSTHDR(&message)) == NULL)
        return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

static int answer_line(int fd) {
    char line[128];
    size_t length = 0;
    while (length < sizeof line - 1 && read(fd, line + length, 1) == 1 && line[length] != '\n')
        length++;
    line[length] = 0;
    dprintf(1, "bystander: line \"%s\"\n", line);
    dprintf(fd, "answer to %s\n", line);
    return 0;
}

static int wait_twice(int set, int fd, long count) {
    for (int i = 0; i < 2; i++) {
        struct epoll_event event = {0};
        int n = epoll_wait(set, &event, 1, 5000);
        dprintf(1, "bystander: %d events, bits %#x, data %llu\n", n, event.events,
            (unsigned long long)event.data.u64);
        if (n != 1 || read_digest(fd, count) != 0 || write(fd, "k", 1) != 1)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc >= 4 && strcmp(argv[1], "digest") == 0)
        return read_digest(atoi(argv[2]), atol(argv[3]));
    if (argc == 5 && strcmp(argv[1], "answer") == 0) {
        int status = read_digest(atoi(argv[2]), atol(argv[3]));
        return write(atoi(argv[2]), argv[4], strlen(argv[4])) < 0 ? 1 : status;
    }
    if (argc == 2 && strcmp(argv[1], "echo") == 0) {
        char buffer[4096];
        ssize_t n;
        while ((n = read(0, buffer, sizeof buffer)) > 0)
            if (write(1, buffer, n) != n)
                return 1;
        return n < 0;
    }
    if (argc == 5 && strcmp(argv[1], "wait") == 0)
        return wait_twice(atoi(argv[2]), atoi(argv[3]), atol(argv[4]));
    if (argc == 3 && strcmp(argv[1], "receive") == 0) {
        int fd = receive_descriptor(atoi(argv[2]));
        return fd < 0 ? 1 : answer_line(fd);
    }
    return 2;
}
