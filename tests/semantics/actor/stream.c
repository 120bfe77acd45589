/* Connections between the two actors, and untraced, checked bytes over them. */
#include "actor.h"

#include <arpa/inet.h>

enum { WARM_ROUNDS = 200, WARM_BYTES = 16 };

struct sockaddr_in server_address(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(me.port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

int cold_connection(void) {
    int fd;
    if (me.server) {
        fd = accept(me.listener, NULL, NULL);
    } else {
        struct sockaddr_in address = server_address();
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
            close(fd);
            fd = -1;
        }
    }
    if (fd < 0)
        say("! no connection: %s", strerror(errno));
    return fd;
}

int connection(void) {
    int fd = cold_connection();
    warm(fd);
    return fd;
}

void cold_ends(int ends[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, sizeof address);
    listen(listener, 5);
    getsockname(listener, (struct sockaddr *)&address, &length);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0], (struct sockaddr *)&address, sizeof address) != 0)
        say("! no connection: %s", strerror(errno));
    ends[1] = accept(listener, NULL, NULL);
    close(listener);
}

void round_trip(const int ends[2]) {
    for (int end = 0; end < 2; end++) {
        char byte = end;
        put(ends[end], &byte, 1);
        get(ends[1 - end], &byte, 1);
    }
}

void both_ends(int ends[2]) {
    const char *gate = getenv("ACTOR_WARM_GATE");
    struct timespec start = now();
    cold_ends(ends);
    for (int round = 0;; round++) {
        bool open = !gate || access(gate, F_OK) == 0 || elapsed_ms(&start) > 9000;
        if (round >= WARM_ROUNDS && open)
            return;
        round_trip(ends);
        if (round > WARM_ROUNDS)
            usleep(100);
    }
}

void hello(int fd) {
    put(fd, "h", 1);
    char answer;
    get(fd, &answer, 1);
}

/* The runner may name a file in ACTOR_WARM_GATE and create it when it has seen that the connection is
 * lifted: until then, within reason, the round trips go on. The client decides, in the first byte of a
 * message, which round is the last. */
void warm(int fd) {
    char message[WARM_BYTES] = {0};
    const char *gate = getenv("ACTOR_WARM_GATE");
    struct timespec start = now();
    for (int round = 1;; round++) {
        if (me.client) {
            bool open = !gate || access(gate, F_OK) == 0 || elapsed_ms(&start) > 9000;
            message[0] = round >= WARM_ROUNDS && open;
            if (round > WARM_ROUNDS)
                usleep(100);
            put(fd, message, sizeof message);
        }
        if (get(fd, message, sizeof message) != sizeof message) {
            say("! the warm-up broke off");
            return;
        }
        if (me.server)
            put(fd, message, sizeof message);
        if (message[0])
            return;
    }
}

bool put(int fd, const void *bytes, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t n = write(fd, (const char *)bytes + done, count - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            await_bits(fd, POLLOUT);
            continue;
        }
        if (n <= 0) {
            say("! could not write: %s", strerrorname_np(errno));
            return false;
        }
        done += n;
    }
    return true;
}

bool put_text(int fd, const char *text) {
    return put(fd, text, strlen(text));
}

size_t get(int fd, void *bytes, size_t count) {
    size_t done = 0;
    while (done < count) {
        ssize_t n = read(fd, (char *)bytes + done, count - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            await_bits(fd, POLLIN);
            continue;
        }
        if (n < 0)
            say("! could not read: %s", strerrorname_np(errno));
        if (n <= 0)
            break;
        done += n;
    }
    return done;
}

void expect_text(int fd, const char *text) {
    char buffer[256];
    size_t count = get(fd, buffer, strlen(text));
    bool same = count == strlen(text) && memcmp(buffer, text, count) == 0;
    for (size_t i = 0; i < count; i++)
        if (buffer[i] < ' ' || buffer[i] > '~')
            buffer[i] = '/';
    if (same)
        say("read \"%.*s\"", (int)count, buffer);
    else
        say("! not what was expected: read \"%.*s\"", (int)count, buffer);
}

void expect_end(int fd) {
    char byte;
    ssize_t n = read(fd, &byte, 1);
    if (n == 0)
        say("end of stream");
    else
        say("! no end of stream: read returned %zd %s", n, n < 0 ? strerrorname_np(errno) : "");
}

void fill_pattern(void *bytes, uint64_t offset, size_t count, unsigned seed) {
    unsigned char *out = bytes;
    for (size_t i = 0; i < count; i++) {
        uint64_t at = offset + i;
        out[i] = (unsigned char)(at * 131 + (at >> 8) * 17 + seed * 29) ^ (unsigned char)(at >> 16);
    }
}

void put_pattern(int fd, uint64_t offset, size_t count, unsigned seed) {
    unsigned char chunk[32768];
    while (count) {
        size_t n = count < sizeof chunk ? count : sizeof chunk;
        fill_pattern(chunk, offset, n, seed);
        if (!put(fd, chunk, n))
            return;
        offset += n;
        count -= n;
    }
}

void get_pattern(int fd, uint64_t offset, size_t count, unsigned seed) {
    unsigned char chunk[32768], wanted[32768];
    while (count) {
        size_t n = get(fd, chunk, count < sizeof chunk ? count : sizeof chunk);
        if (n == 0) {
            say("! the stream ended %zu bytes early", count);
            return;
        }
        fill_pattern(wanted, offset, n, seed);
        for (size_t i = 0; i < n; i++)
            if (chunk[i] != wanted[i]) {
                say("! byte %llu of the stream is wrong", (unsigned long long)(offset + i));
                return;
            }
        offset += n;
        count -= n;
    }
}

uint64_t digest(const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    uint64_t hash = 0xcbf29ce484222325;
    while (count--)
        hash = (hash ^ *at++) * 0x100000001b3;
    return hash;
}

/* The kernel may find room again a moment after it said EAGAIN: full is what says so twice, a pause apart. */
size_t fill_up(int fd, unsigned seed) {
    unsigned char chunk[4096];
    size_t total = 0;
    for (int refused = 0; refused < 2;) {
        fill_pattern(chunk, total, sizeof chunk, seed);
        ssize_t n = send(fd, chunk, sizeof chunk, MSG_DONTWAIT);
        if (n > 0) {
            total += n;
            refused = 0;
            continue;
        }
        if (errno != EAGAIN) {
            say("! filling up ended with %s", strerrorname_np(errno));
            return total;
        }
        struct pollfd item = {.fd = fd, .events = POLLOUT};
        poll(&item, 1, 60);
        refused++;
    }
    return total;
}
