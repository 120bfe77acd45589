/* A peer that is killed: its bytes arrive, then the end or a reset; nobody hangs. */
#include "actor.h"

#include <sys/prctl.h>

static void kill_peer(void) {
    kill(me.peer, SIGKILL);
}

static void wait_to_be_killed(void) {
    for (;;)
        pause();
}

/* A process that kills the peer as soon as this one sleeps. */
static pid_t start_killer(int fd) {
    pid_t killer = fork();
    if (killer == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(fd);
        await_asleep(getppid());
        kill_peer();
        _exit(0);
    }
    return killer;
}

/* Sends until that is refused, for some seconds at the most; what the last call returned. */
static ssize_t send_until_refused(int fd) {
    struct timespec start = now();
    ssize_t sent;
    while ((sent = send(fd, "x", 1, MSG_NOSIGNAL)) == 1 && elapsed_ms(&start) < 5000)
        usleep(1000);
    return sent;
}

static bool is_refusal(ssize_t sent) {
    return sent < 0 && (errno == EPIPE || errno == ECONNRESET);
}

/* Who waits for room is told to try. */
static void expect_room(int fd, int set) {
    struct pollfd item = {.fd = fd, .events = POLLOUT};
    struct epoll_event found;
    T(poll(&item, 1, 5000));
    say("room %d", (item.revents & POLLOUT) != 0);
    T(epoll_wait(set, &found, 1, 5000));
    say("room %d", (found.events & EPOLLOUT) != 0);
}

void scenario_peer_killed(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 40000, 1);
        tell(1);
        wait_to_be_killed();
    }
    told();
    kill_peer();
    say_poll("killed", await_bits(fd, POLLRDHUP));
    get_pattern(fd, 0, 40000, 1);
    expect_end(fd);
    expect_end(fd);
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    say_poll("reset", await_bits(fd, 0));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
}

/* The dead peer had not read everything: a reset, after the bytes that it had sent. */
void scenario_peer_killed_with_unread_bytes(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "testament");
        await_readable(fd, 6);
        tell(1);
        wait_to_be_killed();
    }
    put_text(fd, "unread");
    told();
    kill_peer();
    say_poll("killed", await_bits(fd, 0));
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(recv(fd, buffer, sizeof buffer, 0));
}

/* The same, behind the end of what the dead peer sent. */
void scenario_peer_killed_after_its_end_with_unread_bytes(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "testament");
        shutdown(fd, SHUT_WR);
        await_readable(fd, 6);
        tell(1);
        wait_to_be_killed();
    }
    put_text(fd, "unread");
    told();
    say_poll("ended", await_bits(fd, POLLRDHUP));
    kill_peer();
    say_poll("killed", await_bits(fd, 0));
    say_bytes("read", buffer, T(recv(fd, buffer, sizeof buffer, 0)));
    T(recv(fd, buffer, sizeof buffer, 0));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    say_poll("in the end", await_bits(fd, 0));
}

/* What a call that does not wait comes to in the end; it may be a moment until the peer is known to be dead. */
static void look_without_waiting(int fd, int flags) {
    char buffer[32];
    ssize_t count;
    for (int looks = 0; looks < 20; looks++) {
        count = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT | flags);
        if (count >= 0 || errno != EAGAIN)
            break;
        usleep(20000);
    }
    say_bytes("without waiting", buffer, count);
}

void scenario_peer_killed_seen_without_waiting(void) {
    int fd = connection();
    if (me.client) {
        tell(1);
        wait_to_be_killed();
    }
    told();
    kill_peer();
    look_without_waiting(fd, MSG_PEEK);
    look_without_waiting(fd, 0);
}

/* The peer lives on, and has reset the connection: that is seen at once. */
static void see_reset_without_waiting(bool by_unread_bytes) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        if (by_unread_bytes)
            await_readable(fd, 6);
        else
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
        close(fd);
        meet();
        meet();
        return;
    }
    if (by_unread_bytes)
        put_text(fd, "unread");
    meet();
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    meet();
}

void scenario_reset_seen_without_waiting(void) {
    see_reset_without_waiting(false);
}

void scenario_reset_by_unread_bytes_seen_without_waiting(void) {
    see_reset_without_waiting(true);
}

/* It was not the last that had the connection: that one goes on, and it is no end. */
void scenario_peer_killed_that_had_a_child(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        pid_t parent = getpid();
        if (fork() == 0) {
            await_readable(fd, 11);
            kill(parent, SIGKILL);
            while (getppid() == parent)
                usleep(1000);
            expect_text(fd, "unread then");
            put_text(fd, "the child");
            _exit(0);
        }
        wait_to_be_killed();
    }
    put_text(fd, "unread then");
    say_bytes("read", buffer, T(recv(fd, buffer, 9, MSG_WAITALL)));
    say_poll("ended", await_bits(fd, POLLRDHUP));
    T(recv(fd, buffer, sizeof buffer, 0));
}

void scenario_peer_killed_while_reading(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        wait_to_be_killed();
    }
    pid_t killer = start_killer(fd);
    T(recv(fd, buffer, sizeof buffer, 0));
    waitpid(killer, NULL, 0);
}

void scenario_peer_killed_while_writing(void) {
    int fd = connection();
    signal(SIGPIPE, SIG_IGN);
    if (me.client) {
        tell(1);
        wait_to_be_killed();
    }
    told();
    fill_up(fd, 1);
    pid_t killer = start_killer(fd);
    T(send(fd, "no room for this", 16, 0));
    T(send(fd, "x", 1, 0));
    waitpid(killer, NULL, 0);
}

/* Nobody will make room any more: whoever waits for it is told to try. */
void scenario_peer_killed_while_waiting_for_room(void) {
    int fd = connection();
    if (me.client) {
        tell(1);
        wait_to_be_killed();
    }
    told();
    fill_up(fd, 1);
    int sets[2] = {epoll_create1(0), epoll_create1(0)};
    struct epoll_event level = {.events = EPOLLOUT}, edge = {.events = EPOLLIN | EPOLLOUT | EPOLLET}, found;
    epoll_ctl(sets[0], EPOLL_CTL_ADD, fd, &level);
    epoll_ctl(sets[1], EPOLL_CTL_ADD, fd, &edge);
    while (epoll_wait(sets[1], &found, 1, 0) == 1)
        ;
    pid_t killer = start_killer(fd);
    expect_room(fd, sets[0]);
    fd_set writing;
    FD_ZERO(&writing);
    FD_SET(fd, &writing);
    struct timeval wait = {5, 0};
    T(select(fd + 1, NULL, &writing, NULL, &wait));
    expect_room(fd, sets[1]);
    say("refused %d", is_refusal(send_until_refused(fd)));
    waitpid(killer, NULL, 0);
}

/* Its end had come before, so nothing more comes that would tell of its death. */
void scenario_peer_killed_after_its_end(void) {
    int fd = connection();
    if (me.client) {
        shutdown(fd, SHUT_WR);
        expect_text(fd, "read");
        tell(1);
        wait_to_be_killed();
    }
    expect_end(fd);
    put_text(fd, "read");
    told();
    kill_peer();
    traced("refused", send_until_refused(fd));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    expect_end(fd);
}

void scenario_peer_killed_after_its_end_while_writing(void) {
    int fd = connection();
    if (me.client) {
        shutdown(fd, SHUT_WR);
        wait_to_be_killed();
    }
    expect_end(fd);
    fill_up(fd, 1);
    pid_t killer = start_killer(fd);
    T(send(fd, "no room for this", 16, MSG_NOSIGNAL));
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    waitpid(killer, NULL, 0);
}

void scenario_peer_killed_after_its_end_while_waiting_for_room(void) {
    int fd = connection();
    if (me.client) {
        shutdown(fd, SHUT_WR);
        wait_to_be_killed();
    }
    expect_end(fd);
    fill_up(fd, 1);
    struct epoll_event output = {.events = EPOLLOUT};
    int set = epoll_create1(0);
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &output);
    pid_t killer = start_killer(fd);
    expect_room(fd, set);
    T(send(fd, "x", 1, MSG_NOSIGNAL));
    waitpid(killer, NULL, 0);
}

/* The writer does not listen: to its kernel that looks like the peer's end. */
void scenario_peer_killed_while_a_deaf_one_writes(void) {
    int fd = connection();
    if (me.client) {
        tell(1);
        wait_to_be_killed();
    }
    told();
    shutdown(fd, SHUT_RD);
    fill_up(fd, 1);
    pid_t killer = start_killer(fd);
    say("refused %d", is_refusal(send(fd, "no room for this", 16, MSG_NOSIGNAL)));
    waitpid(killer, NULL, 0);
}

void scenario_peer_killed_while_polling(void) {
    int fd = connection();
    if (me.client)
        wait_to_be_killed();
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    pid_t killer = start_killer(fd);
    T(epoll_wait(set, &event, 1, 5000));
    say_epoll("killed", event.events);
    expect_end(fd);
    waitpid(killer, NULL, 0);
}

/* In the middle of a stream: whatever arrived is a correct beginning of it, then it ends. */
void scenario_peer_killed_in_mid_stream(void) {
    static unsigned char bytes[65536], wanted[65536];
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, (size_t)1 << 40, 2);
        return;
    }
    uint64_t offset = 0;
    bool correct = true;
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0) {
        fill_pattern(wanted, offset, n, 2);
        correct &= memcmp(bytes, wanted, n) == 0;
        if (offset < 5000000 && offset + n >= 5000000)
            kill_peer();
        offset += n;
    }
    say("a beginning of the stream: %s", correct && offset >= 5000000 ? "yes" : "no");
    say("last read %zd", n);
}

/* A stopped peer loses nothing and sends on when it goes on. */
void scenario_peer_stopped(void) {
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "before the stop");
        tell(1);
        expect_text(fd, "while stopped");
        put_text(fd, "going on");
        meet();
        return;
    }
    told();
    kill(me.peer, SIGSTOP);
    say_bytes("read", buffer, get(fd, buffer, 15));
    T(recv(fd, buffer, sizeof buffer, MSG_DONTWAIT));
    T(write(fd, "while stopped", 13));
    kill(me.peer, SIGCONT);
    say_bytes("read", buffer, get(fd, buffer, 8));
    meet();
}
