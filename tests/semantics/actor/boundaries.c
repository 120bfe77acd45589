/* Where a stream goes over from one way of travelling to another, or ends: things that random programs have found. */
#include "actor.h"

#include <sys/sendfile.h>

static volatile sig_atomic_t broken_pipes;

static void count_broken_pipe(int number) {
    (void)number;
    broken_pipes++;
}

static void catch_broken_pipes(void) {
    struct sigaction action = {.sa_handler = count_broken_pipe, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, NULL);
}

/* Whatever a program started inherits has to be whole in the kernel. */
static void run_another_program(void) {
    say_status("system", system(":"));
}

static void say_error(int fd) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    say("SO_ERROR %s", error ? strerrorname_np(error) : "none");
}

static void say_ready(const char *label, int fd) {
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    poll(&item, 1, 0);
    say_poll(label, item.revents);
}

/* More than the smallest buffer holds, unread: one call looks at all of it, one takes all of it. */
void scenario_all_in_one_read(void) {
    static char buffer[65536];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 100, 1);
        put_pattern(fd, 100, 12000, 1);
        meet();
        meet();
        put_pattern(fd, 0, 20000, 2);
        meet();
        return;
    }
    meet();
    await_readable(fd, 12100);
    say_bytes("peek", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    meet();
    await_readable(fd, 20000);
    T(recv(fd, buffer, sizeof buffer, MSG_TRUNC));
    meet();
}

/* A peek that waits until there is as much as it wants. */
void scenario_peek_for_all(void) {
    char buffer[8];
    int fd = connection();
    if (me.client) {
        put_text(fd, "half");
        meet();
        await_asleep(me.peer);
        put_text(fd, "half");
        meet();
        return;
    }
    meet();
    await_readable(fd, 4);
    say_bytes("peek", buffer, T(recv(fd, buffer, 8, MSG_PEEK | MSG_WAITALL)));
    say_bytes("recv", buffer, T(recv(fd, buffer, 8, 0)));
    meet();
}

/* Several messages at once: at the end of the stream each is one of no bytes; an error comes before any. */
void scenario_recvmmsg_ends(void) {
    char room[3][8];
    struct iovec pieces[3];
    struct mmsghdr messages[3] = {0};
    int fd = connection();
    if (me.client) {
        put_text(fd, "ten bytes.");
        close(fd);
        meet();
        return;
    }
    meet();
    await_bits(fd, POLLRDHUP);
    for (int i = 0; i < 3; i++) {
        pieces[i] = (struct iovec){room[i], sizeof room[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    T(recvmmsg(fd, messages, 3, MSG_DONTWAIT, NULL));
    for (int i = 0; i < 3; i++)
        say("message %d: %u", i, messages[i].msg_len);
    T(send(fd, "to nobody", 9, MSG_NOSIGNAL));
    await_bits(fd, POLLHUP);
    T(recvmmsg(fd, messages, 3, MSG_DONTWAIT, NULL));
    T(recvmmsg(fd, messages, 3, MSG_DONTWAIT, NULL));
}

/* What comes after both directions were shut down is answered with a reset, and both see it. */
void scenario_send_to_shut_down(void) {
    char buffer[8];
    int fd = connection();
    if (me.client) {
        T(shutdown(fd, SHUT_RDWR));
        say_ready("after shutdown", fd);
        meet();
        meet();
        await_bits(fd, POLLERR);
        T(send(fd, "x", 1, MSG_NOSIGNAL));
        T(send(fd, "x", 1, MSG_NOSIGNAL));
        T(recv(fd, buffer, sizeof buffer, 0));
        return;
    }
    meet();
    await_bits(fd, POLLRDHUP);
    T(send(fd, "unwanted", 8, MSG_NOSIGNAL));
    await_bits(fd, POLLHUP);
    T(send(fd, "unwanted", 8, MSG_NOSIGNAL));
    meet();
}

/* The same where much is unread at first: who reads it to the end refuses the rest. */
void scenario_send_to_shut_down_and_emptied(void) {
    static char bytes[100000];
    int fd = connection();
    if (me.client) {
        while (send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) > 0)
            continue;
        say("then %s", strerrorname_np(errno));
        meet();
        return;
    }
    usleep(200000);
    T(shutdown(fd, SHUT_RDWR));
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        continue;
    meet();
}

/* A program that does not listen any more still sends as before. */
void scenario_send_after_shutdown_read(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        T(shutdown(fd, SHUT_RD));
        put_text(fd, "still here");
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 10);
    say_bytes("recv", buffer, T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT)));
    meet();
}

/* When both directions have ended there is no connection to shut down. */
void scenario_shutdown_again(void) {
    int fd = connection();
    if (me.client)
        meet();
    T(shutdown(fd, SHUT_WR));
    if (me.server)
        meet();
    await_bits(fd, POLLHUP);
    meet();
    T(shutdown(fd, SHUT_WR));
    T(shutdown(fd, SHUT_RDWR));
    meet();
}

/* An error that waits comes before the broken pipe of a direction that was shut down. */
void scenario_error_before_broken_pipe(void) {
    int fd = connection();
    catch_broken_pipes();
    if (me.client) {
        struct linger linger = {.l_onoff = 1};
        T(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
        close(fd);
        meet();
        return;
    }
    meet();
    await_bits(fd, POLLERR);
    T(shutdown(fd, SHUT_WR));
    T(send(fd, "x", 1, 0));
    T(send(fd, "x", 1, 0));
    say("SIGPIPE %d", (int)broken_pipes);
}

/* A reset that comes after the peer's end breaks a pipe. */
void scenario_reset_after_end(void) {
    int fd = connection();
    catch_broken_pipes();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        await_readable(fd, 11);
        T(shutdown(fd, SHUT_WR));
        close(fd);
        meet();
        return;
    }
    put_text(fd, "unread, too");
    meet();
    meet();
    await_readable(fd, 6);
    await_bits(fd, POLLERR);
    T(send(fd, "x", 1, 0));
    say_error(fd);
    T(send(fd, "x", 1, 0));
    say("SIGPIPE %d", (int)broken_pipes);
}

/* A call that got less than it waits for, because of a reset, leaves the error to the next. */
void scenario_waitall_before_reset(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        meet();
        put_text(fd, "all there is");
        await_readable(fd, 6);
        close(fd);
        meet();
        return;
    }
    put_text(fd, "unread");
    meet();
    meet();
    await_bits(fd, POLLERR);
    T(recv(fd, buffer, 20, MSG_WAITALL));
    T(recv(fd, buffer, 20, 0));
    T(recv(fd, buffer, 20, 0));
}

/* A file sent into a direction that was shut down, to a peer that is gone. */
void scenario_sendfile_after_end(void) {
    int fd = connection();
    catch_broken_pipes();
    if (me.client) {
        meet();
        close(fd);
        meet();
        return;
    }
    T(shutdown(fd, SHUT_WR));
    meet();
    meet();
    await_bits(fd, POLLHUP);
    FILE *file = tmpfile();
    fputs("contents", file);
    fflush(file);
    off_t at = 0;
    T(sendfile(fd, fileno(file), &at, 8));
    say("SIGPIPE %d", (int)broken_pipes);
}

/* The other side has just run another program, with bytes unread: nothing of that shows here, not even in a program that
 * never waits. */
void scenario_peer_ran_another(void) {
    char buffer[16];
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        meet();
        fcntl(fd, F_SETFL, O_NONBLOCK);
        say_ready("after the other's program", fd);
        T(recv(fd, buffer, sizeof buffer, 0));
        T(send(fd, "more", 4, 0));
        say_ready("after sending", fd);
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    run_another_program();
    meet();
    meet();
    expect_text(fd, "unreadmore");
    meet();
}

/* The same, and a child of the other side is the first to send. */
void scenario_peer_ran_another_then_fork(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        meet();
        pid_t child = fork();
        if (child == 0) {
            put_text(fd, " from the child");
            _exit(0);
        }
        int status;
        waitpid(child, &status, 0);
        say_status("child", status);
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    run_another_program();
    meet();
    expect_text(fd, "unread from the child");
    meet();
}

/* The same, and the first that it hears is the end. */
void scenario_peer_ran_another_then_end(void) {
    int fd = connection();
    if (me.client) {
        meet();
        T(shutdown(fd, SHUT_WR));
        meet();
        expect_text(fd, "heard");
        return;
    }
    run_another_program();
    meet();
    expect_end(fd);
    put_text(fd, "heard");
    meet();
}

/* The same, and the first that it sends is a file. */
void scenario_peer_ran_another_then_file(void) {
    int fd = connection();
    if (me.client) {
        FILE *file = tmpfile();
        fputs("contents", file);
        fflush(file);
        off_t at = 0;
        meet();
        T(sendfile(fd, fileno(file), &at, 8));
        meet();
        return;
    }
    run_another_program();
    meet();
    expect_text(fd, "contents");
    meet();
}

/* Bytes from before and after this side ran another program come in one read. */
void scenario_read_across_programs(void) {
    static char buffer[4096];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 31, 1);
        run_another_program();
        put_pattern(fd, 31, 2000, 1);
        meet();
        meet();
        return;
    }
    meet();
    await_readable(fd, 2031);
    say_bytes("peek", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    say_bytes("read", buffer, T(read(fd, buffer, 1500)));
    say_bytes("read", buffer, T(read(fd, buffer, sizeof buffer)));
    meet();
}

/* Both sides run other programs, one after the other, before either has read anything: the programs find it all. */
static void both_run_others(size_t unread, size_t read_before, size_t read_between) {
    static char buffer[1 << 20];
    char number[16], count[16];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, unread, 1);
        meet();
        meet();
        run_another_program();
        put_pattern(fd, unread, 2000, 1);
        meet();
        meet();
        /* What the other program answers is the other direction, lowered twice as well. */
        T(get(fd, buffer, 11));
        say_bytes("answer", buffer, 11);
        T(get(fd, buffer, 10));
        say_bytes("answer", buffer, 10);
        expect_end(fd);
        return;
    }
    meet();
    await_readable(fd, unread < 60000 ? unread : 60000); /* more the kernel does not show */
    put_text(fd, "from server");
    get_pattern(fd, 0, read_before, 1);
    meet();
    meet();
    if (unread < 100000)
        await_readable(fd, unread + 2000 - read_before);
    get_pattern(fd, read_before, read_between, 1);
    say_bytes("peek", buffer, T(recv(fd, buffer, 1000, MSG_PEEK)));
    meet();
    snprintf(number, sizeof number, "%d", fd);
    snprintf(count, sizeof count, "%zu", unread + 2000 - read_before - read_between);
    execl(me.bystander, "bystander", "answer", number, count, "that's all", NULL);
    say("! exec failed");
}

void scenario_both_ran_another(void) {
    both_run_others(1000, 0, 0);
}

void scenario_both_ran_another_half_read(void) {
    both_run_others(60000, 12345, 0);
}

void scenario_both_ran_another_read_on(void) {
    both_run_others(60000, 12345, 20000);
}

void scenario_both_ran_another_large(void) {
    both_run_others(600000, 5, 0);
}

/* More than a program's first ring holds, and both at once. */
void scenario_both_ran_another_at_once(void) {
    char number[16];
    int fd = connection();
    put_pattern(fd, 0, 50000, me.client ? 1 : 2);
    await_readable(fd, 50000);
    meet();
    snprintf(number, sizeof number, "%d", fd);
    execl(me.bystander, "bystander", "answer", number, "50000", "!", NULL);
    say("! exec failed");
}

/* After a side has run another program, everything in its ring and behind is read, or counted, once. */
void scenario_read_behind_another_program(void) {
    static char buffer[65536];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 30000, 1);
        meet();
        run_another_program();
        put_pattern(fd, 30000, 10000, 1);
        meet();
        meet();
        expect_end(fd);
        say_error(fd);
        meet();
        return;
    }
    int count;
    meet();
    meet();
    await_readable(fd, 40000);
    T(ioctl(fd, FIONREAD, &count));
    say("FIONREAD %d", count);
    say_ready("before", fd);
    say_bytes("read", buffer, T(read(fd, buffer, 29999)));
    T(ioctl(fd, FIONREAD, &count));
    say("FIONREAD %d", count);
    say_bytes("peek", buffer, T(recv(fd, buffer, sizeof buffer, MSG_PEEK)));
    say_bytes("read", buffer, T(read(fd, buffer, 1)));
    say_bytes("read", buffer, T(read(fd, buffer, sizeof buffer)));
    say_ready("after", fd);
    T(recv(fd, buffer, 1, MSG_DONTWAIT));
    close(fd);
    meet();
    meet();
}

/* Exactly what was unread is read, no more is asked for, and the close is an ordinary end. */
void scenario_read_all_behind_another_program(void) {
    static char buffer[65536];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 30000, 1);
        meet();
        run_another_program();
        meet();
        meet();
        expect_end(fd);
        say_error(fd);
        meet();
        return;
    }
    meet();
    meet();
    await_readable(fd, 30000);
    say_bytes("read", buffer, T(get(fd, buffer, 30000)));
    say_ready("after", fd);
    close(fd);
    meet();
    meet();
}

/* A direction that was shut down, with bytes unread, is so in another program too. */
void scenario_other_program_after_shutdown(void) {
    static char buffer[65536];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 5000, 1);
        meet();
        T(shutdown(fd, SHUT_WR));
        char command[64];
        snprintf(command, sizeof command, "trap '' PIPE; echo late 2>/dev/null >&%d", fd);
        say("echo succeeds: %d", system(command) == 0);
        meet();
        meet();
        return;
    }
    meet();
    meet();
    await_readable(fd, 5000);
    say_bytes("read", buffer, T(get(fd, buffer, sizeof buffer)));
    say_ready("after", fd);
    meet();
}

/* The server lowers with more unread than TCP has room for. */
static size_t lower_more_than_fits(int fd, unsigned seed) {
    int on = 1;
    size_t count = me.client ? fill_up(fd, seed) : 0;
    if (me.client)
        tell(count);
    else
        count = told();
    signal(SIGIO, SIG_IGN);
    if (me.server)
        T(ioctl(fd, FIOASYNC, &on));
    meet();
    return count;
}

/* A connection with small buffers at both ends. */
static int narrow_connection(void) {
    int size = 4096;
    if (me.server)
        T(setsockopt(me.listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof size));
    meet();
    int fd = connection();
    if (me.client)
        T(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
    return fd;
}

/* Both ends lower, one after the other, and what the first had not read is not all on TCP when the second sends more. */
void scenario_both_lowered_while_full(void) {
    enum { MORE = 1000 };
    int fd = narrow_connection(), on = 1;
    size_t count = lower_more_than_fits(fd, 1);
    if (me.client) {
        unsigned char more[MORE];
        T(ioctl(fd, FIOASYNC, &on));
        fill_pattern(more, count, sizeof more, 1);
        ssize_t sent = send(fd, more, sizeof more, MSG_DONTWAIT);
        sent = sent < 0 ? 0 : sent;
        meet();
        put_pattern(fd, count + sent, MORE - sent, 1);
    } else {
        meet();
        get_pattern(fd, 0, count + MORE, 1);
    }
    meet();
    close(fd);
}

/* One end lowers, the other ends its direction while not all is on TCP, and makes no further call. */
void scenario_end_behind_lowered_bytes(void) {
    int fd = narrow_connection();
    size_t count = lower_more_than_fits(fd, 2);
    if (me.client) {
        T(shutdown(fd, SHUT_WR));
        meet();
    } else {
        meet();
        get_pattern(fd, 0, count, 2);
        expect_end(fd);
    }
    meet();
    close(fd);
}
