// ggml's quantized blocks as unsigned bytes, scales and offsets. The layouts are those of ggml-common.h.
//
// Included by kernel.h: each kernel compiles it for its own instruction set, in a namespace without a name.
#pragma once

#include <cstdint>
#include <cstring>

#include "product.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace accelerator {
namespace {

constexpr int LANES = Vector::LANES, VECTORS = Vector::VECTORS;
constexpr int BLOCK = 32, SUPERBLOCK = 256;  // elements

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#elif defined(__aarch64__)
    __fp16 value;
    memcpy(&value, &half, 2);
    return value;
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
#elif defined(__aarch64__)
    return __fp16(value);
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

// Vectors of bytes that the compiler splits as the instruction set wants.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));

template <class Bytes> inline Bytes read(const void * at) {
    Bytes bytes;
    memcpy(&bytes, at, sizeof bytes);
    return bytes;
}

template <class Bytes> inline void write(uint8_t * at, Bytes bytes) { memcpy(at, &bytes, sizeof bytes); }

// A type whose blocks of 32 have one scale: weight = scale * (byte - ZERO).
template <int TYPE> struct Blocks;

template <> struct Blocks<Q8_0> {
    static constexpr int BYTES = 34, ZERO = 128;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        write(bytes, read<Bytes32>(block + 2) ^ 0x80);
        return half_to_float(read<uint16_t>(block));
    }
};

template <> struct Blocks<Q4_0> {
    static constexpr int BYTES = 18, ZERO = 8;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        const Bytes16 packed = read<Bytes16>(block + 2);
        write(bytes, packed & 15);
        write(bytes + 16, packed >> 4);
        return half_to_float(read<uint16_t>(block));
    }
};

template <> struct Blocks<Q5_0> {
    static constexpr int BYTES = 22, ZERO = 16;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        const Bytes16 packed = read<Bytes16>(block + 6);
        uint64_t high[4];
        for (int i = 0; i < 4; i++) {  // bit i of a byte goes to bit 4 of byte i
            const uint64_t bits = block[2 + i] * 0x0101010101010101u & 0x8040201008040201u;
            high[i] = (bits + 0x7f7f7f7f7f7f7f7fu) >> 3 & 0x1010101010101010u;
        }
        write(bytes, (packed & 15) | read<Bytes16>(high));
        write(bytes + 16, (packed >> 4) | read<Bytes16>(high + 2));
        return half_to_float(read<uint16_t>(block));
    }
};

template <> struct Blocks<IQ4_NL> {
    static constexpr int BYTES = 18, ZERO = 128;
    static float decode(const uint8_t * block, uint8_t * bytes) {
        // The values of ggml's table (kvalues_iq4nl) plus ZERO.
        alignas(16) static const uint8_t VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                       129, 141, 153, 166, 181, 197, 217, 241};
        const Bytes16 packed = read<Bytes16>(block + 2);
        write(bytes, Vector::look_up(VALUES, packed & 15));
        write(bytes + 16, Vector::look_up(VALUES, packed >> 4));
        return half_to_float(read<uint16_t>(block));
    }
};

// A type whose superblocks of 256 have groups of GROUP elements, each with a scale:
// weight = scale[group] * (byte - ZERO) - offset * offsets[group], the last term only if OFFSETS.
template <int TYPE> struct Superblocks;

// Scales and offsets of LANES columns. `scale[g]` and `offsets[g / 2]` are rows of a panel; an element of the latter
// has the offsets of an even group and, in its high half, of the next. Loops over lanes become vectors.
struct Scales {
    float (*scale)[VECTORS][LANES];
    uint32_t (*offsets)[VECTORS][LANES];
    float (*offset)[LANES];
    int vector;
};

// The 6-bit scales and offsets that Q4_K and Q5_K share.
inline void read_scales(const uint8_t * const (&blocks)[LANES], const Scales & out) {
    uint32_t scales[LANES], mins[LANES], both[LANES];  // bytes 0 to 3, 4 to 7 and 8 to 11
    float scale[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        scale[lane] = half_to_float(read<uint16_t>(blocks[lane]));
        out.offset[out.vector][lane] = half_to_float(read<uint16_t>(blocks[lane] + 2));
        scales[lane] = read<uint32_t>(blocks[lane] + 4);
        mins[lane] = read<uint32_t>(blocks[lane] + 8);
        both[lane] = read<uint32_t>(blocks[lane] + 12);
    }
    for (int i = 0; i < 4; i++) {
        for (int lane = 0; lane < LANES; lane++) {
            const uint32_t high = (both[lane] >> 8 * i & 15) | (scales[lane] >> (8 * i + 6) & 3) << 4;
            out.scale[i][out.vector][lane] = scale[lane] * float(int32_t(scales[lane] >> 8 * i & 63));
            out.scale[4 + i][out.vector][lane] = scale[lane] * float(int32_t(high));
        }
    }
    for (int i = 0; i < 2; i++) {
        for (int lane = 0; lane < LANES; lane++) {
            const uint32_t min = mins[lane] >> 16 * i, high = both[lane] >> 16 * i;
            out.offsets[i][out.vector][lane] = (min & 63) | (min >> 8 & 63) << 16;
            const uint32_t even = (high >> 4 & 15) | (min >> 6 & 3) << 4, odd = (high >> 12 & 15) | (min >> 14 & 3)
                                                                                                        << 4;
            out.offsets[2 + i][out.vector][lane] = even | odd << 16;
        }
    }
}

template <> struct Superblocks<Q4_K> {
    static constexpr int BYTES = 144, ZERO = 0, GROUP = 32;
    static constexpr bool OFFSETS = true;
    static void decode_scales(const uint8_t * const (&blocks)[LANES], const Scales & out) { read_scales(blocks, out); }
    static void decode(const uint8_t * block, uint8_t * bytes) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const Bytes32 packed = read<Bytes32>(block + 16 + 32 * j);
            write(bytes + 64 * j, packed & 15);
            write(bytes + 64 * j + 32, packed >> 4);
        }
    }
};

template <> struct Superblocks<Q5_K> {
    static constexpr int BYTES = 176, ZERO = 0, GROUP = 32;
    static constexpr bool OFFSETS = true;
    static void decode_scales(const uint8_t * const (&blocks)[LANES], const Scales & out) { read_scales(blocks, out); }
    static void decode(const uint8_t * block, uint8_t * bytes) {
        const Bytes32 high = read<Bytes32>(block + 16);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            const Bytes32 packed = read<Bytes32>(block + 48 + 32 * j);
            write(bytes + 64 * j, (packed & 15) | (high >> (2 * j) & 1) << 4);
            write(bytes + 64 * j + 32, (packed >> 4) | (high >> (2 * j + 1) & 1) << 4);
        }
    }
};

template <> struct Superblocks<Q6_K> {
    static constexpr int BYTES = 210, ZERO = 32, GROUP = 16;
    static constexpr bool OFFSETS = false;
    static void decode_scales(const uint8_t * const (&blocks)[LANES], const Scales & out) {
        for (int four = 0; four < 4; four++) {
            uint32_t scales[LANES];
            float scale[LANES];
            for (int lane = 0; lane < LANES; lane++) {
                scale[lane] = half_to_float(read<uint16_t>(blocks[lane] + 208));
                scales[lane] = read<uint32_t>(blocks[lane] + 192 + 4 * four);
            }
            for (int i = 0; i < 4; i++) {
                for (int lane = 0; lane < LANES; lane++) {
                    const int32_t number = int32_t(scales[lane] << (24 - 8 * i)) >> 24;  // byte i, with its sign
                    out.scale[4 * four + i][out.vector][lane] = scale[lane] * float(number);
                }
            }
        }
    }
    static void decode(const uint8_t * block, uint8_t * bytes) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, bytes += 128) {
            const Bytes32 low = read<Bytes32>(block + 64 * half), next = read<Bytes32>(block + 64 * half + 32);
            const Bytes32 high = read<Bytes32>(block + 128 + 32 * half);
            write(bytes, (low & 15) | (high & 3) << 4);
            write(bytes + 32, (next & 15) | (high >> 2 & 3) << 4);
            write(bytes + 64, (low >> 4) | (high >> 4 & 3) << 4);
            write(bytes + 96, (next >> 4) | (high >> 6) << 4);
        }
    }
};

}  // namespace
}  // namespace accelerator
