/* fork in all its forms, with the connection in use on both sides of it. */
#include "actor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <spawn.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

extern char **environ;

static void finish(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    say_status("child", status);
}

/* Parent and child read and write in turns, ordered by pipes. */
void scenario_fork_in_turns(void) {
    int fd = connection();
    char line[32];
    if (me.client) {
        for (int i = 0; i < 20; i++) {
            snprintf(line, sizeof line, "question %02d", i);
            put_text(fd, line);
            snprintf(line, sizeof line, "answer %02d", i);
            expect_text(fd, line);
        }
        expect_end(fd);
        meet();
        return;
    }
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0)
        return;
    pid_t child = fork();
    int own = child == 0 ? down[0] : up[0], other = child == 0 ? up[1] : down[1];
    for (int i = 0; i < 20; i++) {
        char baton;
        if (i % 2 == (child == 0)) {
            if (i > 0)
                get(own, &baton, 1);
            snprintf(line, sizeof line, "question %02d", i);
            expect_text(fd, line);
            snprintf(line, sizeof line, "answer %02d", i);
            put_text(fd, line);
            put(other, "b", 1);
        }
    }
    close(fd);
    if (child == 0)
        _exit(0);
    finish(child);
    meet();
}

/* The child leaves without a word, having inherited unread bytes; the parent goes on. */
void scenario_fork_child_leaves(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "for the parent");
        meet();
        put_text(fd, ", all of it");
        expect_text(fd, "thanks");
        meet();
        return;
    }
    meet();
    await_readable(fd, 14);
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            if (i == 1)
                close(fd);
            if (i == 2)
                exit(0);
            _exit(i);
        }
        finish(child);
    }
    expect_text(fd, "for the parent, all of it");
    put_text(fd, "thanks");
    meet();
}

void scenario_fork_half_read(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 30000, 1);
        meet();
        expect_text(fd, "child parent");
        meet();
        return;
    }
    meet();
    get_pattern(fd, 0, 10000, 1);
    pid_t child = fork();
    if (child == 0) {
        get_pattern(fd, 10000, 10000, 1);
        put_text(fd, "child ");
        _exit(0);
    }
    finish(child);
    get_pattern(fd, 20000, 10000, 1);
    put_text(fd, "parent");
    meet();
}

/* A daemon: the parent exits, grandchild goes on. */
void scenario_fork_parent_leaves(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "anybody there?");
        expect_text(fd, "the grandchild");
        put_pattern(fd, 0, 500000, 1);
        shutdown(fd, SHUT_WR);
        expect_text(fd, "got it");
        expect_end(fd);
        meet();
        return;
    }
    pid_t child = fork();
    if (child != 0) {
        close(fd);
        meet();
        finish(child);
        return;
    }
    if (fork() != 0)
        _exit(0);
    expect_text(fd, "anybody there?");
    put_text(fd, "the grandchild");
    get_pattern(fd, 0, 500000, 1);
    expect_end(fd);
    put_text(fd, "got it");
    _exit(0);
}

/* As many descriptors as this process may have, which is fewer than it could be allowed. */
static void use_up_descriptors(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 100;
    setrlimit(RLIMIT_NOFILE, &limit);
    while (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0)
        ;
}

/* The parent has no descriptor left when it forks, and leaves with bytes unread: they are the child's. */
void scenario_fork_parent_leaves_at_the_limit(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "the child");
        put_text(fd, "anybody there?");
        expect_text(fd, "the grandchild");
        expect_end(fd);
        meet();
        return;
    }
    pid_t child = fork();
    if (child != 0) {
        close(fd);
        meet();
        finish(child);
        return;
    }
    put_text(fd, "the child");
    await_readable(fd, 14);
    use_up_descriptors();
    pid_t parent = getpid();
    if (fork() != 0)
        _exit(0);
    while (getppid() == parent)
        usleep(1000);
    /* Time for whoever would take the parent's end for the connection's. */
    usleep(100000);
    expect_text(fd, "anybody there?");
    put_text(fd, "the grandchild");
    _exit(0);
}

static int the_child_goes_on(void *connection) {
    int fd = *(int *)connection;
    expect_text(fd, "anybody there?");
    put_text(fd, "a child");
    get_pattern(fd, 0, 100000, 1);
    expect_end(fd);
    put_text(fd, "got it");
    _exit(0);
}

static pid_t clone_without_a_stack(int *fd) {
    pid_t child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    return child == 0 ? the_child_goes_on(fd) : child;
}

static pid_t fork_for_handlers(int *fd) {
    pid_t child = _Fork();
    return child == 0 ? the_child_goes_on(fd) : child;
}

static pid_t clone_with_a_stack(int *fd) {
    static char stack[256 * 1024] __attribute__((aligned(16)));
    return clone(the_child_goes_on, stack + sizeof stack, SIGCHLD, fd);
}

/* Processes that are made without fork(): the child takes the connection over, the parent closes it at once. However far
 * lifting has come. */
void scenario_fork_by_other_means(void) {
    pid_t (*const means[])(int *) = {clone_without_a_stack, fork_for_handlers, clone_with_a_stack};
    for (int turn = 0; turn < 9; turn++) {
        int fd = turn < 3 ? connection() : cold_connection();
        for (int i = 0; i < turn * 2; i++)
            hello(fd);
        if (me.client) {
            put_text(fd, "anybody there?");
            expect_text(fd, "a child");
            put_pattern(fd, 0, 100000, 1);
            shutdown(fd, SHUT_WR);
            expect_text(fd, "got it");
            expect_end(fd);
        } else {
            pid_t child = means[turn % 3](&fd);
            close(fd);
            finish(child);
        }
        meet();
        if (me.client)
            close(fd);
    }
}

/* From here on any system call but these ends the process. */
static bool allow_only_reading_and_writing(bool by_system_call) {
    const int allowed[] = {SYS_read, SYS_write, SYS_exit_group, SYS_rt_sigaction};
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[0], 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[1], 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[2], 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[3], 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return false;
    if (by_system_call)
        return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

enum { QUESTIONS = 40 };

static void ask_all(int fd) {
    for (int i = 0; i < QUESTIONS; i++) {
        put_text(fd, "question");
        expect_text(fd, "answer..");
    }
    expect_end(fd);
}

static void on_nothing(int number) {
    (void)number;
}

/* A child that may only read and write, and install handlers, answers all questions on `fd`, which this process lets go of. */
static pid_t answer_all_sandboxed(int fd, int by_system_call) {
    pid_t child = fork();
    if (child == 0) {
        char question[8];
        if (!allow_only_reading_and_writing(by_system_call) || signal(SIGUSR1, on_nothing) != SIG_DFL)
            _exit(2);
        for (int i = 0; i < QUESTIONS; i++)
            if (read(fd, question, 8) != 8 || write(fd, "answer..", 8) != 8)
                _exit(1);
        _exit(0);
    }
    close(fd);
    return child;
}

/* A server's process that may only read and write when its connection has had enough traffic to be lifted. */
void scenario_sandboxed_while_young(void) {
    for (int by_system_call = 0; by_system_call < 2; by_system_call++) {
        int fd = cold_connection();
        if (me.client)
            ask_all(fd);
        else
            finish(answer_all_sandboxed(fd, by_system_call));
        meet();
        if (me.client)
            close(fd);
    }
}

/* The same with a connection that is lifted already: neither reading nor writing nor sleeping takes calls of another kind. */
void scenario_sandboxed_while_lifted(void) {
    for (int by_system_call = 0; by_system_call < 2; by_system_call++) {
        int fd = connection();
        if (me.client) {
            await_asleep(told());
            ask_all(fd);
        } else {
            pid_t child = answer_all_sandboxed(fd, by_system_call);
            tell(child);
            finish(child);
        }
        meet();
        if (me.client)
            close(fd);
    }
}

/* The oldest kind of server: one process a connection. */
void scenario_fork_per_connection(void) {
    enum { CONNECTIONS = 8 };
    if (me.client) {
        int fds[CONNECTIONS];
        for (int i = 0; i < CONNECTIONS; i++)
            fds[i] = connection();
        for (int i = CONNECTIONS - 1; i >= 0; i--) {
            put_pattern(fds[i], 0, 20000 + i, i);
            shutdown(fds[i], SHUT_WR);
            get_pattern(fds[i], 0, 20000 + i, i);
            expect_end(fds[i]);
            close(fds[i]);
        }
        meet();
        return;
    }
    pid_t children[CONNECTIONS];
    for (int i = 0; i < CONNECTIONS; i++) {
        int fd = cold_connection();
        children[i] = fork();
        if (children[i] == 0) {
            char buffer[40000];
            close(me.listener);
            warm(fd);
            size_t count = get(fd, buffer, sizeof buffer);
            put(fd, buffer, count);
            _exit(0);
        }
        close(fd);
    }
    for (int i = 0; i < CONNECTIONS; i++)
        finish(children[i]);
    meet();
}

/* The child writes a long stream while the parent reads one. */
void scenario_fork_one_reads_one_writes(void) {
    int fd = connection();
    pid_t child = fork();
    if (child == 0) {
        put_pattern(fd, 0, 3000000, me.server);
        _exit(0);
    }
    get_pattern(fd, 0, 3000000, me.client);
    finish(child);
    meet();
    put_text(fd, "ok");
    expect_text(fd, "ok");
    meet();
}

/* A child killed in the middle of a write takes nothing with it but its own bytes. */
void scenario_fork_child_killed(void) {
    int fd = connection();
    if (me.client) {
        static char buffer[65536];
        ssize_t n;
        bool only = true;
        told();
        while ((n = read(fd, buffer, sizeof buffer)) > 0 && buffer[n - 1] != 'P')
            only &= memchr(buffer, 0, n) == NULL && strspn(buffer, "c") >= (size_t)n;
        say("the child's bytes: %s, then the parent's", only ? "correct" : "wrong");
        put_text(fd, "to the parent");
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0)
        for (;;)
            if (write(fd, "cccccccc", 8) < 0)
                _exit(1);
    await_asleep(child);
    kill(child, SIGKILL);
    finish(child);
    tell(1);
    put_text(fd, "P");
    expect_text(fd, "to the parent");
    meet();
}

/* A child that is killed in the midst of a send, and that nobody has waited for yet, keeps nobody else from sending. */
void scenario_fork_child_killed_not_reaped(void) {
    int fd = connection();
    if (me.client) {
        static char buffer[1 << 20];
        char last = 0;
        ssize_t n;
        while (last != 'E' && (n = read(fd, buffer, sizeof buffer)) > 0)
            last = buffer[n - 1];
        say("all came %d", last == 'E');
        meet();
        return;
    }
    static char bytes[1 << 20];
    memset(bytes, 'c', sizeof bytes);
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                if (write(fd, bytes, sizeof bytes) < 0)
                    _exit(1);
        usleep(5000 + round * 37);
        kill(child, SIGKILL);
        siginfo_t how;
        waitid(P_PID, child, &how, WEXITED | WNOWAIT);
        put(fd, "p", 1);
        waitpid(child, NULL, 0);
    }
    put(fd, "E", 1);
    meet();
}

static void *fork_often(void *begin) {
    while (!*(_Atomic bool *)begin)
        ;
    for (int i = 0; i < 6; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        waitpid(child, NULL, 0);
    }
    return NULL;
}

static void *echo_byte(void *listener) {
    int fd = accept(*(int *)listener, NULL, NULL);
    char byte;
    while (recv(fd, &byte, 1, 0) == 1)
        send(fd, &byte, 1, 0);
    close(fd);
    return NULL;
}

/* Forks beside the first connection that a process has. */
static int connect_beside_forks(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 1);
    getsockname(listener, (struct sockaddr *)&address, &length);
    _Atomic bool begin = false;
    pthread_t threads[4];
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, fork_often, &begin);
    pthread_create(&threads[3], NULL, echo_byte, &listener);
    usleep(2000);
    begin = true;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&address, length);
    char byte = 'a';
    for (int i = 0; i < 20; i++)
        if (send(fd, &byte, 1, 0) != 1 || recv(fd, &byte, 1, 0) != 1)
            return 1;
    shutdown(fd, SHUT_RDWR);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return 0;
}

void scenario_fork_beside_the_first_connection(void) {
    int bad = 0;
    for (int round = 0; me.server && round < 25; round++) {
        pid_t child = fork();
        if (child == 0)
            _exit(connect_beside_forks());
        int status;
        waitpid(child, &status, 0);
        bad += status != 0;
    }
    say("failed %d", bad);
    meet();
}

static void run_by_vfork(void) {
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(127);
    }
    finish(child);
}

static void run_by_spawn(void) {
    pid_t child;
    char *arguments[] = {"sh", "-c", "exit 5", NULL};
    T(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ));
    finish(child);
    T(posix_spawnp(&child, "true", NULL, NULL, arguments, environ));
    finish(child);
    T(posix_spawn(&child, "/nonexistent", NULL, NULL, arguments, environ));
}

static void run_by_popen(void) {
    char line[64] = "";
    FILE *output = popen("echo from popen", "r");
    if (output && fgets(line, sizeof line, output))
        say("%.*s", (int)strcspn(line, "\n"), line);
    say_status("pclose", pclose(output));
}

/* Running other programs, connection open, bytes waiting: nothing is lost or stolen. */
void scenario_other_programs(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "untouched");
        meet();
        meet();
        put_text(fd, " bytes");
        expect_text(fd, "end");
        meet();
        return;
    }
    meet();
    await_readable(fd, 9);
    run_by_vfork();
    run_by_spawn();
    say_status("system", system("exit 3"));
    run_by_popen();
    meet();
    expect_text(fd, "untouched bytes");
    put_text(fd, "end");
    meet();
}

/* Forked before the connection was ever lifted; the child warms it. */
void scenario_fork_then_warm(void) {
    int fd = cold_connection();
    hello(fd);
    if (me.client) {
        warm(fd);
        put_text(fd, "to the child");
        expect_text(fd, "from the child");
        put_text(fd, "to the parent");
        expect_text(fd, "from the parent");
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        warm(fd);
        expect_text(fd, "to the child");
        put_text(fd, "from the child");
        _exit(0);
    }
    finish(child);
    expect_text(fd, "to the parent");
    put_text(fd, "from the parent");
    meet();
}

/* Parent and child are both blocked in recv; each gets one of two messages. */
void scenario_fork_both_wait(void) {
    int fd = connection();
    char byte;
    if (me.client) {
        await_asleep(told());
        await_asleep(me.peer);
        for (int i = 0; i < 2; i++) {
            put_text(fd, "m");
            expect_text(fd, "a");
        }
        expect_end(fd);
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0)
        tell(getpid());
    ssize_t n = recv(fd, &byte, 1, 0);
    if (n == 1)
        put_text(fd, "a");
    close(fd);
    if (child == 0)
        _exit(n == 1 ? 0 : 1);
    say("parent %zd", n);
    finish(child);
    meet();
}

/* A child that lets go of the connection leaves a parent that waits on it asleep, not looking around without end.
 * `wait_for_byte` is how the parent waits. */
static void relative_lets_go(void (*wait_for_byte)(int fd)) {
    int fd = connection();
    if (me.client) {
        told();
        put_text(fd, "x");
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        await_asleep(getppid());
        close(fd);
        await_asleep(getppid());
        tell(1);
        _exit(0);
    }
    wait_for_byte(fd);
    finish(child);
    meet();
}

static void by_reading(int fd) {
    expect_text(fd, "x");
}

static void by_polling(int fd) {
    say_poll("a byte", await_bits(fd, POLLIN));
}

static void by_epoll(int fd) {
    struct epoll_event event = {.events = EPOLLIN};
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    T(epoll_wait(set, &event, 1, 5000));
}

void scenario_relative_lets_go_of_reader(void) {
    relative_lets_go(by_reading);
}

void scenario_relative_lets_go_of_poller(void) {
    relative_lets_go(by_polling);
}

void scenario_relative_lets_go_of_epoll(void) {
    relative_lets_go(by_epoll);
}

/* Who goes into the background is alone with the connection: of unread bytes the peer is told. */
void scenario_daemon_closes(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        char byte;
        T(recv(fd, &byte, 1, 0));
        return;
    }
    int over[2];
    char byte;
    T(pipe(over));
    pid_t child = fork();
    if (child == 0) {
        close(over[0]);
        if (daemon(1, 1) != 0)
            _exit(1);
        await_readable(fd, 6);
        meet();
        close(fd);
        _exit(0);
    }
    close(fd);
    close(over[1]);
    finish(child);
    say("over %zd", read(over[0], &byte, 1));
}

/* Each of the calls, in a child that may make it, those needed around it, and no other. */
static bool allow(const int *calls, int count) {
    struct sock_filter code[64] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    int length = 1;
    for (int i = 0; i < count; i++) {
        code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
        code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    struct sock_fprog program = {length, code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static const char *const SANDBOXED[] = {"poll", "select", "epoll_wait", "epoll_ctl", "close", "close set", "dup", "dup2",
    "socket", "accept", "shutdown", "getsockopt", "fcntl", "signal", "epoll_create1", "fork", "exit"};

static int call_in_sandbox(int n, int fd, int set, int listener) {
    char byte;
    struct epoll_event event = {.events = EPOLLIN};
    struct pollfd item = {.fd = fd, .events = POLLIN};
    struct timeval soon = {0, 1000};
    fd_set bits;
    FD_ZERO(&bits);
    FD_SET(fd, &bits);
    socklen_t size = sizeof n;
    pid_t child;
    switch (n) {
    case 0: return poll(&item, 1, 1);
    case 1: return select(fd + 1, &bits, NULL, NULL, &soon);
    case 2: return epoll_wait(set, &event, 1, 1);
    case 3: return epoll_ctl(set, EPOLL_CTL_MOD, fd, &event);
    case 4: return close(fd);
    case 5: return close(set);
    case 6: return dup(fd) > 0;
    case 7: return dup2(fd, set) == set;
    case 8: return socket(AF_INET, SOCK_STREAM, 0) > 0;
    case 9: return accept(listener, NULL, NULL);
    case 10: return shutdown(fd, SHUT_WR);
    case 11: return getsockopt(fd, SOL_SOCKET, SO_ERROR, &n, &size);
    case 12: return fcntl(fd, F_SETFL, O_NONBLOCK) + recv(fd, &byte, 1, 0);
    case 13: return signal(SIGUSR1, on_nothing) == SIG_ERR;
    case 14: return epoll_create1(0) > 0;
    case 15:
        child = fork();
        if (child == 0)
            _exit(0);
        return child > 0;
    default: exit(7);
    }
}

static void calls_in_sandbox(int fd) {
    static const int calls[] = {SYS_read, SYS_write, SYS_exit_group, SYS_poll, SYS_pselect6, SYS_epoll_wait, SYS_epoll_ctl,
        SYS_close, SYS_dup, SYS_dup2, SYS_socket, SYS_accept, SYS_shutdown, SYS_getsockopt, SYS_fcntl, SYS_recvfrom,
        SYS_rt_sigaction, SYS_epoll_create1, SYS_clone, SYS_rt_sigprocmask, SYS_set_robust_list};
    int set = epoll_create1(0), count = sizeof calls / sizeof *calls;
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    for (int n = 0; n < (int)(sizeof SANDBOXED / sizeof *SANDBOXED); n++) {
        pid_t child = fork();
        if (child == 0) {
            fcntl(me.listener, F_SETFL, O_NONBLOCK);
            epoll_wait(set, &event, 1, 0);
            if (!allow(calls, count))
                _exit(3);
            int result = call_in_sandbox(n, fd, set, me.listener);
            _exit(result < 0 ? 9 : result);
        }
        int status;
        waitpid(child, &status, 0);
        say_status(SANDBOXED[n], status);
    }
    close(set);
}

void scenario_sandboxed_calls(void) {
    int fd = connection();
    if (me.server)
        calls_in_sandbox(fd);
    meet();
}

/* What the other end does only later must not come to a process that may not hear of it any more. */
void scenario_sandboxed_while_offered(void) {
    static const int calls[] = {SYS_read, SYS_write, SYS_exit_group};
    int fd = cold_connection();
    char byte;
    if (me.client) {
        meet();
        for (int i = 0; i < 206; i++)
            if (read(fd, &byte, 1) != 1 || (i > 5 && write(fd, &byte, 1) != 1))
                say("! round %d", i);
        expect_end(fd);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 6; i++)
            write(fd, "x", 1);
        if (!allow(calls, 3))
            _exit(3);
        if (write(fd, "x", 1) != 1)
            _exit(1);
        for (int i = 0; i < 199; i++)
            if (read(fd, &byte, 1) != 1 || write(fd, "x", 1) != 1)
                _exit(1);
        _exit(read(fd, &byte, 1) == 1 ? 7 : 8);
    }
    close(fd);
    await_asleep(child);
    meet();
    finish(child);
}
