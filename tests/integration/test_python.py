"""Python as users write it: a question in one line, pictures as they have them, answers as instances, asyncio."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, Field, field_validator

from engine_seam import never_ending
from pocketvlm import (
    VLM,
    AnswerError,
    AsyncVLM,
    EngineClosedError,
    GenerationCancelledError,
    ImageNotFoundError,
    RequestError,
)

QUESTION = "How many shapes are there?"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load() as loaded:
        yield loaded


class OtherPath:
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


def forms(path: Path) -> dict[str, Any]:
    image = Image.open(path)
    return {
        "text": str(path),
        "path": path,
        "other path": OtherPath(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "PIL image": image,
        "array": np.asarray(image.convert("RGB")),
        "part": {"type": "image_url", "image_url": {"url": str(path), "detail": "high"}},
    }


# ---- ask, and pictures as people have them


def test_ask(vlm: VLM, sample_png: Path) -> None:
    assert vlm.ask("What is in the picture?", sample_png).startswith("A large red circle")
    for name, picture in forms(sample_png).items():
        assert vlm.ask(QUESTION, picture) == "2", name
    assert vlm.ask("What is in the picture?", sample_png, max_tokens=2) == "A large"
    assert vlm.conversation[-1]["content"] == "A large"
    both = vlm.count_tokens([{"role": "user", "content": [sample_png, sample_png, QUESTION]}])
    assert len(both.images) == 2


def test_ask_names_the_picture_that_is_wrong(vlm: VLM, sample_png: Path) -> None:
    with pytest.raises(ImageNotFoundError, match=r"^pictures\.1: .*missing\.png: no such file") as caught:
        vlm.ask(QUESTION, sample_png, "missing.png")
    assert caught.value.param == "pictures.1"
    for wrong in (3, None, object()):
        with pytest.raises(RequestError, match=r"^pictures\.0"):
            vlm.ask(QUESTION, wrong)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match=r"^question: "):
        vlm.ask(3, sample_png)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match=r"^max_tokens: "):
        vlm.ask(QUESTION, sample_png, max_tokens=0)


def test_pictures_wherever_a_picture_is(vlm: VLM, sample_png: Path) -> None:
    """Objects that are pictures may stand wherever messages have one, in the forms of all clients."""
    expected = vlm.count_tokens([{"role": "user", "content": [{"type": "image", "path": str(sample_png)}, QUESTION]}])
    for name, picture in forms(sample_png).items():
        if name in ("text", "part"):
            continue
        for content in (
            [picture, QUESTION],
            [{"type": "image", "image": picture}, QUESTION],
            [{"type": "image", "url": picture}, QUESTION],
            [{"type": "image", "path": picture}, QUESTION],
            [{"type": "image_url", "image_url": {"url": picture}}, QUESTION],
            [{"type": "image_url", "image_url": picture}, QUESTION],
            [{"type": "image", "source": {"type": "base64", "data": picture}}, QUESTION],
            [{"type": "input_image", "image_url": picture}, QUESTION],
        ):
            assert vlm.count_tokens([{"role": "user", "content": content}]) == expected, (name, content)
        beside = {"role": "user", "content": QUESTION, "images": [picture]}
        assert vlm.count_tokens([beside]) == expected, name
        assert vlm.add_image(picture).width == 640, name


def test_details_stay_with_their_picture(vlm: VLM, sample_png: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": sample_png, "detail": "low"}}, QUESTION]
    low = vlm.count_tokens([{"role": "user", "content": content}])
    assert low.total < vlm.count_tokens([{"role": "user", "content": [sample_png, QUESTION]}]).total
    with pytest.raises(RequestError, match="exactly one of"):
        vlm.count_tokens([{"role": "user", "content": [{"type": "image", "path": sample_png, "image": b"x"}]}])


def test_pictures_are_not_decoded_to_be_recognized(vlm: VLM) -> None:
    """A truncated file that Pillow has opened is refused as such, by its field."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:-2000]))
    with pytest.raises(RequestError, match=r"^pictures\.0: a picture in memory \(PngImageFile\): damaged or truncated"):
        vlm.ask(QUESTION, broken)


# ---- classes


class Answer(BaseModel):
    shapes: int = Field(ge=0, le=9)


def test_a_class_gives_an_instance(vlm: VLM, sample_png: Path) -> None:
    answer = vlm.ask(QUESTION, sample_png, response_format=Answer)
    assert isinstance(answer, Answer) and 0 <= answer.shapes <= 9
    completion = vlm.chat([{"role": "user", "content": [sample_png, QUESTION]}], response_format=Answer)
    assert completion.parsed == answer and completion.usage.completion_tokens
    assert Answer.model_validate_json(completion.text) == answer
    assert "parsed" not in completion.model_dump()
    chunks = vlm.stream([{"role": "user", "content": [sample_png, QUESTION]}], response_format=Answer)
    assert Answer.model_validate_json("".join(chunk.text for chunk in chunks)) == answer


class Never(BaseModel):
    shapes: int = Field(ge=0, le=9)

    @field_validator("shapes")
    @classmethod
    def _odd(cls, value: int) -> int:
        raise ValueError(f"{value} is no such number")


def test_answers_that_are_no_instances_keep_their_text(vlm: VLM, sample_png: Path) -> None:
    with pytest.raises(AnswerError, match=r"cut short; raise max_tokens.*not a whole Answer") as cut:
        vlm.ask(QUESTION, sample_png, response_format=Answer, max_tokens=1)
    assert cut.value.text.startswith("{")
    with pytest.raises(AnswerError, match=r"not a valid Never: shapes: [0-9] is no such number") as refused:
        vlm.ask(QUESTION, sample_png, response_format=Never)
    assert isinstance(refused.value, ValueError) and refused.value.text.endswith("}")


def test_a_class_without_a_schema_is_refused(vlm: VLM) -> None:
    class Odd(BaseModel):
        call: Callable[[int], int]

    with pytest.raises(RequestError, match=r"^response_format: Odd has no JSON Schema"):
        vlm.ask("Hello.", response_format=Odd)


def test_type_checkers_know_the_answers(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from typing import assert_type\n"
        "from pathlib import Path\n"
        "from pydantic import BaseModel\n"
        "from pocketvlm import VLM, AsyncVLM, ChatCompletion, ParsedCompletion\n"
        "class Invoice(BaseModel):\n    total: float\n"
        "async def use(vlm: VLM, other: AsyncVLM) -> None:\n"
        '    assert_type(vlm.ask("?", Path("a.png"), b"", max_tokens=3), str)\n'
        '    assert_type(vlm.ask("?", "a.png", response_format=Invoice), Invoice)\n'
        '    assert_type(vlm.ask("?", response_format={"type": "json_object"}), str)\n'
        "    assert_type(vlm.chat([]), ChatCompletion)\n"
        "    assert_type(vlm.chat([], response_format=Invoice), ParsedCompletion[Invoice])\n"
        "    assert_type(vlm.chat([], response_format=Invoice).parsed, Invoice)\n"
        '    assert_type(await other.ask("?", "a.png"), str)\n'
        '    assert_type(await other.ask("?", response_format=Invoice), Invoice)\n'
        "    assert_type((await other.chat([], response_format=Invoice)).parsed, Invoice)\n"
        "    async with AsyncVLM.load(parallel=2) as third:\n        assert_type(third, AsyncVLM)\n"
        "    assert_type(await AsyncVLM.load(), AsyncVLM)\n"
        '    vlm.ask("?", 3)\n'  # the only error
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--python-version", "3.12", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, "use.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(REPOSITORY / "runtime")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(lines) == 1 and 'No overload variant of "ask"' in lines[0], done.stdout


# ---- repr


def test_repr_says_model_and_state(iota_bundle: Path) -> None:
    for options in ({}, {"supervised": True}):
        vlm = VLM.load(iota_bundle, name="small", **options)
        assert repr(vlm) == "<VLM 'small': ready>"
        assert repr(AsyncVLM(vlm)) == "<AsyncVLM 'small': ready>"
        vlm.close()
        assert repr(vlm) == "<VLM 'small': closed>"


# ---- asyncio


def request_threads() -> int:
    return sum(thread.name == "pocketvlm-request" for thread in threading.enumerate())


def no_thread_is_left() -> bool:
    """A thread reports its end just before it ends."""
    until = time.monotonic() + 5
    while request_threads() and time.monotonic() < until:
        time.sleep(0.01)
    return not request_threads()


def test_async(sample_png: Path) -> None:
    async def main() -> None:
        async with AsyncVLM.load(parallel=2) as vlm:
            assert await vlm.ask(QUESTION, sample_png) == "2"
            assert (await vlm.ask(QUESTION, sample_png, response_format=Answer)).shapes <= 9
            messages = [{"role": "user", "content": [sample_png, QUESTION]}]
            chunks = [chunk async for chunk in vlm.stream(messages)]
            assert "".join(chunk.text for chunk in chunks) == "2" and chunks[-1].timings
            assert (await vlm.chat(messages)).text == "2"
            assert (await vlm.count_tokens(messages)).images
            with pytest.raises(RequestError, match=r"^pictures\.0"):
                await vlm.ask(QUESTION, "missing.png")
            handle = await vlm.add_image(sample_png)
            assert await vlm.ask(QUESTION, handle.id) == "2"
            vlm.remove_image(handle.id)
            assert (await vlm.statistics()).running == 0
            assert vlm.info.name == "iota" and vlm.scope and vlm.conversation
        assert repr(vlm) == "<AsyncVLM 'iota': closed>"
        with pytest.raises(EngineClosedError):
            await vlm.ask(QUESTION)

    asyncio.run(main())


def test_progress_comes_on_the_loops_thread(tmp_path: Path) -> None:
    reported: list[tuple[int, int, int]] = []

    async def main() -> None:
        async with AsyncVLM.load() as vlm:
            Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / "noise.png")
            await vlm.ask(QUESTION, tmp_path / "noise.png", progress=note)

    def note(done: int, total: int) -> None:
        reported.append((threading.get_ident(), done, total))

    asyncio.run(main())
    threads, done, totals = zip(*reported, strict=True)
    assert {*threads} == {threading.get_ident()} and [*done] == [*range(totals[0])]


def test_cancelling_a_task_cancels_its_request() -> None:
    async def main() -> None:
        vlm = await AsyncVLM.load(parallel=2)
        async with vlm:
            endless = {"logit_bias": never_ending(vlm._vlm)}
            tasks = [asyncio.create_task(vlm.ask("Hello.", **endless)) for _ in range(2)]
            while (await vlm.statistics()).running < 2:
                await asyncio.sleep(0.01)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            while (await vlm.statistics()).running > 1:
                await asyncio.sleep(0.01)
            assert not tasks[1].done()  # the other one goes on
            while not (now := await vlm.statistics()).cancelled:  # the request is counted after it has left the step
                await asyncio.sleep(0.01)
            assert (now.cancelled, now.finished) == (1, 0)
            stream = vlm.stream([{"role": "user", "content": "Hello."}], **endless)
            async for _ in stream:
                break
            await stream.aclose()
            vlm.cancel()
            with pytest.raises(GenerationCancelledError):
                await tasks[1]
            while (await vlm.statistics()).running:  # the scheduler sees it between two steps
                await asyncio.sleep(0.01)
            assert no_thread_is_left()

    asyncio.run(main())


def test_many_requests_wait_without_threads(sample_png: Path) -> None:
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, request_threads())
            await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncVLM.load(parallel=2) as vlm:
            watcher = asyncio.create_task(watch())
            answers = await asyncio.gather(*(vlm.ask(QUESTION, sample_png) for _ in range(20)))
            watcher.cancel()
            assert answers == ["2"] * 20
            # Streams that are begun and not read hold up nothing.
            streams = [vlm.stream([{"role": "user", "content": [sample_png, QUESTION]}]) for _ in range(6)]
            for stream in streams:
                await anext(stream)
            for stream in streams:
                await stream.aclose()

    asyncio.run(main())
    assert 2 <= most <= 12  # twice the two that run, and some that end: on a busy machine more of them at a time


def test_closing_ends_what_runs() -> None:
    async def main() -> None:
        vlm = await AsyncVLM.load()
        task = asyncio.create_task(vlm.ask("Hello.", logit_bias=never_ending(vlm._vlm)))
        while not (await vlm.statistics()).running:
            await asyncio.sleep(0.01)
        await vlm.close()
        with pytest.raises(EngineClosedError):
            await task
        await vlm.close()

    asyncio.run(main())
    assert no_thread_is_left()
