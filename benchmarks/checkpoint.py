"""A checkpoint of SmolVLM-256M's shapes with random weights, made on the spot without torch: about 500 MB."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from catalog_checkpoint import write_entry
from random_files import NEWLINE, Shape, bfloat16, write_safetensors

from pocketvlm.files.bundle import Bundle
from pocketvlm_converters.catalog.entry import get_entry
from pocketvlm_converters.convert import convert

VOCABULARY, HIDDEN, INNER, LAYERS, KEYS = 49280, 576, 1536, 30, 192
HEADS, KV_HEADS, VISION_HEADS = 9, 3, 12
VISION, VISION_INNER, VISION_LAYERS, TILE, PATCH, SHUFFLE = 768, 3072, 12, 512, 16, 4
TEXT, SEEN = "model.text_model.", "model.vision_model."
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>"]
PICTURE = ["<fake_token_around_image>", "<image>", "<global-img>"]
CHAT = Path(__file__).parent.parent / "models" / "iota" / "checkpoint" / "chat_template.jinja"  # writes SmolVLM's form
TILES = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]


def shapes() -> dict[str, tuple[int, ...]]:
    tensors: dict[str, tuple[int, ...]] = {
        f"{TEXT}embed_tokens.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        f"{TEXT}norm.weight": (HIDDEN,),
        f"{SEEN}embeddings.patch_embedding.weight": (VISION, 3, PATCH, PATCH),
        f"{SEEN}embeddings.patch_embedding.bias": (VISION,),
        f"{SEEN}embeddings.position_embedding.weight": ((TILE // PATCH) ** 2, VISION),
        f"{SEEN}post_layernorm.weight": (VISION,),
        f"{SEEN}post_layernorm.bias": (VISION,),
        "model.connector.modality_projection.proj.weight": (HIDDEN, VISION * SHUFFLE**2),
    }
    for layer in range(LAYERS):
        at = f"{TEXT}layers.{layer}."
        for name, shape in {
            "q": (HIDDEN, HIDDEN),
            "k": (KEYS, HIDDEN),
            "v": (KEYS, HIDDEN),
            "o": (HIDDEN, HIDDEN),
        }.items():
            tensors[f"{at}self_attn.{name}_proj.weight"] = shape
        tensors |= {f"{at}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        tensors[f"{at}mlp.down_proj.weight"] = (HIDDEN, INNER)
        tensors |= {f"{at}{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    for layer in range(VISION_LAYERS):
        at = f"{SEEN}encoder.layers.{layer}."
        linear = {f"self_attn.{name}": (VISION, VISION) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        linear |= {"mlp.fc1": (VISION_INNER, VISION), "mlp.fc2": (VISION, VISION_INNER)}
        for name, shape in linear.items():
            tensors |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        for name in ("layer_norm1", "layer_norm2"):
            tensors |= {f"{at}{name}.weight": (VISION,), f"{at}{name}.bias": (VISION,)}
    return tensors


def write_weights(path: Path) -> int:
    """A safetensors file of random bfloat16, written tensor by tensor; the bytes of the largest tensor."""
    rng = np.random.default_rng(0)

    def values(name: str, shape: Shape) -> Iterator[np.ndarray]:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        if "norm" in name and name.endswith("weight"):
            values += 1
        yield bfloat16(values)

    write_safetensors(path, shapes(), values)
    return max(2 * math.prod(shape) for shape in shapes().values())


def write_checkpoint(folder: Path) -> int:
    """All but the weights, with a byte-level vocabulary of the real size: two newlines, then pairs of bytes."""
    from tokenizers import Tokenizer, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(CONTROL + alphabet)}
    merges = []
    room = VOCABULARY - len(PICTURE) - len(TILES)
    for pair in [(NEWLINE, NEWLINE), *((a, b) for a in alphabet for b in alphabet)]:
        if len(vocabulary) < room and "".join(pair) not in vocabulary:
            vocabulary["".join(pair)] = len(vocabulary)
            merges.append(pair)
    tokens = [*CONTROL, *PICTURE, *TILES]
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    added = [
        {"id": vocabulary[token], "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token in tokens
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    Tokenizer.from_str(json.dumps(tokenizer))
    text_config = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
    }
    text_config |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    text_config |= {"model_type": "llama", "rope_theta": 100000.0}
    vision = {"hidden_size": VISION, "intermediate_size": VISION_INNER, "num_hidden_layers": VISION_LAYERS}
    vision |= {"num_attention_heads": VISION_HEADS, "image_size": TILE, "patch_size": PATCH}
    config = {"model_type": "idefics3", "scale_factor": SHUFFLE, "text_config": text_config, "vision_config": vision}
    config["image_token_id"] = vocabulary["<image>"]
    files = {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>"},
        "preprocessor_config.json": {"size": {"longest_edge": 4 * TILE}, "max_image_size": {"longest_edge": TILE}},
    }
    shutil.copy(CHAT, folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return write_weights(folder / "model.safetensors")


@contextmanager
def random_weights(entry: str | None = None) -> Iterator[Bundle]:
    """Language model Q8_0, mmproj f16, ONNX int8; removed at the end.

    The shapes are those of an `entry` of the catalogue, or SmolVLM-256M's.
    """
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        if entry is None:
            write_checkpoint(folder / "checkpoint")
        else:
            write_entry(get_entry(entry), folder / "checkpoint")
        yield convert(folder / "checkpoint", folder / "bundle", quantize="Q8_0", mmproj="f16", verify=False)
