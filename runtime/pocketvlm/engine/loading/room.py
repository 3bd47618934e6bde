"""Whether a model fits the addresses that the system allows, and how many threads it gives.

Both are tried before native code needs them.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from pocketvlm.engine.loading.loader import host_memory, onnx_bytes
from pocketvlm.engine.options import EngineOptions
from pocketvlm.errors import SystemLimitError
from pocketvlm.system import limits
from pocketvlm.system.machine import physical_cores
from pocketvlm.vision.compatibility import CheckedFiles

_log = logging.getLogger(__name__)
_MB = 1 << 20
_LIBRARY_ADDRESSES = 60 * _MB  # measured on x86-64 with llama-cpp-python 0.3.36 and onnxruntime 1.32
# A scheduler of ggml has room for 30 inputs and their copies in each node's split (ggml_backend_sched_new), most of it
# never touched. libllama has 8 nodes for a tensor, at least 1,024 (llama_context::graph_max_nodes); libmtmd has 8,192.
_NODE_ADDRESSES, _MTMD_NODES = 30 * 2 * 336, 8192
_SPARE_ADDRESSES = 32 * _MB  # for heaps, graphs and small pictures, while requests are answered
# Scheduler, background worker, encoder; in an engine's process two each for short, long and tried requests, and the
# reader of the process that tries grammars.
_OWN_THREADS = 10


def within_limits(checked: CheckedFiles, options: EngineOptions) -> tuple[CheckedFiles, EngineOptions]:
    """Return what to load: without the projector where addresses suffice for the ONNX encoder alone.

    The options have fewer threads where the system gives fewer. Raises SystemLimitError where the model does not fit
    the addresses of this process, or where it would not even get one thread.
    """
    try:
        return checked, _with_threads(checked, options)
    except SystemLimitError:
        if limits.address_limit() is None or checked.projector is None or checked.encoder is None:
            raise
    checked = replace(checked, projector=None)
    options = _with_threads(checked, options)
    _log.warning("too few addresses (`ulimit -v`) for libmtmd: the ONNX encoder is used")
    return checked, options


def check_spare_addresses(name: str) -> None:
    """Raise SystemLimitError where a loaded model has left too few addresses for answering requests."""
    with limits.reserved_addresses(_SPARE_ADDRESSES, f"an answer of {name}"):
        pass


def _with_threads(checked: CheckedFiles, options: EngineOptions) -> EngineOptions:
    wanted = options.threads or physical_cores()
    with limits.reserved_addresses(_addresses(checked, options), checked.model.path.name):
        # llama.cpp and the encoder have threads of their own.
        started = limits.startable_threads(_OWN_THREADS + 2 * (wanted - 1))
        if started < _OWN_THREADS:
            raise SystemLimitError(limits.no_threads())
    count = 1 + (started - _OWN_THREADS) // 2
    if count >= wanted:
        return options
    _log.warning("the system gives %d more threads, so the model uses %d instead of %d", started, count, wanted)
    return replace(options, threads=count)


def _addresses(checked: CheckedFiles, options: EngineOptions) -> int:
    nodes = max(1024, 8 * len(checked.model.tensors)) * (2 if options.parallel > 1 else 1)
    files = checked.model.path.stat().st_size
    if (projector := checked.projector) is not None:
        nodes += _MTMD_NODES
        files += projector.path.stat().st_size
    if (encoder := checked.encoder) is not None:
        files += onnx_bytes(encoder)
    return host_memory(checked, options) + files + nodes * _NODE_ADDRESSES + _LIBRARY_ADDRESSES + _SPARE_ADDRESSES
