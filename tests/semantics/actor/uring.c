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

static bool open_ring(struct ring *ring) {
    memset(ring, 0, sizeof *ring);
    ring->fd = syscall(SYS_io_uring_setup, 4, &ring->params);
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
    if (!open_ring(&ring)) {
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
