/* Between files, pipes and the connection without passing through the program: sendfile and splice. */
#include "actor.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>

static int pattern_file(size_t size, unsigned seed) {
    int file = memfd_create("file", 0);
    unsigned char *bytes = malloc(size);
    fill_pattern(bytes, 0, size, seed);
    put(file, bytes, size);
    free(bytes);
    lseek(file, 0, SEEK_SET);
    return file;
}

void scenario_sendfile(void) {
    enum { SIZE = 3000000 };
    int fd = connection();
    if (me.server) {
        get_pattern(fd, 0, SIZE, 1);
        get_pattern(fd, 1000, 5000, 1);
        get_pattern(fd, SIZE - 100, 100, 1);
        expect_text(fd, "end");
        meet();
        return;
    }
    int file = pattern_file(SIZE, 1);
    size_t sent = 0;
    while (sent < SIZE) {
        ssize_t n = sendfile(fd, file, NULL, SIZE - sent);
        if (n <= 0)
            break;
        sent += n;
    }
    say("sent %zu, position %ld", sent, (long)lseek(file, 0, SEEK_CUR));
    T(sendfile(fd, file, NULL, 100));
    off_t offset = 1000;
    T(sendfile(fd, file, &offset, 5000));
    say("offset %ld, position %ld", (long)offset, (long)lseek(file, 0, SEEK_CUR));
    off64_t end = SIZE - 100;
    T(sendfile64(fd, file, &end, 1000));
    say("offset %ld", (long)end);
    offset = SIZE + 5;
    T(sendfile(fd, file, &offset, 10));
    offset = -1;
    T(sendfile(fd, file, &offset, 10));
    T(sendfile(fd, file, NULL, 0));
    T(sendfile(fd, -1, NULL, 10));
    T(sendfile(fd, fd, NULL, 10));
    T(sendfile(-1, file, NULL, 10));
    int fds[2];
    if (pipe(fds) == 0)
        T(copy_file_range(file, &(off64_t){0}, fd, NULL, 10, 0));
    put_text(fd, "end");
    meet();
}

/* Into a connection that takes no more: a part, then EAGAIN, and nothing is lost of the rest. */
void scenario_sendfile_nonblocking(void) {
    enum { SIZE = 16000000 };
    int fd = connection();
    if (me.server) {
        meet();
        get_pattern(fd, 0, SIZE, 2);
        meet();
        return;
    }
    int file = pattern_file(SIZE, 2), refused = 0;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    off_t offset = 0;
    while (offset < SIZE) {
        ssize_t n = sendfile(fd, file, &offset, SIZE - offset);
        if (n > 0)
            continue;
        if (n == 0 || errno != EAGAIN) {
            say("! sendfile: %zd %s", n, strerrorname_np(errno));
            return;
        }
        if (refused++ == 0)
            meet();
        await_bits(fd, POLLOUT);
    }
    say("was refused: %s", refused ? "yes" : "no");
    meet();
}

/* From a connection into a pipe, as the kernel does since Linux 5.12. */
void scenario_sendfile_to_pipe(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 6000, 5);
        meet();
        meet();
        return;
    }
    int ends[2];
    if (pipe(ends) != 0)
        return;
    meet();
    await_readable(fd, 6000);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T(sendfile(ends[1], fd, NULL, 1000));
    get_pattern(ends[0], 0, 1000, 5);
    T(syscall(SYS_sendfile, ends[1], fd, NULL, 2000));
    get_pattern(ends[0], 1000, 2000, 5);
    T(sendfile64(ends[1], fd, &(off64_t){0}, 10));
    get_pattern(fd, 3000, 3000, 5);
    T(sendfile(ends[1], fd, NULL, 10));
    meet();
}

void scenario_splice_from_connection(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 10000, 3);
        meet();
        put_pattern(fd, 10000, 500000, 3);
        put_text(fd, "by read");
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    int ends[2];
    if (pipe(ends) != 0)
        return;
    await_readable(fd, 10000);
    T(splice(fd, NULL, ends[1], NULL, 4000, 0));
    get_pattern(ends[0], 0, 4000, 3);
    T(splice(fd, NULL, ends[1], NULL, 20000, SPLICE_F_NONBLOCK));
    get_pattern(ends[0], 4000, 6000, 3);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T(splice(fd, NULL, ends[1], NULL, 20000, 0));
    fcntl(fd, F_SETFL, 0);
    meet();
    for (size_t done = 0; done < 500000;) {
        ssize_t n = splice(fd, NULL, ends[1], NULL, 500000 - done < 8192 ? 500000 - done : 8192, SPLICE_F_MOVE);
        if (n <= 0) {
            say("! splice: %zd %s", n, strerrorname_np(errno));
            return;
        }
        get_pattern(ends[0], 10000 + done, n, 3);
        done += n;
    }
    expect_text(fd, "by read");
    T(splice(fd, NULL, ends[1], NULL, 10, 0));
    loff_t position = 0;
    T(splice(fd, &position, ends[1], NULL, 10, 0));
    meet();
}

enum { MORE_THAN_FITS = 12000000 };

/* Reads what comes, as many bytes as `sent`, the first of them into a pipe. */
static void read_behind_splice(int fd, const unsigned char sent[MORE_THAN_FITS]) {
    static unsigned char got[MORE_THAN_FITS];
    int ends[2];
    pipe(ends);
    usleep(300000);
    T(splice(fd, NULL, ends[1], NULL, 10, 0));
    T(read(ends[0], got, 10));
    size_t done = 10;
    for (ssize_t n; done < sizeof got && (n = read(fd, got + done, sizeof got - done)) > 0;)
        done += n;
    say("%zu bytes, equal %d", done, memcmp(got, sent, sizeof got) == 0);
    expect_end(fd);
    close(ends[0]);
    close(ends[1]);
}

/* The reader splices while the writer waits for room: first in write, then in poll. */
void scenario_splice_from_full(void) {
    static unsigned char bytes[MORE_THAN_FITS];
    for (int round = 0; round < 2; round++) {
        int fd = round == 0 ? connection() : cold_connection();
        if (round == 1)
            warm(fd);
        fill_pattern(bytes, 0, sizeof bytes, round);
        if (me.client) {
            if (round == 1)
                fcntl(fd, F_SETFL, O_NONBLOCK);
            for (size_t done = 0; done < sizeof bytes;) {
                ssize_t n = write(fd, bytes + done, sizeof bytes - done);
                struct pollfd one = {fd, POLLOUT, 0};
                if (n > 0)
                    done += n;
                else if (errno != EAGAIN || poll(&one, 1, 10000) != 1) {
                    say("! write: %zd %s", n, strerrorname_np(errno));
                    break;
                }
            }
            shutdown(fd, SHUT_WR);
            meet();
            close(fd);
            continue;
        }
        read_behind_splice(fd, bytes);
        meet();
        close(fd);
    }
}

/* The reader splices while sendfile waits for room, which then goes on. */
void scenario_sendfile_beside_splice(void) {
    int fd = connection();
    if (me.client) {
        int file = pattern_file(MORE_THAN_FITS, 3);
        off_t from = 0;
        T(sendfile(fd, file, &from, MORE_THAN_FITS));
        say("from %ld on", (long)from);
        shutdown(fd, SHUT_WR);
        meet();
        close(file);
        return;
    }
    static unsigned char bytes[MORE_THAN_FITS];
    fill_pattern(bytes, 0, sizeof bytes, 3);
    read_behind_splice(fd, bytes);
    meet();
}

void scenario_splice_to_connection(void) {
    int fd = connection();
    if (me.server) {
        get_pattern(fd, 0, 300000, 4);
        expect_text(fd, "then by write");
        meet();
        return;
    }
    int ends[2];
    if (pipe(ends) != 0)
        return;
    for (size_t done = 0; done < 300000; done += 10000) {
        put_pattern(ends[1], done, 10000, 4);
        for (size_t moved = 0; moved < 10000;) {
            ssize_t n = splice(ends[0], NULL, fd, NULL, 10000 - moved, SPLICE_F_MORE);
            if (n <= 0) {
                say("! splice: %zd %s", n, strerrorname_np(errno));
                return;
            }
            moved += n;
        }
    }
    T(write(fd, "then by write", 13));
    meet();
}

/* A reader that waits gets whole what was sent by one call, wherever the ring has its seam. */
void scenario_sendfile_in_one_piece(void) {
    enum { PIECE = 450 };
    char bytes[4 * PIECE];
    int fd = connection(), file = fileno(tmpfile()), odd = 0;
    fill_pattern(bytes, 0, PIECE, 1);
    write(file, bytes, PIECE);
    for (int i = 0; i < 30; i++) {
        off_t at = 0;
        if (me.client) {
            await_asleep(me.peer);
            sendfile(fd, file, &at, PIECE);
        } else {
            odd += recv(fd, bytes, sizeof bytes, 0) != PIECE;
        }
        meet();
    }
    say("odd %d", odd);
    meet();
}

/* What is no file to be sent, and no count of bytes. */
void scenario_sendfile_refused(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "file");
        meet();
        return;
    }
    int directory = open("/", O_RDONLY), file = memfd_create("file", 0);
    int path = open("/", O_PATH);
    put_text(file, "file");
    off_t offset = 0, far = (off_t)(~0ull >> 1) - 2;
    T(sendfile(fd, directory, NULL, 10));
    T(sendfile(fd, path, NULL, 10));
    T(sendfile(fd, file, &offset, (size_t)-1));
    T(sendfile(fd, file, &far, 10));
    T(sendfile(fd, file, &offset, 4));
    close(directory);
    close(file);
    close(path);
    meet();
}

enum { LONG_FILE = 24 << 20 };

struct small_sender {
    int fd, file;
    long sent;
};

static void *send_file_from_small_stack(void *argument) {
    struct small_sender *sender = argument;
    off_t offset = 0;
    while (sender->sent < LONG_FILE) {
        ssize_t n = sendfile(sender->fd, sender->file, &offset, LONG_FILE - sender->sent);
        if (n <= 0)
            break;
        sender->sent += n;
    }
    return NULL;
}

static void *nothing_to_do(void *argument) {
    return argument;
}

/* A thread with a small stack is in sendfile when the connection goes back to TCP. */
void scenario_sendfile_from_small_stack(void) {
    int fd = connection();
    if (me.client) {
        static char bytes[1 << 20];
        meet();
        int one = 1;
        T(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one));
        long total = 0;
        ssize_t n;
        while ((n = recv(fd, bytes, sizeof bytes, 0)) > 0)
            total += n;
        say("got %ld", total);
        meet();
        return;
    }
    struct small_sender sender = {.fd = fd, .file = memfd_create("long", 0)};
    ftruncate(sender.file, LONG_FILE);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_t thread;
    /* The smallest that there may be, with what this program has for each thread, and 8 KiB for calls. */
    size_t size = 4096;
    while (pthread_attr_setstacksize(&small, size) != 0 || pthread_create(&thread, &small, nothing_to_do, NULL) != 0)
        size += 4096;
    pthread_join(thread, NULL);
    pthread_attr_setstacksize(&small, size + 8192);
    T(pthread_create(&thread, &small, send_file_from_small_stack, &sender));
    usleep(50000);
    meet();
    pthread_join(thread, NULL);
    say("sent %ld", sender.sent);
    shutdown(fd, SHUT_WR);
    meet();
}
