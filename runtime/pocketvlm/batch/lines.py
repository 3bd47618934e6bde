"""The lines of a batch's output: OpenAI's output form and `files`, the states of local files that were asked about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pocketvlm.batch.file_state import FileState
from pocketvlm.decisions.decision import Decision
from pocketvlm.decisions.response import DecisionResponse
from pocketvlm.errors import RequestError
from pocketvlm.messages import ChatCompletion


def answer_line(
    custom_id: str,
    completion: ChatCompletion | Decision | DecisionResponse,
    files: Sequence[FileState | None] = (),
) -> str:
    """Return the line of an answer or decision. It has no times, which differ in each run, but notes about pictures."""
    body = completion.model_dump(mode="json", exclude={"timings"})
    if any(image.notes for image in completion.timings.images):
        body["timings"] = completion.timings.model_dump(
            mode="json", include={"images": {"__all__": {"pages", "notes"}}}
        )
    return _line(custom_id, 200, body, files)


def error_line(custom_id: str, error: Exception) -> str:
    """Return the line of a failed request. Its body is what the server would answer."""
    invalid = isinstance(error, RequestError)
    content = {
        "message": str(error),
        "type": "invalid_request_error" if invalid else "server_error",
        "param": error.param if isinstance(error, RequestError) else None,
        "code": getattr(error, "code", None) or ("invalid_value" if invalid else "engine_error"),
    }
    return _line(custom_id, 400 if invalid else 500, {"error": content})


def _line(custom_id: str, status: int, body: dict[str, Any], files: Sequence[FileState | None] = ()) -> str:
    response = {"status_code": status, "request_id": None, "body": body}
    entry: dict[str, Any] = {"id": None, "custom_id": custom_id, "response": response, "error": None}
    if files:
        entry["files"] = [file and file.to_json() for file in files]
    return json.dumps(entry)


def identified(entry: dict[str, Any], request_hash: str) -> dict[str, Any]:
    """Return a line with the ids of the request that it answers."""
    response = {**entry["response"], "request_id": f"req_{request_hash}"}
    return {**entry, "id": line_id(request_hash), "response": response}


def line_id(request_hash: str) -> str:
    return f"batch_req_{request_hash}"


def answer_text(entry: dict[str, Any]) -> str | None:
    """Return the text of an answer; None where the request failed or the model said nothing in words."""
    text = _at(entry, "response", "body", "choices", 0, "message", "content") if succeeded(entry) else None
    if text is None and succeeded(entry):  # a decision
        text = _at(entry, "response", "body", "choice")
    return text if isinstance(text, str) else None


def answers_json(entry: dict[str, Any]) -> str | None:
    """Return the answers of decisions in OpenAI's form, as JSON; None where it is something else."""
    answers = _at(entry, "response", "body", "answers") if succeeded(entry) else None
    return json.dumps(answers, ensure_ascii=False) if isinstance(answers, list) else None


def answer_probability(entry: dict[str, Any]) -> float | None:
    """Return the probability of yes, or that of the likeliest choice; None where it is not a decision."""
    probabilities, kind = (_at(entry, "response", "body", name) for name in ("probabilities", "kind"))
    name = "yes" if kind == "yes_no" else _at(entry, "response", "body", "choice")
    probability = probabilities.get(name) if succeeded(entry) and isinstance(probabilities, dict) else None
    return probability if isinstance(probability, float) else None


def is_cut_off(entry: dict[str, Any]) -> bool:
    """Return whether an answer ended because it had the most tokens that it might."""
    return bool(_at(entry, "response", "body", "choices", 0, "finish_reason") == "length")


def error_text(entry: dict[str, Any]) -> str:
    """Return why a request failed, for people, who did not write the message's fields; empty for an answer."""
    if succeeded(entry):
        return ""
    message = str(_at(entry, "response", "body", "error", "message") or "no reason is recorded")
    param = str(_at(entry, "response", "body", "error", "param"))
    return message.removeprefix(f"{param}: ") if param.startswith("messages.") else message


def succeeded(entry: dict[str, Any]) -> bool:
    return bool(entry["response"]["status_code"] == 200)


def _at(value: Any, *path: str | int) -> Any:
    """Return what is at a path, None where there is nothing: a record may have been edited."""
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return None
    return value
