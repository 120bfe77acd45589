/* A program that sends by itself, and has libraries that wait and receive, loaded with RTLD_DEEPBIND. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 300 };

struct part {
    int (*answered)(int fd, int milliseconds);
    int (*take)(int fd, int round);
};

static struct part load(const char *path) {
    void *library = dlopen(path, RTLD_LAZY | RTLD_DEEPBIND);
    const char *error = dlerror();
    if (!library || error) {
        printf("%s: %s\n", path, error ? error : "nothing");
        exit(1);
    }
    return (struct part){
        .answered = (int (*)(int, int))dlsym(library, "answered"),
        .take = (int (*)(int, int))dlsym(library, "take"),
    };
}

/* By a path that means the directory of the object that asks. */
static void load_beside(void) {
    void *library = dlopen("$ORIGIN/beside.so", RTLD_LAZY | RTLD_DEEPBIND);
    printf("beside: %s\n", library ? "loaded" : dlerror());
}

static void echo(int listener) {
    int fd = accept(listener, NULL, NULL);
    char byte;
    while (recv(fd, &byte, 1, 0) == 1) {
        usleep(200);
        send(fd, &byte, 1, 0);
    }
    _exit(0);
}

int main(int count, char **paths) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    bind(listener, (struct sockaddr *)&address, length);
    listen(listener, 8);
    getsockname(listener, (struct sockaddr *)&address, &length);
    load_beside();
    for (int n = 1; n < count; n++) {
        struct part part = load(paths[n]);
        pid_t child = fork();
        if (child == 0)
            echo(listener);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        connect(fd, (struct sockaddr *)&address, length);
        int right = 0;
        for (int round = 0; round < ROUNDS; round++) {
            char byte = (char)(round % 100);
            if (send(fd, &byte, 1, 0) != 1 || part.answered(fd, 10000) != 1 || part.take(fd, round) != byte)
                break;
            right++;
        }
        printf("library %d: %d of %d\n", n, right, ROUNDS);
        close(fd);
        waitpid(child, NULL, 0);
    }
    return 0;
}
