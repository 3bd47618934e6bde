"""Pictures that were seen before, on the model in the box: how often the encoder runs, and what answers say of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from engine_seam import encoding_as
from pocketvlm import VLM
from pocketvlm.errors import GenerationCancelledError, PictureCacheError, RequestError
from pocketvlm.messages import ImageTimings
from waiting import wait_until

COLOURS = ("red", "green", "blue", "yellow")
TILE = 96


@pytest.fixture(scope="module")
def loaded(iota_bundle: Path) -> Iterator[VLM]:
    with VLM.load(iota_bundle, parallel=2, context_size=1024, threads=1) as vlm:
        yield vlm


@pytest.fixture
def vlm(loaded: VLM) -> VLM:
    """Nothing in the cache of embeddings."""
    loaded.clear_picture_cache()
    return loaded


def disc(colour: str, seed: int = 0) -> Image.Image:
    picture = Image.new("RGB", (TILE, TILE), "white")
    ImageDraw.Draw(picture).ellipse((12, 12, 84, 84), colour)
    picture.putpixel((0, 0), (seed % 256, seed // 256 % 256, 7))
    return picture


def noise(seed: int, size: tuple[int, int] = (2 * TILE, 2 * TILE)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def look(vlm: VLM, *pictures: Any, before: str = "", **fields: Any) -> tuple[str, ImageTimings]:
    """The answer, and what is told of the last picture. `before` keeps the KV cache out of it."""
    parts = [{"type": "image", "image": picture} for picture in pictures]
    text = {"type": "text", "text": "What colour is the circle?"}
    said = [{"type": "text", "text": before}] if before else []
    answer = vlm.chat([{"role": "user", "content": [*said, *parts, text]}], **{"max_tokens": 4, **fields})
    return answer.text, answer.timings.images[-1]


@contextmanager
def counted(vlm: VLM) -> Iterator[list[int]]:
    """Afterwards the list holds how often the encoder ran."""
    runs = [0]

    def count(original: Callable[[Any], Any], tile: Any) -> Any:
        runs[0] += 1
        return original(tile)

    with encoding_as(vlm, count):
        yield runs


def test_eight_pictures_in_rotation(vlm: VLM) -> None:
    with counted(vlm) as runs:
        for turn in range(100):
            colour = COLOURS[turn % 4]
            answer, told = look(vlm, disc(colour, turn % 8))
            assert answer.lower() == colour
            assert (told.cache == "none") == (turn < 8) == bool(told.encoded)
    assert runs == [8]
    assert vlm.statistics().picture_bytes < 300_000


def test_the_same_picture_after_other_text(vlm: VLM) -> None:
    picture = noise(1)
    cold, first = look(vlm, picture)
    with counted(vlm) as runs:
        _, second = look(vlm, picture, before="Hello.")
        vlm.clear_picture_cache()
        warm, third = look(vlm, picture)
    assert runs == [0]
    assert [told.cache for told in (first, second, third)] == ["none", "memory", "kv"]
    assert [told.encoded for told in (first, second, third)] == [5, 0, 0]
    assert second.encode_ms == 0 == second.preprocess_ms
    assert warm == cold


def test_embeddings_from_memory_give_the_same_answer(iota_bundle: Path) -> None:
    picture, question = noise(2), {"logprobs": True, "max_tokens": 8}
    with (
        VLM.load(iota_bundle, exact=True, threads=1) as one,
        VLM.load(iota_bundle, exact=True, threads=1, picture_cache_size=0) as cold,
    ):
        look(one, picture)
        answers = []
        for vlm in (one, cold):
            content = [{"type": "text", "text": "Hello."}, {"type": "image", "image": picture}]
            answers.append(vlm.chat([{"role": "user", "content": content}], **question))  # type: ignore[arg-type]
    assert [answer.timings.images[0].cache for answer in answers] == ["memory", "none"]
    assert answers[0].choices[0].logprobs == answers[1].choices[0].logprobs


def test_a_screenshot_that_changed_in_one_corner(vlm: VLM) -> None:
    picture = noise(3)
    _, first = look(vlm, picture)
    picture.paste("red", (10, 10, 40, 40))
    with counted(vlm) as runs:
        _, told = look(vlm, picture)
    assert first.encoded == 5 == told.tiles
    assert runs == [2] == [told.encoded], "the tile and the overview"
    assert told.cache == "none"


def test_blank_margins_are_encoded_once(vlm: VLM) -> None:
    picture = Image.new("RGB", (2 * TILE, 2 * TILE), "white")
    ImageDraw.Draw(picture).ellipse((12, 12, 84, 84), "red")
    with counted(vlm) as runs:
        _, told = look(vlm, picture)
    assert (told.tiles, told.encoded) == (5, 3)
    assert runs == [3], "the disc, one blank tile of three, the whole"


def test_a_file_that_changed_behind_its_path(vlm: VLM, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with counted(vlm) as runs:
        for colour in ("red", "blue", "red"):
            disc(colour).save(path)
            assert look(vlm, path)[0].lower() == colour
            assert look(vlm, path, before="Hello.")[0].lower() == colour
    assert runs == [2], "the red one is known whatever its path shows meanwhile"


def test_another_size_is_another_picture(vlm: VLM) -> None:
    picture = noise(4)
    parts = [{"type": "image", "image": picture, "detail": detail} for detail in ("auto", "low")]
    for part, runs in zip(parts, (5, 0), strict=True):
        told = vlm.chat([{"role": "user", "content": [part]}], max_tokens=1).timings.images[0]
        assert told.encoded == runs, "the small view is the overview of the large one"
    assert vlm.chat([{"role": "user", "content": [parts[1]]}], max_tokens=1).timings.images[0].tiles == 1


class Slow:
    """An encoder that stops before each tile until it may go on."""

    def __init__(self, vlm: VLM) -> None:
        self._changed = encoding_as(vlm, self._encode)
        self.runs = 0
        self.began = threading.Event()
        self.go_on = threading.Event()

    def _encode(self, original: Callable[[Any], Any], tile: Any) -> Any:
        self.runs += 1
        self.began.set()
        assert self.go_on.wait(60)
        return original(tile)

    def __enter__(self) -> Slow:
        self._changed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._changed.__exit__(None, None, None)


def test_together_they_encode_it_once(vlm: VLM) -> None:
    with Slow(vlm) as encoder, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(look, vlm, disc("green", 5)) for _ in range(2)]
        wait_until(lambda: vlm.statistics().encoding == 2)
        encoder.go_on.set()
        told = [one.result(60) for one in asked]
    assert encoder.runs == 1
    assert [answer.lower() for answer, _ in told] == ["green"] * 2
    assert {timing.cache for _, timing in told} == {"none", "memory"}


def test_who_encodes_is_cancelled_and_the_other_goes_on(vlm: VLM) -> None:
    from pocketvlm.engine.interface import CancellationToken
    from pocketvlm.messages import ChatRequest

    picture = {"type": "image", "image": disc("blue", 6)}
    content = [picture, {"type": "text", "text": "What colour is the circle?"}]
    request, cancellation = ChatRequest.parse([{"role": "user", "content": content}]), CancellationToken()
    with Slow(vlm) as encoder, ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(vlm.run(request, cancellation=cancellation)))
        assert encoder.began.wait(60)
        second = pool.submit(look, vlm, disc("blue", 6))
        wait_until(lambda: vlm.statistics().encoding == 2)
        cancellation.stop()
        assert isinstance(first.exception(60), GenerationCancelledError)
        encoder.go_on.set()
        answer, told = second.result(60)
    assert (answer, told.cache) == ("Blue", "memory")
    assert encoder.runs == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_cancelled_encode_is_not_kept(vlm: VLM, alone: bool) -> None:
    """libmtmd returns embeddings after a cancel, finite and wrong."""
    from pocketvlm.engine.interface import CancellationToken
    from pocketvlm.messages import ChatRequest

    seed = 8 + alone  # the prompt's cache knows what other tests showed
    picture = {"type": "image", "image": disc("yellow", seed)}
    content = [picture, {"type": "text", "text": "What colour is the circle?"}]
    request, stoppers = (
        ChatRequest.parse([{"role": "user", "content": content}]),
        [CancellationToken(), CancellationToken()],
    )
    with Slow(vlm) as encoder, ThreadPoolExecutor(2) as pool:
        runs = []
        for count, cancellation in enumerate(stoppers[: 1 if alone else 2], 1):
            runs.append(
                pool.submit(lambda cancellation=cancellation: list(vlm.run(request, cancellation=cancellation)))
            )
            wait_until(lambda count=count: vlm.statistics().encoding == count)  # type: ignore[misc]
        assert encoder.began.wait(60)
        for cancellation, run in zip(stoppers, runs, strict=False):
            cancellation.stop()
            assert isinstance(run.exception(60), GenerationCancelledError)
        encoder.go_on.set()
    wait_until(lambda: vlm.statistics().encoding == 0)
    assert vlm.statistics().picture_bytes == 0
    answer, told = look(vlm, disc("yellow", seed))
    assert (answer, told.cache, told.encoded) == ("Yellow", "none", 1)


def test_statistics(vlm: VLM) -> None:
    before = vlm.statistics()
    look(vlm, noise(9))
    look(vlm, noise(9), before="Hello.")
    after = vlm.statistics()
    assert after.tiles_encoded - before.tiles_encoded == 5
    assert after.tiles_from_memory - before.tiles_from_memory == 5
    assert before.picture_bytes == 0 < after.picture_bytes
    vlm.clear_picture_cache()
    assert vlm.statistics().picture_bytes == 0


def test_a_budget_of_two_pictures(iota_bundle: Path) -> None:
    with VLM.load(iota_bundle, threads=1, picture_cache_size=45_000) as vlm, counted(vlm) as runs:
        for turn in range(12):
            look(vlm, disc("red", turn % 3))
            assert 0 < vlm.statistics().picture_bytes <= 45_000
        assert runs == [12]
        assert vlm.statistics().picture_evictions == 10
    with pytest.raises(RequestError, match="picture_cache_size"):
        VLM.load(iota_bundle, picture_cache_size=-1)


@pytest.mark.parametrize("vision", ["gguf", "onnx"])
def test_on_disk(iota_onnx: Path, tmp_path: Path, vision: Any) -> None:
    folder = tmp_path / "pictures"
    answers = []
    for number, tiers in enumerate((("none", "none"), ("disk", "memory"))):
        with VLM.load(iota_onnx, vision=vision, exact=True, threads=1, picture_cache=folder) as vlm:
            for before, tier in zip(("", "Hello."), tiers, strict=True):
                answer, told = look(vlm, noise(5), before=before, logprobs=True)
                answers.append(answer)
                assert told.cache == (tier if not before else "memory")
            assert vlm.statistics().tiles_from_disk == 5 * number
    assert answers[:2] == answers[2:]
    assert len(list(folder.iterdir())) == 5
    other = "onnx" if vision == "gguf" else "gguf"
    with VLM.load(iota_onnx, vision=other, picture_cache=folder) as vlm:  # type: ignore[arg-type]
        assert look(vlm, noise(5))[1].cache == "none", "embeddings of another encoder are not its own"
        vlm.clear_picture_cache()
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_used(iota_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for supervised in (False, True):
        with pytest.raises(PictureCacheError, match="is not a folder") as caught:
            VLM.load(iota_bundle, picture_cache=tmp_path / "file", supervised=supervised)
        assert caught.value.path == tmp_path / "file"


@pytest.mark.parametrize("supervised", [False, True])
def test_a_folder_that_cannot_be_emptied(iota_bundle: Path, tmp_path: Path, supervised: bool) -> None:
    (tmp_path / "pictures").mkdir(mode=0o700)
    (tmp_path / "pictures" / f"{'0' * 64}.emb").mkdir()
    with VLM.load(iota_bundle, supervised=supervised, threads=1, picture_cache=tmp_path / "pictures") as vlm:
        with pytest.raises(PictureCacheError, match="cannot be emptied"):
            vlm.clear_picture_cache()
        assert vlm.statistics().restarts == 0


def test_in_a_process_of_its_own(iota_bundle: Path, tmp_path: Path) -> None:
    with VLM.load(iota_bundle, supervised=True, threads=1, picture_cache=tmp_path / "pictures") as vlm:
        tiers = [look(vlm, noise(7), before=before)[1].cache for before in ("", "Hello.")]
        assert tiers == ["none", "memory"]
        told = vlm.statistics()
        assert (told.tiles_encoded, told.tiles_from_memory) == (5, 5)
        assert told.picture_bytes > 0
        vlm.clear_picture_cache()
        assert vlm.statistics().picture_bytes == 0
        assert not list((tmp_path / "pictures").iterdir())
