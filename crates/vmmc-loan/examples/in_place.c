/* Sends messages that are made where they are sent from, and adds them up where they have arrived.
 *
 *   cc -O2 -I ../include -o in_place in_place.c
 *   vmmc run -- ./in_place serve 7000 65536         vmmc run -- ./in_place send 7000 65536 1000
 *
 * Without `vmmc run`, at one end or at both, it does the same over TCP. The sender begins with messages of zeros, which do not
 * count, until its standard input ends: so long one can look at `vmmc stat`. Standard error tells how many were in place.
 */
#include <vmmc/loan.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Whether the loan lies in the ring. */
static int in_place(const struct vmmc_loan *loan, const unsigned char *buffer, size_t capacity) {
    const unsigned char *first = loan->segment[0].iov_base;
    return first < buffer || first >= buffer + capacity;
}

static void serve(struct sockaddr_in *address, size_t size) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)address, sizeof *address) != 0 || listen(listener, 1) != 0)
        fail("listen");
    printf("listening\n");
    fflush(stdout);
    struct vmmc_incoming in = VMMC_INCOMING(accept(listener, NULL, NULL));
    unsigned long messages = 0, sum = 0, lent = 0;
    for (;;) {
        struct vmmc_loan loan;
        if (vmmc_borrow(&in, size, size, 0, &loan) != 0)
            fail("borrow");
        if (loan.length < size)
            break; /* the end */
        for (unsigned i = 0; i < loan.segments; i++) {
            const unsigned char *bytes = loan.segment[i].iov_base;
            for (size_t at = 0; at < loan.segment[i].iov_len; at++)
                sum = sum * 31 + bytes[at];
        }
        messages += sum != 0;
        lent += sum != 0 && in_place(&loan, in.buffer, in.capacity);
        if (vmmc_release(&in, size) != 0)
            fail("release");
    }
    printf("%lu messages, sum %016lx\n", messages, sum);
    fprintf(stderr, "%lu of them in place\n", lent);
    vmmc_incoming_free(&in);
}

/* Sends one message, all zeros or not; whether it was made in place. */
static int send_message(struct vmmc_outgoing *out, size_t size, int zeros, unsigned char next) {
    struct vmmc_loan loan;
    if (vmmc_reserve(out, size, size, 0, &loan) != 0)
        fail("reserve");
    for (unsigned i = 0; i < loan.segments; i++) {
        unsigned char *bytes = loan.segment[i].iov_base;
        for (size_t at = 0; at < loan.segment[i].iov_len; at++)
            bytes[at] = zeros ? 0 : ++next;
    }
    int lent = in_place(&loan, out->buffer, out->capacity);
    if (vmmc_commit(out, size) != (ssize_t)size)
        fail("commit");
    return lent;
}

static void send_messages(struct sockaddr_in *address, size_t size, unsigned long count) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)address, sizeof *address) != 0)
        fail("connect");
    struct vmmc_outgoing out = VMMC_OUTGOING(fd);
    unsigned long lent = 0;
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    while (poll(&input, 1, 1) == 0)
        send_message(&out, size, 1, 0);
    for (unsigned long message = 0; message < count; message++)
        lent += send_message(&out, size, 0, (unsigned char)message);
    shutdown(fd, SHUT_WR);
    fprintf(stderr, "%lu of %lu in place\n", lent, count);
    vmmc_outgoing_free(&out);
}

int main(int count, char **argument) {
    if (count < 4) {
        fprintf(stderr, "usage: in_place serve PORT SIZE | in_place send PORT SIZE COUNT\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argument[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    size_t size = strtoul(argument[3], NULL, 10);
    if (strcmp(argument[1], "send") == 0 && count > 4)
        send_messages(&address, size, strtoul(argument[4], NULL, 10));
    else
        serve(&address, size);
    return 0;
}
