#include <cpuid.h>

#include "vector_avx2.h"

namespace accelerator {
namespace {

struct Vector : Vector256 {
    static constexpr bool is_signed(int) { return false; }
    template <int> static Int dot(Int sum, Int weights, Int input) {
        return _mm256_dpbusd_avx_epi32(sum, weights, input);
    }
};

}  // namespace
}  // namespace accelerator

#include "convolution.h"
#include "delta_net.h"
#include "kernel.h"

namespace accelerator {

static bool runs_here() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);  // CPUID.7.1:EAX.AVX_VNNI
}

extern const Kernel avxvnni;
const Kernel avxvnni = {"avx-vnni", runs_here, pack, multiply, net_factors, net_rows, convolve};

}  // namespace accelerator
