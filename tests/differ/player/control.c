/* The control channel: lines in, one answer out for each. */
#include "player.h"

#include <stdarg.h>

struct player me;
char *arguments;

static char text[4096];
static size_t length;

void enter(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/in.%s", me.directory, me.name);
    int inbox = socket(AF_UNIX, SOCK_DGRAM, 0);
    unlink(address.sun_path);
    if (bind(inbox, (struct sockaddr *)&address, sizeof address) != 0)
        exit(3);
    dup2(inbox, INBOX);
    close(inbox);

    snprintf(address.sun_path, sizeof address.sun_path, "%s/control", me.directory);
    int control = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(control, (struct sockaddr *)&address, sizeof address) != 0)
        exit(4);
    dup2(control, CONTROL);
    close(control);
    length = 0;
    answer("%s %d", me.name, getpid());
    send_answer();
}

bool next_step(char *line, size_t size) {
    size_t count = 0;
    while (count + 1 < size) {
        ssize_t n = recv(CONTROL, line + count, size - 1 - count, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        count += n;
        if (line[count - 1] == '\n') {
            line[count - 1] = 0;
            return true;
        }
    }
    return false;
}

static void write_all(const char *bytes, size_t count) {
    while (count) {
        ssize_t n = send(CONTROL, bytes, count, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            _exit(5);
        if (n > 0) {
            bytes += n;
            count -= n;
        }
    }
}

void started(void) {
    write_all(".\n", 2);
}

void answer(const char *format, ...) {
    va_list values;
    va_start(values, format);
    if (length && length < sizeof text - 2)
        text[length++] = ' ';
    int n = vsnprintf(text + length, sizeof text - 1 - length, format, values);
    va_end(values);
    length = length + n < sizeof text - 2 ? length + n : sizeof text - 2;
}

void answer_result(long value) {
    if (value == -1)
        answer("-1 %s", strerrorname_np(errno));
    else
        answer("%ld", value);
}

void answer_bytes(const unsigned char *bytes, long count) {
    if (count <= 8) {
        char hex[17] = "";
        for (long i = 0; i < count; i++)
            sprintf(hex + 2 * i, "%02x", bytes[i]);
        answer("bytes:%s", hex);
        return;
    }
    uint64_t digest = 14695981039346656037u;
    for (long i = 0; i < count; i++)
        digest = (digest ^ bytes[i]) * 1099511628211u;
    answer("digest:%016llx", (unsigned long long)digest);
}

void send_answer(void) {
    text[length++] = '\n';
    write_all(text, length);
    length = 0;
}

const char *word(void) {
    const char *found = strsep(&arguments, " ");
    return found ? found : "";
}

long number(void) {
    return strtol(word(), NULL, 10);
}

int *place(void) {
    long n = number();
    if (n < 0 || n >= PLACES)
        _exit(6);
    return &me.place[n];
}

int here(void) {
    return *place();
}
