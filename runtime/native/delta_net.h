// The gated delta rule over many tokens, written over a `Vector` as kernel.h is.
//
// A state is a matrix [width, width] of each head, and its rows change independently of each other:
//     row *= gate;  change = beta * (value - row . key);  row += change * key;  output = row . query / sqrt(width)
// ggml does this token by token, and the state goes from the second-level cache and back four times for each. Here a
// panel of rows stays in the first-level cache, transposed, while all tokens pass it once: the change by a token and
// the products with the next token are one pass, and no sum crosses the lanes of a vector.
#pragma once

#include <cmath>

#include "product.h"

namespace accelerator {
namespace {

constexpr int NET_LANES = Vector::LANES, NET_VECTORS = Vector::VECTORS, NET_PANEL = NET_LANES * NET_VECTORS;
static_assert(NET_ROWS % NET_PANEL == 0);
static_assert(size_t(NET_PANEL) * NET_WIDTH * sizeof(float) <= SCRATCH_BYTES);

// The products of a panel's rows with a key and a query.
struct NetProducts {
    Vector::Float key[NET_VECTORS], query[NET_VECTORS];
};

template <bool CHANGES, bool MULTIPLIES>
inline void pass(
    float * panel, int64_t width, Vector::Float gate, const Vector::Float (&changes)[NET_VECTORS], const float * key,
    const float * next_key, const float * next_query, NetProducts & next
) {
    NetProducts sums[2];  // of even and odd columns, so that no sum waits for the one before
#pragma GCC unroll 8
    for (int v = 0; v < NET_VECTORS; v++) {
        sums[0].key[v] = sums[0].query[v] = sums[1].key[v] = sums[1].query[v] = Vector::zero();
    }
    for (int64_t column = 0; column < width; column += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; odd++) {
            float * at = panel + (column + odd) * NET_PANEL;
#pragma GCC unroll 8
            for (int v = 0; v < NET_VECTORS; v++) {
                Vector::Float state = Vector::load(at + v * NET_LANES);
                if (CHANGES) {
                    const Vector::Float change = Vector::multiply(changes[v], Vector::broadcast(key[column + odd]));
                    state = Vector::multiply_add(state, gate, change);
                    Vector::store(at + v * NET_LANES, state);
                }
                if (MULTIPLIES) {
                    NetProducts & sum = sums[odd];
                    sum.key[v] = Vector::multiply_add(state, Vector::broadcast(next_key[column + odd]), sum.key[v]);
                    sum.query[v] =
                        Vector::multiply_add(state, Vector::broadcast(next_query[column + odd]), sum.query[v]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < NET_VECTORS; v++) {
        const Vector::Float one = Vector::broadcast(1.0f);
        next.key[v] = Vector::multiply_add(sums[0].key[v], one, sums[1].key[v]);
        next.query[v] = Vector::multiply_add(sums[0].query[v], one, sums[1].query[v]);
    }
}

// Computes the factors of all tokens of a head: exp(gate), and the product of key and query.
void net_factors(const DeltaNet & net, NetFactors * factors, int64_t head, int64_t sequence) {
    for (int64_t token = 0; token < net.tokens; token++) {
        const float *key = net.key(token, head, sequence), *query = net.query(token, head, sequence);
        Vector::Float sum = Vector::zero();
        for (int64_t i = 0; i < net.width; i += NET_LANES) {
            sum = Vector::multiply_add(Vector::load(key + i), Vector::load(query + i), sum);
        }
        float lanes[NET_LANES], product = 0;
        Vector::store(lanes, sum);
        for (float lane : lanes) {
            product += lane;
        }
        factors[net.place(token, head, sequence)] = {std::exp(net.gates[net.place(token, head, sequence)]), product};
    }
}

void net_rows(
    const DeltaNet & net, const NetFactors * factors, void * scratch, int64_t head, int64_t sequence, int64_t row
) {
    float * panel = (float *) scratch;
    const int64_t width = net.width;
    const float scale = 1.0f / std::sqrt(float(width));
    const Vector::Float none[NET_VECTORS] = {};
    for (const int64_t end = row + NET_ROWS; row < end; row += NET_PANEL) {
        const float * before = net.state(head, sequence) + row * width;
        for (int64_t column = 0; column < width; column++) {
            for (int i = 0; i < NET_PANEL; i++) {
                panel[column * NET_PANEL + i] = before[i * width + column];
            }
        }
        NetProducts products;
        pass<false, true>(
            panel, width, Vector::zero(), none, nullptr, net.key(0, head, sequence), net.query(0, head, sequence),
            products
        );
        for (int64_t token = 0; token < net.tokens; token++) {
            const int64_t place = net.place(token, head, sequence);
            const NetFactors & factor = factors[place];
            const Vector::Float gate = Vector::broadcast(factor.gate);
            const float * value = net.value(token, head, sequence) + row;
            float * out = net.output + place * width + row;
            Vector::Float changes[NET_VECTORS];
#pragma GCC unroll 8
            for (int v = 0; v < NET_VECTORS; v++) {
                const Vector::Float left =
                    Vector::subtract_product(Vector::load(value + v * NET_LANES), products.key[v], gate);
                changes[v] = Vector::multiply(left, Vector::broadcast(net.betas[place]));
                const Vector::Float kept = Vector::multiply(products.query[v], gate);
                const Vector::Float sum =
                    Vector::multiply_add(changes[v], Vector::broadcast(factor.key_query), kept);
                Vector::store(out + v * NET_LANES, Vector::multiply(sum, Vector::broadcast(scale)));
            }
            const float * key = net.key(token, head, sequence);
            if (token + 1 < net.tokens) {
                pass<true, true>(
                    panel, width, gate, changes, key, net.key(token + 1, head, sequence),
                    net.query(token + 1, head, sequence), products
                );
            } else {
                pass<true, false>(panel, width, gate, changes, key, nullptr, nullptr, products);
            }
        }
        float * after = net.new_state(head, sequence) + row * width;
        for (int i = 0; i < NET_PANEL; i++) {
            for (int64_t column = 0; column < width; column++) {
                after[i * width + column] = panel[column * NET_PANEL + i];
            }
        }
    }
}

}  // namespace
}  // namespace accelerator
