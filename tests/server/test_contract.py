"""The HTTP contract: routes, answers, streams, and every refusal with its status and field."""

from __future__ import annotations

import base64
import io
import math
import zlib
from typing import Any

import pytest
import requests
from PIL import Image

from server.conftest import Server, data_uri, look, png, refused

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


# ---- answers


def test_answer(server: Server, sample_uri: str) -> None:
    answer = server.ask(look({"url": sample_uri}))
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "iota")
    assert answer["created"] > 0
    assert answer["system_fingerprint"]
    [choice] = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "2"},
        "finish_reason": "stop",
        "logprobs": None,
    }
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(usage["prompt_tokens_details"]) == {"cached_tokens", "image_tokens"}
    assert usage["prompt_tokens_details"]["image_tokens"] > 0
    [image] = answer["timings"]["images"]
    assert image["original_size"] == [640, 480]
    for name in ("used_size", "tiles", "tokens", "cache", "read_ms", "preprocess_ms", "encode_ms"):
        assert name in image
    for name in ("queue_ms", "prefill_ms", "decode_ms", "decode_tokens_per_second"):
        assert answer["timings"][name] is not None


def test_a_bare_url_and_transformers_parts(server: Server, sample_uri: str) -> None:
    for part in (
        {"type": "image_url", "image_url": sample_uri},
        {"type": "image", "url": sample_uri},
        {"type": "image", "base64": sample_uri.partition(",")[2]},
    ):
        answer = server.ask([part, {"type": "text", "text": "How many shapes are there?"}])
        assert answer["choices"][0]["message"]["content"] == "2"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp"])
def test_formats(server: Server, sample_png: Any, kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(sample_png).convert("RGB").save(buffer, kind)
    assert server.ask(look({"url": data_uri(buffer.getvalue(), kind)}))["timings"]["images"]


def test_a_picture_that_was_read_otherwise_than_expected_has_a_note(server: Server) -> None:
    white = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    white.paste((255, 255, 255, 255), (20, 20, 40, 40))
    buffer = io.BytesIO()
    white.save(buffer, "TIFF", save_all=True, append_images=[white])
    [image] = server.ask(look({"url": data_uri(buffer.getvalue(), "tiff")}), max_tokens=1)["timings"]["images"]
    assert image["pages"] == 2
    assert sorted(word in note for note in image["notes"] for word in ("2 pages", "black")) == [
        False,
        False,
        True,
        True,
    ]


def test_detail_and_max_image_tokens(server: Server, sample_uri: str) -> None:
    def tokens(**url: Any) -> int:
        found: int = server.ask(look({"url": sample_uri, **url}), max_tokens=1)["timings"]["images"][0]["tokens"]
        return found

    assert tokens(detail="low") < tokens(detail="high")
    assert tokens(detail="high", max_image_tokens=40) <= 40
    assert tokens(detail=None) == tokens(detail="auto")


def test_length_and_choices(server: Server) -> None:
    answer = server.ask("Describe the picture.", max_tokens=2, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert server.ask("hi", max_completion_tokens=1)["usage"]["completion_tokens"] == 1


def test_logprobs(server: Server) -> None:
    answer = server.ask("hi", logprobs=True, top_logprobs=3, max_tokens=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 2
    for entry in content:
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert math.isclose(tops[0], entry["logprob"])


def test_null_means_default_and_accepted_fields(server: Server) -> None:
    names = "max_tokens temperature top_p seed stop n logprobs stream stream_options response_format tools tool_choice"
    server.ask("hi", **dict.fromkeys(names.split()), max_completion_tokens=1)
    server.ask(
        "hi",
        max_tokens=1,
        user="me",
        metadata={"a": "b"},
        reasoning_effort="low",
        parallel_tool_calls=True,
        tool_prompt="x",
        response_format={"type": "text"},
        tool_choice="auto",
        tools=[],
        top_k=5,
        min_p=0.1,
        repeat_penalty=1.1,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        logit_bias={"5": -100},
        seed=1,
        temperature=1,
        top_p=0.9,
    )


def test_an_answer_goes_back_in_whole(server: Server) -> None:
    """As clients return it: with all that the schema knows, as null."""
    said = {
        "role": "assistant",
        "content": "2",
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "tool_call_id": None,
        "reasoning": None,
        "reasoning_content": None,
    }
    reply = server.post({"messages": [*HI, said, *HI], "max_tokens": 1})
    assert reply.status_code == 200, reply.text


def test_duplicate_keys_and_an_utf8_mark(server: Server) -> None:
    body = b'\xef\xbb\xbf{"max_tokens":5,"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
    reply = requests.post(f"{server.base}/chat/completions", data=body, timeout=30)
    assert reply.json()["usage"]["completion_tokens"] == 1


# ---- streams


def test_stream(server: Server, sample_uri: str) -> None:
    chunks = server.stream(look({"url": sample_uri}, "Describe the picture."))
    whole = server.ask(look({"url": sample_uri}, "Describe the picture."))
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(set(delta) == {"role", "content"} for delta in deltas)
    assert deltas[0] == deltas[-1] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["timings"]["images"][0]["original_size"] == [640, 480]


def test_progress_in_a_stream(server: Server) -> None:
    """Comments, before anything else; a picture that is known has none."""
    picture = data_uri(png(Image.effect_noise((640, 480), 99).convert("RGB")))

    def lines() -> list[bytes]:
        body = {"messages": [{"role": "user", "content": look({"url": picture})}], "stream": True, "max_tokens": 2}
        with server.post(body, stream=True) as reply:
            return [line for line in reply.iter_lines() if line]

    first = lines()
    total = int(first[0].rpartition(b"/")[2])
    assert total > 1
    assert first[:total] == [b": encoding %d/%d" % (done, total) for done in range(total)]
    assert all(line.startswith(b"data: ") for line in first[total:])
    assert all(line.startswith(b"data: ") for line in lines())


def test_stream_head(server: Server) -> None:
    with server.post({"messages": HI, "stream": True, "max_tokens": 1}, stream=True) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.text.endswith("data: [DONE]\n\n")


def test_stream_usage(server: Server) -> None:
    *chunks, last = server.stream("hi", max_tokens=2, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2
    assert all("usage" not in chunk for chunk in server.stream("hi", max_tokens=2, stream_options=None))


def test_stream_of_choices_and_stop_strings(server: Server, sample_uri: str) -> None:
    question = look({"url": sample_uri}, "Describe the picture.")
    text = server.ask(question)["choices"][0]["message"]["content"]
    stop = text[4:9]
    chunks = server.stream(question, stop=[stop], n=2)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in mine) == text[:4]
        assert mine[-1]["finish_reason"] == "stop"


# ---- models and routes


def test_models(server: Server) -> None:
    for prefix in ("", "/v1"):
        listed = server.get(f"{prefix}/models").json()
        assert listed["object"] == "list"
        [card] = listed["data"]
        assert card["id"] == "iota"
        assert server.get(f"{prefix}/models/iota").json() == card
        refused(server.get(f"{prefix}/models/other"), 404, "model", "model_not_found")
        refused(server.get(f"{prefix}/models/other/deep"), 404, "model", "model_not_found")
        assert server.get(f"{prefix}/health").json()["status"] == "ok"
        assert "pocketvlm_requests_total" in server.get(f"{prefix}/metrics").text
        assert server.get(f"{prefix}/openapi.json").json()["openapi"].startswith("3.1")
        reply = requests.post(
            f"{server.url}{prefix}/chat/completions", json={"messages": HI, "max_tokens": 1}, timeout=30
        )
        assert reply.status_code == 200


@pytest.mark.parametrize("model", [None, "iota", "dummy"])
def test_models_that_are_served(server: Server, model: str | None) -> None:
    assert server.ask("hi", model=model, max_tokens=1)["model"] == "iota"


def test_other_models_and_routes(server: Server) -> None:
    refused(server.post({"messages": HI, "model": "gpt-4o"}), 404, "model", "model_not_found")
    refused(server.get("/v2/models"), 404, code="not_found")
    refused(server.get("/v1/chat/completions"), 405, code="method_not_allowed")
    refused(requests.delete(f"{server.base}/models", timeout=30), 405)
    assert server.get("/nothing").headers["x-request-id"]
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", None),
        ({"messages": None}, "messages", None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", None),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages.0.content.0.type", None),
        ({"messages": [{"role": "assistant"}]}, "messages.0", None),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}, "messages.0.tool_call_id", None),
        ({"stop": list("abcde")}, "stop", None),
        ({"temperature": 2.5}, "temperature", None),
        ({"temperature": -1}, "temperature", None),
        ({"temperature": math.nan}, "temperature", None),
        ({"top_p": math.inf}, "top_p", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"max_tokens": "5"}, "max_tokens", None),
        ({"stream": "yes"}, "stream", None),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", None),
        ({"logit_bias": {"999999": 1}}, "logit_bias", None),
        ({"unheard_of": 1}, "unheard_of", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", None),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        ({"response_format": {"type": "json_object", "value": 5}}, "response_format.value", None),
        (
            {"response_format": {"type": "json_object", "value": {"items": {"not": {}}}}},
            "response_format.value.items.not",
            "unsupported",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"pattern": "("}}}},
            "response_format.json_schema.schema",
            "unsupported",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}]},
            "tools.0.function.parameters.if",
            "unsupported",
        ),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools.0.function.name", None),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice", None),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"messages": [{"role": "user", "content": "hi " * 9000}]}, "messages", "context_length_exceeded"),
    ],
)
def test_wrong_fields(server: Server, fields: dict[str, Any], param: str | None, code: str | None) -> None:
    refused(server.post({"messages": HI, **fields}), 400, param, code)
    refused(server.post({"messages": HI, "stream": True, **fields}), 400, param, code)


def header_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = chunk(b"IHDR", size + bytes([8, 2, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,####", "invalid_image_format"),
        ("data:image/png;base64,", "invalid_image_format"),
        (data_uri(b"no picture at all"), "invalid_image_format"),
        (data_uri(png(Image.effect_noise((64, 64), 90))[:900]), "invalid_image_format"),
        (data_uri(header_of(20000, 20000)), "image_too_large"),
        ("file:///etc/passwd", "invalid_image"),
        ("/etc/passwd", "invalid_image"),
        ("http://127.0.0.1/a.png", "invalid_image"),
        ("https://example.org/a.png", "invalid_image"),
        ("ftp://example.org/a.png", "invalid_image"),
        ("", "invalid_image"),
    ],
)
def test_wrong_pictures(server: Server, url: str, code: str) -> None:
    message = refused(server.post({"messages": [{"role": "user", "content": look(url)}]}), 400)
    assert "root:" not in message
    reply = server.post({"messages": [{"role": "user", "content": look({"url": url})}], "stream": True})
    refused(reply, 400, "messages.0.content.1.image_url.url", code)


@pytest.mark.parametrize("fields", [{"path": "/etc/passwd"}, {"image": "/etc/passwd"}, {"image": [[[0, 0, 0]]]}])
def test_python_forms_of_pictures(server: Server, fields: dict[str, Any]) -> None:
    reply = server.post({"messages": [{"role": "user", "content": [{"type": "image", **fields}]}]})
    [name] = fields
    refused(reply, 400, f"messages.0.content.0.{name}", "invalid_image")


def test_pictures_share_a_pixel_limit(server: Server) -> None:
    """Each of these is allowed and small as a file; together they would take more memory than twice the largest."""
    big = data_uri(png(Image.new("1", (1400, 1400))))
    parts = [{"type": "image_url", "image_url": {"url": big}} for _ in range(3)]
    reply = server.post({"messages": [{"role": "user", "content": parts}]})
    assert "together" in refused(reply, 400, "messages.0.content.2.image_url.url", "image_too_large")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"hi"', "object"),
        (b"\xff\xfe{}", "UTF-8"),
        ('{"messages":[]}'.encode("utf-16"), "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b'{"a":' * 50_000, "deep"),
        (b'{"seed":' + b"9" * 10_000 + b"}", "too long"),
        (b"[" + b"1," * 300_000 + b"1]", "values"),
    ],
)
def test_bad_bodies(server: Server, body: bytes, says: str) -> None:
    message = refused(requests.post(f"{server.base}/chat/completions", data=body, timeout=30), 400, code="invalid_json")
    assert says in message


def test_base64_is_not_echoed(server: Server) -> None:
    secret = base64.b64encode(b"the secret picture" * 50).decode()
    reply = server.post({"messages": [{"role": "user", "content": look("data:image/png;base64," + secret)}]})
    refused(reply, 400)
    assert secret[:24] not in reply.text
