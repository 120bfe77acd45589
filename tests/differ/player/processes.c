/* fork, exec, exit and signals. */
#include "player.h"

#include <spawn.h>

extern char **environ;

static volatile sig_atomic_t pipes, users;

static void note(int signal) {
    if (signal == SIGPIPE)
        pipes++;
    else
        users++;
}

static void handle_signals(void) {
    /* Both in one way: which of several handlers ran, a library cannot tell. */
    struct sigaction action = {.sa_handler = note, .sa_flags = me.restarts ? SA_RESTART : 0};
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

/* Added to every answer: the signals that came since the last. */
static void answer_signals(void) {
    if (pipes)
        answer("SIGPIPE:%d", (int)pipes);
    if (users)
        answer("SIGUSR1:%d", (int)users);
    pipes = users = 0;
}

/* handlers restart|interrupt */
void step_handlers(void) {
    me.restarts = *word() == 'r';
    handle_signals();
    answer("ok");
}

/* fork NAME: the child introduces itself under that name */
void step_fork(void) {
    const char *name = word();
    char kept[sizeof me.name];
    snprintf(kept, sizeof kept, "%s", name);
    pid_t child = fork();
    if (child != 0) {
        answer("%s", child > 0 ? "ok" : "failed");
        return;
    }
    close(CONTROL);
    close(INBOX);
    snprintf(me.name, sizeof me.name, "%s", kept);
    enter();
    char line[512];
    next_step(line, sizeof line); /* the conductor greets it with an empty line */
    answer("ok");
}

/* exec: the same program again, in place, with all descriptors */
void step_exec(void) {
    char numbers[PLACES][12], restarts[2] = {me.restarts ? '1' : '0'};
    char *argv[PLACES + 6] = {"player", "resume", me.directory, me.name, restarts};
    for (int i = 0; i < PLACES; i++) {
        snprintf(numbers[i], sizeof numbers[i], "%d", me.place[i]);
        argv[5 + i] = numbers[i];
    }
    execv("/proc/self/exe", argv);
    answer_result(-1);
}

void resume(char **argv) {
    snprintf(me.directory, sizeof me.directory, "%s", argv[0]);
    snprintf(me.name, sizeof me.name, "%s", argv[1]);
    me.restarts = *argv[2] == '1';
    for (int i = 0; i < PLACES; i++)
        me.place[i] = atoi(argv[3 + i]);
    handle_signals();
    answer("resumed");
    send_answer();
}

/* spawn: another program that inherits everything and does nothing */
void step_spawn(void) {
    char *argv[] = {"true", NULL};
    pid_t child;
    int status = -1;
    int failed = posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ);
    if (!failed)
        waitpid(child, &status, 0);
    answer("%d %d", failed, status);
}

/* leave exit|_exit: with all descriptors open */
void step_leave(void) {
    if (*word() == '_')
        _exit(0);
    exit(0);
}

/* collect: waits for one child to be gone */
void step_collect(void) {
    int status = -1;
    answer("%s", wait(&status) > 0 ? "collected" : "none");
    answer("%d", status);
}

/* reset: as the process was at its start */
void step_reset(void) {
    close_all();
    int status;
    while (waitpid(-1, &status, WNOHANG) > 0)
        ;
    answer("ok");
}

static const struct {
    const char *name;
    void (*play)(void);
} steps[] = {
    {"send", step_send},           {"receive", step_receive},
    {"out", step_stream_out},      {"in", step_stream_in},
    {"reserve", step_reserve},     {"commit", step_commit},
    {"borrow", step_borrow},       {"release", step_release},
    {"ping", step_ping},           {"poll", step_poll},
    {"epoll_create", step_epoll_create}, {"epoll_ctl", step_epoll_ctl},
    {"epoll_wait", step_epoll_wait}, {"settle", step_settle},
    {"listen", step_listen},       {"connect", step_connect},
    {"accept", step_accept},       {"shutdown", step_shutdown},
    {"linger", step_linger},       {"ask", step_ask},
    {"close", step_close},         {"dup", step_dup},
    {"nonblocking", step_nonblocking}, {"pass", step_pass},
    {"take", step_take},           {"fork", step_fork},
    {"exec", step_exec},           {"spawn", step_spawn},
    {"leave", step_leave},         {"collect", step_collect},
    {"handlers", step_handlers},   {"reset", step_reset},
};

static void play(char *line) {
    arguments = line;
    const char *name = word();
    if (strcmp(name, "slowly") == 0) {
        started();
        name = word();
    }
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        if (strcmp(steps[i].name, name) == 0) {
            steps[i].play();
            answer_signals();
            send_answer();
            return;
        }
    answer("!no such step");
    send_answer();
}

int main(int argc, char **argv) {
    char line[512];
    if (argc == 5 + PLACES && strcmp(argv[1], "resume") == 0) {
        resume(argv + 2);
    } else if (argc == 3) {
        snprintf(me.directory, sizeof me.directory, "%s", argv[1]);
        snprintf(me.name, sizeof me.name, "%s", argv[2]);
        for (int i = 0; i < PLACES; i++)
            me.place[i] = -1;
        FILE *file = tmpfile();
        dup2(fileno(file), FILE_OF_BYTES);
        fclose(file);
        handle_signals();
        enter();
    } else {
        fprintf(stderr, "usage: player DIRECTORY NAME\n");
        return 2;
    }
    while (next_step(line, sizeof line))
        play(line);
    return 0;
}
