/* What the compiler makes of these calls with _FORTIFY_SOURCE: __read_chk, __recv_chk, __poll_chk and the like.
 * The checks are compiled in only where the size is not a constant. */

#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 2
#include "actor.h"

#include <sys/select.h>

void scenario_fortified_calls(void) {
    volatile size_t size = 5;
    volatile int items = 1;
    char buffer[32];
    int fd = connection();
    if (me.client) {
        put_text(fd, "read0recv1from2peek3");
        meet();
        expect_text(fd, "printed 7\n");
        meet();
        return;
    }
    meet();
    await_readable(fd, 20);
    struct pollfd item = {.fd = fd, .events = POLLIN};
    T(poll(&item, items, 0));
    T(ppoll(&item, items, NULL, NULL));
    fd_set reading;
    FD_ZERO(&reading);
    FD_SET(fd, &reading);
    T(select(fd + 1, &reading, NULL, NULL, NULL));
    say("set %d", FD_ISSET(fd, &reading) != 0);
    say_bytes("read", buffer, T(read(fd, buffer, size)));
    say_bytes("recv", buffer, T(recv(fd, buffer, size, 0)));
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    say_bytes("recvfrom", buffer, T(recvfrom(fd, buffer, size, 0, (struct sockaddr *)&from, &length)));
    say("address length %u", length);
    say_bytes("peek", buffer, T(recv(fd, buffer, size, MSG_PEEK)));
    say_bytes("read", buffer, T(read(fd, buffer, size)));
    T(recv(fd, buffer, size, MSG_DONTWAIT));
    T(pread(fd, buffer, size, 0));
    T(dprintf(fd, "printed %d\n", (int)size + 2));
    meet();
}
