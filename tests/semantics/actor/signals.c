/* Signals that arrive while a call waits. */
#include "actor.h"

#include <setjmp.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>

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

static void count_and_tell(int number) {
    (void)number;
    handled++;
    tell(getpid());
}

/* A handler with SA_RESTART and one without: each has its effect. */
void scenario_signals_of_both_kinds(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        for (int round = 0; round < 3; round++) {
            signal_sleeper(2, SIGUSR2);
            await_asleep(told());
            kill(me.peer, SIGUSR1);
        }
        signal_sleeper(1, SIGALRM);
        put_text(fd, "fine");
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, 0);
    on_signal(SIGUSR2, count_and_tell, SA_RESTART);
    on_signal(SIGALRM, count_signal, SA_RESTART | SA_RESETHAND);
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, 0));
    tell(getpid());
    T(read(fd, buffer, sizeof buffer));
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, MSG_WAITALL));
    say("handled %d", (int)handled);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    meet();
}

/* Tells where it sleeps, until SIGUSR2 comes. */
static void suspend(int number) {
    sigset_t others;
    (void)number;
    handled++;
    tell(getpid());
    sigfillset(&others);
    sigdelset(&others, SIGUSR2);
    sigsuspend(&others);
}

/* In the handler that has interrupted the call another runs, as where garbage collectors stop the world: that has no say. */
void scenario_signal_in_handler(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        for (int round = 0; round < 2; round++) {
            signal_sleeper(1, SIGUSR1);
            signal_sleeper(1, SIGUSR2);
        }
        await_asleep(told());
        put_text(fd, "bytes");
        meet();
        return;
    }
    on_signal(SIGUSR1, suspend, 0);
    on_signal(SIGUSR2, count_signal, SA_RESTART);
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, 0));
    on_signal(SIGUSR1, suspend, SA_RESTART);
    on_signal(SIGUSR2, count_and_tell, 0);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    meet();
}

static void raise_second(int number) {
    (void)number;
    handled++;
    raise(SIGUSR2);
}

/* Of signals that come together the kernel takes the lowest first; that one says whether the call goes on, and its handler runs last. */
void scenario_signals_at_once(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        for (int round = 0; round < 3; round++) {
            pid_t pid = told();
            await_asleep(pid);
            kill(pid, SIGSTOP);
            await_stopped(pid);
            kill(pid, SIGUSR1);
            if (round < 2)
                kill(pid, SIGUSR2);
            kill(pid, SIGCONT);
            if (round > 0) {
                await_asleep(told());
                put_text(fd, "bytes");
            }
        }
        meet();
        return;
    }
    on_signal(SIGUSR1, count_signal, 0);
    on_signal(SIGUSR2, count_signal, SA_RESTART);
    tell(getpid());
    T(recv(fd, buffer, sizeof buffer, 0));
    say("handled %d", (int)handled);
    on_signal(SIGUSR1, count_signal, SA_RESTART);
    on_signal(SIGUSR2, count_and_tell, 0);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    /* One that the first keeps out comes in before the call goes on. */
    struct sigaction action = {.sa_handler = raise_second, .sa_flags = SA_RESTART};
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    tell(getpid());
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say("handled %d", (int)handled);
    meet();
}

#if defined __x86_64__
/* The processor's trap flag: a SIGTRAP after each instruction. The stack below the pointer may be in use. */
static inline __attribute__((always_inline)) void trap_each_step(void) {
    asm volatile("sub $128, %%rsp; pushf; orq $0x100, (%%rsp); popf; add $128, %%rsp" ::: "memory", "cc");
}
static inline __attribute__((always_inline)) void trap_no_more(void) {
    asm volatile("sub $128, %%rsp; pushf; andq $~0x100, (%%rsp); popf; add $128, %%rsp" ::: "memory", "cc");
}
#else
static void trap_each_step(void) {}
static void trap_no_more(void) {}
#endif

/* The interrupted code goes on without steps. */
static void step_no_more(ucontext_t *context) {
#if defined __x86_64__
    context->uc_mcontext.gregs[REG_EFL] &= ~0x100;
#else
    (void)context;
#endif
}

static volatile sig_atomic_t steps, step_of_signal, in_handler;
static char handler_got;

enum { AT_ONCE = 10 };
/* How many are raised at once, of the real-time ones; 0: SIGUSR1. */
static int signals_at_step;
/* With nothing left of RLIMIT_SIGPENDING. */
static bool without_room;

static void limit_queued_signals(bool no_room) {
    struct rlimit limit;
    getrlimit(RLIMIT_SIGPENDING, &limit);
    limit.rlim_cur = no_room ? 0 : limit.rlim_max;
    setrlimit(RLIMIT_SIGPENDING, &limit);
}

static void count_step(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)info;
    if (++steps != step_of_signal)
        return;
    step_no_more(context);
    for (int i = 0; i < signals_at_step; i++)
        raise(SIGRTMIN + i);
    if (signals_at_step == 0)
        raise(SIGUSR1);
    if (without_room)
        limit_queued_signals(true);
}

static void at_each_step(void) {
    struct sigaction action = {.sa_sigaction = count_step, .sa_flags = SA_SIGINFO};
    sigfillset(&action.sa_mask); /* what is raised comes in when this handler is over */
    sigaction(SIGTRAP, &action, NULL);
}

static void send_one_in_the_midst(int number) {
    (void)number;
    in_handler = send(handler_fd, "h", 1, MSG_DONTWAIT) == 1 ? 1 : 100;
}

static void receive_one_in_the_midst(int number) {
    (void)number;
    in_handler = recv(handler_fd, &handler_got, 1, MSG_DONTWAIT) == 1 ? 1 : 100;
}

/* A handler that sends on the connection on which the program is sending comes in after the first, the second, the third
 * instruction of that call, and so on to its last: the peer gets both whole, one after the other. */
void scenario_send_in_handler_of_send(void) {
    int fd = connection(), bad = 0;
    char got[7] = "";
    if (me.client) {
        while (get(fd, got, 6) == 6 && got[5] != 'E')
            if (memcmp(got, "MAINh", 5) && memcmp(got, "hMAIN", 5) && bad++ < 3)
                say("! got %s", got);
        say("all came, the last with %c", got[5]);
        meet();
        return;
    }
    handler_fd = fd;
    at_each_step();
    on_signal(SIGUSR1, send_one_in_the_midst, 0);
    for (step_of_signal = 1;; step_of_signal++) {
        steps = in_handler = 0;
        trap_each_step();
        ssize_t sent = send(fd, "MAIN", 4, 0);
        trap_no_more();
        if (sent != 4 || in_handler > 1)
            say("! step %d: sent %zd, in the handler %d", (int)step_of_signal, sent, (int)in_handler);
        if (!in_handler)
            break;
        put_text(fd, ".");
    }
    put_text(fd, "hE");
    meet();
}

static void send_one_more(int number) {
    (void)number;
    in_handler += send(handler_fd, "h", 1, MSG_DONTWAIT) == 1 ? 1 : 100;
}

/* What the peer gets of one round: a whole MAIN, and an h for each handler. */
static bool is_round(const char *got, int handlers) {
    int count = 0;
    for (const char *at = got; *at; at++)
        count += *at == 'h';
    return strstr(got, "MAIN") && count == handlers && strlen(got) == (size_t)count + 4;
}

/* As `scenario_send_in_handler_of_send`, for many signals that come at once; half of them keep none out, not even another of their own number. */
static void signals_in_send(int count) {
    int fd = connection(), bad = 0;
    if (me.client) {
        char got[64] = "", next = 0;
        for (int length = 0; next != 'E' && get(fd, &next, 1) == 1; length++) {
            got[length % 63] = next;
            if (next != '.')
                continue;
            got[length] = 0;
            if (!is_round(got, count) && bad++ < 3)
                say("! got %s", got);
            length = -1;
        }
        say("all came");
        meet();
        return;
    }
    handler_fd = fd;
    signals_at_step = count;
    at_each_step();
    for (int i = 0; i < count; i++)
        on_signal(SIGRTMIN + i, send_one_more, i % 2 ? SA_NODEFER : 0);
    for (step_of_signal = 1;; step_of_signal++) {
        steps = in_handler = 0;
        trap_each_step();
        ssize_t sent = send(fd, "MAIN", 4, 0);
        trap_no_more();
        if (without_room)
            limit_queued_signals(false);
        if ((sent != 4 || (in_handler && in_handler != count)) && bad++ < 3)
            say("! step %d: sent %zd, in handlers %d", (int)step_of_signal, sent, (int)in_handler);
        if (steps < step_of_signal)
            break;
        put_text(fd, ".");
    }
    put_text(fd, "E");
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    for (int i = 0; i < count; i++)
        if (sigismember(&blocked, SIGRTMIN + i))
            say("! signal %d is blocked", i);
    meet();
}

void scenario_many_signals_in_send(void) {
    signals_in_send(AT_ONCE);
}

/* The kernel has queued a signal already when there is no room for more. */
void scenario_queued_signal_without_room(void) {
    without_room = true;
    signals_in_send(1);
}

/* The same for receiving: each gets bytes that follow one another, and none is lost. */
void scenario_receive_in_handler_of_receive(void) {
    int fd = connection(), bad = 0;
    char go = '.', got[5] = "", rest[5] = "";
    if (me.client) {
        while (get(fd, &go, 1) == 1 && go != 'E') {
            put_text(fd, "ABCDEFGH");
            meet();
        }
        say("asked to end with %c", go);
        meet();
        return;
    }
    handler_fd = fd;
    at_each_step();
    on_signal(SIGUSR1, receive_one_in_the_midst, 0);
    for (step_of_signal = 1; go != 'E'; step_of_signal++) {
        put_text(fd, ".");
        meet();
        await_readable(fd, 8);
        steps = in_handler = 0;
        trap_each_step();
        ssize_t n = recv(fd, got, 4, 0);
        trap_no_more();
        size_t left = in_handler ? 3 : 4;
        get(fd, rest, left);
        const char *first = in_handler && handler_got == 'A' ? "BCDE" : "ABCD";
        bool whole = n == 4 && in_handler <= 1 && memcmp(got, first, 4) == 0 &&
                     (!in_handler || handler_got == 'A' || handler_got == 'E') &&
                     memcmp(rest, in_handler ? "FGH" : "EFGH", left) == 0;
        if (!whole && bad++ < 3)
            say("! step %d: got %.4s (%zd), then %.4s; in the handler %d, %c", (int)step_of_signal, got, n, rest,
                (int)in_handler, handler_got);
        if (!in_handler)
            go = 'E';
    }
    put_text(fd, "E");
    say("all came");
    meet();
}

static _Atomic long got_in_handler;

static void receive_some(int number) {
    char bytes[16];
    (void)number;
    ssize_t n = recv(handler_fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n > 0)
        got_in_handler += n;
}

/* What a handler receives lies between calls, not within what one gives, however many looks that takes. */
void scenario_receive_in_handler_of_waitall(void) {
    enum { TOTAL = 6 << 20, RING = 251 };
    static unsigned char bytes[1 << 16];
    int fd = connection();
    if (me.client) {
        for (int sent = 0; sent < TOTAL;) {
            int count = TOTAL - sent < 3000 ? TOTAL - sent : 3000;
            for (int i = 0; i < count; i++)
                bytes[i] = (sent + i) % RING;
            put(fd, bytes, count);
            sent += count;
            if (sent / 3000 % 4 == 0)
                usleep(20);
        }
        shutdown(fd, SHUT_WR);
        meet();
        return;
    }
    handler_fd = fd;
    on_signal(SIGALRM, receive_some, SA_RESTART);
    struct itimerval often = {{0, 200}, {0, 200}}, never = {0};
    setitimer(ITIMER_REAL, &often, NULL);
    long total = 0, torn = 0;
    ssize_t n;
    while ((n = recv(fd, bytes, sizeof bytes, MSG_WAITALL)) > 0) {
        for (ssize_t i = 1; i < n; i++)
            torn += bytes[i] != (bytes[i - 1] + 1) % RING;
        total += n;
    }
    setitimer(ITIMER_REAL, &never, NULL);
    say("%ld bytes, torn %ld times", total + got_in_handler, torn);
    meet();
}

static void remember_origin(int number, siginfo_t *info, void *context) {
    (void)context;
    handled += info->si_signo == number && info->si_pid == getpid() ? 1 : 100;
}

/* What is installed is told as it was, and works, by whichever function it was installed. */
void scenario_handlers_are_told(void) {
    int fd = connection();
    struct sigaction action = {.sa_sigaction = remember_origin, .sa_flags = SA_SIGINFO | SA_RESETHAND}, old;
    sigaddset(&action.sa_mask, SIGUSR2);
    T(sigaction(SIGUSR1, &action, NULL));
    T(sigaction(SIGUSR1, NULL, &old));
    say("the same %d, flags %#x, blocks %d %d", old.sa_sigaction == remember_origin, old.sa_flags & ~0x04000000,
        sigismember(&old.sa_mask, SIGUSR2), sigismember(&old.sa_mask, SIGUSR1));
    raise(SIGUSR1);
    T(sigaction(SIGUSR1, NULL, &old));
    say("handled %d, default %d", (int)handled, old.sa_handler == SIG_DFL);
    say("signal %d", signal(SIGUSR1, count_signal) == SIG_DFL);
    say("signal %d", signal(SIGUSR1, send_from_handler) == count_signal);
    say("sigset %d", sigset(SIGUSR1, count_signal) == send_from_handler);
    T(sigaction(SIGUSR1, NULL, &old));
    say("the same %d, flags %#x", old.sa_handler == count_signal, old.sa_flags & ~0x04000000);
    raise(SIGUSR1);
    say("handled %d", (int)handled);
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } bare;
    T(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &bare, 8));
    say("the same %d, flags %#lx", bare.handler == (void *)count_signal, bare.flags & ~0x04000000UL);
    T(siginterrupt(SIGUSR1, 1));
    raise(SIGUSR1);
    say("handled %d", (int)handled);
    say("signal %d", signal(SIGUSR1, SIG_IGN) == count_signal);
    say("signal %d", signal(SIGUSR1, SIG_DFL) == SIG_IGN);
    T(sigaction(SIGKILL, &action, &old));
    T(sigaction(0, &action, &old));
    T(sigaction(65, NULL, &old));
    say("signal %d", signal(SIGSTOP, count_signal) == SIG_ERR && errno == EINVAL);
    /* A child of vfork changes what is its own. */
    signal(SIGUSR1, count_signal);
    pid_t child = vfork();
    if (child == 0) {
        signal(SIGUSR1, SIG_DFL);
        signal(SIGUSR2, jump_out);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    raise(SIGUSR1);
    say("handled %d", (int)handled);
    say("signal %d", signal(SIGUSR2, SIG_DFL) == SIG_DFL);
    warm(fd);
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

static volatile int next_value, wrong_values;

static void check_value(int number, siginfo_t *info, void *context) {
    (void)number;
    (void)context;
    if (info->si_code != SI_QUEUE || info->si_value.sival_int != next_value++)
        wrong_values++;
}

/* Queued signals come in through a long exchange, each once, in order and with its value. */
void scenario_queued_signals(void) {
    enum { SIGNALS = 20000 };
    int fd = connection();
    struct sigaction action = {.sa_sigaction = check_value, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    pid_t sender = fork();
    if (sender == 0) {
        for (int i = 0; i < SIGNALS; i++)
            while (sigqueue(getppid(), SIGRTMIN, (union sigval){.sival_int = i}) != 0)
                usleep(100);
        _exit(0);
    }
    for (int i = 0;; i++) {
        char more = next_value < SIGNALS, others = 0;
        if (me.client) {
            put_pattern(fd, i * 1000, 1000, 1);
            get_pattern(fd, i * 500, 500, 2);
        } else {
            get_pattern(fd, i * 1000, 1000, 1);
            put_pattern(fd, i * 500, 500, 2);
        }
        put(fd, &more, 1);
        get(fd, &others, 1);
        if (!more && !others)
            break;
    }
    int status;
    waitpid(sender, &status, 0);
    say("signals %d, wrong %d", next_value, wrong_values);
    meet();
}

/* A connection that is made, used and closed at once; what is still missing of it. */
static int short_connection(int listener) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int bytes = 0;
    getsockname(listener, (struct sockaddr *)&address, &length);
    int from = socket(AF_INET, SOCK_STREAM, 0);
    int done = connect(from, (struct sockaddr *)&address, length);
    int to = accept(listener, NULL, NULL);
    for (char byte = 'a'; byte < 'g'; byte++) {
        char got = 0;
        bytes += send(from, &byte, 1, 0) == 1 && recv(to, &got, 1, 0) == 1 && got == byte;
        bytes += send(to, &byte, 1, 0) == 1 && recv(from, &got, 1, 0) == 1 && got == byte;
    }
    return 12 - bytes - done - close(from) - close(to);
}

static int listeners[2];
static volatile int missing_in_handler;

static void connect_in_handler(int number) {
    (void)number;
    int error = errno;
    handled = 1;
    missing_in_handler += short_connection(listeners[1]);
    errno = error;
}

/* Installs it by an instruction of the program's own. */
static void install_past_the_library(int number, const void *action) {
#if defined __x86_64__
    long result;
    register long size __asm__("r10") = 8;
    __asm__ volatile("syscall" : "=a"(result)
                     : "0"((long)SYS_rt_sigaction), "D"((long)number), "S"(action), "d"(0L), "r"(size)
                     : "rcx", "r11", "memory");
#else
    syscall(SYS_rt_sigaction, number, action, NULL, 8);
#endif
}

/* A handler makes connections of its own wherever it comes in while the program makes others, however it was installed. */
void scenario_connections_in_handler(void) {
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } bare;
    for (int i = 0; i < 2; i++)
        listen(listeners[i] = socket(AF_INET, SOCK_STREAM, 0), 16);
    int before = dup(0);
    for (int way = 0; way < 3; way++) {
        on_signal(SIGALRM, connect_in_handler, SA_RESTART);
        syscall(SYS_rt_sigaction, SIGALRM, NULL, &bare, 8);
        bare.handler = (void *)connect_in_handler;
        if (way == 1)
            install_past_the_library(SIGALRM, &bare);
        else if (way == 2)
            syscall(SYS_rt_sigaction, SIGALRM, &bare, NULL, 8);
        int missing = handled = missing_in_handler = 0;
        for (int i = 0; i < 400; i++) {
            struct itimerval once = {{0, 0}, {0, 1 + i % 150}}, never = {{0, 0}, {0, 0}};
            setitimer(ITIMER_REAL, &once, NULL);
            missing += short_connection(listeners[0]);
            setitimer(ITIMER_REAL, &never, NULL);
        }
        say("handled %d, missing %d and %d", (int)handled, missing, (int)missing_in_handler);
    }
    close(before);
    say("the same number %d", dup(0) == before);
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

/* The kernel takes a handler out that was to be called once, and leaves its flags. */
void scenario_handler_called_once(void) {
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } bare;
    int fd = connection();
    for (int told = 0; told < 2; told++) {
        struct sigaction action = {.sa_flags = SA_RESETHAND}, old;
        if (told) {
            action.sa_sigaction = remember_origin;
            action.sa_flags |= SA_SIGINFO;
        } else {
            action.sa_handler = count_signal;
        }
        T(sigaction(SIGUSR1, &action, NULL));
        raise(SIGUSR1);
        T(sigaction(SIGUSR1, NULL, &old));
        say("default %d, flags %#x", old.sa_handler == SIG_DFL, old.sa_flags & ~0x04000000);
        T(syscall(SYS_rt_sigaction, SIGUSR1, NULL, &bare, 8));
        say("default %d, flags %#lx", bare.handler == (void *)SIG_DFL, bare.flags & ~0x04000000UL);
    }
    struct sigaction action = {.sa_handler = count_signal}, old;
    T(sigaction(SIGUSR1, &action, NULL));
    action.sa_handler = SIG_DFL;
    action.sa_flags = SA_RESETHAND | SA_SIGINFO;
    T(sigaction(SIGUSR1, &action, NULL));
    T(sigaction(SIGUSR1, NULL, &old));
    say("default %d, flags %#x", old.sa_handler == SIG_DFL, old.sa_flags & ~0x04000000);
    sysv_signal(SIGUSR1, count_signal);
    raise(SIGUSR1);
    T(sigaction(SIGUSR1, NULL, &old));
    say("default %d, flags %#x", old.sa_handler == SIG_DFL, old.sa_flags & ~0x04000000);
    warm(fd);
    meet();
}

/* ---- a signal that comes when a call has just begun to wait ---- */

static int set_of_one;

static long wait_by_poll(int fd) {
    struct pollfd item = {.fd = fd, .events = POLLIN};
    return poll(&item, 1, 1500);
}

static long wait_by_select(int fd) {
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    return select(fd + 1, &reading, NULL, NULL, &(struct timeval){.tv_sec = 1, .tv_usec = 500000});
}

static long wait_by_epoll(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (set_of_one == 0) {
        set_of_one = epoll_create1(EPOLL_CLOEXEC);
        epoll_ctl(set_of_one, EPOLL_CTL_ADD, fd, &event);
    }
    return epoll_wait(set_of_one, &event, 1, 1500);
}

static long wait_by_receiving(int fd) {
    char byte;
    struct timeval patience = {.tv_sec = 1, .tv_usec = 500000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return recv(fd, &byte, 1, MSG_PEEK);
}

/* The server waits until it has been told to stop; so soon after its last answer that it may not sleep yet. Some signals come between
 * its look at the flag and the call, also where there is nothing but the kernel. */
static void signal_beginner(long (*wait_for)(int fd)) {
    enum { TIMES = 20, TRIPS = 20, FEW = 4 };
    int fd = connection();
    char byte = 'x';
    if (me.client) {
        for (int i = 0; told() == 1; i++) {
            for (int n = 0; n < TRIPS; n++) {
                put(fd, &byte, 1);
                get(fd, &byte, 1);
            }
            struct timespec start = now(), time;
            do
                time = now();
            while ((time.tv_sec - start.tv_sec) * 1000000000L + time.tv_nsec - start.tv_nsec < 5000 + i % 9 * 5000);
            kill(me.peer, SIGUSR1);
        }
        meet();
        return;
    }
    int missed = 0;
    on_signal(SIGUSR1, count_signal, 0);
    for (int i = 0; i < TIMES && missed < FEW; i++) {
        handled = 0;
        tell(1);
        while (!handled) {
            long found = wait_for(fd);
            if (found > 0 && get(fd, &byte, 1) == 1)
                put(fd, &byte, 1);
            else if (found == 0 || (found < 0 && errno == EAGAIN))
                missed++;
        }
    }
    say("interrupted %d", missed < FEW);
    tell(0);
    meet();
}

void scenario_signal_before_poll_sleeps(void) {
    signal_beginner(wait_by_poll);
}

void scenario_signal_before_select_sleeps(void) {
    signal_beginner(wait_by_select);
}

void scenario_signal_before_epoll_wait_sleeps(void) {
    signal_beginner(wait_by_epoll);
}

void scenario_signal_before_recv_sleeps(void) {
    signal_beginner(wait_by_receiving);
}
