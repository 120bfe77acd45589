/* stdio on the descriptor: glibc makes these calls inside itself. */
#include "actor.h"

#include <execinfo.h>

void scenario_stdio_stream(void) {
    int fd = connection();
    char line[128];
    FILE *out = fdopen(fd, "w"), *in = fdopen(dup(fd), "r");
    setvbuf(out, NULL, _IOLBF, 1024);
    if (me.client) {
        fprintf(out, "GET %s %d\n", "/page", 7);
        fputs("second\n", out);
        while (fgets(line, sizeof line, in))
            say("line %.*s", (int)strcspn(line, "\n"), line);
        say("end %d error %d", feof(in) != 0, ferror(in) != 0);
        T(fclose(out));
        T(fclose(in));
        meet();
        return;
    }
    int number;
    T(fscanf(in, "GET %100s %d\n", line, &number));
    say("%s %d", line, number);
    char *text = NULL;
    size_t room = 0;
    T(getline(&text, &room, in));
    for (int i = 0; i < 5; i++)
        fprintf(out, "reply %d\n", i);
    putc('!', out);
    T(fflush(out));
    T(fclose(out));
    T(fclose(in));
    free(text);
    meet();
}

void scenario_stdio_unread_bytes(void) {
    int fd = connection();
    char line[64];
    if (me.client) {
        put_text(fd, "read by read()\nread by fgets\nthe rest");
        meet();
        expect_text(fd, "dprintf 42\nvdprintf\n");
        meet();
        return;
    }
    meet();
    await_readable(fd, 37);
    expect_text(fd, "read by read()\n");
    FILE *in = fdopen(fd, "r+");
    setvbuf(in, NULL, _IONBF, 0);
    T_OK(fgets(line, sizeof line, in) != NULL);
    say("%.13s", line);
    T(fread(line, 1, 8, in));
    say("%.8s", line);
    T(dprintf(fd, "dprintf %d\n", 42));
    T(dprintf(fd, "%s\n", "vdprintf"));
    T(fclose(in));
    meet();
}

void scenario_stdio_bulk(void) {
    enum { TOTAL = 2000000 };
    static unsigned char bytes[TOTAL];
    int fd = connection();
    if (me.client) {
        FILE *out = fdopen(fd, "w");
        fill_pattern(bytes, 0, TOTAL, 1);
        T(fwrite(bytes, 1, TOTAL, out));
        T(fclose(out));
        meet();
        return;
    }
    FILE *in = fdopen(fd, "r");
    say_bytes("fread", bytes, T(fread(bytes, 1, TOTAL, in)));
    T(getc(in));
    fclose(in);
    meet();
}

/* A closed peer: the error comes out of fflush. */
void scenario_stdio_broken_pipe(void) {
    int fd = connection();
    signal(SIGPIPE, SIG_IGN);
    if (me.server) {
        close(fd);
        meet();
        return;
    }
    await_bits(fd, POLLRDHUP);
    put_text(fd, "x");
    await_bits(fd, 0);
    FILE *out = fdopen(fd, "w");
    T(fputs("lost\n", out));
    T(fflush(out));
    T(fclose(out));
    meet();
}

/* What the C library writes by itself, and the second name of `fdopen`. */
extern FILE *_IO_fdopen(int, const char *);

void scenario_stdio_by_other_names(void) {
    int fd = connection();
    if (me.client) {
        char bytes[4096] = "";
        size_t count = get(fd, bytes, sizeof bytes);
        say("a line of a stream: %d", strncmp(bytes, "stream\n", 7) == 0);
        say("lines of a backtrace: %d", strchr(bytes, '[') != NULL);
        say("then \"%s\"", count >= 4 ? bytes + count - 4 : "");
        meet();
        return;
    }
    void *calls[10];
    FILE *out = _IO_fdopen(dup(fd), "w");
    fputs("stream\n", out);
    fclose(out);
    backtrace_symbols_fd(calls, backtrace(calls, COUNT(calls)), fd);
    put_text(fd, "last");
    close(fd);
    meet();
}

/* Standard output itself is the connection. */
void scenario_stdio_as_standard_output(void) {
    int fd = connection();
    if (me.client) {
        expect_text(fd, "printed by printf\nputs\n");
        expect_end(fd);
        meet();
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        dup2(fd, STDOUT_FILENO);
        close(fd);
        printf("printed by %s\n", "printf");
        puts("puts");
        exit(0);
    }
    close(fd);
    int status;
    waitpid(child, &status, 0);
    say_status("child", status);
    meet();
}
