"""OpenAI's decisions over HTTP."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, NoReturn

from pocketvlm.decisions.request import AskedQuestion, DecisionRequest
from pocketvlm.decisions.response import DecisionResponse, response_of
from pocketvlm.messages import ChatCompletion, ChatRequest
from pocketvlm.server.http_errors import HTTPError
from pocketvlm.server.operation import Operation
from pocketvlm.server.protocols.error_forms import OPENAI_ERROR
from pocketvlm.server.protocols.exchange import AskedModel, Chunks, Exchange, parsed

OPERATIONS = (
    Operation(
        method="post",
        path="/decisions",
        name="createDecision",
        summary="Answer questions about texts and pictures with the probabilities of the possible answers.",
        request=DecisionRequest,
        answer=DecisionResponse,
        error=OPENAI_ERROR,
        success="The answers.",
    ),
)


class Decisions(Exchange):
    """The questions are asked one after the other; what stands before them is evaluated once."""

    def __init__(self, questions: list[AskedQuestion]) -> None:
        self._questions = questions
        super().__init__(self._request(questions[0]), stream=False, paths=questions[0].paths)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Decisions:
        """Raises RequestError with the path of the wrong field."""
        return cls(list(DecisionRequest.parse_object(body).asked()))

    def body(self, model: AskedModel) -> Generator[bytes, None, None]:
        decisions = []
        for question in self._questions:
            request = self._request(question)
            decisions.append(model.decide(request, question.choices))
        response, usage = response_of([one.question for one in self._questions], decisions, self.model)
        model.note(usage, response.timings)
        yield response.model_dump_json().encode()

    def _request(self, question: AskedQuestion) -> ChatRequest:
        """Return the request of one question. From now on, paths in errors are those of this question."""
        self._paths = question.paths
        return parsed(question.body, question.paths)

    def whole(self, completion: ChatCompletion) -> bytes:  # noqa: ARG002
        raise AssertionError("nothing is written")

    def events(self, chunks: Chunks) -> NoReturn:  # noqa: ARG002
        raise AssertionError("nothing is written")

    def failure(self, error: HTTPError) -> bytes:
        return error.json()
