"""A context in libllama: the KV cache of one conversation, and its evaluation."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import EngineError
from pocketvlm.native import library, log
from pocketvlm.native.handle import Handle
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model

# llama.cpp asks between graph nodes whether to stop, by calling bool f(void *). libc's strlen on our two-byte flag
# is such a function ("" is false, "x" is true), and it needs neither Python nor its lock.
_libc = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_ABORTED = 2  # llama_decode
_CELLS = 256


class Aborted(Exception):  # noqa: N818  # a control signal, not an error
    """An evaluation was stopped by `Context.abort`; the cache holds what was there before the call."""


class Context(Handle):
    """`n_ctx` cells, batches of `n_batch` tokens; a picture with non-causal attention must fit one batch.

    libllama makes cells by the 256, and batches no larger than all of them; the attributes tell.

    `exact` trades speed for reproducible logits: no flash attention and a float32 cache. `collector` sees what is
    evaluated; then nothing is offloaded.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_batch: int,
        threads: int,
        exact: bool = False,
        collector: Collector | None = None,
    ) -> None:
        self._lib = lib = library.llama()
        self._flag = ctypes.create_string_buffer(2)
        params = lib.llama_context_default_params()
        params.n_ctx = -(-n_ctx // _CELLS) * _CELLS  # as libllama rounds it, but before it cuts the batch to it
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
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
        raw = lib.llama_init_from_model(model.raw, params)
        if not raw:
            raise EngineError(f"cannot make a context of {n_ctx:,} tokens: {log.last_error()}")
        super().__init__(raw, lib.llama_free, parent=model)
        self._memory = lib.llama_get_memory(raw)
        self.n_ctx = int(lib.llama_n_ctx(raw))
        self.n_batch = int(lib.llama_n_batch(raw))
        self._width = model.n_embd_inp
        self._pos_per_token = 4 if model.mrope else 1
        self.n_vocab = model.n_vocab
        self._batch = _TokenBatch(self.n_batch, parent=self)

    def abort(self) -> None:
        """Stop the running evaluation, from any thread. Holds until `allow`."""
        self._flag[0] = b"x"

    def allow(self) -> None:
        self._flag[0] = b"\0"

    def decode_token(self, token: int, position: int) -> None:
        """Evaluate one token and compute its logits: the hot path, one native call."""
        self._batch.one(token, position)
        self._run(self._batch.raw)

    def decode_tokens(self, tokens: Sequence[int], position: int, *, every: bool = False) -> None:
        """Evaluate up to `n_batch` tokens from `position` on; logits for the last, or for `every` one."""
        self._batch.many(tokens, position, every)
        self._run(self._batch.raw)

    def decode_embeddings(
        self, rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int32], *, causal: bool = True
    ) -> None:
        """Evaluate embeddings: rows float32 [n, n_embd_inp], positions int32 [1 or 4, n] (M-RoPE: t, y, x, 0).

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
                self._run(_embedding_batch(self._lib, rows[part], positions[:, part]))
        finally:
            if not causal:
                self._lib.llama_set_causal_attn(self.raw, True)

    def logits(self, index: int = -1) -> npt.NDArray[np.float32]:
        """A copy of the logits of one token of the last batch: float32 [n_vocab]."""
        pointer = self._lib.llama_get_logits_ith(self.raw, index)
        found: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self.n_vocab,)).copy()
        return found

    def truncate(self, position: int) -> bool:
        """Forget everything from `position` on; False where this model's cache cannot."""
        if position <= 0:
            self.clear()
            return True
        return bool(self._lib.llama_memory_seq_rm(self._memory, 0, position, -1))

    def clear(self) -> None:
        self.raw  # noqa: B018  # raises where the context is closed
        self._lib.llama_memory_clear(self._memory, False)

    def _run(self, batch: object) -> None:
        code = self._lib.llama_decode(self.raw, batch)
        if code == 0:
            return
        if code == _ABORTED:
            raise Aborted
        if code == 1:
            raise EngineError("the context is full: no room in the KV cache")
        raise EngineError(f"llama_decode failed with code {code}: {log.last_error()}")


class _TokenBatch(Handle):
    """A llama_batch for one sequence, filled in place."""

    def __init__(self, size: int, parent: Context) -> None:
        lib = library.llama()
        batch = lib.llama_batch_init(size, 0, 1)
        super().__init__(batch, lib.llama_batch_free, parent=parent)
        as_array = np.ctypeslib.as_array
        self._tokens = as_array(batch.token, shape=(size,))
        self._positions = as_array(batch.pos, shape=(size,))
        self._outputs = as_array(batch.logits, shape=(size,))
        as_array(batch.n_seq_id, shape=(size,))[:] = 1
        for i in range(size):
            batch.seq_id[i][0] = 0

    def one(self, token: int, position: int) -> None:
        self._raw.n_tokens = 1
        self._tokens[0] = token
        self._positions[0] = position
        self._outputs[0] = 1

    def many(self, tokens: Sequence[int], position: int, every: bool = False) -> None:
        count = len(tokens)
        self._raw.n_tokens = count
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(position, position + count)
        self._outputs[:count] = every
        self._outputs[count - 1] = 1


def _embedding_batch(lib: object, rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int32]) -> object:
    """A llama_batch over numpy memory; the arrays stay referenced by the batch object itself."""
    count = len(rows)
    rows = np.ascontiguousarray(rows)
    positions = np.ascontiguousarray(positions, dtype=np.int32)
    sequence = ctypes.c_int32(0)
    counts = (ctypes.c_int32 * count)(*([1] * count))
    sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*([ctypes.pointer(sequence)] * count))
    outputs = (ctypes.c_int8 * count)()
    outputs[count - 1] = 1
    batch = lib.llama_batch(  # type: ignore[attr-defined]
        n_tokens=count,
        embd=rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        pos=positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        n_seq_id=counts,
        seq_id=sequences,
        logits=outputs,
    )
    batch.keep = (rows, positions, sequence)
    return batch
