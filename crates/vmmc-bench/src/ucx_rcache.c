/*
 * What a hit of UCX's registration cache costs: get and put of a buffer that is registered. Registering is mlock, as what is
 * compared pins likewise. Prints nanoseconds of each batch, one a line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucm/api/ucm.h>
#include <ucs/memory/rcache.h>

static ucs_status_t reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region, uint16_t flags)
{
    return mlock((void *)region->super.start, region->super.end - region->super.start) == 0 ? UCS_OK : UCS_ERR_NO_MEMORY;
}

static void dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
    munlock((void *)region->super.start, region->super.end - region->super.start);
}

static void dump(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *text, size_t max)
{
    snprintf(text, max, "-");
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int count, char **arguments)
{
    int batches = count > 1 ? atoi(arguments[1]) : 100;
    ucs_rcache_ops_t ops = {reg, dereg, dump};
    ucs_rcache_params_t params;
    ucs_rcache_t *rcache;
    memset(&params, 0, sizeof(params));
    params.region_struct_size = sizeof(ucs_rcache_region_t);
    params.alignment = UCS_RCACHE_MIN_ALIGNMENT;
    params.max_alignment = 4096;
    params.ucm_events = UCM_EVENT_VM_UNMAPPED;
    params.ucm_event_priority = 1000;
    params.ops = &ops;
    params.flags = UCS_RCACHE_FLAG_NO_PFN_CHECK;
    params.max_regions = -1ul;
    params.max_size = -1ul;
    params.max_unreleased = -1ul;
    if (ucs_rcache_create(&params, "bench", NULL, &rcache) != UCS_OK)
        return 1;
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int batch = 0; batch < batches; batch++) {
        const int hits = 10000;
        double from = now();
        for (int hit = 0; hit < hits; hit++) {
            ucs_rcache_region_t *region;
            if (ucs_rcache_get(rcache, memory, 8, PROT_READ | PROT_WRITE, NULL, &region) != UCS_OK)
                return 1;
            ucs_rcache_region_put(rcache, region);
        }
        printf("%.3f\n", (now() - from) / hits);
    }
    return 0;
}
