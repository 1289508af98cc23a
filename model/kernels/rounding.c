/* Quantised bytes as float32 or bfloat16, scale × (byte − zero point), rounded once; and float32 as quantised bytes.
 *
 * Compiled by hatch_build.py for processors with AVX2. SOURCE is a checksum of this file. model/kernels/rounding.py calls it.
 */

#include <immintrin.h>
#include <stdint.h>

enum { LANES = 8, PART = 1 << 15 };  // numbers that a thread takes at once

typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* model/kernels/rounding.py has the same structure. */
struct Work {
    uint8_t *values;     // [count]; count is a multiple of LANES
    void *floats;        // [count] float32, or of dequantize() bfloat16
    int64_t count;
    int64_t is_bfloat16;
    float scale;
    int32_t zero_point;
    int64_t next;        // the first that nobody has taken yet
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

typedef void Parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

/* Take the next numbers that nobody has taken, from *first up to *end; whether there are any. */
static int take(struct Work *work, int64_t *first, int64_t *end) {
    *first = __atomic_fetch_add(&work->next, PART, __ATOMIC_RELAXED);
    *end = *first + PART < work->count ? *first + PART : work->count;
    return *first < *end;
}

static void dequantize_parts(void *argument) {
    struct Work *work = argument;
    for (int64_t n, end; take(work, &n, &end);)
        for (; n < end; n += LANES) {
            const integers whole = __builtin_convertvector(*(const bytes *)(work->values + n), integers) - work->zero_point;
            const vector result = work->scale * __builtin_convertvector(whole, vector);
            if (work->is_bfloat16) {
                // To the nearest, of two to the even one; there is no NaN.
                const bits exact = (bits)result;
                const bits rounded = (exact + 0x7FFF + (exact >> 16 & 1)) >> 16;
                *(halves *)((uint16_t *)work->floats + n) = __builtin_convertvector(rounded, halves);
            } else
                *(loose *)((float *)work->floats + n) = result;
        }
}

static void quantize_parts(void *argument) {
    struct Work *work = argument;
    for (int64_t n, end; take(work, &n, &end);)
        for (; n < end; n += LANES) {
            const vector steps = *(const loose *)((const float *)work->floats + n) / work->scale;
            // To the nearest, of two to the even one, within a byte; there is no NaN.
            const __m256 least = _mm256_max_ps((__m256)steps, _mm256_set1_ps(-work->zero_point));
            const __m256 within = _mm256_min_ps(least, _mm256_set1_ps(255 - work->zero_point));
            const integers whole = (integers)_mm256_cvtps_epi32(within) + work->zero_point;
            *(bytes *)(work->values + n) = __builtin_convertvector(whole, bytes);
        }
}

static void run(void (*parts)(void *), struct Work *work, Parallel *parallel, int64_t threads) {
    if (threads == 1)
        parts(work);
    else
        parallel(parts, work, threads, 0);
}

void dequantize(struct Work *work, Parallel *parallel, int64_t threads) { run(dequantize_parts, work, parallel, threads); }

void quantize(struct Work *work, Parallel *parallel, int64_t threads) { run(quantize_parts, work, parallel, threads); }
