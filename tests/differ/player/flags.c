/* Names of flags and events, as steps and answers spell them. */
#include "player.h"

struct name {
    uint32_t bit;
    const char *text;
};

static const struct name flags[] = {
    {MSG_PEEK, "PEEK"},         {MSG_WAITALL, "WAITALL"}, {MSG_DONTWAIT, "DONTWAIT"},
    {MSG_NOSIGNAL, "NOSIGNAL"}, {MSG_MORE, "MORE"},       {MSG_TRUNC, "TRUNC"},
    {MSG_OOB, "OOB"},           {0, NULL},
};

/* The bits of poll and of epoll are the same numbers. */
static const struct name events[] = {
    {EPOLLIN, "IN"},         {EPOLLPRI, "PRI"},       {EPOLLOUT, "OUT"},       {EPOLLERR, "ERR"},
    {EPOLLHUP, "HUP"},       {POLLNVAL, "NVAL"},      {EPOLLRDNORM, "RDNORM"}, {EPOLLRDBAND, "RDBAND"},
    {EPOLLWRNORM, "WRNORM"}, {EPOLLWRBAND, "WRBAND"}, {EPOLLRDHUP, "RDHUP"},   {EPOLLET, "ET"},
    {EPOLLONESHOT, "ONESHOT"}, {0, NULL},
};

static uint32_t parse(const char *text, const struct name *names) {
    uint32_t bits = 0;
    char copy[128];
    snprintf(copy, sizeof copy, "%s", text);
    for (char *rest = copy, *one; (one = strsep(&rest, "|"));)
        for (const struct name *name = names; name->text; name++)
            if (strcmp(one, name->text) == 0)
                bits |= name->bit;
    return bits;
}

int message_flags(const char *text) {
    return (int)parse(text, flags);
}

uint32_t event_bits(const char *text) {
    return parse(text, events);
}

void answer_events(uint32_t bits) {
    char line[160] = "";
    for (const struct name *name = events; name->text; name++) {
        if (!(bits & name->bit))
            continue;
        if (*line)
            strcat(line, "|");
        strcat(line, name->text);
    }
    answer("%s", *line ? line : "none");
}
