/* Fully connected layers in bfloat16 on processors that multiply matrices (AMX): result = max(least, x × weightᵀ + bias).
 *
 * Each sum goes through the depth in one order, whatever the number of threads, of rows and of columns. A thread takes some
 * rows at a time; of the depth, as much as leaves these rows in its second cache. They are multiplied with 32 columns after
 * the other, of which the next are fetched meanwhile.
 *
 * Compiled by hatch_build.py. SOURCE is a checksum of this file. model/kernels/amx_linear.py calls it.
 */

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* Eight registers are matrices of 16 rows of 64 bytes: of 16 float32, or of 32 bfloat16 of x, or of 16 columns of the
 * weight with two neighbours of each. Four of them are sums.
 */
enum { TILE = 16, LINE = 64, STEP = 32, SIDE = 2 * TILE };

/* model/kernels/amx_linear.py has the same structure. */
struct Work {
    const uint16_t *x;       // [rows, depth] bfloat16
    const uint16_t *weight;  // [panels, depth / 2, SIDE, 2] bfloat16: of SIDE columns each, the last filled up with zeros
    const float *bias;       // [columns]
    uint16_t *result;        // [rows, columns] bfloat16
    char *scratch;           // for each thread scratch_bytes()
    int64_t rows, depth, columns;  // depth a multiple of STEP, columns of TILE
    int64_t block, part;     // rows and panels that a thread works on at once; block a multiple of SIDE
    int64_t slice;           // of the depth, likewise; a multiple of STEP
    float least;             // smaller results become this: for a ReLU
    int64_t next;            // block and part that nobody has taken yet
    int (*thread_number)(void);  // OpenMP's, of the calling thread
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

typedef void Parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The sums of a block's rows and a part's columns. */
int64_t scratch_bytes(const struct Work *work) { return work->block * work->part * SIDE * (int64_t)sizeof(float); }

/* What the processor reads to know how large its matrices are (Intel's manual, volume 1, section 18.2). */
struct Shapes {
    uint8_t palette, first_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* upper, lower: rows of the matrices 0, 1 and 4, and of 2, 3 and 5. */
INLINE void set_shapes(int64_t upper, int64_t lower) {
    const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, TILE, TILE};
    struct Shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = LINE, shapes.rows[i] = rows[i];
    _tile_loadconfig(&shapes);
}

/* sums [SIDE, SIDE] of up to SIDE rows, as many as the shapes have, and as many columns; over a slice of the depth. */
INLINE void multiply(const uint16_t *x, const uint16_t *lower_x, int64_t row, const uint16_t *weight, int64_t slice,
                     float *sums, int is_first, const char *ahead) {
    enum { ROW = SIDE * sizeof(float), LOWER = TILE * SIDE };
    if (is_first)
        _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3);
    else
        _tile_loadd(0, sums, ROW), _tile_loadd(1, sums + TILE, ROW),
        _tile_loadd(2, sums + LOWER, ROW), _tile_loadd(3, sums + LOWER + TILE, ROW);
    for (int64_t d = 0; d < slice; d += STEP, weight += STEP * SIDE, ahead += STEP * SIDE * sizeof(*weight)) {
        for (int line = 0; line < 2 * TILE; line++) __builtin_prefetch(ahead + LINE * line, 0, 2);
        _tile_loadd(4, x + d, row);
        _tile_loadd(5, lower_x + d, row);
        _tile_loadd(6, weight, ROW);
        _tile_loadd(7, weight + 2 * TILE, ROW);
        _tile_dpbf16ps(0, 4, 6), _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6), _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, ROW), _tile_stored(1, sums + TILE, ROW);
    _tile_stored(2, sums + LOWER, ROW), _tile_stored(3, sums + LOWER + TILE, ROW);
}

/* Rows of the result from their sums [SIDE, SIDE]. */
static void finish(const struct Work *work, int64_t first, int64_t count, int64_t column, const float *sums) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t k = 0; k < SIDE && column + k < work->columns; k += TILE) {
            const __m512 sum = _mm512_loadu_ps(sums + r * SIDE + k) + _mm512_loadu_ps(work->bias + column + k);
            // A NaN stays one.
            const __m512 v = _mm512_max_ps(_mm512_set1_ps(work->least), sum);
            _mm256_storeu_si256((void *)(work->result + (first + r) * work->columns + column + k),
                                (__m256i)_mm512_cvtneps_pbh(v));
        }
}

/* rows: of the block from `first` on. */
static void take(const struct Work *work, int64_t first, int64_t rows, int64_t panel, int64_t panels, float *scratch) {
    const int64_t depth = work->depth, row = depth * sizeof(*work->x);
    for (int64_t d = 0; d < depth; d += work->slice) {
        const int64_t slice = smaller(work->slice, depth - d);
        for (int64_t p = 0; p < panels; p++) {
            const uint16_t *weight = work->weight + ((panel + p) * depth + d) * SIDE;
            for (int64_t r = 0; r < rows; r += SIDE) {
                const int64_t left = smaller(rows - r, SIDE), below = left > TILE ? TILE : 0;
                const uint16_t *x = work->x + (first + r) * depth + d;
                float *sums = scratch + (p * work->block + r) * SIDE;
                set_shapes(smaller(left, TILE), below ? left - TILE : left);
                // The first rows fetch the next panel's part; after a part's last panel, what another thread may need.
                const char *ahead = (const char *)(r ? weight : weight + depth * SIDE);
                multiply(x, x + below * depth, row, weight, slice, sums, d == 0, ahead);
                if (d + slice == depth) finish(work, first + r, left, (panel + p) * SIDE, sums);
            }
        }
    }
}

static void take_blocks(void *argument) {
    struct Work *work = argument;
    const int64_t panels = (work->columns + SIDE - 1) / SIDE, parts = (panels + work->part - 1) / work->part;
    float *scratch = (float *)(work->scratch + work->thread_number() * scratch_bytes(work));
    for (;;) {
        const int64_t n = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        const int64_t first = n / parts * work->block, panel = n % parts * work->part;
        if (first >= work->rows) break;
        take(work, first, smaller(work->block, work->rows - first), panel, smaller(work->part, panels - panel), scratch);
    }
    _tile_release();
}

void apply(struct Work *work, Parallel *parallel, int64_t threads) {
    if (threads == 1)
        take_blocks(work);
    else
        parallel(take_blocks, work, threads, 0);
}
