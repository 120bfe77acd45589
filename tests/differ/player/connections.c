/* Making connections, ending them, and asking about them. */
#include "player.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>

static struct sockaddr_in loopback(long port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

/* listen: answers with the port */
void step_listen(void) {
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bind(fd, (struct sockaddr *)&address, sizeof address);
    listen(fd, 64);
    getsockname(fd, (struct sockaddr *)&address, &size);
    dup2(fd, LISTENER);
    close(fd);
    answer("%d", ntohs(address.sin_port));
}

/* connect PLACE PORT: answers with its own port */
void step_connect(void) {
    int *to = place();
    struct sockaddr_in address = loopback(number());
    socklen_t size = sizeof address;
    *to = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(*to, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(*to, (struct sockaddr *)&address, sizeof address) != 0) {
        answer_result(-1);
        return;
    }
    getsockname(*to, (struct sockaddr *)&address, &size);
    answer("%d", ntohs(address.sin_port));
}

/* accept PLACE */
void step_accept(void) {
    int *to = place();
    *to = accept4(LISTENER, NULL, NULL, 0);
    int on = 1;
    setsockopt(*to, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    answer_result(*to);
}

/* shutdown PLACE read|write|both */
void step_shutdown(void) {
    int fd = here();
    const char *what = word();
    answer_result(shutdown(fd, *what == 'r' ? SHUT_RD : *what == 'w' ? SHUT_WR : SHUT_RDWR));
}

/* linger PLACE ON SECONDS */
void step_linger(void) {
    int fd = here();
    struct linger linger = {.l_onoff = number()};
    linger.l_linger = number();
    answer_result(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
}

/* ask PLACE WHAT: questions whose answers do not depend on ports */
void step_ask(void) {
    int fd = here();
    const char *what = word();
    int value = 0;
    socklen_t size = sizeof value;
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    long result = -1;
    if (strcmp(what, "fionread") == 0)
        result = ioctl(fd, FIONREAD, &value);
    else if (strcmp(what, "at_mark") == 0)
        result = ioctl(fd, SIOCATMARK, &value);
    else if (strcmp(what, "error") == 0)
        result = getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, &size);
    else if (strcmp(what, "flags") == 0)
        result = fcntl(fd, F_GETFL);
    else if (strcmp(what, "peer") == 0)
        result = getpeername(fd, (struct sockaddr *)&address, &length);
    else if (strcmp(what, "own") == 0)
        result = getsockname(fd, (struct sockaddr *)&address, &length);
    else
        answer("!no such question");
    answer_result(result);
    if (result == 0)
        answer(strcmp(what, "error") == 0 && value ? strerrorname_np(value) : "%d", value);
}
