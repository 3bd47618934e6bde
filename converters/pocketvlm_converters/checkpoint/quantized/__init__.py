"""Quantized checkpoints as floats. One module per format says how the tensors of a quantized weight become that weight.

Nothing is computed here: a weight is dequantized, a block of rows at a time, when its values are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.config import Section
from pocketvlm_converters.checkpoint.quantized.awq import AWQ
from pocketvlm_converters.checkpoint.quantized.bitsandbytes import BitsAndBytes
from pocketvlm_converters.checkpoint.quantized.compressed_tensors import CompressedTensors
from pocketvlm_converters.checkpoint.quantized.fp8 import FP8
from pocketvlm_converters.checkpoint.quantized.gptq import GPTQ
from pocketvlm_converters.checkpoint.quantized.parts import TYPES, Format, Parts
from pocketvlm_converters.checkpoint.safetensors import Tensor, unreadable

_KEYS = ("quantization_config", "compression_config")
_FORMATS: dict[str, type[Format]] = {
    method: kind for kind in (AWQ, BitsAndBytes, CompressedTensors, FP8, GPTQ) for method in kind.methods
}
# Endings of names that only quantized checkpoints have, also where the tensors are floats.
_MARKS = (
    *(".qweight", ".qzeros", ".g_idx", ".absmax", ".quant_map", ".SCB"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_zero_point"),
)


def is_quantized(config: Section) -> bool:
    """Return whether a configuration says that the weights are quantized."""
    settings = _settings(config)
    return settings is not None and bool(settings.values)


def dequantize(config: Section, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with weights in place of what they are quantized to, and notes for the user.

    `config` is that of config.json. Modules that the quantization left out stay as they are: which ones these are
    follows from the tensors. Raises CheckpointError, naming the tensor or the method, for quantized weights that cannot
    be read.
    """
    settings = _settings(config)
    marked = [tensor for tensor in tensors.values() if tensor.packed or tensor.name.endswith(_MARKS)]
    if not marked:
        notes = ["the quantization that config.json mentions is ignored: all weights are floating point"]
        return dict(tensors), tuple(notes) if settings is not None else ()
    format_ = _format(config, settings, marked[0])
    modules: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part = next((part for part in format_.parts if name.endswith(f".{part}")), None)
        if part is None:
            weights[name] = tensor
        else:
            modules[name[: -len(part) - 1]][part] = tensor
    count = 0
    for module, parts in modules.items():
        weight = f"{module}.weight"
        if set(parts) == {"weight"} and not parts["weight"].packed:  # a module that the quantization left out
            weights[weight] = parts["weight"]
        elif not set(parts) <= {*format_.unused}:
            weights[weight] = format_.weight(Parts(weight, parts, _float_type(config)))
            count += 1
    for tensor in weights.values():
        if tensor.packed or tensor.name.endswith(_MARKS):
            raise _unreadable(tensor)
    return weights, (f"{count} weights were dequantized; the checkpoint has them in the format {format_.title}",)


def _settings(config: Section) -> Section | None:
    """Return the settings of the quantization, wherever the configuration has them."""
    for section in (config, config.section("text_config")):
        for key in _KEYS:
            if section.values.get(key) is not None:
                is_object = isinstance(section.values[key], dict)
                return section.section(key) if is_object else Section({}, config.path)
    return None


def _format(config: Section, settings: Section | None, tensor: Tensor) -> Format:
    """Return the format that config.json names. `tensor` is one that shows that the checkpoint is quantized."""
    if settings is None or not settings.values:
        raise _unreadable(tensor)
    default = "compressed-tensors" if config.values.get(_KEYS[1]) is not None else ""
    method = settings.text("quant_method", default)
    if method not in _FORMATS:
        known = ", ".join(sorted(_FORMATS))
        reason = f"is quantized by {quoted(method)}, which cannot be read (known: {known}); convert the original"
        raise CheckpointError(f"{reason} checkpoint", config.path)
    return _FORMATS[method](settings)


def _float_type(config: Section) -> str:
    """Return the type in which the model computes, F32 if config.json does not say."""
    sections = (config, config.section("text_config"))
    names = (section.values.get(key) for section in sections for key in ("dtype", "torch_dtype"))
    return next((TYPES[name] for name in names if isinstance(name, str) and name in TYPES), "F32")


def _unreadable(tensor: Tensor) -> CheckpointError:
    """Return the error for a tensor of a quantized weight that config.json does not explain."""
    if tensor.packed:
        return unreadable(tensor.name, tensor.packed, tensor.path)
    reason = "is already quantized, in a way that config.json does not say; convert the original checkpoint"
    return CheckpointError(f"tensor {tensor.name} {reason}", tensor.path)
