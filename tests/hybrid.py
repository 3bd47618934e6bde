"""A tiny model whose layers take turns: attention, and short convolutions that keep a state (LFM2's), random weights.

It speaks another model's vocabulary and is as wide, so that it can look through that one's projector.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

LAYERS = "caccac"  # convolution or attention
HEADS, KV_HEADS = 4, 2


def save(donor: Path, path: Path, *, window: int = 0) -> Path:
    """`donor`: a GGUF language model in float32, its vocabulary and embeddings are taken. Attention with a `window`."""
    source = gguf.GGUFReader(donor)
    (embedding,) = (tensor.data for tensor in source.tensors if tensor.name == "token_embd.weight")
    words, width = embedding.shape
    feed, head = 2 * width, width // HEADS
    writer = gguf.GGUFWriter(path, "lfm2")
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    writer.add_block_count(len(LAYERS))
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([KV_HEADS if layer == "a" else 0 for layer in LAYERS])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_shortconv_l_cache(3)
    writer.add_vocab_size(words)
    if window:
        writer.add_sliding_window(window)
    rng = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        noise = rng.normal(0, 0.15, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", noise + ("norm" in name) * np.float32(1))

    writer.add_tensor("token_embd.weight", np.asarray(embedding, np.float32))
    add("token_embd_norm", width)
    for number, layer in enumerate(LAYERS):
        block = f"blk.{number}"
        add(f"{block}.attn_norm", width)
        add(f"{block}.ffn_norm", width)
        add(f"{block}.ffn_gate", feed, width)
        add(f"{block}.ffn_up", feed, width)
        add(f"{block}.ffn_down", width, feed)
        if layer == "a":
            add(f"{block}.attn_q", width, width)
            add(f"{block}.attn_k", KV_HEADS * head, width)
            add(f"{block}.attn_v", KV_HEADS * head, width)
            add(f"{block}.attn_output", width, width)
            add(f"{block}.attn_q_norm", head)
            add(f"{block}.attn_k_norm", head)
        else:
            add(f"{block}.shortconv.conv", width, 3)
            add(f"{block}.shortconv.in_proj", 3 * width, width)
            add(f"{block}.shortconv.out_proj", width, width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
