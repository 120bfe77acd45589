/* Starts one side of one scenario: see actor.h. */
#include "actor.h"

#include <arpa/inet.h>
#include <libgen.h>

struct actor me = {.listener = -1};

struct scenario {
    const char *name;
    void (*play)(void);
};

static const struct scenario scenarios[] = {
#define SCENARIO(name) {#name, scenario_##name},
#include "scenarios.h"
#undef SCENARIO
};

static void open_listener(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    me.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (me.listener < 0 || bind(me.listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(me.listener, 512) != 0 ||
        getsockname(me.listener, (struct sockaddr *)&address, &length) != 0) {
        say("! cannot listen: %s", strerror(errno));
        exit(1);
    }
    me.port = ntohs(address.sin_port);
}

static void introduce(void) {
    tell(getpid());
    me.peer = told();
    if (me.server) {
        open_listener();
        tell(me.port);
    } else {
        me.port = told();
    }
}

int main(int argc, char **argv) {
    static char program[4096], bystander[4200], will[4200];
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0)
        return 1;
    char folder[4096];
    strcpy(folder, program);
    snprintf(bystander, sizeof bystander, "%s/bystander", dirname(folder));
    snprintf(will, sizeof will, "%s/will.so", folder);
    me.program = program;
    me.bystander = bystander;
    me.will = will;

    if (argc > 2 && strcmp(argv[1], "resume") == 0)
        return resume(argc - 2, argv + 2);
    if (argc != 3) {
        fprintf(stderr, "usage: actor SCENARIO server|client\n");
        return 2;
    }
    me.server = strcmp(argv[2], "server") == 0;
    me.client = !me.server;
    for (size_t i = 0; i < COUNT(scenarios); i++) {
        if (strcmp(scenarios[i].name, argv[1]) != 0)
            continue;
        introduce();
        scenarios[i].play();
        say("done");
        meet_if_alive();
        return 0;
    }
    fprintf(stderr, "actor: no scenario %s\n", argv[1]);
    return 2;
}
