#!/usr/bin/env bash
# GCC 12 throws most of an AMX tile configuration away, so llama.cpp compiled by it ends on processors with AMX.
#
# Version: GCC 12.2.0 (Debian 12), llama.cpp of llama-cpp-python 0.3.36. Only compiled here, so any x86-64 machine does.
#
# Expected: a function that fills the 64 bytes of a tile configuration and passes them to `_tile_loadconfig` stores them
# all, with optimization and without.
#
# Seen: the intrinsic tells the compiler that it reads one pointer, 8 bytes, from that address. With -O1 and more, the
# rows and columns of the tiles, which lie behind, are removed as dead stores. The palette, in byte 0, stays.
#
#                                    stores of constants before ldtilecfg
#   palette, one column, one row      -O0: 3    -O1, -O2, -O3: 1
#   ggml's mmq.cpp, 17 values         -O3: 1
#
# Why it matters: `pip install llama-cpp-python` compiles for the processor in front of it. On one with AMX (Xeons since
# 2023, so many rented machines) ggml's tiles have no rows, and the first prompt to a quantized model ends the process
# with SIGILL. It looks like a broken machine. It helps to load models with use_extra_bufts=False, or to compile with
# __AMX_INT8__ undefined.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
compiler=$(command -v g++-12 || command -v g++)
"$compiler" --version | head -1
[[ $("$compiler" -dumpversion) == 12* ]] || { echo "this is about GCC 12"; exit 1; }
cd "$dir"
cat > config.cpp <<'CPP'
#include <immintrin.h>
struct alignas(64) Config { unsigned char palette, start, zero[14]; unsigned short columns[16]; unsigned char rows[16]; };
void load() {
    Config config = {};
    config.palette = 1;
    config.columns[0] = 61;
    config.rows[7] = 13;
    _tile_loadconfig(&config);
}
CPP
wrong=0
expect() {
    printf '%-36s %s\n' "$1" "$2"
    [[ $2 == "$3" ]] || wrong=1
}
for level in 0 1 2 3; do
    "$compiler" -O$level -mamx-tile -S config.cpp -o config.s
    expect "own function, -O$level" "$(grep -cE 'mov[bw]\s+\$(1|61|13),' config.s)" $((level == 0 ? 3 : 1))
done

"${PYTHON:-python3}" -m venv venv
venv/bin/pip download -q --no-deps --no-binary :all: llama-cpp-python==0.3.36
tar xf llama_cpp_python-0.3.36.tar.gz
ggml=llama_cpp_python-0.3.36/vendor/llama.cpp/ggml
"$compiler" -O3 -march=sapphirerapids -std=c++17 -fPIC -DNDEBUG -D_GNU_SOURCE -I$ggml/include -I$ggml/src -I$ggml/src/ggml-cpu \
    -S $ggml/src/ggml-cpu/amx/mmq.cpp -o mmq.s
# Between the test of the flag that says it was done, and the instruction.
stores=$(grep -B12 'ldtilecfg' mmq.s | tac | sed '/\sj[a-z]*\s/q' | grep -cE 'mov[bwlq]\s+\$[0-9]+, ' || true)
expect "ggml's mmq.cpp, -O3" "$stores" 1
exit $wrong
