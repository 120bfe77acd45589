/* Sending and receiving in place (vmmc/loan.h). Where a connection lends nothing, as over the kernel, the ordinary call that
 * means the same takes the step: the answers of both have to be equal. */
#include "player.h"

#include <vmmc/loan.h>

/* What a place has on loan from one step to a later one. */
struct lent {
    bool stands;
    struct vmmc_loan loan;
};
static struct lent reserved[PLACES], borrowed[PLACES];

static unsigned char bytes[LARGEST], looked_at[LARGEST];

static struct vmmc_loan question(size_t least, size_t most, int flags) {
    return (struct vmmc_loan){.least = least, .most = most, .flags = flags & MSG_DONTWAIT ? VMMC_DONTWAIT : 0};
}

static bool lends_none(int result) {
    return result != 0 && errno == ENOTTY;
}

/* reserve, fill, commit: as send with MSG_NOSIGNAL */
long send_in_place(int fd, const unsigned char *outgoing, size_t count, int flags) {
    struct vmmc_loan loan = question(count, count, flags);
    int result = ioctl(fd, VMMC_RESERVE, &loan);
    if (lends_none(result))
        return send(fd, outgoing, count, flags | MSG_NOSIGNAL);
    if (result != 0)
        return -1;
    if (vmmc_copy_in(&loan, 0, outgoing, count) != count)
        answer("!%llu bytes lent", (unsigned long long)loan.length);
    return ioctl(fd, VMMC_COMMIT, count);
}

/* What is behind bytes that were received in place: a stream may go on over TCP in the middle of a call. An error that comes
 * behind them is left to the next call. */
static long receive_rest(int fd, unsigned char *incoming, size_t count, int flags, long got) {
    struct pollfd item = {.fd = fd};
    int unread = 0;
    ioctl(fd, FIONREAD, &unread);
    if (got <= 0 || (size_t)got == count || unread == 0 && (poll(&item, 1, 0), item.revents & POLLERR))
        return got;
    if (!(flags & MSG_WAITALL))
        flags |= MSG_DONTWAIT;
    long more = recv(fd, incoming + got, count - got, flags);
    return more > 0 ? got + more : got;
}

/* borrow, look, release: as recv. With MSG_PEEK nothing is released, and recv has to see the same. */
long receive_in_place(int fd, unsigned char *incoming, size_t count, int flags) {
    bool keep = flags & MSG_PEEK;
    struct vmmc_loan loan = question(flags & MSG_WAITALL && !keep ? count : 1, count, flags);
    int result = ioctl(fd, VMMC_BORROW, &loan);
    if (result != 0 && (errno == EAGAIN || errno == EINTR) && loan.least > 1) {
        /* recv would give less than all. */
        int why = errno;
        loan = question(1, count, MSG_DONTWAIT);
        result = ioctl(fd, VMMC_BORROW, &loan);
        if (result != 0 && errno == EAGAIN)
            errno = why;
    }
    if (lends_none(result))
        return recv(fd, incoming, count, flags);
    if (result != 0)
        return -1;
    long got = vmmc_copy_out(&loan, 0, looked_at, count);
    if (keep) {
        if (loan.length)
            ioctl(fd, VMMC_RELEASE, 0);
        long seen = recv(fd, incoming, count, flags);
        if (seen < got || !(flags & MSG_TRUNC) && memcmp(incoming, looked_at, got) != 0)
            answer("!borrowed %ld", got);
        return seen;
    }
    if (loan.length && ioctl(fd, VMMC_RELEASE, got) != got)
        answer("!release %s", strerrorname_np(errno));
    if (!(flags & MSG_TRUNC))
        memcpy(incoming, looked_at, got);
    return receive_rest(fd, incoming, count, flags, got);
}

/* reserve PLACE COUNT */
void step_reserve(void) {
    long which = number();
    size_t count = number();
    struct lent *lent = &reserved[which];
    lent->loan = question(count, count, MSG_DONTWAIT);
    int result = ioctl(me.place[which], VMMC_RESERVE, &lent->loan);
    lent->stands = result == 0;
    answer_result(lends_none(result) ? 0 : result);
}

/* commit PLACE COUNT STAMP: no more than was reserved */
void step_commit(void) {
    long which = number();
    int fd = me.place[which];
    size_t count = number();
    struct lent *lent = &reserved[which];
    fill(bytes, count, number(), 0);
    if (!lent->stands) {
        answer_result(count ? send(fd, bytes, count, MSG_NOSIGNAL) : 0);
        return;
    }
    lent->stands = false;
    vmmc_copy_in(&lent->loan, 0, bytes, count);
    answer_result(ioctl(fd, VMMC_COMMIT, count));
}

/* borrow PLACE COUNT: what is lent is what a look at the stream shows, or the first of it */
void step_borrow(void) {
    long which = number();
    size_t count = number();
    struct lent *lent = &borrowed[which];
    lent->loan = question(1, count, MSG_DONTWAIT);
    int result = ioctl(me.place[which], VMMC_BORROW, &lent->loan);
    lent->stands = result == 0;
    if (result != 0 && !lends_none(result)) {
        answer_result(result);
        return;
    }
    long seen = recv(me.place[which], bytes, count, MSG_PEEK | MSG_DONTWAIT);
    answer_result(seen);
    answer_bytes(bytes, seen);
    long got = lent->stands ? (long)vmmc_copy_out(&lent->loan, 0, looked_at, count) : 0;
    if (got > seen || memcmp(bytes, looked_at, got) != 0)
        answer("!borrowed %ld", got);
}

/* release PLACE COUNT: no more than was borrowed; the bytes are where they were, whatever came between */
void step_release(void) {
    long which = number();
    int fd = me.place[which];
    size_t count = number();
    struct lent *lent = &borrowed[which];
    long got = 0;
    if (lent->stands) {
        lent->stands = false;
        got = vmmc_copy_out(&lent->loan, 0, bytes, count);
        long released = ioctl(fd, VMMC_RELEASE, got);
        if (released != got) {
            answer_result(released);
            return;
        }
        got = receive_rest(fd, bytes, count, 0, got);
    } else if (count) {
        got = recv(fd, bytes, count, MSG_DONTWAIT);
    }
    answer_result(got);
    answer_bytes(bytes, got);
}
