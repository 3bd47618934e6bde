"""A KV cache in q8_0: nearly the same answers in about half of the memory, and refused where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from typer.testing import CliRunner

from engine_seam import engine_of, prompt_of
from pocketvlm import VLM
from pocketvlm.cli.commands import app
from pocketvlm.engine.loading import loader
from pocketvlm.engine.loading.device_placement import DevicePlacement
from pocketvlm.errors import EngineError, RequestError, SessionError
from pocketvlm.files.cache_type import CacheType, allows, require_cache_type
from pocketvlm.files.footprint import Heads, heads_of
from pocketvlm.files.gguf_header import GGUFHeader, read_header
from pocketvlm.native import flash_attention, memory_estimate
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model

TOKENS = np.random.default_rng(0).integers(10, 600, 300).tolist()
ASKED = [{"role": "user", "content": "What colours can you name?"}]


@pytest.fixture(scope="module")
def path(iota_bundle: Path) -> Path:
    return next(iota_bundle.glob("model-*.gguf"))


@pytest.fixture
def context(path: Path) -> Iterator[Callable[..., Context]]:
    model = Model(path, gpu_layers=0)
    yield lambda cache_type, **more: Context(
        model, n_ctx=512, n_batch=512, threads=1, cache_type=cache_type, outputs=1, **more
    )
    model.close()


def test_logits_are_nearly_the_same(context: Callable[..., Context]) -> None:
    """Quantization moves them, but far less than to another answer."""
    chances = {}
    for cache_type in ("f32", "f16", "q8_0"):
        one = context(cache_type)
        one.decode_tokens(TOKENS, 0)
        logits = one.logits().astype(float)
        chances[cache_type] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

    def divergence(cache_type: str) -> float:
        return float(np.sum(chances["f32"] * np.log(chances["f32"] / chances[cache_type])))

    assert not np.array_equal(chances["f16"], chances["q8_0"])
    assert divergence("f16") < 1e-4
    assert divergence("f16") < divergence("q8_0") < 0.01


def test_memory(path: Path) -> None:
    """A block of 32 values has a scale of two bytes."""
    model = Model(path, gpu_layers=0, simulated=True)
    sizes: dict[CacheType, int] = {}
    types: tuple[CacheType, ...] = ("f32", "f16", "q8_0")
    for cache_type in types:
        buffers = memory_estimate.estimate_buffers(
            model, n_ctx=4096, n_batch=512, sequences=1, outputs=1, cache_type=cache_type
        )
        sizes[cache_type] = buffers.cache
    model.close()
    assert sizes["q8_0"] / sizes["f16"] == pytest.approx(34 / 64, rel=0.01)
    assert sizes["f32"] == 2 * sizes["f16"]


def test_cells_move_between_contexts(context: Callable[..., Context]) -> None:
    """As from the context of background prompts to that of answers."""
    source, target = context("q8_0", moves=True), context("q8_0", moves=True)
    source.decode_tokens(TOKENS, 0)
    target.add_cells(source.cells(0, 0, len(TOKENS)), 0)
    for one in (source, target):
        one.decode_token(TOKENS[0], len(TOKENS))
    assert np.array_equal(source.logits(), target.logits())
    with pytest.raises(EngineError, match="cannot restore"):
        context("f16", moves=True).add_cells(source.cells(0, 0, len(TOKENS)), 0)


def test_a_snapshot_is_of_one_type() -> None:
    with VLM.load(cache_type="q8_0", threads=1, context_size=512) as vlm:
        text = vlm.chat(ASKED).text
        snapshot = engine_of(vlm).snapshot(prompt_of(vlm, ASKED))
        assert vlm.info.cache_type == "q8_0" and snapshot.state is not None
    with VLM.load(threads=1, context_size=512) as other:
        assert other.info.cache_type == "f16"
        with pytest.raises(SessionError):
            engine_of(other).adopt(snapshot)
        assert other.chat(ASKED).text == text


# ---- what is refused


def test_heads_that_do_not_consist_of_blocks(tmp_path: Path) -> None:
    """libllama refuses them, too, but in a log line."""
    path = write_model(tmp_path / "narrow.gguf", width=48)
    header = read_header(path)
    assert heads_of(header) == {Heads(2, 1, 48, 48)}
    assert allows(header, "f16") and allows(header, "f32") and not allows(header, "q8_0")
    with pytest.raises(RequestError, match=r"narrow\.gguf has some of 48; use f16") as refused:
        require_cache_type(header, "q8_0")
    assert refused.value.param == "cache_type"
    model = Model(path, gpu_layers=0)
    with pytest.raises(EngineError, match="does not divide"):
        Context(model, n_ctx=256, n_batch=32, threads=1, cache_type="q8_0")
    model.close()


@pytest.mark.parametrize("key", ["key_length", "value_length", "key_length_swa"])
def test_heads_of_every_kind_of_layer(path: Path, key: str) -> None:
    header = read_header(path)
    more = {f"llama.attention.{name}_length_swa": 64 for name in ("key", "value")}
    assert allows(header, "q8_0") and allows(with_metadata(header, more), "q8_0")
    assert not allows(with_metadata(header, more | {f"llama.attention.{key}": 80}), "q8_0")


def test_loading_refuses_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "require_cache_type", lambda header, kind: require_cache_type(narrow(header), kind))
    with pytest.raises(RequestError, match=path.name):
        VLM.load(model=path, cache_type="q8_0", threads=1)
    VLM.load(model=path, threads=1).close()


def test_a_device_without_attention_over_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [heads] = heads_of(read_header(path))
    assert flash_attention.is_supported(0, "q8_0", heads)  # the CPU
    placement = DevicePlacement(0, 5, False, "on a device")
    monkeypatch.setattr(loader, "_placement", lambda *_: placement)
    monkeypatch.setattr(loader.flash_attention, "is_supported", lambda *_: False)
    with pytest.raises(RequestError, match="does not compute attention over a q8_0 cache with heads of 64") as refused:
        VLM.load(model=path, cache_type="q8_0", threads=1)
    assert refused.value.param == "cache_type"


def test_options() -> None:
    runner = CliRunner()
    for arguments, message in (
        (["--cache-type", "q4_0"], "--cache-type: invalid value 'q4_0'; use auto, f16 or q8_0"),
        (["--cache-type", "q8_0", "--exact"], "--cache-type: q8_0 cannot be combined with exact"),
    ):
        result = runner.invoke(app, ["chat", "hi", *arguments])
        assert message in str(result.exception or result.output)


def with_metadata(header: GGUFHeader, more: dict[str, int]) -> GGUFHeader:
    return replace(header, metadata={**header.metadata, **more})


def narrow(header: GGUFHeader) -> GGUFHeader:
    return with_metadata(header, {"llama.attention.key_length": 48})


def write_model(path: Path, width: int) -> Path:
    """Write a model of one layer with two heads of this width, all zeros, without a vocabulary."""
    writer = GGUFWriter(path, "llama")
    size = 2 * width
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("no_vocab")
    for name in ("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((size, size), np.float32))
    for name in ("attn_k", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, size), np.float32))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(size, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((64, size), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
