/* A program that uses every descriptor number it may have, and may have more if it wants to. Both ends of its connection are its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "pair.h"

static void round_trips(const int ends[2], int count) {
    char byte = 'x';
    for (int i = 0; i < count; i++)
        if (send(ends[i % 2], &byte, 1, 0) != 1 || recv(ends[1 - i % 2], &byte, 1, 0) != 1)
            exit(2);
}

/* What TCP has of a byte that was sent: asked past the C library. */
static int unread_by_tcp(const int ends[2]) {
    char byte = 'x';
    int unread = 0;
    long answer, request = FIONREAD, fd = ends[1];
    send(ends[0], &byte, 1, 0);
    usleep(2000);
    __asm__ volatile("syscall" : "=a"(answer) : "a"(SYS_ioctl), "D"(fd), "S"(request), "d"(&unread) : "rcx", "r11", "memory");
    recv(ends[1], &byte, 1, 0);
    return unread;
}

static long long size_of(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 ? (long long)status.st_size : -1;
}

int main(void) {
    int ends[2];
    connect_both(ends);
    /* Under a library it may take a moment until TCP has nothing any more. */
    int unread = 1;
    for (int i = 0; i < (getenv("LD_PRELOAD") ? 2000 : 1) && unread > 0; i++) {
        round_trips(ends, 200);
        unread = unread_by_tcp(ends);
    }
    fprintf(stderr, "unread by TCP: %d\n", unread);

    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    int last = -1, fd, count = 0;
    while ((fd = memfd_create("one", MFD_CLOEXEC)) >= 0)
        count++, last = fd;
    printf("limit %d, the last number %d, then %s\n", (int)limit.rlim_cur, last, strerror(errno));
    round_trips(ends, 200);
    for (fd = ends[1] + 1; fd <= last; fd++)
        if (size_of(fd) != 0)
            printf("%d: size %lld\n", fd, size_of(fd));
    for (fd = last / 2; fd <= last; fd++)
        close(fd);

    int file = memfd_create("file", MFD_CLOEXEC);
    int mine[1024], taken = 0;
    for (fd = last / 2 + 1; fd <= last && taken < 1024; fd++)
        if (dup2(file, fd) == fd)
            mine[taken++] = fd;
        else
            printf("dup2 to %d: %s\n", fd, strerror(errno));
    round_trips(ends, 200);
    printf("written into the file: %lld\n", size_of(file));
    close(ends[0]);
    close(ends[1]);
    int open = 0;
    for (int i = 0; i < taken; i++)
        open += fcntl(mine[i], F_GETFD) >= 0;
    printf("still open: %d of %d\n", open, taken);
    getrlimit(RLIMIT_NOFILE, &limit);
    printf("limit %d, %d more\n", (int)limit.rlim_cur, count);
    return 0;
}
