/* Counts the system calls of a connection's hot paths, both ends in one process, which its parent traces.
 *
 *   hot_path ROUNDS    lines of a path's name and the system calls that so many rounds of it made, once the connection is lifted, or
 *                      is certainly not going to be
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int near, far, listener, set, rounds;
static struct sockaddr_in address = {.sin_family = AF_INET};
static char bytes[64];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void want(int right, const char *what) {
    if (!right)
        die(what);
}

static void send_some(void) {
    want(send(near, bytes, sizeof bytes, 0) == sizeof bytes, "send");
}

static void take_some(void) {
    want(recv(far, bytes, sizeof bytes, 0) == sizeof bytes, "recv");
}

static void transfer(void) {
    send_some();
    take_some();
}

static void transfer_by_read_and_write(void) {
    struct iovec parts[2] = {{bytes, 32}, {bytes + 32, 32}};
    want(writev(near, parts, 2) == 64, "writev");
    want(read(far, bytes, 64) == 64, "read");
}

static void find_nothing(void) {
    want(recv(far, bytes, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "recv of nothing");
}

static void wait_by_epoll(void) {
    struct epoll_event event;
    send_some();
    want(epoll_wait(set, &event, 1, -1) == 1, "epoll_wait");
    take_some();
}

/* What redis-benchmark does at every request. */
static void register_anew(void) {
    struct epoll_event event = {.events = EPOLLIN};
    want(epoll_ctl(set, EPOLL_CTL_DEL, far, &event) == 0, "EPOLL_CTL_DEL");
    want(epoll_ctl(set, EPOLL_CTL_ADD, far, &event) == 0, "EPOLL_CTL_ADD");
    event.events = EPOLLIN | EPOLLOUT;
    want(epoll_ctl(set, EPOLL_CTL_MOD, far, &event) == 0, "EPOLL_CTL_MOD");
    want(epoll_wait(set, &event, 1, -1) == 1, "epoll_wait for room");
    event.events = EPOLLIN;
    want(epoll_ctl(set, EPOLL_CTL_MOD, far, &event) == 0, "EPOLL_CTL_MOD");
    wait_by_epoll();
}

static void wait_by_poll(void) {
    struct pollfd one = {.fd = far, .events = POLLIN};
    send_some();
    want(poll(&one, 1, -1) == 1, "poll");
    take_some();
}

static void wait_by_select(void) {
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(far, &readable);
    send_some();
    want(select(far + 1, &readable, NULL, NULL, NULL) == 1, "select");
    take_some();
}

/* Seven system calls. */
static void connect_shortly(void) {
    int from = socket(AF_INET, SOCK_STREAM, 0);
    want(connect(from, (struct sockaddr *)&address, sizeof address) == 0, "connect");
    int to = accept(listener, NULL, NULL);
    want(send(from, bytes, sizeof bytes, 0) == sizeof bytes, "send");
    want(recv(to, bytes, sizeof bytes, 0) == sizeof bytes, "recv");
    want(close(from) == 0 && close(to) == 0, "close");
}

static const struct {
    const char *name;
    void (*step)(void);
} paths[] = {
    {"send and recv", transfer},
    {"writev and read", transfer_by_read_and_write},
    {"recv of nothing", find_nothing},
    {"epoll_wait", wait_by_epoll},
    {"epoll_ctl", register_anew},
    {"poll", wait_by_poll},
    {"select", wait_by_select},
    {"a short connection", connect_shortly},
};
enum { PATHS = sizeof paths / sizeof *paths };

static void connect_both(void) {
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    want(bind(listener, (struct sockaddr *)&address, size) == 0, "bind");
    want(listen(listener, 1) == 0, "listen");
    want(getsockname(listener, (struct sockaddr *)&address, &size) == 0, "getsockname");
    near = socket(AF_INET, SOCK_STREAM, 0);
    want(connect(near, (struct sockaddr *)&address, size) == 0, "connect");
    want((far = accept(listener, NULL, NULL)) >= 0, "accept");
}

/* Between two paths there is a call that nothing else makes. */
static void say_that_it_begins(void) {
    syscall(SYS_personality, 0xffffffff);
}

static int play(void) {
    connect_both();
    want((set = epoll_create1(0)) >= 0, "epoll_create1");
    struct epoll_event event = {.events = EPOLLIN};
    want(epoll_ctl(set, EPOLL_CTL_ADD, far, &event) == 0, "epoll_ctl");
    /* Until it is lifted, and far beyond. */
    for (int i = 0; i < 400; i++) {
        struct timespec moment = {.tv_nsec = 1000000};
        wait_by_epoll();
        want(send(far, bytes, 1, 0) == 1 && recv(near, bytes, 1, 0) == 1, "the way back");
        nanosleep(&moment, NULL);
    }
    want(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0, "ptrace");
    raise(SIGSTOP);
    for (int path = 0; path < PATHS; path++) {
        /* What is asked in vain at first is left with the kernel after a while. */
        for (int round = 0; round < 100; round++)
            paths[path].step();
        say_that_it_begins();
        for (int round = 0; round < rounds; round++)
            paths[path].step();
        say_that_it_begins();
    }
    return 0;
}

/* Returns whether the child has made a system call, or is about to return from one. */
static int runs_to_its_next(pid_t child) {
    int status;
    want(ptrace(PTRACE_SYSCALL, child, NULL, NULL) == 0, "PTRACE_SYSCALL");
    want(waitpid(child, &status, 0) == child, "waitpid");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (!WIFSTOPPED(status)) {
        fprintf(stderr, "the child ended by %#x\n", status);
        exit(1);
    }
    return 1;
}

static int number_of(pid_t child) {
    struct __ptrace_syscall_info info;
    want(ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, &info) > 0, "PTRACE_GET_SYSCALL_INFO");
    return info.op == PTRACE_SYSCALL_INFO_ENTRY ? (int)info.entry.nr : -1;
}

int main(int count, char **arguments) {
    rounds = count > 1 ? atoi(arguments[1]) : 1000;
    pid_t child = fork();
    if (child == 0)
        return play();
    int status;
    want(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status), "waitpid");
    want(ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD) == 0, "PTRACE_SETOPTIONS");
    int marks = 0, calls = 0;
    while (runs_to_its_next(child)) {
        int number = number_of(child);
        if (number == SYS_personality) {
            if (marks % 2)
                printf("%s: %d\n", paths[marks / 2].name, calls);
            marks++;
            calls = 0;
        } else if (number >= 0) {
            calls++;
        }
    }
    return marks == 2 * PATHS ? 0 : 1;
}
