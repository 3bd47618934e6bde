"""What is Mistral 3's own: sizes, rows that end with a token, projectors of other shapes, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from checkpoints import change, onnx_encoder, parts, refusal, worst
from engine_seam import session_of
from pocketvlm import VLM
from pocketvlm.errors import ModelFormatError, TokenizerError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision import families
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.encoder import VisionEncoder
from pocketvlm.vision.families.mistral3 import Mistral3
from pocketvlm.vision.family import TileSpan
from pocketvlm.vision.mtmd import MtmdEncoder
from pocketvlm.vision.onnx import OnnxEncoder
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.families import find_family
from pocketvlm_converters.gguf import write_projector
from store import Store
from tiny import mistral3 as tiny

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
Edit = Callable[[dict[str, Any]], Any]
KNOWN = Mistral3(28, 1540)
SIZES = [(1, 1), (1, 3000), (27, 29), (28, 28), (42, 70), (640, 480), (1023, 33), (4032, 3024), (9000, 60)]
GRIDS = [(1, 1), (1, 2), (2, 1), (3, 5), (1, 15), (15, 1), (15, 15)]
LEAST = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.999, "int4": 0.95}.items()


def tokens(size: tuple[int, int], detail: Any, most: int | None = None, family: Mistral3 = KNOWN) -> int:
    plan = family.plan(size, detail, most)
    slot, end = plan.layout
    assert isinstance(slot, TileSpan) and end == "[IMG_END]"
    rows, cols = slot.grid
    assert plan.used == (cols * family.factor, rows * family.factor)
    assert plan.tokens == rows * (cols + 1) - 1 <= family.tile_tokens
    assert slot.control == dict.fromkeys(range(cols, plan.tokens, cols + 1), "[IMG_BREAK]")
    return plan.tokens


@pytest.mark.parametrize("family", [KNOWN, Mistral3(16, 1024), Mistral3(28, 400)], ids=str)
def test_sizes_are_the_reference(family: Mistral3) -> None:
    rng = np.random.default_rng(0)
    for width, height in [*SIZES, *np.exp(rng.uniform(0, 9, (2000, 2))).astype(int).tolist()]:
        picture = np.broadcast_to(np.uint8(0), (height, width, 3))
        wanted = get_resize_output_image_size(picture, family.longest, family.factor, "channels_last")[::-1]
        if 0 in wanted:  # which the reference cannot resize to
            wanted = tuple(max(family.factor, edge) for edge in wanted)
        assert family.plan((width, height), "high").used == wanted
        tokens((width, height), "high", family=family)


@pytest.mark.parametrize("size", [(90, 70), (640, 480), (50, 1711)])
def test_pixels_are_the_reference(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    (tile,) = KNOWN.tiles(picture, KNOWN.plan(size, "high"))
    same = tiny.PixtralImageProcessorPil(size={"longest_edge": 1540}, do_normalize=False, do_rescale=False)
    wanted = same(images=[Image.fromarray(picture)], patch_size=28, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(tile, wanted.transpose(1, 2, 0))


def test_details() -> None:
    assert tokens((4032, 3024), "high") == 42 * 56 - 1
    assert 900 < tokens((4032, 3024), "auto") <= 1024
    assert 200 < tokens((4032, 3024), "low") <= 256
    assert KNOWN.plan((640, 480), "auto") == KNOWN.plan((640, 480), "high")
    assert KNOWN.plan((300, 200), "low") == KNOWN.plan((300, 200), "high")
    assert KNOWN.plan((4032, 3024), "auto").shrunk and not KNOWN.plan((300, 200), "auto").shrunk


@pytest.mark.parametrize("most", [1, 2, 3, 16, 100, 1000])
def test_max_image_tokens(most: int) -> None:
    for size in SIZES:
        for detail in ("low", "auto", "high"):
            found, free = tokens(size, detail, most), tokens(size, detail)
            assert 1 <= found <= most
            assert found == free or most < free


@pytest.fixture(scope="module")
def reference() -> Any:
    made = tiny.model(biased=True)
    with torch.no_grad():  # trained layers change less of what passes them, and quantization costs less
        for name, weight in made.model.vision_tower.named_parameters():
            if name.endswith("proj.weight"):
                weight.mul_(0.5)
    return made


@pytest.fixture(scope="module")
def pristine(reference: Any, store: Store) -> Path:
    return store.get(lambda folder: tiny.save(reference, folder), "checkpoint", "mistral3", "of half the weights")


@pytest.fixture(scope="module")
def pixtral(store: Store) -> Path:
    return store.checkpoint("mistral3", **tiny.VARIANTS["pixtral"])


def tile_of(rows: int, cols: int) -> Array:
    return np.random.default_rng(rows * 1000 + cols).integers(0, 256, (rows * 28, cols * 28, 3), np.uint8)


def wanted(model: Any, folder: Path, tile: Array) -> Array:
    """With the row ends, which transformers takes from the language model's table."""
    images = tiny.processor(folder).image_processor
    inputs = images(images=[Image.fromarray(tile)], do_resize=False, return_tensors="pt")
    rows, cols = tile.shape[0] // 28, tile.shape[1] // 28
    with torch.no_grad():
        (seen,) = model.get_image_features(**inputs).pooler_output
        end = model.get_input_embeddings().weight[tiny.tokenizer().token_to_id("[IMG_BREAK]")]
    return np.insert(seen.numpy(), np.arange(cols, rows * cols, cols), end.detach().numpy(), axis=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_tile_of_any_size_passes_as_it_is(
    grid: tuple[int, int], reference: Any, pristine: Path, encoder: VisionEncoder
) -> None:
    tile = tile_of(*grid)
    assert worst(encoder.encode_tile(tile), wanted(reference, pristine, tile)) >= 0.9999


@pytest.mark.parametrize(("kind", "least"), LEAST)
def test_onnx_types(kind: str, least: float, reference: Any, pristine: Path, tmp_path: Path) -> None:
    made = onnx_encoder(pristine, kind, tmp_path)
    tile = tile_of(4, 5)
    assert worst(made.encode_tile(tile), wanted(reference, pristine, tile)) >= least


def test_several_tiles_at_once(bundle: Path) -> None:
    made = OnnxEncoder(read_onnx(bundle / "vision-fp32.onnx"), threads=1)
    tiles = np.stack([tile_of(5, 6), tile_of(6, 5).transpose(1, 0, 2)])
    (together,) = session_of(made).run(None, {"pixels": tiles})
    for tile, rows in zip(tiles, together, strict=True):
        assert np.abs(made.encode_tile(tile) - rows).max() < 1e-4 * np.abs(rows).max()


def test_row_ends_are_not_what_libmtmd_leaves_there(bundle: Path) -> None:
    """It multiplies memory by 0 that nobody has set: often NaN where other pictures were encoded before."""
    header = read_header(bundle / "mmproj-f32.gguf")
    end = header.vector("v.token_embd.img_break")
    assert end is not None and end.shape == (64,)
    with Model(bundle / "model-F32.gguf") as model:
        made = MtmdEncoder(Mtmd(header.path, model, threads=1, tile_tokens=1000), header, Mistral3(28, tiny.LONGEST))
        for rows, cols in ((15, 15), (3, 2), (14, 11), (2, 9), (15, 11)):
            found = made.encode_tile(tile_of(rows, cols))
            assert np.isfinite(found).all()
            assert (found[cols :: cols + 1] == end).all() and len(found[cols :: cols + 1]) == rows - 1


def test_row_ends_of_another_width_are_refused(pristine: Path, bundle: Path, tmp_path: Path) -> None:
    """libmtmd would end the process."""
    part = parts(pristine)[1]
    weights = [
        replace(weight, tensor=replace(weight.tensor, data=weight.tensor.data[:48]))
        if weight.name == "v.token_embd.img_break"
        else weight
        for weight in part.weights
    ]
    write_projector(replace(part, weights=tuple(weights)), tmp_path / "mmproj.gguf", "f32")
    with pytest.raises(ModelFormatError, match="48 values, the language model takes 64"):
        VLM.load(bundle / "model-F32.gguf", mmproj=tmp_path / "mmproj.gguf")


def test_files_of_another_converter(bundle: Path) -> None:
    metadata = read_header(bundle / "mmproj-f32.gguf").metadata
    assert families.find(metadata) == ("mistral3", Mistral3(28, tiny.LONGEST))
    del metadata["clip.vision.spatial_merge_size"]
    assert families.find(metadata) == ("mistral3", Mistral3(14, tiny.LONGEST))
    del metadata["clip.vision.image_size"]
    with pytest.raises(ModelFormatError, match="image_size"):
        family_of(metadata, bundle)


def scaled(**values: Any) -> Edit:
    """The decoder of Ministral 3, with other positions."""
    rope = tiny.SCALED | values
    return lambda c: c["text_config"].update(model_type="ministral3", rope_parameters=rope)


REFUSED: dict[str, tuple[Edit, str]] = {
    "layer": (lambda c: c.update(vision_feature_layer=-2), "vision_feature_layer is -2"),
    "projector": (lambda c: c.update(projector_hidden_act="relu"), "projector_hidden_act is 'relu'"),
    "encoder": (lambda c: c["vision_config"].update(model_type="clip"), "vision_config.model_type is 'clip'"),
    "activation": (lambda c: c["vision_config"].pop("hidden_act"), "vision_config.hidden_act is missing"),
    "channels": (lambda c: c["vision_config"].update(num_channels=1), "num_channels is 1"),
    "heads": (lambda c: c["vision_config"].update(num_attention_heads=32), "multiple of 4"),
    "head_dim": (lambda c: c["vision_config"].update(head_dim=32), "head_dim is 32"),
    "square": (lambda c: c["vision_config"].update(intermediate_size=64), "libmtmd misreads"),
    "theta": (lambda c: c["vision_config"]["rope_parameters"].update(rope_theta=5.0), "rope_theta is 5.0"),
    "old theta": (lambda c: c["vision_config"].update(rope_theta=5.0), "rope_theta is 5.0"),
    "rope": (lambda c: c["vision_config"]["rope_parameters"].update(rope_type="yarn"), "rope_type is 'yarn'"),
    "patches": (lambda c: c.update(spatial_merge_size=17), "spatial_merge_size is 17"),
    "text": (lambda c: c["text_config"].update(model_type="llama"), "text_config.model_type is 'llama'"),
    "text activation": (lambda c: c["text_config"].update(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "window": (lambda c: c["text_config"].update(sliding_window=32), "sliding_window is 32"),
    "window by default": (lambda c: c["text_config"].pop("sliding_window"), "sliding_window is missing"),
    "epsilon": (lambda c: c["text_config"].update(rms_norm_eps=1e-6), "rms_norm_eps is 1e-06"),
    "positions": (scaled(rope_type="default"), "rope_type is 'default'"),
    "no positions": (lambda c: c["text_config"].update(model_type="ministral3", rope_parameters=None), "is missing"),
    "no growth": (scaled(llama_4_scaling_beta=None), "llama_4_scaling_beta is missing"),
    "factor": (scaled(attention_factor=1.5), "attention_factor is 1.5"),
    "mscale": (scaled(mscale=0.7), "mscale is 0.7"),
    "truncate": (scaled(truncate=False), "truncate is False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, pristine: Path, tmp_path: Path) -> None:
    edit, message = REFUSED[name]
    assert message in refusal(Path(shutil.copytree(pristine, tmp_path / "checkpoint")), edit)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("vision_feature_layer"), "vision_feature_layer is missing"),
        (lambda c: c.pop("vision_feature_select_strategy"), "vision_feature_select_strategy is missing"),
        (lambda c: c["text_config"].update(model_type="ministral3"), "model_type is 'ministral3'"),
        (lambda c: c["text_config"].update(sliding_window=32), "sliding_window is 32"),
        (scaled(), "model_type is 'ministral3'"),
        (lambda c: c["text_config"].update(rope_parameters=tiny.SCALED), "rope scaling 'yarn' is not known"),
    ],
)
def test_refused_of_pixtral(edit: Edit, message: str, pixtral: Path, tmp_path: Path) -> None:
    assert message in refusal(Path(shutil.copytree(pixtral, tmp_path / "checkpoint")), edit)


def test_pixtral_has_no_norm_to_be_as_libmtmd_has_it(pixtral: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pixtral, tmp_path / "checkpoint"))
    change(folder / "config.json", lambda c: c["text_config"].update(rms_norm_eps=1e-6))
    language, projector = parts(folder)
    assert language.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert "clip.vision.spatial_merge_size" not in projector.metadata


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["image_processor"].update(resample=2), "resample is 2"),
        (lambda c: c["image_processor"].update(do_resize=False), "do_resize is False"),
        (lambda c: c["image_processor"].update(size={"longest_edge": 0}), "size.longest_edge is 0"),
        (lambda c: c.update(patch_size=16), "patch_size is 16"),
        (lambda c: c.pop("spatial_merge_size"), "spatial_merge_size is missing"),
    ],
)
def test_refused_preprocessing(edit: Edit, message: str, pristine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    assert message in refusal(folder, edit, "processor_config.json")


def test_a_vocabulary_without_row_ends(pristine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("[IMG_BREAK]", "[IMG_OTHER]"))
    with pytest.raises(TokenizerError, match=r"has no token '\[IMG_BREAK\]'"):
        find_family(Checkpoint(folder)).projector()
