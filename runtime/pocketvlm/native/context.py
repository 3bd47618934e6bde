"""A context in libllama: the KV cache of one or several sequences, and their evaluation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError
from pocketvlm.native import library, log
from pocketvlm.native.deferred_signals import signals_deferred
from pocketvlm.native.handle import Handle
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model

# llama.cpp asks between graph nodes whether to stop, by calling bool f(void *). libc's strlen on our two-byte flag
# is such a function ("" is false, "x" is true), and it needs neither Python nor its lock.
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_ABORTED = 2  # llama_decode
_CELLS = 256
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY

Cells = npt.NDArray[np.uint8]  # [bytes] in libllama's own form: positions, keys and values
Logits = npt.NDArray[np.float32]  # [n_vocab] of one token


class Aborted(Exception):  # noqa: N818  # a control signal, not an error
    """An evaluation was stopped by `Context.abort`; the cache holds what was there before the call."""


class Context(Handle):
    """`sequences` of up to `n_ctx` cells each, batches of `n_batch` tokens.

    A picture with non-causal attention must fit one batch. libllama makes cells by the 256, and batches no larger than
    all of them; the attributes tell.

    With `moves`, `cells` and `add_cells` carry what sequences hold from one context of a model to another.

    No call may ask for the logits of more than `outputs` tokens (0: any number): scratch memory holds them all, 100 MB
    for 512 of a small model.

    `exact` trades speed for reproducible logits: no flash attention and a float32 cache. `collector` sees what is
    evaluated; then nothing is offloaded.

    All sequences share one buffer (kv_unified): a step over any of them is one graph, and `share` costs no copy. A
    buffer for each would save 0 to 4 % of the time of four streams (SmolLM2-135M, 32 and 500 cells each), but splits
    a batch wherever a sequence between two others pauses or has another number of tokens.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        threads: int,
        exact: bool = False,
        sequences: int = 1,
        moves: bool = False,
        outputs: int = 0,
        collector: Collector | None = None,
    ) -> None:
        self._lib = lib = library.llama()
        self._flag = ctypes.create_string_buffer(2)
        params = lib.llama_context_default_params()
        # As libllama rounds it, but before it cuts the batch to it.
        params.n_ctx = -(-n_ctx // _CELLS) * _CELLS * sequences
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max, params.kv_unified = sequences + moves, sequences + moves > 1
        self._between = sequences  # where cells stand while they move
        params.n_outputs_max = outputs and outputs + moves
        params.n_threads = params.n_threads_batch = self._threads = threads
        params.no_perf = True
        params.swa_full = False  # layers with a window keep no more than it and a batch
        if exact:
            params.flash_attn_type = 0
            params.type_k = params.type_v = 0  # GGML_TYPE_F32
        if collector is not None:
            self._collector = collector  # libllama keeps no reference to its callback
            params.cb_eval = collector.callback
            params.offload_kqv = params.op_offload = False
        params.abort_callback = ctypes.cast(_libc.strlen, type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._flag)
        log.forget_errors()
        with signals_deferred():
            raw = lib.llama_init_from_model(model.raw, params)
            if not raw:
                raise EngineError(f"cannot make a context of {n_ctx * sequences:,} tokens: {log.last_error()}")
            super().__init__(raw, lib.llama_free, parent=model)
        self._memory = lib.llama_get_memory(raw)
        self.n_ctx = int(lib.llama_n_ctx(raw)) // sequences
        self.n_batch = int(lib.llama_n_batch(raw))
        self._recurrent, self._window, self.forgets = model.recurrent, model.window, model.forgets
        # libllama cuts a batch of such a model to pieces with as many tokens of each sequence, and tries all of them
        # out before the first: the last may then have taken cells of a window that the first still looks at.
        self.even = model.recurrent and model.window > 0
        self._width = model.n_embd_inp
        self._pos_per_token = 4 if model.mrope else 1
        self.n_vocab = model.n_vocab
        self._row = ctypes.c_float * self.n_vocab
        self._batch = Batch(self.n_batch)

    def abort(self) -> None:
        """Stop the running evaluation, from any thread. Holds until `allow`."""
        self._flag[0] = b"x"

    def allow(self) -> None:
        self._flag[0] = b"\0"

    def set_threads(self, count: int) -> None:
        """For the evaluations that follow."""
        if count != self._threads:
            self._lib.llama_set_n_threads(self.raw, count, count)
            self._threads = count

    def decode(self, batch: Batch) -> None:
        """Evaluate up to `n_batch` tokens of any sequences: one native call."""
        self._run(batch.raw)

    def wait(self) -> None:
        """Until what was begun on a GPU is done."""
        self._lib.llama_synchronize(self.raw)

    def decode_token(self, token: int, position: int) -> None:
        """Evaluate one token of sequence 0 and compute its logits."""
        self._batch.clear()
        self._batch.add(token, position, 0)
        self._run(self._batch.raw)

    def decode_tokens(self, tokens: Sequence[int], position: int, *, every: bool = False) -> None:
        """Evaluate up to `n_batch` tokens of sequence 0 from `position` on; logits for the last, or for `every` one."""
        self._batch.clear()
        self._batch.extend(tokens, position, 0, every=every)
        self._run(self._batch.raw)

    def decode_embeddings(
        self,
        rows: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int32],
        *,
        causal: bool = True,
        sequence: int = 0,
        logits: bool = True,
    ) -> None:
        """Evaluate embeddings: rows float32 [n, n_embd_inp], positions int32 [1 or 4, n] (M-RoPE: t, y, x, 0).

        `logits` for the last row.

        The widths are checked here, as libllama would read out of bounds. Without `causal`, n must not exceed n_batch.
        """
        count = len(rows)
        if rows.shape != (count, self._width) or rows.dtype != np.float32:
            raise EngineError(
                f"embeddings are {rows.dtype} {list(rows.shape)}, the model takes float32 [n, {self._width}]"
            )
        if positions.shape != (self._pos_per_token, count):
            raise EngineError(f"positions are {list(positions.shape)}, the model takes {[self._pos_per_token, count]}")
        if not causal and count > self.n_batch:  # an assert in libllama would end the process
            raise EngineError(
                f"a picture of {count} tokens needs a batch of that size, this context has {self.n_batch}"
            )
        if not causal:
            self._lib.llama_set_causal_attn(self.raw, False)
        try:
            for start in range(0, count, self.n_batch):
                part = slice(start, start + self.n_batch)
                last = logits and start + self.n_batch >= count
                self._run(_embedding_batch(self._lib, rows[part], positions[:, part], sequence, last))
        finally:
            if not causal:
                self._lib.llama_set_causal_attn(self.raw, True)

    def positions(self, start: int, count: int) -> npt.NDArray[np.int32]:
        """Those of text, for `decode_embeddings`: int32 [1 or 4, count]."""
        found = np.tile(np.arange(start, start + count, dtype=np.int32), (self._pos_per_token, 1))
        found[3:] = 0  # the fourth section of M-RoPE is unused
        return found

    def logits(self, index: int = -1, *, copy: bool = True) -> Logits:
        """The logits of one token of the last batch. Not copied, they are libllama's own."""
        pointer = self._lib.llama_get_logits_ith(self.raw, index)
        row: Any = self._row.from_address(ctypes.addressof(pointer.contents))
        found: Logits = np.frombuffer(row, np.float32)  # np.ctypeslib.as_array takes ten times as long
        return found.copy() if copy else found

    def truncate(self, position: int, sequence: int = 0) -> bool:
        """Forget all of a sequence from `position` on; False where what came before is no longer whole."""
        self.raw  # noqa: B018  # raises where it is closed  # raises where the context is closed
        done = bool(self._lib.llama_memory_seq_rm(self._memory, sequence, position if position > 0 else -1, -1))
        return done and self._whole(position, sequence)

    def returns(self, position: int, sequence: int = 0) -> bool:
        """Whether a longer sequence could be truncated to `position`."""
        return position == 0 or (not self._recurrent and self._whole(position, sequence))

    def _whole(self, position: int, sequence: int) -> bool:
        """Whether layers with a window still have all that a token at `position` looks at.

        libllama puts new cells where old ones have left their sequence's window, and then forgets what is older.
        """
        if self._recurrent or not self._window or position <= 0:
            return True
        first = int(self._lib.llama_memory_seq_pos_min(self._memory, sequence))
        return 0 <= first <= max(0, position - self._window + 1)

    def share(self, source: int, target: int, position: int, start: int = 0) -> None:
        """Let `target` have what `source` has from `start` to before `position`: the same cells, nothing copied."""
        self.raw  # noqa: B018  # raises where it is closed
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, position)

    def cells(self, sequence: int, start: int, end: int) -> Cells:
        """What a sequence holds from position `start` to before `end`."""
        self.share(sequence, self._between, end, start)
        try:
            return self.state(self._between, part=False)
        finally:
            self.truncate(0, self._between)

    def add_cells(self, cells: Cells, sequence: int) -> None:
        """Let a sequence go on with what `cells` gave, at the positions that it had."""
        size = self._lib.llama_state_seq_set_data_ext(self.raw, _bytes(cells), len(cells), self._between, 0)
        if size != len(cells):
            self.truncate(0, self._between)
            raise EngineError(f"libllama cannot take the cells of a sequence: {log.last_error()}")
        self.share(self._between, sequence, -1)
        self.truncate(0, self._between)

    def state(self, sequence: int, *, part: bool) -> Cells:
        """What a sequence holds, for `restore`; only the `part` that cannot be truncated: windows, recurrent states."""
        flags = _PARTIAL if part else 0
        found = np.empty(self._lib.llama_state_seq_get_size_ext(self.raw, sequence, flags), np.uint8)
        size = self._lib.llama_state_seq_get_data_ext(self.raw, _bytes(found), len(found), sequence, flags)
        if size != len(found) or not size:
            raise EngineError(f"libllama cannot save the state of a sequence: {log.last_error()}")
        return found

    def restore(self, state: Cells, position: int, sequence: int, *, part: bool) -> bool:
        """Bring back what `state` gave at `position`; with `part`, to a sequence that has all the rest of it.

        False where libllama refuses; then the sequence must be emptied.
        """
        flags = _PARTIAL if part else 0
        size = self._lib.llama_state_seq_set_data_ext(self.raw, _bytes(state), len(state), sequence, flags)
        return bool(size == len(state)) and self.truncate(position, sequence)

    def clear(self) -> None:
        self.raw  # noqa: B018  # raises where it is closed  # raises where the context is closed
        self._lib.llama_memory_clear(self._memory, False)

    def _run(self, batch: object) -> None:
        with signals_deferred(self.abort):
            code = self._lib.llama_decode(self.raw, batch)
        if code == 0:
            return
        if code == _ABORTED:
            raise Aborted
        if code == 1:
            raise EngineError("the context is full: no room in the KV cache")
        raise EngineError(f"llama_decode failed with code {code}: {log.last_error()}")


class Batch:
    """A llama_batch of tokens in memory of our own, filled in place."""

    def __init__(self, size: int) -> None:
        lib = library.llama()
        self.size = size
        self.count = 0
        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._outputs = np.zeros(size, np.int8)
        first, step = self._sequences.ctypes.data, self._sequences.itemsize
        # Each token's list of sequences is one element of our array.
        self._lists = (ctypes.c_void_p * size)(*range(first, first + step * size, step))
        self._counts = np.ones(size, np.int32)
        pointers = dict(lib.llama_batch._fields_)
        self._raw = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(pointers["token"]),
            pos=self._positions.ctypes.data_as(pointers["pos"]),
            n_seq_id=self._counts.ctypes.data_as(pointers["n_seq_id"]),
            seq_id=ctypes.cast(self._lists, pointers["seq_id"]),
            logits=self._outputs.ctypes.data_as(pointers["logits"]),
        )

    @property
    def raw(self) -> object:
        self._raw.n_tokens = self.count
        return self._raw

    def clear(self) -> None:
        self.count = 0

    def add(self, token: int, position: int, sequence: int) -> int:
        """One token, with logits; their index."""
        at = self.count
        self._tokens[at] = token
        self._positions[at] = position
        self._sequences[at] = sequence
        self._outputs[at] = 1
        self.count = at + 1
        return at

    def extend(
        self, tokens: Sequence[int], position: int, sequence: int, *, every: bool = False, last: bool = True
    ) -> int:
        """Tokens of one sequence from `position` on, with logits for `every` one or the `last`; index of the last."""
        if len(tokens) == 1 and (every or last):
            return self.add(tokens[0], position, sequence)
        at, end = self.count, self.count + len(tokens)
        self._tokens[at:end] = tokens
        self._positions[at:end] = np.arange(position, position + len(tokens))
        self._sequences[at:end] = sequence
        self._outputs[at:end] = every
        self._outputs[end - 1] = every or last
        self.count = end
        return end - 1


def _bytes(array: Cells) -> object:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _embedding_batch(
    lib: object, rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], sequence_id: int, logits: bool
) -> object:
    """A llama_batch over numpy memory; the arrays stay referenced by the batch object itself."""
    count = len(rows)
    rows = np.ascontiguousarray(rows)
    positions = np.ascontiguousarray(positions, dtype=np.int32)
    sequence = ctypes.c_int32(sequence_id)
    counts = (ctypes.c_int32 * count)(*([1] * count))
    sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*([ctypes.pointer(sequence)] * count))
    outputs = (ctypes.c_int8 * count)()
    outputs[count - 1] = logits
    batch = lib.llama_batch(  # type: ignore[attr-defined]  # of a library that is found when it runs
        n_tokens=count,
        embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        n_seq_id=counts,
        seq_id=sequences,
        logits=outputs,
    )
    batch.keep = (rows, positions, sequence)
    return batch
