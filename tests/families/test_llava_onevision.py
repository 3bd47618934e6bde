"""What is LLaVA-OneVision's own: the embeddings of many tiles, pictures among others, types, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionModel,
    LlavaOnevisionProcessor,
)

from checkpoints import mmproj, onnx_encoder, put, refusal, worst
from pocketvlm import VLM
from pocketvlm.errors import ModelFormatError
from pocketvlm.native.llama import Model
from pocketvlm.native.mtmd import Mtmd
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.families import find
from pocketvlm_converters.families.llava_onevision import LlavaOnevision
from tiny import llava_onevision as tiny

pytestmark = pytest.mark.oracle

EDGES = range(384, 384 * 7, 384)
GRIDS = [[height, width] for height in EDGES for width in EDGES]  # as published, which is transformers' default
REAL: dict[str, Any] = {
    "clip.projector_type": "mlp",
    "clip.vision.image_size": 384,
    "clip.vision.patch_size": 14,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_grid_pinpoints": [edge for height, width in GRIDS for edge in (width, height)],
    "pocketvlm.anyres_max": 9,
}
PLACES = 730  # rows of a tile, with the end of a row
_RNG = Random(0)
SIZES = [(384, 384), (7, 5), (1000, 10), (10, 1000), (2304, 2304), (4000, 3000), (385, 384)]
SIZES += [(_RNG.randrange(2, 3000), _RNG.randrange(2, 3000)) for _ in range(60)]


def planner(**changed: Any) -> Any:
    match = find(REAL | changed)
    assert match is not None and match[0] == "llava_onevision"
    return match[1]


def test_as_many_embeddings_as_the_reference() -> None:
    family = planner()
    processor: Any = SimpleNamespace(image_processor=SimpleNamespace(image_grid_pinpoints=GRIDS), num_image_tokens=729)
    processor.vision_aspect_ratio = "anyres_max_9"
    processor._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features.__get__(processor)
    shrunk = 0
    for width, height in SIZES:
        plan = family.plan((width, height), "high", None)
        counted = LlavaOnevisionProcessor._get_number_of_features(processor, height, width, 384, 384)
        assert plan.tokens == counted == family._tokens((width, height), plan.canvas), (width, height)
        shrunk += bool(plan.layout[-1].weights)
        auto = family.plan((width, height), "auto", None)
        assert auto.tiles <= 10 and not any(mosaic.weights for mosaic in auto.layout)
        one = family.among_others.plan((width, height), "high", None)
        assert (one.tokens, one.tiles) == (family.plan((width, height), "low", None).tokens, 1) == (730, 1)
    assert 20 < shrunk < 50


@pytest.mark.parametrize("size", [(4000, 3000), (1500, 2900), (2304, 1100), (900, 700), (7, 5)])
def test_embeddings_as_transformers_packs_them(size: tuple[int, int]) -> None:
    """Random ones of two values each: what is left of a grid, and where its rows end."""
    plan = planner().plan(size, "high", None)
    tiles = 1 + plan.canvas[0] * plan.canvas[1] // 384**2
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(tiles, 729, 2)).astype(np.float32))
    config = SimpleNamespace(image_grid_pinpoints=GRIDS, vision_config=SimpleNamespace(image_size=384, patch_size=14))
    newline = torch.tensor([9.0, -9.0])
    (wanted,), _ = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config), [features], torch.tensor([size[::-1]]), newline, "anyres_max_9"
    )
    ends = newline.expand(tiles, 1, 2)
    rows = torch.cat([features, ends], dim=1).numpy()
    made = []
    for mosaic in plan.layout:
        order = np.array(mosaic.order).reshape(mosaic.tokens, -1 if mosaic.weights else 1)
        weights = np.array(mosaic.weights, np.float32) if mosaic.weights else None
        positions = np.zeros((1, mosaic.tokens), np.int32)
        order = order if mosaic.weights else order[:, 0]
        span = EmbeddingSpan("", 0, positions, mosaic.tokens, parts=(), order=order, weights=weights)
        made.append(span.arranged([rows[tile.index] for tile in mosaic.tiles]))
    assert np.allclose(np.concatenate(made), wanted.numpy(), atol=1e-3)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("size", [(90, 70), (300, 60), (60, 300), (7, 5), (120, 120), (333, 334)])
def test_the_same_pixels(size: tuple[int, int], several: bool) -> None:
    reference = LlavaOnevisionImageProcessorPil(
        size={"height": 60, "width": 60},
        image_grid_pinpoints=tiny.GRIDS,
        image_mean=[0.5, 0.4, 0.6],
        do_rescale=False,
        do_normalize=False,
    )
    grids = [edge for height, width in tiny.GRIDS for edge in (width, height)]
    changed = {"image_size": 60, "image_grid_pinpoints": grids, "image_mean": [0.5, 0.4, 0.6]}
    family = planner(**{f"clip.vision.{key}": value for key, value in changed.items()})
    family = family.among_others if several else family
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pictures = [[Image.fromarray(picture)] * (1 + several)]
    wanted = np.asarray(reference(pictures)["pixel_values"][0])
    tiles = np.stack(family.tiles(picture, family.plan(size, "high", None)))
    assert np.array_equal(tiles, np.moveaxis(wanted, 1, -1))


@pytest.mark.parametrize(("most", "tokens"), [(10_000, 7309), (7308, 7215), (3000, 2929), (730, 730)])
def test_as_many_as_are_allowed(most: int, tokens: int) -> None:
    assert planner().plan((4000, 3000), "high", most).tokens == tokens


@pytest.mark.parametrize("vision", ["gguf", "onnx"])
def test_a_picture_that_gets_company(bundle: Path, vision: Any) -> None:
    """It is seen as one tile from then on, and not taken for the same tile of its grid."""
    rng = np.random.default_rng(0)
    first, second = (Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)) for _ in range(2))
    parts = [{"type": "image", "image": picture, "detail": "high"} for picture in (first, second)]
    text = {"type": "text", "text": "What?"}
    with VLM.load(bundle, vision=vision) as vlm, VLM.load(bundle, vision=vision, picture_cache_size=0) as bare:
        for loaded in (vlm, bare):
            alone = loaded.chat([{"role": "user", "content": [parts[0], text]}], max_tokens=2)
            assert alone.timings.images[0].tiles == 5
        answers = [loaded.chat([{"role": "user", "content": [*parts, text]}], max_tokens=8) for loaded in (vlm, bare)]
        assert [[image.tiles for image in answer.timings.images] for answer in answers] == [[1, 1]] * 2
        assert answers[0].text == answers[1].text


@pytest.mark.parametrize("value", [0, 1 << 13, "9"])
def test_nonsense_is_refused(value: Any) -> None:
    with pytest.raises(ModelFormatError, match="anyres_max"):
        family_of(REAL | {"pocketvlm.anyres_max": value}, Path("x.gguf"))


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "aspect": (lambda c: c.update(vision_aspect_ratio="pad"), "vision_aspect_ratio is 'pad'"),
    "none": (lambda c: c.update(vision_aspect_ratio="anyres_max_0"), "expected anyres_max_ and a number"),
    "decoder": (lambda c: c["text_config"].update(model_type="llama"), "model_type is 'llama'"),
    "encoder": (lambda c: c["vision_config"].update(model_type="clip_vision_model"), "select_strategy is 'full'"),
    "layers": (lambda c: c.update(vision_feature_layer=[-1, -2]), "vision_feature_layer"),
    "selection": (lambda c: c.update(vision_feature_select_strategy="default"), "select_strategy is 'default'"),
    "window": (lambda c: c["text_config"].update(use_sliding_window=True), "use_sliding_window is True"),
    "newline": (lambda c: c.update(use_image_newline_parameter=False), "use_image_newline_parameter is False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    work, message = REFUSED[name]
    put(checkpoint / "processor_config.json", {"vision_aspect_ratio": "anyres_max_0"} if name == "none" else {})
    if name == "aspect":
        put(checkpoint / "processor_config.json", {"vision_aspect_ratio": "pad"})
    assert message in refusal(checkpoint, work)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor.size": {"height": 60, "width": 56}}, "size.width is 56"),
        ({"image_processor.image_grid_pinpoints": [[60, 60]]}, "config.json has other grids"),
        ({"image_processor.do_center_crop": True}, "do_center_crop"),
        ({"image_processor.resample": 1}, "resample is 1"),
        ({"vision_aspect_ratio": "anyres_max_9"}, "vision_aspect_ratio is 'anyres_max_9'"),
        ({"num_image_tokens": 729}, "num_image_tokens is 729"),
    ],
)
def test_refused_preprocessing(values: dict[str, Any], message: str, checkpoint: Path) -> None:
    def work(processor: dict[str, Any]) -> None:
        for where, value in values.items():
            *parents, last = where.split(".")
            (processor[parents[0]] if parents else processor)[last] = value

    assert message in refusal(checkpoint, work, "processor_config.json")


def test_the_defaults_are_those_of_transformers() -> None:
    assert LlavaOnevision.default_grids == LlavaOnevisionConfig().image_grid_pinpoints == GRIDS


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)


def rows_of(model: Any, folder: Path) -> Any:
    inputs = tiny.processor(folder).image_processor([[Image.fromarray(noise())] * 2], return_tensors="pt")
    with torch.no_grad():
        return model.model.get_image_features(**inputs).pooler_output[0].numpy()


@pytest.mark.parametrize(("kind", "least"), {"fp16": 0.9999, "int8": 0.99, "int4": 0.85}.items())
def test_onnx_types(kind: str, least: float, pristine: Path, reference: Any, tmp_path: Path) -> None:
    encoder = onnx_encoder(pristine, kind, tmp_path)
    assert worst(encoder.encode_tile(noise()), rows_of(reference, pristine)) >= least


@pytest.mark.parametrize(("kind", "least"), [("f16", 0.9999), ("q8_0", 0.99)])
def test_mmproj_types(kind: str, least: float, pristine: Path, bundle: Path, reference: Any, tmp_path: Path) -> None:
    wanted = rows_of(reference, pristine)[:-1]
    with (
        Model(bundle / "model-F32.gguf") as language,
        Mtmd(mmproj(pristine, kind, tmp_path), language, threads=1, tile_tokens=len(wanted)) as encoder,
    ):
        assert worst(encoder.encode_tile(noise()), wanted) >= least
