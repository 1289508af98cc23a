/* Quantised bytes as float32 or bfloat16: scale × (byte − zero point), rounded once.
 *
 * Compiled by hatch_build.py for processors with AVX2. SOURCE is a checksum of this file. model/kernels/dequantize.py calls it.
 */

#include <stdint.h>

enum { LANES = 8, PART = 1 << 15 };  // bytes that a thread takes at once

typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* model/kernels/dequantize.py has the same structure. */
struct Work {
    const uint8_t *values;  // [count], of which count is a multiple of LANES
    void *result;           // [count] float32 or bfloat16
    int64_t count;
    int64_t is_bfloat16;
    float scale;
    int32_t zero_point;
    int64_t next;           // the first that nobody has taken yet
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

typedef void Parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

static void take_parts(void *argument) {
    struct Work *work = argument;
    for (;;) {
        int64_t n = __atomic_fetch_add(&work->next, PART, __ATOMIC_RELAXED);
        const int64_t end = n + PART < work->count ? n + PART : work->count;
        if (n >= end) return;
        for (; n < end; n += LANES) {
            const integers whole = __builtin_convertvector(*(const bytes *)(work->values + n), integers) - work->zero_point;
            const vector result = work->scale * __builtin_convertvector(whole, vector);
            if (work->is_bfloat16) {
                // To the nearest, of two to the even one; there is no NaN.
                const bits exact = (bits)result;
                const bits rounded = (exact + 0x7FFF + (exact >> 16 & 1)) >> 16;
                *(halves *)((uint16_t *)work->result + n) = __builtin_convertvector(rounded, halves);
            } else
                *(floats *)((float *)work->result + n) = result;
        }
    }
}

void dequantize(struct Work *work, Parallel *parallel, int64_t threads) {
    if (threads == 1)
        take_parts(work);
    else
        parallel(take_parts, work, threads, 0);
}
