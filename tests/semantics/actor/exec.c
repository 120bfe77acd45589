/* The connection goes on in another program image: dynamic, static, or without the environment. */
#include "actor.h"

#include <spawn.h>
#include <sys/syscall.h>
#include <wordexp.h>

extern char **environ;

int talk(int fd);

static void finish(pid_t child) {
    int status = -1;
    waitpid(child, &status, 0);
    say_status("child", status);
}

/* fork, put the connection on standard input and output, exec. */
static pid_t start_on_connection(int fd, const char *file, char *const arguments[]) {
    pid_t child = fork();
    if (child == 0) {
        dup2(fd, 0);
        dup2(fd, 1);
        close(fd);
        execvp(file, arguments);
        _exit(127);
    }
    return child;
}

void scenario_exec_shell(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "first line\nsecond line\n");
        meet();
        meet();
        put_text(fd, "late line\n");
        expect_text(fd, "got first line\ngot second line\ngot late line\n");
        expect_end(fd);
        meet();
        return;
    }
    char *script = "for i in 1 2 3; do read x; echo got $x; done";
    char *arguments[] = {"sh", "-c", script, NULL};
    meet();
    await_readable(fd, 23);
    pid_t child = start_on_connection(fd, "/bin/sh", arguments);
    close(fd);
    meet();
    finish(child);
    meet();
}

/* cat echoes: bytes waiting at the exec, and far more afterwards. */
static void echo_through(const char *file, char *const arguments[]) {
    int fd = connection();
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (me.client) {
        put_pattern(fd, 0, 20000, 1);
        meet();
        meet();
        get_pattern(fd, 0, 20000, 1);
        for (int i = 0; i < 100; i++) {
            put_pattern(fd, 20000 + i * 5000, 5000, 1);
            get_pattern(fd, 20000 + i * 5000, 5000, 1);
        }
        shutdown(fd, SHUT_WR);
        expect_end(fd);
        meet();
        return;
    }
    meet();
    await_readable(fd, 20000);
    pid_t child = start_on_connection(fd, file, arguments);
    close(fd);
    meet();
    finish(child);
    meet();
}

void scenario_exec_cat(void) {
    char *arguments[] = {"cat", NULL};
    echo_through("cat", arguments);
}

void scenario_exec_static(void) {
    char *arguments[] = {"bystander", "echo", NULL};
    echo_through(me.bystander, arguments);
}

/* The process itself becomes the other program, without a fork. */
void scenario_exec_in_place(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread when the program changed");
        meet();
        expect_text(fd, "static answer");
        expect_end(fd);
        return;
    }
    char number[16];
    meet();
    await_readable(fd, 31);
    snprintf(number, sizeof number, "%d", fd);
    execl(me.bystander, "bystander", "answer", number, "31", "static answer", NULL);
    say("! exec failed");
}

/* The same, and some bytes had been read before by the old image. */
void scenario_exec_half_read(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 60000, 2);
        meet();
        meet();
        put_pattern(fd, 60000, 20000, 2);
        meet();
        expect_text(fd, "bye");
        expect_end(fd);
        return;
    }
    char number[16];
    meet();
    get_pattern(fd, 0, 12345, 2);
    put_text(fd, "b");
    meet();
    meet();
    put_text(fd, "ye");
    snprintf(number, sizeof number, "%d", fd);
    execl(me.bystander, "bystander", "digest", number, "67655", NULL);
    say("! exec failed");
}

/* Into this program again, with the environment: the connection is still one that can be lifted. */
void scenario_exec_self(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "over the exec");
        meet();
        expect_text(fd, "resumed");
        warm(fd);
        put_text(fd, "warm again");
        expect_text(fd, "after the exec");
        expect_end(fd);
        return;
    }
    char number[16];
    meet();
    await_readable(fd, 13);
    snprintf(number, sizeof number, "%d", fd);
    execl(me.program, "actor", "resume", "talk", number, NULL);
    say("! exec failed");
}

/* Into this program with an empty environment: nothing can be preloaded. */
void scenario_exec_without_environment(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "over the exec");
        meet();
        expect_text(fd, "resumed");
        warm(fd);
        put_text(fd, "warm again");
        expect_text(fd, "after the exec");
        expect_end(fd);
        return;
    }
    char number[16];
    meet();
    await_readable(fd, 13);
    snprintf(number, sizeof number, "%d", fd);
    char *arguments[] = {"actor", "resume", "talk", number, NULL}, *nothing[] = {NULL};
    execve(me.program, arguments, nothing);
    say("! exec failed");
}

int talk(int fd) {
    me.server = true;
    expect_text(fd, "over the exec");
    put_text(fd, "resumed");
    warm(fd);
    expect_text(fd, "warm again");
    put_text(fd, "after the exec");
    return 0;
}

/* An exec that fails leaves everything as it was. */
void scenario_exec_fails(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "unread");
        meet();
        expect_text(fd, "still here");
        warm(fd);
        meet();
        return;
    }
    meet();
    await_readable(fd, 6);
    char *arguments[] = {"x", NULL};
    T(execv("/nonexistent/program", arguments));
    T(execvp("no-such-program", arguments));
    T(execve("/etc/passwd", arguments, environ));
    T(execl("/nonexistent/program", "x", NULL));
    T(execlp("no-such-program", "x", NULL));
    T(fexecve(fd, arguments, environ));
    expect_text(fd, "unread");
    put_text(fd, "still here");
    warm(fd);
    meet();
}

/* Close-on-exec: the program that follows does not have it, and the peer sees the end. */
void scenario_exec_closes(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "read before");
        expect_end(fd);
        meet_if_alive();
        return;
    }
    expect_text(fd, "read before");
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    execl("/bin/sh", "sh", "-c", "echo in the shell", NULL);
    say("! exec failed");
}

void scenario_spawn_on_connection(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "some waiting, ");
        meet();
        meet();
        put_text(fd, "some later");
        shutdown(fd, SHUT_WR);
        expect_text(fd, "SOME WAITING, SOME LATER");
        expect_end(fd);
        meet();
        return;
    }
    char *arguments[] = {"tr", "a-z", "A-Z", NULL};
    posix_spawn_file_actions_t actions;
    pid_t child;
    meet();
    await_readable(fd, 14);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fd, 0);
    posix_spawn_file_actions_adddup2(&actions, fd, 1);
    posix_spawn_file_actions_addclose(&actions, fd);
    T(posix_spawnp(&child, "tr", &actions, NULL, arguments, environ));
    close(fd);
    meet();
    finish(child);
    meet();
}

/* Shells started by system() and popen() that use the inherited descriptor, then the parent again. */
void scenario_system_on_connection(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "line for system\nline for popen\nline for the parent\n");
        meet();
        expect_text(fd, "system has line for system\npopen\nvfork\nparent");
        warm(fd);
        meet();
        return;
    }
    char command[128], line[64] = "", number[16];
    meet();
    await_readable(fd, 51);
    snprintf(command, sizeof command, "read x <&%d; echo system has $x >&%d", fd, fd);
    say_status("system", system(command));
    snprintf(command, sizeof command, "read x <&%d; echo popen >&%d; echo $x", fd, fd);
    FILE *output = popen(command, "r");
    if (output && fgets(line, sizeof line, output))
        say("popen has %.*s", (int)strcspn(line, "\n"), line);
    say_status("pclose", pclose(output));
    snprintf(number, sizeof number, "echo vfork >&%d", fd);
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", number, NULL);
        _exit(127);
    }
    finish(child);
    expect_text(fd, "line for the parent\n");
    put_text(fd, "parent");
    warm(fd);
    meet();
}

/* The sender is stopped while the receiver becomes a program without any library: the unread bytes
 * must get there all the same. */
void scenario_exec_while_peer_is_stopped(void) {
    int fd = connection();
    if (me.client) {
        put_pattern(fd, 0, 5000, 3);
        tell(1);
        expect_text(fd, "answered while stopped");
        meet();
        return;
    }
    char number[16];
    told();
    await_readable(fd, 5000);
    kill(me.peer, SIGSTOP);
    snprintf(number, sizeof number, "%d", fd);
    pid_t child = fork();
    if (child == 0) {
        execl(me.bystander, "bystander", "answer", number, "5000", "answered while stopped", NULL);
        _exit(127);
    }
    finish(child);
    kill(me.peer, SIGCONT);
    meet();
}

/* An epoll set crosses exec too: what is in it must be true for a program that knows nothing of us. */
void scenario_exec_inherits_epoll_set(void) {
    int fd = connection();
    if (me.client) {
        char answer;
        put_pattern(fd, 0, 300, 1);
        meet();
        get(fd, &answer, 1);
        put_pattern(fd, 300, 300, 1);
        get(fd, &answer, 1);
        expect_end(fd);
        return;
    }
    char set_number[16], number[16];
    int set = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    T(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
    meet();
    await_readable(fd, 300);
    T(epoll_wait(set, &event, 1, 0));
    snprintf(set_number, sizeof set_number, "%d", set);
    snprintf(number, sizeof number, "%d", fd);
    execl(me.bystander, "bystander", "wait", set_number, number, "300", NULL);
    say("! exec failed");
}

/* In a new image: closes the connection with what was not read. */
static int drop(int fd) {
    me.server = true;
    meet();
    meet();
    T(close(fd));
    meet();
    return 0;
}

/* `actor resume talk FD`: exec_self; `actor resume drop FD`: closing.c; `actor resume receive UNIX_FD`: passing.c; others: handing.c. */
int resume(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[0], "talk") == 0)
        return talk(atoi(argv[1]));
    if (argc == 2 && strcmp(argv[0], "drop") == 0)
        return drop(atoi(argv[1]));
    if (argc == 2 && strcmp(argv[0], "receive") == 0)
        return receive_in_new_image(atoi(argv[1]));
    if (argc == 2 && strcmp(argv[0], "urgent") == 0)
        return urgent_while_lifting(atoi(argv[1]));
    if (argc == 2 && strcmp(argv[0], "lower") == 0)
        return lower_while_lifting(atoi(argv[1]));
    return argc == 2 ? resume_handed(argv[0], atoi(argv[1])) : 2;
}

/* The same in a program of ours that lifts connections after so many calls. */
void resume_lifting_after(const char *calls, const char *verb, const char *argument) {
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        setenv("VMMC_LIFT_AFTER", calls, 1);
        execl(me.program, "actor", "resume", verb, argument, NULL);
        _exit(127);
    }
    waitpid(child, &status, 0);
    say_status("child", status);
}

/* A child becomes another program by the bare system call. */
void scenario_exec_by_system_call(void) {
    int fd = connection();
    for (int by_descriptor = 0; by_descriptor < 2; by_descriptor++) {
        if (me.client) {
            meet();
            put_text(fd, "some line\n");
            expect_text(fd, "<some line>");
            meet();
            continue;
        }
        char text[64];
        char *arguments[] = {"sh", "-c", text, NULL};
        snprintf(text, sizeof text, "read x <&%d; printf \"<$x>\" >&%d", fd, fd);
        pid_t child = fork();
        if (child == 0) {
            if (by_descriptor)
                syscall(SYS_execveat, AT_FDCWD, "/bin/sh", arguments, environ, 0);
            syscall(SYS_execve, "/bin/sh", arguments, environ);
            _exit(127);
        }
        await_asleep(child);
        meet();
        finish(child);
        meet();
    }
    warm(fd);
}

/* What the new programs get is said once; the number is each time another connection. */
void scenario_spawn_by_actions_of_before(void) {
    enum { NUMBER = 30 };
    char *arguments[] = {"head", "-n", "1", NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, NUMBER, 0);
    posix_spawn_file_actions_adddup2(&actions, NUMBER, 1);
    for (int i = 0; i < 3; i++) {
        int fd = connection();
        if (me.client) {
            meet();
            put_text(fd, "some line\n");
            expect_text(fd, "some line\n");
            meet();
            close(fd);
            continue;
        }
        pid_t child;
        dup3(fd, NUMBER, O_CLOEXEC);
        close(fd);
        T(posix_spawn(&child, "/usr/bin/head", &actions, NULL, arguments, environ));
        await_asleep(child);
        meet();
        finish(child);
        meet();
        close(NUMBER);
    }
    posix_spawn_file_actions_destroy(&actions);
}

/* A command among the words uses what it inherits. */
void scenario_word_of_a_command(void) {
    int fd = connection();
    if (me.client) {
        put_text(fd, "line of the command\n");
        expect_text(fd, "said by it");
        warm(fd);
        return;
    }
    wordexp_t words;
    char text[80];
    snprintf(text, sizeof text, "plain $(read x <&%d; printf 'said by it' >&%d; echo \"<$x>\")", fd, fd);
    T(wordexp(text, &words, 0));
    for (size_t i = 0; i < words.we_wordc; i++)
        say("word %s", words.we_wordv[i]);
    wordfree(&words);
    warm(fd);
}
