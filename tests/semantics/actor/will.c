/* A library that does what it was told to when its turn comes at the program's end: as it is loaded last, after the
 * destructors of the program and of what was loaded before. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>

void (*will)(void) = NULL;

__attribute__((destructor)) static void execute(void) {
    if (will)
        will();
}

/* Calls that the program makes nowhere else by then. */
static void *call(void *none) {
    struct mmsghdr message = {0};
    recvmmsg(-1, &message, 1, 0, NULL);
    sendmmsg(-1, &message, 1, 0);
    return none;
}

__attribute__((constructor)) static void wait_for_thread(void) {
    pthread_t thread;
    if (getenv("WILL_WAITS") && pthread_create(&thread, NULL, call, NULL) == 0)
        pthread_join(thread, NULL);
}
