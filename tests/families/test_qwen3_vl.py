"""What is Qwen3-VL's own: learned positions, deepstack rows, dealt frequencies, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from checkpoints import drop, onnx_encoder, parts, put, refusal, worst
from pocketvlm import VLM
from pocketvlm.cli.commands import app
from pocketvlm.errors import ModelFormatError, PairingError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.native.token_embeddings import token_embeddings
from pocketvlm.vision import families
from pocketvlm.vision.compatibility import check_encoder, check_language_model, check_projector
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm_converters.checkpoint.folder import Section
from pocketvlm_converters.convert import convert
from pocketvlm_converters.networks.rope import read_rope
from tiny import qwen3_vl as tiny

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
# Rows and columns of embeddings: the table's own size, smaller, larger, one of them long, the most.
GRIDS = [(3, 3), (2, 2), (1, 4), (3, 7), (9, 6), (1, 200), (20, 20)]
LEAST = {"fp16": 0.9999, "int8": 0.999, "int4": 0.95}.items()


def tile_of(rows: int, cols: int) -> Array:
    return np.random.default_rng(rows * 1000 + cols).integers(0, 256, (rows * 32, cols * 32, 3), np.uint8)


def wanted(model: Any, folder: Path, tile: Array) -> list[Array]:
    """The projector's rows, and those of each deepstack projector."""
    images = tiny.processor(folder).image_processor
    inputs = images(images=[Image.fromarray(tile)], do_resize=False, return_tensors="pt")
    with torch.no_grad():
        found = model.get_image_features(**inputs)
    return [rows[0].numpy() for rows in (found.pooler_output, *found.deepstack_features)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_tile_of_any_size_passes_as_it_is(
    grid: tuple[int, int], reference: Any, pristine: Path, encoder: VisionEncoder
) -> None:
    tile = tile_of(*grid)
    rows = encoder.encode_tile(tile)
    assert rows.shape == (grid[0] * grid[1], 3 * 64)
    for at, part in enumerate(wanted(reference, pristine, tile)):
        assert worst(rows[:, at * 64 : (at + 1) * 64], part) >= 0.9999


@pytest.mark.parametrize(("kind", "least"), LEAST)
def test_onnx_types(kind: str, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    made = onnx_encoder(pristine, kind, tmp_path)
    tile = tile_of(5, 7)
    assert worst(made.encode_tile(tile), np.concatenate(wanted(reference, pristine, tile), -1)) >= least


def test_long_texts(reference: Any, bundle: Path) -> None:
    """The slowest frequencies count, which libllama would not turn at all by the checkpoint's own sections."""
    ids = np.random.default_rng(0).integers(0, 640, 3000).tolist()
    with torch.no_grad():
        logits = reference(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].numpy()
    with (
        Model(bundle / "model-F32.gguf") as model,
        Context(model, n_ctx=3072, n_batch=512, threads=1, cache_type="f32") as context,
    ):
        for start in range(0, len(ids), 500):
            context.decode_tokens(ids[start : start + 500], start)
        assert np.abs(context.logits() - logits).max() < 1e-3


def test_a_row_is_a_token(bundle: Path) -> None:
    """With four positions, and nothing for the layers that take more of a picture."""
    file = bundle / "model-F32.gguf"
    with Model(file) as model, Context(model, n_ctx=256, n_batch=32, threads=1) as context:
        table = token_embeddings(model, read_header(file), context)
        assert table is not None
        assert table.row(5).shape == (1, model.n_embd_inp)


@pytest.mark.parametrize(
    ("width", "sections", "dealt"),
    [(128, [24, 20, 20], [22, 21, 21, 0]), (32, [6, 5, 5], [6, 5, 5, 0]), (32, [8, 4, 4], [6, 5, 5, 0])],
)
def test_frequencies_are_dealt(width: int, sections: list[int], dealt: list[int]) -> None:
    config = Section({"rope_scaling": {"mrope_section": sections}, "rope_theta": 5e6}, Path("config.json"))
    assert read_rope(config, width, interleaved=True).metadata["rope.dimension_sections"] == dealt


def test_files_that_do_not_fit(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Rows of another width would be read out of bounds."""
    put(checkpoint / "config.json", {"vision_config.deepstack_visual_indexes": [2]})
    drop(checkpoint, "model.visual.deepstack_merger_list.1.")
    other = convert(checkpoint, tmp_path / "other", quantize="F32", mmproj="f32", onnx="fp32", verify=False).path
    assert check_language_model(other / "model-F32.gguf")
    header = check_language_model(bundle / "model-F32.gguf")
    with pytest.raises(PairingError, match=r"128 wide, .* takes 192"):
        check_projector(other / "mmproj-f32.gguf", header)
    with pytest.raises(PairingError, match=r"128 wide, .* takes 192"):
        check_encoder(other / "vision-fp32.onnx", header)
    with pytest.raises(PairingError, match=r"192 wide, .* takes 128"):
        VLM.load(model=other / "model-F32.gguf", mmproj=bundle / "mmproj-f32.gguf")


def test_a_layer_for_each_deepstack_projector(bundle: Path, tmp_path: Path) -> None:
    """libllama's last layer computes the last row alone: it would add all rows to that one, and end the process."""
    data, key = (bundle / "model-F32.gguf").read_bytes(), b"qwen3vl.n_deepstack_layers" + (4).to_bytes(4, "little")
    assert data.count(key) == 1
    at = data.index(key) + len(key)
    (tmp_path / "model.gguf").write_bytes(data[:at] + (3).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(ModelFormatError, match="3 deepstack layers of 3"):
        check_language_model(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["mmproj-f32.gguf", "vision-fp32.onnx"])
def test_inspect_tells_of_deepstack(name: str, bundle: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(bundle / name)])
    assert shown.exit_code == 0
    assert "64 wide, and 2 more from earlier layers (deepstack)" in " ".join(shown.output.split())


def test_files_of_another_converter(bundle: Path) -> None:
    metadata = read_header(bundle / "mmproj-f32.gguf").metadata
    for key in ("image_min_pixels", "image_max_pixels"):
        del metadata[f"clip.vision.{key}"]
    found = families.find(metadata)
    assert found is not None and found[0] == "qwen3_vl"
    assert found[1].plan((4032, 3024), "high", None).used == (4032, 3008)
    assert found[1].plan((200, 200), "high", None).used == (256, 256)


def vision(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["vision_config"].update(values)


def text(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["text_config"].update(values)


def rope(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["text_config"]["rope_parameters"].update(values)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "merge": (vision(spatial_merge_size=1), "spatial_merge_size is 1"),
    "activation": (vision(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "patch": (vision(patch_size=65), "patch_size is 65"),
    "width": (vision(out_hidden_size=32), "the language model has hidden_size 64"),
    "positions": (vision(num_position_embeddings=35), "must be a square number"),
    "order": (vision(deepstack_visual_indexes=[2, 1]), "in rising order"),
    "no number of one": (vision(deepstack_visual_indexes=[1, 2.5]), "layers from 0 to 4"),
    "twice": (vision(deepstack_visual_indexes=[1, 1]), "in rising order"),
    "no such layer": (vision(deepstack_visual_indexes=[1, 5]), "layers from 0 to 4"),
    "too many": (vision(deepstack_visual_indexes=[0, 1, 2]), "above 3, the number of deepstack layers"),
    "biases": (text(attention_bias=True), "attention_bias is True"),
    "text activation": (text(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "in a row": (rope(mrope_interleaved=False), "mrope_interleaved is False"),
    "time": (rope(mrope_section=[10, 3, 3]), "at most a third of the 16"),
    "fast": (rope(rope_theta=10000.0), "at most a third of the 16"),
    "sections": (rope(mrope_section=[8, 4, 5]), "whose sum is 16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    change, message = REFUSED[name]
    assert message in refusal(checkpoint, change)


def test_patches_of_another_size(checkpoint: Path) -> None:
    """Where the file is silent, the image processor takes 14."""
    message = refusal(checkpoint, lambda images: images.pop("patch_size"), "preprocessor_config.json")
    assert "patch_size is missing" in message


def test_without_deepstack(checkpoint: Path) -> None:
    put(checkpoint / "config.json", {"vision_config.deepstack_visual_indexes": []})
    drop(checkpoint, "model.visual.deepstack_merger_list.")
    language, projector = parts(checkpoint)
    assert language.metadata["qwen3vl.n_deepstack_layers"] == 0
    assert not any("deepstack" in weight.name for weight in projector.weights)
