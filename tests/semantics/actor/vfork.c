/* Children of vfork, which have their parent's memory and descriptors of their own: what one puts under a connection's number is no
 * connection, and the parent's stays as it is. */
#include "actor.h"

#include <pthread.h>
#include <sys/mman.h>

static volatile long in_child[4];

static void written_by_child(int fd, int file, bool closes_all) {
    char text[16] = "";
    pid_t child = vfork();
    if (child == 0) {
        if (closes_all) {
            int kept = dup2(file, 1);
            close_range(2, ~0U, 0);
            in_child[0] = dup2(kept, fd) == fd;
        } else {
            in_child[0] = dup2(file, fd) == fd;
        }
        in_child[1] = write(fd, "to the file", 11);
        in_child[2] = lseek(fd, 0, SEEK_SET);
        in_child[3] = shutdown(fd, SHUT_RDWR);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    for (size_t i = 0; i < COUNT(in_child); i++)
        say("child %ld", in_child[i]);
    say_bytes("the file", text, pread(file, text, sizeof text, 0));
    T(ftruncate(file, 0));
    lseek(file, 0, SEEK_SET);
}

void scenario_vfork_child_has_other_files(void) {
    static char header[4];
    int fd = connection();
    if (me.client) {
        put_text(fd, "for the parent");
        meet();
        expect_text(fd, "from the parent");
        expect_end(fd);
        return;
    }
    meet();
    await_readable(fd, 14);
    int file = memfd_create("file", 0);
    written_by_child(fd, file, false);
    written_by_child(fd, file, true);
    pid_t child = vfork();
    if (child == 0) {
        close(fd);
        int opened = open(me.program, O_RDONLY);
        in_child[0] = fcntl(opened, F_DUPFD, fd) == fd || opened == fd;
        in_child[1] = read(fd, header, sizeof header);
        struct pollfd at_once = {.fd = fd, .events = POLLIN};
        in_child[2] = poll(&at_once, 1, 0);
        in_child[3] = ioctl(fd, FIOCLEX) == 0;
        _exit(0);
    }
    waitpid(child, NULL, 0);
    for (size_t i = 0; i < COUNT(in_child); i++)
        say("child %ld", in_child[i]);
    say_bytes("it read", header, sizeof header);
    expect_text(fd, "for the parent");
    put_text(fd, "from the parent");
    close(fd);
}

/* A child makes `file`, put under the connection's number, non-blocking or not; with -1 the connection itself. */
static void set_flags_by_child(int fd, int file, int flags) {
    pid_t child = vfork();
    if (child == 0) {
        if (file >= 0)
            dup2(file, fd);
        fcntl(fd, F_SETFL, flags);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

void scenario_vfork_child_sets_nonblocking(void) {
    for (int turn = 0; turn < 4; turn++) {
        bool young = turn % 2, replaces = turn / 2;
        char text[8];
        int ends[2], fd = young ? cold_connection() : connection();
        if (pipe(ends) != 0)
            return;
        if (young) {
            hello(fd);
            if (me.server)
                set_flags_by_child(fd, replaces ? ends[0] : -1, O_NONBLOCK);
            if (me.server && !replaces)
                set_flags_by_child(fd, -1, 0);
            warm(fd);
        }
        meet();
        if (me.server) {
            set_flags_by_child(fd, replaces ? ends[0] : -1, O_NONBLOCK);
            say("non-blocking %d", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
            if (!replaces)
                T(recv(fd, text, sizeof text, 0));
            meet();
            if (!replaces)
                await_readable(fd, 4);
            say_bytes("received", text, recv(fd, text, sizeof text, 0));
        } else {
            meet();
            if (replaces)
                await_asleep(me.peer);
            put_text(fd, "late");
        }
        meet();
        close(fd);
        close(ends[0]);
        close(ends[1]);
    }
}

/* The same number is one connection to the parent and another to its child, which goes on as another program. */
void scenario_vfork_child_exchanges_connections(void) {
    for (int turn = 0; turn < 2; turn++) {
        int first = connection(), second = connection();
        if (me.server) {
            put_text(first, "first ");
            pid_t child = vfork();
            if (child == 0) {
                dup2(second, first);
                if (turn == 1) {
                    in_child[0] = write(first, "child ", 6);
                    close(second);
                }
                execlp("true", "true", NULL);
                _exit(127);
            }
            waitpid(child, NULL, 0);
            put_text(first, "connection");
            put_text(second, "second connection");
            expect_text(first, "back");
            expect_text(second, "and back");
        } else {
            expect_text(first, "first connection");
            expect_text(second, turn == 1 ? "child second connection" : "second connection");
            put_text(first, "back");
            put_text(second, "and back");
        }
        meet();
        close(first);
        close(second);
    }
}

/* What the child has from its parent, it uses under the number that it has there. */
void scenario_vfork_child_uses_connection(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "one two ");
        expect_text(fd, "a parent and a child");
        expect_end(fd);
        return;
    }
    await_readable(fd, 8);
    static char text[8];
    put_text(fd, "a parent ");
    pid_t child = vfork();
    if (child == 0) {
        in_child[0] = write(fd, "and a child", 11);
        in_child[1] = read(fd, text, 4);
        in_child[2] = shutdown(fd, SHUT_WR);
        close(fd);
        in_child[3] = write(fd, "nowhere", 7);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    for (size_t i = 0; i < COUNT(in_child); i++)
        say("child %ld", in_child[i]);
    say_bytes("child", text, 4);
    expect_text(fd, "two ");
    close(fd);
}

/* An epoll object that the child makes under the number of its parent's, which goes on as it was. */
void scenario_vfork_child_has_a_set_of_its_own(void) {
    int fd = connection(), ends[2];
    if (me.server) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
        int set = epoll_create1(0);
        if (pipe(ends) != 0)
            return;
        T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
        put(ends[1], "x", 1);
        pid_t child = vfork();
        if (child == 0) {
            static struct epoll_event its_own = {.events = EPOLLIN, .data.u64 = 8};
            close(set);
            int made = epoll_create1(0);
            dup2(made, set);
            in_child[0] = epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &its_own);
            in_child[1] = epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == 0 ? 0 : errno;
            in_child[2] = epoll_wait(set, &its_own, 1, -1);
            in_child[3] = its_own.data.u64;
            _exit(0);
        }
        waitpid(child, NULL, 0);
        for (size_t i = 0; i < COUNT(in_child); i++)
            say("child %ld", in_child[i]);
        T(epoll_wait(set, &event, 1, 0));
        meet();
        T(epoll_wait(set, &event, 1, -1));
        say("of %d", (int)event.data.u64);
        expect_text(fd, "news");
    } else {
        meet();
        put_text(fd, "news");
    }
    meet();
}

static void *round_trips(void *number) {
    int fd = *(int *)number;
    for (int i = 0; i < 4000; i++) {
        char byte = 'a' + i % 26, back = 0;
        if (send(fd, &byte, 1, 0) != 1 || recv(fd, &back, 1, 0) != 1 || back != byte)
            return "other bytes";
    }
    return "the same bytes";
}

/* Meanwhile other threads of the parent use the connection. */
void scenario_vfork_child_beside_a_thread(void) {
    int fd = connection();
    if (me.client) {
        char byte;
        while (recv(fd, &byte, 1, 0) == 1)
            send(fd, &byte, 1, 0);
        return meet();
    }
    pthread_t thread;
    pthread_create(&thread, NULL, round_trips, &fd);
    int file = memfd_create("file", 0), bad = 0;
    for (int i = 0; i < 100; i++) {
        pid_t child = vfork();
        if (child == 0) {
            dup2(file, fd);
            for (int j = 0; j < 20; j++)
                in_child[0] = write(fd, "to the file", 11);
            _exit(0);
        }
        waitpid(child, NULL, 0);
        bad += in_child[0] != 11;
    }
    void *result = "";
    pthread_join(thread, &result);
    say("%s, %d bad, the file has %ld", (char *)result, bad, (long)lseek(file, 0, SEEK_END));
    close(fd);
    meet();
}
