/* A photo's bytes, resized bilinearly without antialiasing, times `scale` plus `shift` for each channel: the network's
 * input, in one step and without an array of anything in between.
 *
 * Compiled by hatch_build.py for processors with AVX2 or NEON. SOURCE is a checksum of this file. model/kernels/bilinear.py calls
 * it, and says which two rows and columns of the photo each of the result lies between.
 */

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { CHANNELS = 3, ROWS_AT_ONCE = 16 };

typedef float vector __attribute__((vector_size(16)));
typedef uint32_t bits __attribute__((vector_size(16)));
typedef uint8_t bytes __attribute__((vector_size(4)));
typedef uint16_t halves __attribute__((vector_size(8)));

/* Sizes and steps count cells. model/kernels/bilinear.py has the same structure. */
struct Work {
    const uint8_t *photo;             // [.., .., 3], the last two without gaps
    void *result;                     // [height, width, 3] float32 or bfloat16, the last two without gaps
    const int64_t *above, *below;     // [height] rows of the photo
    const int64_t *left, *right;      // [width] columns of the photo
    const float *down, *across;       // how far it is from the first of them to the second, 0 to 1
    int64_t photo_row, result_row;    // steps in memory
    int64_t height, width;
    int64_t is_bfloat16;
    float scale[CHANNELS], shift[CHANNELS];
    int64_t next;                     // row that nobody has taken yet
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

typedef void Parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

INLINE vector values(const uint8_t *pixel) {
    bytes three = {0};
    __builtin_memcpy(&three, pixel, CHANNELS);
    return __builtin_convertvector(three, vector);
}

/* a * b + c, rounded once. */
INLINE vector fma(vector a, vector b, vector c) { return __builtin_elementwise_fma(a, b, c); }

INLINE vector all(float value) { return (vector){value, value, value, value}; }

/* In the order of torch's kernel for several threads, which gives the same bits. */
INLINE vector between(vector first, vector second, float part) {
    return fma(first, all(1 - part), second * all(part));
}

/* The nearest, and of two as near the even one. There is no NaN. */
INLINE halves rounded(vector v) {
    const bits whole = (bits)v;
    return __builtin_convertvector((whole + 0x7fff + (whole >> 16 & 1)) >> 16, halves);
}

INLINE void fill_row(const struct Work *work, int64_t row, int is_bfloat16) {
    const uint8_t *above = work->photo + work->above[row] * work->photo_row;
    const uint8_t *below = work->photo + work->below[row] * work->photo_row;
    const vector scale = {work->scale[0], work->scale[1], work->scale[2]};
    const vector shift = {work->shift[0], work->shift[1], work->shift[2]};
    // Copies, because for all that the compiler knows, what is stored below may change the originals.
    const int64_t *lefts = work->left, *rights = work->right, width = work->width;
    const float *parts = work->across, down = work->down[row];
    const int64_t bytes_each = is_bfloat16 ? sizeof(uint16_t) : sizeof(float);
    char *to = (char *)work->result + row * work->result_row * bytes_each;
    for (int64_t x = 0; x < width; x++, to += CHANNELS * bytes_each) {
        const int64_t left = CHANNELS * lefts[x], right = CHANNELS * rights[x];
        const float across = parts[x];
        const vector upper = between(values(above + left), values(above + right), across);
        const vector lower = between(values(below + left), values(below + right), across);
        const vector v = fma(between(upper, lower, down), scale, shift);
        if (is_bfloat16) {
            const halves written = rounded(v);
            __builtin_memcpy(to, &written, CHANNELS * sizeof(uint16_t));
        } else
            __builtin_memcpy(to, &v, CHANNELS * sizeof(float));
    }
}

static void take_rows(void *argument) {
    struct Work *work = argument;
    for (;;) {
        const int64_t first = __atomic_fetch_add(&work->next, ROWS_AT_ONCE, __ATOMIC_RELAXED);
        if (first >= work->height) return;
        for (int64_t row = first; row < first + ROWS_AT_ONCE && row < work->height; row++)
            if (work->is_bfloat16)
                fill_row(work, row, 1);
            else
                fill_row(work, row, 0);
    }
}

/* parallel: OpenMP's, as for winograd.c. */
void resize(struct Work *work, Parallel *parallel, int64_t threads) {
    if (threads == 1)
        take_rows(work);
    else
        parallel(take_rows, work, threads, 0);
}
