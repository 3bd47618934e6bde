#include "vector_avx2.h"

namespace accelerator {
namespace {

// AVX2 alone: pairs of byte products are summed in 16 bits, where products with weights of more than 7 bits saturate.
// Those are kept signed, and their signs go to the input.
struct Vector : Vector256 {
    static constexpr bool is_signed(int zero) { return zero == 128; }
    template <int ZERO> static Int dot(Int sum, Int weights, Int input) {
        const Int pairs = ZERO == 128 ? _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(input, weights))
                                      : _mm256_maddubs_epi16(weights, input);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace
}  // namespace accelerator

#include "convolution.h"
#include "delta_net.h"
#include "kernel.h"

namespace accelerator {

static bool runs_here() { return has_avx2(); }

extern const Kernel avx2;
const Kernel avx2 = {"avx2", runs_here, pack, multiply, net_factors, net_rows, convolve};

}  // namespace accelerator
