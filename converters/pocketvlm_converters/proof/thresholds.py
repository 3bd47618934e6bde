"""How far a conversion may be from its original: every limit, in one place.

"Measured" is on iota (trained) and on tiny models of random weights, whose answers are the least sure there are. The
limits leave several times that to other models; what they must find (a wrong scale, order, layer) is farther off.
"""

from __future__ import annotations

import math
import re

# 1 - cosine of the worst picture token to float32, by the type of the vision encoder's file. One token of twelve
# pictures, so the tail: the mean is ten times nearer.
_ENCODER = {
    "f32": 1e-4,  # measured 1e-5: libmtmd and onnxruntime sum in another order
    "fp32": 1e-4,
    "f16": 5e-4,  # 2e-5
    "fp16": 5e-4,  # 7e-6
    "bf16": 0.01,  # 9e-4: 8 bits of mantissa
    "q8_0": 0.01,  # 1e-3: the activations are rounded to 8 bits as well
    "mixed": 0.03,  # 4e-3
    "q5_1": 0.1,  # 2e-2
    "int8": 0.01,  # 2e-3: one scale for the activations of a tile, but sensitive matrices stay float
}
_ENCODER_ELSE = 0.4  # q4_0 and int4: 0.1
# Whether embeddings are as long as they must be, which a cosine does not see: median over all tokens of |ratio - 1|.
SCALE = 0.05  # measured 2e-3 with q8_0, 1e-2 with int4

# Mean KL divergence in nats of the language model's predictions from those of its original precision.
_LANGUAGE = {
    "F32": 1e-5,  # the same numbers: 0
    "F16": 1e-3,  # measured 9e-7; from bf16 it differs by how activations are rounded
    "BF16": 0.01,
}
_LANGUAGE_BITS = {
    8: 0.02,  # Q8_0: measured 7e-4
    6: 0.05,  # Q6_K: 3e-3
    5: 0.15,  # Q5_K_M: 1.4e-2
    4: 0.5,  # Q4_K_M: 3e-2, Q4_0: 6e-2
}
# The divergence may grow by this between conversion and verification: another CPU sums otherwise, a new library may
# round otherwise; a file of the next smaller type is farther off (Q4_K_M 0.03, Q3_K_M 0.14).
GROWTH, SLACK = 1.5, 1e-4
TOP_FLOAT = 0.98  # share of positions with the same likeliest token, for float types; measured 0.996 and more

# Against transformers, in float32 on both sides.
PIXEL = 1.01  # grey levels: a resize may round the other way
REFERENCE_KL = 1e-4  # measured 1e-7 with f32 and fp32 encoders
_EXACT = ("f32", "fp32")
# What the embeddings of an encoder's type add to it, in nats.
_ENCODER_COST = {
    "f32": 0.0,
    "fp32": 0.0,
    "f16": 1e-3,
    "fp16": 1e-3,
    "bf16": 0.02,
    "q8_0": 0.1,
    "mixed": 0.1,
    "int8": 0.1,
}


def is_exact(*kinds: str) -> bool:
    """Whether files of these types compute in float32, as the reference does here."""
    return all(kind.lower() in _EXACT for kind in kinds)


def reference_limit(language: str, encoder: str) -> float | None:
    """The largest mean KL to transformers for types of the language model and the encoder; None for coarse ones."""
    mine, cost = language_limit(language), _ENCODER_COST.get(encoder.lower())
    return None if mine is None or cost is None else REFERENCE_KL + mine + cost


def encoder_limit(*kinds: str) -> float:
    """The least cosine of two encoders' worst token, or of one to float32: distances on the sphere add."""
    chord = sum(math.sqrt(_ENCODER.get(kind.lower(), _ENCODER_ELSE)) for kind in kinds)
    return 1 - min(chord * chord, 1.0)


def language_limit(kind: str) -> float | None:
    """The largest mean KL for a type of the language model; None below 4 bits, where any value may be right."""
    kind = kind.upper()
    bits = re.search(r"\d", kind)
    return _LANGUAGE.get(kind) or (_LANGUAGE_BITS.get(int(bits[0])) if bits else None)
