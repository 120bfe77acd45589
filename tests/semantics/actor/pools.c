/* Servers whose threads share one epoll object, under many short connections. */
#include "actor.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

enum { CLIENTS = 3, CONNECTIONS = 500, TURNS = 30, WORKERS = 3, LONGEST = 400 };

static int set, over;
/* By descriptor: threads that have been told of it and have not armed it again. */
static _Atomic int holders[4096];

static int control(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    return epoll_ctl(set, operation, fd, &event);
}

static int dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = server_address();
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        say("! connect: %s", strerrorname_np(errno));
    return fd;
}

/* Sends back what there is. False: the connection has ended. */
static bool echo(int fd) {
    char bytes[LONGEST];
    ssize_t n = recv(fd, bytes, sizeof bytes, 0);
    if (n > 0)
        return put(fd, bytes, n);
    if (n < 0 && errno != EAGAIN)
        say("! told of a descriptor, but: %s", strerrorname_np(errno));
    return n < 0 && errno == EAGAIN;
}

struct load {
    int connections, turns;
    unsigned seed;
};

/* One connection after the other, each for some messages that have to come back. */
static void *load(void *argument) {
    struct load *load = argument;
    struct timeval limit = {20, 0};
    for (int n = 0; n < load->connections; n++) {
        int fd = dial(), on = 1;
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        for (int turns = rand_r(&load->seed) % load->turns; turns > 0; turns--) {
            char bytes[LONGEST], back[LONGEST];
            size_t len = 1 + rand_r(&load->seed) % LONGEST;
            fill_pattern(bytes, turns, len, n);
            put(fd, bytes, len);
            if (get(fd, back, len) != len || memcmp(bytes, back, len) != 0) {
                say("! another answer than the question: %s", strerrorname_np(errno));
                break;
            }
        }
        close(fd);
    }
    return NULL;
}

static void load_by_all(int connections, int turns) {
    pthread_t threads[CLIENTS];
    struct load loads[CLIENTS];
    for (int n = 0; n < CLIENTS; n++) {
        loads[n] = (struct load){connections, turns, n + 1};
        pthread_create(&threads[n], NULL, load, &loads[n]);
    }
    for (int n = 0; n < CLIENTS; n++)
        pthread_join(threads[n], NULL);
    say("served");
}

static void begin_serving(void) {
    set = epoll_create1(0);
    over = eventfd(0, 0);
    control(EPOLL_CTL_ADD, over, EPOLLIN);
}

static void end_serving(const pthread_t *threads, int count) {
    uint64_t one = 1;
    if (write(over, &one, sizeof one) != sizeof one)
        say("! no end");
    for (int n = 0; n < count; n++)
        pthread_join(threads[n], NULL);
}

/* A worker: does with each descriptor that is told of what `argument` points to. */
static void *serve(void *argument) {
    void (*const *each)(int) = argument;
    struct epoll_event events[4];
    for (;;) {
        int count = epoll_wait(set, events, COUNT(events), -1);
        for (int n = 0; n < count; n++) {
            if (events[n].data.fd == over)
                return NULL;
            (*each)(events[n].data.fd);
        }
    }
}

static void serve_what_was_added(int fd) {
    if (!echo(fd))
        close(fd);
}

static void *accept_all(void *unused) {
    /* Often away between its registering a connection and its return. */
    setpriority(PRIO_PROCESS, gettid(), 19);
    for (int n = 0; n < CLIENTS * CONNECTIONS; n++) {
        int fd = accept4(me.listener, NULL, NULL, SOCK_NONBLOCK);
        if (fd < 0 || control(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP) != 0)
            say("! accept or add: %s", strerrorname_np(errno));
    }
    return unused;
}

/* One thread accepts and registers; another serves, and closes, perhaps before the first has returned. It is told of no
 * connection that it has closed. */
void scenario_pool_added_by_acceptor(void) {
    if (me.client) {
        load_by_all(CONNECTIONS, 8);
        meet();
        return;
    }
    pthread_t acceptor, worker;
    begin_serving();
    pthread_create(&worker, NULL, serve, &(void (*)(int)){serve_what_was_added});
    pthread_create(&acceptor, NULL, accept_all, NULL);
    pthread_join(acceptor, NULL);
    meet();
    end_serving(&worker, 1);
}

static const uint32_t ONCE = EPOLLIN | EPOLLRDHUP | EPOLLET | EPOLLONESHOT;

static void serve_one_at_a_time(int fd) {
    if (fd == me.listener) {
        while ((fd = accept4(me.listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
            control(EPOLL_CTL_ADD, fd, ONCE);
        return;
    }
    if (holders[fd]++ != 0)
        say("! two threads were told of one event");
    bool open;
    do
        errno = 0;
    while ((open = echo(fd)) && errno != EAGAIN);
    holders[fd]--;
    if (!open)
        close(fd);
    else if (control(EPOLL_CTL_MOD, fd, ONCE) != 0)
        say("! armed by one thread, closed by another: %s", strerrorname_np(errno));
}

/* Whoever is told of a one-shot registration has the connection to himself until he arms it, also while it is lifted. */
void scenario_pool_of_one_shots(void) {
    if (me.client) {
        load_by_all(CONNECTIONS / 4, TURNS);
        meet();
        return;
    }
    pthread_t workers[WORKERS];
    void (*each)(int) = serve_one_at_a_time;
    begin_serving();
    fcntl(me.listener, F_SETFL, O_NONBLOCK);
    control(EPOLL_CTL_ADD, me.listener, EPOLLIN | EPOLLET);
    for (int n = 0; n < WORKERS; n++)
        pthread_create(&workers[n], NULL, serve, &each);
    meet();
    end_serving(workers, WORKERS);
}
