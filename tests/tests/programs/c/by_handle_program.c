/* A program that takes functions by the C library's handle, as foreign-function interfaces do, and calls others as usual. Both ends of a connection are its own. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void connect_both(int ends[2]) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&address, &size))
        exit(1);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0], (struct sockaddr *)&address, size))
        exit(1);
    ends[1] = accept(listener, NULL, NULL);
    close(listener);
}

int main(void) {
    void *handle = dlopen("libc.so.6", RTLD_NOW);
    ssize_t (*by_handle)(int, void *, size_t, int);
    *(void **)&by_handle = dlsym(handle, "recv");
    if (dlerror() || dlsym(handle, "no_such_function") || !dlerror())
        return 1;
    *(void **)&by_handle = dlsym(handle, "recv");
    int ends[2], passed = 0;
    connect_both(ends);
    for (int round = 0; round < 300; round++) {
        char byte = (char)round, got = 0;
        if (send(ends[0], &byte, 1, 0) != 1 || by_handle(ends[1], &got, 1, 0) != 1 || got != byte)
            return 2;
        if (send(ends[1], &byte, 1, 0) != 1 || recv(ends[0], &got, 1, 0) != 1 || got != byte)
            return 3;
        passed++;
    }
    printf("%d round trips, dlerror says %s\n", passed, dlerror() ? "something" : "nothing");
    return 0;
}
