"""OpenAI's older completions: raw prompts, several of them, log probabilities, streams, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import openai
import pytest
import requests

from pocketvlm.server import openapi
from server.conftest import Server, refused

FORM = "<|im_start|>User: {}<end_of_utterance>\nAssistant:"
HI = FORM.format("hi")


def post(server: Server, **body: Any) -> requests.Response:
    return requests.post(f"{server.base}/completions", data=json.dumps(body), timeout=60)


def ask(server: Server, **body: Any) -> dict[str, Any]:
    reply = post(server, **body)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base, api_key="none", max_retries=0)


def test_a_prompt_is_sent_as_it_is(server: Server) -> None:
    """In the template's form it is what a chat sends; control tokens in it are parsed, and white space stays."""
    chat = server.ask("hi", max_tokens=4, logprobs=True)
    answer = ask(server, prompt=HI, max_tokens=4)
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", "iota")
    [choice] = answer["choices"]
    assert answer["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert choice["text"] == "".join(entry["token"] for entry in tokens)
    assert choice["text"].startswith(" ")
    assert choice["finish_reason"] == "length"
    assert "decode_ms" in answer["timings"]
    assert ask(server, prompt="hi")["usage"]["prompt_tokens"] < 4
    assert ask(server, prompt=HI)["usage"]["completion_tokens"] <= 16
    assert requests.post(f"{server.url}/completions", json={"prompt": "hi"}, timeout=60).status_code == 200


def test_what_is_not_enforced(server: Server) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    reply = ask(server, prompt=HI, max_tokens=1, response_format=form)
    assert reply["not_enforced"] == ["response_format.json_schema.schema.properties.x.uniqueItems"]
    last = post(server, prompt=HI, max_tokens=1, response_format=form, stream=True).text
    assert "uniqueItems" in last
    assert "not_enforced" not in ask(server, prompt=HI, max_tokens=1)


def test_several_prompts(server: Server) -> None:
    prompts = [HI, "The picture"]
    alone = [ask(server, prompt=prompt, max_tokens=5) for prompt in prompts]
    answer = ask(server, prompt=prompts, n=2, max_tokens=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [one["choices"][0]["text"] for one in alone for _ in range(2)]
    assert texts[0] != texts[2]
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 20


def test_logprobs(server: Server) -> None:
    [choice] = ask(server, prompt=HI, logprobs=2, max_tokens=4)["choices"]
    scores = choice["logprobs"]
    assert "".join(scores["tokens"]) == choice["text"]
    assert scores["text_offset"][0] == len(HI)
    assert scores["text_offset"][2] == len(HI) + len("".join(scores["tokens"][:2]))
    for token, logprob, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        assert logprob <= 0
        assert 2 <= len(top) <= 3
        assert math.isclose(top[token], logprob)
        assert max(top.values()) == pytest.approx(logprob)  # it is greedy
    [choice] = ask(server, prompt=HI, logprobs=0, max_tokens=1)["choices"]
    assert list(choice["logprobs"]["top_logprobs"][0]) == choice["logprobs"]["tokens"]
    assert ask(server, prompt=HI, max_tokens=1)["choices"][0]["logprobs"] is None


def test_openai(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="iota", prompt=[HI, "The picture"], max_tokens=6, logprobs=1)
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    texts = ["", ""]
    tokens: list[str] = []
    offsets: list[int] = []
    reasons: dict[int, Any] = {}
    for chunk in client.completions.create(
        model="iota", prompt=[HI, "The picture"], max_tokens=6, logprobs=1, **options
    ):
        assert chunk.object == "text_completion"
        assert chunk.id.startswith("cmpl-")
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            if choice.logprobs:
                tokens += choice.logprobs.tokens or []
                offsets += choice.logprobs.text_offset or []
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == {0: "length", 1: "length"}
    expected = [choice.logprobs for choice in whole.choices if choice.logprobs]
    assert tokens == [token for scores in expected for token in scores.tokens or []]
    assert offsets == [offset for scores in expected for offset in scores.text_offset or []]
    assert chunk.choices == []
    assert chunk.usage and whole.usage
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens == 12


def test_stream(server: Server) -> None:
    reply = post(server, prompt=HI, max_tokens=3, stream=True)
    events = [line.removeprefix(b"data: ") for line in reply.content.split(b"\n\n") if line]
    assert events.pop() == b"[DONE]"
    chunks = [json.loads(event) for event in events]
    assert (
        "".join(chunk["choices"][0]["text"] for chunk in chunks)
        == ask(server, prompt=HI, max_tokens=3)["choices"][0]["text"]
    )
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert "usage" not in chunks[0]
    assert "timings" in chunks[-1]


def test_options(server: Server) -> None:
    text = ask(server, prompt=HI, max_tokens=8)["choices"][0]["text"]
    [cut] = ask(server, prompt=HI, max_tokens=8, stop=text[3:5])["choices"]
    assert (cut["text"], cut["finish_reason"]) == (text[:3], "stop")
    accepted: Any = {
        "echo": False,
        "suffix": None,
        "best_of": 1,
        "user": "me",
        "top_k": -1,
        "logit_bias": {},
        "store": True,
    }
    assert ask(server, prompt=HI, max_tokens=8, **accepted)["choices"][0]["text"] == text
    form = {"type": "json_schema", "schema": {"enum": ["a", "b"]}}
    assert json.loads(ask(server, prompt=HI, response_format=form)["choices"][0]["text"]) in ("a", "b")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt.1"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "a " * 9000}, "prompt"),
        ({"prompt": ["a", "a " * 9000]}, "prompt.1"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": "1"}, "logprobs"),
        ({"prompt": "a", "echo": 0}, "echo"),
        ({"prompt": "a", "best_of": True}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "stop": ["a"] * 5}, "stop"),
        ({"prompt": "a", "max_token": 5}, "max_token"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_errors(server: Server, body: dict[str, Any], param: str) -> None:
    refused(post(server, **body), 400, param)


def test_the_document_says_what_is_sent(server: Server) -> None:
    document = openapi.document()

    def check(schema: str, value: Any) -> None:
        components = {"components": document["components"]}
        jsonschema.validate(value, {"$ref": f"#/components/schemas/{schema}", **components})

    body = {"prompt": [HI], "logprobs": 1, "max_tokens": 2, "temperature": 0.5, "stop": "x", "best_of": 1}
    check("CompletionRequest", body)
    check("Completion", ask(server, **body))
    with pytest.raises(jsonschema.ValidationError):
        check("CompletionRequest", {"prompt": "a", "max_token": 2})
