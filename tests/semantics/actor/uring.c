/* io_uring: the kernel itself reads and writes the connection, without any call for it. */
#include "actor.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct ring {
    int fd;
    struct io_uring_params params;
    char *submissions, *completions;
    struct io_uring_sqe *entries;
};

static bool open_ring(struct ring *ring, unsigned entries, unsigned flags) {
    memset(ring, 0, sizeof *ring);
    ring->params.flags = flags;
    ring->fd = syscall(SYS_io_uring_setup, entries, &ring->params);
    if (ring->fd < 0) {
        say("io_uring_setup: %s", strerrorname_np(errno));
        return false;
    }
    struct io_uring_params *p = &ring->params;
    int protection = PROT_READ | PROT_WRITE;
    ring->submissions = mmap(NULL, p->sq_off.array + p->sq_entries * sizeof(unsigned), protection,
        MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
    ring->completions = mmap(NULL, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe), protection,
        MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_CQ_RING);
    ring->entries = mmap(NULL, p->sq_entries * sizeof(struct io_uring_sqe), protection,
        MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
    return ring->submissions != MAP_FAILED && ring->completions != MAP_FAILED && ring->entries != MAP_FAILED;
}

static void close_ring(struct ring *ring) {
    struct io_uring_params *p = &ring->params;
    munmap(ring->submissions, p->sq_off.array + p->sq_entries * sizeof(unsigned));
    munmap(ring->completions, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe));
    munmap(ring->entries, p->sq_entries * sizeof(struct io_uring_sqe));
    close(ring->fd);
}

static void submit(struct ring *ring, int operation, int fd, void *bytes, unsigned count) {
    struct io_uring_params *p = &ring->params;
    unsigned *tail = (unsigned *)(ring->submissions + p->sq_off.tail);
    unsigned mask = *(unsigned *)(ring->submissions + p->sq_off.ring_mask), slot = *tail & mask;
    memset(&ring->entries[slot], 0, sizeof *ring->entries);
    ring->entries[slot].opcode = operation;
    ring->entries[slot].fd = fd;
    ring->entries[slot].addr = (uintptr_t)bytes;
    ring->entries[slot].len = count;
    ((unsigned *)(ring->submissions + p->sq_off.array))[slot] = slot;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    T(syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0));
}

static int complete(struct ring *ring) {
    struct io_uring_params *p = &ring->params;
    unsigned *head = (unsigned *)(ring->completions + p->cq_off.head);
    unsigned *tail = (unsigned *)(ring->completions + p->cq_off.tail);
    unsigned mask = *(unsigned *)(ring->completions + p->cq_off.ring_mask);
    while (__atomic_load_n(tail, __ATOMIC_ACQUIRE) == *head)
        syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    int result = ((struct io_uring_cqe *)(ring->completions + p->cq_off.cqes))[*head & mask].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

void scenario_uring_send_and_receive(void) {
    struct ring ring;
    char buffer[32];
    int fd = connection();
    if (!open_ring(&ring, 4, 0)) {
        meet();
        return;
    }
    if (me.client) {
        put_text(fd, "waiting");
        meet();
        meet();
        put_text(fd, "later");
        submit(&ring, IORING_OP_RECV, fd, buffer, sizeof buffer);
        say_bytes("receive", buffer, complete(&ring));
        meet();
        expect_text(fd, "and by write");
        warm(fd);
        meet();
        return;
    }
    meet();
    await_readable(fd, 7);
    submit(&ring, IORING_OP_RECV, fd, buffer, sizeof buffer);
    say_bytes("receive", buffer, complete(&ring));
    submit(&ring, IORING_OP_RECV, fd, buffer, sizeof buffer);
    meet();
    say_bytes("receive", buffer, complete(&ring));
    submit(&ring, IORING_OP_SEND, fd, "sent", 4);
    say("send %d", complete(&ring));
    meet();
    put_text(fd, "and by write");
    warm(fd);
    meet();
}

/* Puts one change of an epoll object into the ring, and leaves it there. */
static void prepare(struct ring *ring, int set, int operation, int fd, struct epoll_event *event) {
    struct io_uring_params *p = &ring->params;
    unsigned *tail = (unsigned *)(ring->submissions + p->sq_off.tail);
    unsigned mask = *(unsigned *)(ring->submissions + p->sq_off.ring_mask), slot = *tail & mask;
    ring->entries[slot] = (struct io_uring_sqe){.opcode = IORING_OP_EPOLL_CTL, .fd = set, .len = operation, .off = fd,
        .addr = (uintptr_t)event, .user_data = 1000 + *tail};
    ((unsigned *)(ring->submissions + p->sq_off.array))[slot] = slot;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

static void change(struct ring *ring, const char *what, int count) {
    /* Some wrong entries end a submission. */
    for (int left = count, done; left > 0; left -= done) {
        done = syscall(SYS_io_uring_enter, ring->fd, left, 0, 0, NULL, 0);
        say("%s: submitted %d", what, done);
        if (done <= 0)
            return;
    }
    struct io_uring_params *p = &ring->params;
    while (count-- > 0) {
        unsigned *head = (unsigned *)(ring->completions + p->cq_off.head);
        unsigned mask = *(unsigned *)(ring->completions + p->cq_off.ring_mask);
        unsigned long long name = ((struct io_uring_cqe *)(ring->completions + p->cq_off.cqes))[*head & mask].user_data;
        int result = complete(ring);
        say("%s %llu: %s", what, name, result < 0 ? strerrorname_np(-result) : "0");
    }
}

static void say_events(const char *what, int set, int time) {
    struct epoll_event found[8];
    int count = epoll_wait(set, found, 8, time);
    say("%s: %d", what, count);
    for (int i = 0; i < count; i++)
        say_epoll(found[i].data.u32 == 7 ? "connection" : "other", found[i].events);
}

/* As libuv does. The ring is there before the connection, which must be lifted all the same. */
static void change_by_ring(int flags) {
    struct ring ring;
    if (!open_ring(&ring, 4, flags)) {
        connection();
        return;
    }
    int fd = connection(), set = epoll_create1(EPOLL_CLOEXEC), pair[2], other = dup(fd);
    T(pipe(pair));
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = 7}, out = {.events = EPOLLOUT, .data.u32 = 7};
    struct epoll_event edge = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = 7}, pipes = {.events = EPOLLIN, .data.u32 = 8};
    if (me.client) {
        put_text(fd, "one");
        meet();
        put_text(fd, "two");
        meet();
        meet();
        warm(fd);
        return;
    }
    prepare(&ring, set, EPOLL_CTL_ADD, pair[0], &pipes);
    prepare(&ring, set, EPOLL_CTL_ADD, fd, &in);
    prepare(&ring, set, EPOLL_CTL_ADD, fd, &in);
    change(&ring, "added", 3);
    say_events("waited", set, -1);
    expect_text(fd, "one");
    say_events("empty", set, 0);
    prepare(&ring, set, EPOLL_CTL_MOD, fd, &out);
    change(&ring, "changed", 1);
    say_events("room", set, -1);
    prepare(&ring, set, EPOLL_CTL_MOD, fd, &in);
    prepare(&ring, set, EPOLL_CTL_DEL, fd, NULL);
    prepare(&ring, set, EPOLL_CTL_DEL, fd, NULL);
    prepare(&ring, set, EPOLL_CTL_MOD, fd, &in);
    change(&ring, "deleted", 4);
    meet();
    await_readable(fd, 3);
    T(write(pair[1], "x", 1));
    say_events("not told", set, 0);
    prepare(&ring, set, EPOLL_CTL_ADD, fd, &edge);
    prepare(&ring, set, EPOLL_CTL_DEL, pair[0], NULL);
    prepare(&ring, 9999, EPOLL_CTL_ADD, fd, &in);
    prepare(&ring, set, EPOLL_CTL_ADD, 9999, &in);
    change(&ring, "again", 4);
    say_events("edge", set, -1);
    say_events("no edge", set, 0);
    prepare(&ring, set, 77, fd, &in);
    prepare(&ring, set, EPOLL_CTL_MOD, fd, NULL);
    prepare(&ring, set, EPOLL_CTL_ADD, set, &in);
    change(&ring, "wrong", 3);
    meet();
    close(other);
    expect_text(fd, "two");
    meet();
    warm(fd);
}

void scenario_uring_epoll_ctl(void) { change_by_ring(0); }
void scenario_uring_epoll_ctl_clamped(void) { change_by_ring(IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL); }

/* Whoever closes the ring that has changed registrations, and makes others, changes nothing. */
void scenario_uring_closed(void) {
    int fd = connection(), set = epoll_create1(0);
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = 7};
    for (int i = 0; i < 300; i++) {
        struct ring ring;
        if (!open_ring(&ring, 4, 0))
            break;
        prepare(&ring, set, i % 2 ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, fd, &in);
        T(syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
        if (complete(&ring) != 0)
            say("! change %d", i);
        close_ring(&ring);
    }
    warm(fd);
    put_text(fd, "bytes");
    say_events("deleted", set, 0);
    expect_text(fd, "bytes");
    meet();
}

/* The ring is used for epoll alone at first, then for bytes. */
void scenario_uring_epoll_ctl_then_bytes(void) {
    struct ring ring;
    char buffer[32];
    if (!open_ring(&ring, 4, 0)) {
        connection();
        return;
    }
    int fd = connection(), set = epoll_create1(0);
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = 7};
    prepare(&ring, set, EPOLL_CTL_ADD, fd, &in);
    change(&ring, "added", 1);
    put_text(fd, "bytes");
    say_events("waited", set, -1);
    meet();
    submit(&ring, IORING_OP_RECV, fd, buffer, 2);
    say_bytes("receive", buffer, complete(&ring));
    expect_text(fd, "tes");
    meet();
    prepare(&ring, set, EPOLL_CTL_MOD, fd, &in);
    change(&ring, "changed", 1);
    say_events("empty", set, 0);
    meet();
    submit(&ring, IORING_OP_SEND, fd, "sent", 4);
    say("send %d", complete(&ring));
    say_events("waited", set, -1);
    expect_text(fd, "sent");
    warm(fd);
}
