/* Connections that the next program, or another process, finds, and has lifted once it is alone with them. */
#include "actor.h"

#include <spawn.h>

extern char **environ;

int talk(int fd);
int receive_descriptor(int channel);
void send_descriptor(int channel, int fd);

static void finish(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    say_status("child", status);
}

/* Becomes this program again, which goes on with `resume VERB FD`. */
static void become(const char *verb, int fd) {
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    execl(me.program, "actor", "resume", verb, number, NULL);
    say("! exec failed");
    _exit(127);
}

static pid_t start(const char *verb, int fd) {
    pid_t child = fork();
    if (child == 0)
        become(verb, fd);
    return child;
}

/* The client's part with whatever program answers by `talk`. */
static void talk_with_next_program(int fd) {
    put_text(fd, "over the exec");
    meet();
    expect_text(fd, "resumed");
    warm(fd);
    put_text(fd, "warm again");
    expect_text(fd, "after the exec");
    expect_end(fd);
    meet_if_alive();
}

void scenario_lifted_after_exec(void) {
    int fd = cold_connection();
    if (me.client) {
        talk_with_next_program(fd);
        return;
    }
    meet();
    await_readable(fd, 13);
    become("talk", fd);
}

/* As the servers of inetd are started: the parent keeps nothing. */
void scenario_lifted_in_child_program(void) {
    int fd = cold_connection();
    if (me.client) {
        talk_with_next_program(fd);
        return;
    }
    meet();
    await_readable(fd, 13);
    pid_t child = start("talk", fd);
    close(fd);
    finish(child);
}

/* It comes as standard input, where the C library may read it; the program takes it elsewhere. */
void scenario_lifted_off_standard_input(void) {
    int fd = cold_connection();
    if (me.client) {
        talk_with_next_program(fd);
        return;
    }
    meet();
    await_readable(fd, 13);
    pid_t child = fork();
    if (child == 0) {
        dup2(fd, 0);
        close(fd);
        become("talk_elsewhere", 0);
    }
    close(fd);
    finish(child);
}

static int talk_elsewhere(int standard) {
    int fd = dup(standard);
    close(standard);
    return talk(fd);
}

/* Passed to a worker that was there before; the master closes its copy. */
static void pass_to_worker(const char *verb) {
    int fd = cold_connection(), channel[2];
    if (me.client) {
        talk_with_next_program(fd);
        return;
    }
    socketpair(AF_UNIX, SOCK_STREAM, 0, channel);
    fcntl(channel[0], F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    pid_t worker = start(verb, channel[1]);
    close(channel[1]);
    meet();
    await_readable(fd, 13);
    send_descriptor(channel[0], fd);
    close(fd);
    finish(worker);
}

void scenario_lifted_after_passing(void) {
    pass_to_worker("take");
}

/* The worker looks at the message first, and has the connection twice then. */
void scenario_lifted_after_peeking(void) {
    pass_to_worker("look_and_take");
}

static int look_and_take(int channel) {
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    int seen = -1;
    if (recvmsg(channel, &message, MSG_PEEK) == 1)
        memcpy(&seen, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof seen);
    int fd = receive_descriptor(channel);
    close(fd);
    return talk(seen);
}

/* Two programs that know nothing of each other use one connection in turns. The elder is first. Turns are told over standard
 * input. */
struct sharing {
    int turns, round_trips;
    bool ends_alone;
    const char *verb;
};
/* For long enough to be lifted if either took it for its own. */
static const struct sharing for_long = {60, 5, false, "share_for_long"};
/* Then the elder lets go, and the younger is alone. */
static const struct sharing for_a_moment = {2, 1, true, "share_for_a_moment"};

static void take_turns(const struct sharing *how, int fd, int first) {
    char line[16];
    for (int turn = first; turn < how->turns; turn += 2) {
        if (turn > 0 && told() != turn)
            say("! out of turn");
        snprintf(line, sizeof line, "turn %02d", turn);
        expect_text(fd, line);
        for (int i = 0; i < how->round_trips; i++) {
            put_text(fd, line);
            expect_text(fd, line);
        }
        tell(turn + 1);
    }
}

static int be_the_younger(const struct sharing *how, int fd) {
    take_turns(how, fd, 1);
    me.server = true;
    if (how->ends_alone)
        warm(fd);
    return 0;
}

static void share(const struct sharing *how) {
    int fd = cold_connection();
    if (me.client) {
        char line[16];
        for (int turn = 0; turn < how->turns; turn++) {
            snprintf(line, sizeof line, "turn %02d", turn);
            put_text(fd, line);
            for (int i = 0; i < how->round_trips; i++) {
                expect_text(fd, line);
                put_text(fd, line);
            }
        }
        meet();
        if (how->ends_alone)
            warm(fd);
        expect_end(fd);
        meet();
        return;
    }
    int channel[2], control = fcntl(0, F_DUPFD_CLOEXEC, 3);
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], 0);
        become(how->verb, fd);
    }
    dup2(channel[0], 0);
    take_turns(how, fd, 0);
    if (told() != how->turns)
        say("! out of turn");
    close(fd);
    dup2(control, 0);
    meet();
    finish(child);
    meet();
}

void scenario_shared_by_programs(void) {
    share(&for_long);
}

void scenario_shared_by_programs_then_alone(void) {
    share(&for_a_moment);
}

/* A program connects a socket that it inherited, and uses it for long enough to be lifted; then its parent, which has had the
 * socket all the time, goes on. */
#define ROUNDS 3000

void scenario_connected_by_next_program(void) {
    char byte;
    if (me.server) {
        int fd = accept(me.listener, NULL, NULL);
        for (int i = 0; i < ROUNDS; i++) {
            get(fd, &byte, 1);
            put(fd, &byte, 1);
        }
        expect_text(fd, "from the parent");
        put_text(fd, "to the parent");
        expect_end(fd);
        meet();
        return;
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = server_address();
    char number[16];
    snprintf(number, sizeof number, "%d", ntohs(address.sin_port));
    setenv("ACTOR_PORT", number, 1);
    finish(start("connect", fd));
    put_text(fd, "from the parent");
    expect_text(fd, "to the parent");
    close(fd);
    meet();
}

static int connect_here(int fd) {
    me.port = atoi(getenv("ACTOR_PORT"));
    struct sockaddr_in address = server_address();
    char byte = 'x';
    T(connect(fd, (struct sockaddr *)&address, sizeof address));
    for (int i = 0; i < ROUNDS; i++) {
        put(fd, &byte, 1);
        get(fd, &byte, 1);
    }
    return 0;
}

/* The next program finds what it has to wait with too, an epoll object with the connection in it. */
void scenario_exec_inherits_epoll_set_and_library(void) {
    int fd = cold_connection();
    char byte = 'x';
    if (me.client) {
        for (int i = 0; i < 300; i++) {
            put(fd, &byte, 1);
            get(fd, &byte, 1);
        }
        expect_end(fd);
        return;
    }
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    become("wait", set);
}

static int wait_in_next_program(int set) {
    struct epoll_event event;
    char byte;
    for (int i = 0; i < 300; i++) {
        if (epoll_wait(set, &event, 1, 5000) != 1) {
            say("! waited in vain");
            return 1;
        }
        get(event.data.fd, &byte, 1);
        put(event.data.fd, &byte, 1);
    }
    return 0;
}

/* The peer takes the connection back to TCP. A child is the first to find that, and lets go of it; its parent becomes another program
 * and has it no longer either. That is the end, though the child lives on. */
static void end_beside_child(bool inherited) {
    int fd = connection(), start[2], done[2];
    char byte;
    if (me.client) {
        T(recv(fd, &byte, 1, MSG_ERRQUEUE | MSG_DONTWAIT));
        meet();
        expect_end(fd);
        meet();
        return;
    }
    pipe(start);
    pipe(done);
    pid_t child = fork();
    if (child == 0) {
        close(start[1]);
        close(done[0]);
        read(start[0], &byte, 1);
        T(recv(fd, &byte, 1, MSG_DONTWAIT));
        close(fd);
        write(done[1], "", 1);
        while (read(start[0], &byte, 1) > 0)
            continue;
        _exit(0);
    }
    meet();
    write(start[1], "", 1);
    read(done[0], &byte, 1);
    fcntl(fd, F_SETFD, inherited ? 0 : FD_CLOEXEC);
    become(inherited ? "close" : "keep_nothing", fd);
}

void scenario_lowered_in_child_then_exec(void) {
    end_beside_child(true);
}

void scenario_lowered_in_child_then_exec_without(void) {
    end_beside_child(false);
}

/* The next program does not get the connection, on which something was unread: its peer is reset. */
void scenario_exec_leaves_unread_bytes(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "last words");
        await_readable(fd, 6);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        become("keep_nothing", fd);
    }
    put_text(fd, "unread");
    meet();
    say_poll("after the exec", await_bits(fd, 0));
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
}

/* `actor resume VERB FD`. */
/* What another program has set on a connection that both had holds, also when that is over and the connection is lifted again. */
void scenario_set_by_another_program(void) {
    enum { TURNS = 300 };
    int fd = connection();
    char byte = 'x', number[16];
    if (me.client) {
        for (int i = 0; i < TURNS && get(fd, &byte, 1) == 1; i++)
            put(fd, &byte, 1);
        meet();
        put_text(fd, "1");
        meet();
        return;
    }
    snprintf(number, sizeof number, "%d", fd);
    char *arguments[] = {"actor", "resume", "make_nonblocking", number, NULL};
    pid_t child;
    posix_spawn(&child, me.program, NULL, NULL, arguments, environ);
    finish(child);
    for (int i = 0; i < TURNS; i++) {
        put(fd, &byte, 1);
        await_bits(fd, POLLIN);
        if (recv(fd, &byte, 1, 0) != 1)
            say("! nothing came");
        usleep(5000);
    }
    T(recv(fd, &byte, 1, 0));
    meet();
    await_bits(fd, POLLIN);
    T(recv(fd, &byte, 1, 0));
    meet();
}

int resume_handed(const char *verb, int fd) {
    if (strcmp(verb, "talk_elsewhere") == 0)
        return talk_elsewhere(fd);
    if (strcmp(verb, "take") == 0)
        return talk(receive_descriptor(fd));
    if (strcmp(verb, "look_and_take") == 0)
        return look_and_take(fd);
    if (strcmp(verb, for_long.verb) == 0)
        return be_the_younger(&for_long, fd);
    if (strcmp(verb, for_a_moment.verb) == 0)
        return be_the_younger(&for_a_moment, fd);
    if (strcmp(verb, "connect") == 0)
        return connect_here(fd);
    if (strcmp(verb, "wait") == 0)
        return wait_in_next_program(fd);
    if (strcmp(verb, "make_nonblocking") == 0)
        return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 ? 0 : 1;
    if (strcmp(verb, "close") == 0)
        close(fd);
    if (strcmp(verb, "close") == 0 || strcmp(verb, "keep_nothing") == 0) {
        meet();
        return 0;
    }
    return 2;
}
