"""The routes of Responses: create, show, delete, and list what was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pocketvlm.errors import RequestError, shortened
from pocketvlm.messages.field_errors import validated
from pocketvlm.server.endpoint import Answers
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Operation, Stream
from pocketvlm.server.protocols.chat_completions import INPUT_TOKENS
from pocketvlm.server.protocols.error_forms import OPENAI_ERROR
from pocketvlm.server.protocols.exchange import parsed
from pocketvlm.server.protocols.responses import answer
from pocketvlm.server.protocols.responses.exchange import STORED, ResponseExchange
from pocketvlm.server.protocols.responses.items import Item, ItemReference, MessageItem
from pocketvlm.server.protocols.responses.schema import CreateResponse
from pocketvlm.server.protocols.responses.stored import ResponseStore, StoredItem, StoredResponse
from pocketvlm.server.protocols.responses.tools import Toolbox
from pocketvlm.server.protocols.responses.translate import translate

_PAGE, _LARGEST_PAGE = 20, 100  # items that are listed at once


class Responses:
    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def routes(self, answers: Answers) -> Iterator[Route]:
        # A small body may name a whole conversation that is kept.
        for prefix in ("/v1", ""):
            path = f"{prefix}/responses"
            yield Route(path, answers.endpoint(self.parse, in_thread=True), methods=["POST"])
            yield Route(f"{path}/input_tokens", answers.counter(self.parse, in_thread=True), methods=["POST"])
            yield Route(f"{path}/{{id}}", self.show, methods=["GET", "DELETE"])
            yield Route(f"{path}/{{id}}/input_items", self.list_items, methods=["GET"])

    def parse(self, body: Mapping[str, Any]) -> ResponseExchange:
        """Raises RequestError or HTTPError with the path of the wrong field."""
        asked = validated(CreateResponse, body)
        placed = self._conversation(asked, body)
        toolbox = Toolbox.of(asked.tools or ())
        chat, paths = translate(asked, [(stored.item, path) for stored, path in placed], toolbox)
        items = [stored for stored, _ in placed]
        request = parsed(chat, paths)
        return ResponseExchange(request, paths=paths, asked=asked, items=items, toolbox=toolbox, store=self._store)

    def _conversation(self, asked: CreateResponse, body: Mapping[str, Any]) -> list[tuple[StoredItem, str]]:
        """Return the items of the earlier answer and of the request, each with its path."""
        placed: list[tuple[StoredItem, str]] = []
        if asked.previous_response_id is not None:
            previous = self._store.find(asked.previous_response_id)
            if previous is None:
                raise _unknown(400, asked.previous_response_id, STORED, "previous_response_not_found")
            placed += [(item, STORED) for item in previous.conversation]
        elif asked.input is None:
            raise RequestError("is required", "input")
        if isinstance(asked.input, str):
            sent: dict[str, Any] = {"type": "message", "role": "user", "content": asked.input}
            return [*placed, (StoredItem(sent, MessageItem(role="user", content=asked.input)), "input")]
        ids = {stored.id for stored, _ in placed}
        for i, item in enumerate(asked.input or ()):
            path = f"input.{i}"
            stored = self._stored(item, body["input"][i], path)
            if stored.id in ids:  # lists of items name their places by ids
                stored = stored.repeated()
            ids.add(stored.id)
            placed.append((stored, path))
        return placed

    def _stored(self, item: Item, sent: Mapping[str, Any], path: str) -> StoredItem:
        if not isinstance(item, ItemReference):
            return StoredItem(sent, item)
        if (stored := self._store.item(item.id)) is None:
            raise _unknown(404, item.id, f"{path}.id", "item_not_found")
        return stored

    async def show(self, request: Request) -> Response:
        """GET and DELETE /responses/{id}."""
        id = request.path_params["id"]
        if request.method == "DELETE":
            if not self._store.remove(id):
                raise _unknown(404, id, "id", "response_not_found")
            return JSONResponse(answer.DeletedResponse(id=id).model_dump())
        if request.query_params.get("stream") == "true":
            raise HTTPError(400, "stream: a response is shown as a whole", "stream", "unsupported")
        return Response(self._find(id).body, media_type="application/json")

    async def list_items(self, request: Request) -> Response:
        """GET /responses/{id}/input_items."""
        query = request.query_params
        items = [item.data for item in self._find(request.path_params["id"]).input]
        if query.get("order", "desc") != "asc":
            items.reverse()
        if (after := query.get("after")) is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise HTTPError(400, "after: there is no such item", "after", "invalid_value")
            items = items[ids.index(after) + 1 :]
        limit = query.get("limit", str(_PAGE))
        if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _LARGEST_PAGE:
            raise HTTPError(400, f"limit: must be from 1 to {_LARGEST_PAGE}", "limit", "invalid_value")
        page = items[: int(limit)]
        listed = answer.ResponseItems(
            data=page,
            first_id=page[0]["id"] if page else None,
            last_id=page[-1]["id"] if page else None,
            has_more=len(items) > len(page),
        )
        body = await asyncio.to_thread(listed.model_dump_json)
        return Response(body, media_type="application/json")

    def _find(self, id: str) -> StoredResponse:
        if (response := self._store.find(id)) is None:
            raise _unknown(404, id, "id", "response_not_found")
        return response


def _unknown(status: int, id: str, param: str, code: str) -> HTTPError:
    message = f"{param}: {shortened(id)} is unknown here, or was removed"
    return HTTPError(status, message, param, code)


_STREAM = Stream((answer.ResponseEvent,), named=True)
_of_response = partial(Operation, path="/responses/{id}", error=OPENAI_ERROR)
OPERATIONS = (
    Operation(
        method="post",
        path="/responses",
        name="createResponse",
        summary="Answer as OpenAI's Responses. With stream: true, as typed server-sent events.",
        request=CreateResponse,
        answer=answer.Response,
        stream=_STREAM,
        error=OPENAI_ERROR,
        success="The answer.",
    ),
    Operation(
        method="post",
        path="/responses/input_tokens",
        name="countInputTokens",
        summary="Count the tokens of a request, pictures included, without answering it.",
        request=CreateResponse,
        answer=INPUT_TOKENS,
        error=OPENAI_ERROR,
        success="The count.",
    ),
    _of_response(method="get", name="getResponse", summary="An answer that is kept.", answer=answer.Response),
    _of_response(method="delete", name="deleteResponse", summary="Remove an answer.", answer=answer.DeletedResponse),
    Operation(
        method="get",
        path="/responses/{id}/input_items",
        name="listInputItems",
        summary="The items that an answer answers.",
        answer=answer.ResponseItems,
        error=OPENAI_ERROR,
    ),
)
