"""Converted models compute what transformers computes from the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch

from pocketvlm.files.bundle import Bundle
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm_converters.convert import convert

pytestmark = pytest.mark.oracle

IDS = [1, 300, 40, 41, 60, 7, 512, 100, 101, 99, 3, 250, 8, 640, 2, 77]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 3.0}


def logits_of(bundle: Bundle) -> np.ndarray:
    llm = llama_cpp.Llama(
        str(bundle.file("model")),
        n_ctx=64,
        logits_all=True,
        verbose=False,
        flash_attn=False,
        type_k=0,
        type_v=0,
        n_threads=2,
    )
    try:
        llm.eval(IDS)
        return np.array(llm.scores[: len(IDS)])
    finally:
        llm.close()


def wanted_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].float().numpy()


def same_logits(model: Any, folder: Path, tmp_path: Path, limit: float = 2e-3) -> None:
    bundle = convert(folder, tmp_path / "bundle", quantize="f32", mmproj="f32", verify=False)
    found, wanted = logits_of(bundle), wanted_logits(model)
    assert wanted.std() > 0.3, "the model must say something"
    assert np.abs(found - wanted).max() < limit


@pytest.mark.parametrize(
    ("options", "saving"),
    [
        ({}, {}),
        ({"tied": False}, {"max_shard_size": "100KB"}),
        ({"kind": "smolvlm", "head_dim": 32}, {}),
        ({"rope_parameters": LLAMA3}, {}),
        ({"rope_parameters": LINEAR}, {}),
        ({"attention_bias": True, "mlp_bias": True}, {}),
    ],
    ids=["tied", "untied-sharded", "smolvlm-wide-heads", "rope-llama3", "rope-linear", "biases"],
)
def test_language_model(options: Any, saving: Any, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model(**options)
    save(model, tmp_path / "checkpoint", **saving)
    assert (tmp_path / "checkpoint" / "model.safetensors.index.json").exists() == bool(saving)
    same_logits(model, tmp_path / "checkpoint", tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints(dtype: torch.dtype, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model(tied=False).to(dtype)
    save(model, tmp_path / "checkpoint")
    # Read back: .to() has rounded the rotary frequencies as well, which no file holds.
    same_logits(
        type(model).from_pretrained(tmp_path / "checkpoint", dtype=torch.float32), tmp_path / "checkpoint", tmp_path
    )


def test_names_without_the_outer_model(make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model()
    save(model.model, tmp_path / "checkpoint")
    same_logits(model, tmp_path / "checkpoint", tmp_path)


def test_old_rope_theta(make_model: Any, save: Any, edit: Any, tmp_path: Path) -> None:
    model = make_model()
    save(model, tmp_path / "checkpoint")
    edit(
        tmp_path / "checkpoint" / "config.json",
        {"text_config.rope_parameters": None, "text_config.rope_theta": 5000.0, "text_config.rope_scaling": {}},
    )
    same_logits(model, tmp_path / "checkpoint", tmp_path)


def test_tied_in_name_but_with_a_head_of_its_own(make_model: Any, save: Any, edit: Any, tmp_path: Path) -> None:
    """transformers then believes the weights, and so do we."""
    model = make_model(tied=False)
    save(model, tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint" / "config.json", {"tie_word_embeddings": True})
    same_logits(model, tmp_path / "checkpoint", tmp_path)


@pytest.mark.parametrize(("quantize", "least"), [("bf16", 0.999), ("Q8_0", 0.999), ("Q4_0", 0.9)])
def test_smaller_types_stay_close(quantize: str, least: float, make_model: Any, pristine: Path, tmp_path: Path) -> None:
    found = logits_of(convert(pristine, tmp_path / "bundle", quantize=quantize, verify=False))
    wanted = wanted_logits(make_model())
    cosine = (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted)
    assert least < cosine < 0.9999999, cosine


@pytest.mark.parametrize(("mmproj", "least"), [("f32", 0.9999), ("f16", 0.9999), ("bf16", 0.998), ("q8_0", 0.998)])
@pytest.mark.parametrize("kind", ["idefics3", "smolvlm"])
def test_vision_encoder(kind: str, mmproj: str, least: float, make_model: Any, save: Any, tmp_path: Path) -> None:
    model = make_model(kind)
    save(model, tmp_path / "checkpoint")
    bundle = convert(tmp_path / "checkpoint", tmp_path / "bundle", quantize="f16", mmproj=mmproj, verify=False)
    edge = model.config.vision_config.image_size
    tile = np.random.default_rng(0).integers(0, 256, (edge, edge, 3), np.uint8)
    pixels = torch.from_numpy(tile).permute(2, 0, 1).float()[None, None] / 127.5 - 1.0
    with torch.no_grad():
        seen = model.get_image_features(pixels).pooler_output[0].numpy()
    with (
        Model(bundle.file("model")) as language,
        Mtmd(bundle.file("mmproj"), language, threads=2, tile_tokens=len(seen)) as encoder,
    ):
        found = encoder.encode_tile(tile)
    assert found.shape == seen.shape
    cosines = (found * seen).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(seen, axis=1)
    assert cosines.min() >= least
    if mmproj == "f32":
        assert np.abs(found - seen).max() < 5e-3
