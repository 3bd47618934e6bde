"""A checkpoint of Qwen2.5-VL-3B's shapes with random bfloat16 weights in shards of 1 GB, made without torch.

Fewer decoder layers than the 36 of the model, so that it is about 4 GB; every tensor has its true shape. The matrices
of the decoder's layers can be FP8 (blocks of 128) or GPTQ (4 bits, groups of 128), and an adapter can come with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from random_files import SIZES, Pool, Shape, write_safetensors, write_tokenizer

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 151936, 2048, 11008, 14, 16, 2
VISION, VISION_INNER, VISION_LAYERS, VISION_HEADS, PATCH = 1280, 3420, 32, 16, 14
SHARD = 1 << 30  # bytes
BLOCK, RANK = 128, 16
QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": BLOCK, "desc_act": False},
}
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shapes() -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    keys = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, rows in {"q": HIDDEN, "k": keys, "v": keys}.items():
            tensors |= {
                f"{at}self_attn.{name}_proj.weight": (rows, HIDDEN),
                f"{at}self_attn.{name}_proj.bias": (rows,),
            }
        tensors[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        tensors |= {f"{at}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        tensors[f"{at}mlp.down_proj.weight"] = (HIDDEN, INNER)
        tensors |= {f"{at}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    tensors["model.norm.weight"] = (HIDDEN,)
    tensors["visual.patch_embed.proj.weight"] = (VISION, 3, 2, PATCH, PATCH)

    def linear(name: str, rows: int, width: int) -> None:
        tensors.update({f"{name}.weight": (rows, width), f"{name}.bias": (rows,)})

    for layer in range(VISION_LAYERS):
        at = f"visual.blocks.{layer}."
        tensors |= {f"{at}{name}.weight": (VISION,) for name in ("norm1", "norm2")}
        linear(f"{at}attn.qkv", 3 * VISION, VISION)
        linear(f"{at}attn.proj", VISION, VISION)
        linear(f"{at}mlp.gate_proj", VISION_INNER, VISION)
        linear(f"{at}mlp.up_proj", VISION_INNER, VISION)
        linear(f"{at}mlp.down_proj", VISION, VISION_INNER)
    tensors["visual.merger.ln_q.weight"] = (VISION,)
    linear("visual.merger.mlp.0", 4 * VISION, 4 * VISION)
    linear("visual.merger.mlp.2", HIDDEN, 4 * VISION)
    return tensors


class Stored:
    """Tensors as one format stores them: shapes and types by name, and the values of each."""

    def __init__(self, quantization: str) -> None:
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, str] = {}
        self._pool, self._rng = Pool(), np.random.default_rng(0)
        for name, shape in shapes().items():
            if quantization == "none" or not name.startswith("model.layers.") or len(shape) < 2:
                self._add(name, "BF16", *shape)
                continue
            rows, width = shape
            module = name.removesuffix("weight")
            if quantization == "fp8":
                self._add(name, "F8_E4M3", rows, width)
                self._add(f"{module}weight_scale_inv", "F32", -(-rows // BLOCK), -(-width // BLOCK))
            else:
                self._add(f"{module}qweight", "I32", width // 8, rows)
                self._add(f"{module}qzeros", "I32", width // BLOCK, rows // 8)
                self._add(f"{module}scales", "F16", width // BLOCK, rows)
                self._add(f"{module}g_idx", "I32", width)

    def size(self, name: str) -> int:
        return SIZES[self.types[name]] * math.prod(self.shapes[name])

    def values(self, name: str, shape: Shape) -> Iterator[np.ndarray]:
        if self.types[name] == "BF16":
            yield from self._pool.tensor(name, shape)
        elif name.endswith("g_idx"):
            yield np.arange(shape[0], dtype=np.int32) // BLOCK
        elif "scale" in name:
            kind = np.float16 if self.types[name] == "F16" else np.float32
            yield self._rng.uniform(1e-4, 2e-4, shape).astype(kind)
        else:
            for row in range(0, shape[0], 512):  # any bits, but none that are NaN
                count = SIZES[self.types[name]] * min(512, shape[0] - row) * shape[1]
                yield self._rng.integers(0, 256, count, np.uint8) & np.uint8(0xF7)

    def _add(self, name: str, kind: str, *shape: int) -> None:
        self.shapes[name], self.types[name] = shape, kind


def write_checkpoint(folder: Path, quantization: str = "none") -> tuple[int, int]:
    """The bytes of all weights, and of the largest tensor. `quantization` is none, fp8 or gptq."""
    _write_settings(folder, QUANTIZATIONS[quantization])
    stored = Stored(quantization)
    sizes = {name: stored.size(name) for name in stored.shapes}
    shards: list[list[str]] = [[]]
    room = SHARD
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size
    index = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        index |= dict.fromkeys(names, file)
        write_safetensors(folder / file, {name: stored.shapes[name] for name in names}, stored.values, stored.types)
    _dump(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
    )
    return sum(sizes.values()), max(sizes.values())


def write_adapter(folder: Path) -> None:
    """LoRA of rank 16 on all linear layers, those of the encoder included."""
    tensors: dict[str, Shape] = {}
    for name, shape in shapes().items():
        if len(shape) == 2 and "embed" not in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": (RANK, shape[1]), f"{module}.lora_B.weight": (shape[0], RANK)}
    write_safetensors(folder / "adapter_model.safetensors", tensors, Pool().tensor)
    _dump(folder / "adapter_config.json", {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK})


def _write_settings(folder: Path, quantization: Mapping[str, Any]) -> None:
    vocabulary = write_tokenizer(folder, VOCABULARY, CONTROL, normalizer={"type": "NFC"})
    _dump(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": TEMPLATE,
        },
    )
    _dump(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
        },
    )
    _dump(
        folder / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
            **({"quantization_config": quantization} if quantization else {}),
            "image_token_id": vocabulary["<|image_pad|>"],
            "video_token_id": vocabulary["<|video_pad|>"],
            "vision_start_token_id": vocabulary["<|vision_start|>"],
            "vision_end_token_id": vocabulary["<|vision_end|>"],
            "vision_config": {
                "depth": VISION_LAYERS,
                "hidden_act": "silu",
                "hidden_size": VISION,
                "intermediate_size": VISION_INNER,
                "num_heads": VISION_HEADS,
                "in_chans": 3,
                "out_hidden_size": HIDDEN,
                "patch_size": PATCH,
                "spatial_merge_size": 2,
                "spatial_patch_size": PATCH,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        },
    )


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
