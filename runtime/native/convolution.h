// Short causal convolutions of many channels, written over a `Vector` as kernel.h is.
//
// ggml computes them token by token, and each token reads a value or two of every channel, whose tokens lie together.
// Here some channels are computed for many tokens at once, and then transposed.
#pragma once

#include "product.h"

namespace accelerator {
namespace {

constexpr int TILE_TOKENS = 64;
static_assert(TILE_TOKENS % Vector::LANES == 0);
static_assert(sizeof(float[CONVOLVED_CHANNELS][TILE_TOKENS]) <= SCRATCH_BYTES);

void convolve(const Convolution & convolution, void * scratch, int64_t sequence, int64_t channel) {
    auto * tile = (float (*)[TILE_TOKENS]) scratch;
    for (int64_t token = 0; token < convolution.tokens; token += TILE_TOKENS) {
        const int64_t more = convolution.tokens - token;
        const int tokens = more < TILE_TOKENS ? int(more) : TILE_TOKENS;
        for (int c = 0; c < CONVOLVED_CHANNELS; c++) {
            const float * input = convolution.input(sequence, channel + c) + token;
            const float * weights = convolution.weights(channel + c);
            int t = 0;
            for (; t + Vector::LANES <= tokens; t += Vector::LANES) {
                Vector::Float sum = Vector::zero();
                for (int64_t tap = 0; tap < convolution.taps; tap++) {
                    sum = Vector::multiply_add(Vector::load(input + t + tap), Vector::broadcast(weights[tap]), sum);
                }
                Vector::store(&tile[c][t], sum);
            }
            for (; t < tokens; t++) {
                float sum = 0;
                for (int64_t tap = 0; tap < convolution.taps; tap++) {
                    sum += input[t + tap] * weights[tap];
                }
                tile[c][t] = sum;
            }
        }
        for (int t = 0; t < tokens; t++) {
            float * out = convolution.output(sequence, token + t) + channel;
            for (int c = 0; c < CONVOLVED_CHANNELS; c++) {
                out[c] = tile[c][t];
            }
        }
    }
}

}  // namespace
}  // namespace accelerator
