/* Descriptors: closing, duplicating, passing. */
#include "player.h"

/* close PLACE */
void step_close(void) {
    int *which = place();
    answer_result(close(*which));
    *which = -1;
}

/* dup CALL FROM TO: dup2 and dup3 go onto the number at TO if there is one, else onto the lowest from 40 on */
void step_dup(void) {
    const char *call = word();
    int from = here();
    int *to = place();
    int onto = *to >= 0 ? *to : 40 + (int)(to - me.place);
    if (strcmp(call, "dup") == 0)
        *to = dup(from);
    else if (strcmp(call, "dup2") == 0)
        *to = dup2(from, onto);
    else if (strcmp(call, "dup3") == 0)
        *to = dup3(from, onto, 0);
    else
        *to = fcntl(from, F_DUPFD, 20);
    answer_result(*to);
}

/* nonblocking PLACE fcntl|ioctl ON */
void step_nonblocking(void) {
    int fd = here();
    bool by_ioctl = *word() == 'i';
    int on = number();
    if (by_ioctl)
        answer_result(ioctl(fd, FIONBIO, &on));
    else
        answer_result(fcntl(fd, F_SETFL, (fcntl(fd, F_GETFL) & ~O_NONBLOCK) | (on ? O_NONBLOCK : 0)));
}

/* pass PLACE NAME: to the inbox of that player */
void step_pass(void) {
    int fd = here();
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/in.%s", me.directory, word());
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte = 'd';
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_name = &address,
                             .msg_namelen = sizeof address,
                             .msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    int out = socket(AF_UNIX, SOCK_DGRAM, 0);
    answer_result(sendmsg(out, &message, 0));
    close(out);
}

/* take PLACE */
void step_take(void) {
    int *to = place();
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(INBOX, &message, MSG_DONTWAIT);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header)
        memcpy(to, CMSG_DATA(header), sizeof *to);
    answer_result(header ? *to : -1);
}

void close_all(void) {
    for (int i = 0; i < PLACES; i++) {
        if (me.place[i] >= 0)
            close(me.place[i]);
        me.place[i] = -1;
    }
}
