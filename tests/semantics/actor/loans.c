/* Loans of ring memory (vmmc/loan.h). Over the kernel the calls answer ENOTTY and the functions move the same bytes through a
 * buffer, so what is printed is what a lifted connection answers. */
#include "actor.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <vmmc/loan.h>

/* Whether this end's connection lends. With both ends lifted it must. */
static bool lent;

static struct vmmc_loan question(size_t least, size_t most, int flags) {
    return (struct vmmc_loan){.least = least, .most = most, .flags = flags};
}

static bool lends(int fd) {
    struct vmmc_loan loan = question(1, 1, VMMC_DONTWAIT);
    if (ioctl(fd, VMMC_BORROW, &loan) == 0)
        ioctl(fd, VMMC_RELEASE, 0);
    else if (errno == ENOTTY)
        return false;
    loan = question(1, 1, VMMC_DONTWAIT);
    if (ioctl(fd, VMMC_RESERVE, &loan) == 0)
        ioctl(fd, VMMC_COMMIT, 0);
    return true;
}

static int lending_connection(void) {
    int fd = connection();
    meet();
    lent = lends(fd);
    if (!lent && getenv("ACTOR_WARM_GATE"))
        say("! a lifted connection lends nothing");
    meet();
    return fd;
}

/* Writes down what a lifted connection answers, whoever answers. */
static void judged(const char *call, long value, long wanted, int error) {
    bool right = lent ? value == wanted && (wanted != -1 || errno == error)
                      : value == -1 && errno == ENOTTY;
    if (!right)
        say("! %s = %ld %s", call, value, value == -1 ? strerrorname_np(errno) : "");
    say("%s: %ld %s", call, wanted, wanted == -1 ? strerrorname_np(error) : "");
}
#define J(call, wanted, error) judged(#call, (long)(call), wanted, error)

/* Sends a pattern in place, in messages of `size`. */
static void lend_pattern(struct vmmc_outgoing *out, uint64_t offset, size_t count, size_t size,
                         unsigned seed) {
    unsigned char *bytes = malloc(size);
    while (count > 0) {
        struct vmmc_loan loan;
        size_t part = size < count ? size : count;
        if (vmmc_reserve(out, part, part, 0, &loan) != 0 || loan.length != part) {
            say("! reserve %zu: %s", part, strerror(errno));
            break;
        }
        fill_pattern(bytes, offset, part, seed);
        if (vmmc_copy_in(&loan, 0, bytes, part) != part)
            say("! copied less than was reserved");
        ssize_t done = vmmc_commit(out, part);
        if (done != (ssize_t)part) {
            say("! commit %zu = %zd: %s", part, done, strerror(errno));
            break;
        }
        offset += part;
        count -= part;
    }
    free(bytes);
}

/* Receives it in place, in messages of `size`. */
static void borrow_pattern(struct vmmc_incoming *in, uint64_t offset, size_t count, size_t size,
                           unsigned seed) {
    unsigned char *bytes = malloc(size), *wanted = malloc(size);
    while (count > 0) {
        struct vmmc_loan loan;
        size_t part = size < count ? size : count;
        if (vmmc_borrow(in, part, part, 0, &loan) != 0 || loan.length != part) {
            say("! borrow %zu = %zu: %s", part, (size_t)loan.length, strerror(errno));
            break;
        }
        fill_pattern(wanted, offset, part, seed);
        vmmc_copy_out(&loan, 0, bytes, part);
        if (memcmp(bytes, wanted, part) != 0)
            say("! a wrong byte behind %zu", (size_t)offset);
        if (vmmc_release(in, part) != 0) {
            say("! release: %s", strerror(errno));
            break;
        }
        offset += part;
        count -= part;
    }
    free(bytes);
    free(wanted);
}

/* Messages of every size, back and forth, over every seam of the small rings. */
void scenario_loan_round_trips(void) {
    int fd = lending_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    uint64_t offset = 0;
    for (size_t size = 1; size < 9000; size += 1 + size / 7) {
        if (me.client)
            lend_pattern(&out, offset, size, size, 1);
        borrow_pattern(&in, offset, size, size, 1);
        if (me.server)
            lend_pattern(&out, offset, size, size, 1);
        offset += size;
    }
    say("%zu bytes", (size_t)offset);
    meet();
    vmmc_outgoing_free(&out);
    vmmc_incoming_free(&in);
}

/* Megabytes one way, in place at both ends or at one. */
void scenario_loan_bulk(void) {
    enum { TOTAL = 12000000, MESSAGE = 1 << 20 };
    int fd = lending_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    for (unsigned kind = 0; kind < 3; kind++) {
        if (me.client && kind == 1)
            put_pattern(fd, 0, TOTAL, kind);
        else if (me.client)
            lend_pattern(&out, 0, TOTAL, MESSAGE, kind);
        else if (kind == 2)
            get_pattern(fd, 0, TOTAL, kind);
        else
            borrow_pattern(&in, 0, TOTAL, MESSAGE, kind);
        meet();
    }
    vmmc_outgoing_free(&out);
    vmmc_incoming_free(&in);
}

/* Whatever lies in rings of three sizes is lent at once. */
void scenario_loan_of_grown_rings(void) {
    int fd = lending_connection();
    if (me.client) {
        put_pattern(fd, 0, 3000, 1);
        put_pattern(fd, 3000, 50000, 1);
        put_pattern(fd, 53000, 400000, 1);
        meet();
        meet();
        return;
    }
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    meet();
    borrow_pattern(&in, 0, 453000, 453000, 1);
    vmmc_incoming_free(&in);
    meet();
}

/* One loan a direction, and what others' calls see of it. */
void scenario_loan_rules(void) {
    char buffer[64];
    int fd = lending_connection();
    struct vmmc_loan loan = question(10, 10, 0), second = question(1, 1, 0);
    struct iovec part = {"x", 1};
    J(ioctl(fd, VMMC_COMMIT, 0), -1, EINVAL);
    J(ioctl(fd, VMMC_RELEASE, 0), -1, EINVAL);
    struct vmmc_loan any = question(1, SIZE_MAX, 0);
    J(syscall(SYS_ioctl, fd, VMMC_RESERVE, &any), 0, 0);
    if (lent && (any.length < VMMC_LARGEST || any.segments != 1))
        say("! %zu bytes in %u segments", (size_t)any.length, any.segments);
    J(syscall(SYS_ioctl, fd, VMMC_COMMIT, 0), 0, 0);
    meet();
    if (me.client) {
        J(ioctl(fd, VMMC_RESERVE, &loan), 0, 0);
        if (lent) {
            say("length %d", (int)loan.length);
            vmmc_copy_in(&loan, 0, "in place..", 10);
            judged("write", write(fd, "x", 1), -1, EBUSY);
            judged("writev", writev(fd, &part, 1), -1, EBUSY);
            judged("send", send(fd, "x", 1, MSG_DONTWAIT), -1, EBUSY);
        } else {
            say("length 10");
            say("write: -1 EBUSY");
            say("writev: -1 EBUSY");
            say("send: -1 EBUSY");
        }
        J(ioctl(fd, VMMC_RESERVE, &second), -1, EBUSY);
        J(ioctl(fd, VMMC_COMMIT, 11), -1, EINVAL);
        J(ioctl(fd, VMMC_COMMIT, -1), -1, EINVAL);
        J(ioctl(fd, VMMC_COMMIT, 8), 8, 0);
        J(ioctl(fd, VMMC_COMMIT, 2), -1, EINVAL);
        second = question(1, 1, 0);
        J(ioctl(fd, VMMC_RESERVE, &second), 0, 0);
        J(ioctl(fd, VMMC_COMMIT, 0), 0, 0);
        if (!lent)
            put_text(fd, "in place");
        put_text(fd, ", copied");
        meet();
        meet();
        return;
    }
    await_readable(fd, 16);
    meet();
    loan = question(1, 100, 0);
    J(ioctl(fd, VMMC_BORROW, &loan), 0, 0);
    if (lent) {
        memset(buffer, 0, sizeof buffer);
        say_bytes("borrowed", buffer, vmmc_copy_out(&loan, 0, buffer, sizeof buffer));
        judged("read", read(fd, buffer, 1), -1, EBUSY);
        judged("recv", recv(fd, buffer, 1, MSG_DONTWAIT), -1, EBUSY);
    } else {
        say("borrowed: 16 \"in place, copied\"");
        say("read: -1 EBUSY");
        say("recv: -1 EBUSY");
    }
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT};
    int unread = 0;
    T(poll(&item, 1, 0));
    say_poll("while borrowed", item.revents);
    ioctl(fd, FIONREAD, &unread);
    say("FIONREAD %d", unread);
    say_bytes("peeked", buffer, recv(fd, buffer, sizeof buffer, MSG_PEEK));
    J(ioctl(fd, VMMC_BORROW, &second), -1, EBUSY);
    J(ioctl(fd, VMMC_RELEASE, 17), -1, EINVAL);
    J(ioctl(fd, VMMC_RELEASE, 3), 3, 0);
    J(ioctl(fd, VMMC_RELEASE, 1), -1, EINVAL);
    if (!lent)
        get(fd, buffer, 3);
    say_bytes("the rest", buffer, read(fd, buffer, sizeof buffer));
    meet();
}

/* Arguments that no call can take: an error each, never a crash. */
void scenario_loan_arguments(void) {
    int fd = lending_connection();
    size_t page = sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + page, page);
    char *constant = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct vmmc_loan loan;
    J(ioctl(fd, VMMC_RESERVE, NULL), -1, EFAULT);
    J(ioctl(fd, VMMC_BORROW, NULL), -1, EFAULT);
    J(ioctl(fd, VMMC_RESERVE, pages + page), -1, EFAULT);
    J(ioctl(fd, VMMC_RESERVE, pages + page - 8), -1, EFAULT);
    J(ioctl(fd, VMMC_BORROW, pages + page - 88), -1, EFAULT);
    J(ioctl(fd, VMMC_BORROW, constant), -1, EFAULT);
    J(ioctl(fd, VMMC_BORROW, (void *)-8L), -1, EFAULT);
    J(ioctl(fd, VMMC_BORROW, (void *)0xdeadbeefdead0000), -1, EFAULT);
    loan = question(0, 10, VMMC_DONTWAIT);
    J(ioctl(fd, VMMC_BORROW, &loan), -1, EINVAL);
    loan = question(10, 9, VMMC_DONTWAIT);
    J(ioctl(fd, VMMC_RESERVE, &loan), -1, EINVAL);
    loan = question(VMMC_LARGEST + 1, SIZE_MAX, VMMC_DONTWAIT);
    J(ioctl(fd, VMMC_RESERVE, &loan), -1, EMSGSIZE);
    loan = question(1, 1, 0x40);
    J(ioctl(fd, VMMC_RESERVE, &loan), -1, EINVAL);
    loan = question(1, 1, VMMC_DONTWAIT);
    J(ioctl(fd, VMMC_BORROW, &loan), -1, EAGAIN);
    int pipes[2], pair[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    pipe(pipes);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    listen(listener, 1);
    T(ioctl(pipes[0], VMMC_BORROW, &loan));
    T(ioctl(pair[0], VMMC_RESERVE, &loan));
    T(ioctl(listener, VMMC_BORROW, &loan));
    T(ioctl(listener, VMMC_COMMIT, 1));
    meet();
    close(fd);
    T(ioctl(fd, VMMC_BORROW, &loan));
    T(ioctl(fd, VMMC_COMMIT, 1));
    T(ioctl(-1, VMMC_RELEASE, 1));
}

static void ignore(int signal) { (void)signal; }

/* Borrowing waits for as much as is asked for, as a receiving call waits. */
void scenario_loan_waits(void) {
    int fd = lending_connection();
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    struct vmmc_loan loan;
    if (me.client) {
        await_asleep(me.peer);
        for (int i = 0; i < 5; i++)
            put_pattern(fd, i * 20000, 20000, 1);
        meet();
        meet();
        await_asleep(me.peer);
        kill(me.peer, SIGUSR1);
        meet();
        put_text(fd, "half");
        meet();
        meet();
        return;
    }
    borrow_pattern(&in, 0, 100000, 100000, 1);
    meet();
    struct timeval limit = {.tv_usec = 20000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    T(vmmc_borrow(&in, 4, 4, 0, &loan));
    limit.tv_usec = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    struct sigaction action = {.sa_handler = ignore};
    sigaction(SIGUSR1, &action, NULL);
    meet();
    T(vmmc_borrow(&in, 4, 4, 0, &loan));
    meet();
    await_readable(fd, 4);
    T(vmmc_borrow(&in, 8, 8, VMMC_DONTWAIT, &loan));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T(vmmc_borrow(&in, 8, 8, 0, &loan));
    T(vmmc_borrow(&in, 4, 8, 0, &loan));
    say("%d bytes", (int)loan.length);
    T(vmmc_release(&in, 4));
    meet();
    vmmc_incoming_free(&in);
}

/* Where nothing is read there is no room in the end; a reserving call waits for it. */
void scenario_loan_waits_for_room(void) {
    enum { MESSAGE = 700000 };
    int fd = lending_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    if (me.server) {
        long count = told();
        await_asleep(me.peer);
        get_pattern(fd, 0, (count + 1) * MESSAGE, 1);
        meet();
        return;
    }
    long count = 0;
    struct vmmc_loan loan;
    while (lent && count < 100 && vmmc_reserve(&out, MESSAGE, MESSAGE, VMMC_DONTWAIT, &loan) == 0) {
        unsigned char *bytes = malloc(MESSAGE);
        fill_pattern(bytes, count * MESSAGE, MESSAGE, 1);
        vmmc_copy_in(&loan, 0, bytes, MESSAGE);
        vmmc_commit(&out, MESSAGE);
        free(bytes);
        count++;
    }
    if (lent && (errno != EAGAIN || count < 1 || count > 10))
        say("! %ld messages, then %s", count, strerrorname_np(errno));
    if (!lent) {
        tell(5);
        lend_pattern(&out, 0, 6 * MESSAGE, MESSAGE, 1);
    } else {
        tell(count);
        lend_pattern(&out, count * MESSAGE, MESSAGE, MESSAGE, 1);
    }
    meet();
    say("all sent");
    vmmc_outgoing_free(&out);
}

/* The end of the stream, seen by who borrows and by who reserves. */
void scenario_loan_ends(void) {
    int fd = lending_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    struct vmmc_loan loan;
    char buffer[16];
    signal(SIGPIPE, SIG_DFL);
    if (me.client) {
        T(vmmc_reserve(&out, 5, 5, 0, &loan));
        vmmc_copy_in(&loan, 0, "the e", 5);
        T(vmmc_commit(&out, 5));
        T(vmmc_reserve(&out, 5, 5, 0, &loan));
        T(shutdown(fd, SHUT_WR));
        T(vmmc_commit(&out, 5));
        meet();
        meet();
        return;
    }
    meet();
    T(vmmc_borrow(&in, 10, 20, 0, &loan));
    say_bytes("before the end", buffer, vmmc_copy_out(&loan, 0, buffer, sizeof buffer));
    T(vmmc_release(&in, 5));
    T(vmmc_borrow(&in, 1, 20, 0, &loan));
    say("%d bytes", (int)loan.length);
    T(vmmc_borrow(&in, 1, 20, 0, &loan));
    say("%d bytes", (int)loan.length);
    meet();
    vmmc_incoming_free(&in);
}

/* The peer is killed while it has bytes on loan, and this end too. */
void scenario_loan_of_the_killed(void) {
    int fd = lending_connection();
    struct vmmc_loan loan;
    char buffer[16];
    if (me.client) {
        put_text(fd, "last words");
        loan = question(1, 5000, 0);
        ioctl(fd, VMMC_RESERVE, &loan);
        meet();
        kill(getpid(), SIGKILL);
    }
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    meet();
    await_bits(fd, POLLRDHUP);
    T(vmmc_borrow(&in, 10, 10, 0, &loan));
    say_bytes("lent", buffer, vmmc_copy_out(&loan, 0, buffer, sizeof buffer));
    T(vmmc_release(&in, 10));
    T(vmmc_borrow(&in, 10, 10, 0, &loan));
    say("%d bytes", (int)loan.length);
    vmmc_incoming_free(&in);
}

/* A call that the layer does not carry: the connection goes back to TCP. */
static void lower(int fd) {
    int low = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
}

/* One end lowers while one of them has something on loan. Nothing is lost, and the memory stays where it was. */
static void lowered_under_loan(bool by_receiver) {
    enum { BYTES = 30000 };
    int fd = lending_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    struct vmmc_loan loan;
    unsigned char bytes[BYTES], wanted[BYTES];
    if (me.client) {
        lend_pattern(&out, 0, BYTES, 7000, 1);
        meet();
        T(vmmc_reserve(&out, BYTES, BYTES, 0, &loan));
        meet();
        if (!by_receiver)
            lower(fd);
        meet();
        fill_pattern(bytes, BYTES, BYTES, 1);
        vmmc_copy_in(&loan, 0, bytes, BYTES);
        T(vmmc_commit(&out, BYTES));
        put_pattern(fd, 2 * BYTES, BYTES, 1);
        meet();
        vmmc_outgoing_free(&out);
        return;
    }
    meet();
    T(vmmc_borrow(&in, 20000, 20000, 0, &loan));
    meet();
    if (by_receiver)
        lower(fd);
    meet();
    fill_pattern(wanted, 0, BYTES, 1);
    vmmc_copy_out(&loan, 0, bytes, 20000);
    say("lent bytes: %s", memcmp(bytes, wanted, 20000) == 0 ? "right" : "wrong");
    T(vmmc_release(&in, 15000));
    borrow_pattern(&in, 15000, 3 * BYTES - 15000, 5000, 1);
    meet();
    vmmc_incoming_free(&in);
}

void scenario_loan_lowered_by_receiver(void) { lowered_under_loan(true); }

void scenario_loan_lowered_by_sender(void) { lowered_under_loan(false); }

/* Another program inherits the connection: what was borrowed was not read, what was reserved was not sent. */
void scenario_loan_and_another_program(void) {
    int fd = lending_connection();
    char buffer[64];
    if (me.client) {
        put_text(fd, "borrowed bytes\n");
        meet();
        expect_text(fd, "got borrowed bytes\n");
        meet();
        return;
    }
    await_readable(fd, 15);
    struct vmmc_loan in = question(1, 100, 0), out = question(100, 100, 0);
    J(ioctl(fd, VMMC_BORROW, &in), 0, 0);
    J(ioctl(fd, VMMC_RESERVE, &out), 0, 0);
    meet();
    char command[64];
    snprintf(command, sizeof command, "read x <&%d; echo got $x >&%d", fd, fd);
    T(system(command));
    if (lent)
        say_bytes("still there", buffer, vmmc_copy_out(&in, 0, buffer, 14));
    else
        say("still there: 14 \"borrowed bytes\"");
    meet();
}

/* A loan is its process's own; one that died has none. */
void scenario_loan_and_fork(void) {
    int fd = lending_connection();
    char buffer[16];
    if (me.server) {
        expect_text(fd, "parent");
        put_text(fd, "abc");
        meet();
        expect_text(fd, "after");
        meet();
        return;
    }
    struct vmmc_loan loan = question(6, 6, 0);
    J(ioctl(fd, VMMC_RESERVE, &loan), 0, 0);
    pid_t child = fork();
    if (child == 0) {
        J(ioctl(fd, VMMC_COMMIT, 6), -1, EINVAL);
        J(ioctl(fd, VMMC_RESERVE, &loan), -1, EBUSY);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    if (lent)
        vmmc_copy_in(&loan, 0, "parent", 6);
    else
        put_text(fd, "parent");
    J(ioctl(fd, VMMC_COMMIT, 6), 6, 0);
    meet();
    await_readable(fd, 3);
    child = fork();
    if (child == 0) {
        loan = question(1, 3, 0);
        ioctl(fd, VMMC_BORROW, &loan);
        loan = question(100, 100, 0);
        ioctl(fd, VMMC_RESERVE, &loan);
        kill(getpid(), SIGKILL);
    }
    waitpid(child, NULL, 0);
    say_bytes("read", buffer, read(fd, buffer, sizeof buffer));
    T(write(fd, "after", 5));
    meet();
}

/* Closing ends a loan; whoever still looks at the memory finds it. */
void scenario_loan_and_close(void) {
    int fd = lending_connection();
    char buffer[16];
    if (me.client) {
        put_text(fd, "unread");
        meet();
        meet();
        T(read(fd, buffer, 1));
        return;
    }
    await_readable(fd, 6);
    struct vmmc_loan in = question(6, 6, 0), out = question(100, 100, 0);
    J(ioctl(fd, VMMC_BORROW, &in), 0, 0);
    J(ioctl(fd, VMMC_RESERVE, &out), 0, 0);
    meet();
    close(fd);
    if (lent) {
        say_bytes("still there", buffer, vmmc_copy_out(&in, 0, buffer, 6));
        say("%zu", vmmc_copy_in(&out, 0, "nobody gets this", 16));
    } else {
        say("still there: 6 \"unread\"");
        say("16");
    }
    T(ioctl(fd, VMMC_COMMIT, 16));
    meet();
}

static void *receive_in_place(void *argument) {
    struct vmmc_incoming in = VMMC_INCOMING(*(int *)argument);
    borrow_pattern(&in, 0, 3000000, 30000, 1);
    vmmc_incoming_free(&in);
    return NULL;
}

/* Both directions at once, a thread each. */
void scenario_loan_threads(void) {
    int fd = lending_connection();
    pthread_t receiver;
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    pthread_create(&receiver, NULL, receive_in_place, &fd);
    lend_pattern(&out, 0, 3000000, 20000, 1);
    pthread_join(receiver, NULL);
    meet();
    say("done");
    vmmc_outgoing_free(&out);
}

/* Borrowed until there is nothing, an edge tells of more. */
void scenario_loan_edges(void) {
    int fd = lending_connection();
    if (me.client) {
        for (int i = 0; i < 50; i++) {
            put_pattern(fd, i * 5000, 5000, 1);
            meet();
        }
        return;
    }
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (int i = 0; i < 50; i++) {
        size_t here = 0;
        while (here < 5000) {
            struct vmmc_loan loan;
            if (vmmc_borrow(&in, 1, 3000, 0, &loan) == 0) {
                here += loan.length;
                vmmc_release(&in, loan.length);
            } else if (errno != EAGAIN) {
                say("! borrow: %s", strerror(errno));
                return;
            } else if (epoll_wait(set, &event, 1, 5000) != 1) {
                say("! no edge told of byte %zu of message %d", here, i);
                return;
            }
        }
        meet();
    }
    say("every edge was told");
    vmmc_incoming_free(&in);
}

/* Bytes that TCP still owes come first, whichever call asks. */
void scenario_loan_while_lifted(void) {
    int fd = cold_connection();
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    struct vmmc_incoming in = VMMC_INCOMING(fd);
    uint64_t offset = 0;
    for (int i = 0; i < 400; i++) {
        size_t size = 1 + i * 37 % 3000;
        if (me.client)
            lend_pattern(&out, offset, size, size, 1);
        borrow_pattern(&in, offset, size, 100, 1);
        if (me.server)
            lend_pattern(&out, offset, size, size, 1);
        offset += size;
    }
    say("%zu bytes", (size_t)offset);
    vmmc_outgoing_free(&out);
    vmmc_incoming_free(&in);
}
