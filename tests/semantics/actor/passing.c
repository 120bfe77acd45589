/* A connection handed to another process over AF_UNIX (SCM_RIGHTS), bytes unread. */
#include "actor.h"

#include <sys/syscall.h>

extern char **environ;

int receive_descriptor(int channel);
void send_descriptor(int channel, int fd);

static bool by_system_call;

static void finish(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    say_status("child", status);
}

void send_descriptor(int channel, int fd) {
    char control[CMSG_SPACE(sizeof fd)] = "";
    struct iovec part = {"d", 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    /* Not traced: the receiver may write its lines first. */
    if ((by_system_call ? syscall(SYS_sendmsg, channel, &message, 0) : sendmsg(channel, &message, 0)) != 1)
        say("! the descriptor was not sent: %s", strerrorname_np(errno));
}

int receive_descriptor(int channel) {
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head;
    int fd = -1;
    if (recvmsg(channel, &message, 0) == 1 && (head = CMSG_FIRSTHDR(&message)) != NULL)
        memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

/* Starts a process that has the other end of a socket pair and nothing else of ours. */
enum image { SAME_IMAGE, LIBRARY_OFF, EMPTY_ENVIRONMENT, STATIC_IMAGE, FORKED };

static pid_t start_receiver(enum image image, int *channel, int fd) {
    int ends[2];
    char number[16];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        return -1;
    pid_t child = fork();
    if (child != 0) {
        close(ends[1]);
        *channel = ends[0];
        return child;
    }
    close(ends[0]);
    close(fd);
    snprintf(number, sizeof number, "%d", ends[1]);
    char *nothing[] = {NULL};
    char *arguments[] = {"actor", "resume", "receive", number, NULL};
    char *static_arguments[] = {"bystander", "receive", number, NULL};
    switch (image) {
    case FORKED:
        _exit(receive_in_new_image(ends[1]));
    case LIBRARY_OFF:
        setenv("VMMC_DISABLE", "1", 1);
        /* fall through */
    case SAME_IMAGE:
        execve(me.program, arguments, environ);
        break;
    case EMPTY_ENVIRONMENT:
        execve(me.program, arguments, nothing);
        break;
    case STATIC_IMAGE:
        execve(me.bystander, static_arguments, nothing);
        break;
    }
    _exit(127);
}

int receive_in_new_image(int channel) {
    int fd = receive_descriptor(channel);
    char line[64];
    size_t length = 0;
    while (length < sizeof line && get(fd, line + length, 1) == 1 && line[length] != '\n')
        length++;
    say("receiver: line \"%.*s\"", (int)length, line);
    put_text(fd, "answer to ");
    line[length] = '\n';
    put(fd, line, length + 1);
    return 0;
}

/* The receiver reads a line that was waiting and answers it; then the sender uses its own copy again,
 * in turns with nobody. */
static void share_with(enum image image) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread line\n");
        meet();
        expect_text(fd, "answer to unread line\n");
        put_text(fd, "for the owner");
        expect_text(fd, "owner");
        warm(fd);
        put_pattern(fd, 0, 100000, 1);
        expect_text(fd, "all of it");
        meet();
        return;
    }
    int channel;
    meet();
    await_readable(fd, 12);
    pid_t child = start_receiver(image, &channel, fd);
    send_descriptor(channel, fd);
    finish(child);
    expect_text(fd, "for the owner");
    put_text(fd, "owner");
    warm(fd);
    get_pattern(fd, 0, 100000, 1);
    put_text(fd, "all of it");
    meet();
}

void scenario_pass_to_same_program(void) {
    share_with(SAME_IMAGE);
}

void scenario_pass_to_disabled(void) {
    share_with(LIBRARY_OFF);
}

void scenario_pass_without_environment(void) {
    share_with(EMPTY_ENVIRONMENT);
}

void scenario_pass_to_static(void) {
    share_with(STATIC_IMAGE);
}

void scenario_pass_by_system_call(void) {
    by_system_call = true;
    share_with(STATIC_IMAGE);
}

void scenario_pass_to_forked(void) {
    share_with(FORKED);
}

/* The sender closes its copy as soon as it has passed it: the connection lives in the message. */
void scenario_pass_and_close(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "one ");
        meet();
        meet();
        put_text(fd, "line\n");
        expect_text(fd, "answer to one line\n");
        expect_end(fd);
        meet();
        return;
    }
    int channel;
    meet();
    await_readable(fd, 4);
    pid_t child = start_receiver(STATIC_IMAGE, &channel, fd);
    send_descriptor(channel, fd);
    close(fd);
    meet();
    finish(child);
    meet();
}

/* Passed while the peer is stopped and cannot help. */
void scenario_pass_while_peer_is_stopped(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "from a stopped process\n");
        tell(1);
        expect_text(fd, "answer to from a stopped process\n");
        meet();
        return;
    }
    int channel;
    told();
    await_readable(fd, 23);
    kill(me.peer, SIGSTOP);
    pid_t child = start_receiver(STATIC_IMAGE, &channel, fd);
    send_descriptor(channel, fd);
    finish(child);
    kill(me.peer, SIGCONT);
    meet();
}

/* Passed to ourselves: a second descriptor of the same connection. */
void scenario_pass_to_itself(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "abcdef");
        expect_text(fd, "xyz");
        expect_end(fd);
        meet();
        return;
    }
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0)
        return;
    await_readable(fd, 6);
    send_descriptor(ends[0], fd);
    int twin = T(receive_descriptor(ends[1]));
    expect_text(fd, "abc");
    expect_text(twin, "def");
    put_text(twin, "x");
    T(close(fd));
    put_text(twin, "yz");
    T(close(twin));
    meet();
}

/* Passed with bytes unread, which go back to TCP on the way; the peer has everything done and closes. The next call knows. */
static void close_after_passing(bool unread) {
    enum { ROUNDS = 40 };
    for (int round = 0; round < ROUNDS; round++) {
        int fd = connection();
        if (me.client) {
            put_text(fd, "unread");
            meet();
            meet();
            close(fd);
            meet();
            continue;
        }
        int ends[2];
        if (unread)
            put_text(fd, "unread");
        meet();
        await_readable(fd, 6);
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
        send_descriptor(ends[0], fd);
        close(receive_descriptor(ends[1]));
        close(ends[0]);
        close(ends[1]);
        meet();
        meet();
        if (unread) {
            T(send(fd, "x", 1, MSG_NOSIGNAL));
        } else {
            T(shutdown(fd, SHUT_RDWR));
            T(shutdown(fd, SHUT_WR));
        }
        close(fd);
    }
}

void scenario_closed_after_passing(void) {
    close_after_passing(false);
}

void scenario_reset_after_passing(void) {
    close_after_passing(true);
}
