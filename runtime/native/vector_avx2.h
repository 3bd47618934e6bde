// Vectors of 256 bits: what the kernels for AVX2 share.
#pragma once

#include <immintrin.h>

#include "product.h"

namespace accelerator {
namespace {

inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

struct Vector256 {
    using Int = __m256i;
    using Float = __m256;
    static constexpr int LANES = 8, VECTORS = 2, ROWS = 3;  // 6 sums and 6 totals in 16 registers

    static Float zero() { return _mm256_setzero_ps(); }
    static Float load(const float * at) { return _mm256_loadu_ps(at); }
    static void store(float * at, Float values) { _mm256_storeu_ps(at, values); }
    static Int load_bytes(const uint8_t * at) { return _mm256_load_si256((const __m256i *) at); }
    static Int broadcast(int32_t value) { return _mm256_set1_epi32(value); }
    static Float broadcast(float value) { return _mm256_set1_ps(value); }
    static Int broadcast_quad(const int8_t * at) { return _mm256_set1_epi32(*(const int32_t *) at); }
    static Float to_float(Int values) { return _mm256_cvtepi32_ps(values); }
    static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static Float multiply_add(Float a, Float b, Float sum) { return _mm256_fmadd_ps(a, b, sum); }
    static Float subtract_product(Float sum, Float a, Float b) { return _mm256_fnmadd_ps(a, b, sum); }
    static Int dot_pairs(Int sum, Int weights, Int input) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(weights, input));
    }
    template <class Bytes> static Bytes look_up(const uint8_t * table, Bytes at) {
        return (Bytes) _mm_shuffle_epi8(_mm_load_si128((const __m128i *) table), (__m128i) at);
    }

    // Writes quad i of 8 columns, which lie `stride` apart, to `out + i * out_stride`, for the 16 quads of a slice,
    // with ZERO subtracted from each byte.
    template <int ZERO>
    static void transpose(const uint8_t * columns, size_t stride, uint8_t * out, size_t out_stride) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, columns += 32, out += 8 * out_stride) {
            __m256i a[8], b[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                a[i] = _mm256_sub_epi8(
                    _mm256_load_si256((const __m256i *) (columns + i * stride)), _mm256_set1_epi8(char(ZERO))
                );
            }
#pragma GCC unroll 4
            for (int i = 0; i < 8; i += 2) {
                b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
                b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
            }
            // Lane l of a[i + j] then has quad 4 * l + j of columns i to i + 3.
#pragma GCC unroll 2
            for (int i = 0; i < 8; i += 4) {
                a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
                a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
                a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
                a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m256i first = _mm256_permute2x128_si256(a[j], a[4 + j], 0x20);
                const __m256i second = _mm256_permute2x128_si256(a[j], a[4 + j], 0x31);
                _mm256_store_si256((__m256i *) (out + j * out_stride), first);
                _mm256_store_si256((__m256i *) (out + (4 + j) * out_stride), second);
            }
        }
    }
};

}  // namespace
}  // namespace accelerator
