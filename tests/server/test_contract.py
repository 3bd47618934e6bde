"""The HTTP contract: routes, answers, streams, and every refusal with its status and field."""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from typing import Any

import pytest
import requests
from PIL import Image

from server.conftest import Server, data_uri, look, png, refused

HI = [{"role": "user", "content": "hi"}]
PATTERN = {"name": "a", "schema": {"type": "string", "pattern": "a(?=b)"}}
KINDS = {
    name: {"type": "object", "properties": {"kind": {"const": name}, "n": {"type": "integer"}}, "required": ["kind"]}
    for name in ("cat", "dog")
}
TAGGED = {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": KINDS}
FOREIGN = {"name": "other", "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def schema_format(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


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
        {"type": "image", "image": sample_uri},
        {"type": "input_image", "image_url": sample_uri.partition(",")[2]},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": sample_uri.partition(",")[2]},
        },
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
    assert sorted(word in note for note in image["notes"] for word in ("page 1 of 2", "black")) == [
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


@pytest.mark.parametrize("fields", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_a_begun_answer_goes_on(server: Server, fields: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"shape": {"const": "disc"}}, "additionalProperties": False}
    begun = {"role": "assistant", "content": '{"shape": "di', "prefix": True, "reasoning": "Hm."}
    body = {"messages": [*HI, begun], "response_format": {"type": "json_object", "value": schema}, **fields}
    rest = server.post(body).json()["choices"][0]["message"]["content"]
    assert json.loads('{"shape": "di' + rest) == {"shape": "disc"}


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


def test_fields_of_other_servers(server: Server) -> None:
    """Hints are ignored, and the rest does what it does there."""
    ignored = {"store": False, "prompt_cache_key": "k", "service_tier": "auto", "modalities": ["text"]}
    server.ask(
        "hi", **ignored, cache_prompt=True, verbosity="low", max_tokens="1", temperature="0.5", top_k=-1, seed=-1
    )
    short = server.ask("hi", max_tokens=-1)["usage"]["completion_tokens"]
    longer = server.ask(
        "hi", min_tokens=short + 5, max_tokens=short + 9, chat_template_kwargs={"enable_thinking": False}
    )
    assert longer["usage"]["completion_tokens"] >= short + 5
    scored = server.ask("hi", min_tokens=short + 5, max_tokens=short + 5, logprobs=True)
    assert len(scored["choices"][0]["logprobs"]["content"]) == short + 5
    assert server.ask("hi", top_p=0, temperature=2, seed=1)["choices"] == server.ask("hi")["choices"]


def test_a_conversation_of_many_pictures(server: Server) -> None:
    """They have 10 megapixels together; the limit of one is 2."""
    messages: list[dict[str, Any]] = []
    for number in range(5):
        sheet = Image.new("1", (1400, 1400), 1)
        sheet.paste(0, (200 * number, 0, 200 * number + 90, 150))
        picture = {"type": "image_url", "image_url": {"url": data_uri(png(sheet)), "detail": "low"}}
        messages += [{"role": "user", "content": [picture]}, {"role": "assistant", "content": "ok."}]
    for _ in range(2):
        reply = server.post({"messages": [*messages, *HI], "max_tokens": 1})
        assert reply.status_code == 200, reply.text
    images = reply.json()["timings"]["images"]
    assert [image["original_size"] for image in images] == [[1400, 1400]] * 5
    assert [image["cache"] for image in images] == ["kv"] * 5


def test_pictures_of_results(server: Server, sample_uri: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "shot", "arguments": ""}}
    picture = {"type": "image_url", "image_url": {"url": sample_uri}}
    for content in ([picture, "done"], [{"type": "image", "base64": sample_uri.partition(",")[2]}], None):
        messages = [
            {"role": "user", "content": "How many shapes are there?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": content},
            {"role": "user", "content": [picture] if content else "So?"},
        ]
        reply = server.post({"messages": messages, "tools": [TOOL], "max_tokens": 1})
        assert reply.status_code == 200, reply.text
        sizes = [image["original_size"] for image in reply.json()["timings"]["images"]]
        assert sizes == [[640, 480]] * (2 if content else 0)


def test_duplicate_keys_and_an_utf8_mark(server: Server) -> None:
    body = b'\xef\xbb\xbf{"max_tokens":5,"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
    reply = requests.post(f"{server.base}/chat/completions", data=body, timeout=60)
    assert reply.json()["usage"]["completion_tokens"] == 1


# ---- streams


def test_stream(server: Server, sample_uri: str) -> None:
    chunks = server.stream(look({"url": sample_uri}, "Describe the picture."))
    whole = server.ask(look({"url": sample_uri}, "Describe the picture."))
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}  # clients add up what they get, roles too
    assert all(set(delta) == {"content"} for delta in deltas[1:])
    assert deltas[-1] == {"content": ""}
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
            f"{server.url}{prefix}/chat/completions", json={"messages": HI, "max_tokens": 1}, timeout=60
        )
        assert reply.status_code == 200


@pytest.mark.parametrize("model", [None, "iota", "dummy", "", "gpt-4o", "http://127.0.0.1:8080/v1/chat/completions"])
def test_one_model_answers_to_any_name(server: Server, model: str | None) -> None:
    assert server.ask("hi", model=model, max_tokens=1)["model"] == "iota"


def test_other_routes(server: Server) -> None:
    refused(server.get("/v2/models"), 404, code="not_found")
    refused(server.get("/v1/chat/completions"), 405, code="method_not_allowed")
    refused(requests.delete(f"{server.base}/models", timeout=60), 405)
    assert server.get("/nothing").headers["x-request-id"]
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"


# ---- refusals


@pytest.mark.parametrize(
    ("fields", "not_enforced"),
    [
        (
            {"tools": [TOOL, {"type": "function", "function": FOREIGN}]},
            ["tools.1.function.parameters.properties.x.not"],
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": PATTERN}},
            ["response_format.json_schema.schema.pattern"],
        ),
        (
            {"response_format": schema_format({"type": "string", "format": "zzz"}, strict=True)},
            ["response_format.json_schema.schema.format"],
        ),
        ({"response_format": schema_format(TAGGED, strict=True)}, None),
        ({"response_format": {"type": "json_object", "value": {"type": "OBJECT", "properties": None}}}, None),
    ],
)
def test_what_is_not_enforced_is_named(server: Server, fields: dict[str, Any], not_enforced: list[str] | None) -> None:
    answer = server.ask("hi", max_tokens=1, **fields)
    assert answer.get("not_enforced") == not_enforced
    chunks = server.stream("hi", max_tokens=1, **fields)
    assert chunks[-1].get("not_enforced") == not_enforced


@pytest.mark.parametrize(
    ("fields", "texts"),
    [({}, ['{"ok":true}', '{"ok":false}', '{"ok": true}', '{"ok": false}']), ({"json_whitespace": "pretty"}, [])],
)
def test_a_schema_that_says_little(server: Server, fields: dict[str, Any], texts: list[str]) -> None:
    """The answer ends: no other properties, and no white space unless it is asked for."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    choice = server.ask("is it?", max_tokens=120, response_format=schema_format(schema), **fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] in texts or (
        not texts and set(json.loads(choice["message"]["content"])) == {"ok"}
    )


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
        ({"max_tokens": "five"}, "max_tokens", None),
        ({"stream": "yes"}, "stream", None),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", None),
        ({"logit_bias": {"999999": 1}}, "logit_bias", None),
        ({"unheard_of": 1}, "unheard_of", None),
        ({"response_format": {"type": "xml"}}, "response_format.type", None),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        ({"response_format": {"type": "json_object", "value": 5}}, "response_format.value", None),
        (
            {"response_format": {"type": "json_object", "value": {"type": "integer", "minimum": 5, "maximum": 1}}},
            "response_format.value",
            "unsupported",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**PATTERN, "strict": True}}},
            "response_format.json_schema.schema.pattern",
            "unsupported",
        ),
        (
            {"tools": [TOOL, {"type": "function", "function": {**FOREIGN, "strict": True}}]},
            "tools.1.function.parameters.properties.x.not",
            "unsupported",
        ),
        ({"json_whitespace": "wide"}, "json_whitespace", None),
        ({"tools": [{"type": "function", "function": {"name": 'a "quote"'}}]}, "tools.0.function.name", None),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice", None),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", None),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"messages": [{"role": "user", "content": "hi " * 9000}]}, "messages", "context_length_exceeded"),
    ],
)
def test_wrong_fields(server: Server, fields: dict[str, Any], param: str | None, code: str | None) -> None:
    message = refused(server.post({"messages": HI, **fields}), 400, param, code)
    assert message.startswith(f"{param}: ")  # clients show nothing else
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


def test_pictures_share_a_limit_of_work(server: Server) -> None:
    """Each of these is allowed and small as a file; together they would keep a core busy for long."""
    # Each is another one, because a picture that is shown several times counts once.
    image, big = Image.new("1", (1400, 1400)), []
    for number in range(34):
        image.putpixel((number, 0), 1)
        big.append(data_uri(png(image)))
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in big]
    reply = server.post({"messages": [{"role": "user", "content": parts}]})
    assert "together" in refused(reply, 400, "messages.0.content.32.image_url.url", "image_too_large")


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
    message = refused(requests.post(f"{server.base}/chat/completions", data=body, timeout=60), 400, code="invalid_json")
    assert says in message


def test_base64_is_not_echoed(server: Server) -> None:
    secret = base64.b64encode(b"the secret picture" * 50).decode()
    reply = server.post({"messages": [{"role": "user", "content": look("data:image/png;base64," + secret)}]})
    refused(reply, 400)
    assert secret[:24] not in reply.text
