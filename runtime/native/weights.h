// ggml's quantized blocks as unsigned bytes, scales and offsets. The layouts are those of ggml-common.h.
//
// Included once by every kernel, in its own namespace, because each is compiled for another instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace accelerator {
namespace {

constexpr int BLOCK = 32;         // elements
constexpr int SUPERBLOCK = 256;   // elements

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    float value;
    if (magnitude >= 0x7c00) {  // infinity or NaN
        const uint32_t bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
        memcpy(&value, &bits, 4);
        return value;
    }
    const uint32_t bits = magnitude << 13;
    memcpy(&value, &bits, 4);
    value *= 0x1p112f;  // moves the exponent's bias, and handles subnormal numbers
    return sign ? -value : value;
#endif
}

// Returns `value` (not negative, finite) as float16 would keep it: rounded to nearest, ties to even.
inline float round_to_half(float value) {
#if defined(__F16C__)
    return _cvtsh_ss(_cvtss_sh(value, 0));
#else
    if (value >= 65520.0f) {
        return __builtin_inff();
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const int exponent = int(bits >> 23) - 127;
    // The sum with a power of two this much larger has no bits below those that float16 keeps.
    const uint32_t magic_bits = uint32_t((exponent < -14 ? -14 : exponent) + 13 + 127) << 23;
    float magic;
    memcpy(&magic, &magic_bits, 4);
    volatile float sum = value + magic;
    return sum - magic;
#endif
}

inline uint16_t read_half(const uint8_t * at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return half;
}

// A type whose blocks of 32 have one scale: weight = scale * (byte - ZERO).
template <int TYPE> struct Blocks;

template <> struct Blocks<Q8_0> {
    static constexpr int BYTES = 34, ZERO = 128;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        for (int i = 0; i < 32; i++) {
            bytes[i] = block[2 + i] ^ 0x80;
        }
        return half_to_float(read_half(block));
    }
};

template <> struct Blocks<Q4_0> {
    static constexpr int BYTES = 18, ZERO = 8;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        for (int i = 0; i < 16; i++) {
            bytes[i] = block[2 + i] & 15;
            bytes[16 + i] = block[2 + i] >> 4;
        }
        return half_to_float(read_half(block));
    }
};

template <> struct Blocks<Q5_0> {
    static constexpr int BYTES = 22, ZERO = 16;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        uint32_t high;
        memcpy(&high, block + 2, 4);
        for (int i = 0; i < 16; i++) {
            bytes[i] = (block[6 + i] & 15) | ((high >> i & 1) << 4);
            bytes[16 + i] = (block[6 + i] >> 4) | ((high >> (i + 16) & 1) << 4);
        }
        return half_to_float(read_half(block));
    }
};

template <> struct Blocks<IQ4_NL> {
    static constexpr int BYTES = 18, ZERO = 128;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        // The values of ggml's table (kvalues_iq4nl) plus ZERO.
        alignas(16) static const uint8_t VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                       129, 141, 153, 166, 181, 197, 217, 241};
#if defined(__SSSE3__)
        const __m128i table = _mm_load_si128((const __m128i *) VALUES), low = _mm_set1_epi8(15);
        const __m128i packed = _mm_loadu_si128((const __m128i *) (block + 2));
        const __m128i first = _mm_and_si128(packed, low), second = _mm_and_si128(_mm_srli_epi16(packed, 4), low);
        _mm_storeu_si128((__m128i *) bytes, _mm_shuffle_epi8(table, first));
        _mm_storeu_si128((__m128i *) (bytes + 16), _mm_shuffle_epi8(table, second));
#else
        for (int i = 0; i < 16; i++) {
            bytes[i] = VALUES[block[2 + i] & 15];
            bytes[16 + i] = VALUES[block[2 + i] >> 4];
        }
#endif
        return half_to_float(read_half(block));
    }
};

// A type whose superblocks of 256 have groups of GROUP elements, each with a scale:
// weight = scale[group] * (byte - ZERO) - offset * offsets[group], the last term only if OFFSETS.
template <int TYPE> struct Superblocks;

// The 6-bit scales and offsets that Q4_K and Q5_K share.
inline void read_scales(const uint8_t * block, float * scales, int16_t * offsets, float & offset) {
    const float scale = half_to_float(read_half(block));
    offset = half_to_float(read_half(block + 2));
    const uint8_t * six = block + 4;
    for (int i = 0; i < 4; i++) {
        scales[i] = scale * float(six[i] & 63);
        offsets[i] = six[i + 4] & 63;
        scales[i + 4] = scale * float((six[i + 8] & 15) | (six[i] >> 6) << 4);
        offsets[i + 4] = int16_t((six[i + 8] >> 4) | (six[i + 4] >> 6) << 4);
    }
}

template <> struct Superblocks<Q4_K> {
    static constexpr int BYTES = 144, ZERO = 0, GROUP = 32;
    static constexpr bool OFFSETS = true;
    static void decode(const uint8_t * block, uint8_t * bytes, float * scales, int16_t * offsets, float & offset) {
        read_scales(block, scales, offsets, offset);
        const uint8_t * packed = block + 16;
        for (int j = 0; j < 4; j++, packed += 32, bytes += 64) {
            for (int i = 0; i < 32; i++) {
                bytes[i] = packed[i] & 15;
                bytes[32 + i] = packed[i] >> 4;
            }
        }
    }
};

template <> struct Superblocks<Q5_K> {
    static constexpr int BYTES = 176, ZERO = 0, GROUP = 32;
    static constexpr bool OFFSETS = true;
    static void decode(const uint8_t * block, uint8_t * bytes, float * scales, int16_t * offsets, float & offset) {
        read_scales(block, scales, offsets, offset);
        const uint8_t * high = block + 16;
        const uint8_t * packed = block + 48;
        for (int j = 0; j < 4; j++, packed += 32, bytes += 64) {
            for (int i = 0; i < 32; i++) {
                bytes[i] = (packed[i] & 15) | ((high[i] >> (2 * j) & 1) << 4);
                bytes[32 + i] = (packed[i] >> 4) | ((high[i] >> (2 * j + 1) & 1) << 4);
            }
        }
    }
};

template <> struct Superblocks<Q6_K> {
    static constexpr int BYTES = 210, ZERO = 32, GROUP = 16;
    static constexpr bool OFFSETS = false;
    static void decode(const uint8_t * block, uint8_t * bytes, float * scales, int16_t *, float & offset) {
        const float scale = half_to_float(read_half(block + 208));
        offset = 0;
        for (int i = 0; i < 16; i++) {
            scales[i] = scale * float(int8_t(block[192 + i]));
        }
        for (int half = 0; half < 2; half++, bytes += 128) {
            const uint8_t * low = block + 64 * half;
            const uint8_t * high = block + 128 + 32 * half;
            for (int i = 0; i < 32; i++) {
                bytes[i] = (low[i] & 15) | (high[i] & 3) << 4;
                bytes[32 + i] = (low[32 + i] & 15) | (high[i] >> 2 & 3) << 4;
                bytes[64 + i] = (low[i] >> 4) | (high[i] >> 4 & 3) << 4;
                bytes[96 + i] = (low[32 + i] >> 4) | (high[i] >> 6) << 4;
            }
        }
    }
};

}  // namespace
}  // namespace accelerator
