"""The OpenAPI document is true: schemathesis sends what it allows and what it forbids, and reads the answers by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import CHECKS
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pocketvlm.server import openapi
from server.conftest import Server

for media_type in ("application/pdf", "video/*"):
    schemathesis.serializer.alias(media_type, "application/octet-stream")
# Without the prefix the routes are the same, and so are the functions behind them.
schema = schemathesis.openapi.from_dict(openapi.document()).include(path_regex="^/(v1|api/(show|tags|ps|version)$)")
QUICK = settings(
    max_examples=12,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


# What keeps an answer short, by the end of its path.
SHORT: dict[str, dict[str, Any]] = {
    "/chat/completions": {"max_tokens": 1, "max_completion_tokens": None, "n": None},
    "/completions": {"max_tokens": 1, "n": None},
    "/responses": {"max_output_tokens": 1},
    "/messages": {"max_tokens": 1},
}


@pytest.mark.slow
@schema.parametrize()
@QUICK
def test_schemathesis(server: Server, case: Any) -> None:
    if isinstance(case.body, dict) and case.meta.generation.mode.is_positive:  # a model's time is not tested here
        case.body = {**case.body, **next((fields for end, fields in SHORT.items() if case.path.endswith(end)), {})}
        if isinstance(prompts := case.body.get("prompt"), list):
            case.body["prompt"] = prompts[:2]
    # What is valid by the schema may still be refused for what no schema says: base64 that is no picture, a model
    # that is not here, structured answers and tools.
    case.call_and_validate(base_url=server.url, excluded_checks=[positive_data_acceptance], timeout=60)


def test_the_document(server: Server) -> None:
    served = server.get("/openapi.json").json()
    assert served == json.loads(json.dumps(openapi.document()))
    assert set(served["paths"]) >= {"/v1/chat/completions", "/chat/completions", "/health", "/v1/models/{id}"}
    request = served["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] is False
    assert {"messages", "tools", "response_format", "max_completion_tokens"} <= set(request["properties"])
    for part in ("ImagePart", "FilePart"):
        assert not {"path", "image"} & set(served["components"]["schemas"][part]["properties"])
    assert len(served["components"]["securitySchemes"]) == 2
    assert len(CHECKS.get_all()) > 5


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_every_route_is_there(server: Server, prefix: str) -> None:
    for path in ("/models", "/models/iota", "/health", "/metrics", "/openapi.json"):
        assert server.get(prefix + path).status_code == 200
