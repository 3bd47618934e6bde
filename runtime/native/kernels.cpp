#include "product.h"

namespace accelerator {

extern const Kernel avx512vnni, avxvnni, avx2, dotprod;

const Kernel * const KERNELS[] = {
#if defined(POCKETVLM_X86_64)
    &avx512vnni,
#if defined(POCKETVLM_AVXVNNI)
    &avxvnni,
#endif
    &avx2,
#elif defined(POCKETVLM_AARCH64)
    &dotprod,
#endif
};
const int KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0];

int block_size(int type) {
    switch (type) {
    case Q8_0:
    case Q4_0:
    case Q5_0:
    case IQ4_NL: return 32;
    case Q4_K:
    case Q5_K:
    case Q6_K: return 256;
    default: return 0;
    }
}

// The kernels' structs of a group of rows take 256 bytes for a block of 32, and 2048 for one of 256 (kernel.h).
size_t packed_bytes(const Product & product) {
    const size_t groups = size_t(product.rows + GROUP_ROWS - 1) / GROUP_ROWS;
    return groups * size_t(product.depth) * 8;
}

}  // namespace accelerator
