"""AsyncVLM: the same model for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from pocketvlm.chat.load_options import LoadOptions, accepts_fields_of
from pocketvlm.chat.vlm import VLM, ProgressCallback
from pocketvlm.decisions.decision import Decision
from pocketvlm.engine.interface import CancellationToken, EngineInfo, Statistics, TokenCount
from pocketvlm.files.bundle import Scope
from pocketvlm.messages import ChatCompletion, ChatCompletionChunk, ParsedCompletion, Region
from pocketvlm.messages.parsed import M
from pocketvlm.pictures.handles import PictureHandle
from pocketvlm.system.thread_stream import ThreadStream

if TYPE_CHECKING:
    from pocketvlm.messages.question import AnyPicture

T = TypeVar("T")
_SUBMITTED = 2  # requests for each that runs: the next ones read their pictures meanwhile


class AsyncVLM:
    """A loaded model for asyncio. Its methods are those of `VLM`, which describes them; those that work are coroutines.

        async with AsyncVLM.load() as vlm:
            print(await vlm.ask("What is this?", "photo.jpg"))

    Each request has one thread while it runs. Twice `parallel` of them are begun, and further ones wait without a
    thread. Cancelling the task of a request, or closing the iterator of a stream, stops the work within one token. All
    methods must be called from one event loop.
    """

    def __init__(self, vlm: VLM) -> None:
        """Use a model that is already loaded; closing this closes it. `load` loads one."""
        self._vlm = vlm
        self._begun = asyncio.Semaphore(_SUBMITTED * vlm.parallel)

    @accepts_fields_of(LoadOptions)
    @classmethod
    def load(cls, target: str | Path | None = None, options: LoadOptions | None = None, **keywords: Any) -> Loading:
        """Load a model, with the arguments and errors of `VLM.load`, while the event loop goes on.

        Await the result for an AsyncVLM, or use it as an asynchronous context manager, which closes the model.
        """
        return Loading(partial(VLM.load, target, options, **keywords))

    def __repr__(self) -> str:
        return f"<Async{repr(self._vlm)[1:]}"

    @property
    def info(self) -> EngineInfo:
        """What is known about the loaded model."""
        return self._vlm.info

    @property
    def scope(self) -> Scope | None:
        return self._vlm.scope

    @property
    def notation(self) -> str | None:
        return self._vlm.notation

    @property
    def conversation(self) -> list[dict[str, Any]]:
        return self._vlm.conversation

    @overload
    async def ask(self, question: str, *pictures: AnyPicture, response_format: type[M], **options: Any) -> M: ...
    @overload
    async def ask(
        self,
        question: str,
        *pictures: AnyPicture,
        response_format: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str: ...
    async def ask(self, question: str, *pictures: Any, progress: ProgressCallback | None = None, **options: Any) -> Any:
        """Ask about pictures, and return the text of the answer, or an instance of `response_format`."""
        return await self._one(partial(self._vlm.ask, question, *pictures, **options), progress)

    @overload
    async def chat(
        self, messages: Sequence[Any], *, response_format: type[M], **options: Any
    ) -> ParsedCompletion[M]: ...
    @overload
    async def chat(
        self, messages: Sequence[Any], *, response_format: Mapping[str, Any] | None = None, **options: Any
    ) -> ChatCompletion: ...
    async def chat(
        self, messages: Sequence[Any], *, progress: ProgressCallback | None = None, **options: Any
    ) -> ChatCompletion:
        """Answer `messages`."""
        return await self._one(partial(self._vlm.chat, messages, **options), progress)

    async def locate(
        self, picture: AnyPicture, thing: str, *, progress: ProgressCallback | None = None, **options: Any
    ) -> list[Region]:
        """Return where a thing is in a picture."""
        return await self._one(partial(self._vlm.locate, picture, thing, **options), progress)

    def stream(
        self, messages: Sequence[Any], *, progress: ProgressCallback | None = None, **fields: Any
    ) -> AsyncGenerator[ChatCompletionChunk, None]:
        """Answer `messages` in chunks: `async for chunk in vlm.stream(messages)`."""
        return self._items(partial(self._vlm.stream, messages, **fields), progress)

    async def decide(
        self,
        messages: Sequence[Any],
        choices: Sequence[str] | None = None,
        *,
        yes_no: bool = False,
        scale: Sequence[int] | None = None,
        progress: ProgressCallback | None = None,
        **fields: Any,
    ) -> Decision:
        """Return how likely each of some answers to `messages` is."""
        work = partial(self._vlm.decide, messages, choices, yes_no=yes_no, scale=scale, **fields)
        return await self._one(work, progress)

    async def count_tokens(self, messages: Sequence[Any], **fields: Any) -> TokenCount:
        return await asyncio.to_thread(self._vlm.count_tokens, messages, **fields)

    async def save(self, path: str | Path, messages: Sequence[Any] | None = None, **fields: Any) -> None:
        await asyncio.to_thread(self._vlm.save, path, messages, **fields)

    async def restore(self, path: str | Path) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._vlm.restore, path)

    async def add_image(self, image: Any) -> PictureHandle:
        return await asyncio.to_thread(self._vlm.add_image, image)

    def remove_image(self, id: str) -> None:
        self._vlm.remove_image(id)

    async def statistics(self) -> Statistics:
        return await asyncio.to_thread(self._vlm.statistics)

    async def clear_picture_cache(self) -> None:
        await asyncio.to_thread(self._vlm.clear_picture_cache)

    def cancel(self) -> None:
        """Stop all running requests. They raise GenerationCancelledError."""
        self._vlm.cancel()

    async def close(self) -> None:
        """Free the model. Running requests raise EngineClosedError. Closing twice is harmless."""
        await asyncio.to_thread(self._vlm.close)

    async def __aenter__(self) -> AsyncVLM:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _one(self, work: Callable[..., T], progress: ProgressCallback | None) -> T:
        def results(**options: Any) -> Generator[T, None, None]:
            yield work(**options)

        async with aclosing(self._items(results, progress)) as items:
            async for item in items:
                result = item
        return result

    async def _items(
        self, work: Callable[..., Generator[T, None, None]], progress: ProgressCallback | None
    ) -> AsyncGenerator[T, None]:
        """Yield what `work` yields on a thread of its own. Its `progress` is called here, on the loop's thread."""
        cancellation = CancellationToken()

        def items(put: Callable[[T | _Progress], None]) -> Generator[T | _Progress, None, None]:
            def report(done: int, total: int) -> None:
                put(_Progress(done, total))

            return work(progress=report if progress else None, cancellation=cancellation)

        await self._begun.acquire()
        try:
            # The end of the thread lets the next request begin, while this one's caller may still be reading.
            stream = ThreadStream[T | _Progress](items, stop=cancellation.stop, ended=self._begun.release)
        except BaseException:  # the system gave no thread
            self._begun.release()
            raise
        try:
            while batch := await stream.fetch():
                for item in batch:
                    if not isinstance(item, _Progress):
                        yield item
                    elif progress:
                        progress(item.done, item.total)
        finally:
            await stream.cancel()


@dataclass(frozen=True)
class _Progress:
    done: int
    total: int


class Loading:
    """A model that is being loaded. If its task is cancelled, the model is freed as soon as it is loaded."""

    def __init__(self, load: Callable[[], VLM]) -> None:
        self._load = load
        self._loaded: AsyncVLM | None = None

    def __await__(self) -> Generator[Any, None, AsyncVLM]:
        return self._run().__await__()

    async def __aenter__(self) -> AsyncVLM:
        self._loaded = await self
        return self._loaded

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loaded is not None:
            await self._loaded.close()

    async def _run(self) -> AsyncVLM:
        # A model that is not handed out is freed by the garbage collector, as the engine's finalizer says.
        return AsyncVLM(await asyncio.to_thread(self._load))
