"""A context of libllama: the KV cache of one or several sequences, and their evaluation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError
from pocketvlm.files.cache_type import CacheType
from pocketvlm.native import library, log
from pocketvlm.native.deferred_signals import signals_deferred
from pocketvlm.native.handle import Handle
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model

# llama.cpp calls bool f(void *) between graph nodes to ask whether to stop. libc's strlen on our two-byte flag is such
# a function ("" is false, "x" is true), and it needs neither Python nor the GIL.
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_ABORTED = 2  # a return value of llama_decode
_CELL_MULTIPLE = 256  # libllama rounds the number of cells up to a multiple of this
CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # ggml_type
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ

Cells = npt.NDArray[np.uint8]  # [bytes] in libllama's own format: positions, keys and values
Logits = npt.NDArray[np.float32]  # [n_vocab] of one token


class Aborted(Exception):  # noqa: N818  # a control signal, not an error
    """`Context.abort` stopped an evaluation; the cache holds what it held before the call."""


class Context(Handle):
    """A KV cache of `sequences` of up to `n_ctx` cells each, evaluated in batches of up to `n_batch` tokens.

    libllama rounds the cells up to a multiple of 256 and limits a batch to that number; the attributes `n_ctx` and
    `n_batch` hold the result. A picture with non-causal attention must fit into one batch.

    With `moves`, `cells` and `add_cells` can copy what sequences hold to another context of the same model.

    `branches` is how many more sequences there should be, to continue one sequence in several ways at once. The
    attribute has their ids: none for models that need checkpoints, where each would take memory of its own.

    `outputs` is the largest number of tokens whose logits one call may ask for (0: no limit). libllama allocates
    scratch memory for all of them: 100 MB for 512 tokens of a small model.

    `cache_type` is that of keys and values. "f32" trades speed for reproducible logits: it does without flash
    attention. "q8_0" cannot: libllama refuses it for a device or for heads that do not allow both.

    `collector` gets the inputs of all matrices that are evaluated; then nothing is offloaded.

    `accelerated` lets the accelerator of prompts compute the products of 5 rows and more, for weights that it reads,
    and what recurrent layers do with as many tokens.

    All sequences share one buffer (kv_unified): a step over any of them is one graph, and `share` copies nothing. A
    buffer for each sequence would save 0 to 4 % of the time of four streams (SmolLM2-135M, 32 and 500 cells each), but
    would split a batch wherever a sequence between two others pauses or has another number of tokens.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        threads: int,
        cache_type: CacheType = "f16",
        sequences: int = 1,
        moves: bool = False,
        branches: int = 0,
        outputs: int = 0,
        collector: Collector | None = None,
        accelerated: bool = False,
    ) -> None:
        self._lib = lib = library.llama()
        self._abort_flag = ctypes.create_string_buffer(2)
        params = lib.llama_context_default_params()
        # libllama would round it, too, but only after it has limited the batch to the number that was given.
        params.n_ctx = -(-n_ctx // _CELL_MULTIPLE) * _CELL_MULTIPLE * sequences
        params.n_batch = params.n_ubatch = n_batch
        own = sequences + moves
        last = own if model.needs_checkpoints else min(own + branches, _MAX_SEQUENCES)
        self.branches = range(own, last)
        params.n_seq_max, params.kv_unified = last, last > 1
        self._transfer_sequence = sequences  # holds the cells that are being copied out or in
        params.n_outputs_max = outputs and max(outputs + moves, last)  # libllama reserves one for each sequence
        params.n_threads = params.n_threads_batch = self._threads = threads
        params.no_perf = True
        params.swa_full = False  # layers with a sliding window keep cells for the window and one batch only
        params.type_k = params.type_v = CACHE_TYPES[cache_type]
        if cache_type == "f32":
            params.flash_attn_type = 0
        if collector is not None:
            self._collector = collector  # libllama holds no reference to the callback
            params.cb_eval = collector.callback
            params.offload_kqv = params.op_offload = False
        params.abort_callback = ctypes.cast(_libc.strlen, type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        log.forget_errors()
        with signals_deferred():
            with library.accelerator().offered() if accelerated else nullcontext():
                raw = lib.llama_init_from_model(model.raw, params)
            if not raw:
                raise EngineError(f"cannot create a context of {n_ctx * sequences:,} tokens: {log.last_error()}")
            super().__init__(raw, lib.llama_free, parent=model)
        self.n_ctx = int(lib.llama_n_ctx(raw)) // sequences
        self.n_batch = int(lib.llama_n_batch(raw))
        self._recurrent, self._window, self.needs_checkpoints = model.recurrent, model.window, model.needs_checkpoints
        # Whether a batch must have as many tokens of each of its sequences. libllama splits a batch of such a model
        # into pieces with equal numbers, and reserves cells for all pieces before it evaluates the first: the last one
        # may then have taken cells of a window that the first still attends to.
        self.needs_equal_counts = model.recurrent and model.window > 0
        self._embedding_width = model.n_embd_inp
        self._position_rows = 4 if model.mrope else 1
        self.n_vocab = model.n_vocab
        self._row_type = ctypes.c_float * self.n_vocab
        self._batch = Batch(self.n_batch)

    @property
    def _memory(self) -> Any:
        """The pointer to the KV cache; EngineClosedError where the context is closed."""
        return self._lib.llama_get_memory(self.raw)

    def abort(self) -> None:
        """Stop the running evaluation and all later ones until `allow`. May be called from any thread."""
        self._abort_flag[0] = b"x"

    def allow(self) -> None:
        """Let evaluations run again after `abort`."""
        self._abort_flag[0] = b"\0"

    def set_threads(self, count: int) -> None:
        """Set the number of threads for the evaluations that follow."""
        if count != self._threads:
            self._lib.llama_set_n_threads(self.raw, count, count)
            self._threads = count

    def decode(self, batch: Batch) -> None:
        """Evaluate up to `n_batch` tokens of any sequences in one native call."""
        self._run(batch.raw)

    def wait(self) -> None:
        """Wait until the GPU has finished what was submitted to it."""
        self._lib.llama_synchronize(self.raw)

    def decode_token(self, token: int, position: int) -> None:
        """Evaluate one token of sequence 0 and compute its logits."""
        self._batch.clear()
        self._batch.add(token, position, 0)
        self._run(self._batch.raw)

    def decode_tokens(self, tokens: Sequence[int], position: int, *, every: bool = False) -> None:
        """Evaluate up to `n_batch` tokens of sequence 0 from `position` on.

        Computes the logits of the last token, or of `every` token.
        """
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

        With `logits`, computes those of the last row. Without `causal`, n must not exceed n_batch.

        Raises EngineError for other shapes, because libllama would read out of bounds.
        """
        count = len(rows)
        if rows.shape != (count, self._embedding_width) or rows.dtype != np.float32:
            raise EngineError(
                f"embeddings are {rows.dtype} {list(rows.shape)}, the model takes float32 [n, {self._embedding_width}]"
            )
        if positions.shape != (self._position_rows, count):
            raise EngineError(f"positions are {list(positions.shape)}, the model takes {[self._position_rows, count]}")
        if not causal and count > self.n_batch:  # a failed assertion in libllama would end the process
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
        """Return the positions of `count` text tokens for `decode_embeddings`: int32 [1 or 4, count]."""
        positions = np.tile(np.arange(start, start + count, dtype=np.int32), (self._position_rows, 1))
        positions[3:] = 0  # the fourth section of M-RoPE is unused
        return positions

    def logits(self, index: int = -1, *, copy: bool = True) -> Logits:
        """Return the logits of one token of the last batch. Without `copy`, they are a view of libllama's memory."""
        pointer = self._lib.llama_get_logits_ith(self.raw, index)
        row: Any = self._row_type.from_address(ctypes.addressof(pointer.contents))
        logits: Logits = np.frombuffer(row, np.float32)  # np.ctypeslib.as_array takes ten times as long
        return logits.copy() if copy else logits

    def truncate(self, position: int, sequence: int = 0) -> bool:
        """Remove the cells of a sequence from `position` on; return False where those before it are incomplete."""
        removed = bool(self._lib.llama_memory_seq_rm(self._memory, sequence, position if position > 0 else -1, -1))
        return removed and self._has_window(position, sequence)

    def can_truncate(self, position: int, sequence: int = 0) -> bool:
        """Return whether a longer sequence could be truncated to `position`."""
        return position == 0 or (not self._recurrent and self._has_window(position, sequence))

    def _has_window(self, position: int, sequence: int) -> bool:
        """Return whether layers with a sliding window still have all cells that a token at `position` attends to.

        libllama reuses the cells that have left their sequence's window, and then drops all older ones.
        """
        if self._recurrent or not self._window or position <= 0:
            return True
        first = int(self._lib.llama_memory_seq_pos_min(self._memory, sequence))
        return 0 <= first <= max(0, position - self._window + 1)

    def share(self, source: int, target: int, position: int, start: int = 0) -> None:
        """Add the cells of `source` from `start` to before `position` to `target`, without copying them."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, start, position)

    def cells(self, sequence: int, start: int, end: int) -> Cells:
        """Return a copy of what a sequence holds from position `start` to before `end`. Needs `moves`."""
        self.share(sequence, self._transfer_sequence, end, start)
        try:
            return self.state(self._transfer_sequence, part=False)
        finally:
            self.truncate(0, self._transfer_sequence)

    def add_cells(self, cells: Cells, sequence: int) -> None:
        """Add a copy that `cells` returned to a sequence, at the same positions. Needs `moves`."""
        size = self._lib.llama_state_seq_set_data_ext(self.raw, _bytes(cells), len(cells), self._transfer_sequence, 0)
        if size != len(cells):
            self.truncate(0, self._transfer_sequence)
            raise EngineError(f"libllama cannot restore the cells of a sequence: {log.last_error()}")
        self.share(self._transfer_sequence, sequence, -1)
        self.truncate(0, self._transfer_sequence)

    def state(self, sequence: int, *, part: bool) -> Cells:
        """Return what a sequence holds, for `restore`.

        With `part`, only what cannot be truncated: the cells of sliding windows and recurrent states.
        """
        flags = _PARTIAL if part else 0
        state = np.empty(self._lib.llama_state_seq_get_size_ext(self.raw, sequence, flags), np.uint8)
        size = self._lib.llama_state_seq_get_data_ext(self.raw, _bytes(state), len(state), sequence, flags)
        if size != len(state) or not size:
            raise EngineError(f"libllama cannot save the state of a sequence: {log.last_error()}")
        return state

    def restore(self, state: Cells, position: int, sequence: int, *, part: bool) -> bool:
        """Restore what `state` returned at `position`; with `part`, to a sequence that still has all the rest.

        Returns False where libllama refuses; the caller must then clear the sequence.
        """
        flags = _PARTIAL if part else 0
        size = self._lib.llama_state_seq_set_data_ext(self.raw, _bytes(state), len(state), sequence, flags)
        return bool(size == len(state)) and self.truncate(position, sequence)

    def clear(self) -> None:
        """Remove the cells of all sequences."""
        self._lib.llama_memory_clear(self._memory, False)

    def _run(self, batch: object) -> None:
        with signals_deferred(self.abort):
            code = self._lib.llama_decode(self.raw, batch)
        if code == 0:
            return
        if code == _ABORTED:
            raise Aborted
        if code == 1:
            raise EngineError("the context is full: the KV cache has no cells left")
        raise EngineError(f"llama_decode failed with code {code}: {log.last_error()}")


class Batch:
    """A llama_batch of up to `size` tokens over numpy arrays that are filled in place."""

    def __init__(self, size: int) -> None:
        lib = library.llama()
        self.size = size
        self.count = 0
        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._outputs = np.zeros(size, np.int8)
        first, step = self._sequences.ctypes.data, self._sequences.itemsize
        # The list of sequences of each token is one element of the array above.
        self._lists = (ctypes.c_void_p * size)(*range(first, first + step * size, step))
        self._counts = np.ones(size, np.int32)
        self._several: dict[int, npt.NDArray[np.int32]] = {}  # the sequences of tokens that have more than one
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
        for index in self._several:
            self._counts[index] = 1
            self._lists[index] = self._sequences.ctypes.data + index * self._sequences.itemsize
        self._several.clear()
        self.count = 0

    def add_to_several(self, token: int, position: int, sequences: Sequence[int]) -> int:
        """Add one token that several sequences have in common, with logits, and return its index."""
        index = self.add(token, position, sequences[0])
        if len(sequences) > 1:
            ids = self._several[index] = np.array(sequences, np.int32)
            self._counts[index], self._lists[index] = len(ids), ids.ctypes.data
        return index

    def add(self, token: int, position: int, sequence: int) -> int:
        """Add one token with logits, and return its index."""
        index = self.count
        self._tokens[index] = token
        self._positions[index] = position
        self._sequences[index] = sequence
        self._outputs[index] = 1
        self.count = index + 1
        return index

    def extend(
        self, tokens: Sequence[int], position: int, sequence: int, *, every: bool = False, last: bool = True
    ) -> int:
        """Add tokens of one sequence from `position` on, and return the index of the last.

        Logits are computed for `every` token, or for the `last`.
        """
        if len(tokens) == 1 and (every or last):
            return self.add(tokens[0], position, sequence)
        start, end = self.count, self.count + len(tokens)
        self._tokens[start:end] = tokens
        self._positions[start:end] = np.arange(position, position + len(tokens))
        self._sequences[start:end] = sequence
        self._outputs[start:end] = every
        self._outputs[end - 1] = every or last
        self.count = end
        return end - 1


def _bytes(array: Cells) -> object:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _embedding_batch(
    lib: object, rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], sequence_id: int, logits: bool
) -> object:
    """Return a llama_batch over numpy memory; the batch object keeps the arrays alive."""
    count = len(rows)
    rows = np.ascontiguousarray(rows)
    positions = np.ascontiguousarray(positions, dtype=np.int32)
    sequence = ctypes.c_int32(sequence_id)
    counts = (ctypes.c_int32 * count)(*([1] * count))
    sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*([ctypes.pointer(sequence)] * count))
    outputs = (ctypes.c_int8 * count)()
    outputs[count - 1] = logits
    batch = lib.llama_batch(  # type: ignore[attr-defined]  # llama_cpp is imported at run time
        n_tokens=count,
        embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        n_seq_id=counts,
        seq_id=sequences,
        logits=outputs,
    )
    batch.keep = (rows, positions, sequence)
    return batch
