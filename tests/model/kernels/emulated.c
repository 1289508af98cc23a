/* Runs a kernel that was compiled for another processor, under QEMU, on what test_neon.py writes to its standard input:
 *
 *   the size of `struct Work`, and its bytes; how many arrays; of each the place of its pointer in the structure, its size
 *   and its bytes; and the places of `scratch` and `thread_number`, or -1 where the kernel has none.
 *
 * All numbers are int64. It writes the last array, which is the result.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void KERNEL(void *work, void *parallel, int64_t threads);

#ifdef HAS_SCRATCH
int64_t scratch_bytes(const void *work);
#else
static int64_t scratch_bytes(const void *work) { return work != NULL; }
#endif

static int only_thread(void) { return 0; }

static void take(void *to, int64_t bytes) {
    if (fread(to, 1, bytes, stdin) != (size_t)bytes) exit(2);
}

static int64_t number(void) {
    int64_t read;
    take(&read, sizeof read);
    return read;
}

static void point(char *work, int64_t place, const void *to) {
    if (place >= 0) memcpy(work + place, &to, sizeof to);
}

int main(void) {
    const int64_t size = number();
    char *work = malloc(size), *array = NULL;
    take(work, size);
    int64_t bytes = 0;
    for (int64_t left = number(); left > 0; left--) {
        const int64_t place = number();
        bytes = number();
        array = malloc(bytes);
        take(array, bytes);
        point(work, place, array);
    }
    const int64_t scratch = number(), thread = number();
    point(work, scratch, aligned_alloc(64, (scratch_bytes(work) + 63) / 64 * 64));
    point(work, thread, (const void *)only_thread);
    KERNEL(work, NULL, 1);
    return fwrite(array, 1, bytes, stdout) != (size_t)bytes;
}
