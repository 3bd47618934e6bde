"""VLM: load a model, chat, stream. `chat` is a fold over the same stream that the other faces show."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from secrets import randbits
from types import TracebackType
from typing import Any

from pocketvlm.engine.engine import (
    Engine,
    EngineInfo,
    EngineOptions,
    Finished,
    Generation,
    Image,
    Progress,
    Score,
    Started,
    Token,
)
from pocketvlm.engine.local import LocalEngine
from pocketvlm.images import MAX_PIXELS, read_picture
from pocketvlm.locate import locate
from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    ImagePart,
    ImageTimings,
    ImageURLPart,
    PromptTokensDetails,
    ResponseMessage,
    Timings,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from pocketvlm.native.sampler import Sampling
from pocketvlm.prompt import ChatTemplate, ImageSpan, TextSpan, isolate_control_tokens
from pocketvlm.text import TextAssembler
from pocketvlm.vision.pair import Wanted

ProgressCallback = Callable[[int, int], None]


class VLM:
    """A loaded model.

    Threads: calls may come from any number of them; `parallel` run together, the others wait for their turn. A thread
    that holds as many streams, neither read to their end nor closed, and asks for another gets EngineBusyError.
    """

    def __init__(self, engine: Engine, *, max_pixels: int = MAX_PIXELS) -> None:
        self._engine = engine
        self._max_pixels = max_pixels
        info = engine.info
        self._template = ChatTemplate(
            info.chat_template, bos=info.bos, eos=info.eos, image_token=info.image_token, path=info.name
        )

    @classmethod
    def load(
        cls,
        target: str | Path | None = None,
        *,
        model: str | Path | None = None,
        mmproj: str | Path | None = None,
        context_size: int | None = None,
        threads: int | None = None,
        gpu_layers: int = -1,
        exact: bool = False,
        vision: Wanted = "auto",
        device: str = "auto",
        parallel: int = 1,
        verify: bool = True,
        max_pixels: int = MAX_PIXELS,
    ) -> VLM:
        """Load iota (nothing given), a bundle or a .gguf (`target`), or any pair (`model`, `mmproj`).

        `context_size` in tokens: the model's own up to 8192 unless given. `threads`: the physical cores of this
        process unless given. `gpu_layers` -1: all that the build can offload. `exact`: logits that do not depend on
        what is cached, slower. `parallel` requests run together, each with a context of that size. `verify` compares a
        bundle with its hashes. `max_pixels` is the limit of one picture.

        `mmproj` is a GGUF projector or an ONNX vision encoder. Of several encoders, `vision` takes the `gguf` or the
        `onnx` one, or (`auto`) the one that is fastest here: measured once, then remembered in the user's cache
        folder. `device` is where onnxruntime runs: `cpu`, or what this one offers besides (`cuda`, `coreml`,
        `directml`, `openvino`); `auto` measures them too, and `cpu` also keeps llama.cpp off a GPU.

        Raises ModelError leaves, each naming the file.
        """
        found = locate(target, model=model, mmproj=mmproj, verify=verify)
        options = EngineOptions(
            context_size=context_size,
            threads=threads,
            gpu_layers=gpu_layers,
            exact=exact,
            vision=vision,
            device=device,
            parallel=parallel,
        )
        engine = LocalEngine(
            found.model, found.mmproj, found.onnx, name=found.name, fingerprint=found.fingerprint, options=options
        )
        try:
            return cls(engine, max_pixels=max_pixels)
        except BaseException:
            engine.close()
            raise

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def chat(
        self, messages: Sequence[Any], *, progress: ProgressCallback | None = None, **fields: Any
    ) -> ChatCompletion:
        """Answer `messages`; `fields` are those of ChatRequest. Raises RequestError naming the field that is wrong."""
        request = ChatRequest.parse(messages, **fields)
        with closing(self._chunks(request, progress)) as chunks:
            return _fold(chunks, request.n or 1)

    def stream(
        self, messages: Sequence[Any], *, progress: ProgressCallback | None = None, **fields: Any
    ) -> Generator[ChatCompletionChunk, None, None]:
        """The same answer in pieces. Closing the iterator stops the work within one token.

        `progress(done, total)` is called before each tile of a picture that has to be encoded. The last chunk has
        the timings; usage comes in one more chunk, as OpenAI does, with `stream_options={"include_usage": True}`.
        """
        request = ChatRequest.parse(messages, **fields)
        wants_usage = bool(request.stream_options and request.stream_options.include_usage)
        with closing(self._chunks(request, progress)) as chunks:
            for chunk in chunks:
                if chunk.choices or wants_usage:
                    yield chunk

    def cancel(self) -> None:
        """Stop the running requests, from any thread; they raise GenerationCancelledError."""
        self._engine.cancel()

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> VLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prompt(self, request: ChatRequest) -> tuple[TextSpan | Image, ...]:
        images: list[Image] = []
        for i, message in enumerate(request.messages):
            if isinstance(message.content, str):
                continue
            for j, part in enumerate(message.content):
                if isinstance(part, ImageURLPart | ImagePart):
                    param = f"messages.{i}.content.{j}"
                    given = part.image_url if isinstance(part, ImageURLPart) else part
                    picture = read_picture(part, param, max_pixels=self._max_pixels)
                    images.append(Image(picture, given.detail, given.max_image_tokens, param))
        spans = isolate_control_tokens(self._template.render(request.messages), self.info.control_tokens)
        return tuple(images[span.index] if isinstance(span, ImageSpan) else span for span in spans)

    def _chunks(
        self, request: ChatRequest, progress: ProgressCallback | None
    ) -> Generator[ChatCompletionChunk, None, None]:
        """All choices one after the other, then a chunk without choices that carries usage and timings."""
        answer = _Answer(self.info)
        prompt = self._prompt(request)
        seed = request.seed if request.seed is not None else randbits(32)
        for index in range(request.n or 1):
            generation = Generation(
                prompt,
                _sampling(request, seed + index),
                max_tokens=request.limit,
                top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            )
            yield from self._choice(index, generation, request, answer, progress)
        yield answer.chunk([], usage=answer.usage(), timings=answer.timings())

    def _choice(
        self,
        index: int,
        generation: Generation,
        request: ChatRequest,
        answer: _Answer,
        progress: ProgressCallback | None,
    ) -> Generator[ChatCompletionChunk, None, None]:
        assembler = TextAssembler(request.stop or ())
        began = time.perf_counter()
        reason: FinishReason = "stop"
        begun = False
        with closing(self._engine.generate(generation)) as events:
            for event in events:
                if isinstance(event, Progress):
                    if progress:
                        progress(event.done, event.total)
                elif isinstance(event, Started):
                    answer.started.append(event)
                    began = time.perf_counter()
                    yield answer.chunk([ChunkChoice(index=index, delta=Delta())])
                elif isinstance(event, Token):
                    answer.tokens += 1
                    text = assembler.push(event.data)
                    if not begun:  # templates that end in "Assistant:" make the model say the space
                        text = text.lstrip()
                        begun = bool(text)
                    scored = _logprobs(event.data, event.score) if event.score else None
                    if text or scored:
                        yield answer.chunk([ChunkChoice(index=index, delta=Delta(content=text), logprobs=scored)])
                    if assembler.stopped:
                        break
                elif isinstance(event, Finished):
                    reason = event.reason
        answer.decode_ms += 1000 * (time.perf_counter() - began)
        last = index == (request.n or 1) - 1
        yield answer.chunk(
            [ChunkChoice(index=index, delta=Delta(content=assembler.finish()), finish_reason=reason)],
            timings=answer.timings() if last else None,
        )


class _Answer:
    """What all chunks of one request share, and what is counted on the way."""

    def __init__(self, info: EngineInfo) -> None:
        self._info = info
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.started: list[Started] = []
        self.tokens = 0
        self.decode_ms = 0.0

    def chunk(
        self, choices: list[ChunkChoice], usage: Usage | None = None, timings: Timings | None = None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._info.name,
            system_fingerprint=self._info.fingerprint,
            choices=choices,
            usage=usage,
            timings=timings,
        )

    def usage(self) -> Usage:
        first = self.started[0]
        return Usage(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=self.tokens,
            total_tokens=first.prompt_tokens + self.tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=first.cached_tokens, image_tokens=sum(image.tokens for image in first.images)
            ),
        )

    def timings(self) -> Timings:
        first = self.started[0]
        fresh = first.prompt_tokens - first.cached_tokens
        return Timings(
            images=[
                ImageTimings(
                    original_size=image.original,
                    used_size=image.used,
                    tiles=image.tiles,
                    tokens=image.tokens,
                    shrunk=image.shrunk,
                    cache="kv" if image.cached else "none",
                    read_ms=image.read_ms,
                    preprocess_ms=image.preprocess_ms,
                    encode_ms=image.encode_ms,
                )
                for image in first.images
            ],
            prefill_ms=first.prefill_ms,
            decode_ms=self.decode_ms,
            prefill_tokens_per_second=1000 * fresh / first.prefill_ms if first.prefill_ms else None,
            decode_tokens_per_second=1000 * self.tokens / self.decode_ms if self.decode_ms else None,
        )


def _sampling(request: ChatRequest, seed: int) -> Sampling:
    """Greedy unless a temperature is asked for: the same picture and question give the same answer."""

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return Sampling(
        temperature=given(request.temperature, 0.0),
        top_k=given(request.top_k, 0),
        top_p=given(request.top_p, 1.0),
        min_p=given(request.min_p, 0.0),
        repeat_penalty=given(request.repeat_penalty, 1.0),
        frequency_penalty=given(request.frequency_penalty, 0.0),
        presence_penalty=given(request.presence_penalty, 0.0),
        logit_bias=dict(request.logit_bias or {}),
        seed=seed,
    )


def _logprobs(data: bytes, score: Score) -> ChoiceLogprobs:
    def entry(raw: bytes) -> dict[str, Any]:
        return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}

    top = [TopLogprob(**entry(raw), logprob=logprob) for _, raw, logprob in score.top]
    return ChoiceLogprobs(content=[TokenLogprob(**entry(data), logprob=score.logprob, top_logprobs=top)])


def _fold(chunks: Iterable[ChatCompletionChunk], n: int) -> ChatCompletion:
    texts: list[list[str]] = [[] for _ in range(n)]
    reasons: list[FinishReason] = ["stop"] * n
    logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
    chunk: ChatCompletionChunk | None = None
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index].append(choice.delta.content)
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            if choice.logprobs:
                logprobs[choice.index].extend(choice.logprobs.content)
    assert chunk is not None and chunk.usage is not None and chunk.timings is not None
    return ChatCompletion(
        id=chunk.id,
        created=chunk.created,
        model=chunk.model,
        system_fingerprint=chunk.system_fingerprint,
        choices=[
            Choice(
                index=i,
                message=ResponseMessage(content="".join(texts[i])),
                finish_reason=reasons[i],
                logprobs=ChoiceLogprobs(content=logprobs[i]) if logprobs[i] else None,
            )
            for i in range(n)
        ],
        usage=chunk.usage,
        timings=chunk.timings,
    )
