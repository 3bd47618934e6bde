#!/usr/bin/env bash
# bitsandbytes dequantizes 4-bit weights wrongly on the CPU where a row is not a whole number of blocks.
#
# Version: bitsandbytes 0.50.2, torch 2.13.0.
#
# Expected: `quantize_4bit` cuts the flattened weight into blocks of 64, each with a scale of its own, and
# `dequantize_4bit` multiplies the same blocks by the same scales, whatever the shape is.
#
# Seen: the CPU's kernel begins a new block at every row. With rows of 4304 or 96 values, most blocks get the scale of
# another one. The packed file is right: codes times scales, by hand, give the weights. Multiples of 64 are right.
#
#   shape          blocks in a row   largest error, by hand   largest error, dequantize_4bit
#   1152 x 1152    18                about 0.5                the same
#   1152 x 4304    67.25             about 0.5                several times that
#   64 x 96        1.5               about 0.5                several times that
#
# Why it matters: 4304 is the width of the MLP in SigLIP so400m, the vision encoder of many vision-language models. A
# checkpoint in nf4 that is fine on a GPU sees badly on a CPU, and a tool that converts it through bitsandbytes writes
# the wrong weights for good. No warning is given. Tests with hidden sizes such as 64 or 128 do not show it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"${PYTHON:-python3}" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --no-compile torch==2.13.0 bitsandbytes==0.50.2
PYTHONDONTWRITEBYTECODE=1 "$dir/venv/bin/python" - <<'PYTHON'
import sys

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

BLOCK = 64


def by_hand(packed, state):
    """Codes times the scales of their blocks; the first code of a byte is the high one."""
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    return (state.code[codes] * state.absmax.repeat_interleave(BLOCK)).reshape(state.shape)


torch.manual_seed(0)
changed = False
for shape, right in (((1152, 1152), True), ((1152, 4304), False), ((64, 96), False)):
    weight = torch.randn(shape)
    for kind in ("nf4", "fp4"):
        packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
        hand = (by_hand(packed, state) - weight).abs().max().item()
        kernel = (dequantize_4bit(packed, state) - weight).abs().max().item()
        print(f"{kind} {shape!s:>12}: largest error {hand:.2f} by hand, {kernel:.2f} by dequantize_4bit")
        changed |= hand > 1 or (kernel < 1.01 * hand) != right or (not right and kernel < 2 * hand)
sys.exit("dequantize_4bit behaves differently now" if changed else 0)
PYTHON
