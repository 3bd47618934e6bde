"""What tests use of a VLM and its engine beyond their public names. A rename in the engine changes only this file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pocketvlm import VLM
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import Engine, Event, Generation
from pocketvlm.engine.kv_cache import sequence_pool as sequence_pool_module
from pocketvlm.engine.process import engine_process, supervisor
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.engine.scheduling.commands import Submit
from pocketvlm.messages import ChatRequest
from pocketvlm.native.context import Batch
from pocketvlm.native.llama import Model

if TYPE_CHECKING:  # scripts that tests run need no pytest
    import pytest

# ---- a VLM


def engine_of(vlm: VLM) -> Engine:
    return vlm._engine


def local(vlm: VLM) -> Any:
    """Return the engine, which must run in this process."""
    engine = vlm._engine
    assert isinstance(engine, InProcessEngine)
    return engine


def prompt_of(vlm: VLM, messages: Sequence[Any]) -> Any:
    """Render messages to the prompt of a `Generation`."""
    return vlm._preparer.prepare(ChatRequest.parse(messages)).prompt


def units_of(vlm: VLM, messages: Sequence[Any], pictures: list[Any] | None = None) -> list[Any]:
    """Tokenize a prompt to ids and embedding spans. `pictures` gets (image, prepared image) pairs."""
    prompt = local(vlm)._prompt_units(prompt_of(vlm, messages), [] if pictures is None else pictures)
    units: list[Any] = prompt.units
    return units


def generate(vlm: VLM, request: Generation) -> Generator[Event, None, None]:
    return vlm._engine.generate(request)


def never_ending(vlm: VLM) -> dict[int, float]:
    """Return a logit bias that rules out every token that ends an answer."""
    model = model_of(vlm)
    return {token: -100.0 for token in range(model.n_vocab) if model.is_end(token)}


def template_form(patch: pytest.MonkeyPatch, vlm: VLM, form: Any) -> None:
    """Pretend that the model's template writes tool calls in this form."""
    patch.setattr(vlm._preparer, "tool_call_format", form)


# ---- the engine in this process


def model_of(vlm: VLM) -> Model:
    model: Model = local(vlm)._model
    return model


def vocabulary_of(vlm: VLM) -> Any:
    """Return the vocabulary in the grammar's form."""
    return local(vlm)._grammar_vocabulary()


def trials_of(vlm: VLM) -> Any:
    """Return what tries the cost of schemas."""
    return local(vlm)._trials


def last_logits(vlm: VLM) -> Any:
    """Return the logits after the token that was evaluated last, float32 [vocabulary]."""
    return local(vlm)._context.logits()


def vision_of(vlm: VLM) -> Any:
    return local(vlm)._vision


def encoder_of(vlm: VLM) -> Any:
    return local(vlm)._vision._encoder


def mtmd_of(vlm: VLM) -> Any:
    """Return the libmtmd handle of an encoder in GGUF format."""
    return encoder_of(vlm)._mtmd


@contextmanager
def encoding_as(vlm: VLM, encode: Callable[[Callable[[Any], Any], Any], Any]) -> Iterator[None]:
    """Let `encode(original, tile)` replace the encoder's `encode_tile(tile)`."""
    encoder = encoder_of(vlm)
    original = encoder.encode_tile
    encoder.encode_tile = lambda tile: encode(original, tile)
    try:
        yield
    finally:
        del encoder.encode_tile


def session_of(encoder: Any) -> Any:
    """Return the onnxruntime session of an ONNX encoder."""
    return encoder._session


def streams_lock(vlm: VLM) -> Any:
    """Return the lock that guards the collection of open streams."""
    if isinstance(vlm._engine, InProcessEngine):
        return vlm._engine._lock
    return process_of(vlm)._lock


def unread_events(vlm: VLM) -> list[int]:
    """Return how many events of each open stream wait for its reader."""
    return [channel.qsize() for channel in local(vlm)._open.values()]


# ---- its scheduler


def scheduler_of(vlm: VLM) -> Any:
    return local(vlm)._scheduler


def run_between_steps(vlm: VLM, work: Callable[[Any], Any]) -> Any:
    """Call `work` with the sequence pool while nothing is evaluated."""
    return scheduler_of(vlm).run_between_steps(work)


def sequence_pool(vlm: VLM) -> Any:
    return scheduler_of(vlm)._sequences


def sequences_in(pool: Any) -> list[Any]:
    sequences: list[Any] = pool._sequences
    return sequences


def forget(vlm: VLM) -> None:
    """Empty the KV cache of an idle engine, on its thread, which may still try the table of token embeddings."""

    def clear(pool: Any) -> None:
        for sequence in sequences_in(pool):
            assert not sequence.busy
            pool.clear(sequence)
        pool._context.clear()

    run_between_steps(vlm, clear)


def checkpoint_bytes(patch: pytest.MonkeyPatch, limit: int) -> None:
    """Limit the memory of all context checkpoints together."""
    patch.setattr(sequence_pool_module, "_MAX_CHECKPOINT_BYTES", limit)


def last_position(pool: Any, sequence: Any) -> int:
    """Return the last position in the native cells of a sequence; -1 where there are none."""
    context = pool._context
    position: int = context._lib.llama_memory_seq_pos_max(context._memory, sequence.id)
    return position


def is_closing(vlm: VLM) -> bool:
    return bool(scheduler_of(vlm)._closed)


def when_submitted(patch: pytest.MonkeyPatch, vlm: VLM, act: Callable[[], None]) -> None:
    """Call `act` when a request is accepted, before the scheduler's thread can know of it."""
    scheduler = scheduler_of(vlm)
    post = scheduler._post

    def late(command: Any) -> None:
        if isinstance(command, Submit):
            act()
        post(command)

    patch.setattr(scheduler, "_post", late)


def prefill_budget(vlm: VLM) -> Any:
    return scheduler_of(vlm)._steps._prefill_budget


def usual_step(vlm: VLM) -> float | None:
    """Return the seconds of a step without prompt rows, once known."""
    seconds: float | None = prefill_budget(vlm)._usual
    return seconds


def prompt_rows(vlm: VLM, rows: int) -> None:
    """Evaluate `rows` of a prompt at a time, instead of a whole batch."""
    prefill_budget(vlm)._n_batch = rows


def sequences(batch: Batch) -> Any:
    """Return the sequence of each row."""
    return batch._sequences[: batch.count]


# ---- prompts in the background


def prefill_context(vlm: VLM) -> Any:
    return scheduler_of(vlm)._prefill.prefill_context


MAKE_CONTEXT = "_make"  # its attribute that makes the native context


def prefill_is_open(vlm: VLM) -> bool:
    """Whether the native context exists."""
    return prefill_context(vlm)._context is not None


def prefill_is_empty(vlm: VLM) -> bool:
    """Whether no prompt is in the background, and no cells are kept for one."""
    prefill = scheduler_of(vlm)._prefill
    all_free = prefill._free_cells == local(vlm).info.context_size
    return all_free and not prefill._chunks and not prefill.prefill_context._used_sequences


# ---- the engine in a process of its own

Process: Any = engine_process.EngineProcess


STARTED: str = engine_process._CODE  # the code that an engine's process runs


def started_with(code: str, patch: pytest.MonkeyPatch | None = None) -> None:
    """Let new engine processes run `code`, until `patch` is undone, or for good without one."""
    (patch.setattr if patch else setattr)(engine_process, "_CODE", code)


def pauses(patch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Set the pauses before a restart, by the number of crashes in a row."""
    patch.setattr(supervisor, "_PAUSES", seconds)


def processes(patch: pytest.MonkeyPatch, kind: Any) -> None:
    """Let the supervisor start a subclass of `Process`."""
    patch.setattr(supervisor, "EngineProcess", kind)


def process_of(vlm: VLM) -> Any:
    engine: Any = vlm._engine
    assert isinstance(engine, SupervisedEngine)
    return engine._supervisor.process


def has_pending_questions(vlm: VLM) -> bool:
    """Whether a thread waits for an answer of the engine's process."""
    return bool(process_of(vlm)._pending)
