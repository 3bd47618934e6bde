"""Turn the engine's events into chunks, and chunks into a completion. No I/O."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import groupby
from typing import Any

from pocketvlm.engine.interface import EngineInfo, Finished, PrefillDone, Token, TokenScore
from pocketvlm.files.bundle import Scope
from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    FinishReason,
    FunctionDelta,
    PromptTokensDetails,
    Region,
    ResponseFunction,
    ResponseMessage,
    ResponseToolCall,
    Timings,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from pocketvlm.messages.response import timings_sum, usage_sum
from pocketvlm.regions.answer_text import AnswerText
from pocketvlm.regions.frame import Frame
from pocketvlm.regions.notation import Notation
from pocketvlm.structured.begun_answer import text_of
from pocketvlm.structured.compile import CompiledRequest
from pocketvlm.structured.output_parser import OutputPiece


class CompletionBuilder:
    """Turn the engine's events for one request into the chunks of its answer, one choice after the other.

    For each choice: `begin_choice`, `add` for every event until `stopped` or the last one, `end_choice`. Then `end`.
    With `control_tokens`, those of the answer are content. `notation` is how the model writes places, and `locates`:
    the request asks for some.
    """

    def __init__(
        self,
        compiled: CompiledRequest,
        info: EngineInfo,
        *,
        choices: int = 1,
        queue_ms: float = 0.0,
        load_ms: float = 0.0,
        control_tokens: bool = False,
        scope: Scope | None = None,
        notation: Notation | None = None,
        locates: bool = False,
    ) -> None:
        self._compiled = compiled
        self._info = info
        self._controls = info.control_tokens if control_tokens else None
        self._choices = choices
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._prefills: list[PrefillDone] = []
        self._queue_ms, self._load_ms = queue_ms, load_ms
        self._decode_ms = 0.0
        self._tokens = self._thought_tokens = self._drafted = self._accepted = 0
        self._decode_steps = 0  # tokens except the first of each choice, which comes with its prompt
        self._index = -1
        self._scope = scope
        self._certainty = 1.0  # the least of all choices
        self._notation, self._locates = notation, locates
        self._cut_off = False  # a region may go on where the model saw nothing

    def begin_choice(self) -> None:
        self._index += 1
        self._text = self._answer_text()
        placeholders = self._text.placeholders if self._text and self._controls is None else None
        self._parser = self._compiled.output_parser(self._controls or placeholders)
        self._reason: FinishReason = "stop"
        self._choice_ms = 0.0
        self._has_token = False

    def _answer_text(self) -> AnswerText | None:
        """Return what collects the content, if places in it are looked for."""
        if self._notation is None or self._notation.refusal:
            return None
        begun = self._compiled.begun
        tokens = {} if self._controls is not None else self._info.control_tokens
        return AnswerText(self._notation, tokens, begun=text_of(begun) if begun is not None else "")

    @property
    def stopped(self) -> bool:
        """Whether the choice has reached a stop string, so that its generation can be closed."""
        return self._parser.stopped

    def add(self, event: PrefillDone | Token | Finished) -> Iterator[ChatCompletionChunk]:
        match event:
            case PrefillDone():
                self._prefills.append(event)
                yield self._choice_chunk(Delta(role="assistant")).with_prompt(self._usage())
            case Token():
                self._tokens += 1
                self._thought_tokens += self._parser.in_thought
                self._decode_steps += self._has_token
                self._has_token = True
                self._drafted += event.drafted
                self._accepted += event.accepted
                self._choice_ms = event.ms
                logprobs = _logprobs(event.data, event.score) if event.score else None
                pieces = self._shown(self._parser.push(event.data, event.id))
                for delta in map(_delta, pieces) if pieces else [Delta()] * (logprobs is not None):
                    yield self._choice_chunk(delta, logprobs=logprobs)
                    logprobs = None
            case Finished():
                self._reason = event.reason
                if event.certainty is not None:
                    self._certainty = min(self._certainty, event.certainty)

    def end_choice(self) -> Iterator[ChatCompletionChunk]:
        """Yield what the parser held back, and the finish reason: with the timings if this is the last choice."""
        self._decode_ms += self._choice_ms
        for piece in self._shown(self._parser.finish()):
            yield self._choice_chunk(_delta(piece))
        if self._parser.calls and self._reason == "stop":
            self._reason = "tool_calls"
        timings = self._timings() if self._index == self._choices - 1 else None
        regions = self._text.regions(self._prefills[0].images) if self._text and self._prefills else []
        self._cut_off = self._cut_off or any(region.cut_off for region in regions)
        yield self._choice_chunk(Delta(regions=regions or None), finish_reason=self._reason, timings=timings)

    def end(self) -> ChatCompletionChunk:
        """Return the last chunk: no choices, but usage and timings."""
        return self._chunk([], usage=self._usage(), timings=self._timings())

    def _shown(self, pieces: Iterable[OutputPiece]) -> list[OutputPiece]:
        """Return pieces without placeholders, and without those that are nothing else."""
        if self._text is None:
            return list(pieces)
        shown = []
        for piece in pieces:
            text = (self._text.push if piece.kind == "content" else self._text.shown)(piece.text)
            if text != piece.text:
                piece = replace(piece, text=text)
            if piece.text or piece.kind not in ("content", "reasoning"):
                shown.append(piece)
        return shown

    def _choice_chunk(
        self,
        delta: Delta,
        *,
        logprobs: ChoiceLogprobs | None = None,
        finish_reason: FinishReason | None = None,
        timings: Timings | None = None,
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(
            index=self._index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=self._parser.stop if finish_reason else None,
        )
        return self._chunk([choice], timings=timings)

    def _chunk(
        self, choices: list[ChunkChoice], *, usage: Usage | None = None, timings: Timings | None = None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._info.name,
            system_fingerprint=self._info.fingerprint,
            choices=choices,
            usage=usage,
            timings=timings,
            not_enforced=list(self._compiled.not_enforced) if timings and self._compiled.not_enforced else None,
            notes=self._notes() if timings else None,
        )

    def _notes(self) -> list[str] | None:
        return [*self._guess_notes(), *self._cut_notes()] or None

    def _guess_notes(self) -> Iterator[str]:
        scope = self._scope
        if scope is not None and scope.min_probability is not None and self._certainty < scope.min_probability:
            yield f"{self._info.name} is guessing: it knows only {scope.knows}"

    def _cut_notes(self) -> Iterator[str]:
        """Yield a note for each picture of which a part was cut off, if the answer is about places there."""
        images = self._prefills[0].images if self._locates or self._cut_off else ()
        for number, image in enumerate(images, 1):
            if image.view is not None and Frame.of(image).is_cut:
                _, _, width, height = image.view
                name = f"picture {number}" if len(images) > 1 else "the picture"
                size = "{}x{}".format(*image.original_size)
                yield (
                    f"{self._info.name} sees only the middle {width:.0f}x{height:.0f} pixels of {name}, which has "
                    f"{size}; what is cut off is in no region"
                )

    def _usage(self) -> Usage:
        first = self._prefills[0]
        return Usage(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=self._tokens,
            total_tokens=first.prompt_tokens + self._tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=first.cached_tokens, image_tokens=sum(image.tokens for image in first.images)
            ),
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens=self._thought_tokens),
        )

    def _timings(self) -> Timings:
        prefills, steps, decode_ms = self._prefills, self._decode_steps, self._decode_ms
        prefill_ms = sum(prefill.prefill_ms for prefill in prefills)
        evaluated = sum(prefill.prompt_tokens - prefill.cached_tokens for prefill in prefills)
        return Timings(
            images=list(prefills[0].images),
            queue_ms=self._queue_ms + sum(prefill.queue_ms for prefill in prefills),
            load_ms=self._load_ms,
            prefill_ms=prefill_ms,
            decode_ms=decode_ms,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            prefill_tokens_per_second=1000 * evaluated / prefill_ms if prefill_ms else None,
            decode_tokens_per_second=1000 * steps / decode_ms if steps and decode_ms else None,
        )


def _logprobs(data: bytes, score: TokenScore) -> ChoiceLogprobs:
    def entry(token: bytes) -> dict[str, Any]:
        return {"token": token.decode("utf-8", "replace"), "bytes": list(token)}

    top = [TopLogprob(**entry(token), logprob=logprob) for _, token, logprob in score.top]
    return ChoiceLogprobs(content=[TokenLogprob(**entry(data), logprob=score.logprob, top_logprobs=top)])


def _delta(piece: OutputPiece) -> Delta:
    if piece.kind == "content":
        return Delta(content=piece.text)
    if piece.kind == "reasoning":
        return Delta(reasoning_content=piece.text)
    if piece.kind == "call":
        call_id, function = f"call_{uuid.uuid4().hex[:24]}", FunctionDelta(name=piece.text)
        call = ToolCallDelta(index=piece.index, id=call_id, type="function", function=function)
    else:
        call = ToolCallDelta(index=piece.index, function=FunctionDelta(arguments=piece.text))
    return Delta(content=None, tool_calls=[call])


def fold(chunks: Iterable[ChatCompletionChunk]) -> ChatCompletion:
    """Join the chunks of `VLM.run` into one completion."""
    choices: dict[int, _Choice] = {}
    chunk: ChatCompletionChunk | None = None
    for chunk in chunks:
        for part in chunk.choices:
            choices.setdefault(part.index, _Choice(part.index)).add(part)
    assert chunk is not None and chunk.usage is not None and chunk.timings is not None
    return ChatCompletion(
        id=chunk.id,
        created=chunk.created,
        model=chunk.model,
        system_fingerprint=chunk.system_fingerprint,
        choices=[choice.join() for choice in choices.values()],
        usage=chunk.usage,
        timings=chunk.timings,
        not_enforced=chunk.not_enforced,
        notes=chunk.notes,
    )


def joined(runs: Iterable[Generator[ChatCompletionChunk, None, None]]) -> Generator[ChatCompletionChunk, None, None]:
    """Yield the chunks of several runs, one after the other, as those of one.

    Choices are numbered on, and the last chunk has the sums of usage and timings.
    """
    first: ChatCompletionChunk | None = None
    ends: list[ChatCompletionChunk] = []
    choices = 0
    for run in runs:
        known = choices
        with closing(run):
            for chunk in run:
                first = first or chunk
                update: dict[str, Any] = {"id": first.id, "created": first.created}
                if not chunk.choices:
                    ends.append(chunk.model_copy(update=update))
                    continue
                update["choices"] = [part.model_copy(update={"index": known + part.index}) for part in chunk.choices]
                choices = max(choices, *(part.index + 1 for part in update["choices"]))
                yield chunk.model_copy(update=update)
    usage = reduce(usage_sum, (end.usage for end in ends if end.usage))
    timings = reduce(timings_sum, (end.timings for end in ends if end.timings))
    notes = [*dict.fromkeys(note for end in ends for note in end.notes or ())] or None
    yield ends[-1].model_copy(update={"usage": usage, "timings": timings, "notes": notes})


@dataclass
class _Choice:
    """The parts of one choice, as they come."""

    index: int
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[ToolCallDelta] = field(default_factory=list)
    regions: list[Region] | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    stop_reason: str | None = None

    def add(self, part: ChunkChoice) -> None:
        self.content.append(part.delta.content or "")
        self.reasoning.append(part.delta.reasoning_content or "")
        self.calls += part.delta.tool_calls or ()
        self.regions = part.delta.regions or self.regions
        if part.logprobs:
            self.logprobs += part.logprobs.content
        self.finish_reason = part.finish_reason or self.finish_reason
        self.stop_reason = part.stop_reason or self.stop_reason

    def join(self) -> Choice:
        return Choice(
            index=self.index,
            message=ResponseMessage(
                content=None if self.calls else "".join(self.content),
                reasoning_content="".join(self.reasoning) or None,
                tool_calls=_join_calls(self.calls) or None,
                regions=self.regions,
            ).with_text("".join(self.content)),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            logprobs=ChoiceLogprobs(content=self.logprobs) if self.logprobs else None,
        )


def _join_calls(deltas: Iterable[ToolCallDelta]) -> list[ResponseToolCall]:
    calls = []
    for _, group in groupby(deltas, key=lambda delta: delta.index):
        first, *others = group
        arguments = "".join(delta.function.arguments for delta in (first, *others))
        function = ResponseFunction(name=first.function.name or "", arguments=arguments)
        calls.append(ResponseToolCall(id=first.id or "", function=function))
    return calls
