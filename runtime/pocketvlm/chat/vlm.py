"""VLM: load a model, chat, stream. `chat` is a fold over the same stream that the other faces show."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from secrets import randbits
from types import TracebackType
from typing import Any

from pocketvlm.chat.completion import Answer, delta, fold, logprobs
from pocketvlm.chat.session import Session, plain
from pocketvlm.chat.session import read as read_session
from pocketvlm.chat.session import write as write_session
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import (
    PICTURE_FILES_SIZE,
    CancellationToken,
    EncodeProgress,
    Engine,
    EngineInfo,
    EngineOptions,
    Finished,
    Generation,
    PrefillDone,
    PromptImage,
    Statistics,
    Token,
)
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.engine.speculative.draft_length import Speculate
from pocketvlm.errors import RequestError, SessionError
from pocketvlm.files.locate import locate
from pocketvlm.messages import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    ImagePart,
    ImageURLPart,
)
from pocketvlm.native.sampler import Sampling
from pocketvlm.pictures.handles import HandleLimits, PictureHandle, PictureHandles, file_of
from pocketvlm.pictures.images import MAX_PIXELS, Picture, read_picture
from pocketvlm.structured.compile import CompiledRequest, compile_request
from pocketvlm.structured.output_parser import OutputParser
from pocketvlm.structured.tool_call_format import detect_tool_call_format
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, TextSpan, isolate_control_tokens
from pocketvlm.vision.compatibility import EncoderChoice

ProgressCallback = Callable[[int, int], None]
PictureReader = Callable[[ImageURLPart | ImagePart, str], Picture]  # of a part, and the path of its field


class VLM:
    """A loaded model.

    Threads: calls may come from any number of them; `parallel` run together, the others wait for their turn. A thread
    that holds as many streams, neither read to their end nor closed, and asks for another gets EngineBusyError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_pixels: int = MAX_PIXELS,
        max_image_tokens: int | None = None,
        handle_limits: HandleLimits | None = None,
    ) -> None:
        for param, most in (("max_pixels", max_pixels), ("max_image_tokens", max_image_tokens)):
            if most is not None and most < 1:
                raise RequestError("must be at least 1", param)
        self._engine = engine
        self._max_pixels = max_pixels
        self._max_image_tokens = max_image_tokens
        self._handles = PictureHandles(handle_limits)
        self._latest: ChatRequest | None = None
        info = engine.info
        self._template = ChatTemplate(
            info.chat_template, bos=info.bos, eos=info.eos, image_token=info.image_token, path=info.name
        )
        self._form = detect_tool_call_format(self._template, info.control_tokens, info.end_tokens)

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
        vision: EncoderChoice = "auto",
        device: str = "auto",
        parallel: int = 1,
        supervised: bool = False,
        stuck_after: float = 600.0,
        speculate: Speculate = "auto",
        verify: bool = True,
        max_pixels: int = MAX_PIXELS,
        picture_cache_size: int | None = None,
        picture_cache: str | Path | None = None,
        picture_files_size: int = PICTURE_FILES_SIZE,
        max_image_tokens: int | None = None,
        handle_limits: HandleLimits | None = None,
        name: str | None = None,
        session: str | Path | None = None,
    ) -> VLM:
        """Load iota (nothing given), a bundle or a .gguf (`target`), or any pair (`model`, `mmproj`).

        `context_size` in tokens: the model's own up to 8192 unless given. `threads`: the physical cores of this process
        unless given. `gpu_layers` -1: as many as fit. `exact`: logits that do not depend on what is cached, slower.
        `parallel` requests run together, each with a context of that size. `verify` compares a bundle with its hashes.
        `max_pixels` is the limit of one picture, `max_image_tokens` caps the tokens that any picture gets. `name` is
        what answers call the model, instead of its own. `supervised` runs it in a process of its own, which is started
        again when native code ends it, or stays in one step for more than `stuck_after` seconds; its requests then get
        EngineCrashedError.

        `mmproj` is a GGUF projector or an ONNX vision encoder. Of several encoders, `vision` takes the `gguf` or the
        `onnx` one, or (`auto`) the one that is fastest here: measured once, then remembered in the user's cache folder.
        `device` is where all of it runs: `auto`, `cpu`, `cuda`, `metal` or `vulkan` (`vulkan:1` is the second), or what
        onnxruntime offers besides; as much goes there as its free memory holds.

        Embeddings of pictures are kept in memory within `picture_cache_size` bytes: 256 MiB or a 32nd of this machine's
        memory unless given, 0 for none. `picture_cache` is a folder that keeps them in files as well, up to
        `picture_files_size` bytes; nothing is written without it, as embeddings tell about pictures. `handle_limits`
        are those of `add_image`. `speculate`: whether to draft what answers repeat; `auto`: if faster.
        `session` is a file that `save` has written: `conversation` holds what was said in it.

        Raises RequestError for an option, ModelError leaves that name the file, PictureCacheError and SessionError.
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
            picture_cache_size=picture_cache_size,
            picture_cache=None if picture_cache is None else str(Path(picture_cache).absolute()),
            picture_files_size=picture_files_size,
            stuck_after=stuck_after,
            speculate=speculate,
        )
        engine = (SupervisedEngine if supervised else InProcessEngine)(
            found.model,
            found.mmproj,
            found.onnx,
            name=name or found.name,
            fingerprint=found.fingerprint,
            options=options,
        )
        try:
            vlm = cls(engine, max_pixels=max_pixels, max_image_tokens=max_image_tokens, handle_limits=handle_limits)
            if session is not None:
                vlm.restore(session)
            return vlm
        except BaseException:  # Ctrl-C too: nobody else can close it
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
        with closing(self.run(request, progress=progress, buffered=True)) as chunks:
            completion = fold(chunks, request)
        self._remember(request, completion)
        return completion

    def stream(
        self, messages: Sequence[Any], *, progress: ProgressCallback | None = None, **fields: Any
    ) -> Generator[ChatCompletionChunk, None, None]:
        """The same answer in pieces. Closing the iterator stops the work within one token.

        `progress(done, total)` is called before each tile of a picture that has to be encoded. The last chunk has
        the timings; usage comes in one more chunk, as OpenAI does, with `stream_options={"include_usage": True}`.
        """
        request = ChatRequest.parse(messages, **fields)
        made: list[ChatCompletionChunk] = []
        with closing(self.run(request, progress=progress)) as chunks:
            for chunk in chunks:
                made.append(chunk)
                if chunk.choices or request.wants_usage:
                    yield chunk
        self._remember(request, fold(made, request))

    def run(
        self,
        request: ChatRequest,
        *,
        progress: ProgressCallback | None = None,
        read: PictureReader | None = None,
        cancellation: CancellationToken | None = None,
        queue_ms: float = 0.0,
        buffered: bool = False,
    ) -> Generator[ChatCompletionChunk, None, None]:
        """All chunks of a request that is already validated: what `chat` and `stream` are made of.

        The choices come one after the other, then a chunk without choices that carries usage and timings. `read`
        reads its pictures instead of `read_picture`; `cancellation` can end it; `queue_ms` is how long it waited before,
        for the timings. `buffered`: they may come all at once, where no caller reads them before the end.
        """
        answer = Answer(self.info, queue_ms)
        planned = compile_request(request, self._template, self._form)
        prompt = self._prompt(request, read or self._read, planned)
        seed = request.seed if request.seed is not None else randbits(32)
        for index in range(request.n or 1):
            generation = Generation(
                prompt,
                _sampling(request, seed + index),
                max_tokens=request.limit,
                top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
                constraint=planned.constraint,
                ignore_eos=bool(request.ignore_eos),
                buffered=buffered and not request.stop,  # a stop string is found by who reads
            )
            last = index == (request.n or 1) - 1
            yield from self._choice(index, generation, planned.reader(), answer, progress, cancellation, last)
        yield answer.chunk([], usage=answer.usage(), timings=answer.timings())

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages of what `chat` or `stream` finished last, its answer too; or of the session that was loaded."""
        if self._latest is None:
            return []
        return [message.model_dump(exclude_none=True) for message in self._latest.messages]

    def save(self, path: str | Path, messages: Sequence[Any] | None = None, **fields: Any) -> None:
        """Write a conversation to a file, its pictures in it, with what the KV cache knows of it.

        That of `conversation`, or `messages`, asked with `fields`. The file is private to its owner.

        Raises SessionError where it cannot be written, and what `chat` raises for messages and pictures.
        """
        request = self._latest if messages is None else ChatRequest.parse(messages, **fields)
        if request is None:
            raise RequestError("nothing was said yet", "messages")
        pictures: dict[tuple[int, int], Picture] = {}

        def read(part: ImageURLPart | ImagePart, param: str) -> Picture:
            _, i, _, j = param.split(".")
            picture = pictures[int(i), int(j)] = self._read(part, param)
            return picture

        snapshot = self._engine.snapshot(self._prompt(request, read))
        write_session(Path(path), Session(plain(request.messages, pictures), snapshot), self.info)

    def restore(self, path: str | Path) -> list[dict[str, Any]]:
        """Go on with a conversation that `save` has written: its messages, which the cache knows again.

        Raises SessionError where the file is damaged, or of another model, context, cache or template.
        """
        session = read_session(Path(path), self.info)
        try:
            request = ChatRequest.parse(session.messages)
            self._engine.adopt(session.snapshot)
        except (RequestError, SessionError) as error:
            raise SessionError(str(error), path) from None
        self._latest = request
        return self.conversation

    def statistics(self) -> Statistics:
        return self._engine.statistics()

    def add_image(self, image: Any) -> PictureHandle:
        """Keep a picture for a while; its `id` is then a `url` in messages.

        `image` is what a part of type image may have: a path, a file's bytes, a PIL image, or a uint8 array
        [height, width, 3]. Raises ImageError leaves.
        """
        picture = read_picture(ImagePart(type="image", image=image), "image", max_pixels=self._max_pixels)
        return self._handles.add(file_of(image, picture), picture.size)

    def remove_image(self, id: str) -> None:
        """Forget it; ImageNotFoundError where no picture has this handle any more."""
        self._handles.remove(id, "id")

    def clear_picture_cache(self) -> None:
        """Forget the embeddings of all pictures, those in files included; PictureCacheError where these stay."""
        self._engine.clear_picture_cache()

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

    def _read(self, part: ImageURLPart | ImagePart, param: str) -> Picture:
        return read_picture(self._handles.resolve(part, param), param, max_pixels=self._max_pixels)

    def _remember(self, request: ChatRequest, completion: ChatCompletion) -> None:
        answer = completion.choices[0].message.model_dump(exclude_none=True)
        if answer.get("content") or answer.get("tool_calls"):
            told = ChatRequest.parse([*request.messages, answer]).messages
            self._latest = request.model_copy(update={"messages": told})

    def _prompt(
        self, request: ChatRequest, read: PictureReader = read_picture, planned: CompiledRequest | None = None
    ) -> tuple[TextSpan | PromptImage, ...]:
        images: list[PromptImage] = []
        for i, message in enumerate(request.messages):
            if message.content is None or isinstance(message.content, str):
                continue
            for j, part in enumerate(message.content):
                if isinstance(part, ImageURLPart | ImagePart):
                    param = f"messages.{i}.content.{j}"
                    given = part.image_url if isinstance(part, ImageURLPart) else part
                    limits = [n for n in (given.max_image_tokens, self._max_image_tokens) if n is not None]
                    images.append(PromptImage(read(part, param), given.detail, min(limits, default=None), param))
        spans = isolate_control_tokens(
            (planned or compile_request(request, self._template, self._form)).spans, self.info.control_tokens
        )
        return tuple(images[span.index] if isinstance(span, ImageSpan) else span for span in spans)

    def _choice(
        self,
        index: int,
        generation: Generation,
        reader: OutputParser,
        answer: Answer,
        progress: ProgressCallback | None,
        cancellation: CancellationToken | None,
        last: bool,
    ) -> Generator[ChatCompletionChunk, None, None]:
        decode_ms, before = 0.0, answer.tokens
        reason: FinishReason = "stop"
        with closing(self._engine.generate(generation, cancellation)) as events:
            for event in events:
                if isinstance(event, EncodeProgress):
                    if progress:
                        progress(event.done, event.total)
                elif isinstance(event, PrefillDone):
                    answer.started.append(event)
                    yield answer.chunk([ChunkChoice(index=index, delta=Delta())])
                elif isinstance(event, Token):
                    answer.tokens += 1
                    decode_ms = event.ms
                    answer.drafted += event.drafted
                    answer.accepted += event.accepted
                    scored = logprobs(event.data, event.score) if event.score else None
                    deltas = [delta(piece) for piece in reader.push(event.data, event.id)] or [Delta()] * bool(scored)
                    for part in deltas:
                        yield answer.chunk([ChunkChoice(index=index, delta=part, logprobs=scored)])
                        scored = None
                    if reader.stopped:
                        break
                elif isinstance(event, Finished):
                    reason = event.reason
        answer.decode_ms += decode_ms
        answer.steps += max(0, answer.tokens - before - 1)
        for piece in reader.finish():
            yield answer.chunk([ChunkChoice(index=index, delta=delta(piece))])
        if reader.calls and reason == "stop":
            reason = "tool_calls"
        yield answer.chunk(
            [ChunkChoice(index=index, delta=Delta(), finish_reason=reason)],
            timings=answer.timings() if last else None,
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
