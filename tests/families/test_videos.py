"""Videos of each family that was trained on them: tokens, positions and logits as in transformers.

The frames come from a lossless file, through the whole runtime. The reference gets the same frames.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers.video_utils import VideoMetadata

from engine_seam import generate, last_logits, units_of
from families.test_faithful import cosines, divergence, noise
from integration.asking import generation
from pocketvlm import VLM
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.families.qwen2_vl import Qwen2Video
from pocketvlm.vision.families.qwen3_vl import Qwen3Video
from pocketvlm.vision.video import Frames
from positions import CLIPS, positions
from store import Store
from tiny import Tiny, families
from video_processors import video_processor
from videos import lossless

pytestmark = pytest.mark.oracle

QWEN = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl", "qwen3_5": "qwen3_vl"}
CLASSES = {"qwen2_vl": "Qwen2VLVideoProcessor", "qwen3_vl": "Qwen3VLVideoProcessor"}
RATE = 2  # frames in a second
RELEASED = {clip["family"] for clip in CLIPS}  # families with positions of the first version
QUESTION = "What happens?"


def frames_of(count: int, size: tuple[int, int] = (390, 90)) -> list[Any]:
    whole = np.asarray(noise(size[0] + 16 * count, size[1]))
    return [np.ascontiguousarray(whole[:, 16 * at : 16 * at + size[0]]) for at in range(count)]


def metadata(count: int, rate: float) -> VideoMetadata:
    """Return what a decoder says of frames in the middle of `count` equal parts of a video."""
    indices = [2 * number + 1 for number in range(count)]
    return VideoMetadata(total_num_frames=2 * count, fps=2 * rate, duration=count / rate, frames_indices=indices)


@dataclass
class Pair:
    reference: Any
    processor: Any
    bundle: Path


@pytest.fixture(scope="module", params=QWEN)
def pair(request: pytest.FixtureRequest, store: Store) -> Pair:
    tiny: Tiny = families()[request.param]
    checkpoint = store.checkpoint(request.param)
    kind = QWEN[request.param]
    videos = video_processor(kind, CLASSES[kind]).from_pretrained(checkpoint)
    processor = with_videos(tiny.processor(checkpoint), videos)
    return Pair(tiny.model(), processor, store.bundle(checkpoint))


def with_videos(processor: Any, videos: Any) -> Any:
    processor.video_processor = videos
    return processor


@pytest.fixture(scope="module")
def vlm(pair: Pair) -> Iterator[VLM]:
    with VLM.load(pair.bundle, exact=True, vision="onnx") as loaded:
        yield loaded


def inputs_of(pair: Pair, frames: list[Any], rate: float = RATE) -> Any:
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    text = pair.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    return pair.processor(
        text=[text],
        videos=[np.stack(frames)],
        video_metadata=[metadata(len(frames), rate)],
        do_sample_frames=False,
        add_special_tokens=False,
        return_tensors="pt",
    )


def asked(data: bytes, count: int) -> list[dict[str, Any]]:
    video = {"type": "file", "image": data, "frames": count, "detail": "high"}
    return [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("count", [3, 4, 7])
def test_video(pair: Pair, vlm: VLM, count: int) -> None:
    frames = frames_of(count)
    inputs = inputs_of(pair, frames)
    messages, seen = asked(lossless(frames), count), list[Any]()
    units = units_of(vlm, messages, seen)
    token = pair.reference.config.video_token_id
    ids = [i for unit in units for i in ([unit] if isinstance(unit, int) else unit.tokens * [token])]
    assert ids == inputs["input_ids"][0].tolist()
    assert np.array_equal(positions(units), own_positions(pair, inputs))

    spans = [unit for unit in units if isinstance(unit, EmbeddingSpan)]
    assert len(spans) == (count + 1) // 2
    rows = np.concatenate([seen[0][1].encode(span) for span in spans])
    wanted = embeddings(pair.reference, inputs)
    assert rows.shape == wanted.shape and cosines(rows, wanted).min() >= 0.9999
    assert np.abs(rows - wanted).max() <= 0.01 * np.abs(wanted).max()

    assert divergence(logits_of(pair.reference, inputs), answered(vlm, messages)) <= 1e-4


@pytest.mark.parametrize("count", [9, 10])
def test_video_that_is_longer_than_its_frames_are_large(pair: Pair, vlm: VLM, count: int) -> None:
    """transformers 5.3 and later give the text after such a clip positions among its tiles.

    The first version with the model let it continue after the largest position. The answer is the model's at these.
    """
    frames = frames_of(count, (90, 70))
    inputs = inputs_of(pair, frames)
    messages = asked(lossless(frames), count)
    wanted = own = own_positions(pair, inputs)
    if (family := pair.reference.config.model_type) in RELEASED:
        wanted = released_positions(family, count, inputs)
        assert not np.array_equal(wanted, own)
    assert np.array_equal(positions(units_of(vlm, messages)), wanted)
    logits = logits_of(pair.reference, inputs, position_ids=torch.from_numpy(wanted)[:, None])
    assert divergence(logits, answered(vlm, messages)) <= 1e-4


def released_positions(family: str, count: int, inputs: Any) -> Any:
    """Return positions of the first version with the model, int64 [3, tokens]. Its prompt must be that of `inputs`."""
    clip = next(clip for clip in CLIPS if (clip["family"], clip["frames"], clip["rate"]) == (family, count, RATE))
    (rows, cols), (before, after) = clip["grid"], clip["text"]
    video = (count + 1) // 2 * rows * cols
    assert inputs["video_grid_thw"].tolist() == [[(count + 1) // 2, 2 * rows, 2 * cols]]
    assert inputs["mm_token_type_ids"][0].tolist() == [0] * before + [2] * video + [0] * after
    return np.array(clip["positions"])


def own_positions(pair: Pair, inputs: Any) -> Any:
    names = {"input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts"} & inputs.keys()
    found, _ = pair.reference.model.get_rope_index(**{name: inputs[name] for name in names})
    return found[:, 0].numpy()


def logits_of(model: Any, inputs: Any, **more: Any) -> Any:
    with torch.no_grad():
        logits = model(**inputs, **more).logits[0, -1].double().numpy()
    assert logits.std() > 0.1, "the model must say something"
    return logits


def answered(vlm: VLM, messages: list[Any]) -> Any:
    assert list(generate(vlm, generation(vlm, messages, 1)))
    return last_logits(vlm).astype(np.float64)


def embeddings(model: Any, inputs: Any) -> Any:
    with torch.no_grad():
        found = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    features = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
    parts = [torch.cat(list(rows)) if isinstance(rows, list | tuple) else rows for rows in features]
    return torch.cat(parts, dim=-1).float().numpy()


def test_encoders_of_single_frames_show_pictures(pair: Pair, tmp_path: Path) -> None:
    """libmtmd takes one frame, and so do ONNX files of earlier versions: the answer says so."""
    older = tmp_path / "older"
    shutil.copytree(pair.bundle, older)
    take_one_frame(older / "vision-fp32.onnx")
    messages = asked(lossless(frames_of(3, (90, 70))), 3)
    for bundle, vision in ((pair.bundle, "gguf"), (older, "onnx")):
        with VLM.load(bundle, vision=vision, verify=False) as vlm:
            answer = vlm.chat(messages, max_tokens=1)
            images = answer.timings.images
            assert len(images) == 3 and "takes them one by one" in images[0].notes[0] and not images[1].notes
            assert any(isinstance(unit, EmbeddingSpan) for unit in units_of(vlm, messages))


def take_one_frame(path: Path) -> None:
    """Make an encoder as earlier versions wrote it, which takes three channels and doubles them."""
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 3
    for node in model.graph.node:
        node.input[:] = ["both" if name == "pixels" else name for name in node.input]
    model.graph.node.insert(0, onnx.helper.make_node("Concat", ["pixels", "pixels"], ["both"], axis=-1))
    onnx.save(model, path)
    manifest = path.with_name("manifest.json")
    entries = json.loads(manifest.read_text())
    entry = next(entry for entry in entries["files"] if entry["name"] == path.name)
    entry["size"] = path.stat().st_size
    manifest.write_text(json.dumps(entries))


@pytest.fixture(scope="module")
def bundle(store: Store) -> Path:
    return store.bundle(store.checkpoint("qwen2_5_vl"))


def test_videos_in_a_process_and_in_a_session(bundle: Path, tmp_path: Path) -> None:
    messages = asked(lossless(frames_of(3, (90, 70))), 3)
    with VLM.load(bundle, vision="onnx", exact=True) as vlm:
        answer = vlm.chat(messages, max_tokens=8)
        assert len(answer.timings.images) == 1 and answer.timings.images[0].tiles == 2
        assert answer.usage.prompt_tokens == vlm.count_tokens(messages).total
        vlm.save(tmp_path / "session")
        kept = vlm.restore(tmp_path / "session")
        assert [part["type"] for part in kept[0]["content"]] == ["text", "image"] * 3 + ["text"]
        assert vlm.chat([*kept, {"role": "user", "content": "And then?"}], max_tokens=2).text
    with VLM.load(bundle, vision="onnx", exact=True, supervised=True) as apart:
        assert apart.chat(messages, max_tokens=8).text == answer.text


def test_a_second_question_evaluates_no_frame_again(bundle: Path) -> None:
    messages = asked(lossless(frames_of(5, (90, 70))), 5)
    with VLM.load(bundle, vision="onnx") as vlm:
        vlm.chat(messages, max_tokens=1)
        again = vlm.chat([*messages[:1], {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}])
        assert again.usage.prompt_tokens_details.cached_tokens > 40
        assert again.timings.images[0].cache == "kv"
        before = vlm.statistics().tiles_encoded
        slower = lossless(frames_of(5, (90, 70)), rate=1)  # other times, the same frames
        other = vlm.chat(asked(slower, 5), max_tokens=1)
        assert vlm.statistics().tiles_encoded == before and other.timings.images[0].cache == "memory"


def test_limits_of_tokens(bundle: Path) -> None:
    video = asked(lossless(frames_of(2, (900, 700))), 2)[0]["content"][0]
    tokens = {}
    with VLM.load(bundle, vision="onnx") as vlm:
        for options in ({"detail": "auto"}, {"detail": "low"}, {"max_image_tokens": 30}):
            content = [{**video, "detail": "high", **options}]
            tokens[str(options)] = sum(vlm.count_tokens([{"role": "user", "content": content}]).images)
        assert [*tokens.values()] == [pytest.approx(limit, rel=0.2) for limit in (256, 64, 30)]
        assert max(tokens.values()) <= 256


def sizes() -> Iterator[tuple[int, int, int]]:
    """Yield numbers of frames, widths and heights of all proportions."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        width = int(2 ** rng.uniform(3, 12))
        ratio = 2 ** rng.uniform(-5, 5)
        yield int(rng.integers(2, 40)), width, max(1, min(4000, int(width * ratio)))


@pytest.mark.parametrize("limits", [(4096, 25165824), (128 * 784, 768 * 784), (10_000, 20_000)])
def test_sizes_of_frames(limits: tuple[int, int]) -> None:
    two = video_processor("qwen2_vl", CLASSES["qwen2_vl"])._module.smart_resize
    three = video_processor("qwen3_vl", CLASSES["qwen3_vl"])._module.smart_resize
    known = {"min_pixels": limits[0], "max_pixels": limits[1]}
    for count, width, height in sizes():
        frames = Frames((width, height), [float(number) for number in range(count)], float(count))
        used = Qwen2Video(28, *limits).plan(frames, "high", None).used
        assert used[::-1] == two(height, width, 28, **known), frames
        used = Qwen3Video(32, *limits).plan(frames, "high", None).used
        assert used[::-1] == three(count, height, width, factor=32, **known), frames


def test_positions_in_time_rise() -> None:
    """Also where the checkpoint has fewer positions in a second than tiles."""
    frames = Frames((56, 56), [0.0, 0.1, 0.2, 0.3, 0.4, 3.0, 3.1], 4.0)
    assert Qwen2Video(28, 56 * 56, 10**6, rate=2).plan(frames, "high", None).steps == (0, 1, 2, 6)
    assert Qwen2Video(28, 56 * 56, 10**6).plan(frames, "high", None).steps == (0, 1, 2, 3)
