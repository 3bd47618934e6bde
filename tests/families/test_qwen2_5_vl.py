"""What is Qwen2.5-VL's own: sizes, types, configurations of other layouts, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import pocketvlm.vision.mtmd
from checkpoints import change, onnx_encoder, parts, put, refusal, same
from engine_seam import session_of
from pocketvlm.errors import EngineError, ModelFormatError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision import families
from pocketvlm.vision.compatibility import check_encoder, check_language_model
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm.vision.mtmd import MtmdEncoder
from pocketvlm.vision.onnx import OnnxEncoder
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families import find_family
from tiny import qwen2_5_vl as tiny

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
# Rows and columns of embeddings: the fewest, whole windows (4 x 4), windows cut at either edge or both, the most.
GRIDS = [(2, 2), (1, 4), (4, 4), (8, 4), (5, 4), (4, 7), (9, 6), (1, 200), (100, 4), (20, 20)]
LEAST = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.999, "int4": 0.95}.items()


def tile_of(rows: int, cols: int) -> Array:
    return np.random.default_rng(rows * 1000 + cols).integers(0, 256, (rows * 28, cols * 28, 3), np.uint8)


def wanted(model: Any, folder: Path, tile: Array) -> Array:
    images = tiny.processor(folder).image_processor
    inputs = images(images=[Image.fromarray(tile)], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        return torch.cat(list(model.get_image_features(**inputs).pooler_output)).numpy()


def worst_cosine(found: Array, seen: Array) -> float:
    assert found.shape == seen.shape
    return float(((found * seen).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(seen, axis=-1)).min())


def _saved_flat(config: dict[str, Any]) -> None:
    """As transformers 4.52 and later saved it, for example olmOCR: the text twice, with two names of one scaling."""
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    scaling = {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "default"}
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "sliding_window": None, "max_window_layers": 2}
    text |= {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}
    config |= {key: value for key, value in text.items() if key not in ("model_type", "layer_types")}


def _saved_nested(config: dict[str, Any]) -> None:
    """As transformers 4.57 saved it, for example Nanonets-OCR2: only the text says that the head is tied."""
    rope = config["text_config"].pop("rope_parameters")
    scaling = {"mrope_section": rope["mrope_section"], "rope_type": "default", "type": "mrope"}
    config["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": scaling, "dtype": "bfloat16"}
    config["text_config"]["tie_word_embeddings"] = config.pop("tie_word_embeddings")
    config["dtype"] = "bfloat16"


@pytest.mark.parametrize("saved", [_saved_flat, _saved_nested])
def test_configurations_of_fine_tuned_models(
    saved: Callable[[dict[str, Any]], None], pristine: Path, checkpoint: Path
) -> None:
    """Sizes of pictures stand twice in them, too: as limits, and as edges whose other name is null."""
    change(checkpoint / "config.json", saved)
    sizes = {"shortest_edge": tiny.LEAST, "longest_edge": tiny.MOST}
    put(checkpoint / "preprocessor_config.json", {"size": sizes, "min_pixels": None, "max_pixels": tiny.MOST})
    assert same(parts(checkpoint), parts(pristine))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_tile_of_any_size_passes_as_it_is(
    grid: tuple[int, int], reference: Any, pristine: Path, encoder: VisionEncoder
) -> None:
    tile = tile_of(*grid)
    assert worst_cosine(encoder.encode_tile(tile), wanted(reference, pristine, tile)) >= 0.9999


@pytest.mark.parametrize(("kind", "least"), LEAST)
def test_onnx_types(kind: str, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    made = onnx_encoder(pristine, kind, tmp_path)
    for grid in ((4, 4), (5, 7)):
        tile = tile_of(*grid)
        assert worst_cosine(made.encode_tile(tile), wanted(reference, pristine, tile)) >= least


def test_several_tiles_at_once(bundle: Path) -> None:
    made = OnnxEncoder(read_onnx(bundle / "vision-fp32.onnx"), threads=1)
    tiles = np.stack([tile_of(5, 6), tile_of(6, 5).transpose(1, 0, 2)])
    (together,) = session_of(made).run(None, {"pixels": np.tile(tiles, 2)})  # the frame twice
    for tile, rows in zip(tiles, together, strict=True):
        assert np.abs(made.encode_tile(tile) - rows).max() < 1e-4 * np.abs(rows).max()


def test_the_header_says_that_sizes_vary(bundle: Path) -> None:
    header = check_encoder(bundle / "vision-fp32.onnx", check_language_model(bundle / "model-F32.gguf"))
    assert header.inputs[0].shape == (None, None, None, 6) and header.outputs[0].shape == (None, None, 64)


def test_what_memory_does_not_hold_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = read_header(bundle / "mmproj-f32.gguf")
    found = families.find(header.metadata)
    assert found is not None
    with Model(bundle / "model-F32.gguf") as model:
        made = MtmdEncoder(Mtmd(header.path, model, threads=1, tile_tokens=100000), header, found[1])
        made.encode_tile(tile_of(4, 4))
        monkeypatch.setattr(pocketvlm.vision.mtmd, "memory", lambda: (2**30, 10**6))
        with pytest.raises(EngineError, match="windows of a picture of 1,024 patches"):
            made.encode_tile(tile_of(16, 16))
        monkeypatch.setattr(pocketvlm.vision.mtmd, "memory", lambda: None)
        with pytest.raises(EngineError, match="67,600 patches"):
            made.encode_tile(np.zeros((130 * 28, 130 * 28, 3), np.uint8))


def test_files_of_another_converter(bundle: Path) -> None:
    metadata = read_header(bundle / "mmproj-f32.gguf").metadata
    for key in ("spatial_merge_size", "image_min_pixels", "image_max_pixels"):
        del metadata[f"clip.vision.{key}"]
    found = families.find(metadata)
    assert found is not None and found[0] == "qwen2_5_vl"
    assert found[1].plan((4032, 3024), "high", None).used == (4032, 3024)
    del metadata["clip.vision.patch_size"]
    with pytest.raises(ModelFormatError, match="patch_size"):
        pocketvlm.vision.compatibility.family_of(metadata, bundle)


def test_preprocessing_as_published(pristine: Path, tmp_path: Path) -> None:
    """Older names for the limits, and no word about what every model of the kind has."""
    shutil.copytree(pristine, tmp_path / "other")
    path = tmp_path / "other" / "preprocessor_config.json"
    images = json.loads(path.read_text())
    size = images.pop("size")
    images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    path.write_text(json.dumps({key: images[key] for key in images if key != "resample" and not key.startswith("do_")}))
    one, other = (find_family(Checkpoint(folder)).projector().metadata for folder in (pristine, tmp_path / "other"))
    assert one == other and one["clip.vision.image_max_pixels"] == tiny.MOST


def rope(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["text_config"].update(rope_parameters={"rope_theta": 1e6, **values})


SECTIONS = [2, 3, 3]
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "window": (lambda c: c["vision_config"].update(window_size=56), "window_size is 56"),
    "merge": (lambda c: c["vision_config"].update(spatial_merge_size=1), "spatial_merge_size is 1"),
    "frames": (lambda c: c["vision_config"].update(temporal_patch_size=1), "temporal_patch_size is 1"),
    "channels": (lambda c: c["vision_config"].update(in_channels=1), "in_channels is 1"),
    "activation": (lambda c: c["vision_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "patch": (lambda c: c["vision_config"].update(patch_size=112), "patch_size is 112"),
    "irregular": (lambda c: c["vision_config"].update(fullatt_block_indexes=[0, 3]), "every n-th of the 4 layers"),
    "not to the end": (lambda c: c["vision_config"].update(fullatt_block_indexes=[1]), "every n-th"),
    "square": (lambda c: c["vision_config"].update(intermediate_size=64), "libmtmd misreads"),
    "heads": (lambda c: c["vision_config"].update(num_heads=32), "multiple of 4"),
    "width": (lambda c: c["vision_config"].update(out_hidden_size=32), "the language model has hidden_size 64"),
    "axial": (lambda c: c["vision_config"]["rope_parameters"].update(rope_theta=5.0), "rope_theta is 5.0"),
    "sliding": (lambda c: c["text_config"].update(use_sliding_window=True), "use_sliding_window is True"),
    "layers": (lambda c: c["text_config"].update(layer_types=["sliding_attention"] * 2), "layer_types"),
    "text activation": (lambda c: c["text_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "head_dim": (
        lambda c: c["text_config"].update(head_dim=32, rope_parameters={"mrope_section": [8, 4, 4]}),
        "head_dim",
    ),
    "yarn": (rope(rope_type="yarn", factor=4.0, mrope_section=SECTIONS), "'yarn' with mrope_section"),
    "linear": (rope(rope_type="linear", factor=4.0, mrope_section=SECTIONS), "'linear' with mrope_section"),
    "sections": (rope(rope_type="default", mrope_section=[2, 3, 4]), "whose sum is 8"),
    "no sections": (rope(rope_type="default"), "text_config.rope_parameters.mrope_section is missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    change, message = REFUSED[name]
    assert message in refusal(checkpoint, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_size": 1}, "merge_size is 1"),
        ({"patch_size": 16}, "patch_size is 16"),
        ({"resample": 2}, "resample is 2"),
        ({"do_rescale": False}, "do_rescale is False"),
        ({"image_std": [0.5, 0.5]}, "three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "must not contain 0"),
        ({"min_pixels": 4000, "max_pixels": 3000}, "minimum of 4000 pixels is above the maximum of 3000"),
        ({"min_pixels": 0}, "min_pixels is 0"),
    ],
)
def test_refused_preprocessing(change: dict[str, Any], message: str, checkpoint: Path) -> None:
    assert message in refusal(checkpoint, lambda values: values.update(change), "preprocessor_config.json")
