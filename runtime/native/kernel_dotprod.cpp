#include <arm_neon.h>

#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "product.h"

namespace accelerator {
namespace {

struct Vector {
    using Int = int32x4_t;
    using Float = float32x4_t;
    static constexpr int LANES = 4, VECTORS = 4, ROWS = 3;  // 12 sums and 12 totals in 32 registers

    static constexpr bool is_signed(int) { return true; }
    static Float zero() { return vdupq_n_f32(0); }
    static Float load(const float * at) { return vld1q_f32(at); }
    static void store(float * at, Float values) { vst1q_f32(at, values); }
    static Int load_bytes(const uint8_t * at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }
    static Int broadcast(int32_t value) { return vdupq_n_s32(value); }
    static Float broadcast(float value) { return vdupq_n_f32(value); }
    static Int broadcast_quad(const int8_t * at) { return vld1q_dup_s32((const int32_t *) at); }
    static Float to_float(Int values) { return vcvtq_f32_s32(values); }
    static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
    static Float multiply_add(Float a, Float b, Float sum) { return vfmaq_f32(sum, a, b); }
    static Float subtract_product(Float sum, Float a, Float b) { return vfmsq_f32(sum, a, b); }
    template <int> static Int dot(Int sum, Int weights, Int input) {
        return vdotq_s32(sum, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(input));
    }
    static Int dot_pairs(Int sum, Int weights, Int input) {
        const int16x8_t a = vreinterpretq_s16_s32(weights), b = vreinterpretq_s16_s32(input);
        const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b)), high = vmull_high_s16(a, b);
        return vaddq_s32(sum, vpaddq_s32(low, high));
    }
    template <class Bytes> static Bytes look_up(const uint8_t * table, Bytes at) {
        return (Bytes) vqtbl1q_u8(vld1q_u8(table), (uint8x16_t) at);
    }

    // Writes quad i of 4 columns, which lie `stride` apart, to `out + i * out_stride`, for the 16 quads of a slice,
    // with ZERO subtracted from each byte.
    template <int ZERO>
    static void transpose(const uint8_t * columns, size_t stride, uint8_t * out, size_t out_stride) {
        for (int part = 0; part < 4; part++, columns += 16, out += 4 * out_stride) {
            int32x4_t a[4];
            for (int i = 0; i < 4; i++) {
                a[i] = vreinterpretq_s32_u8(vsubq_u8(vld1q_u8(columns + i * stride), vdupq_n_u8(ZERO)));
            }
            const int64x2_t low01 = vreinterpretq_s64_s32(vtrn1q_s32(a[0], a[1]));
            const int64x2_t high01 = vreinterpretq_s64_s32(vtrn2q_s32(a[0], a[1]));
            const int64x2_t low23 = vreinterpretq_s64_s32(vtrn1q_s32(a[2], a[3]));
            const int64x2_t high23 = vreinterpretq_s64_s32(vtrn2q_s32(a[2], a[3]));
            vst1q_s64((int64_t *) out, vtrn1q_s64(low01, low23));
            vst1q_s64((int64_t *) (out + out_stride), vtrn1q_s64(high01, high23));
            vst1q_s64((int64_t *) (out + 2 * out_stride), vtrn2q_s64(low01, low23));
            vst1q_s64((int64_t *) (out + 3 * out_stride), vtrn2q_s64(high01, high23));
        }
    }
};

}  // namespace
}  // namespace accelerator

#include "convolution.h"
#include "delta_net.h"
#include "kernel.h"

namespace accelerator {

static bool runs_here() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every arm64 processor of Apple has it
#endif
}

extern const Kernel dotprod;
const Kernel dotprod = {"dotprod", runs_here, pack, multiply, net_factors, net_rows, convolve};

}  // namespace accelerator
