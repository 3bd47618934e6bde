"""A conversation goes on in another process as if nothing had happened; what is damaged or another's is refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image, ImageDraw

from pocketvlm import VLM
from pocketvlm.errors import PocketVLMError, RequestError, SessionError

NEXT = {"role": "user", "content": "Describe the picture."}
LOAD = {"context_size": 1024, "threads": 1}
GO_ON = """
import sys
from pocketvlm import VLM
with VLM.load(session=sys.argv[1], context_size=1024, threads=1, supervised=sys.argv[2] == "supervised") as vlm:
    made = vlm.chat([*vlm.conversation, {"role": "user", "content": "Describe the picture."}], logprobs=True)
    usage = made.usage
    print(made.text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens, made.timings.images[0].cache)
    print([entry.token for entry in made.choices[0].logprobs.content])
"""


def talk() -> list[dict[str, Any]]:
    picture = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(picture).ellipse((20, 10, 90, 80), "red")
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "How many?"}]}]


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.load(**LOAD) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def saved(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "talk.session"
    vlm.chat(talk())
    vlm.save(path)
    return path


def test_the_answer_is_that_of_a_process_that_went_on(vlm: VLM, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    outputs = [
        subprocess.run([sys.executable, "-c", GO_ON, saved, kind], capture_output=True, check=True, text=True).stdout
        for kind in ("here", "supervised")
    ]
    with VLM.load(**LOAD, supervised=True) as other:
        other.chat(talk())
        other.save(saved.parent / "other")
        assert (saved.parent / "other").read_bytes() == saved.read_bytes()
    vlm.restore(saved)
    messages = [*vlm.conversation, NEXT]
    made = vlm.chat(messages, logprobs=True)
    assert made.usage is not None and made.usage.prompt_tokens_details is not None
    cached = made.usage.prompt_tokens_details.cached_tokens
    assert made.choices[0].logprobs is not None and made.choices[0].logprobs.content is not None
    tokens = [entry.token for entry in made.choices[0].logprobs.content]
    told = f"{made.text} {made.usage.prompt_tokens} {cached} kv\n{tokens}\n"
    assert outputs == [told, told]
    assert len(tokens) > 3
    with VLM.load(**LOAD) as cold:
        whole = cold.chat(messages[:-2]).usage  # what is new since: the answer's end and the question
    assert whole is not None and cached > whole.prompt_tokens


def test_what_was_shown_can_be_shown_again(vlm: VLM, saved: Path) -> None:
    """An edit needs the pictures anew."""
    messages = vlm.restore(saved)
    messages[0]["content"][1]["text"] = "What colour is the circle?"
    assert vlm.chat(messages[:1]).text == vlm.chat([{**talk()[0], "content": messages[0]["content"]}]).text == "Red"
    with VLM.load(**LOAD) as cold:
        assert cold.chat(messages[:1]).text == "Red"


def test_any_flipped_byte_is_found(vlm: VLM, saved: Path, tmp_path: Path) -> None:
    rng, data = Random(0), bytearray(saved.read_bytes())
    path = tmp_path / "flipped"
    for at in [*range(0, 90, 3), *(rng.randrange(len(data)) for _ in range(40)), len(data) - 1]:
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(SessionError):
            vlm.restore(path)
        data[:] = saved.read_bytes()
    for length in (0, 5, 40, 60, 200, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(SessionError):
            vlm.restore(path)
    path.write_bytes(data + b"x")
    with pytest.raises(SessionError):
        vlm.restore(path)
    assert vlm.chat(talk()).text


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"context_size": 512}, "context size"),
        ({"exact": True}, "type of cache"),
        ({"cache_type": "q8_0"}, "type of cache"),
        ({"model": "other"}, "model"),
    ],
)
def test_another_engine_refuses_it(saved: Path, iota_bundle: Path, changed: dict[str, Any], why: str) -> None:
    if "model" in changed:
        changed = {"model": next(iota_bundle.glob("model*.gguf"))}
    with pytest.raises(SessionError, match=f"another {why}"):
        VLM.load(**(LOAD | changed), session=saved)


def test_what_cannot_be_read_or_written(vlm: VLM, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SessionError, match=str(path)):
            vlm.restore(path)
    vlm.chat(talk())
    with pytest.raises(SessionError, match="cannot be written"):
        vlm.save(tmp_path / "no folder" / "file")
    with VLM.load(**LOAD) as fresh, pytest.raises(RequestError, match="no conversation to save"):
        fresh.save(tmp_path / "file")
    assert issubclass(SessionError, PocketVLMError)
    assert not (tmp_path / "file").exists()


def forged(saved: Path, path: Path, change: Callable[[dict[str, Any]], Any], text: bytes | None = None) -> Path:
    """With a right hash, as whoever writes one has it."""
    line, data = saved.read_bytes().split(b"\n", 1)
    (length,) = struct.unpack("<Q", data[32:40])
    told = json.loads(data[40 : 40 + length])
    change(told)
    text = text or json.dumps(told).encode()
    rest = struct.pack("<Q", len(text)) + text + data[40 + length :]
    path.write_bytes(line + b"\n" + hashlib.sha256(rest).digest() + rest)
    return path


def shown(told: dict[str, Any], **picture: Any) -> None:
    told["messages"][0]["content"][0] = {"type": "image", **picture}


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["messages"][0].update(role="nobody"),
        lambda told: told["messages"].clear(),
        lambda told: shown(told, image=7),
        lambda told: shown(told, path="README.md"),  # who made the file must not choose what is read here
        lambda told: shown(told, url="file:README.md"),
        lambda told: told["cache"]["ends"].pop(),
        lambda told: told["cache"].update(ends=[-end for end in told["cache"]["ends"]]),
        lambda told: told["cache"].update(ends=[end + 2**40 for end in told["cache"]["ends"]]),
        lambda told: told["cache"].update(keys=[{} for _ in told["cache"]["keys"]]),
        lambda told: told["cache"].update(sizes=[10**12]),
        lambda told: told["cache"].update(sizes=[told["cache"]["sizes"][0] - 1], pictures=[told["pictures"][0] + 1]),
        lambda told: told["pictures"].append(-1),
        lambda told: told.update({"made for": []}),
    ],
)
def test_a_hash_alone_makes_no_session(
    vlm: VLM, saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    with pytest.raises(SessionError, match=str(tmp_path)):
        vlm.restore(forged(saved, tmp_path / "forged", change))
    assert vlm.chat(talk()).text


def test_json_that_is_too_deep(vlm: VLM, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=str(tmp_path)):
        vlm.restore(forged(saved, tmp_path / "forged", lambda _: None, b"[" * 100_000))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda told: told["made for"].update({"chat template": "x" * 10_000}), None),
        (lambda told: told["cache"].update({"x" * 10_000: 1}), None),
        (lambda _: None, b"\xff" * 10_000),
    ],
)
def test_messages_are_short(
    vlm: VLM, saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], text: bytes | None
) -> None:
    """Whatever the file says; the message quotes it."""
    with pytest.raises(SessionError) as caught:
        vlm.restore(forged(saved, tmp_path / "forged", change, text))
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("name", [".", "/", "a\0b"])
def test_what_is_no_name_of_a_file(vlm: VLM, name: str) -> None:
    vlm.chat(talk())
    with pytest.raises(SessionError, match="cannot be written"):
        vlm.save(name)
