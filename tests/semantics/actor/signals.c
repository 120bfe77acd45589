/* Signals that arrive while a call waits. */
#include "actor.h"

#include <setjmp.h>
#include <sys/time.h>

static volatile sig_atomic_t handled;
static sigjmp_buf way_out;
static int handler_fd;

static void count_signal(int number) {
    (void)number;
    handled++;
}

static void jump_out(int number) {
    (void)number;
    siglongjmp(way_out, 1);
}

static void send_from_handler(int number) {
    (void)number;
    handled++;
    if (write(handler_fd, "from the handler", 16) != 16)
        handled += 100;
}

static void on_signal(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(number, &action, NULL);
}

/* The client signals the server when it sleeps, `times` times. */
static void signal_sleeper(int times, int number) {
    for (int i = 0; i < times; i++) {
        pid_t pid = told();
        await_asleep(pid);
        kill(pid, number);
    }
}

void scenario_signal_interrupts(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        signal_sleeper(7, SIGUSR1);
        put_text(fd, "fine");
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, 0);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, 0));
    tell(getpid());
    T(read(fd, buffer, sizeof buffer));
    tell(getpid());
    T(recvmsg(fd, &message, MSG_PEEK));
    tell(getpid());
    T(poll(&item, 1, -1));
    tell(getpid());
    T(select(fd + 1, &reading, NULL, NULL, NULL));
    tell(getpid());
    T(epoll_wait(set, &event, 1, -1));
    tell(getpid());
    T(accept(me.listener, NULL, NULL));
    say("handled %d", (int)handled);
    expect_text(fd, "fine");
    meet();
}

void scenario_signal_restarts(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        signal_sleeper(1, SIGUSR1);
        signal_sleeper(1, SIGUSR1);
        await_asleep(me.peer);
        put_text(fd, "bytes");
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, SA_RESTART);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    tell(getpid());
    T(poll(&item, 1, -1));
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    meet();
}

/* With a receive timeout a call is never restarted. */
void scenario_signal_with_timeout(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        signal_sleeper(1, SIGUSR1);
        meet();
        return;
    }
    struct timeval span = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &span, sizeof span);
    on_signal(SIGUSR1, count_signal, SA_RESTART);
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, 0));
    say("handled %d", (int)handled);
    meet();
}

/* A part is there already when the signal comes: MSG_WAITALL returns it. */
void scenario_signal_in_waitall(void) {
    char buffer[64];
    int fd = connection();
    if (me.client) {
        put_text(fd, "a part");
        signal_sleeper(1, SIGUSR1);
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, 0);
    await_readable(fd, 6);
    tell(getpid());
    say_bytes("waitall", buffer, T(recv(fd, buffer, sizeof buffer, MSG_WAITALL)));
    say("handled %d", (int)handled);
    meet();
}

void scenario_signal_in_send(void) {
    static char bytes[16000000];
    int fd = connection();
    if (me.client) {
        signal_sleeper(1, SIGUSR1);
        meet();
        size_t left = told();
        while (left > 0) {
            ssize_t n = read(fd, bytes, left < sizeof bytes ? left : sizeof bytes);
            if (n <= 0)
                break;
            left -= n;
        }
        say("left %zu", left);
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, SA_RESTART);
    tell(getpid());
    ssize_t part = T_OK(send(fd, bytes, sizeof bytes, 0));
    say("a part %d, handled %d", part > 0 && part < (ssize_t)sizeof bytes, (int)handled);
    meet();
    tell(part);
    meet();
}

/* iperf3 leaves recv by longjmp out of its SIGALRM handler; no lock may be left behind. */
void scenario_longjmp_out_of_recv(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        signal_sleeper(4, SIGUSR1);
        meet();
        put_text(fd, "to the survivor");
        expect_text(fd, "thanks");
        warm(fd);
        meet();
        return;
    }
    on_signal(SIGUSR1, jump_out, SA_RESTART);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    for (volatile int i = 0; i < 4; i++) {
        if (sigsetjmp(way_out, 1) == 0) {
            tell(getpid());
            if (i == 0)
                recv(fd, buffer, sizeof buffer, 0);
            if (i == 1)
                read(fd, buffer, sizeof buffer);
            if (i == 2)
                poll(&item, 1, -1);
            if (i == 3)
                epoll_wait(set, &event, 1, -1);
            say("! the call returned");
        } else {
            say("jumped out %d", i);
        }
    }
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    meet();
    expect_text(fd, "to the survivor");
    put_text(fd, "thanks");
    warm(fd);
    meet();
}

void scenario_longjmp_out_of_send(void) {
    int fd = connection();
    if (me.client) {
        signal_sleeper(1, SIGUSR1);
        meet();
        static char bytes[65536];
        ssize_t n, last = 0;
        while ((n = read(fd, bytes, sizeof bytes)) > 0)
            last = bytes[n - 1];
        say("last byte %c", (char)last);
        meet();
        return;
    }
    on_signal(SIGUSR1, jump_out, 0);
    static char bytes[65536];
    memset(bytes, 'x', sizeof bytes);
    if (sigsetjmp(way_out, 1) == 0) {
        tell(getpid());
        for (;;)
            send(fd, bytes, sizeof bytes, 0);
    }
    say("jumped out");
    meet();
    put_text(fd, "E");
    shutdown(fd, SHUT_WR);
    meet();
}

/* The handler writes to the connection on which the interrupted call waits. */
void scenario_send_in_handler(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        signal_sleeper(1, SIGUSR1);
        expect_text(fd, "from the handler");
        put_text(fd, "seen");
        meet();
        return;
    }
    handler_fd = fd;
    on_signal(SIGUSR1, send_from_handler, SA_RESTART);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    meet();
}

/* A timer at 1 ms through a long exchange: nothing is lost, doubled or torn. */
void scenario_signal_storm(void) {
    int fd = connection();
    on_signal(SIGALRM, count_signal, SA_RESTART);
    struct itimerval every = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    for (int i = 0; i < 40; i++) {
        if (me.client) {
            put_pattern(fd, i * 100000, 100000, 1);
            get_pattern(fd, i * 50000, 50000, 2);
        } else {
            get_pattern(fd, i * 100000, 100000, 1);
            put_pattern(fd, i * 50000, 50000, 2);
        }
    }
    setitimer(ITIMER_REAL, &never, NULL);
    say("all exchanged");
    meet();
}

/* Signal-driven input: the kernel sends SIGIO when bytes arrive. */
void scenario_signal_driven_input(void) {
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "bytes");
        meet();
        return;
    }
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGIO);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    T(fcntl(fd, F_SETOWN, getpid()));
    T(fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
    say("flags %#x", fcntl(fd, F_GETFL));
    meet();
    siginfo_t info;
    struct timespec wait = {3, 0};
    say("signal %s", sigtimedwait(&wanted, &info, &wait) == SIGIO ? "SIGIO" : "none");
    await_readable(fd, 5);
    expect_text(fd, "bytes");
    meet();
}
