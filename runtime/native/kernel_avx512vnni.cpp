#include <immintrin.h>

#include "product.h"

namespace accelerator {
namespace {

struct Vector {
    using Int = __m512i;
    using Float = __m512;
    static constexpr int LANES = 16, VECTORS = 2, ROWS = 6;  // 12 sums and 12 totals in 32 registers

    static constexpr bool is_signed(int) { return false; }
    static Float zero() { return _mm512_setzero_ps(); }
    static Float load(const float * at) { return _mm512_loadu_ps(at); }
    static void store(float * at, Float values) { _mm512_storeu_ps(at, values); }
    static Int load_bytes(const uint8_t * at) { return _mm512_load_si512(at); }
    static Int broadcast(int32_t value) { return _mm512_set1_epi32(value); }
    static Float broadcast(float value) { return _mm512_set1_ps(value); }
    static Int broadcast_quad(const int8_t * at) { return _mm512_set1_epi32(*(const int32_t *) at); }
    static Float to_float(Int values) { return _mm512_cvtepi32_ps(values); }
    static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static Float multiply_add(Float a, Float b, Float sum) { return _mm512_fmadd_ps(a, b, sum); }
    static Float subtract_product(Float sum, Float a, Float b) { return _mm512_fnmadd_ps(a, b, sum); }
    template <int> static Int dot(Int sum, Int weights, Int input) { return _mm512_dpbusd_epi32(sum, weights, input); }
    static Int dot_pairs(Int sum, Int weights, Int input) { return _mm512_dpwssd_epi32(sum, weights, input); }
    template <class Bytes> static Bytes look_up(const uint8_t * table, Bytes at) {
        return (Bytes) _mm_shuffle_epi8(_mm_load_si128((const __m128i *) table), (__m128i) at);
    }

    // Writes quad i of 16 columns, which lie `stride` apart, to `out + i * out_stride`, for the 16 quads of a slice.
    template <int> static void transpose(const uint8_t * columns, size_t stride, uint8_t * out, size_t out_stride) {
        __m512i a[16], b[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            a[i] = _mm512_load_si512(columns + i * stride);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 16; i += 2) {
            b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
            b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
        }
        // Lane l of a[i + j] then has quad 4 * l + j of columns i to i + 3.
#pragma GCC unroll 4
        for (int i = 0; i < 16; i += 4) {
            a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
            a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
            a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
            a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88),
                          high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88);
            const __m512i odd_low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
            const __m512i odd_high = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
            _mm512_store_si512(out + (0 + j) * out_stride, _mm512_shuffle_i32x4(low, high, 0x88));
            _mm512_store_si512(out + (8 + j) * out_stride, _mm512_shuffle_i32x4(low, high, 0xdd));
            _mm512_store_si512(out + (4 + j) * out_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
            _mm512_store_si512(out + (12 + j) * out_stride, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
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
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

extern const Kernel avx512vnni;
const Kernel avx512vnni = {"avx512-vnni", runs_here, pack, multiply, net_factors, net_rows, convolve};

}  // namespace accelerator
