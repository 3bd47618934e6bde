"""The answer: OpenAI's Response object with the items of its output."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pocketvlm.messages import Timings, TokenLogprob
from pocketvlm.messages.base import Omitted

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ResponseOutputText(_Answer):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ResponseOutputMessage(_Answer):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[ResponseOutputText]


class ResponseSummaryText(_Answer):
    type: Literal["summary_text"] = "summary_text"
    text: str


class ResponseReasoningText(_Answer):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ResponseReasoning(_Answer):
    """The thought is the `content`, or the `summary` if the request wants one.

    `encrypted_content`, if the request wants it, has the thought for clients that send back nothing else of it.
    """

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[ResponseSummaryText]
    content: list[ResponseReasoningText]
    encrypted_content: str | None = None


class ResponseFunctionCall(_Answer):
    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    namespace: Omitted[str] = None
    arguments: str


class ResponseCustomCall(_Answer):
    id: str
    type: Literal["custom_tool_call"] = "custom_tool_call"
    status: ItemStatus
    call_id: str
    name: str
    namespace: Omitted[str] = None
    input: str


class ResponseLocalShellCall(_Answer):
    id: str
    type: Literal["local_shell_call"] = "local_shell_call"
    status: ItemStatus
    call_id: str
    action: dict[str, Any]


class ResponseShellCall(_Answer):
    id: str
    type: Literal["shell_call"] = "shell_call"
    status: ItemStatus
    call_id: str
    action: dict[str, Any]


class ResponsePatchCall(_Answer):
    id: str
    type: Literal["apply_patch_call"] = "apply_patch_call"
    status: ItemStatus
    call_id: str
    operation: dict[str, Any]


OutputItem = (
    ResponseOutputMessage
    | ResponseReasoning
    | ResponseFunctionCall
    | ResponseCustomCall
    | ResponseLocalShellCall
    | ResponseShellCall
    | ResponsePatchCall
)


class ResponseInputDetails(_Answer):
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    image_tokens: int = 0


class ResponseOutputDetails(_Answer):
    reasoning_tokens: int = 0


class ResponseUsage(_Answer):
    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class ResponseFault(_Answer):
    code: str
    message: str


class ResponseIncomplete(_Answer):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(_Answer):
    """`timings`, `notes` and `not_enforced` are extensions.

    `notes` say what of the request was left out, and are those of a chat completion; `not_enforced` are the paths of
    keywords in its schemas that the answer may not follow.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool = False
    error: ResponseFault | None = None
    incomplete_details: ResponseIncomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    reasoning: dict[str, Any]
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int = 0
    top_p: float
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, Any]
    timings: Omitted[Timings] = None
    notes: Omitted[list[str]] = None
    not_enforced: Omitted[list[str]] = None


class ResponseEvent(BaseModel):
    """An event of a stream. Which other fields it has follows from its type, as in OpenAI's API."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int


class DeletedResponse(_Answer):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ResponseItems(_Answer):
    """The items that a response answers, those of the responses before it included."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
