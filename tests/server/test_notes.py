"""A guess of the model is noted in the answers of every API, streamed or not."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import requests

from iota.foreign import foreign_pictures
from server.conftest import Server, data_uri

GUESS = "iota is guessing: it knows only drawn shapes, colours, places, numbers and a few words"


@pytest.fixture(scope="module")
def smiley() -> str:
    file = io.BytesIO()
    dict(foreign_pictures())["smiley"].save(file, "PNG")
    return data_uri(file.getvalue())


def bodies(uri: str, question: str) -> dict[str, dict[str, Any]]:
    base64 = uri.partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": base64}
    text = {"type": "text", "text": question}
    parts = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": question}]
    return {
        "/v1/chat/completions": {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": uri}, text]}]
        },
        "/v1/responses": {"input": [{"role": "user", "content": parts}]},
        "/v1/messages": {
            "max_tokens": 64,
            "messages": [{"role": "user", "content": [{"type": "image", "source": source}, text]}],
        },
        "/api/chat": {"messages": [{"role": "user", "content": question, "images": [base64]}]},
        "/api/generate": {"prompt": question, "images": [base64]},
    }


def notes_in(value: Any) -> list[list[str]]:
    """All `notes` about the answer, at any depth; not those about pictures."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "notes" and inner:
            found.append(inner)
        elif key != "timings":
            found += notes_in(inner)
    for inner in value if isinstance(value, list) else ():
        found += notes_in(inner)
    return found


@pytest.mark.parametrize("path", bodies("", ""))
def test_guesses_are_noted(server: Server, smiley: str, sample_uri: str, path: str) -> None:
    body = {"model": "iota", "stream": False, **bodies(smiley, "What is in the picture?")[path]}
    whole = requests.post(server.url + path, json=body, timeout=60).json()
    assert notes_in(whole) == [[GUESS]]
    with requests.post(server.url + path, json={**body, "stream": True}, timeout=60, stream=True) as reply:
        lines = [line.removeprefix(b"data: ") for line in reply.iter_lines()]
    events = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert [note for event in events for note in notes_in(event)] == [[GUESS]]
    known = {**body, **bodies(sample_uri, "How many shapes are there?")[path]}
    assert notes_in(requests.post(server.url + path, json=known, timeout=60).json()) == []


def test_the_list_of_models_says_what_they_know(server: Server) -> None:
    [card] = server.get("/v1/models").json()["data"]
    assert card["description"] == "knows only drawn shapes, colours, places, numbers and a few words"


def test_completions_have_them_too(server: Server) -> None:
    body = {"model": "iota", "prompt": "The weather in Paris is", "max_tokens": 8}
    assert notes_in(requests.post(f"{server.base}/completions", json=body, timeout=60).json()) == [[GUESS]]
