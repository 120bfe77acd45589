/* A library between the program and the C library, which finds what it stands before by the C library's handle. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/socket.h>

ssize_t send(int fd, const void *from, size_t count, int flags) {
    static ssize_t (*behind)(int, const void *, size_t, int);
    if (!behind)
        *(void **)&behind = dlsym(dlopen("libc.so.6", RTLD_NOW), "send");
    return behind(fd, from, count, flags);
}
