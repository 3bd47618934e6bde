"""The simple engine: one model, one KV cache, one generation at a time, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pocketvlm.devices import physical_cores
from pocketvlm.engine.cache import CacheContent, length_of
from pocketvlm.engine.engine import (
    EngineInfo,
    Event,
    Finished,
    Generation,
    Image,
    ImageReport,
    Progress,
    Score,
    Started,
    Token,
)
from pocketvlm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineClosedError,
    GenerationCancelledError,
    RequestError,
)
from pocketvlm.native.context import Aborted, Context
from pocketvlm.native.llama import Model
from pocketvlm.native.sampler import Sampler
from pocketvlm.prompt import TextSpan
from pocketvlm.vision.choose import open_vision
from pocketvlm.vision.encoder import Seen, Slot, Vision
from pocketvlm.vision.pair import Wanted, check_files
from pocketvlm.vision.providers import CPU, check_device
from pocketvlm.vision.units import Unit, units_of

CONTEXT_LIMIT = 8192  # default cap: the cache of a 2 B model then stays within a few hundred MB
_BATCH = 512
T = TypeVar("T")


@dataclass(frozen=True)
class EngineOptions:
    """`context_size` None: the model's own, capped. `exact`: reproducible logits, but slower.

    `vision` says which encoder, `device` where onnxruntime runs it; `cpu` keeps all the rest there, too.
    """

    context_size: int | None = None
    threads: int | None = None
    gpu_layers: int = -1
    exact: bool = False
    vision: Wanted = "auto"
    device: str = "auto"


class SingleEngine:
    def __init__(
        self,
        model: Path,
        mmproj: Path | None,
        onnx: Path | None,
        *,
        name: str,
        fingerprint: str,
        options: EngineOptions,
    ) -> None:
        checked = check_files(model, mmproj, onnx, options.vision)
        check_device(options.device)
        threads = options.threads or physical_cores()
        self._model = Model(model, gpu_layers=0 if options.device == CPU else options.gpu_layers)
        self._vision: Vision | None = None
        try:
            self._vision = open_vision(self._model, checked, threads=options.threads, device=options.device)
            size = options.context_size or min(self._model.n_ctx_train or CONTEXT_LIMIT, CONTEXT_LIMIT)
            self._context = Context(
                self._model,
                n_ctx=size,
                n_batch=max(_BATCH, self._vision.at_once if self._vision else 0),
                threads=threads,
                exact=options.exact,
            )
        except BaseException:
            self._model.close()
            raise
        self._info = EngineInfo(
            name=name,
            chat_template=self._model.chat_template,
            bos=self._model.token_text(self._model.bos),
            eos=self._model.token_text(self._model.eos),
            control_tokens=self._model.control_tokens(checked.model.array("tokenizer.ggml.token_type")),
            image_token=self._vision.image_token if self._vision else None,
            has_vision=self._vision is not None,
            vision=self._vision.name if self._vision else None,
            context_size=self._context.n_ctx,
            fingerprint=fingerprint,
        )
        self._cached = CacheContent()
        self._turn = threading.Lock()
        self._holder: int | None = None
        self._cancelled = False
        # Long native calls run here, so that the calling thread can still be interrupted (Ctrl-C).
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="pocketvlm")
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    def cancel(self) -> None:
        if self._holder is not None:
            self._cancelled = True
            self._stop()

    def close(self) -> None:
        """Free the model. A running generation is cancelled first; closing twice is harmless."""
        if self._closed:
            return
        if self._holder == threading.get_ident():  # its own stream is paused at a yield: nothing native runs
            self._free()
            return
        self.cancel()
        with self._turn:
            self._free()

    def _free(self) -> None:
        self._closed = True
        self._worker.shutdown()
        if self._vision:
            self._vision.close()
        self._model.close()  # closes context and vision before itself

    def generate(self, request: Generation) -> Generator[Event, None, None]:
        if self._closed:
            raise EngineClosedError("the model is closed")
        if self._holder == threading.get_ident():
            raise EngineBusyError("this thread has an unfinished stream on this model: read it to its end or close it")
        with self._turn:
            if self._closed:
                raise EngineClosedError("the model is closed")
            self._holder = threading.get_ident()
            self._cancelled = False
            self._context.allow()
            if self._vision:
                self._vision.allow()
            seen: list[tuple[Image, Seen]] = []
            try:
                yield from self._generate(request, seen)
            except Aborted:
                raise GenerationCancelledError("the generation was cancelled") from None
            finally:
                self._holder = None
                for _, picture in seen:
                    picture.close()

    def _generate(self, request: Generation, seen: list[tuple[Image, Seen]]) -> Generator[Event, None, None]:
        began = time.perf_counter()
        for biased in request.sampling.logit_bias:
            if not 0 <= biased < self._model.n_vocab:
                raise RequestError(f"token {biased} is not in the vocabulary of {self._model.n_vocab:,}", "logit_bias")
        units = self._units(request.prompt, seen)
        total = sum(map(length_of, units))
        room = self._context.n_ctx - total
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {total:,} tokens ({sum(s.tokens for _, s in seen):,} of them pictures), "
                f"the context holds {self._context.n_ctx:,}",
                "messages",
            )
        known = self._recall(units)
        yield from self._prefill(units, known, [s for _, s in seen])
        yield Started(
            prompt_tokens=total,
            cached_tokens=sum(map(length_of, units[:known])),
            images=tuple(_report(image, picture) for image, picture in seen),
            prefill_ms=1000 * (time.perf_counter() - began),
        )
        yield from self._decode(request, min(request.max_tokens or room, room))

    def _units(self, prompt: Sequence[TextSpan | Image], seen: list[tuple[Image, Seen]]) -> list[Unit]:
        pieces: list[TextSpan | Seen] = []
        for piece in prompt:
            if isinstance(piece, TextSpan):
                pieces.append(piece)
                continue
            if self._vision is None:
                raise RequestError(
                    f"{self._info.name} is a text-only model: it was loaded without a projector", piece.param
                )
            picture = self._vision.prepare(piece.picture, piece.detail, piece.max_tokens, piece.param)
            seen.append((piece, picture))
            pieces.append(picture)
        return units_of(self._model, pieces)

    def _recall(self, units: Sequence[Unit]) -> int:
        """Cut the cache back to what this prompt shares with it; the number of units shared."""
        known = min(self._cached.common(units), len(units) - 1)  # the last one is evaluated again, for its logits
        if known < len(self._cached.keys) and not self._model.keeps_prefix:
            known = 0
        if not self._context.truncate(self._cached.keep(known)):
            known = 0
            self._context.truncate(self._cached.keep(0))
        return known

    def _prefill(self, units: Sequence[Unit], known: int, pictures: Sequence[Seen]) -> Generator[Event, None, None]:
        owner = {id(slot): picture for picture in pictures for slot in picture.slots}
        to_encode = sum(isinstance(unit, Slot) for unit in units[known:])
        done = 0
        tokens: list[int] = []
        for unit in units[known:]:
            if isinstance(unit, int):
                tokens.append(unit)
                continue
            self._evaluate(tokens)
            tokens = []
            yield Progress(done, to_encode)
            picture = owner[id(unit)]
            rows = self._away(partial(picture.encode, unit))
            picture.encoded += 1
            positions = unit.at(self._cached.position)
            self._away(partial(self._context.decode_embeddings, rows, positions, causal=unit.causal))
            self._cached.add(unit)
            done += 1
        self._evaluate(tokens)

    def _evaluate(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), self._context.n_batch):
            part = tokens[start : start + self._context.n_batch]
            self._away(partial(self._context.decode_tokens, part, self._cached.position))
            for token in part:
                self._cached.add(token)

    def _decode(self, request: Generation, limit: int) -> Generator[Event, None, None]:
        model, context, cached = self._model, self._context, self._cached
        made = 0
        with Sampler(model, request.sampling) as sampler:
            while True:
                token = sampler.sample(context)
                if model.is_end(token):
                    yield Finished("stop")
                    return
                score = self._score(token, request.top_logprobs) if request.top_logprobs is not None else None
                made += 1
                yield Token(token, model.piece(token), score)
                if made >= limit:
                    yield Finished("length")
                    return
                if self._cancelled:
                    raise Aborted
                context.decode_token(token, cached.position)
                cached.add(token)

    def _score(self, token: int, count: int) -> Score:
        logits = self._context.logits().astype(np.float64)
        logits -= logits.max()
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argpartition(-logprobs, min(count, len(logprobs) - 1))[:count] if count else np.empty(0, np.int64)
        best = best[np.argsort(-logprobs[best], kind="stable")]
        top = tuple((int(i), self._model.piece(int(i)), min(0.0, float(logprobs[i]))) for i in best)
        return Score(min(0.0, float(logprobs[token])), top)

    def _away(self, work: Callable[[], T]) -> T:
        """Run a long native call on the worker. Ctrl-C here stops it there, and is raised when it has stopped."""
        if self._cancelled:
            raise Aborted
        future: Future[T] = self._worker.submit(work)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                self._stop()
                wait([future])
            raise

    def _stop(self) -> None:
        self._context.abort()
        if self._vision:
            self._vision.cancel()


def _report(image: Image, seen: Seen) -> ImageReport:
    return ImageReport(
        original=seen.original,
        used=seen.used,
        tiles=len(seen.slots),
        tokens=seen.tokens,
        shrunk=seen.shrunk,
        cached=seen.encoded == 0,
        read_ms=image.picture.read_ms,
        preprocess_ms=seen.preprocess_ms,
        encode_ms=seen.encode_ms,
    )
