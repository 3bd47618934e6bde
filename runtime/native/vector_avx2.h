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
};

}  // namespace
}  // namespace accelerator
