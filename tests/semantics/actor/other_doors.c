/* The same calls through other doors: syscall(), addresses found at run time, bare instructions. */
#include "actor.h"

#include <aio.h>
#include <dlfcn.h>
#include <linux/aio_abi.h>
#include <sys/select.h>
#include <sys/syscall.h>

void scenario_syscall_function(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        T(syscall(SYS_write, fd, "one ", 4));
        T(syscall(SYS_sendto, fd, "two ", 4, 0, NULL, 0));
        struct iovec part = {"three", 5};
        T(syscall(SYS_writev, fd, &part, 1));
        meet();
        T(syscall(SYS_shutdown, fd, SHUT_WR));
        T(syscall(SYS_read, fd, buffer, sizeof buffer));
        T(syscall(SYS_close, fd));
        T(syscall(SYS_read, fd, buffer, sizeof buffer));
        meet();
        return;
    }
    meet();
    await_readable(fd, 13);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    T(syscall(SYS_poll, &item, 1, 0));
    int readable = 0;
    T(syscall(SYS_ioctl, fd, FIONREAD, &readable));
    say("readable %d", readable);
    int set = syscall(SYS_epoll_create1, 0);
    struct epoll_event event = {.events = EPOLLIN};
    T(syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &event));
    T(syscall(SYS_epoll_wait, set, &event, 1, 0));
    T(syscall(SYS_epoll_pwait, set, &event, 1, 0, NULL, 8));
    say_bytes("read", buffer, T(syscall(SYS_read, fd, buffer, 4)));
    say_bytes("recvfrom", buffer, T(syscall(SYS_recvfrom, fd, buffer, 4, 0, NULL, NULL)));
    int twin = syscall(SYS_dup, fd);
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    say_bytes("recvmsg", buffer, T(syscall(SYS_recvmsg, twin, &message, 0)));
    T(syscall(SYS_recvfrom, fd, buffer, 4, MSG_DONTWAIT, NULL, NULL));
    expect_end(twin);
    close(fd);
    close(twin);
    meet();
}

/* Waiting, closing many and moving bytes between descriptors, by their numbers. */
void scenario_syscall_function_for_many(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "AA");
        int ends[2];
        if (pipe(ends) != 0)
            return;
        put_text(ends[1], "BB");
        T(syscall(SYS_splice, ends[0], NULL, fd, NULL, 2, 0));
        put_text(fd, "CC");
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timespec wait = {5, 0};
    T(syscall(SYS_ppoll, &item, 1, &wait, NULL, 8));
    say_poll("ppoll", item.revents);
    say("left %d", wait.tv_sec > 0);
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    T(syscall(SYS_pselect6, fd + 1, &reading, NULL, NULL, &wait, NULL));
    say("selected %d, left %d", FD_ISSET(fd, &reading) != 0, wait.tv_sec > 0);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 1234};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    event.data.u64 = 0;
    T(syscall(SYS_epoll_pwait2, set, &event, 1, &wait, NULL, 8));
    say("data %lu", (unsigned long)event.data.u64);
    expect_text(fd, "AABBCC");
    /* The library's own descriptors, if there are any, are not the program's to close. */
    int high = fcntl(fd, F_DUPFD, 100);
    T(syscall(SYS_close_range, 32, ~0u, 0));
    T(poll(&(struct pollfd){high, POLLIN, 0}, 1, 0));
    struct timespec start = now();
    clock_t worked = clock();
    wait = (struct timespec){0, 100000000};
    T(ppoll(&(struct pollfd){fd, POLLIN, 0}, 1, &wait, NULL));
    say("waited %d, asleep %d", elapsed_ms(&start) >= 100, clock() - worked < CLOCKS_PER_SEC / 20);
    meet();
}

static long awaited(struct aiocb *block) {
    const struct aiocb *list[] = {block};
    while (aio_error(block) == EINPROGRESS)
        aio_suspend(list, 1, NULL);
    return aio_return(block);
}

/* POSIX AIO, which a thread of the C library's does. */
void scenario_asynchronous_io(void) {
    char a[16] = "", b[16] = "";
    int fd = connection();
    if (me.client) {
        put_text(fd, "before");
        meet();
        meet();
        put_text(fd, "after");
        expect_text(fd, "write");
        expect_text(fd, "list");
        put_text(fd, "end");
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    struct aiocb in = {.aio_fildes = fd, .aio_buf = a, .aio_nbytes = 6};
    T(aio_read(&in));
    say_bytes("before", a, T(awaited(&in)));
    in.aio_nbytes = 5;
    T(aio_read64((struct aiocb64 *)&in));
    meet();
    say_bytes("after", a, T(awaited(&in)));
    struct aiocb out = {.aio_fildes = fd, .aio_buf = "write", .aio_nbytes = 5};
    T(aio_write(&out));
    T(awaited(&out));
    struct aiocb both[] = {
        {.aio_fildes = fd, .aio_buf = "list", .aio_nbytes = 4, .aio_lio_opcode = LIO_WRITE},
        {.aio_fildes = fd, .aio_buf = b, .aio_nbytes = 3, .aio_lio_opcode = LIO_READ},
    };
    struct aiocb *list[] = {&both[0], NULL, &both[1]};
    T(lio_listio(LIO_WAIT, list, 3, NULL));
    say_bytes("end", b, awaited(&both[1]));
    meet();
}

/* The same without anything before it that lowers. */
void scenario_asynchronous_io_by_list(void) {
    char buffer[16] = "";
    int fd = connection();
    if (me.client) {
        put_text(fd, "first");
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 5);
    struct aiocb in = {.aio_fildes = fd, .aio_buf = buffer, .aio_nbytes = 5, .aio_lio_opcode = LIO_READ};
    struct aiocb *list[] = {&in};
    T(lio_listio(LIO_WAIT, list, 1, NULL));
    say_bytes("first", buffer, awaited(&in));
    meet();
}

typedef ssize_t transfer(int, void *, size_t, int);

static void echo_with(transfer *own_send, transfer *own_recv) {
    char buffer[32];
    int fd = connection();
    if (!own_send || !own_recv) {
        say("! symbol not found");
        return;
    }
    if (me.client) {
        for (int i = 0; i < 200; i++) {
            own_send(fd, &i, sizeof i, 0);
            int back = -1;
            own_recv(fd, &back, sizeof back, MSG_WAITALL);
            if (back != i)
                say("! sent %d, received %d", i, back);
        }
        put_text(fd, "mixed");
        shutdown(fd, SHUT_WR);
        T(own_recv(fd, buffer, sizeof buffer, 0));
        meet();
        return;
    }
    for (int i = 0; i < 200; i++) {
        int value;
        own_recv(fd, &value, sizeof value, MSG_WAITALL);
        own_send(fd, &value, sizeof value, 0);
    }
    say_bytes("mixed", buffer, T(own_recv(fd, buffer, 5, MSG_WAITALL)));
    expect_end(fd);
    close(fd);
    meet();
}

void scenario_dlsym_default(void) {
    echo_with((transfer *)dlsym(RTLD_DEFAULT, "send"), (transfer *)dlsym(RTLD_DEFAULT, "recv"));
}

void scenario_dlsym_next(void) {
    echo_with((transfer *)dlsym(RTLD_NEXT, "send"), (transfer *)dlsym(RTLD_NEXT, "recv"));
}

/* As ctypes and foreign-function interfaces do: straight from libc's handle. */
void scenario_dlsym_libc_handle(void) {
    void *libc = dlopen("libc.so.6", RTLD_NOW);
    echo_with((transfer *)dlsym(libc, "send"), (transfer *)dlsym(libc, "recv"));
}

void scenario_dlvsym(void) {
    echo_with((transfer *)dlvsym(RTLD_DEFAULT, "send", "GLIBC_2.2.5"),
        (transfer *)dlvsym(RTLD_DEFAULT, "recv", "GLIBC_2.2.5"));
}

#ifdef __x86_64__
static long instruction(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}
#else
static long instruction(long number, long a, long b, long c) {
    long result = syscall(number, a, b, c);
    return result < 0 ? -errno : result;
}
#endif

/* System call instructions in the program's own code, as Go programs and assembler have them. */
void scenario_bare_instructions(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        T(instruction(SYS_write, fd, (long)"first ", 6));
        put_text(fd, "second");
        say_bytes("read", buffer, T(instruction(SYS_read, fd, (long)buffer, 5)));
        expect_text(fd, "after");
        meet();
        return;
    }
    await_readable(fd, 12);
    say_bytes("read", buffer, T(instruction(SYS_read, fd, (long)buffer, 6)));
    expect_text(fd, "second");
    put_text(fd, "reply");
    T(instruction(SYS_write, fd, (long)"after", 5));
    meet();
}

int __send(int, const void *, size_t, int);
ssize_t __read(int, void *, size_t);
ssize_t __write(int, const void *, size_t);
int __poll(struct pollfd *, nfds_t, int);
int __select(int, fd_set *, fd_set *, fd_set *, struct timeval *);
int __connect(int, const struct sockaddr *, socklen_t);
int __close(int);
int __fcntl(int, int, ...);
int __dup2(int, int);
pid_t __fork(void);

/* Names that the C library has for its own use, and exports. */
void scenario_second_names(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        T(send(fd, "one ", 4, 0));
        T(__send(fd, "two ", 4, 0));
        T(__write(fd, "three", 5));
        meet();
        T(__fcntl(fd, F_SETFL, O_NONBLOCK));
        T(recv(fd, buffer, 1, 0));
        meet();
        struct sockaddr_in address = server_address();
        int second = socket(AF_INET, SOCK_STREAM, 0);
        T(__connect(second, (struct sockaddr *)&address, sizeof address));
        warm(second);
        T(__close(fd));
        expect_text(second, "child");
        close(second);
        meet();
        return;
    }
    meet();
    await_readable(fd, 13);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    T(__poll(&item, 1, 1000));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    struct timeval second_long = {.tv_sec = 1};
    T(__select(fd + 1, &reading, NULL, NULL, &second_long));
    say_bytes("read", buffer, T(__read(fd, buffer, 8)));
    T(__dup2(fd, 50));
    say_bytes("read", buffer, T(__read(50, buffer, 8)));
    close(50);
    meet();
    int second = accept(me.listener, NULL, NULL);
    warm(second);
    expect_end(fd);
    pid_t child = __fork();
    if (child == 0) {
        put_text(second, "child");
        _exit(0);
    }
    waitpid(child, NULL, 0);
    close(second);
    meet();
}

/* The constructor of a library waits for a thread that makes a call for the first time, under the dynamic linker's lock. */
void scenario_call_beside_dlopen(void) {
    int fd = connection();
    setenv("WILL_WAITS", "1", 1);
    T(dlopen(me.will, RTLD_NOW) != NULL);
    meet();
    close(fd);
}

/* The kernel's asynchronous I/O: of what is there, of what comes, and of whether something has come. */
static void submit_and_await(aio_context_t context, struct iocb *block, const char *what) {
    struct io_event event = {.res = -1};
    struct iocb *list[] = {block};
    T(syscall(SYS_io_submit, context, 1L, list));
    meet();
    T(syscall(SYS_io_getevents, context, 1L, 1L, &event, NULL));
    say("%s %lld", what, (long long)event.res);
}

void scenario_submitted_io(void) {
    char bytes[16] = "";
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "told");
        meet();
        meet();
        expect_text(fd, "written");
        warm(fd);
        return;
    }
    aio_context_t context = 0;
    T(syscall(SYS_io_setup, 8L, &context));
    struct iocb wait = {.aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN};
    submit_and_await(context, &wait, "poll");
    struct iocb in = {.aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)bytes, .aio_nbytes = 4};
    submit_and_await(context, &in, "read");
    say_bytes("read", bytes, 4);
    struct iocb out = {
        .aio_fildes = fd, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_buf = (uintptr_t)"written", .aio_nbytes = 7};
    submit_and_await(context, &out, "write");
    warm(fd);
}

/* A second number of an epoll object, made by the bare system call. */
void scenario_epoll_dup_by_system_call(void) {
    int fd = connection(), set = epoll_create1(0);
    if (me.client) {
        for (int i = 0; i < 2; i++) {
            put_text(fd, "x");
            meet();
        }
        warm(fd);
        return;
    }
    struct epoll_event in = {.events = EPOLLIN, .data.u32 = 7}, found;
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &in);
    for (int i = 0; i < 2; i++) {
        int other = i ? syscall(SYS_fcntl, set, F_DUPFD, 0) : syscall(SYS_dup, set);
        say("events %d", epoll_wait(other, &found, 1, -1));
        expect_text(fd, "x");
        say("events %d", epoll_wait(other, &found, 1, 0));
        close(other);
        meet();
    }
    warm(fd);
}
