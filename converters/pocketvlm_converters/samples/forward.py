"""Samples through libllama, pictures in the prompt: for proofs and for importance matrices.

    with Loaded(gguf, encoder) as loaded:                    # mmproj (.gguf) or ONNX encoder
        exchanges = [loaded.exchange(sample) for sample in calibration_samples()]
    with Model(gguf, gpu_layers=0, mapped=True) as model, context_for(model, exchanges) as context:
        for exchange in exchanges:
            for tokens, logits in answers(context, exchange):
                ...

An exchange holds its embeddings, so encoder and language model need not be in memory together, and two language
models can be shown the very same input. Anything else that makes a `Context` may be used in place of `context_for`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import ModelError, PairingError
from pocketvlm.messages import ChatRequest, Detail, ImagePart
from pocketvlm.native.context import Context
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.system.machine import physical_cores
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, Span, isolate_control_tokens
from pocketvlm.vision.compatibility import check_files
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage
from pocketvlm.vision.prompt_units import PromptUnit, units_of
from pocketvlm.vision.select_encoder import open_vision
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.samples.drawing import RGB
from pocketvlm_converters.samples.sets import Sample

ANSWER = 64  # tokens of an answer that are looked at: bounds time, and the size of what a proof keeps
_BATCH = 512
_BLOCK = 32  # positions whose logits are in memory together: 34 MB for 262,144 tokens
_SMALL = 20_000_000  # weights
_CPU = "cpu"  # the same on every machine that has no other device


@dataclass(frozen=True, eq=False)
class Embedded:
    """A span of the prompt with its embeddings, float32 [tokens, n_embd_inp]; `picture` is its number in the sample."""

    picture: int
    span: EmbeddingSpan
    rows: Embeddings


@dataclass(frozen=True, eq=False)
class Exchange:
    """A sample as a language model takes it: `prompt` in order, then the token ids of the answer."""

    prompt: tuple[int | Embedded, ...]
    answer: tuple[int, ...]

    @property
    def spans(self) -> list[Embedded]:
        return [piece for piece in self.prompt if isinstance(piece, Embedded)]

    @property
    def cells(self) -> int:
        """Of the KV cache."""
        return sum(len(span.rows) for span in self.spans) + sum(isinstance(p, int) for p in self.prompt) + ANSWER


SampleExchange = tuple[Sample, Exchange]


class Loaded:
    """A language model, the vision encoder at `encoder` and the chat template, as a chat would use them, on the CPU.

    Raises ModelError leaves for files that cannot be loaded or are no pair.
    """

    def __init__(self, model: Path, encoder: Path) -> None:
        onnx = encoder.suffix == ".onnx"
        checked = check_files(model, None if onnx else encoder, encoder if onnx else None, "onnx" if onnx else "gguf")
        self.model = Model(model, gpu_layers=0, mapped=True)
        vision = None
        try:
            vision = open_vision(self.model, checked, threads=_threads(self.model), device=_CPU)
            if vision is None or vision.image_token is None:
                raise PairingError("is not an encoder of a known family", encoder)
            self.vision = vision
            self._control = self.model.control_tokens(checked.model.array("tokenizer.ggml.token_type"))
            self.template = ChatTemplate(
                self.model.chat_template,
                bos=self.model.token_text(self.model.bos),
                eos=self.model.token_text(self.model.eos),
                image_token=vision.image_token,
                path=model,
            )
        except BaseException:  # Ctrl-C while it loads: nobody else can close them
            if vision is not None:
                vision.close()
            self.model.close()
            raise

    def exchange(self, sample: Sample, detail: Detail = "auto") -> Exchange:
        """The prompt is what a chat would evaluate; the answer is what the template makes of it, its end included."""
        parts = [{"type": "image", "image": picture} for picture in sample.pictures]
        user = {"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}
        pictures = [self.vision.prepare(_picture(p), detail, None, "picture") for p in sample.pictures]
        try:
            asked = self._units([user], pictures)
            told = self._units([user, {"role": "assistant", "content": sample.answer}], pictures, asking=False)
            begin = _common(asked, told)
            if any(isinstance(unit, EmbeddingSpan) for unit in told[begin - 1 :]):
                raise ModelError("its chat template writes a question otherwise once it is answered", self.model.path)
            owner = {id(span): number for number, seen in enumerate(pictures) for span in seen.spans}

            def embedded(span: EmbeddingSpan) -> Embedded:
                return Embedded(number := owner[id(span)], span, pictures[number].encode(span))

            return Exchange(
                tuple(unit if isinstance(unit, int) else embedded(unit) for unit in told[:begin]),
                tuple(unit for unit in told[begin : begin + ANSWER] if isinstance(unit, int)),
            )
        finally:
            for seen in pictures:
                seen.close()

    def asked(
        self, samples: Iterable[Sample], progress: Progress = silent, detail: Detail = "auto"
    ) -> list[SampleExchange]:
        """The samples whose exchanges fit the model's context."""
        samples = tuple(samples)
        found = []
        for number, sample in enumerate(samples):
            progress("pictures", number, len(samples))
            exchange = self.exchange(sample, detail)
            if exchange.cells <= (self.model.n_ctx_train or exchange.cells):
                found.append((sample, exchange))
        progress("pictures", len(samples), len(samples))
        return found

    def render(self, messages: Sequence[object], asking: bool = True) -> tuple[Span, ...]:
        """What the chat template makes of messages; `asking` ends it where an answer begins."""
        return self.template.render(ChatRequest.parse(messages).messages, add_generation_prompt=asking)

    def _units(
        self, messages: Sequence[object], pictures: Sequence[PreparedImage], asking: bool = True
    ) -> list[PromptUnit]:
        spans = isolate_control_tokens(self.render(messages, asking), self._control)
        return units_of(self.model, [pictures[s.index] if isinstance(s, ImageSpan) else s for s in spans])

    def close(self) -> None:
        self.vision.close()
        self.model.close()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def context_for(model: Model, exchanges: Iterable[Exchange], collector: Collector | None = None) -> Context:
    """A context that holds any one of them; its logits can be reproduced. `collector` sees what goes on in it."""
    exchanges = tuple(exchanges)
    largest = max((len(span.rows) for exchange in exchanges for span in exchange.spans), default=1)
    cells = max(exchange.cells for exchange in exchanges)
    # A picture with non-causal attention must fit one batch.
    batch = max(_BATCH, largest)
    return Context(model, n_ctx=cells, n_batch=batch, threads=_threads(model), exact=True, collector=collector)


def answers(
    context: Context, exchange: Exchange, block: int = _BLOCK
) -> Iterator[tuple[tuple[int, ...], npt.NDArray[np.float32]]]:
    """Evaluate the exchange in an emptied context. Yields tokens of the answer and logits float32 [tokens, n_vocab].

    Row i is what the model expected where token i stands. The array is used again for the next block.
    """
    position, last = _prefill(context, exchange)
    rows = np.empty((block, context.n_vocab), np.float32)
    for start in range(0, len(exchange.answer), block):
        tokens = exchange.answer[start : start + block]
        context.decode_tokens([last, *tokens[:-1]], position, every=True)
        position, last = position + len(tokens), tokens[-1]
        for row in range(len(tokens)):
            rows[row] = context.logits(row)
        yield tokens, rows[: len(tokens)]


def continuation(context: Context, model: Model, exchange: Exchange, count: int = ANSWER) -> list[int]:
    """The likeliest tokens after the prompt, one by one, until the end of the turn or `count` of them."""
    position, token = _prefill(context, exchange)
    found: list[int] = []
    while len(found) < count:
        context.decode_token(token, position)
        position, token = position + 1, int(context.logits().argmax())
        if model.is_end(token):
            break
        found.append(token)
    return found


def _prefill(context: Context, exchange: Exchange) -> tuple[int, int]:
    """Evaluate the prompt but for its last token; that token, which predicts the first of the answer, and its place."""
    context.clear()
    position = 0
    waiting: list[int] = []
    for piece in exchange.prompt:
        if isinstance(piece, int):
            waiting.append(piece)
            continue
        position = _evaluate(context, waiting, position)
        waiting = []
        context.decode_embeddings(piece.rows, piece.span.at(position), causal=piece.span.causal)
        position += piece.span.advance
    return _evaluate(context, waiting[:-1], position), waiting[-1]


def _evaluate(context: Context, tokens: Sequence[int], position: int) -> int:
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        context.decode_tokens(part, position)
        position += len(part)
    return position


def _threads(model: Model) -> int:
    """Threads of a small model wait for each other longer than they work."""
    return physical_cores() if model.n_params > _SMALL else 1


def _common(one: Sequence[PromptUnit], other: Sequence[PromptUnit]) -> int:
    """Units at the beginning that both have; at least one of the other is left over."""
    count = 0
    for a, b in zip(one, other[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count


def _picture(pixels: RGB) -> Picture:
    return read_picture(ImagePart(type="image", image=pixels), "picture")
