/* An echo pair that takes every message from the heap, for allocators and sanitizers that are loaded beside it.
 *
 *   heap_echo serve PORT    echoes messages of 1 to 5000 bytes
 *   heap_echo ask PORT      200 messages, some now and then until the end of standard input, 2000 more; prints a digest of the
 *                           answers but those
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 5000 };

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int serve(int listener) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        die("accept");
    for (;;) {
        char *bytes = malloc(MOST);
        ssize_t count = read(fd, bytes, MOST);
        if (count < 0)
            die("read");
        if (count > 0 && write(fd, bytes, count) != count)
            die("write");
        free(bytes);
        if (count == 0)
            return close(fd);
    }
}

static uint64_t ask(int fd, int rounds, uint64_t hash) {
    for (int round = 0; round < rounds; round++) {
        ssize_t size = 1 + round * 97 % MOST;
        unsigned char *bytes = malloc(size);
        memset(bytes, 'a' + round % 26, size);
        if (write(fd, bytes, size) != size || recv(fd, bytes, size, MSG_WAITALL) != size)
            die("round trip");
        for (ssize_t i = 0; i < size; i++)
            hash = (hash ^ bytes[i]) * 0x100000001b3;
        free(bytes);
    }
    return hash;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (strcmp(argv[1], "ask") != 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
        if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, 1) != 0)
            die("listen");
        printf("listening\n");
        fflush(stdout);
        return serve(fd);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    uint64_t hash = ask(fd, 200, 0xcbf29ce484222325);
    printf("half\n");
    fflush(stdout);
    struct pollfd told = {.fd = 0, .events = POLLIN};
    while (poll(&told, 1, 5) == 0)
        ask(fd, 1, 0);
    printf("digest %016llx\n", (unsigned long long)ask(fd, 2000, hash));
    return 0;
}
