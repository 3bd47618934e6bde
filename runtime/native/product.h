// What a kernel is asked to compute, and the kernels that there are.
#pragma once

#include <cstddef>
#include <cstdint>

namespace accelerator {

// ggml_type, as GGUF files number them.
enum Type { Q4_0 = 2, Q5_0 = 6, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20 };

// output[row][column] = sum over k of input[row][k] * weights[column][k]. Strides are in bytes.
struct Product {
    int type;  // of the weights
    const char * weights;
    size_t weight_stride;
    const char * input;  // float32
    size_t input_stride;
    char * output;  // float32
    size_t output_stride;
    int64_t rows, columns, depth;
    // Whether the weights are as ggml's CPU backend reorders Q4_0 and IQ4_NL: blocks of 8 columns, in pieces of 8
    // bytes.
    bool interleaved;
};

// How that order lies in memory: 8 scales of 2 bytes, then the first 8 bytes of each column's block, then the others.
constexpr int INTERLEAVED_COLUMNS = 8, INTERLEAVED_PIECE = 8, INTERLEAVED_BLOCK = 18;
constexpr uint8_t INTERLEAVED_MASK = 0x88;  // flipped in the bytes of Q4_0

// Code for one instruction set. `pack` quantizes a group of `GROUP_ROWS` rows of the input, by blocks as ggml does, and
// `multiply` computes `TILE_COLUMNS` columns of the output for all rows. Both may run in many threads.
struct Kernel {
    const char * name;
    bool (*runs_here)();
    void (*pack)(const Product &, void * packed, int64_t group);
    void (*multiply)(const Product &, const void * packed, void * scratch, int64_t tile);
};

constexpr int GROUP_ROWS = 6;
constexpr int TILE_COLUMNS = 32;
constexpr size_t ALIGNMENT = 64;
constexpr size_t SCRATCH_BYTES = 64 << 10;  // of `multiply`

// Returns the elements that share a scale of the input: 32 or 256; 0 where no kernel knows the type of the weights.
int block_size(int type);
size_t packed_bytes(const Product &);

// From the fastest to the slowest.
extern const Kernel * const KERNELS[];
extern const int KERNEL_COUNT;

}  // namespace accelerator
