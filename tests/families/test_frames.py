"""Videos of families that see one frame at a time: texts, tiles and logits as in transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor
from transformers.models.smolvlm import processing_smolvlm

from engine_seam import units_of
from families.test_faithful import cosines, divergence
from families.test_videos import answered, asked, frames_of, inputs_of, logits_of
from pocketvlm import VLM
from pocketvlm.errors import RequestError
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.families.smolvlm import _in_words
from store import EXACT, Store
from tiny import families
from video_processors import video_processor
from videos import lossless


@dataclass
class Case:
    reference: Any
    processor: Any
    bundle: Path
    image_token: int


class SmolVLMProcessor(processing_smolvlm.SmolVLMProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:  # noqa: ARG002
        return type(argument)


def smolvlm(store: Store, folder: Path) -> Case:
    """A checkpoint with settings for videos, as those of SmolVLM2 have them."""
    tiny: Any = families()["smolvlm"]
    checkpoint = Path(shutil.copytree(store.checkpoint("smolvlm"), folder / "checkpoint"))
    path = checkpoint / "processor_config.json"
    settings = json.loads(path.read_text())
    edge = 3 * tiny.TILE
    settings["image_processor"]["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": edge}}
    path.write_text(json.dumps(settings))
    pictures = AutoProcessor.from_pretrained(checkpoint)
    sizes = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tiny.TILE}}
    videos = video_processor("smolvlm", "SmolVLMVideoProcessor")(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    parts = (pictures.image_processor, pictures.tokenizer, videos, pictures.image_seq_len)
    processor = SmolVLMProcessor(*parts, chat_template=processing_smolvlm.DEFAULT_CHAT_TEMPLATE)
    return Case(tiny.model(), processor, converted(checkpoint, folder), tiny.tokenizer().token_to_id("<image>"))


def internvl(store: Store, folder: Path) -> Case:  # noqa: ARG001
    tiny: Any = families()["internvl"]
    checkpoint = store.checkpoint("internvl")
    processor = tiny.processor(checkpoint)
    pictures = processor.image_processor
    processor.video_processor = video_processor("internvl", "InternVLVideoProcessor")(
        size={"height": tiny.TILE, "width": tiny.TILE}, image_mean=pictures.image_mean, image_std=pictures.image_std
    )
    return Case(tiny.model(), processor, store.bundle(checkpoint), processor.image_token_id)


def gemma4(store: Store, folder: Path) -> Case:  # noqa: ARG001
    tiny: Any = families()["gemma4"]
    checkpoint = store.checkpoint("gemma4")
    processor = tiny.processor(checkpoint)
    videos = video_processor("gemma4", "Gemma4VideoProcessor")
    processor.video_processor = videos(patch_size=tiny.PATCH, pooling_kernel_size=tiny.POOL)
    return Case(tiny.model(), processor, store.bundle(checkpoint), processor.video_token_id)


def converted(checkpoint: Path, folder: Path) -> Path:
    from pocketvlm_converters.convert import convert

    convert(checkpoint, folder / "bundle", **EXACT, verify=False)
    return folder / "bundle"


@pytest.fixture(scope="module", params=[smolvlm, internvl, gemma4], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made: Case = request.param(store, tmp_path_factory.mktemp("video"))
    return made


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def vlm(case: Case, request: pytest.FixtureRequest) -> Iterator[VLM]:
    with VLM.load(case.bundle, exact=True, vision=request.param) as loaded:
        yield loaded


@pytest.mark.parametrize("count", [1, 4])
def test_frames(case: Case, vlm: VLM, count: int) -> None:
    frames = frames_of(count, (150, 90))
    inputs = inputs_of(case, frames, rate=1)  # type: ignore[arg-type]
    messages, seen = asked(lossless(frames, rate=1), count), list[Any]()
    units = units_of(vlm, messages, seen)
    ids = [i for unit in units for i in ([unit] if isinstance(unit, int) else unit.tokens * [case.image_token])]
    assert ids == inputs["input_ids"][0].tolist()
    rows = np.concatenate([seen[0][1].encode(unit) for unit in units if isinstance(unit, EmbeddingSpan)])
    wanted = features(case.reference, inputs)
    assert rows.shape == wanted.shape and cosines(rows, wanted).min() >= 0.9999
    assert divergence(logits_of(case.reference, inputs), answered(vlm, messages)) <= 1e-4


def test_a_limit_below_a_frame(case: Case, vlm: VLM) -> None:
    video = asked(lossless(frames_of(2, (150, 90)), rate=1), 2)[0]["content"][0]
    asking = [{"role": "user", "content": [{**video, "max_image_tokens": 15}]}]
    if "gemma4" in str(type(case.reference)):
        assert max(vlm.count_tokens(asking).images) <= 30
    else:
        with pytest.raises(RequestError, match="max_image_tokens is 15; this model needs 16 for frames of a video"):
            vlm.count_tokens(asking)


def features(model: Any, inputs: Any) -> Any:
    """Return the embeddings of all frames, float32 [tokens, width]."""
    with torch.no_grad():
        if "video_position_ids" in inputs:
            names = ("pixel_values_videos", "video_position_ids", "num_frames_per_video")
            found = model.model.get_video_features(**{name: inputs[name] for name in names})
        else:
            found = model.model.get_image_features(inputs["pixel_values"])
    rows = getattr(found, "pooler_output", found)
    rows = torch.cat(list(rows)) if isinstance(rows, list | tuple) else rows
    return rows.reshape(-1, rows.shape[-1]).float().numpy()


def test_numbers_in_words() -> None:
    numbers: ModuleType = pytest.importorskip("num2words")
    for number in (*range(130), 200, 999, 1000, 1001, 1100, 1234, 9999, 10_000, 12_345, 100_000):
        assert _in_words(number) == numbers.num2words(number)
