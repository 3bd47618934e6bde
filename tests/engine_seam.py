"""The one place where tests reach into a loaded VLM and its engine: a rename in there changes this file alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pocketvlm import VLM
from pocketvlm.engine.in_process import InProcessEngine
from pocketvlm.engine.interface import Engine, Event, Generation
from pocketvlm.engine.process import engine_process, supervisor
from pocketvlm.engine.process.supervisor import SupervisedEngine
from pocketvlm.messages import ChatRequest
from pocketvlm.native.context import Batch
from pocketvlm.native.llama import Model

if TYPE_CHECKING:  # scripts that tests run need no pytest
    import pytest

# ---- a VLM


def engine_of(vlm: VLM) -> Engine:
    return vlm._engine


def local(vlm: VLM) -> Any:
    """The engine in this process, with all its attributes."""
    engine = vlm._engine
    assert isinstance(engine, InProcessEngine)
    return engine


def prompt_of(vlm: VLM, messages: Sequence[Any]) -> Any:
    """What the template makes of messages, as a `Generation` has it."""
    return vlm._prompt(ChatRequest.parse(messages), vlm._read)


def units_of(vlm: VLM, messages: Sequence[Any], pictures: list[Any] | None = None) -> list[Any]:
    """Token ids and slots of a prompt; `pictures` gets each picture with what has seen it."""
    units: list[Any] = local(vlm)._units(prompt_of(vlm, messages), [] if pictures is None else pictures)
    return units


def generate(vlm: VLM, request: Generation) -> Generator[Event, None, None]:
    return vlm._engine.generate(request)


def never_ending(vlm: VLM) -> dict[int, float]:
    """A logit bias that rules out every token that ends an answer."""
    model = model_of(vlm)
    return {token: -100.0 for token in range(model.n_vocab) if model.is_end(token)}


def template_form(patch: pytest.MonkeyPatch, vlm: VLM, form: Any) -> None:
    """Let the model's template write calls in this form."""
    patch.setattr(vlm, "_form", form)


# ---- the engine in this process


def model_of(vlm: VLM) -> Model:
    model: Model = local(vlm)._model
    return model


def vocabulary_of(vlm: VLM) -> Any:
    """For the grammar."""
    return local(vlm)._vocabulary()


def last_logits(vlm: VLM) -> Any:
    """Of the token that was evaluated last, float32 [vocabulary]."""
    return local(vlm)._context.logits()


def vision_of(vlm: VLM) -> Any:
    return local(vlm)._vision


def encoder_of(vlm: VLM) -> Any:
    return local(vlm)._vision._encoder


def mtmd_of(vlm: VLM) -> Any:
    """libmtmd's handle of an encoder that it computes."""
    return encoder_of(vlm)._mtmd


@contextmanager
def encoding_as(vlm: VLM, encode: Callable[[Callable[[Any], Any], Any], Any]) -> Iterator[None]:
    """`encode(original, tile)` in place of the encoder's own."""
    encoder = encoder_of(vlm)
    original = encoder.encode_tile
    encoder.encode_tile = lambda tile: encode(original, tile)
    try:
        yield
    finally:
        del encoder.encode_tile


def told_to_stop(encoder: Any) -> bool:
    """Whether an ONNX encoder was asked to give up the tile that it is at."""
    return bool(encoder._cancelled)


def session_of(encoder: Any) -> Any:
    """onnxruntime's session of an ONNX encoder."""
    return encoder._session


def streams_lock(vlm: VLM) -> Any:
    """Held while the streams that there are change."""
    if isinstance(vlm._engine, InProcessEngine):
        return vlm._engine._lock
    return process_of(vlm)._lock


def unread_events(vlm: VLM) -> list[int]:
    """Of each open stream, how many events wait for its reader."""
    return [channel.qsize() for channel in local(vlm)._open.values()]


# ---- its scheduler


def scheduler_of(vlm: VLM) -> Any:
    return local(vlm)._scheduler


def run_between_steps(vlm: VLM, work: Callable[[Any], Any]) -> Any:
    """What `work` makes of the lanes while nothing is evaluated."""
    return scheduler_of(vlm).run_between_steps(work)


def lanes_of(vlm: VLM) -> Any:
    return scheduler_of(vlm)._lanes


def free_lanes(vlm: VLM) -> int:
    free: int = lanes_of(vlm).free
    return free


def each_lane(lanes: Any) -> list[Any]:
    found: list[Any] = lanes._lanes
    return found


def forget(vlm: VLM) -> None:
    """Empty every lane of an idle engine, and its context."""
    lanes = lanes_of(vlm)
    for lane in each_lane(lanes):
        assert not lane.busy
        lanes.clear(lane)
    local(vlm)._context.clear()


def last_position(lanes: Any, lane: Any) -> int:
    """Of the native cells of a lane; -1 where there are none."""
    context = lanes._context
    found: int = context._lib.llama_memory_seq_pos_max(context._memory, lane.id)
    return found


def admit_at_most(vlm: VLM, requests: int) -> None:
    """Running and waiting ones together."""
    scheduler_of(vlm)._most = requests


def is_closing(vlm: VLM) -> bool:
    return bool(scheduler_of(vlm)._closed)


def when_submitted(patch: pytest.MonkeyPatch, vlm: VLM, act: Callable[[], None]) -> None:
    """`act` between a request's acceptance and the scheduler's knowledge of it."""
    scheduler = scheduler_of(vlm)
    post = scheduler._post

    def late(command: Any) -> None:
        if getattr(command, "func", None) == scheduler._waiting.append:
            act()
        post(command)

    patch.setattr(scheduler, "_post", late)


def pace_of(vlm: VLM) -> Any:
    return scheduler_of(vlm)._stepper._pace


def usual_step(vlm: VLM) -> float | None:
    """Seconds of a step without prompts, once known."""
    usual: float | None = pace_of(vlm)._usual
    return usual


def prompt_rows(vlm: VLM, rows: int) -> None:
    """Evaluate prompts by so many rows, instead of as many as a batch takes."""
    pace_of(vlm)._n_batch = rows


def before_a_step(patch: pytest.MonkeyPatch, vlm: VLM, sink: Callable[[Any], None], *, crowded: bool) -> None:
    """What happens to a token that is to be handed out, just before the next step of an idle engine.

    `crowded`: as many threads evaluate as there are cores.
    """
    stepper = scheduler_of(vlm)._stepper
    patch.setattr(stepper, "_crowded", crowded)
    stepper._outbox.append((SimpleNamespace(cancelled=False, sink=sink), None))
    stepper._rest()
    stepper._outbox.clear()


def watch_rests(vlm: VLM) -> list[tuple[float, bool]]:
    """From now on, of each pause between two steps: its seconds, and whether tokens wait to be handed out."""
    stepper = scheduler_of(vlm)._stepper
    rest, found = stepper._pace.rest, list[tuple[float, bool]]()

    def resting(last: float) -> float:
        found.append((rest(last), bool(stepper._outbox)))
        return found[-1][0]

    stepper._pace.rest = resting
    return found


def sequences(batch: Batch) -> Any:
    """The lane of each row."""
    return batch._sequences[: batch.count]


# ---- prompts beside answers


def side_of(vlm: VLM) -> Any:
    return scheduler_of(vlm)._prefill.side


MAKE_SIDE = "_make"  # its attribute that makes its context


def side_is_open(vlm: VLM) -> bool:
    return side_of(vlm)._context is not None


def side_is_empty(vlm: VLM) -> bool:
    """No prompt, and no memory that is kept for one."""
    prefill = scheduler_of(vlm)._prefill
    return prefill._room == local(vlm).info.context_size and not prefill._chunks and not prefill.side._inside


# ---- the engine in a process of its own

Process: Any = engine_process.EngineProcess


STARTED: str = engine_process._COMMAND  # the code that an engine's process runs


def started_with(code: str, patch: pytest.MonkeyPatch | None = None) -> None:
    """Engines' processes run this code from now on: until `patch` is undone, or in a script for ever."""
    (patch.setattr if patch else setattr)(engine_process, "_COMMAND", code)


def pauses(patch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Before the next start, by crashes in a row."""
    patch.setattr(supervisor, "_PAUSES", seconds)


def processes(patch: pytest.MonkeyPatch, kind: Any) -> None:
    """A subclass of `Process` in its place."""
    patch.setattr(supervisor, "EngineProcess", kind)


def process_of(vlm: VLM) -> Any:
    engine: Any = vlm._engine
    assert isinstance(engine, SupervisedEngine)
    return engine._supervisor.process


def has_pending_questions(vlm: VLM) -> bool:
    """Whether a thread waits for an answer of the engine's process."""
    return bool(process_of(vlm)._pending)
