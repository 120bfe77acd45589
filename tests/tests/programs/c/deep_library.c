/* What of a program lies in a library that is loaded with RTLD_DEEPBIND. */
#define _GNU_SOURCE
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Functions that the linker binds when they are called first, or at once, and one whose address stands in data. */
static ssize_t (*const receive)(int, void *, size_t) = read;

int answered(int fd, int milliseconds) {
    struct pollfd item = {.fd = fd, .events = POLLIN};
    return poll(&item, 1, milliseconds);
}

int take(int fd, int round) {
    char byte;
    return (round % 2 ? receive(fd, &byte, 1) : recv(fd, &byte, 1, 0)) == 1 ? byte : -1;
}
