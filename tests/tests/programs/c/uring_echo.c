/* An echo pair whose server changes, in mid-connection, from read and write to an io_uring of liburing. It knows nothing of VMMC.
 *
 *   uring_echo serve PORT    echoes messages of 64 bytes; after one that begins with 'U', by io_uring alone
 *   uring_echo loop PORT     as serve, but waits for each message by epoll, whose object it changes by a ring of its own making, as libuv does
 *   uring_echo ring PORT     makes an io_uring first, for nothing, then as serve
 *   uring_echo ask PORT      200 messages, some now and then until the end of standard input, 2000 more; prints a digest of all answers but those
 */
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIZE = 64 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int uring_call(struct io_uring *ring, int fd, char *bytes, int count, int sending) {
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    struct io_uring_cqe *answer;
    if (sending)
        io_uring_prep_send(entry, fd, bytes, count, MSG_NOSIGNAL);
    else
        io_uring_prep_recv(entry, fd, bytes, count, MSG_WAITALL);
    if (io_uring_submit(ring) != 1 || io_uring_wait_cqe(ring, &answer) != 0)
        die("io_uring");
    int result = answer->res;
    io_uring_cqe_seen(ring, answer);
    return result;
}

/* A ring that is made and told of by `syscall`. */
struct own_ring {
    int fd;
    struct io_uring_params params;
    char *queues;
    struct io_uring_sqe *entries;
};

static void open_ring(struct own_ring *ring) {
    struct io_uring_params *p = &ring->params;
    memset(ring, 0, sizeof *ring);
    ring->fd = syscall(SYS_io_uring_setup, 8, p);
    ring->queues = mmap(NULL, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe) + 4096, PROT_READ | PROT_WRITE,
        MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, p->sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
        IORING_OFF_SQES);
    if (ring->fd < 0 || ring->queues == MAP_FAILED || ring->entries == MAP_FAILED)
        die("ring");
}

static int change(struct own_ring *ring, int set, int operation, int fd, uint32_t events) {
    struct io_uring_params *p = &ring->params;
    struct epoll_event event = {.events = events, .data.fd = fd};
    unsigned *tail = (unsigned *)(ring->queues + p->sq_off.tail), slot = *tail % p->sq_entries;
    ring->entries[slot] = (struct io_uring_sqe){
        .opcode = IORING_OP_EPOLL_CTL, .fd = set, .len = operation, .off = fd, .addr = (uintptr_t)&event};
    ((unsigned *)(ring->queues + p->sq_off.array))[slot] = slot;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        die("io_uring_enter");
    unsigned *head = (unsigned *)(ring->queues + p->cq_off.head);
    int result = ((struct io_uring_cqe *)(ring->queues + p->cq_off.cqes))[*head % p->cq_entries].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

static int serve_by_loop(int listener) {
    char bytes[SIZE];
    struct own_ring ring;
    struct epoll_event found;
    int set = epoll_create1(EPOLL_CLOEXEC), fd = accept(listener, NULL, NULL), count = 1;
    open_ring(&ring);
    if (change(&ring, set, EPOLL_CTL_ADD, fd, EPOLLIN) != 0 || change(&ring, set, EPOLL_CTL_ADD, fd, EPOLLIN) != -EEXIST)
        die("add");
    for (unsigned turn = 1; count > 0 && epoll_wait(set, &found, 1, -1) == 1; turn++) {
        if (!(found.events & EPOLLIN)) {
            if (change(&ring, set, EPOLL_CTL_MOD, fd, EPOLLIN) != 0)
                die("change");
            continue;
        }
        count = recv(fd, bytes, SIZE, MSG_WAITALL);
        if (count > 0 && write(fd, bytes, count) != count)
            die("send");
        if (turn % 3 == 0 && change(&ring, set, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT) != 0)
            die("change");
    }
    return close(fd);
}

static int serve(int listener) {
    char bytes[SIZE];
    struct io_uring ring;
    int fd = accept(listener, NULL, NULL), by_ring = 0;
    if (fd < 0)
        die("accept");
    for (;;) {
        int count = by_ring ? uring_call(&ring, fd, bytes, SIZE, 0) : recv(fd, bytes, SIZE, MSG_WAITALL);
        if (count == 0)
            break;
        if (count != SIZE)
            die("receive");
        if (bytes[0] == 'U' && !by_ring) {
            if (io_uring_queue_init(8, &ring, 0) != 0)
                die("io_uring_queue_init");
            by_ring = 1;
        }
        if ((by_ring ? uring_call(&ring, fd, bytes, SIZE, 1) : write(fd, bytes, SIZE)) != SIZE)
            die("send");
    }
    return close(fd);
}

static uint64_t ask(int fd, int rounds, char first, uint64_t hash) {
    char bytes[SIZE];
    for (int round = 0; round < rounds; round++) {
        memset(bytes, 'a' + round % 26, SIZE);
        bytes[0] = first;
        if (write(fd, bytes, SIZE) != SIZE || recv(fd, bytes, SIZE, MSG_WAITALL) != SIZE)
            die("round trip");
        for (int i = 0; i < SIZE; i++)
            hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3;
    }
    return hash;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct io_uring unused;
    if (strcmp(argv[1], "ring") == 0 && io_uring_queue_init(8, &unused, 0) != 0)
        die("io_uring_queue_init");
    if (strcmp(argv[1], "ask") != 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
        if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 1) != 0)
            die("listen");
        printf("listening\n");
        fflush(stdout);
        return strcmp(argv[1], "loop") == 0 ? serve_by_loop(fd) : serve(fd);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    uint64_t hash = ask(fd, 200, 'r', 0xcbf29ce484222325);
    printf("half\n");
    fflush(stdout);
    struct pollfd told = {.fd = 0, .events = POLLIN};
    while (poll(&told, 1, 5) == 0)
        ask(fd, 1, 'r', 0);
    printf("digest %016llx\n", (unsigned long long)ask(fd, 2000, 'U', hash));
    return 0;
}
