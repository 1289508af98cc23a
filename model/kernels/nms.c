/* Which boxes survive non-maximum suppression, with the arithmetic of torchvision.ops.nms on x86, one box with
 * many at a time.
 *
 * Compiled by hatch_build.py for processors with AVX2 or NEON, without multiplications and sums in one step, which would
 * round otherwise. SOURCE is a checksum of this file. model/kernels/nms.py calls it.
 */

#include <stdint.h>

/* model/kernels/nms.py has the same structure. */
struct Work {
    const void *boxes;       // [4, count] float or double: the left, upper, right and lower ends, best boxes first
    void *areas;             // [count], of the same: room for their areas
    uint8_t *is_suppressed;  // [count]
    int64_t count;
    double iou_threshold;    // the largest intersection over union that two survivors may have
    int64_t is_double;
};

const int64_t work_bytes = sizeof(struct Work), source = SOURCE;

#define LARGER(a, b) ((a) < (b) ? (b) : (a))
#define SMALLER(a, b) ((b) < (a) ? (b) : (a))

#define SUPPRESS(name, number)                                                                                      \
    static void name(const struct Work *work) {                                                                     \
        const int64_t count = work->count;                                                                          \
        const number *x0 = work->boxes, *y0 = x0 + count, *x1 = y0 + count, *y1 = x1 + count;                       \
        const double threshold = work->iou_threshold;                                                               \
        number *restrict areas = work->areas;                                                                       \
        uint8_t *restrict is_suppressed = work->is_suppressed;                                                      \
        for (int64_t j = 0; j < count; j++) areas[j] = (x1[j] - x0[j]) * (y1[j] - y0[j]), is_suppressed[j] = 0;     \
        for (int64_t i = 0; i < count; i++) {                                                                       \
            if (is_suppressed[i]) continue;                                                                         \
            const number left = x0[i], upper = y0[i], right = x1[i], lower = y1[i], area = areas[i];                \
            for (int64_t j = i + 1; j < count; j++) {                                                               \
                const number width = SMALLER(right, x1[j]) - LARGER(left, x0[j]);                                   \
                const number height = SMALLER(lower, y1[j]) - LARGER(upper, y0[j]);                                 \
                const number shared = LARGER(0, width) * LARGER(0, height);                                         \
                is_suppressed[j] |= shared / (area + areas[j] - shared) > threshold;                                \
            }                                                                                                       \
        }                                                                                                           \
    }

SUPPRESS(suppress_floats, float)
SUPPRESS(suppress_doubles, double)

void suppress(const struct Work *work) { (work->is_double ? suppress_doubles : suppress_floats)(work); }
