"""OpenAI's decisions over HTTP, asked by its own client, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import jsonschema
import openai
import pytest
import requests

from integration.asking import disc
from pocketvlm.server import openapi
from server.conftest import Server, refused

YES = {"type": "predicate", "instructions": "Is there a red circle?"}


def uri() -> str:
    file = io.BytesIO()
    disc("red", 7).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def post(server: Server, **body: Any) -> requests.Response:
    return requests.post(f"{server.base}/decisions", data=json.dumps(body), timeout=60)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base, api_key="none", max_retries=0)


def test_the_client_of_openai(client: openai.OpenAI) -> None:
    """Its types are the contract: it parses the answers by them."""
    picture = {"type": "input_image", "image_url": uri(), "detail": "auto"}
    decision = client.decisions.create(
        model="iota",
        input=[{"role": "user", "content": [picture]}],  # type: ignore[list-item]
        questions=[
            {**YES, "name": "red"},  # type: ignore[list-item,misc]
            {"type": "predicate", "instructions": "There is a blue square."},
            {
                "type": "choice",
                "instructions": [{"type": "input_text", "text": "What is it?"}],
                "choices": [{"value": "A circle"}, {"value": "A star", "description": "with five points"}],
            },
            {"type": "choice", "instructions": "Is it red?", "choices": [{"value": True}, {"value": False}]},
            {"type": "score", "instructions": "How large is it?", "levels": [{"label": "small"}, {"label": "big"}]},
        ],
        prompt_cache_key="door",
    )
    red, blue, what, truth, size = decision.answers
    assert (red.type, red.name, blue.name) == ("predicate", "red", None)
    assert red.type == "predicate" == blue.type
    assert red.probability > blue.probability
    assert what.type == "choice" == truth.type
    assert what.choice in ("A circle", "A star")
    assert truth.choice in (True, False)
    assert [type(one.value) for one in truth.probabilities] == [bool, bool]
    assert sum(one.probability for one in what.probabilities) == pytest.approx(1)
    assert 0 <= what.confidence <= 1
    assert size.type == "score"
    assert [(one.label, one.value) for one in size.probabilities] == [("small", 0), ("big", 1)]
    assert size.score == pytest.approx(size.probabilities[1].probability)
    assert decision.model == "iota"
    assert decision.usage.output_tokens == 0
    assert decision.usage.input_tokens == decision.usage.total_tokens
    # The picture is evaluated for the first question alone.
    assert decision.usage.input_tokens_details.cached_tokens > 4 * 16


def test_a_text_and_several_messages(server: Server) -> None:
    reply = post(server, input="A red circle is on the table.", questions=[YES]).json()
    assert 0 <= reply["answers"][0]["probability"] <= 1
    assert 0 < reply["answers"][0]["coverage"] <= 1
    assert reply["model"] == "iota"
    messages = [
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": [{"type": "input_json", "data": {"shape": "circle"}}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A circle"}]},
    ]
    longer = post(server, input=messages, questions=[YES, YES]).json()
    assert len(longer["answers"]) == 2
    assert longer["answers"][0]["probability"] == pytest.approx(longer["answers"][1]["probability"], abs=0.02)


def test_as_in_the_document(server: Server) -> None:
    reply = post(server, input="?", questions=[YES, {"type": "choice", "instructions": "Which?", "choices": [
        {"value": "one"}, {"value": "two"}]}])  # fmt: skip
    document = openapi.document()
    operation = document["paths"]["/v1/decisions"]["post"]
    schema = {**operation["responses"]["200"]["content"]["application/json"]["schema"], **document}
    jsonschema.validate(reply.json(), {"$ref": schema["$ref"], "components": document["components"]})
    assert requests.post(f"{server.url}/decisions", json={"input": "?", "questions": [YES]}, timeout=60).ok


def test_the_metrics_know_of_it(server: Server) -> None:
    def prompt_tokens() -> float:
        lines = server.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("pocketvlm_prompt_tokens_total")).split()[1])

    before = prompt_tokens()
    usage = post(server, input="A text.", questions=[YES]).json()["usage"]
    assert math.isclose(prompt_tokens() - before, usage["input_tokens"])


def choice(*values: Any, **more: Any) -> dict[str, Any]:
    return {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values], **more}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"questions": [YES]}, "input"),
        ({"input": "x"}, "questions"),
        ({"input": "x", "questions": []}, "questions"),
        ({"input": "x", "questions": [YES] * 401}, "questions"),
        ({"input": "x", "questions": [YES], "temperature": 1}, "temperature"),
        ({"input": 3, "questions": [YES]}, "input"),
        ({"input": "x", "questions": [{"type": "noul"}]}, "questions.0.type"),
        ({"input": "x", "questions": [{"type": "predicate"}]}, "questions.0.instructions"),
        ({"input": "x", "questions": [YES, choice()]}, "questions.1.choices"),
        ({"input": "x", "questions": [choice("one")]}, "questions.0.choices"),
        ({"input": "x", "questions": [choice("one", " one")]}, "questions.0.choices.1"),
        ({"input": "x", "questions": [choice("true", True)]}, "questions.0.choices.1"),
        ({"input": "x", "questions": [choice("one", "")]}, "questions.0.choices.1"),
        ({"input": "x", "questions": [choice("one", 2)]}, "questions.0.choices.1.value"),
        ({"input": "x", "questions": [choice(*map(str, range(256)))]}, "questions.0.choices"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}],
          "questions": [YES]}, "input.0.content.0.image_url"),
        ({"input": [{"role": "user", "content": 5}], "questions": [YES]}, "input.0.content"),
        ({"input": [{"role": "user", "content": False}], "questions": [YES]}, "input.0.content"),
        ({"input": [{"role": "user", "content": {"type": "text"}}], "questions": [YES]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}], "questions": [YES]},
         "input.0.content.0.text"),
        ({"input": "x", "questions": [{**YES, "instructions": [{"type": "input_text", "text": 5}]}]},
         "questions.0.instructions.0.text"),
        ({"input": [{"type": "function_call", "name": "f"}], "questions": [YES]}, "input.0"),
        ({"input": [{"role": "robot", "content": "x"}], "questions": [YES]}, "input.0.role"),
        ({"input": "x", "questions": [{**YES, "instructions": [{"type": "audio"}]}]},
         "questions.0.instructions.0.type"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Server, body: dict[str, Any], param: str) -> None:
    refused(post(server, **body), 400, param)
