/* A library that does what it was told to when its turn comes at the program's end: as it is loaded last, after the
 * destructors of the program and of what was loaded before. */
#include <stddef.h>

void (*will)(void) = NULL;

__attribute__((destructor)) static void execute(void) {
    if (will)
        will();
}
