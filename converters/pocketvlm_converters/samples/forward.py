"""Run samples through libllama, with pictures in the prompt, for proofs and importance matrices.

    with Loaded(gguf, encoder) as loaded:                    # mmproj (.gguf) or ONNX encoder
        exchanges = [loaded.exchange(sample) for sample in calibration_samples()]
    with Model(gguf, gpu_layers=0, mapped=True) as model, context_for(model, exchanges) as context:
        for exchange in exchanges:
            for tokens, logits in answers(context, exchange):
                ...

An exchange holds its embeddings. So encoder and language model need not be in memory together, and two language models
can get exactly the same input. `context_for` may be replaced by anything that makes a `Context`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import ModelError, PairingError
from pocketvlm.messages import ChatRequest, Detail, ImagePart
from pocketvlm.native.context import Context
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.system.machine import physical_cores
from pocketvlm.templates.prompt import ChatTemplate, ImageSpan, Span, TextSpan, isolate_control_tokens
from pocketvlm.templates.thoughts import THINK
from pocketvlm.vision.compatibility import check_files
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan, PreparedImage
from pocketvlm.vision.prompt_units import PromptUnit, units_of
from pocketvlm.vision.select_encoder import open_vision
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.samples.drawing import RGB
from pocketvlm_converters.samples.sets import Sample

QUESTION = "What is it?"  # to find out how a template opens an answer
ANSWER = 64  # tokens of an answer that are evaluated; bounds the time and the size of a proof's files
_BATCH = 512  # tokens
_BLOCK = 32  # positions whose logits are in memory together: 34 MB for 262,144 tokens
_SMALL_MODEL = 20_000_000  # weights; below, threads wait for each other longer than they work
_CPU = "cpu"  # for results that do not depend on the machine's devices


@dataclass(frozen=True, eq=False)
class Embedded:
    """A span of the prompt with its embeddings, float32 [tokens, n_embd_inp]. `picture` is its index in the sample."""

    picture: int
    span: EmbeddingSpan
    rows: Embeddings


@dataclass(frozen=True, eq=False)
class Exchange:
    """A sample as input of a language model: `prompt` in order, then the token ids of the answer."""

    prompt: tuple[int | Embedded, ...]
    answer: tuple[int, ...]

    @property
    def spans(self) -> list[Embedded]:
        """The embeddings of the prompt, in order."""
        return [piece for piece in self.prompt if isinstance(piece, Embedded)]

    @property
    def cells(self) -> int:
        """The number of cells that the exchange needs in the KV cache."""
        return sum(len(span.rows) for span in self.spans) + sum(isinstance(p, int) for p in self.prompt) + ANSWER


SampleExchange = tuple[Sample, Exchange]


class Loaded:
    """A language model, the vision encoder at `encoder` and the chat template, as a chat would use them, on the CPU.

    Raises subclasses of ModelError for files that cannot be loaded or do not belong together.
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
        except BaseException:  # also Ctrl-C: the caller has no object to close yet
            if vision is not None:
                vision.close()
            self.model.close()
            raise

    def exchange(self, sample: Sample, detail: Detail = "auto") -> Exchange:
        """Return the exchange of a sample: the prompt as in a chat, and the rendered answer including its end.

        Raises ModelError if the chat template renders a question differently once it has an answer.
        """
        parts = [{"type": "image", "image": picture} for picture in sample.pictures]
        user = {"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}
        alone = len(sample.pictures) == 1
        pictures = [
            self.vision.prepare(_read(pixels), detail, None, "picture", alone=alone) for pixels in sample.pictures
        ]
        try:
            question = self._units([user], pictures)
            chat = self._units([user, {"role": "assistant", "content": sample.answer}], pictures, open_answer=False)
            begin = _common_units(question, chat)
            if any(isinstance(unit, EmbeddingSpan) for unit in chat[begin - 1 :]):
                raise ModelError(
                    "its chat template writes a question differently once it has an answer", self.model.path
                )
            owner = {id(span): number for number, picture in enumerate(pictures) for span in picture.spans}

            def embedded(span: EmbeddingSpan) -> Embedded:
                return Embedded(number := owner[id(span)], span, pictures[number].encode(span))

            return Exchange(
                # Not what both have: a template may begin an answer otherwise than it asks for one.
                tuple(unit if isinstance(unit, int) else embedded(unit) for unit in question),
                tuple(unit for unit in chat[begin : begin + ANSWER] if isinstance(unit, int)),
            )
        finally:
            for picture in pictures:
                picture.close()

    def exchanges(
        self, samples: Iterable[Sample], progress: Progress = silent, detail: Detail = "auto"
    ) -> list[SampleExchange]:
        """Return the samples whose exchanges fit the model's trained context, each with its exchange."""
        samples = tuple(samples)
        exchanges = []
        for number, sample in enumerate(samples):
            progress("pictures", number, len(samples))
            exchange = self.exchange(sample, detail)
            if exchange.cells <= (self.model.n_ctx_train or exchange.cells):
                exchanges.append((sample, exchange))
        progress("pictures", len(samples), len(samples))
        return exchanges

    def render(self, messages: Sequence[object], open_answer: bool = True) -> tuple[Span, ...]:
        """Render messages with the chat template; with `open_answer`, the prompt ends where an answer begins."""
        return self._render(messages, open_answer, {})

    @cached_property
    def _variables(self) -> dict[str, Any]:
        question = self.render([{"role": "user", "content": QUESTION}])
        return variables_without_thoughts("".join(span.text for span in question if isinstance(span, TextSpan)))

    def _render(self, messages: Sequence[object], open_answer: bool, variables: Mapping[str, Any]) -> tuple[Span, ...]:
        parsed = ChatRequest.parse(messages).messages
        return self.template.render(parsed, variables=variables, add_generation_prompt=open_answer)

    def _units(
        self, messages: Sequence[object], pictures: Sequence[PreparedImage], open_answer: bool = True
    ) -> list[PromptUnit]:
        spans = isolate_control_tokens(self._render(messages, open_answer, self._variables), self._control)
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


def variables_without_thoughts(question: str) -> dict[str, Any]:
    """Return the variables for a chat template that opens a thought at the end of `question`, which it has rendered.

    Answers of samples have no thoughts.
    """
    return {"enable_thinking": False} if question.rstrip().endswith(THINK) else {}


def context_for(model: Model, exchanges: Iterable[Exchange], collector: Collector | None = None) -> Context:
    """Return a context large enough for each exchange, with reproducible logits. `collector` observes its graph."""
    exchanges = tuple(exchanges)
    largest = max((len(span.rows) for exchange in exchanges for span in exchange.spans), default=1)
    cells = max(exchange.cells for exchange in exchanges)
    # A picture with non-causal attention must fit one batch.
    batch = max(_BATCH, largest)
    return Context(model, n_ctx=cells, n_batch=batch, threads=_threads(model), cache_type="f32", collector=collector)


def answers(
    context: Context, exchange: Exchange, block: int = _BLOCK
) -> Iterator[tuple[tuple[int, ...], npt.NDArray[np.float32]]]:
    """Evaluate the exchange in `context`, which is cleared. Yield answer tokens and logits, float32 [tokens, n_vocab].

    Row i has the logits that predict token i. The array is reused for the next block.
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
    """Return up to `count` tokens of a greedy continuation of the prompt, until the end of the turn."""
    position, token = _prefill(context, exchange)
    tokens: list[int] = []
    while len(tokens) < count:
        context.decode_token(token, position)
        position, token = position + 1, int(context.logits().argmax())
        if model.is_end(token):
            break
        tokens.append(token)
    return tokens


def _prefill(context: Context, exchange: Exchange) -> tuple[int, int]:
    """Evaluate the prompt except its last token. Return the position of that token, and the token."""
    context.clear()
    position = 0
    pending: list[int] = []
    for piece in exchange.prompt:
        if isinstance(piece, int):
            pending.append(piece)
            continue
        position = _evaluate(context, pending, position)
        pending = []
        context.decode_embeddings(piece.rows, piece.span.at(position), causal=piece.span.causal)
        position += piece.span.advance
    return _evaluate(context, pending[:-1], position), pending[-1]


def _evaluate(context: Context, tokens: Sequence[int], position: int) -> int:
    """Evaluate tokens from `position` on, in batches. Return the position after them."""
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        context.decode_tokens(part, position)
        position += len(part)
    return position


def _threads(model: Model) -> int:
    return physical_cores() if model.n_params > _SMALL_MODEL else 1


def _common_units(one: Sequence[PromptUnit], other: Sequence[PromptUnit]) -> int:
    """Return how many units both have in common at the start, leaving at least one of `other`."""
    count = 0
    for a, b in zip(one, other[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count


def _read(pixels: RGB) -> Picture:
    return read_picture(ImagePart(type="image", image=pixels), "picture")
