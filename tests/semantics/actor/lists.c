/* The arrays of pieces, and of descriptors, that a call is given: it has taken them when it sleeps, whatever another thread makes of them then. */
#include "actor.h"

#include <pthread.h>

enum call { READV, RECVMSG, WRITEV, SENDMSG, POLL };
enum { FEW = 3, MANY = 20, PIECE = 10, LARGE = 16 << 20 };

struct caller {
    enum call call;
    int fd;
    struct iovec *pieces;
    struct pollfd *polled;
    int count;
    _Atomic pid_t thread;
    long result;
};

static void *call(void *argument) {
    struct caller *caller = argument;
    struct msghdr message = {.msg_iov = caller->pieces, .msg_iovlen = caller->count};
    caller->thread = gettid();
    switch (caller->call) {
    case READV:
        caller->result = readv(caller->fd, caller->pieces, caller->count);
        break;
    case RECVMSG:
        caller->result = recvmsg(caller->fd, &message, MSG_WAITALL);
        break;
    case WRITEV:
        caller->result = writev(caller->fd, caller->pieces, caller->count);
        break;
    case SENDMSG:
        caller->result = sendmsg(caller->fd, &message, 0);
        break;
    case POLL:
        caller->result = poll(caller->polled, caller->count, 5000);
        break;
    }
    return NULL;
}

static pthread_t asleep_in_call(struct caller *caller) {
    pthread_t thread;
    pthread_create(&thread, NULL, call, caller);
    while (caller->thread == 0)
        usleep(100);
    await_asleep(caller->thread);
    return thread;
}

/* The first time all pieces become nothing, then all become the first, and short. */
static void change(struct iovec *pieces, int count, int round) {
    for (int n = 0; n < count; n++)
        pieces[n] = round == 0 ? (struct iovec){0} : (struct iovec){pieces[0].iov_base, 5};
}

static void receive_into_changed(int fd, enum call how, int count) {
    for (int round = 0; round < 2; round++) {
        char bytes[MANY * PIECE] = "";
        struct iovec pieces[MANY];
        for (int n = 0; n < count; n++)
            pieces[n] = (struct iovec){bytes + n * PIECE, PIECE};
        struct caller caller = {how, fd, pieces, NULL, count};
        pthread_t thread = asleep_in_call(&caller);
        change(pieces, count, round);
        meet();
        pthread_join(thread, NULL);
        say_bytes("received", bytes, caller.result);
        meet();
    }
}

void scenario_pieces_changed_while_receiving(void) {
    int fd = connection();
    for (int n = 0; n < 4; n++) {
        int count = n % 2 == 0 ? FEW : MANY;
        if (me.server) {
            receive_into_changed(fd, n < 2 ? READV : RECVMSG, count);
            continue;
        }
        for (int round = 0; round < 2; round++) {
            meet();
            put_pattern(fd, 0, count * PIECE, n);
            meet();
        }
    }
}

static void send_from_changed(int fd, enum call how, int count) {
    static char bytes[LARGE];
    fill_pattern(bytes, 0, sizeof bytes, 1);
    for (int round = 0; round < 2; round++) {
        struct iovec pieces[MANY];
        for (int n = 0; n < count; n++)
            pieces[n] = (struct iovec){bytes + n * (LARGE / count), LARGE / count};
        struct caller caller = {how, fd, pieces, NULL, count};
        pthread_t thread = asleep_in_call(&caller);
        change(pieces, count, round);
        meet();
        pthread_join(thread, NULL);
        say("sent %ld", caller.result);
        meet();
    }
}

void scenario_pieces_changed_while_sending(void) {
    int fd = connection();
    for (int n = 0; n < 4; n++) {
        int count = n % 2 == 0 ? FEW : MANY;
        if (me.client) {
            send_from_changed(fd, n < 2 ? WRITEV : SENDMSG, count);
            continue;
        }
        for (int round = 0; round < 2; round++) {
            meet();
            get_pattern(fd, 0, LARGE / count * count, 1);
            meet();
        }
    }
}

enum change { NO_NUMBER, NO_EVENTS, ANOTHER_NUMBER, CHANGES };

static void poll_what_changes(int fd, int count, enum change how) {
    int others[2];
    if (pipe(others) != 0)
        say("! no pipe");
    struct pollfd list[MANY] = {{fd, POLLIN, 0x55}};
    for (int n = 1; n < count; n++)
        list[n] = (struct pollfd){others[0], POLLIN, 0x55};
    struct caller caller = {POLL, fd, NULL, list, count};
    pthread_t thread = asleep_in_call(&caller);
    switch (how) {
    case NO_NUMBER:
        list[0].fd = -1;
        break;
    case NO_EVENTS:
        list[0].events = 0;
        break;
    default:
        list[0] = (struct pollfd){others[1], POLLOUT, 0x55};
    }
    meet();
    pthread_join(thread, NULL);
    say("poll %ld", caller.result);
    say_poll("changed", list[0].revents);
    say_poll("last", list[count - 1].revents);
    say("same number %d, events %d", list[0].fd == fd, list[0].events);
    get(fd, &(char){0}, 1);
    close(others[0]);
    close(others[1]);
    meet();
}

void scenario_list_changed_while_polling(void) {
    int fd = connection();
    for (int n = 0; n < 2 * CHANGES; n++) {
        if (me.server) {
            poll_what_changes(fd, n < CHANGES ? FEW : MANY, n % CHANGES);
            continue;
        }
        meet();
        put_text(fd, "x");
        meet();
    }
}
