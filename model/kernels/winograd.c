/* Convolutions 3×3, stride 1, padding 1, on channels-last tensors with a quarter of the multiplications: Winograd's
 * F(4×4, 3×3) (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4.3).
 *
 * A tile is 4×4 cells of the result. It comes of 6×6 cells of the input: sums of those (Bᵀ d B), times 36 matrices, are 36
 * products, whose sums (Aᵀ m A) are the result. A thread takes some tiles at a time and does all three steps with them,
 * so that nothing in between leaves its second cache; the matrices, which all blocks read, stay in the last one. What is
 * multiplied is of type `number`, what the tensors hold of type `cell`.
 *
 * Compiled once for each kind of processor (hatch_build.py) with LANES, the float32s of a vector register; with BFLOAT16 for
 * bfloat16; and with BYTES for tensors that are quantised to bytes. SOURCE is a checksum of this file.
 * model/kernels/winograd.py calls it and has the matrices.
 */

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

enum { SIDE = 4, REACH = SIDE + 2, PRODUCTS = REACH * REACH };
enum { LINE = 64 };  // bytes of a cache line

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

#if defined BFLOAT16 || defined BYTES
#include <immintrin.h>
#endif

#ifdef BYTES

/* For bytes everything up to the products' sums is exact but the weights: sums of cells are whole numbers of 16 bits, products
 * and their sums of 32.
 */
typedef uint8_t cell;
typedef int16_t number;
typedef int16_t summand __attribute__((vector_size(4 * LANES)));
typedef integers total;
typedef int16_t loose_numbers __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint8_t loose_bytes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint8_t loose_byte_pairs __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

enum { AT_ONCE = 2 * LANES };  // channels whose cells are read and summed at once
enum { TOGETHER = 2 };  // neighbouring numbers that one instruction multiplies and sums
enum { SUMMED = 128 };  // channels whose products are summed before the sum becomes a float32

INLINE summand read_summands(const cell *from, float zero) {
    return __builtin_convertvector(*(const loose_byte_pairs *)from, summand) - (int16_t)zero;
}

INLINE void store(number *to, summand v) { *(loose_numbers *)to = v; }

INLINE total multiplied(total sum, const number *row, vector column) {
    int32_t pair;
    __builtin_memcpy(&pair, row, sizeof pair);
#if LANES == 8
    return sum + (total)_mm256_madd_epi16(_mm256_set1_epi32(pair), (__m256i)column);
#else
    return (total)_mm512_dpwssd_epi32((__m512i)sum, _mm512_set1_epi32(pair), (__m512i)column);
#endif
}

/* A sum of products as a float32, added to that of the channels before. In one operation: the compiler could choose so for
 * some tiles only.
 */
INLINE vector add_scaled(total sum, const float *scales, vector so_far) {
    return __builtin_elementwise_fma(__builtin_convertvector(sum, vector), (vector)*(const loose *)scales, so_far);
}

INLINE vector read_floats(const cell *from, float zero) {
    return __builtin_convertvector(__builtin_convertvector(*(const loose_bytes *)from, integers), vector) - zero;
}

INLINE void put(cell *to, vector v) {
#if LANES == 8
    const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps((__m256)v, _mm256_set1_ps(255)));
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((void *)to, _mm_packus_epi16(halves, halves));
#else
    const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps((__m512)v, _mm512_set1_ps(255)));
    _mm_storeu_si128((void *)to, _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512())));
#endif
}

#else

/* For floats, all sums are float32. */
typedef vector summand;
typedef vector total;

enum { AT_ONCE = LANES, SUMMED = 1 << 30 };

#ifdef BFLOAT16

typedef uint16_t number;
typedef uint16_t loose_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

enum { TOGETHER = 2 };

INLINE vector load(const number *from) {
    return (vector)(__builtin_convertvector(*(const loose_halves *)from, integers) << 16);
}

INLINE void store(number *to, vector v) { *(loose_halves *)to = (loose_halves)_mm512_cvtneps_pbh((__m512)v); }

INLINE total multiplied(total sum, const number *row, vector column) {
    int32_t pair;
    __builtin_memcpy(&pair, row, sizeof pair);
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)column);
}

#else

typedef float number;

enum { TOGETHER = 1 };

INLINE vector load(const number *from) { return *(const loose *)from; }

INLINE void store(number *to, vector v) { *(loose *)to = v; }

INLINE total multiplied(total sum, const number *row, vector column) { return sum + *row * column; }

#endif

typedef number cell;

INLINE vector read_floats(const cell *from, float zero) {
    (void)zero;
    return load(from);
}

INLINE summand read_summands(const cell *from, float zero) { return read_floats(from, zero); }

INLINE vector add_scaled(total sum, const float *scales, vector so_far) {
    (void)scales, (void)so_far;
    return sum;
}

INLINE void put(cell *to, vector v) { store(to, v); }

#endif

/* Sums of so many tiles are multiplied at once by so many vectors of a matrix: as many as there are registers for, which are
 * 16 with AVX2, and 32 with AVX-512 and NEON.
 */
enum { ROWS = 6, VECTORS = LANES == 8 ? 2 : 4 };

/* Where the polynomials are evaluated: at 0, ±P, ±Q and infinity. Of all such points, about those that round bfloat16
 * least: docs/engine.md. With whole ones, the sums of bytes are whole too.
 */
#ifdef BYTES
#define P 1
#define Q 2
#else
#define P 0.6875f
#define Q 1.5f
#endif

/* What model/kernels/winograd.py must know: to prepare the matrices, and below, whether this is the version that it calls. */
const float points[] = {P, Q};
const int64_t lanes = LANES, vectors = VECTORS, at_once = AT_ONCE, summed = SUMMED;

/* Bᵀ d of one column or row of a tile. */
INLINE void before(const summand d[REACH], summand sums[REACH]) {
    const summand even_p = d[4] - Q * Q * d[2], odd_p = d[3] - Q * Q * d[1];
    const summand even_q = d[4] - P * P * d[2], odd_q = d[3] - P * P * d[1];
    sums[0] = d[4] - (P * P + Q * Q) * d[2] + P * P * Q * Q * d[0];
    sums[1] = even_p + P * odd_p;
    sums[2] = even_p - P * odd_p;
    sums[3] = even_q + Q * odd_q;
    sums[4] = even_q - Q * odd_q;
    sums[5] = d[5] - (P * P + Q * Q) * d[3] + P * P * Q * Q * d[1];
}

/* Aᵀ m of one column or row of a tile. */
INLINE void after(const vector m[REACH], vector result[SIDE]) {
    const vector even_p = m[1] + m[2], odd_p = m[1] - m[2];
    const vector even_q = m[3] + m[4], odd_q = m[3] - m[4];
    result[0] = m[0] + even_p + even_q;
    result[1] = P * odd_p + Q * odd_q;
    result[2] = P * P * even_p + Q * Q * even_q;
    result[3] = P * P * P * odd_p + Q * Q * Q * odd_q + m[5];
}

/* What is to be computed; sizes and steps count cells. model/kernels/winograd.py has the same structure. */
struct Work {
    const cell *x;          // [images, height, width, channels], the last without gaps
    const number *weights;  // for each `panel` of the depth: [36, channels / TOGETHER, panel, TOGETHER]
    const float *scales;    // of bytes, by what their products are multiplied: for each panel [36, panel]
    const float *bias;      // [depth]
    cell *result;           // [images, height, width, depth], the last without gaps
    char *scratch;          // for each thread scratch_bytes()
    int64_t x_image, x_row, x_column, result_image, result_row, result_column;  // steps in memory
    int64_t images, height, width, channels;
    int64_t depth, panel;   // both multiples of LANES, panel at most VECTORS of them
    int64_t block;          // tiles that a thread works on at once
    int64_t add;            // whether to add to what is in `result`
    float x_zero, x_step;   // a cell of x stands for x_step * (cell - x_zero)
    float sum_zero, sum_step;  // and what is in `result` likewise
    float least;            // smaller results become this: for a ReLU
    int64_t next;           // block that nobody has taken yet
    int (*thread_number)(void);  // OpenMP's, of the calling thread
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

typedef void Parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags);

/* A tile's image, and its first row and column. */
struct Place {
    int64_t image, row, column;
};

INLINE int64_t tiles_in(int64_t cells) { return (cells + SIDE - 1) / SIDE; }

INLINE struct Place place(const struct Work *work, int64_t tile) {
    const int64_t across = tiles_in(work->width), down = tiles_in(work->height);
    return (struct Place){tile / (across * down), SIDE * (tile / across % down), SIDE * (tile % across)};
}

/* From the tiles' sums for one product to those for the next. Mostly odd cache lines, lest all want one place. */
INLINE int64_t stride(int64_t channels, int64_t block) { return channels * block + LINE / sizeof(number); }

int64_t scratch_bytes(const struct Work *work) {
    const int64_t sums = PRODUCTS * stride(work->channels, work->block);
    const int64_t products = PRODUCTS * work->panel * work->block;
    const int64_t bytes = sizeof(number) * sums + sizeof(float) * products + sizeof(cell) * work->channels;
    return (bytes + LINE - 1) / LINE * LINE;
}

/* sums: [36, stride], of each the tiles' channels. zeros: [channels]. */
static void transform(const struct Work *work, int64_t first, int64_t count, number *sums, const cell *zeros) {
    const int64_t channels = work->channels, apart = stride(channels, work->block);
    for (int64_t tile = 0; tile < count; tile++) {
        const struct Place at = place(work, first + tile);
        const cell *cells[PRODUCTS];
        for (int i = 0; i < REACH; i++)
            for (int j = 0; j < REACH; j++) {
                const int64_t y = at.row + i - 1, x = at.column + j - 1;
                const int inside = y >= 0 && y < work->height && x >= 0 && x < work->width;
                const int64_t offset = at.image * work->x_image + y * work->x_row + x * work->x_column;
                cells[REACH * i + j] = inside ? work->x + offset : zeros;
            }
        for (int64_t c = 0; c < channels; c += AT_ONCE) {
            summand halfway[REACH][REACH];
            for (int j = 0; j < REACH; j++) {
                summand d[REACH], column[REACH];
                for (int i = 0; i < REACH; i++) d[i] = read_summands(cells[REACH * i + j] + c, work->x_zero);
                before(d, column);
                for (int i = 0; i < REACH; i++) halfway[i][j] = column[i];
            }
            for (int i = 0; i < REACH; i++) {
                summand row[REACH];
                before(halfway[i], row);
                for (int j = 0; j < REACH; j++) store(sums + (REACH * i + j) * apart + tile * channels + c, row[j]);
            }
        }
    }
}

/* products [rows, vectors] = sums [rows, channels] × matrix [channels / TOGETHER, vectors, TOGETHER]. Meanwhile a cache line
 * from `ahead` on is fetched into the second cache for each step of the sums.
 */
INLINE void multiply(int rows, int vectors, int64_t channels, const number *sums, const number *matrix,
                     const float *scales, float *products, const char *ahead) {
    for (int64_t c = 0; c < channels;) {
        const int64_t end = channels - c < SUMMED ? channels : c + SUMMED;
        const int is_first = c == 0;
        total totals[ROWS][VECTORS] = {0};
        for (; c < end; c += TOGETHER, ahead += LINE) {
            vector columns[VECTORS];
            __builtin_prefetch(ahead, 0, 2);
            for (int v = 0; v < vectors; v++, matrix += LANES * TOGETHER) columns[v] = *(const loose *)matrix;
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < vectors; v++)
                    totals[r][v] = multiplied(totals[r][v], sums + r * channels + c, columns[v]);
        }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) {
                loose *to = (loose *)(products + LANES * (vectors * r + v));
                *to = add_scaled(totals[r][v], scales + LANES * v, is_first ? (vector){0} : *to);
            }
    }
}

/* The same with numbers that the compiler knows: only so are the totals in registers. */
#define BY_ROWS(rows, vectors) \
    case rows: return multiply(rows, vectors, channels, sums, matrix, scales, products, ahead);
#define BY_VECTORS(vectors) \
    case vectors: switch (rows) { \
        BY_ROWS(1, vectors) BY_ROWS(2, vectors) BY_ROWS(3, vectors) \
        BY_ROWS(4, vectors) BY_ROWS(5, vectors) BY_ROWS(6, vectors) \
    }

static void multiply_some(int64_t rows, int64_t vectors, int64_t channels, const number *sums, const number *matrix,
                          const float *scales, float *products, const char *ahead) {
    switch (vectors) {
        BY_VECTORS(1)
        BY_VECTORS(2)
#if LANES != 8
        BY_VECTORS(3)
        BY_VECTORS(4)
#endif
    }
}

/* products: [36, block, panel], for the channels of the result from `from` on. */
static void finish(const struct Work *work, int64_t first, int64_t count, int64_t from, int64_t panel,
                   const float *products) {
    for (int64_t tile = 0; tile < count; tile++) {
        const struct Place at = place(work, first + tile);
        const int64_t rows = work->height - at.row, columns = work->width - at.column;
        cell *corner = work->result + at.image * work->result_image + at.row * work->result_row +
                         at.column * work->result_column + from;
        for (int64_t k = 0; k < panel; k += LANES) {
            const float *of_tile = products + tile * panel + k;
            vector halfway[SIDE][REACH];
            for (int j = 0; j < REACH; j++) {
                vector m[REACH], column[SIDE];
                for (int i = 0; i < REACH; i++)
                    m[i] = *(const loose *)(of_tile + (REACH * i + j) * work->block * panel);
                after(m, column);
                for (int i = 0; i < SIDE; i++) halfway[i][j] = column[i];
            }
            const vector bias = *(const loose *)(work->bias + from + k);
            for (int i = 0; i < SIDE && i < rows; i++) {
                vector row[SIDE];
                after(halfway[i], row);
                for (int j = 0; j < SIDE && j < columns; j++) {
                    cell *to = corner + i * work->result_row + j * work->result_column + k;
                    vector v = work->x_step * row[j] + bias;
                    if (work->add) v += work->sum_step * read_floats(to, work->sum_zero);
                    const integers less = v < work->least;  // not where it is NaN, which it stays
                    put(to, (vector)((less & (integers)((vector){0} + work->least)) | (~less & (integers)v)));
                }
            }
        }
    }
}

static void take_blocks(void *argument) {
    struct Work *work = argument;
    const int64_t tiles = work->images * tiles_in(work->height) * tiles_in(work->width);
    const int64_t block = work->block, channels = work->channels;
    // Each begins with a cache line: `scratch` does.
    number *sums = (number *)(work->scratch + work->thread_number() * scratch_bytes(work));
    float *products = (float *)(sums + PRODUCTS * stride(channels, block));
    cell *zeros = (cell *)(products + PRODUCTS * work->panel * block);
    __builtin_memset(zeros, (int)work->x_zero, channels * sizeof(cell));
    for (;;) {
        const int64_t first = block * __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (first >= tiles) return;
        const int64_t count = tiles - first < block ? tiles - first : block;
        transform(work, first, count, sums, zeros);
        for (int64_t from = 0; from < work->depth; from += work->panel) {
            const int64_t panel = work->depth - from < work->panel ? work->depth - from : work->panel;
            const number *matrix = work->weights + PRODUCTS * channels * from;
            const float *scales = work->scales + PRODUCTS * from;
            const int64_t bytes = channels * panel * (int64_t)sizeof(number), fetched = channels / TOGETHER * LINE;
            for (int n = 0; n < PRODUCTS; n++, matrix += channels * panel)
                for (int64_t tile = 0; tile < count; tile += ROWS) {
                    // The next matrix: to wait for it took a fifth of the time and more.
                    const char *ahead = (const char *)matrix + bytes + tile / ROWS * fetched % bytes;
                    multiply_some(count - tile < ROWS ? count - tile : ROWS, panel / LANES, channels,
                                  sums + n * stride(channels, block) + tile * channels, matrix, scales + n * panel,
                                  products + (n * block + tile) * panel, ahead);
                }
            finish(work, first, count, from, panel, products);
        }
    }
}

/* parallel: OpenMP's, with whose threads torch computes: others would wait for them, and they for others. */
void convolve(struct Work *work, Parallel *parallel, int64_t threads) {
    if (threads == 1)
        take_blocks(work);
    else
        parallel(take_blocks, work, threads, 0);
}
