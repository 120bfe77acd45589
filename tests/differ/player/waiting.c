/* poll, select and epoll. */
#include "player.h"

#include <sys/select.h>

static struct timespec seconds(long milliseconds) {
    return (struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000};
}

/* select and pselect tell of three kinds of events; the answer is in words of poll. */
static int by_select(struct pollfd *items, int count, long timeout, bool with_mask) {
    fd_set in, out, urgent;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_ZERO(&urgent);
    int highest = -1;
    for (int i = 0; i < count; i++) {
        if (items[i].fd < 0)
            continue;
        highest = items[i].fd > highest ? items[i].fd : highest;
        if (items[i].events & POLLIN)
            FD_SET(items[i].fd, &in);
        if (items[i].events & POLLOUT)
            FD_SET(items[i].fd, &out);
        if (items[i].events & POLLPRI)
            FD_SET(items[i].fd, &urgent);
    }
    struct timespec limit = seconds(timeout);
    struct timeval coarse = {limit.tv_sec, limit.tv_nsec / 1000};
    sigset_t mask;
    sigemptyset(&mask);
    int found = with_mask
                    ? pselect(highest + 1, &in, &out, &urgent, timeout < 0 ? NULL : &limit, &mask)
                    : select(highest + 1, &in, &out, &urgent, timeout < 0 ? NULL : &coarse);
    for (int i = 0; i < count && found >= 0; i++)
        if (items[i].fd >= 0)
            items[i].revents = (FD_ISSET(items[i].fd, &in) ? POLLIN : 0) |
                               (FD_ISSET(items[i].fd, &out) ? POLLOUT : 0) |
                               (FD_ISSET(items[i].fd, &urgent) ? POLLPRI : 0);
    return found;
}

/* poll CALL MILLISECONDS (PLACE EVENTS)... */
void step_poll(void) {
    const char *call = word();
    long timeout = number();
    struct pollfd items[PLACES];
    int count = 0;
    for (; arguments && count < PLACES; count++) {
        int fd = here();
        items[count] = (struct pollfd){.fd = fd, .events = (short)event_bits(word())};
    }
    struct timespec limit = seconds(timeout);
    sigset_t mask;
    sigemptyset(&mask);
    int found = -1;
    if (strcmp(call, "poll") == 0)
        found = poll(items, count, timeout);
    else if (strcmp(call, "ppoll") == 0)
        found = ppoll(items, count, timeout < 0 ? NULL : &limit, &mask);
    else
        found = by_select(items, count, timeout, strcmp(call, "pselect") == 0);
    answer_result(found);
    for (int i = 0; i < count && found >= 0; i++)
        answer_events((unsigned short)items[i].revents);
}

/* epoll_create PLACE */
void step_epoll_create(void) {
    int *set = place();
    *set = epoll_create1(0);
    answer_result(*set);
}

/* epoll_ctl SET add|mod|del PLACE EVENTS: the data is the place */
void step_epoll_ctl(void) {
    int set = here();
    const char *what = word();
    long target = number();
    struct epoll_event event = {.events = event_bits(word()), .data.u64 = target};
    int call = *what == 'a' ? EPOLL_CTL_ADD : *what == 'm' ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
    answer_result(epoll_ctl(set, call, me.place[target], &event));
}

static int by_data(const void *left, const void *right) {
    const struct epoll_event *l = left, *r = right;
    if (l->data.u64 != r->data.u64)
        return l->data.u64 > r->data.u64 ? 1 : -1;
    return (l->events > r->events) - (l->events < r->events);
}

/* epoll_wait SET CALL MILLISECONDS: the order of what is ready is nobody's promise */
void step_epoll_wait(void) {
    int set = here();
    const char *call = word();
    long timeout = number();
    struct epoll_event events[PLACES * 2];
    const int room = PLACES * 2;
    struct timespec limit = seconds(timeout);
    sigset_t mask;
    sigemptyset(&mask);
    int found = -1;
    if (strcmp(call, "epoll_wait") == 0)
        found = epoll_wait(set, events, room, timeout);
    else if (strcmp(call, "epoll_pwait") == 0)
        found = epoll_pwait(set, events, room, timeout, &mask);
    else
        found = epoll_pwait2(set, events, room, timeout < 0 ? NULL : &limit, NULL);
    answer_result(found);
    if (found > 0)
        qsort(events, found, sizeof *events, by_data);
    for (int i = 0; i < found; i++) {
        answer("%llu:", (unsigned long long)events[i].data.u64);
        answer_events(events[i].events);
    }
}

/* settle PLACE UNREAD EVENTS: waits until at least that much is there to see, for what the other end did to arrive */
void step_settle(void) {
    int fd = here();
    int unread = number(), readable = 0;
    uint32_t wanted = event_bits(word());
    struct pollfd item = {.fd = fd, .events = (short)wanted};
    for (int look = 0; look < 40000; look++) {
        item.revents = 0;
        bool there = true;
        if (unread)
            there = ioctl(fd, FIONREAD, &readable) == 0 && readable >= unread;
        if (there && wanted)
            there = poll(&item, 1, 0) >= 0 && (item.revents & wanted) == wanted;
        if (there) {
            answer("settled");
            return;
        }
        if (look > 20)
            usleep(250);
    }
    answer("unsettled %d", readable);
    answer_events((unsigned short)item.revents);
}
