"""What is LLaVA-NeXT's own: the grid of tiles and what is cut off it, the files of others, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil, LlavaNextModel, LlavaNextProcessor

from checkpoints import parts, put, refusal
from pocketvlm import VLM
from pocketvlm.errors import ModelFormatError, PairingError, RequestError
from pocketvlm.files.bundle import Bundle
from pocketvlm.messages import Detail
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.families import find
from pocketvlm.vision.family import MosaicSpan
from pocketvlm_converters.gguf import write_projector
from pocketvlm_converters.weights import Part
from store import Store

pytestmark = pytest.mark.oracle

# As LLaVA 1.6 has them: height and width.
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
REAL: dict[str, Any] = {
    "clip.projector_type": "mlp",
    "clip.vision.image_size": 336,
    "clip.vision.patch_size": 14,
    "clip.vision.image_grid_pinpoints": [edge for height, width in GRIDS for edge in (width, height)],
}
SIZES = [
    (336, 336),
    (337, 336),
    (7, 5),
    (300, 60),
    (60, 300),
    (4000, 3000),
    (1000, 10),
    (10, 1000),
    (999, 333),
    (672, 673),
]
_RNG = Random(0)
SIZES += [(_RNG.randrange(2, 1500), _RNG.randrange(2, 1500)) for _ in range(60)]


def planner(**changed: Any) -> Any:
    found = find(REAL | {f"clip.vision.{key}": value for key, value in changed.items()})
    assert found is not None and found[0] == "llava_next"
    return found[1]


def packed(size: tuple[int, int], tiles: int) -> list[int]:
    """What transformers makes of a picture's embeddings, in numbers: tile * 1000 + place, -1 for a row's end."""
    vision = SimpleNamespace(image_size=336, patch_size=14)
    model: Any = SimpleNamespace(config=SimpleNamespace(image_grid_pinpoints=GRIDS, vision_config=vision))
    features = (1000 * torch.arange(tiles)[:, None] + torch.arange(576))[..., None].float()
    (found,), _ = LlavaNextModel.pack_image_features(
        model, [features], torch.tensor([size[::-1]]), "default", torch.tensor([-1.0])
    )
    return found[:, 0].int().tolist()


def arranged(plan: Any) -> list[int]:
    """The same of our plan."""
    found: list[int] = []
    for mosaic in plan.layout:
        assert isinstance(mosaic, MosaicSpan)
        for number in mosaic.order:
            tile, place = divmod(number, 577)
            found.append(-1 if place == 576 else 1000 * mosaic.tiles[tile].index + place)
    return found


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_grid_as_transformers_packs_it(size: tuple[int, int]) -> None:
    plan = planner().plan(size, "high", None)
    assert plan.canvas is not None
    tiles = 1 + plan.canvas[0] * plan.canvas[1] // 336**2
    assert arranged(plan) == packed(size, tiles)
    assert plan.tokens == len(packed(size, tiles))
    assert plan.tiles == (tiles if plan.tokens > 576 else 1), "of a line nothing is left but the whole"
    words = SimpleNamespace(image_token="<image>", image_token_id=0, encode=lambda *_, **__: [0])
    processor: Any = SimpleNamespace(image_processor=SimpleNamespace(image_grid_pinpoints=GRIDS), patch_size=14)
    processor.num_additional_image_tokens, processor.tokenizer = 0, words
    processor._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(processor)
    counted = LlavaNextProcessor._get_number_of_features(processor, size[1], size[0], 336, 336)
    assert plan.tokens == counted


def test_one_tile_ends_as_transformers_ends_it() -> None:
    for size, detail in (((336, 200), "auto"), ((4000, 3000), "low"), ((20, 20), "auto")):
        plan = planner().plan(size, detail, None)
        assert arranged(plan) == packed(size, 1) == [*range(576), -1]
        assert plan.shrunk == (size == (4000, 3000))


@pytest.mark.parametrize("size", [(90, 70), (300, 60), (60, 300), (7, 5), (112, 112), (333, 334)])
def test_the_same_pixels(size: tuple[int, int]) -> None:
    grids = [[56 * height // 336, 56 * width // 336] for height, width in GRIDS]
    reference = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_grid_pinpoints=grids,
        do_rescale=False,
        do_normalize=False,
    )
    family = planner(image_size=56, image_grid_pinpoints=[edge for height, width in grids for edge in (width, height)])
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wanted = np.asarray(reference(Image.fromarray(picture))["pixel_values"][0])
    found = np.stack(family.tiles(picture, family.plan(size, "high", None)))
    assert np.array_equal(found, np.moveaxis(wanted, 1, -1))


@pytest.mark.parametrize(
    ("most", "tokens", "tiles"),
    [(10_000, 2340, 5), (2340, 2340, 5), (2339, 1368, 3), (1367, 1026, 3), (1025, 577, 1), (577, 577, 1)],
)
def test_as_many_tiles_as_are_allowed(most: int, tokens: int, tiles: int) -> None:
    plan = planner().plan((4000, 3000), "high", most)
    assert (plan.tokens, plan.tiles) == (tokens, tiles)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([336], "pairs"),
        ([336, 672.0], "pairs"),
        ([336, "672"], "pairs"),
        ([336, 500], "multiples of 336"),
        ([336, -336], "multiples of 336"),
        ([0, 336], "multiples of 336"),
        ([336, 336 * 65], "64 times"),
    ],
)
def test_nonsense_is_refused(told: Any, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        family_of(REAL | {"clip.vision.image_grid_pinpoints": told}, Path("x.gguf"))


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newline": (lambda c: c.update(use_image_newline_parameter=False), "use_image_newline_parameter is False"),
    "multiples": (lambda c: c.update(image_grid_pinpoints=[[56, 100]]), "image_grid_pinpoints is [[56, 100]]"),
    "pairs": (lambda c: c.update(image_grid_pinpoints=[[56]]), "must be a list of pairs"),
    "window": (lambda c: c["text_config"].update(sliding_window=1024), "text_config.sliding_window is 1024"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, checkpoint: Path) -> None:
    work, message = REFUSED[name]
    if name == "multiples":
        put(checkpoint / "processor_config.json", {"image_processor.image_grid_pinpoints": [[56, 100]]})
    assert message in refusal(checkpoint, work)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_grid_pinpoints": [[56, 112]]}, "config.json has other grids"),
        ({"size": {"shortest_edge": 112}}, "size.shortest_edge is 112"),
        ({"crop_size": {"height": 112, "width": 56}}, "crop_size.height is 112"),
        ({"do_normalize": False}, "do_normalize is False"),
    ],
)
def test_refused_preprocessing(values: dict[str, Any], message: str, checkpoint: Path) -> None:
    told = refusal(checkpoint, lambda found: found["image_processor"].update(values), "processor_config.json")
    assert message in told


@pytest.fixture(scope="module")
def bundle(pristine: Path, store: Store) -> Any:
    return Bundle(store.bundle(pristine))


def loose(part: Part, folder: Path) -> Path:
    path = folder / "loose.gguf"
    write_projector(part, path, "f32")
    return path


def test_files_of_another_converter(bundle: Any, pristine: Path, tmp_path: Path) -> None:
    """They call the end of a row otherwise, and have the width of CLIP's own projection."""
    part = parts(pristine)[1]
    metadata = {key: value for key, value in part.metadata.items() if not key.startswith("pocketvlm.")}
    metadata["clip.vision.projection_dim"] = 768
    renamed = tuple(replace(w, name=w.name.replace("v.image_n", "model.image_n")) for w in part.weights)
    path = loose(Part("clip", metadata, renamed), tmp_path)
    with VLM.load(bundle.file("model"), mmproj=path) as vlm, VLM.load(bundle.path, vision="gguf") as own:
        assert vlm.chat(message(), max_tokens=8).text == own.chat(message(), max_tokens=8).text
    lacking = tuple(weight for weight in part.weights if weight.name != "v.image_newline")
    with pytest.raises(ModelFormatError, match=r"has no v\.image_newline"):
        VLM.load(bundle.file("model"), mmproj=loose(replace(part, weights=lacking), tmp_path))


def test_the_width_is_that_of_the_last_bias(bundle: Any, pristine: Path, tmp_path: Path) -> None:
    part = parts(pristine)[1]
    cut = [
        replace(w, tensor=replace(w.tensor, data=w.tensor.data[:60])) if w.name == "mm.2.bias" else w
        for w in part.weights
    ]
    with pytest.raises(PairingError, match="60 wide"):
        VLM.load(bundle.file("model"), mmproj=loose(replace(part, weights=tuple(cut)), tmp_path))


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8))


def message(picture: Image.Image | None = None, text: str = "What?", detail: Detail = "high") -> list[dict[str, Any]]:
    image = {"type": "image", "image": picture or photo(), "detail": detail}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


@pytest.fixture(params=[1, 2])
def vlm(bundle: Any, request: pytest.FixtureRequest) -> Iterator[VLM]:
    with VLM.load(bundle.path, vision="onnx", parallel=request.param) as loaded:
        yield loaded


def test_tiles_are_encoded_and_kept_one_by_one(vlm: VLM) -> None:
    """Each tile of a mosaic counts, shows as progress, and is found again in another picture."""
    told: list[tuple[int, int]] = []
    first = vlm.chat(message(), max_tokens=2, progress=lambda done, total: told.append((done, total)))
    (image,) = first.timings.images
    assert (image.tiles, image.encoded) == (5, 5)
    assert told[:5] == [(done, 5) for done in range(5)]
    (again,) = vlm.chat(message(text="Why?"), max_tokens=2).timings.images
    assert (again.cache, again.encoded) == ("kv", 0)
    changed = photo()
    changed.paste((0, 0, 0), (100, 100, 112, 112))  # within the last tile
    (other,) = vlm.chat(message(changed), max_tokens=2).timings.images
    assert (other.tiles, other.encoded) == (5, 2), "the whole picture and one tile"
    (small,) = vlm.chat(message(detail="low"), max_tokens=2).timings.images
    assert (small.tiles, small.encoded, small.tokens) == (1, 0, 17)
    with pytest.raises(RequestError, match="this model needs 17"):
        vlm.chat([{**message()[0], "content": [{**message()[0]["content"][0], "max_image_tokens": 16}]}])


def test_without_a_cache_no_tile_is_encoded_twice(bundle: Any) -> None:
    with (
        VLM.load(bundle.path, vision="gguf", picture_cache_size=0) as bare,
        VLM.load(bundle.path, vision="gguf") as usual,
    ):
        answers = [vlm.chat(message(), max_tokens=8) for vlm in (bare, usual)]
    assert answers[0].text == answers[1].text
    assert [answer.timings.images[0].encoded for answer in answers] == [5, 5]
