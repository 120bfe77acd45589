/* Ordering the two actors: the control channel on standard input, and waiting for conditions. */
#include "actor.h"


static bool channel_write(const void *bytes, size_t count) {
    while (count) {
        ssize_t n = send(STDIN_FILENO, bytes, count, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        bytes = (const char *)bytes + n;
        count -= n;
    }
    return true;
}

static bool channel_read(void *bytes, size_t count) {
    while (count) {
        ssize_t n = recv(STDIN_FILENO, bytes, count, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        bytes = (char *)bytes + n;
        count -= n;
    }
    return true;
}

static void gone(void) {
    say("! the other side left");
    _exit(71);
}

void tell(long value) {
    if (!channel_write(&value, sizeof value))
        gone();
}

long told(void) {
    long value;
    if (!channel_read(&value, sizeof value))
        gone();
    return value;
}

void meet(void) {
    const long token = 0x6d656574;
    tell(token);
    long answer = told();
    if (answer != token) {
        say("! met a number (%ld), not the other side", answer);
        _exit(72);
    }
}

void meet_if_alive(void) {
    long token = 0x6d656574;
    if (channel_write(&token, sizeof token))
        channel_read(&token, sizeof token);
}

struct timespec now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time;
}

long elapsed_ms(const struct timespec *since) {
    struct timespec time = now();
    return (time.tv_sec - since->tv_sec) * 1000 + (time.tv_nsec - since->tv_nsec) / 1000000;
}

void await_readable(int fd, int count) {
    struct timespec start = now();
    int readable = 0;
    while (ioctl(fd, FIONREAD, &readable) == 0 && readable < count) {
        if (elapsed_ms(&start) > 5000) {
            say("! FIONREAD stays at %d, not %d", readable, count);
            return;
        }
        usleep(200);
    }
}

short await_bits(int fd, short bits) {
    struct pollfd item = {.fd = fd, .events = bits};
    int n;
    do
        n = poll(&item, 1, 5000);
    while (n < 0 && errno == EINTR);
    if (n != 1)
        say("! poll waited in vain (%d)", n);
    return item.revents;
}

/* `pid` is a process (its main thread) or a thread: in this state in several looks one after the other. */
static void await_state(pid_t pid, char state, const char *never) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    struct timespec start = now();
    for (int quiet = 0; quiet < 4;) {
        FILE *file = fopen(path, "r");
        if (!file)
            return;
        size_t length = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[length] = 0;
        const char *name = strrchr(text, ')');
        quiet = name && name[2] == state ? quiet + 1 : 0;
        if (elapsed_ms(&start) > 5000) {
            say("! process never %s", never);
            return;
        }
        usleep(1500);
    }
}

void await_asleep(pid_t pid) {
    await_state(pid, 'S', "slept");
}

void await_stopped(pid_t pid) {
    await_state(pid, 'T', "stopped");
}
