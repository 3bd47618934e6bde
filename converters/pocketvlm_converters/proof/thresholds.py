"""The limits for the deviation of a bundle from its original.

Measured values are from iota (trained) and from tiny models with random weights, whose predictions are as uncertain as
can be. The limits are several times larger, to allow for other models; the faults that they must detect (a wrong scale,
order or layer) deviate more.
"""

from __future__ import annotations

import math
import re

# 1 - cosine of the embedding of the worst picture token to float32, by the type of the vision encoder's file. It is the
# worst of all tokens of twelve pictures; the mean is a tenth of it.
_ENCODER = {
    "f32": 1e-4,  # measured 1e-5: libmtmd and onnxruntime sum in another order
    "fp32": 1e-4,
    "f16": 5e-4,  # 2e-5
    "fp16": 5e-4,  # 7e-6
    "bf16": 0.01,  # 9e-4: 8 bits of mantissa
    "q8_0": 0.01,  # 1e-3: the activations are rounded to 8 bits as well
    "mixed": 0.03,  # 4e-3
    "q5_1": 0.1,  # 2e-2
    "int8": 0.01,  # 2e-3: one scale for most activations of a tile, but sensitive matrices stay float
}
_OTHER_ENCODERS = 0.4  # q4_0 and int4: 0.1
# Median over all tokens of |ratio of the embeddings' lengths - 1|: the cosine does not depend on the length.
SCALE = 0.05  # measured 2e-3 with q8_0, 1e-2 with int4

# Mean KL divergence in nats of the language model's predictions from those of its original precision.
_LANGUAGE = {
    "F32": 1e-5,  # the same numbers: 0
    "F16": 1e-3,  # measured 9e-7; a bf16 checkpoint's original differs in the rounding of activations
    "BF16": 0.01,
}
_LANGUAGE_BITS = {
    8: 0.02,  # Q8_0: measured 7e-4
    6: 0.05,  # Q6_K: 3e-3
    5: 0.15,  # Q5_K_M: 1.4e-2
    4: 0.5,  # Q4_K_M: 3e-2, Q4_0: 6e-2
}
# The divergence at a verification may be GROWTH times that at the conversion plus SLACK: another CPU sums in another
# order, another version of the library may round differently. The next smaller type deviates more (Q4_K_M 0.03, Q3_K_M
# 0.14).
GROWTH, SLACK = 1.5, 1e-4
TOP_FLOAT = 0.98  # share of positions with the same most likely token, for float types; measured 0.996 and more

# Against transformers, in float32 on both sides.
PIXEL = 1.01  # grey levels: two resizes may round in opposite directions
TIE = 5e-3  # nats between two tokens whose order rounding decides; measured 1e-3 with random weights
REFERENCE_KL = 1e-4  # measured 1e-7 with f32 and fp32 encoders
_EXACT = ("f32", "fp32")
# What the rounding of an encoder of each type adds to the KL divergence, in nats.
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
    """Return whether files of these types compute in float32, as the reference does."""
    return all(kind.lower() in _EXACT for kind in kinds)


def reference_limit(language: str, encoder: str) -> float | None:
    """Return the largest mean KL to transformers for types of the language model and the encoder.

    None for types that round too much for a limit.
    """
    limit, cost = language_limit(language), _ENCODER_COST.get(encoder.lower())
    return None if limit is None or cost is None else REFERENCE_KL + limit + cost


def encoder_limit(*kinds: str) -> float:
    """Return the smallest allowed cosine of the worst token between two encoders, or between one and float32."""
    # 1 - cosine is half the squared distance of two points on the unit sphere, and the distances to float32 add.
    chord = sum(math.sqrt(_ENCODER.get(kind.lower(), _OTHER_ENCODERS)) for kind in kinds)
    return 1 - min(chord * chord, 1.0)


def language_limit(kind: str) -> float | None:
    """Return the largest mean KL for a type of the language model; None below 4 bits, where no limit is meaningful."""
    kind = kind.upper()
    bits = re.search(r"\d", kind)
    return _LANGUAGE.get(kind) or (_LANGUAGE_BITS.get(int(bits[0])) if bits else None)
