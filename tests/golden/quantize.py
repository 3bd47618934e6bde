"""Write quantized.safetensors: one small weight in every quantized format, made and read back by the real programs.

A record of how the file was made, not run by the tests:

    python tests/golden/quantize.py        # needs compressed-tensors, bitsandbytes, autoawq, gptqmodel, transformers

It was run with compressed-tensors 0.20.1, bitsandbytes 0.50.2 (on a CPU), autoawq 0.2.9, GPTQModel 7.7.0 and
transformers 5.24.0. With compressed-tensors 0.9.4, `--ordered` adds the case with `weight_g_idx`, which later versions
no longer write.

Each case has tensors `CASE/layer.NAME` as a checkpoint has them, and `CASE/expected`, the weight as the program that
defines the format dequantizes it. The file's metadata has the case's settings for config.json.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILE = Path(__file__).with_name("quantized.safetensors")
OUT, IN, GROUP = 32, 32, 16
Case = tuple[str, dict[str, Any], dict[str, torch.Tensor], torch.Tensor]


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0))
    values[3, 5] = 9  # an outlier
    return values.to(dtype)


def linear(dtype: torch.dtype = torch.float16) -> torch.nn.Linear:
    layer = torch.nn.Linear(IN, OUT, bias=False, dtype=dtype)
    layer.weight.data = weight(dtype)
    return layer


def groups(symmetric: bool, bits: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [out, groups] of unsigned integers."""
    parts = weight().reshape(OUT, -1, GROUP)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = (high - low) / (2**bits - 1)
    zeros = torch.full_like(scales, 2 ** (bits - 1)) if symmetric else torch.round(-low / scales)
    return scales, zeros


def fp8() -> Iterator[Case]:
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    for name, options in (
        ("fp8-block", {"weight_block_size": (16, 8)}),
        ("fp8-exponents", {"weight_block_size": (16, 16), "scale_fmt": "ue8m0"}),
    ):
        config = FineGrainedFP8Config(**options)
        owner = types.SimpleNamespace(quantization_config=config)
        tensors = Fp8Quantize(owner).convert({"layer.weight": weight(torch.bfloat16)})
        inputs = {key.removeprefix("layer."): value for key, value in tensors.items()}
        (expected,) = Fp8Dequantize(owner).convert(inputs, full_layer_name="weight").values()
        if expected.dtype != torch.bfloat16:
            expected = expected.to(torch.bfloat16)  # the model's type
        yield name, {"dtype": "bfloat16", "quantization_config": config.to_dict()}, tensors, expected


def compressed_tensors() -> Iterator[Case]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    floats, integers = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}
    packed = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    for name, layout, options in (
        ("ct-float-tensor", "float-quantized", {**floats, "strategy": "tensor"}),
        ("ct-float-rows", "float-quantized", {**floats, "strategy": "channel"}),
        ("ct-float-blocks", "float-quantized", {**floats, "strategy": "block", "block_structure": [8, 16]}),
        ("ct-int-rows", "int-quantized", {**integers, "strategy": "channel"}),
        ("ct-int-asymmetric", "int-quantized", {**integers, "strategy": "channel", "symmetric": False}),
        ("ct-packed", "pack-quantized", packed),
        ("ct-packed-asymmetric", "pack-quantized", {**packed, "symmetric": False}),
        ("ct-packed-rows", "pack-quantized", {**packed, "strategy": "channel", "group_size": None}),
        ("ct-packed-8", "pack-quantized", {**packed, "num_bits": 8}),
    ):
        args = QuantizationArgs(**options)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
        config = QuantizationConfig(config_groups={"group_0": scheme}, format=layout, ignore=["lm_head"])
        values = weight(torch.bfloat16)
        if args.strategy == "tensor":
            low, high = values.min().reshape(1), values.max().reshape(1)
        elif args.strategy == "channel":
            low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        elif args.strategy == "block":
            blocks = values.reshape(OUT // 8, 8, IN // 16, 16)
            low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
        else:
            blocks = values.reshape(OUT, -1, GROUP)
            low, high = blocks.amin(-1), blocks.amax(-1)
        scale, zero = calculate_qparams(low, high, args)
        state = {"weight": values, "weight_scale": scale.to(torch.bfloat16)}
        if not args.symmetric:
            state["weight_zero_point"] = zero.to(torch.int8)
        compressor = BaseCompressor.get_value_from_registry(layout)
        stored = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(stored), scheme)["weight"]
        tensors = {f"layer.{key}": value for key, value in stored.items()}
        yield name, {"quantization_config": json.loads(config.model_dump_json())}, tensors, expected


def ordered() -> Iterator[Case]:
    """Groups of inputs in any order; with compressed-tensors 0.9.4."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs

    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP, actorder="group")
    order = torch.randperm(IN, generator=torch.Generator().manual_seed(1)) // GROUP
    scale = groups(symmetric=True)[0].to(torch.bfloat16)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    compressor = PackedQuantizationCompressor()
    stored = compressor.compress_weight(weight(torch.bfloat16), scale, args, zero, order.int())
    stored |= {"weight_scale": scale, "weight_g_idx": order.int()}
    expected = compressor.decompress_weight(stored, args)
    weights = json.loads(args.model_dump_json())
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    yield (
        "ct-packed-ordered",
        {"quantization_config": config},
        {f"layer.{key}": value for key, value in stored.items()},
        expected,
    )


def awq() -> Iterator[Case]:
    for name in (
        "awq",
        "awq.utils",
        "awq.modules",
        "awq.modules.linear",
    ):  # the package itself wants an old transformers
        module = types.ModuleType(name)
        spec = find_spec("accelerate")
        assert spec and spec.origin
        module.__path__ = [str(Path(spec.origin).parent.parent.joinpath(*name.split(".")))]
        sys.modules[name] = module
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    scales, zeros = groups(symmetric=False)
    layer = WQLinear_GEMM.from_linear(linear(), 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    tensors = {f"layer.{key}": value for key, value in layer.state_dict().items()}
    expected = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP).T
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    yield "awq", {"dtype": "float16", "quantization_config": config}, tensors, expected


def gptq() -> Iterator[Case]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    order = torch.randperm(IN, generator=torch.Generator().manual_seed(1)) // GROUP
    for name, bits, symmetric, shuffled, layout in (
        ("gptq-4", 4, True, False, "gptq"),
        ("gptq-4-ordered", 4, False, True, "gptq"),
        ("gptq-4-second", 4, False, False, "gptq_v2"),
        ("gptq-8", 8, True, True, "gptq"),
        ("gptq-2", 2, False, False, "gptq"),
    ):
        layer = TorchLinear(bits, GROUP, symmetric, shuffled, IN, OUT)
        indexes = order if shuffled else torch.arange(IN) // GROUP
        layer.pack_original(linear(torch.float32), *groups(symmetric, bits), indexes.int())
        layer.eval()
        layer.post_init()
        expected = layer.dequantize_weight().T
        if layout == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, QuantizeConfig(bits=bits, group_size=GROUP))
        names = ("qweight", "qzeros", "scales", "g_idx")
        tensors = {f"layer.{key}": getattr(layer, key) for key in names}
        config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": shuffled}
        yield name, {"quantization_config": {**config, "checkpoint_format": layout}}, tensors, expected


def bitsandbytes() -> Iterator[Case]:
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    out, width = OUT // 2, IN * 2  # on a CPU, rows shorter than a block are read wrongly by bitsandbytes itself
    for name, kind, nested, dtype in (
        ("bnb-nf4", "nf4", False, torch.bfloat16),
        ("bnb-nf4-double", "nf4", True, torch.float16),
        ("bnb-fp4", "fp4", False, torch.float32),
    ):
        layer = bitsandbytes.nn.Linear4bit(width, out, False, quant_type=kind, compress_statistics=nested)
        layer.weight = bitsandbytes.nn.Params4bit(
            weight(dtype).reshape(out, width), False, quant_type=kind, compress_statistics=nested, blocksize=64
        )
        layer = layer.to("cpu")
        tensors = {f"layer.{key}": value for key, value in layer.state_dict().items()}
        yield (
            name,
            {"quantization_config": config},
            tensors,
            dequantize_4bit(layer.weight.data, layer.weight.quant_state),
        )
    layer = bitsandbytes.nn.Linear8bitLt(IN, OUT, False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(weight(torch.float16), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    tensors = {f"layer.{key}": value for key, value in layer.state_dict().items()}
    expected = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB).half()
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    yield "bnb-int8", {"dtype": "float16", "quantization_config": config}, tensors, expected


def main(sources: list[Any]) -> None:
    tensors, settings = {}, {}
    if FILE.exists():
        with safe_open(FILE, "pt") as old:
            settings = dict(old.metadata())
            tensors = {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118
    for name, config, stored, expected in (case for source in sources for case in source()):
        settings[name] = json.dumps(config)
        tensors |= {f"{name}/{key}": value.contiguous() for key, value in stored.items()}
        tensors[f"{name}/expected"] = expected.contiguous()
        print(name, expected.dtype, {key: tuple(value.shape) for key, value in stored.items()})
    save_file(tensors, FILE, settings)
    print({name: metadata.version(name) for name in ("compressed-tensors", "bitsandbytes", "autoawq", "transformers")})


if __name__ == "__main__":
    main([ordered] if sys.argv[1:] == ["--ordered"] else [fp8, compressed_tensors, awq, gptq, bitsandbytes])
