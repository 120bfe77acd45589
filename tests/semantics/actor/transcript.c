/* The transcript: one line per observation, written at once so that fork and kill lose nothing. */
#include "actor.h"

#include <stdarg.h>

void say(const char *format, ...) {
    int kept = errno;
    char line[1024];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length++] = '\n';
    for (int done = 0; done < length;) {
        ssize_t n = write(STDOUT_FILENO, line + done, length - done);
        if (n < 0 && errno != EINTR)
            _exit(70);
        done += n > 0 ? n : 0;
    }
    errno = kept;
}

static const char *errno_name(void) {
    const char *name = strerrorname_np(errno);
    return name ? name : "unknown error";
}

long traced(const char *call, long value) {
    if (value == -1)
        say("%s = -1 %s", call, errno_name());
    else
        say("%s = %ld", call, value);
    return value;
}

long traced_ok(const char *call, long value) {
    if (value >= 0)
        say("%s = ok", call);
    else
        say("%s = %ld %s", call, value, errno_name());
    return value;
}

static bool printable(const unsigned char *bytes, long count) {
    for (long i = 0; i < count; i++)
        if (bytes[i] < ' ' || bytes[i] > '~')
            return false;
    return true;
}

void say_bytes(const char *label, const void *bytes, long count) {
    if (count < 0)
        say("%s: %ld %s", label, count, errno_name());
    else if (count <= 64 && printable(bytes, count))
        say("%s: %ld \"%.*s\"", label, count, (int)count, (const char *)bytes);
    else
        say("%s: %ld digest %016llx", label, count, (unsigned long long)digest(bytes, count));
}

struct bit {
    uint32_t mask;
    const char *name;
};

static void say_bits(const char *label, uint32_t bits, const struct bit *names, size_t count) {
    char text[256] = "";
    for (size_t i = 0; i < count; i++) {
        if (!(bits & names[i].mask))
            continue;
        if (*text)
            strcat(text, "|");
        strcat(text, names[i].name);
        bits &= ~names[i].mask;
    }
    if (bits)
        say("%s: %s + unknown %#x", label, text, bits);
    else
        say("%s: %s", label, *text ? text : "none");
}

void say_poll(const char *label, short bits) {
    static const struct bit names[] = {
        {POLLIN, "IN"},     {POLLPRI, "PRI"},       {POLLOUT, "OUT"},       {POLLERR, "ERR"},
        {POLLHUP, "HUP"},   {POLLNVAL, "NVAL"},     {POLLRDNORM, "RDNORM"}, {POLLRDBAND, "RDBAND"},
        {POLLWRNORM, "WRNORM"}, {POLLWRBAND, "WRBAND"}, {POLLRDHUP, "RDHUP"},
    };
    say_bits(label, (unsigned short)bits, names, COUNT(names));
}

void say_epoll(const char *label, uint32_t bits) {
    static const struct bit names[] = {
        {EPOLLIN, "IN"},   {EPOLLPRI, "PRI"},       {EPOLLOUT, "OUT"},       {EPOLLERR, "ERR"},
        {EPOLLHUP, "HUP"}, {EPOLLRDNORM, "RDNORM"}, {EPOLLRDBAND, "RDBAND"}, {EPOLLWRNORM, "WRNORM"},
        {EPOLLWRBAND, "WRBAND"}, {EPOLLMSG, "MSG"}, {EPOLLRDHUP, "RDHUP"},
    };
    say_bits(label, bits, names, COUNT(names));
}

void say_status(const char *label, int status) {
    if (WIFEXITED(status))
        say("%s: exit %d", label, WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        say("%s: signal %s", label, sigabbrev_np(WTERMSIG(status)));
    else
        say("%s: status %#x", label, status);
}
