"""What is Qwen3.5's own: states that cannot be cut back, thoughts that the template drops, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from checkpoints import drop, mmproj, onnx_encoder, parts, put, refusal, same, worst
from conversations import picture
from engine_seam import checkpoint_bytes, forget
from integration.asking import settle
from pocketvlm import VLM
from pocketvlm.engine.loading import layer_benchmark
from pocketvlm.errors import CheckpointError, ModelFormatError, PairingError
from pocketvlm.files.gguf_decoder import check_known_decoder
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.context import Batch, Context
from pocketvlm.native.llama import Model
from pocketvlm.vision import families
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.dry_run import plan_conversion
from pocketvlm_converters.families import find_family
from tiny import qwen3_5 as tiny

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
GRIDS = [(3, 3), (1, 4), (9, 6), (1, 200)]  # rows and columns of embeddings
SHOWN = picture(3).resize((320, 320))  # 100 embeddings
LITTLE = 99  # tokens: fewer than the picture's, more than a question, an answer and what may lack a checkpoint have
THOUGHTS = {"thinking": "high", "not thinking": "none", "as the template does": None}


def tile_of(rows: int, cols: int) -> Array:
    return np.random.default_rng(rows * 1000 + cols).integers(0, 256, (rows * 32, cols * 32, 3), np.uint8)


def wanted(model: Any, folder: Path, tile: Array) -> Array:
    images = tiny.processor(folder).image_processor
    inputs = images(images=[Image.fromarray(tile)], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        return torch.cat(list(model.get_image_features(**inputs).pooler_output)).numpy()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_tile_of_any_size_passes_as_it_is(
    grid: tuple[int, int], reference: Any, pristine: Path, encoder: VisionEncoder
) -> None:
    tile = tile_of(*grid)
    assert worst(encoder.encode_tile(tile), wanted(reference, pristine, tile)) >= 0.9999


@pytest.mark.parametrize(("kind", "least"), {"fp16": 0.9999, "int8": 0.999, "int4": 0.95}.items())
def test_onnx_types(kind: str, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    tile = tile_of(5, 7)
    made = onnx_encoder(pristine, kind, tmp_path)
    assert worst(made.encode_tile(tile), wanted(reference, pristine, tile)) >= least


def test_long_texts(reference: Any, bundle: Path) -> None:
    """In batches of any length, because the state goes from one to the next."""
    ids = np.random.default_rng(0).integers(0, 640, 1500).tolist()
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].numpy()
    with (
        Model(bundle / "model-F32.gguf") as model,
        Context(model, n_ctx=1536, n_batch=512, threads=1, cache_type="f32") as context,
    ):
        assert model.recurrent and model.mrope
        start = 0
        for count in (1, 3, 500, 400, 64, 63, 468, 1):
            context.decode_tokens(ids[start : start + count], start)
            start += count
        assert start == len(ids)
        assert np.abs(context.logits() - logits).max() < 1e-3


# ---- what a next question evaluates


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> Iterator[VLM]:
    with VLM.load(bundle, exact=True, context_size=1536, vision="onnx") as loaded:
        yield loaded


def asked(question: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "image", "image": SHOWN, "detail": "high"}, {"type": "text", "text": question}],
    }


def evaluated(vlm: VLM, messages: list[dict[str, Any]], effort: str | None, tokens: int = 8) -> tuple[int, list[Any]]:
    """How much of a prompt was not in the cache, and the tokens of the answer with their logarithms."""
    made = vlm.chat(messages, max_tokens=tokens, temperature=0, reasoning_effort=effort, logprobs=True)
    details, shown, scores = made.usage.prompt_tokens_details, made.timings, made.choices[0].logprobs
    assert details is not None and shown is not None and scores is not None
    assert shown.images[0].tokens == 100
    return made.usage.prompt_tokens - details.cached_tokens, [(score.token, score.logprob) for score in scores.content]


@pytest.mark.parametrize("effort", THOUGHTS.values(), ids=THOUGHTS)
def test_a_picture_is_evaluated_once(vlm: VLM, effort: str | None) -> None:
    """However long the conversation, and also when another one begins with the picture, whatever is thought."""
    settle(vlm)
    forget(vlm)
    messages = [asked("What is the first one?")]
    assert evaluated(vlm, messages, effort)[0] > 100
    for number in range(7):
        answer = {"role": "assistant", "content": f"It is {number}.", "reasoning_content": "One, two, three. " * 9}
        messages += [answer, {"role": "user", "content": f"And what is number {number}?"}]
        assert evaluated(vlm, messages, effort)[0] < LITTLE, number
    other = [asked("Is it red?")]
    again, warm = evaluated(vlm, other, effort)
    assert again < LITTLE
    settle(vlm)
    forget(vlm)
    afresh, cold = evaluated(vlm, other, effort)
    assert afresh > 100
    assert [token for token, _ in warm] == [token for token, _ in cold]
    assert all(abs(one - two) < 1e-3 for (_, one), (_, two) in zip(warm, cold, strict=True))


def test_evaluations_of_a_prompt(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """One up to the checkpoint after the picture, and one more; a checkpoint after the message if it is a long one."""
    counts: list[int] = []
    for name in ("decode", "decode_embeddings"):
        original = getattr(Context, name)

        def evaluate(self: Context, given: Any, *rest: Any, _original: Any = original, **options: Any) -> None:
            counts.append(given.count if isinstance(given, Batch) else len(given))
            _original(self, given, *rest, **options)

        monkeypatch.setattr(Context, name, evaluate)

    def evaluations(messages: list[dict[str, Any]]) -> list[int]:
        counts.clear()
        total, _ = evaluated(vlm, messages, None, tokens=1)
        assert sum(counts) == total
        return [*counts]

    settle(vlm)
    forget(vlm)
    first = [asked("What is it?")]
    before, after = evaluations(first)
    assert before > 100 > after
    answer = {"role": "assistant", "content": "It."}
    assert len(evaluations([*first, answer, {"role": "user", "content": "And then?"}])) == 1
    long = [*first, answer, {"role": "user", "content": "And then? " * 20}]
    message, opening = evaluations(long)
    assert message > 64 > 16 > opening
    assert len(evaluations([*long, answer, {"role": "user", "content": "And now?"}])) == 1


def test_checkpoints_larger_than_their_limit(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the largest model: those after the picture and after the last message stay all the same."""
    checkpoint_bytes(monkeypatch, 1)
    settle(vlm)
    forget(vlm)
    messages = [asked("What is the first one?")]
    assert evaluated(vlm, messages, None)[0] > 100
    messages += [{"role": "assistant", "content": "It."}, {"role": "user", "content": "And what " * 30}]
    assert evaluated(vlm, messages, None)[0] > LITTLE
    messages += [{"role": "assistant", "content": "It."}, {"role": "user", "content": "And then?"}]
    assert evaluated(vlm, messages, None)[0] < LITTLE, "the last message"
    assert evaluated(vlm, [asked("Is it red?")], None)[0] < LITTLE, "the picture"


# ---- files


def test_files_of_another_converter(bundle: Path) -> None:
    metadata = read_header(bundle / "mmproj-f32.gguf").metadata
    for key in ("image_min_pixels", "image_max_pixels"):
        del metadata[f"clip.vision.{key}"]
    for flags in ({}, {"clip.vision.is_deepstack_layers": [False] * 3}):
        found = families.find(metadata | flags)
        assert found is not None and found[0] == "qwen3_5"
        assert found[1].plan((200, 200), "high", None).used == (256, 256)


def test_files_of_another_model(bundle: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "wide"
    tiny.save(tiny.model(hidden_size=96, vision={"out_hidden_size": 96}), checkpoint)
    with pytest.raises(PairingError, match=r"96 wide, .* takes 64"):
        VLM.load(model=bundle / "model-F32.gguf", mmproj=mmproj(checkpoint, "f32", tmp_path))


@pytest.mark.parametrize("key", ["attention.recurrent_layers", "full_attention_interval"])
def test_layers_of_both_kinds_are_timed(key: str, bundle: Path) -> None:
    """Whichever key describes them: libllama ends the process at a part of a model with layers of one kind."""
    header = read_header(bundle / "model-F32.gguf")
    metadata = {name: value for name, value in header.metadata.items() if name != f"qwen35.{key}"}
    assert layer_benchmark._layers_of_every_kind(replace(header, metadata=metadata)) == 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ssm.time_step_rank": 5, "ssm.inner_size": 80}, "time_step_rank is 5: it is not a multiple of"),
        ({"ssm.inner_size": 80}, "inner_size is 80: expected 96"),
        ({"ssm.conv_kernel": 1}, "conv_kernel is 1"),
        ({"attention.recurrent_layers": [True] * 8}, "layers with attention and layers without"),
        (
            {"attention.recurrent_layers": None, "full_attention_interval": 9},
            "layers with attention and layers without",
        ),
        ({"full_attention_interval": 0}, "full_attention_interval is 0"),
        ({"attention.recurrent_layers": [False] + [True] * 7}, "heads of its layer have 512"),
        ({"attention.head_count": 5}, "heads of its layer have 640"),
    ],
    ids=str,
)
def test_contradictions_in_a_header(values: dict[str, Any], words: str, bundle: Path) -> None:
    """libllama would end the process at most of them."""
    header = read_header(bundle / "model-F32.gguf")
    check_known_decoder(header)
    changed = header.metadata | {f"qwen35.{key}": value for key, value in values.items()}
    changed = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(ModelFormatError, match=words):
        check_known_decoder(replace(header, metadata=changed))


def test_prediction_of_further_tokens_is_left_out(checkpoint: Path, pristine: Path) -> None:
    path = checkpoint / "model.safetensors"
    more = {"mtp.fc.weight": np.ones((64, 128), np.float32), "mtp.layers.0.mlp.up_proj.weight": np.ones((96, 64))}
    save_file(load_file(path) | {name: value.astype(np.float32) for name, value in more.items()}, path)
    assert same(parts(checkpoint), parts(pristine))
    (note,) = find_family(Checkpoint(checkpoint)).notes
    assert "(mtp.*) is left out" in note
    assert not find_family(Checkpoint(pristine)).notes
    assert note in plan_conversion(checkpoint, "x", quantize="F16", mmproj="f16", onnx="none").notes


def test_the_cache_is_that_of_attention(pristine: Path) -> None:
    planned = plan_conversion(pristine, "x", quantize="F16", mmproj="f16", onnx="none")
    assert planned.cache == 2 * planned.context * 2 * (64 + 64)  # bytes, layers, keys and values


def text(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["text_config"].update(values)


def rope(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["text_config"]["rope_parameters"].update(values)


def vision(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["vision_config"].update(values)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "experts": (lambda config: config.update(model_type="qwen3_5_moe"), "model_type qwen3_5_moe is a mixture"),
    "a text model": (lambda config: config.update(model_type="qwen3_5_text"), "without a vision encoder"),
    "another decoder": (text(model_type="qwen3_5_moe_text"), "text_config.model_type is 'qwen3_5_moe_text'"),
    "too few kinds": (text(layer_types=["linear_attention"] * 7), "expected a list of 8 items"),
    "a window": (text(layer_types=["linear_attention"] * 7 + ["sliding_attention"]), "each linear_attention or full"),
    "no attention": (text(layer_types=["linear_attention"] * 8), "expected layers of both kinds"),
    "no state": (text(layer_types=["full_attention"] * 8), "expected layers of both kinds"),
    "interval": (text(layer_types=None, full_attention_interval=9), "full_attention_interval is 9; expected layers of"),
    "biases": (text(attention_bias=True), "attention_bias is True"),
    "no gate": (text(attn_output_gate=False), "attn_output_gate is False"),
    "activation": (text(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "epsilon": (text(rms_norm_eps=1e-5), "rms_norm_eps is 1e-05"),
    "values": (text(linear_value_head_dim=32), "supports only that of keys, 16"),
    "key heads": (text(linear_num_key_heads=4), "linear_num_value_heads is 6; it must be a multiple of"),
    "heads": (text(num_attention_heads=3, num_key_value_heads=2), "num_attention_heads 3 is not a multiple of it"),
    "kernel": (text(linear_conv_kernel_dim=1), "linear_conv_kernel_dim is 1"),
    "rotated": (rope(partial_rotary_factor=0.05), "partial_rotary_factor is 0.05; it rotates 3 of 64"),
    "too much rotated": (rope(partial_rotary_factor=2), "it rotates 128 of 64"),
    "sections": (rope(mrope_section=[3, 3, 3]), "whose sum is 8"),
    "in a row": (rope(mrope_interleaved=False), "mrope_interleaved is False"),
    "scaled": (rope(rope_type="yarn", factor=4.0), "rope scaling 'yarn' with mrope_section"),
    "deepstack": (vision(deepstack_visual_indexes=[1]), "deepstack_visual_indexes is [1]"),
    "width": (vision(out_hidden_size=32), "the language model has hidden_size 64"),
    "positions": (vision(num_position_embeddings=35), "must be a square number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    change, message = REFUSED[name]
    assert message in refusal(checkpoint, change)


def test_a_kernel_of_another_length(checkpoint: Path) -> None:
    put(checkpoint / "config.json", {"text_config.linear_conv_kernel_dim": 3})
    with pytest.raises(CheckpointError, match=r"conv1d.weight is \(160, 1, 4\), the configuration says \(160, 1, 3\)"):
        parts(checkpoint)


@pytest.mark.parametrize("name", ["linear_attn.A_log", "linear_attn.conv1d.weight", "mlp.up_proj.weight"])
def test_missing_tensors(name: str, checkpoint: Path) -> None:
    drop(checkpoint, f"model.language_model.layers.1.{name}")
    with pytest.raises(CheckpointError, match=rf"layers\.1\.{name} is missing"):
        parts(checkpoint)


def test_defaults_of_the_configuration(checkpoint: Path) -> None:
    """Sections, and how much of a head is rotated, where the file is silent."""

    def silent(config: dict[str, Any]) -> None:
        config["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 100000.0}

    message = refusal(checkpoint, silent)
    assert "mrope_section is missing; expected three numbers whose sum is 8" in message
