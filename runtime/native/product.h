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
    int threads;  // that take tiles in turn
    // Whether the weights are as ggml's CPU backend reorders Q4_0 and IQ4_NL: blocks of 8 columns, in pieces of 8
    // bytes.
    bool interleaved;
};

// How that order lies in memory: 8 scales of 2 bytes, then the first 8 bytes of each column's block, then the others.
constexpr int INTERLEAVED_COLUMNS = 8, INTERLEAVED_PIECE = 8, INTERLEAVED_BLOCK = 18;
constexpr uint8_t INTERLEAVED_MASK = 0x88;  // flipped in the bytes of Q4_0

// The gated delta rule over the tokens of some sequences (GATED_DELTA_NET of ggml, with one gate for a head). Strides
// are in bytes: of heads, tokens and sequences. Heads of values share those of keys and queries in turn, as in ggml.
struct DeltaNet {
    struct Input {
        const char * at;
        size_t head_stride, token_stride, sequence_stride;
        int64_t heads;

        const float * operator()(int64_t token, int64_t head, int64_t sequence) const {
            return (const float *) (at + size_t(head % heads) * head_stride + size_t(token) * token_stride +
                                    size_t(sequence) * sequence_stride);
        }
    };
    Input query, key, value;
    const float *gates, *betas;  // [sequences, tokens, heads]; a gate is exp of what is stored
    const char * states;         // float32 [width, width] of each head, rows of values
    size_t state_stride;         // of sequences
    float * output;              // [sequences, tokens, heads, width], and then the new states
    int64_t width, heads, tokens, sequences;

    int64_t place(int64_t token, int64_t head, int64_t sequence) const {
        return (sequence * tokens + token) * heads + head;
    }
    const float * state(int64_t head, int64_t sequence) const {
        return (const float *) (states + size_t(sequence) * state_stride) + head * width * width;
    }
    float * new_state(int64_t head, int64_t sequence) const {
        return output + (sequences * tokens + sequence * width) * heads * width + head * width * width;
    }
};

// What all rows of a head need of a token.
struct NetFactors {
    float gate, key_query;
};

// output[token][channel] = sum over taps of input[channel][token + tap] * weights[channel][tap] (SSM_CONV of ggml), for
// each sequence. Strides are in bytes.
struct Convolution {
    const char * inputs;
    size_t input_stride, input_sequence;
    const char * all_weights;
    size_t weight_stride;
    char * outputs;
    size_t output_stride, output_sequence;
    int64_t channels, tokens, sequences, taps;

    const float * input(int64_t sequence, int64_t channel) const {
        return (const float *) (inputs + size_t(sequence) * input_sequence + size_t(channel) * input_stride);
    }
    const float * weights(int64_t channel) const {
        return (const float *) (all_weights + size_t(channel) * weight_stride);
    }
    float * output(int64_t sequence, int64_t token) const {
        return (float *) (outputs + size_t(sequence) * output_sequence + size_t(token) * output_stride);
    }
};

// Code for one instruction set. `pack` quantizes a group of `GROUP_ROWS` rows of the input, by blocks as ggml does, and
// `multiply` computes `TILE_COLUMNS` columns of the output for all rows. `net_factors` prepares a head, and `net_rows`
// advances `NET_ROWS` rows of its state by all tokens. `convolve` computes `CONVOLVED_CHANNELS` channels. All may run
// in many threads.
struct Kernel {
    const char * name;
    bool (*runs_here)();
    void (*pack)(const Product &, void * packed, int64_t group);
    void (*multiply)(const Product &, const void * packed, void * scratch, int64_t tile);
    void (*net_factors)(const DeltaNet &, NetFactors *, int64_t head, int64_t sequence);
    void (*net_rows)(
        const DeltaNet &, const NetFactors *, void * scratch, int64_t head, int64_t sequence, int64_t row
    );
    void (*convolve)(const Convolution &, void * scratch, int64_t sequence, int64_t channel);
};

constexpr int GROUP_ROWS = 6;
constexpr int TILE_COLUMNS = 32;
constexpr int NET_ROWS = 32;    // widths are multiples of it
constexpr int NET_WIDTH = 256;  // the largest
constexpr int CONVOLVED_CHANNELS = 32;  // the number of channels is a multiple of it
constexpr size_t ALIGNMENT = 64;
constexpr size_t SCRATCH_BYTES = 64 << 10;  // of `multiply`, `net_rows` and `convolve`

// Returns the elements that share a scale of the input: 32 or 256; 0 where no kernel knows the type of the weights.
int block_size(int type);
size_t packed_bytes(const Product &);

// From the fastest to the slowest.
extern const Kernel * const KERNELS[];
extern const int KERNEL_COUNT;

}  // namespace accelerator
