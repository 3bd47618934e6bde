"""VLM: load a model, chat, stream, save and restore conversations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from pocketvlm.chat.choices import generated
from pocketvlm.chat.completion import CompletionBuilder, fold
from pocketvlm.chat.decision import check_fields, decide, temperature_of
from pocketvlm.chat.load_options import LoadOptions, accepts_fields_of
from pocketvlm.chat.locate import LocateQuestion, located, stated_notation, supported
from pocketvlm.chat.prepare import PictureReader, RequestPreparer
from pocketvlm.chat.session import Session, plain
from pocketvlm.chat.session import read as read_session
from pocketvlm.chat.session import write as write_session
from pocketvlm.decisions.choices import Choices, choices_of
from pocketvlm.decisions.decision import Decision
from pocketvlm.documents.expand import VideoSupport
from pocketvlm.documents.handles import keep_file
from pocketvlm.documents.limits import DocumentLimits
from pocketvlm.documents.sources import PictureSource
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import CancellationToken, Engine, EngineInfo, Statistics, TokenCount
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.errors import RequestError, SessionError
from pocketvlm.files.bundle import Scope
from pocketvlm.files.locate import locate
from pocketvlm.files.pulled import UseLock, mark_used
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ChatRequest, ParsedCompletion, Region
from pocketvlm.messages.formats import is_model_class
from pocketvlm.messages.parsed import M
from pocketvlm.messages.question import picture_errors, question_messages
from pocketvlm.pictures.handles import PictureHandle, PictureHandles
from pocketvlm.regions.notation import Notation
from pocketvlm.regions.notations import notation_of
from pocketvlm.structured.begun_answer import continued
from pocketvlm.structured.compile import AnswerForm

if TYPE_CHECKING:
    from pocketvlm.messages.question import AnyPicture

ProgressCallback = Callable[[int, int], None]


class VLM:
    """A loaded model. Use it as a context manager, or call `close`.

    Any number of threads may call it. `parallel` requests run together, and others wait. A thread that holds
    `parallel` unfinished streams and starts another one gets EngineBusyError: close a stream or read it to its end.
    """

    def __init__(
        self,
        engine: Engine,
        options: LoadOptions | None = None,
        scope: Scope | None = None,
        notation: Notation | None = None,
    ) -> None:
        """Chat with an engine that is already loaded. Use `load` instead, which also makes the engine.

        `notation` is how the model writes places, where that is not what its name, vocabulary or family says.
        """
        options = options or LoadOptions()
        self._engine = engine
        self._scope = scope
        self.parallel = options.parallel  # requests that run together
        self._max_pixels = options.max_pixels
        self._document_limits = options.document_limits or DocumentLimits()
        self._handles = PictureHandles(options.handle_limits)
        self._preparer = RequestPreparer(engine.info, options, self._handles)
        self._notation = notation or notation_of(
            engine.info.name, engine.info.control_tokens, self._preparer.family_name
        )
        self._temperature = temperature_of(options.calibration, engine.info)
        self._last_request: ChatRequest | None = None  # with its answer
        self._use: UseLock | None = None

    @accepts_fields_of(LoadOptions)
    @classmethod
    def load(cls, target: str | Path | None = None, options: LoadOptions | None = None, **keywords: Any) -> VLM:
        """Load a model.

        `target` is a bundle, the name of a pulled model or a .gguf file; by default iota, the model in the box.
        `options` say how to run it. Keywords are fields of LoadOptions and replace those of `options`:
        `VLM.load("my-bundle", parallel=4)`.

        Raises RequestError for an invalid option, ModelError (which names the file) for files that cannot be used,
        PictureCacheError, SessionError.
        """
        options = replace(options or LoadOptions(), **keywords)
        files = locate(target, model=options.model, mmproj=options.mmproj, verify=options.verify)
        notation = stated_notation(files)
        use = mark_used(files.model.parent)
        engine = (SupervisedEngine if options.supervised else InProcessEngine)(
            files.model,
            files.mmproj,
            files.onnx,
            name=options.name or files.name,
            fingerprint=files.fingerprint,
            options=options.engine_options(),
        )
        try:
            vlm = cls(engine, options, files.scope, notation)
            vlm._use = use
            if options.session is not None:
                vlm.restore(options.session)
            return vlm
        except BaseException:  # Ctrl-C too: the caller has nothing to close
            engine.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """What is known about the loaded model."""
        return self._engine.info

    @property
    def scope(self) -> Scope | None:
        """What the model knows, if it knows little, such as iota; None for models for pictures of any kind."""
        return self._scope

    @property
    def notation(self) -> str | None:
        """The name of the notation in which the model writes places in pictures; None where it is not known."""
        return self._notation.name if self._notation is not None and not self._notation.refusal else None

    def check_notation(self) -> None:
        """Raise UnsupportedError where it is not known how the model writes places, or not supported."""
        supported(self._notation, self.info.name)

    def locate(self, picture: AnyPicture, thing: str, **options: Any) -> list[Region]:
        """Return where a thing is in a picture: `vlm.locate("photo.jpg", "the red circle")`.

        The model is asked as it was trained to be, and its answer is held to its notation. The list is empty where it
        locates nothing. `picture` and `options` are those of `ask`.

        Raises UnsupportedError where it is not known how the model writes places, and what `ask` raises.
        """
        return self.locate_answer(picture, thing, **options).regions

    def locate_answer(
        self,
        picture: AnyPicture,
        thing: str,
        *,
        progress: ProgressCallback | None = None,
        cancellation: CancellationToken | None = None,
        **fields: Any,
    ) -> ChatCompletion:
        """Do as `locate` does, and return the whole answer, with notes and timings."""
        notation = supported(self._notation, self.info.name)
        with picture_errors(1):
            question = LocateQuestion.of(notation, self.info.control_tokens, picture, thing, fields)
            run = self.run(
                question.request,
                progress=progress,
                cancellation=cancellation,
                buffered=True,
                raw=question.raw,
                form=question.form,
                controls=question.controls,
                locates=True,
            )
            with closing(run) as chunks:
                return located(fold(chunks), notation, thing)

    @overload
    def ask(self, question: str, *pictures: AnyPicture, response_format: type[M], **options: Any) -> M: ...
    @overload
    def ask(
        self, question: str, *pictures: AnyPicture, response_format: Mapping[str, Any] | None = None, **options: Any
    ) -> str: ...
    def ask(self, question: str, *pictures: Any, response_format: Any = None, **options: Any) -> Any:
        """Ask about pictures, and return the text of the answer: `vlm.ask("What is this?", "photo.jpg")`.

        A picture is a path, a URL as in messages, the bytes of a file, a PIL image, a uint8 array [height, width, 3],
        or a part of a message, which may have a `detail`. With a pydantic class as `response_format` the answer is an
        instance of it. The other keywords are those of `chat`.

        Raises what `chat` raises, with `pictures.0` as the `param` of an error about the first picture, and AnswerError
        where the answer is not an instance of the class.
        """
        with picture_errors(len(pictures)):
            completion = self.chat(question_messages(question, pictures), response_format=response_format, **options)
        return completion.parsed if isinstance(completion, ParsedCompletion) else completion.text

    @overload
    def chat(self, messages: Sequence[Any], *, response_format: type[M], **options: Any) -> ParsedCompletion[M]: ...
    @overload
    def chat(
        self, messages: Sequence[Any], *, response_format: Mapping[str, Any] | None = None, **options: Any
    ) -> ChatCompletion: ...
    def chat(
        self,
        messages: Sequence[Any],
        *,
        response_format: Any = None,
        progress: ProgressCallback | None = None,
        cancellation: CancellationToken | None = None,
        **fields: Any,
    ) -> ChatCompletion:
        """Answer `messages`; `fields` are those of ChatRequest.

        With a pydantic class as `response_format`, the answer's `parsed` is an instance of it. `progress(done, total)`
        is called before each tile of a picture that has to be encoded. `cancellation` stops the work from another
        thread, which raises GenerationCancelledError here.

        Raises RequestError, whose `param` names the invalid field, and EngineError.
        """
        request = ChatRequest.parse(messages, response_format=response_format, **fields)
        with closing(self.run(request, progress=progress, cancellation=cancellation, buffered=True)) as chunks:
            completion = fold(chunks)
        self._remember(request, completion)
        return ParsedCompletion.of(completion, response_format) if is_model_class(response_format) else completion

    def stream(
        self,
        messages: Sequence[Any],
        *,
        progress: ProgressCallback | None = None,
        cancellation: CancellationToken | None = None,
        **fields: Any,
    ) -> Generator[ChatCompletionChunk, None, None]:
        """Answer `messages` in chunks, as `chat` does at once. Closing the iterator stops the work within one token.

        The last chunk has the timings. `stream_options={"include_usage": True}` asks for one more chunk, which has the
        usage and no choices, as in OpenAI's API.
        """
        request = ChatRequest.parse(messages, **fields)
        received: list[ChatCompletionChunk] = []
        with closing(self.run(request, progress=progress, cancellation=cancellation)) as chunks:
            for chunk in chunks:
                received.append(chunk)
                if chunk.choices or request.wants_usage:
                    yield chunk
        self._remember(request, fold(received))

    def decide(
        self,
        messages: Sequence[Any],
        choices: Sequence[str] | None = None,
        *,
        yes_no: bool = False,
        scale: Sequence[int] | None = None,
        progress: ProgressCallback | None = None,
        cancellation: CancellationToken | None = None,
        **fields: Any,
    ) -> Decision:
        """Return how likely each of some answers to `messages` is, without writing one.

        The answers are `choices`, or yes and no, or the whole numbers of a `scale` from its first to its last:
        `vlm.decide(messages, scale=(0, 10))`. Each is compared as the whole answer, its end included, so their lengths
        do not matter. `fields` are those of ChatRequest that change the prompt. Nothing is added to it: a question
        should say which answers there are.

        Several questions about a picture evaluate it once, if it comes before them.

        Raises what `chat` raises, with `choices.1` as the `param` of an error about the second choice.
        """
        answers = choices_of(choices, yes_no, scale)
        check_fields(fields)
        request = ChatRequest.parse(messages, **fields)
        return self.run_decision(request, answers, progress=progress, cancellation=cancellation)

    def run_decision(
        self,
        request: ChatRequest,
        choices: Choices,
        *,
        calibrated: bool = True,
        pictures: PictureSource | None = None,
        progress: ProgressCallback | None = None,
        cancellation: CancellationToken | None = None,
        queue_ms: float = 0.0,
        load_ms: float = 0.0,
    ) -> Decision:
        """Decide about a validated request. Without `calibrated`, by the model's own probabilities.

        The other arguments are those of `run`.
        """
        return decide(
            self._engine,
            self._preparer.prepare(request, pictures),
            choices,
            self._preparer.texts_around_answer(request),
            temperature=self._temperature if calibrated else 1.0,
            progress=progress,
            cancellation=cancellation,
            queue_ms=queue_ms,
            load_ms=load_ms,
        )

    def run(
        self,
        request: ChatRequest,
        *,
        progress: ProgressCallback | None = None,
        read: PictureReader | None = None,
        pictures: PictureSource | None = None,
        cancellation: CancellationToken | None = None,
        queue_ms: float = 0.0,
        load_ms: float = 0.0,
        buffered: bool = False,
        raw: bool = False,
        form: AnswerForm | None = None,
        controls: Collection[str] = (),
        locates: bool = False,
    ) -> Generator[ChatCompletionChunk, None, None]:
        """Yield all chunks of a validated request; `chat` and `stream` are made of them.

        The choices come one after the other, then a chunk without choices that has usage and timings.

        `pictures` reads pictures and files instead of the default, or `read` only pictures. `cancellation` ends the
        request from another thread. `queue_ms` is the time that the request has waited for its turn already, and
        `load_ms` that for the model to be loaded, for the timings. `buffered` lets tokens come all at once, for callers
        that do not read before the end. `raw`: the content of the only message is the whole prompt, without the model's
        template; control tokens in its text are parsed. `form` holds the answer to a grammar. `controls` are control
        tokens that count in the request's texts. `locates`: the request asks for places.
        """
        prepared = self._preparer.prepare(request, pictures, read, raw=raw, form=form, controls=controls)
        builder = CompletionBuilder(
            prepared.compiled,
            self.info,
            choices=request.n or 1,
            queue_ms=queue_ms,
            load_ms=load_ms,
            control_tokens=request.skip_special_tokens is False,
            scope=self._scope,
            notation=self._notation,
            locates=locates,
        )
        yield from generated(
            self._engine,
            prepared,
            request,
            builder,
            measures_certainty=self._scope is not None,
            buffered=buffered,
            progress=progress,
            cancellation=cancellation,
        )
        yield builder.end()

    def count_tokens(self, messages: Sequence[Any], **fields: Any) -> TokenCount:
        """Return how many tokens the prompt of `messages` takes, with pictures, tools and the model's template.

        `fields` are those of ChatRequest. Nothing is encoded or evaluated, and pictures are decoded only where their
        headers do not say their sizes, so damaged ones may be counted. A prompt may be longer than `info.context_size`,
        which `chat` refuses.

        Raises RequestError, whose `param` names the invalid field.
        """
        return self.count(ChatRequest.parse(messages, **fields))

    def count(self, request: ChatRequest, *, pictures: PictureSource | None = None) -> TokenCount:
        """Count the prompt of a validated request. `pictures` are those of `run`."""
        return self._engine.count_tokens(self._preparer.prepare(request, pictures, only_sizes=True).prompt)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages of the last finished `chat` or `stream` with its answer, or those of the restored session."""
        if self._last_request is None:
            return []
        return [message.model_dump(exclude_none=True) for message in self._last_request.messages]

    def save(self, path: str | Path, messages: Sequence[Any] | None = None, **fields: Any) -> None:
        """Write a conversation to a file: its messages, their pictures, and its part of the KV cache.

        The conversation is `conversation`, or `messages` with the `fields` of ChatRequest. Only the file's owner can
        read it.

        Raises SessionError if the file cannot be written, and what `chat` raises for messages and pictures.
        """
        request = self._last_request if messages is None else ChatRequest.parse(messages, **fields)
        if request is None:
            raise RequestError("there is no conversation to save yet; chat first, or give messages", "messages")
        # The conversation goes on behind its last answer.
        whole = request.model_copy(update={"continue_final_message": False})
        prepared = self._preparer.prepare(whole, videos=VideoSupport())
        kept = plain(prepared.messages, prepared.pictures)
        write_session(Path(path), Session(kept, self._engine.snapshot(prepared.prompt)), self.info)

    def restore(self, path: str | Path) -> list[dict[str, Any]]:
        """Load a conversation that `save` has written, with its part of the KV cache, and return its messages.

        Raises SessionError if the file is damaged, or was saved with another model, context size, cache or template.
        """
        session = read_session(Path(path), self.info)
        try:
            request = ChatRequest.parse(session.messages)
            self._engine.adopt(session.snapshot)
        except (RequestError, SessionError) as error:
            raise SessionError(str(error), path) from None
        self._last_request = request
        return self.conversation

    def statistics(self) -> Statistics:
        """Return counters of the engine: requests, tokens, tiles, restarts."""
        return self._engine.statistics()

    def add_image(self, image: Any) -> PictureHandle:
        """Keep a picture or a document for a while, and return a handle whose `id` can be a `url` in messages.

        `image` is a path, the bytes of a file, a PIL image, or a uint8 array [height, width, 3]. The `id` of a PDF or
        video means all of it; with `#page=3`, it means one page of any file that has several. Raises ImageError.
        """
        return keep_file(self._handles, image, "image", self._document_limits, self._max_pixels)

    def remove_image(self, id: str) -> None:
        """Forget a file of `add_image`. Raises ImageNotFoundError if the handle is unknown or has expired."""
        self._handles.remove(id, "id")

    def clear_picture_cache(self) -> None:
        """Forget the embeddings of all pictures, in memory and in files.

        Raises PictureCacheError if a file cannot be removed.
        """
        self._engine.clear_picture_cache()

    def cancel(self) -> None:
        """Stop all running requests, from any thread. They raise GenerationCancelledError."""
        self._engine.cancel()

    def close(self) -> None:
        """Free the model. Running requests raise EngineClosedError. Closing twice is harmless."""
        self._engine.close()
        if self._use is not None:
            self._use.close()

    def __repr__(self) -> str:
        return f"<VLM {self.info.name!r}: {self._engine.state}>"

    def __enter__(self) -> VLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remember(self, request: ChatRequest, completion: ChatCompletion) -> None:
        self._last_request = continued(request, completion.choices[0].message) or self._last_request
