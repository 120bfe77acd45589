/* A program that takes functions by the C library's handle, as foreign-function interfaces do, and calls others as usual. Both ends of a connection are its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pair.h"

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
