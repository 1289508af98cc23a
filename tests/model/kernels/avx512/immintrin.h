/* Those of Intel's intrinsics that winograd.c calls with vectors of 512 bits, in plain C, for processors without them:
 * test_avx512.py. What they do is said in Intel's Intrinsics Guide.
 */

#include <stdint.h>

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef long long __m128i __attribute__((vector_size(16)));
typedef uint16_t __m512bh __attribute__((vector_size(64)));
typedef uint16_t __m256bh __attribute__((vector_size(32)));

typedef int32_t words __attribute__((vector_size(64)));
typedef int16_t shorts __attribute__((vector_size(64)));
typedef uint8_t bytes __attribute__((vector_size(16)));

#define EACH(n) for (int n = 0; n < 16; n++)

static inline __m512i _mm512_setzero_si512(void) { return (__m512i){0}; }

static inline __m512i _mm512_set1_epi32(int value) { return (__m512i)((words){0} + value); }

static inline __m512 _mm512_set1_ps(float value) { return (__m512){0} + value; }

static inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
    EACH(n) a[n] = a[n] < b[n] ? a[n] : b[n];
    return a;
}

static inline __m512i _mm512_max_epi32(__m512i a, __m512i b) {
    words larger = (words)a;
    EACH(n) larger[n] = larger[n] > ((words)b)[n] ? larger[n] : ((words)b)[n];
    return (__m512i)larger;
}

static inline __m512i _mm512_cvtps_epi32(__m512 a) {
    words whole;
    EACH(n) whole[n] = (int32_t)__builtin_rintf(a[n]);
    return (__m512i)whole;
}

static inline __m128i _mm512_cvtusepi32_epi8(__m512i a) {
    bytes narrow;
    EACH(n) narrow[n] = (uint32_t)((words)a)[n] > 255 ? 255 : ((words)a)[n];
    return (__m128i)narrow;
}

static inline void _mm_storeu_si128(void *to, __m128i a) { __builtin_memcpy(to, &a, sizeof a); }

static inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
    const shorts x = (shorts)a, y = (shorts)b;
    words sums = (words)sum;
    EACH(n) sums[n] += x[2 * n] * y[2 * n] + x[2 * n + 1] * y[2 * n + 1];
    return (__m512i)sums;
}

static inline float from_bfloat16(uint16_t half) {
    const uint32_t whole = (uint32_t)half << 16;
    float value;
    __builtin_memcpy(&value, &whole, sizeof value);
    return value;
}

static inline __m256bh _mm512_cvtneps_pbh(__m512 a) {
    __m256bh halves;
    EACH(n) {
        const uint32_t exact = ((words)a)[n];
        halves[n] = (exact + 0x7FFF + (exact >> 16 & 1)) >> 16;
    }
    return halves;
}

static inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    EACH(n) {
        sum[n] += from_bfloat16(a[2 * n + 1]) * from_bfloat16(b[2 * n + 1]);
        sum[n] += from_bfloat16(a[2 * n]) * from_bfloat16(b[2 * n]);
    }
    return sum;
}
