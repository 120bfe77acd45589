/* Sending and receiving in place on a TCP connection.
 *
 * Under `vmmc run` the bytes of a lifted connection lie in rings in memory that both ends have. A program can fill
 * the outgoing ring and look at the incoming one by itself, and no byte is copied on either side:
 *
 *   ioctl(fd, VMMC_RESERVE, &loan)   lends space for bytes to send
 *   ioctl(fd, VMMC_COMMIT, length)   ends that loan: its first `length` bytes are sent
 *   ioctl(fd, VMMC_BORROW, &loan)    lends bytes that have arrived
 *   ioctl(fd, VMMC_RELEASE, length)  ends that loan: its first `length` bytes were read
 *
 * On any other descriptor, and while the connection's bytes go over TCP, the answer is ENOTTY; the bytes are then moved by the
 * ordinary calls. The functions below do that, so that a program has one way for both. Rules, errors, and what other
 * calls see meanwhile: docs/loans.md.
 *
 * Who is at the other end can write into both rings at any time. Bytes on loan may change while you look at them if that
 * end is hostile: copy out what you check before you use it.
 *
 * There is nothing to link with. Linux, C99 or C++ with GNU extensions.
 */
#ifndef VMMC_LOAN_H
#define VMMC_LOAN_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VMMC_SEGMENTS 4      /* of one loan, at the most */
#define VMMC_LARGEST 1048576 /* bytes that one call may insist on, at the most */

struct vmmc_loan {
    uint64_t length;   /* out: bytes on loan; 0 from VMMC_BORROW: the stream has ended */
    uint64_t least;    /* in: wait for so many bytes, 1 to VMMC_LARGEST */
    uint64_t most;     /* in: lend no more than so many, at least `least` */
    uint32_t flags;    /* in: VMMC_DONTWAIT */
    uint32_t segments; /* out: entries of `segment` */
    struct iovec segment[VMMC_SEGMENTS]; /* out: where the bytes lie, in the order of the stream */
};

#define VMMC_DONTWAIT 1 /* do not wait, whatever the descriptor's mode */

/* The numbers tell the structure's size; another meaning gets another number. */
#define VMMC_RESERVE _IOWR(0xbd, 1, struct vmmc_loan)
#define VMMC_COMMIT _IO(0xbd, 2)
#define VMMC_BORROW _IOWR(0xbd, 3, struct vmmc_loan)
#define VMMC_RELEASE _IO(0xbd, 4)

/* ---- one way for both: in place where the connection is lifted, through a buffer where it is not ---- */

/* The sending side of a connection. Initialise with VMMC_OUTGOING(fd), end with vmmc_outgoing_free. For one thread at a time. */
struct vmmc_outgoing {
    int fd;
    unsigned char *buffer;         /* space that is lent where the connection lends none */
    size_t capacity, first, last;  /* of the buffer; the part on loan */
};
#define VMMC_OUTGOING(descriptor) {(descriptor), NULL, 0, 0, 0}

/* The receiving side; the same with VMMC_INCOMING(fd) and vmmc_incoming_free. */
struct vmmc_incoming {
    int fd;
    unsigned char *buffer;         /* bytes that were received by ordinary calls */
    size_t capacity, first, last;  /* of the buffer; the part that was not released */
    int borrowed;                  /* what is on loan: nothing, bytes of the buffer, bytes of the ring */
    int ended, error;              /* what came after the bytes of the buffer */
};
#define VMMC_INCOMING(descriptor) {(descriptor), NULL, 0, 0, 0, 0, 0, 0}

static inline void vmmc_outgoing_free(struct vmmc_outgoing *out) {
    free(out->buffer);
    out->buffer = NULL;
    out->capacity = out->first = out->last = 0;
}

static inline void vmmc_incoming_free(struct vmmc_incoming *in) {
    free(in->buffer);
    in->buffer = NULL;
    in->capacity = in->first = in->last = 0;
}

/* Bytes that a buffer gets for a loan of `least` to `most`. */
static inline size_t vmmc_loan_size(size_t least, size_t most) {
    size_t size = most < 65536 ? most : 65536;
    return size < least ? least : size;
}

static inline int vmmc_loan_grow(unsigned char **buffer, size_t *capacity, size_t size) {
    unsigned char *larger;
    if (size <= *capacity)
        return 0;
    larger = (unsigned char *)realloc(*buffer, size);
    if (larger == NULL)
        return -1; /* ENOMEM */
    *buffer = larger;
    *capacity = size;
    return 0;
}

static inline void vmmc_loan_of(struct vmmc_loan *loan, unsigned char *bytes, size_t length) {
    loan->length = length;
    loan->segments = length > 0;
    loan->segment[0].iov_base = bytes;
    loan->segment[0].iov_len = length;
}

/* Lends space for `least` to `most` bytes to send. 0, or -1 and errno, as VMMC_RESERVE. */
static inline int vmmc_reserve(struct vmmc_outgoing *out, size_t least, size_t most, int flags,
                               struct vmmc_loan *loan) {
    size_t size;
    loan->least = least;
    loan->most = most;
    loan->flags = (uint32_t)flags;
    if (out->last > 0) {
        errno = EBUSY;
        return -1;
    }
    if (ioctl(out->fd, VMMC_RESERVE, loan) == 0)
        return 0;
    if (errno != ENOTTY)
        return -1;
    if (least == 0 || most < least || least > VMMC_LARGEST) {
        errno = least > VMMC_LARGEST && most >= least ? EMSGSIZE : EINVAL;
        return -1;
    }
    size = vmmc_loan_size(least, most);
    if (vmmc_loan_grow(&out->buffer, &out->capacity, size) != 0)
        return -1;
    out->first = 0;
    out->last = size;
    vmmc_loan_of(loan, out->buffer, size);
    return 0;
}

/* Ends the loan; its first `length` bytes are sent. Gives how many, or -1 and errno. Fewer than `length`, or EAGAIN or
 * EINTR, can come of a connection that is on TCP: then the rest is still on loan, and is committed by a further call. */
static inline ssize_t vmmc_commit(struct vmmc_outgoing *out, size_t length) {
    size_t sent = 0;
    if (out->last == 0)
        return ioctl(out->fd, VMMC_COMMIT, length);
    if (length > out->last - out->first) {
        errno = EINVAL;
        return -1;
    }
    while (sent < length) {
        ssize_t n = send(out->fd, out->buffer + out->first, length - sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN && errno != EINTR)
                out->last = 0;
            return sent > 0 ? (ssize_t)sent : -1;
        }
        out->first += (size_t)n;
        sent += (size_t)n;
    }
    out->last = 0;
    return (ssize_t)sent;
}

/* Receives into the buffer until it holds `least` bytes, at most `most`. 0, or -1 and errno. */
static inline int vmmc_incoming_fill(struct vmmc_incoming *in, size_t least, size_t most, int flags) {
    size_t here = in->last - in->first;
    if (in->first > 0) {
        memmove(in->buffer, in->buffer + in->first, here);
        in->first = 0;
        in->last = here;
    }
    if (vmmc_loan_grow(&in->buffer, &in->capacity, vmmc_loan_size(least, most)) != 0)
        return -1;
    while (in->last < least && !in->ended && in->error == 0) {
        ssize_t n = recv(in->fd, in->buffer + in->last, vmmc_loan_size(least, most) - in->last,
                         flags & VMMC_DONTWAIT ? MSG_DONTWAIT : 0);
        if (n > 0)
            in->last += (size_t)n;
        else if (n == 0)
            in->ended = 1;
        else if (errno == EAGAIN || errno == EINTR || in->last == 0)
            return -1;
        else
            in->error = errno; /* told when the bytes before it are released */
    }
    return 0;
}

/* Lends bytes that have arrived: at least `least`, unless the stream ends before; at most `most`. A length of 0 is the end of the
 * stream. 0, or -1 and errno, as VMMC_BORROW; what had arrived is then not lost. */
static inline int vmmc_borrow(struct vmmc_incoming *in, size_t least, size_t most, int flags,
                              struct vmmc_loan *loan) {
    loan->least = least;
    loan->most = most;
    loan->flags = (uint32_t)flags;
    if (in->borrowed) {
        errno = EBUSY;
        return -1;
    }
    if (least == 0 || most < least || least > VMMC_LARGEST) {
        errno = least > VMMC_LARGEST && most >= least ? EMSGSIZE : EINVAL;
        return -1;
    }
    if (in->last == in->first && !in->ended && in->error == 0) {
        unsigned i;
        in->first = in->last = 0;
        if (ioctl(in->fd, VMMC_BORROW, loan) == 0) {
            if (loan->length >= least || loan->length == 0) {
                in->borrowed = loan->length > 0 ? 2 : 0;
                return 0;
            }
            /* The rest does not come in place: what is here goes before it. */
            if (vmmc_loan_grow(&in->buffer, &in->capacity, vmmc_loan_size(least, most)) != 0) {
                ioctl(in->fd, VMMC_RELEASE, 0);
                return -1;
            }
            for (i = 0; i < loan->segments; i++) {
                memcpy(in->buffer + in->last, loan->segment[i].iov_base, loan->segment[i].iov_len);
                in->last += loan->segment[i].iov_len;
            }
            in->borrowed = 2;
            if (ioctl(in->fd, VMMC_RELEASE, in->last) != (int)in->last) {
                in->borrowed = 0;
                in->last = 0;
                return -1;
            }
            in->borrowed = 0;
        } else if (errno != ENOTTY) {
            return -1;
        }
    }
    if (in->last - in->first < least && vmmc_incoming_fill(in, least, most, flags) != 0)
        return -1;
    if (in->last == in->first && in->error != 0) {
        errno = in->error;
        in->error = 0;
        return -1;
    }
    vmmc_loan_of(loan, in->buffer + in->first,
                 in->last - in->first < most ? in->last - in->first : most);
    in->borrowed = loan->length > 0 ? 1 : 0;
    return 0;
}

/* Ends the loan; its first `length` bytes were read. 0, or -1 and errno. Waits if the connection was lowered meanwhile and
 * the bytes have to be passed over on TCP. */
static inline int vmmc_release(struct vmmc_incoming *in, size_t length) {
    int borrowed = in->borrowed, done;
    if (borrowed == 0 || (borrowed == 1 && length > in->last - in->first)) {
        errno = EINVAL;
        return -1;
    }
    if (borrowed == 1) {
        in->first += length;
        in->borrowed = 0;
        return 0;
    }
    done = ioctl(in->fd, VMMC_RELEASE, length);
    if (done < 0 && errno != EAGAIN && errno != EINTR) {
        if (errno != EINVAL)
            in->borrowed = 0;
        return -1;
    }
    in->borrowed = 0;
    length -= done < 0 ? 0 : (size_t)done;
    while (length > 0) {
        struct pollfd arriving = {in->fd, POLLIN, 0};
        ssize_t n = recv(in->fd, NULL, length, MSG_TRUNC);
        if (n > 0)
            length -= (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return -1;
        else
            poll(&arriving, 1, -1);
    }
    return 0;
}

/* ---- copying into and out of a loan, wherever its segments end ---- */

/* Copies `count` bytes into the loan, beginning at its byte `at`; gives how many found room. */
static inline size_t vmmc_copy_in(const struct vmmc_loan *loan, size_t at, const void *bytes,
                                  size_t count) {
    size_t done = 0;
    unsigned i;
    for (i = 0; i < loan->segments && done < count; i++) {
        size_t length = loan->segment[i].iov_len, part;
        if (at >= length) {
            at -= length;
            continue;
        }
        part = length - at < count - done ? length - at : count - done;
        memcpy((char *)loan->segment[i].iov_base + at, (const char *)bytes + done, part);
        done += part;
        at = 0;
    }
    return done;
}

/* Copies `count` bytes out of the loan, beginning at its byte `at`; gives how many there were. */
static inline size_t vmmc_copy_out(const struct vmmc_loan *loan, size_t at, void *bytes,
                                   size_t count) {
    size_t done = 0;
    unsigned i;
    for (i = 0; i < loan->segments && done < count; i++) {
        size_t length = loan->segment[i].iov_len, part;
        if (at >= length) {
            at -= length;
            continue;
        }
        part = length - at < count - done ? length - at : count - done;
        memcpy((char *)bytes + done, (const char *)loan->segment[i].iov_base + at, part);
        done += part;
        at = 0;
    }
    return done;
}

#ifdef __cplusplus
}
#endif

#endif
