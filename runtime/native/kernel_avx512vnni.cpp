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
};

}  // namespace
}  // namespace accelerator

#include "kernel.h"

namespace accelerator {

static bool runs_here() {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("f16c");
}

extern const Kernel avx512vnni;
const Kernel avx512vnni = {"avx512-vnni", runs_here, pack, multiply};

}  // namespace accelerator
