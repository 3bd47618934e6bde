// The kernel, written over a `Vector` that each file including this one defines for its instruction set.
//
// A vector has LANES columns of weights. A tile of TILE_COLUMNS columns is decoded into panels of PANEL columns, a part
// of the depth at a time, so that they stay in the first-level cache while all rows of the input pass. A panel keeps
// four bytes of each column together, as byte products with 32-bit sums (VNNI, dotprod) want them.
#pragma once

#include "weights.h"

namespace accelerator {
namespace {

constexpr int PANEL = LANES * VECTORS;
constexpr int PANELS = TILE_COLUMNS / PANEL;
constexpr int QUADS = BLOCK / 4;
constexpr int CHUNK = 16;   // blocks that are decoded at a time
constexpr int GROUPS = 16;  // most groups of a superblock
static_assert(TILE_COLUMNS % PANEL == 0 && GROUP_ROWS % Vector::ROWS == 0);

using Int = Vector::Int;
using Float = Vector::Float;

// A block of a group of rows. `start` makes up for the zero point of unsigned weights: -ZERO times the sum of a row.
struct alignas(ALIGNMENT) RowBlock {
    int8_t bytes[GROUP_ROWS][BLOCK];
    float scale[8];
    int32_t start[8];
};

struct alignas(ALIGNMENT) RowSuperblock {
    int8_t bytes[SUPERBLOCK / BLOCK][GROUP_ROWS][BLOCK];
    int32_t start[GROUPS][GROUP_ROWS];
    int16_t sums[4][GROUP_ROWS][2];  // of each 32 elements
    float scale[8];
};

// Quads of the depth, each with four bytes of every column.
using Quads = uint8_t[VECTORS][4 * LANES];

struct alignas(ALIGNMENT) PanelBlocks {
    Quads quads[CHUNK * QUADS];
    float scale[CHUNK][VECTORS][LANES];
};

struct alignas(ALIGNMENT) PanelSuperblock {
    Quads quads[SUPERBLOCK / 4];
    float scale[GROUPS][VECTORS][LANES];
    uint32_t offsets[4][VECTORS][LANES];  // of two groups
    float offset[VECTORS][LANES];
};

// As `packed_bytes` counts them.
static_assert(sizeof(RowBlock) == 8 * BLOCK && sizeof(RowSuperblock) == 8 * SUPERBLOCK);
static_assert(sizeof(PanelBlocks) * PANELS <= SCRATCH_BYTES);
static_assert(sizeof(PanelSuperblock) * PANELS <= SCRATCH_BYTES);

// --- input ---

// Quantizes `count` values to -127..127 and returns the largest magnitude.
inline float quantize(const float * values, int8_t * bytes, int count) {
    int32_t largest = 0;
    for (int i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, values + i, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;  // floats without a sign order as integers do
    }
    float magnitude;
    memcpy(&magnitude, &largest, 4);
    const float inverse = magnitude != 0 ? 127.0f / magnitude : 0.0f;
    for (int i = 0; i < count; i++) {
        const float shifted = values[i] * inverse + 12582912.0f;  // 1.5 * 2^23: rounds to an integer, ties to even
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        bytes[i] = int8_t((bits & 0x7fffff) - 0x400000);
    }
    return magnitude;
}

inline int32_t sum(const int8_t * bytes, int count) {
    int32_t total = 0;
    for (int i = 0; i < count; i++) {
        total += bytes[i];
    }
    return total;
}

inline const float * input_row(const Product & product, int64_t row) {
    return (const float *) (product.input + size_t(row) * product.input_stride);
}

inline int64_t group_count(const Product & product) { return (product.rows + GROUP_ROWS - 1) / GROUP_ROWS; }

inline int rows_of_group(const Product & product, int64_t group) {
    const int64_t left = product.rows - group * GROUP_ROWS;
    return left < GROUP_ROWS ? int(left) : GROUP_ROWS;
}

// Blocks lie by chunk, group and then depth: `multiply` reads a chunk from beginning to end.
inline RowBlock * row_blocks(const Product & product, void * packed, int64_t first_block, int64_t group) {
    const int64_t blocks = product.depth / BLOCK, left = blocks - first_block;
    return (RowBlock *) packed + first_block * group_count(product) + group * (left < CHUNK ? left : CHUNK);
}

template <class Weights> void pack_blocks(const Product & product, void * packed, int64_t group) {
    constexpr int ZERO = Vector::is_signed(Weights::ZERO) ? 0 : Weights::ZERO;
    const int rows = rows_of_group(product, group);
    for (int64_t block = 0; block < product.depth / BLOCK; block++) {
        RowBlock & out = row_blocks(product, packed, block / CHUNK * CHUNK, group)[block % CHUNK];
        for (int row = 0; row < rows; row++) {
            const float * values = input_row(product, group * GROUP_ROWS + row) + block * BLOCK;
            out.scale[row] = round_to_half(quantize(values, out.bytes[row], BLOCK) / 127.0f);
            out.start[row] = -ZERO * sum(out.bytes[row], BLOCK);
        }
    }
}

template <class Weights> void pack_superblocks(const Product & product, void * packed, int64_t group) {
    constexpr int ZERO = Vector::is_signed(Weights::ZERO) ? 0 : Weights::ZERO;
    for (int row = 0; row < rows_of_group(product, group); row++) {
        const float * values = input_row(product, group * GROUP_ROWS + row);
        for (int64_t block = 0; block < product.depth / SUPERBLOCK; block++, values += SUPERBLOCK) {
            RowSuperblock & out = ((RowSuperblock *) packed)[block * group_count(product) + group];
            alignas(ALIGNMENT) int8_t bytes[SUPERBLOCK];
            const float magnitude = quantize(values, bytes, SUPERBLOCK);
            out.scale[row] = magnitude != 0 ? 1.0f / (127.0f / magnitude) : 0.0f;  // rounded as ggml does
            for (int i = 0; i < SUPERBLOCK / BLOCK; i++) {
                memcpy(out.bytes[i][row], bytes + i * BLOCK, BLOCK);
                out.sums[i / 2][row][i % 2] = int16_t(sum(bytes + i * BLOCK, BLOCK));
            }
            for (int i = 0; i < SUPERBLOCK / Weights::GROUP; i++) {
                out.start[i][row] = -ZERO * (ZERO ? sum(bytes + i * Weights::GROUP, Weights::GROUP) : 0);
            }
        }
    }
}

// --- weights ---

// Decoded columns whose bytes are not in the order of a panel yet.
constexpr int SLICE = 64;  // bytes of a column that are brought into order together
constexpr int SLICE_QUADS = SLICE / 4;
static_assert(CHUNK * BLOCK % SLICE == 0);

// Brings `LANES` columns into the order of a panel, a slice at a time.
template <int ZERO, int DEPTH>
inline void place(const uint8_t (&columns)[LANES][DEPTH], int depth, Quads * quads, int vector) {
    for (int slice = 0; slice * SLICE < depth; slice++) {
        Vector::template transpose<ZERO>(
            columns[0] + slice * SLICE, DEPTH, quads[slice * SLICE_QUADS][vector], sizeof(Quads)
        );
    }
}

inline const uint8_t * weight_block(const Product & product, int64_t column, int64_t block, size_t bytes) {
    return (const uint8_t *) product.weights + size_t(column) * product.weight_stride + size_t(block) * bytes;
}

// Asks for the blocks that are decoded next, a few cache lines at a time while the rows pass the present ones: memory
// has few requests open, and a burst of more would stop the products until they are answered.
class Ahead {
  public:
    // `steps`: how often `step` will be called. `column` may lie behind the last, where nothing is asked for.
    Ahead(const Product & product, int64_t column, int64_t block, int64_t blocks, size_t bytes, int64_t steps) {
        const int64_t left = product.columns - column, together = product.interleaved ? INTERLEAVED_COLUMNS : 1;
        const int64_t columns = left < TILE_COLUMNS ? left : TILE_COLUMNS;
        if (columns <= 0 || blocks <= 0) {
            return;
        }
        at = start = weight_block(product, column, block * together, bytes);
        length = size_t(blocks * together) * bytes;
        stride = size_t(together) * product.weight_stride;
        last = start + size_t(columns / together) * stride;
        const int64_t lines = columns / together * int64_t((length + ALIGNMENT - 1) / ALIGNMENT);
        share = int((lines + steps - 1) / steps);
    }

    void step() {
        for (int i = 0; i < share && start < last; i++) {
            __builtin_prefetch(at, 0, 2);
            at += ALIGNMENT;
            if (at >= start + length) {
                at = start += stride;
            }
        }
    }

  private:
    const uint8_t *at = nullptr, *start = nullptr, *last = nullptr;
    size_t length = 0, stride = 0;
    int share = 0;
};

// Copies a block of one column out of the interleaved blocks of 8.
template <class Weights>
inline void separate(const Product & product, int64_t column, int64_t block, uint8_t (&out)[INTERLEAVED_BLOCK]) {
    const int64_t lane = column % INTERLEAVED_COLUMNS;
    const uint8_t * at = weight_block(product, column - lane, block * INTERLEAVED_COLUMNS, INTERLEAVED_BLOCK);
    memcpy(out, at + 2 * lane, 2);
    for (int piece = 0; piece < 2; piece++) {
        const uint8_t * pieces = at + 2 * INTERLEAVED_COLUMNS + piece * INTERLEAVED_COLUMNS * INTERLEAVED_PIECE;
        uint64_t bytes = read<uint64_t>(pieces + lane * INTERLEAVED_PIECE);
        if (Weights::ZERO == Blocks<Q4_0>::ZERO) {
            bytes ^= INTERLEAVED_MASK * 0x0101010101010101u;
        }
        memcpy(out + 2 + piece * INTERLEAVED_PIECE, &bytes, INTERLEAVED_PIECE);
    }
}

template <class Weights>
void decode_blocks(
    const Product & product, int64_t column, int columns, int64_t first_block, int blocks, PanelBlocks * panels
) {
    constexpr int ZERO = Vector::is_signed(Weights::ZERO) ? Weights::ZERO : 0;
    alignas(ALIGNMENT) uint8_t bytes[LANES][CHUNK * BLOCK];
    for (int first = 0; first < columns; first += LANES) {
        PanelBlocks & panel = panels[first / PANEL];
        const int vector = first % PANEL / LANES, count = columns - first < LANES ? columns - first : LANES;
        for (int lane = 0; lane < count; lane++) {
            const uint8_t * at = weight_block(product, column + first + lane, first_block, Weights::BYTES);
            for (int b = 0; b < blocks; b++, at += Weights::BYTES) {
                if constexpr (Weights::BYTES == INTERLEAVED_BLOCK) {
                    if (product.interleaved) {
                        uint8_t block[INTERLEAVED_BLOCK];
                        separate<Weights>(product, column + first + lane, first_block + b, block);
                        panel.scale[b][vector][lane] = Weights::decode(block, bytes[lane] + b * BLOCK);
                        continue;
                    }
                }
                panel.scale[b][vector][lane] = Weights::decode(at, bytes[lane] + b * BLOCK);
            }
        }
        place<ZERO>(bytes, blocks * BLOCK, panel.quads, vector);
    }
}

template <class Weights>
void decode_superblock(const Product & product, int64_t column, int columns, int64_t block, PanelSuperblock * panels) {
    constexpr int ZERO = Vector::is_signed(Weights::ZERO) ? Weights::ZERO : 0;
    alignas(ALIGNMENT) uint8_t bytes[LANES][SUPERBLOCK];
    for (int first = 0; first < columns; first += LANES) {
        PanelSuperblock & panel = panels[first / PANEL];
        const int vector = first % PANEL / LANES;
        const uint8_t * blocks[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            // Behind the last column it is repeated, and its sums go nowhere.
            const int at = first + lane < columns ? first + lane : columns - 1;
            blocks[lane] = weight_block(product, column + at, block, Weights::BYTES);
            Weights::decode(blocks[lane], bytes[lane]);
        }
        Weights::decode_scales(blocks, {panel.scale, panel.offsets, panel.offset, vector});
        place<ZERO>(bytes, SUPERBLOCK, panel.quads, vector);
    }
}

// --- products ---

// Where a panel's sums go. `add`: to what earlier parts of the depth gave.
struct Output {
    char * at;
    size_t stride;
    bool add;

    float * vector(int row, int index) const { return (float *) (at + size_t(row) * stride) + index * LANES; }
};

template <int ZERO, int QUAD_COUNT, int ROWS>
inline void dot(Int (&sums)[ROWS][VECTORS], const int8_t (*rows)[BLOCK], const Quads * quads) {
#pragma GCC unroll 8
    for (int quad = 0; quad < QUAD_COUNT; quad++) {
        Int weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            weights[v] = Vector::load_bytes(quads[quad][v]);
        }
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            const Int input = Vector::broadcast_quad(rows[row] + 4 * quad);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                sums[row][v] = Vector::template dot<ZERO>(sums[row][v], weights[v], input);
            }
        }
    }
}

template <class Weights, int ROWS>
void multiply_blocks(
    const RowBlock * rows, int first_row, const PanelBlocks & panel, int blocks, Output output, Ahead & ahead
) {
    Float totals[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            totals[row][v] = output.add ? Vector::load(output.vector(row, v)) : Vector::zero();
        }
    }
    for (int b = 0; b < blocks; b++) {
        ahead.step();
        const RowBlock & block = rows[b];
        Int sums[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                sums[row][v] = Vector::broadcast(block.start[first_row + row]);
            }
        }
        dot<Weights::ZERO, QUADS>(sums, block.bytes + first_row, panel.quads + b * QUADS);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const Float scale = Vector::load(panel.scale[b][v]);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; row++) {
                const Float scaled = Vector::multiply(Vector::to_float(sums[row][v]), scale);
                const Float row_scale = Vector::broadcast(block.scale[first_row + row]);
                totals[row][v] = Vector::multiply_add(scaled, row_scale, totals[row][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            Vector::store(output.vector(row, v), totals[row][v]);
        }
    }
}

template <class Weights, int ROWS>
void multiply_superblock(
    const RowSuperblock & rows, int first_row, const PanelSuperblock & panel, Output output, Ahead & ahead
) {
    constexpr int GROUP_QUADS = Weights::GROUP / 4;
    Float totals[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            totals[row][v] = Vector::zero();
        }
    }
    for (int group = 0; group < SUPERBLOCK / Weights::GROUP; group++) {
        ahead.step();
        const int block = group * Weights::GROUP / BLOCK, quad = group * GROUP_QUADS;
        Int sums[ROWS][VECTORS];
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) {
                sums[row][v] = Vector::broadcast(rows.start[group][first_row + row]);
            }
        }
        const auto * bytes = (const int8_t (*)[BLOCK])(&rows.bytes[block][first_row][4 * (quad % QUADS)]);
        dot<Weights::ZERO, GROUP_QUADS>(sums, bytes, panel.quads + quad);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {
            const Float scale = Vector::load(panel.scale[group][v]);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; row++) {
                totals[row][v] = Vector::multiply_add(Vector::to_float(sums[row][v]), scale, totals[row][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; row++) {
            if constexpr (Weights::OFFSETS) {
                Int sums = Vector::broadcast(int32_t(0));
#pragma GCC unroll 8
                for (int pair = 0; pair < 4; pair++) {
                    sums = Vector::dot_pairs(
                        sums, Vector::load_bytes((const uint8_t *) panel.offsets[pair][v]),
                        Vector::broadcast_quad((const int8_t *) rows.sums[pair][first_row + row])
                    );
                }
                const Float offset = Vector::load(panel.offset[v]);
                totals[row][v] = Vector::subtract_product(totals[row][v], Vector::to_float(sums), offset);
            }
            float * out = output.vector(row, v);
            const Float before = output.add ? Vector::load(out) : Vector::zero();
            const Float row_scale = Vector::broadcast(rows.scale[first_row + row]);
            Vector::store(out, Vector::multiply_add(totals[row][v], row_scale, before));
        }
    }
}

template <int VALUE> struct Constant {
    static constexpr int value = VALUE;
};

// Calls `compute` with the number of rows as a constant.
template <int MOST, class Compute> inline void with_rows(int rows, Compute compute) {
    if constexpr (MOST > 1) {
        if (rows < MOST) {
            return with_rows<MOST - 1>(rows, compute);
        }
    }
    compute(Constant<MOST>());
}

// Calls `compute(count, group, first_row, panel, output)` for all rows of the input and all panels of a tile.
template <class Compute>
void for_all_rows(const Product & product, int64_t column, int columns, bool add, Compute compute) {
    alignas(ALIGNMENT) float edge[GROUP_ROWS][PANEL];
    for (int64_t group = 0; group < group_count(product); group++) {
        const int rows = rows_of_group(product, group);
        for (int panel = 0; panel * PANEL < columns; panel++) {
            const int width = columns - panel * PANEL < PANEL ? columns - panel * PANEL : PANEL;
            for (int first_row = 0; first_row < rows; first_row += Vector::ROWS) {
                const int count = rows - first_row < Vector::ROWS ? rows - first_row : Vector::ROWS;
                char * at = product.output + size_t(group * GROUP_ROWS + first_row) * product.output_stride +
                            size_t(column + panel * PANEL) * 4;
                if (width == PANEL) {
                    const Output output = {at, product.output_stride, add};
                    with_rows<Vector::ROWS>(count, [&](auto rows_here) {
                        compute(rows_here, group, first_row, panel, output);
                    });
                    continue;
                }
                // A panel that is not full goes by way of a buffer, because a whole one would write past the row.
                const Output output = {(char *) edge, sizeof edge[0], add};
                for (int row = 0; add && row < count; row++) {
                    memcpy(edge[row], at + size_t(row) * product.output_stride, size_t(width) * 4);
                }
                with_rows<Vector::ROWS>(count, [&](auto rows_here) {
                    compute(rows_here, group, first_row, panel, output);
                });
                for (int row = 0; row < count; row++) {
                    memcpy(at + size_t(row) * product.output_stride, edge[row], size_t(width) * 4);
                }
            }
        }
    }
}

inline int columns_of_tile(const Product & product, int64_t tile) {
    const int64_t left = product.columns - tile * TILE_COLUMNS;
    return left < TILE_COLUMNS ? int(left) : TILE_COLUMNS;
}

// How often `for_all_rows` calls `compute` for a whole tile.
inline int64_t calls_for_all_rows(const Product & product) {
    return PANELS * ((product.rows + Vector::ROWS - 1) / Vector::ROWS);
}

// The column whose blocks are read after those of `column`: of this tile, or of the one that the thread takes next.
inline int64_t column_after(const Product & product, int64_t column, bool tile_ends) {
    return tile_ends ? column + product.threads * TILE_COLUMNS : column;
}

template <class Weights>
void tile_of_blocks(const Product & product, const void * packed, void * scratch, int64_t tile) {
    auto * panels = (PanelBlocks *) scratch;
    const int64_t column = tile * TILE_COLUMNS, total = product.depth / BLOCK;
    const int columns = columns_of_tile(product, tile);
    for (int64_t first = 0; first < total; first += CHUNK) {
        const int blocks = total - first < CHUNK ? int(total - first) : CHUNK;
        decode_blocks<Weights>(product, column, columns, first, blocks, panels);
        const bool ends = first + blocks == total;
        const int64_t next = ends ? 0 : first + blocks, left = total - next < CHUNK ? total - next : CHUNK;
        const int64_t steps = calls_for_all_rows(product) * blocks;
        Ahead ahead(product, column_after(product, column, ends), next, left, Weights::BYTES, steps);
        for_all_rows(
            product, column, columns, first > 0, [&](auto count, int64_t group, int row, int panel, Output output) {
                const RowBlock * rows = row_blocks(product, (void *) packed, first, group);
                multiply_blocks<Weights, decltype(count)::value>(rows, row, panels[panel], blocks, output, ahead);
            }
        );
    }
}

template <class Weights>
void tile_of_superblocks(const Product & product, const void * packed, void * scratch, int64_t tile) {
    auto * panels = (PanelSuperblock *) scratch;
    const int64_t column = tile * TILE_COLUMNS, groups = group_count(product), blocks = product.depth / SUPERBLOCK;
    const int columns = columns_of_tile(product, tile);
    for (int64_t block = 0; block < blocks; block++) {
        decode_superblock<Weights>(product, column, columns, block, panels);
        const bool ends = block + 1 == blocks;
        const int64_t steps = calls_for_all_rows(product) * (SUPERBLOCK / Weights::GROUP);
        Ahead ahead(product, column_after(product, column, ends), ends ? 0 : block + 1, 1, Weights::BYTES, steps);
        for_all_rows(
            product, column, columns, block > 0, [&](auto count, int64_t group, int row, int panel, Output output) {
                const RowSuperblock & rows = ((const RowSuperblock *) packed)[block * groups + group];
                multiply_superblock<Weights, decltype(count)::value>(rows, row, panels[panel], output, ahead);
            }
        );
    }
}

void pack(const Product & product, void * packed, int64_t group) {
    switch (product.type) {
    case Q8_0: return pack_blocks<Blocks<Q8_0>>(product, packed, group);
    case Q4_0: return pack_blocks<Blocks<Q4_0>>(product, packed, group);
    case Q5_0: return pack_blocks<Blocks<Q5_0>>(product, packed, group);
    case IQ4_NL: return pack_blocks<Blocks<IQ4_NL>>(product, packed, group);
    case Q4_K: return pack_superblocks<Superblocks<Q4_K>>(product, packed, group);
    case Q5_K: return pack_superblocks<Superblocks<Q5_K>>(product, packed, group);
    case Q6_K: return pack_superblocks<Superblocks<Q6_K>>(product, packed, group);
    }
}

void multiply(const Product & product, const void * packed, void * scratch, int64_t tile) {
    switch (product.type) {
    case Q8_0: return tile_of_blocks<Blocks<Q8_0>>(product, packed, scratch, tile);
    case Q4_0: return tile_of_blocks<Blocks<Q4_0>>(product, packed, scratch, tile);
    case Q5_0: return tile_of_blocks<Blocks<Q5_0>>(product, packed, scratch, tile);
    case IQ4_NL: return tile_of_blocks<Blocks<IQ4_NL>>(product, packed, scratch, tile);
    case Q4_K: return tile_of_superblocks<Superblocks<Q4_K>>(product, packed, scratch, tile);
    case Q5_K: return tile_of_superblocks<Superblocks<Q5_K>>(product, packed, scratch, tile);
    case Q6_K: return tile_of_superblocks<Superblocks<Q6_K>>(product, packed, scratch, tile);
    }
}

}  // namespace
}  // namespace accelerator
