/* shutdown, close, reset, and what the other side then sees. */
#include "actor.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static volatile sig_atomic_t broken_pipes;

static void count_broken_pipe(int number) {
    (void)number;
    broken_pipes++;
}

static void catch_broken_pipes(void) {
    struct sigaction action = {.sa_handler = count_broken_pipe, .sa_flags = SA_RESTART};
    sigaction(SIGPIPE, &action, NULL);
}

static int pending_error(int fd) {
    int error = -1;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static void say_error(int fd) {
    int error = pending_error(fd);
    say("SO_ERROR %s", error ? strerrorname_np(error) : "none");
}

void scenario_half_close(void) {
    int fd = connection();
    catch_broken_pipes();
    if (me.client) {
        put_pattern(fd, 0, 100000, 1);
        T(shutdown(fd, SHUT_WR));
        T(shutdown(fd, SHUT_WR));
        T(write(fd, "x", 1));
        T(send(fd, "x", 1, MSG_NOSIGNAL));
        say("SIGPIPE %d", (int)broken_pipes);
        meet();
        get_pattern(fd, 0, 3000000, 2);
        expect_end(fd);
        meet();
        return;
    }
    get_pattern(fd, 0, 100000, 1);
    expect_end(fd);
    expect_end(fd);
    meet();
    put_pattern(fd, 0, 1000000, 2);
    put_pattern(fd, 1000000, 2000000, 2);
    close(fd);
    meet();
}

void scenario_shutdown_read(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "before");
        meet();
        meet();
        T(send(fd, "after", 5, MSG_NOSIGNAL));
        meet();
        expect_text(fd, "still writing");
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    T(shutdown(fd, SHUT_RD));
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    T(poll(&item, 1, 0));
    say_poll("after shutdown", item.revents);
    say_bytes("bytes from before", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    meet();
    meet();
    await_readable(fd, 5);
    say_bytes("bytes from after", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(write(fd, "still writing", 13));
    meet();
}

void scenario_shutdown_both(void) {
    char buffer[32];
    int fd = connection();
    catch_broken_pipes();
    if (me.client) {
        put_text(fd, "bytes on the way");
        meet();
        T(shutdown(fd, SHUT_RDWR));
        T(read(fd, buffer, sizeof buffer));
        T(write(fd, "x", 1));
        say("SIGPIPE %d", (int)broken_pipes);
        T(shutdown(fd, SHUT_RDWR));
        T(shutdown(fd, 5));
        meet();
        return;
    }
    meet();
    say_bytes("all", buffer, get(fd, buffer, 16));
    expect_end(fd);
    meet();
}

void scenario_shutdown_unconnected(void) {
    char byte;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    catch_broken_pipes();
    T(shutdown(fd, SHUT_WR));
    T(read(fd, &byte, 1));
    T(write(fd, &byte, 1));
    say("SIGPIPE %d", (int)broken_pipes);
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT};
    T(poll(&item, 1, 0));
    say_poll("unconnected", item.revents);
    T(shutdown(fd, SHUT_RDWR));
    meet();
}

/* Both sides write and close their direction at once; each still reads everything. */
void scenario_simultaneous_close(void) {
    int fd = connection();
    put_pattern(fd, 0, 20000, me.server);
    shutdown(fd, SHUT_WR);
    get_pattern(fd, 0, 20000, me.client);
    expect_end(fd);
    say_poll("closed", await_bits(fd, 0));
    close(fd);
    meet();
}

/* One direction ends after so many messages on a new connection, which may come to be lifted just then; the other goes on. */
static void end_after(int messages) {
    int fd = cold_connection();
    for (int i = 0; i < messages; i++) {
        bool mine = me.client == (i % 2 == 0);
        if (mine)
            put_pattern(fd, 40 * i, 40, 1);
        else
            get_pattern(fd, 40 * i, 40, 1);
        usleep(500);
        meet();
    }
    if (me.client) {
        shutdown(fd, SHUT_WR);
        for (int i = 0; i < 20; i++) {
            await_bits(fd, POLLIN);
            get_pattern(fd, 40 * i, 40, 2);
            meet();
        }
        expect_end(fd);
    } else {
        for (int i = 0; i < 20; i++) {
            say_poll("ended", await_bits(fd, POLLRDHUP));
            put_pattern(fd, 40 * i, 40, 2);
            meet();
        }
        expect_end(fd);
    }
    close(fd);
}

void scenario_half_close_of_the_new(void) {
    for (int messages = 0; messages < 20; messages++)
        end_after(messages);
}

/* The kernel has to know of both ends once the connection is back on TCP, though not before what is unread. */
void scenario_shutdown_both_then_lower_unread(void) {
    char buffer[32];
    int fd = connection();
    if (me.server) {
        put_text(fd, "unread");
        meet();
        meet();
        say_poll("ended", await_bits(fd, POLLRDHUP));
        expect_end(fd);
        return;
    }
    await_readable(fd, 6);
    meet();
    T(shutdown(fd, SHUT_RDWR));
    T(recv(fd, buffer, sizeof buffer, MSG_ERRQUEUE | MSG_DONTWAIT));
    struct pollfd item = {.fd = fd, .events = 0};
    T(poll(&item, 1, 0));
    say_poll("both", item.revents);
    meet();
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
}

/* Closing a socket with bytes nobody read resets the connection. */
void scenario_close_with_unread_bytes(void) {
    char buffer[32];
    int fd = connection();
    catch_broken_pipes();
    if (me.server) {
        await_readable(fd, 6);
        put_text(fd, "for the peer");
        T(close(fd));
        meet();
        meet();
        return;
    }
    put_text(fd, "unread");
    meet();
    say_poll("reset", await_bits(fd, 0));
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    T(write(fd, "x", 1));
    say("SIGPIPE %d", (int)broken_pipes);
    say_error(fd);
    meet();
}

void scenario_write_after_peer_closed(void) {
    int fd = connection();
    catch_broken_pipes();
    if (me.server) {
        T(close(fd));
        meet();
        return;
    }
    await_bits(fd, POLLRDHUP);
    T(write(fd, "first", 5));
    say_poll("answered by a reset", await_bits(fd, 0));
    T(write(fd, "second", 6));
    say("SIGPIPE %d", (int)broken_pipes);
    T(send(fd, "third", 5, MSG_NOSIGNAL));
    struct iovec part = {"fourth", 6};
    T(writev(fd, &part, 1));
    say("SIGPIPE %d", (int)broken_pipes);
    expect_end(fd);
    meet();
}

/* The default action of SIGPIPE still ends a process. */
void scenario_killed_by_broken_pipe(void) {
    int fd = connection();
    if (me.server) {
        close(fd);
        meet();
        return;
    }
    await_bits(fd, POLLRDHUP);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        put_text(fd, "first");
        await_bits(fd, 0);
        T(write(fd, "second", 6));
        say("! survived SIGPIPE");
        _exit(1);
    }
    int status;
    waitpid(child, &status, 0);
    say_status("writer", status);
    meet();
}

void scenario_so_error_after_reset(void) {
    char buffer[8];
    int fd = connection();
    if (me.server) {
        struct linger hard = {1, 0};
        T(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
        T(close(fd));
        meet();
        return;
    }
    /* The kernel tells of the error a moment before it tells of the end. */
    short bits;
    do
        bits = await_bits(fd, POLLIN);
    while (!(bits & POLLHUP) && bits != 0);
    say_poll("reset", bits);
    say_error(fd);
    say_error(fd);
    T(recv(fd, buffer, sizeof buffer, 0));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    T(shutdown(fd, SHUT_WR));
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLOUT};
    T(poll(&item, 1, 0));
    say_poll("afterwards", item.revents);
    meet();
}

/* SO_LINGER with time 0: the peer sees a reset, after whatever had arrived before. */
void scenario_linger_zero(void) {
    char buffer[32];
    int fd = connection();
    if (me.server) {
        struct linger hard = {1, 0};
        put_text(fd, "arrived before");
        meet();
        meet();
        T(setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
        T(close(fd));
        meet();
        return;
    }
    meet();
    await_readable(fd, 14);
    meet();
    say_poll("reset", await_bits(fd, 0));
    int readable = -1;
    T(ioctl(fd, FIONREAD, &readable));
    say("readable %d", readable);
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
    meet();
}

/* When close() has returned, the peer's kernel knows how: what a process with both ends sees at once. */
void scenario_close_is_known_at_once(void) {
    enum { END, RESET_WANTED, RESET_FOR_UNREAD, WAYS };
    for (int way = 0; way < WAYS && me.client; way++) {
        char buffer[32];
        int ends[2];
        struct linger hard = {1, 0};
        struct sockaddr_in peer;
        socklen_t length = sizeof peer;
        both_ends(ends);
        put_text(ends[0], "arrived before");
        if (way == RESET_WANTED)
            setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        if (way == RESET_FOR_UNREAD)
            put_text(ends[1], "unread");
        T(close(ends[0]));
        T(getpeername(ends[1], (struct sockaddr *)&peer, &length));
        struct pollfd item = {.fd = ends[1], .events = POLLIN | POLLOUT | POLLRDHUP};
        T(poll(&item, 1, 0));
        say_poll("closed", item.revents);
        say_bytes("read", buffer, T(recv(ends[1], buffer, sizeof buffer, MSG_DONTWAIT)));
        T(recv(ends[1], buffer, sizeof buffer, MSG_DONTWAIT));
        T(recv(ends[1], buffer, sizeof buffer, MSG_DONTWAIT));
        close(ends[1]);
    }
    meet();
}

/* SO_LINGER with time: close() returns when the peer has the bytes. */
void scenario_linger_waits(void) {
    int fd = connection();
    if (me.server) {
        struct linger soft = {1, 5};
        T(setsockopt(fd, SOL_SOCKET, SO_LINGER, &soft, sizeof soft));
        put_pattern(fd, 0, 50000, 1);
        T(close(fd));
        meet();
        return;
    }
    get_pattern(fd, 0, 50000, 1);
    expect_end(fd);
    meet();
}

/* Everything written before close() arrives, however much is still on the way. */
void scenario_close_right_after_writing(void) {
    int fd = connection();
    if (me.server) {
        size_t total = fill_up(fd, 3);
        T(close(fd));
        tell(total);
        meet();
        return;
    }
    get_pattern(fd, 0, told(), 3);
    expect_end(fd);
    meet();
}

/* exit() without close(): the same. */
void scenario_exit_right_after_writing(void) {
    int fd = connection();
    if (me.server) {
        size_t total = fill_up(fd, 3);
        tell(total);
        say("leaving");
        exit(3);
    }
    get_pattern(fd, 0, told(), 3);
    expect_end(fd);
}

static int bequest;

static void bequeath(void) {
    T(send(bequest, "bye", 3, MSG_NOSIGNAL));
    fflush(stdout);
}

/* What the last destructor of all sends before the process ends still arrives. */
void scenario_send_by_a_destructor(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "bye");
        expect_end(fd);
        meet();
        return;
    }
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        void *library = dlopen(me.will, RTLD_NOW);
        void (**will)(void) = library ? dlsym(library, "will") : NULL;
        if (!will)
            _exit(1);
        bequest = fd;
        *will = bequeath;
        exit(0);
    }
    close(fd);
    int status;
    waitpid(child, &status, 0);
    say_status("child", status);
    meet();
}

struct torrent {
    int fd;
    _Atomic long sent; /* by calls that have returned */
    _Atomic bool failed;
};

static void *pour(void *argument) {
    struct torrent *torrent = argument;
    char message[256] = {0};
    for (;;) {
        ssize_t sent = send(torrent->fd, message, sizeof message, 0);
        if (sent < 0)
            torrent->failed = true;
        else
            torrent->sent += sent;
    }
}

/* The bytes that come until the end of the stream. */
static long drain(int fd) {
    static char buffer[1 << 16];
    long total = 0;
    ssize_t got;
    while ((got = recv(fd, buffer, sizeof buffer, 0)) > 0)
        total += got;
    if (got < 0)
        say("! no end: %s", strerror(errno));
    return total;
}

/* A process ends while a thread of it sends: that thread never learns of the end, and what it has sent arrives. */
static struct torrent *torrent;

static void leave_while_a_thread_sends(void (*leave)(int)) {
    torrent = mmap(NULL, sizeof *torrent, PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 10; round++) {
        if (me.client) {
            int fd = connection();
            long total = drain(fd);
            if (total < told())
                say("! bytes are lost");
            close(fd);
            continue;
        }
        *torrent = (struct torrent){0};
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            pthread_t thread;
            signal(SIGPIPE, SIG_DFL);
            torrent->fd = connection();
            pthread_create(&thread, NULL, pour, torrent);
            while (torrent->sent < 20000)
                sched_yield();
            leave(7);
        }
        int status;
        waitpid(child, &status, 0);
        say_status("child", status);
        say("failed: %d", torrent->failed);
        tell(torrent->sent);
    }
}

/* The thread goes on while destructors run. */
static void await_more(void) {
    long before = torrent->sent;
    while (torrent->sent < before + 20000 && !torrent->failed)
        sched_yield();
}

static void leave_slowly(int status) {
    void *library = dlopen(me.will, RTLD_NOW);
    void (**will)(void) = library ? dlsym(library, "will") : NULL;
    if (will)
        *will = await_more;
    exit(will ? status : 1);
}

void scenario_exit_while_a_thread_sends(void) {
    leave_while_a_thread_sends(leave_slowly);
}

void scenario_bare_exit_while_a_thread_sends(void) {
    leave_while_a_thread_sends(_exit);
}

void scenario_quick_exit_while_a_thread_sends(void) {
    leave_while_a_thread_sends(quick_exit);
}

/* What had come before a reset is still read, though a child has started another program on the connection meanwhile. */
void scenario_read_after_reset_and_exec(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "before the reset");
        await_readable(fd, 6);
        T(close(fd));
        meet();
        return;
    }
    put_text(fd, "unread");
    await_bits(fd, POLLHUP);
    pid_t child = fork();
    if (child == 0) {
        execlp("true", "true", NULL);
        _exit(127);
    }
    waitpid(child, NULL, 0);
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
    meet();
}

/* The server becomes another program, which resets the connection with what it has not read. */
static void reset_after_exec(int fd, int flags) {
    if (me.server) {
        char number[16];
        snprintf(number, sizeof number, "%d", fd);
        await_readable(fd, 17);
        execl(me.program, "actor", "resume", "drop", number, NULL);
        say("! exec failed");
    }
    put_text(fd, "that nobody reads");
    char byte;
    meet();
    T(recv(fd, &byte, 1, flags));
    meet();
    meet();
}

/* A child, which the node service has told nothing, finds that there is nobody to send to. */
void scenario_send_after_reset_of_the_lowered(void) {
    int fd = connection();
    if (me.client)
        shutdown(fd, SHUT_RD);
    reset_after_exec(fd, MSG_PEEK);
    pid_t child = fork();
    if (child == 0) {
        T(send(fd, "to nobody", 9, MSG_NOSIGNAL));
        T(send(fd, "to nobody", 9, MSG_NOSIGNAL));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    T(send(fd, "to nobody", 9, MSG_NOSIGNAL));
}

/* A send that has sent something leaves the error to the next call. */
void scenario_error_after_short_send(void) {
    static char bytes[12000000];
    int fd = connection();
    if (me.client) {
        long sent = send(fd, bytes, sizeof bytes, MSG_NOSIGNAL);
        say("some %d, all %d", sent > 0, sent == sizeof bytes);
        T(recv(fd, bytes, 1, 0));
        T(recv(fd, bytes, 1, 0));
        T(send(fd, bytes, 1, MSG_NOSIGNAL));
        meet();
        return;
    }
    usleep(200000);
    struct linger linger = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
    meet();
}

/* There is room for whatever one would send then. */
void scenario_room_after_reset_of_the_lowered(void) {
    int fd = connection();
    reset_after_exec(fd, MSG_DONTWAIT);
    for (int i = 0; i < 2; i++) {
        pid_t child = i == 0 ? fork() : -1;
        if (child > 0) {
            waitpid(child, NULL, 0);
            continue;
        }
        struct pollfd one = {fd, POLLIN | POLLOUT | POLLPRI, 0};
        long count = poll(&one, 1, 0);
        say("poll: %ld", count);
        say_poll("now", one.revents);
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT}, found = {0, {0}};
        epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
        epoll_wait(set, &found, 1, 0);
        say_epoll("epoll", found.events);
        close(set);
        if (child == 0) {
            fflush(stdout);
            _exit(0);
        }
    }
}

static void see_a_reset(int fd) {
    char buffer[32];
    put_text(fd, "unread");
    say_poll("reset", await_bits(fd, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
    meet();
}

/* A process that ends with unread bytes resets the connection, by whichever door it leaves. */
static void leave_with_unread_bytes(void (*leave)(void)) {
    int fd = connection();
    if (me.client) {
        meet();
        see_a_reset(fd);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        await_readable(fd, 6);
        leave();
    }
    T(close(fd));
    meet();
    waitpid(child, NULL, 0);
    meet();
}

static void leave_barely(void) {
    _exit(0);
}

static void leave_quickly(void) {
    quick_exit(0);
}

static void leave_by_group(void) {
    syscall(SYS_exit_group, 0);
}

static void leave_by_thread(void) {
    syscall(SYS_exit, 0);
}

void scenario_bare_exit_with_unread_bytes(void) {
    leave_with_unread_bytes(leave_barely);
}

void scenario_quick_exit_with_unread_bytes(void) {
    leave_with_unread_bytes(leave_quickly);
}

void scenario_system_call_exit_with_unread_bytes(void) {
    leave_with_unread_bytes(leave_by_group);
}

void scenario_last_thread_ends_with_unread_bytes(void) {
    leave_with_unread_bytes(leave_by_thread);
}

/* A child that ends by _exit() has closed its descriptors: the parent's close with unread bytes is the last, and resets. */
void scenario_bare_exit_of_a_relative(void) {
    int fd = connection();
    if (me.client) {
        meet();
        see_a_reset(fd);
        return;
    }
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
    meet();
    await_readable(fd, 6);
    T(close(fd));
    meet();
}

static void lower_unread(int fd) {
    meet();
    char buffer[16] = {0};
    T(read(fd, buffer, 6));
    say("read %s", buffer);
    FILE *in = fdopen(fd, "r");
    say("%s", fgets(buffer, sizeof buffer, in) ? buffer : "nothing");
    say("%s", fgets(buffer, sizeof buffer, in) ? buffer : "the end");
    meet();
    fclose(in);
}

/* The last process that has the connection has written, and ends by _exit(): stdio needs the rest in the kernel. */
void scenario_bare_exit_then_lower_unread(void) {
    int fd = connection();
    if (me.client) {
        lower_unread(fd);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        put_text(fd, "first,second\n");
        _exit(0);
    }
    close(fd);
    waitpid(child, NULL, 0);
    meet();
    meet();
}

/* The peer has written and closed; what was not read is read by stdio, which needs it in the kernel. */
void scenario_close_then_lower_unread(void) {
    int fd = connection();
    if (me.server) {
        put_text(fd, "first,second\n");
        close(fd);
        meet();
        meet();
        return;
    }
    lower_unread(fd);
}

/* The peer has written and closed; this end reads some, writes, and reads the rest. */
void scenario_close_then_write_before_reading(void) {
    int fd = connection();
    signal(SIGPIPE, SIG_IGN);
    if (me.server) {
        put_text(fd, "first,second");
        close(fd);
        meet();
        meet();
        return;
    }
    meet();
    char buffer[16] = {0};
    T(read(fd, buffer, 6));
    put_text(fd, "x");
    await_bits(fd, POLLHUP);
    T(write(fd, "y", 1));
    T(read(fd, buffer, 6));
    T(read(fd, buffer, 6));
    meet();
}

/* The peer has sent all the bytes there were, and closes while the last are unread: the first answer of this end, and so the first that
 * it sends at all, is taken, and one after it is refused. */
void scenario_first_answer_after_close(void) {
    enum { ROUNDS = 500 };
    int fd = cold_connection();
    for (int round = 0; round < ROUNDS; round++) {
        char byte = 0;
        if (me.client) {
            put(fd, &byte, 1);
            usleep(200);
        } else {
            get(fd, &byte, 1);
        }
    }
    if (me.client) {
        put_text(fd, "unread");
        close(fd);
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    int taken = 0;
    while (taken < 1000 && send(fd, "y", 1, MSG_NOSIGNAL) == 1) {
        taken++;
        usleep(1000);
    }
    say("the first is %s, a later one %s", taken > 0 ? "taken" : "refused", taken < 1000 ? "refused" : "taken");
}

/* After the peer's end one write is taken, and answered by a reset: the next is refused, however soon it comes. */
void scenario_writes_after_peer_closed(void) {
    enum { ROUNDS = 60 };
    for (int round = 0; round < ROUNDS; round++) {
        int fd = connection();
        if (me.client) {
            close(fd);
            continue;
        }
        expect_end(fd);
        for (int n = 0; n < 3; n++) {
            T(send(fd, "x", 1, MSG_NOSIGNAL));
            usleep(3000);
        }
        close(fd);
    }
}

/* The peer resets the connection while a call waits for more than has come: it returns what there is, and the next call has the error. */
void scenario_reset_while_waiting_for_all(void) {
    enum { ROUNDS = 60 };
    char buffer[1000];
    for (int round = 0; round < ROUNDS; round++) {
        int fd = connection();
        if (me.client) {
            await_readable(fd, 6);
            put_text(fd, "some");
            for (int turns = round % 8; turns > 0; turns--)
                sched_yield();
            close(fd);
            continue;
        }
        put_text(fd, "unread");
        T(recv(fd, buffer, sizeof buffer, MSG_WAITALL));
        T(recv(fd, buffer, sizeof buffer, MSG_WAITALL));
        T(recv(fd, buffer, sizeof buffer, 0));
        close(fd);
    }
}

/* With both directions ended there is no peer any more. */
void scenario_peer_name_after_both_ends(void) {
    int fd = connection();
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    if (me.client) {
        put_text(fd, "the last word");
        T(shutdown(fd, SHUT_WR));
        T(getpeername(fd, (struct sockaddr *)&address, &length));
        meet();
        meet();
        T(getpeername(fd, (struct sockaddr *)&address, &length));
        expect_end(fd);
        T(syscall(SYS_getpeername, fd, &address, &length));
        meet();
        return;
    }
    meet();
    await_readable(fd, 13);
    T(getpeername(fd, (struct sockaddr *)&address, &length));
    T(shutdown(fd, SHUT_WR));
    T(getpeername(fd, (struct sockaddr *)&address, &length));
    meet();
    expect_text(fd, "the last word");
    expect_end(fd);
    T(getpeername(fd, (struct sockaddr *)&address, &length));
    meet();
}
