"""Check that the bindings and the libraries agree on the structures that they pass to each other.

The Python side declares them itself. With libraries of another version, fields would be read and written at wrong
places, which shows as wrong answers or as the end of the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Defaults in llama.cpp of llama-cpp-python 0.3.36, by the functions that return them: distinct ones near both ends of
# each structure, which another layout moves.
LLAMA: Mapping[str, Mapping[str, Any]] = {
    "llama_model_default_params": {
        "n_gpu_layers": -1,
        "split_mode": 1,
        "load_mode": -1,
        "lazy_mode": 1,
        "main_gpu": 0,
        "vocab_only": False,
        "use_extra_bufts": True,
        "no_alloc": False,
    },
    "llama_context_default_params": {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_outputs_max": 0,
        "flash_attn_type": -1,
        "rope_freq_base": 0.0,
        "yarn_ext_factor": -1.0,
        "type_k": 1,
        "type_v": 1,
        "embeddings": False,
        "offload_kqv": True,
        "op_offload": True,
        "n_samplers": 0,
    },
    "llama_model_quantize_default_params": {"ftype": 7, "quantize_output_tensor": True, "max_buf_size": 8 << 30},
}
MTMD: Mapping[str, Mapping[str, Any]] = {
    "mtmd_context_params_default": {
        "use_gpu": True,
        "device": None,
        "print_timings": True,
        "n_threads": 4,
        "media_marker": b"<__media__>",
        "flash_attn_type": -1,
        "image_max_tokens": -1,
        "batch_max_tokens": 1024,
    },
}


def first_difference(module: Any, expected: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return what one of the functions returns otherwise than expected, in words; None where all agree."""
    for function, fields in expected.items():
        try:
            parameters = getattr(module, function)()
        except AttributeError:
            return f"{function} is missing"
        for name, value in fields.items():
            actual = getattr(parameters, name, "missing")
            if actual != value:
                return f"{name} of {function} is {actual}, not {value}"
    return None
